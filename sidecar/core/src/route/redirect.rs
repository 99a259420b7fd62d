//! The `location` of a redirect.

use std::borrow::Cow;

use http::StatusCode;

use super::matcher::Matcher;
use super::rewrite::matched;
use crate::names::split_port;
use crate::request::RequestView;

/// Responds with a redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Path of the location.
    pub path: RedirectPath,
    /// Replaces the authority.
    pub authority: Option<String>,
    /// Replaces the request's scheme.
    pub scheme: Option<String>,
    /// Port of the location.
    pub port: RedirectPort,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// Path of a redirect's location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPath {
    /// The request's.
    Keep,
    /// A fixed path; it keeps the request's query unless it has its own.
    Uri(String),
    /// The request's path with the matched part replaced, as in [`super::Rewrite::Matched`].
    Matched(String),
}

/// Port of a redirect's location.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectPort {
    /// The authority's own, except the default port of the previous scheme.
    Keep,
    /// A fixed port, omitted if it is the scheme's default.
    Number(u16),
    /// The port of the request, omitted if it is the scheme's default.
    FromRequest,
}

impl Redirect {
    /// The location for a request that `matcher` matched, received by `scheme` (`http` or `https`) on `port`.
    pub fn location(&self, matcher: &Matcher, req: &RequestView<'_>, scheme: &str, port: u16) -> String {
        let new_scheme = self.scheme.as_deref().unwrap_or(scheme);
        let new_port = match self.port {
            RedirectPort::Keep => None,
            RedirectPort::Number(number) => Some(number),
            RedirectPort::FromRequest => Some(port),
        };
        let host = match &self.authority {
            Some(authority) => authority.as_str(),
            None => host_of(req.authority, scheme, new_scheme, new_port.is_some()),
        };
        // The scheme's default port is implied; Istio omits it too.
        let explicit_port = new_port.filter(|port| !is_default(new_scheme, *port));
        let port = explicit_port.map(|port| format!(":{port}")).unwrap_or_default();
        let (path, query) = match (&self.path, req.query()) {
            (RedirectPath::Keep, _) => (Cow::Borrowed(req.path_and_query), None),
            (RedirectPath::Uri(uri), query) => (uri.into(), query.filter(|_| !uri.contains('?'))),
            (RedirectPath::Matched(prefix), query) => (matched(prefix, matcher, req.path()).into(), query),
        };
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        format!("{new_scheme}://{host}{port}{path}{query}")
    }
}

/// Whether a port is the default of a scheme.
fn is_default(scheme: &str, port: u16) -> bool {
    matches!((scheme, port), ("http", 80) | ("https", 443))
}

/// The request's authority, without its port if it is replaced or if it was the default of the previous scheme.
fn host_of<'a>(authority: &'a str, scheme: &str, new_scheme: &str, has_new_port: bool) -> &'a str {
    let (_, Some(port)) = split_port(authority) else { return authority };
    let was_default = scheme != new_scheme && is_default(scheme, port);
    if has_new_port || was_default {
        // Keeps the brackets of an IPv6 address, unlike `split_port`.
        authority.rsplit_once(':').map_or(authority, |(host, _)| host)
    } else {
        authority
    }
}
