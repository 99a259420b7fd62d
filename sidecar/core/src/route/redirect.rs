//! The `location` of a redirect.

use std::borrow::Cow;

use http::StatusCode;

use super::matcher::Matcher;
use super::rewrite::matched;
use crate::names::split_port;
use crate::request::RequestView;

/// Answers with a redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// The path.
    pub path: RedirectPath,
    /// Instead of the authority.
    pub authority: Option<String>,
    /// Instead of the request's scheme.
    pub scheme: Option<String>,
    /// Which port the location names.
    pub port: RedirectPort,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// Which path a redirect's location names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPath {
    /// The request's.
    Keep,
    /// This one; it takes the request's query along unless it has its own.
    Uri(String),
    /// The request's with this instead of what matched of it, as [`super::Rewrite::Matched`].
    Matched(String),
}

/// Which port a redirect's location names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectPort {
    /// The authority's own, without the default port of the scheme that is left.
    Keep,
    /// This one, which is left out where it is the default of the scheme.
    Number(u16),
    /// The one that the request came to, likewise.
    FromRequest,
}

impl Redirect {
    /// The location for a request that `matcher` matched, and that came by `scheme` (`http` or `https`) to `port`.
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
        // The scheme says its default port; Istio leaves it out too.
        let named = new_port.filter(|port| !is_default(new_scheme, *port));
        let port = named.map(|port| format!(":{port}")).unwrap_or_default();
        let (path, query) = match (&self.path, req.query()) {
            (RedirectPath::Keep, _) => (Cow::Borrowed(req.path_and_query), None),
            (RedirectPath::Uri(uri), query) => (uri.into(), query.filter(|_| !uri.contains('?'))),
            (RedirectPath::Matched(prefix), query) => (matched(prefix, matcher, req.path()).into(), query),
        };
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        format!("{new_scheme}://{host}{port}{path}{query}")
    }
}

/// Whether a URL of a scheme has this port where it names none.
fn is_default(scheme: &str, port: u16) -> bool {
    matches!((scheme, port), ("http", 80) | ("https", 443))
}

/// The request's authority, without its port where another is named or where it was the default of the scheme left.
fn host_of<'a>(authority: &'a str, scheme: &str, new_scheme: &str, has_new_port: bool) -> &'a str {
    let (_, Some(port)) = split_port(authority) else { return authority };
    let was_default = scheme != new_scheme && is_default(scheme, port);
    if has_new_port || was_default {
        // With the brackets of an IPv6 address, which `split_port` takes off.
        authority.rsplit_once(':').map_or(authority, |(host, _)| host)
    } else {
        authority
    }
}
