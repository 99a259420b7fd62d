//! Match conditions of a route, all of which must hold.

use http::HeaderName;
use regex::bytes::Regex;

use crate::request::RequestView;
use crate::string_match::StringMatch;

/// The conditions of one match; without any, every request matches.
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    /// On the path without query.
    pub uri: Option<UriMatch>,
    /// On the method.
    pub method: Option<StringMatch>,
    /// On the authority as sent by the client.
    pub authority: Option<StringMatch>,
    /// On headers; one of several values is sufficient.
    pub headers: Vec<(HeaderName, HeaderMatch)>,
    /// On pseudo headers, which every request has.
    pub pseudo: Vec<(Pseudo, HeaderMatch)>,
    /// On the first value of query parameters, not decoded; a missing parameter never matches.
    pub query_params: Vec<(String, StringMatch)>,
    /// On the downstream's scheme.
    pub scheme: Option<StringMatch>,
    /// On the original destination port.
    pub port: Option<u16>,
}

/// A pseudo header of HTTP/2 (RFC 9113, 8.3.1), or its equivalent in HTTP/1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pseudo {
    /// The authority as sent by the client.
    Authority,
    /// The method.
    Method,
    /// Path and query.
    Path,
    /// The downstream's scheme.
    Scheme,
}

impl Pseudo {
    /// Parses a name such as `:path`.
    pub fn parse(name: &str) -> Option<Pseudo> {
        [Pseudo::Authority, Pseudo::Method, Pseudo::Path, Pseudo::Scheme].into_iter().find(|one| one.name() == name)
    }

    /// The name with its colon.
    pub fn name(self) -> &'static str {
        match self {
            Pseudo::Authority => ":authority",
            Pseudo::Method => ":method",
            Pseudo::Path => ":path",
            Pseudo::Scheme => ":scheme",
        }
    }

    /// The value in a request.
    pub(crate) fn of<'a>(self, req: &RequestView<'a>) -> &'a str {
        match self {
            Pseudo::Authority => req.authority,
            Pseudo::Method => req.method.as_str(),
            Pseudo::Path => req.path_and_query,
            Pseudo::Scheme => req.scheme,
        }
    }
}

/// A condition on the path.
#[derive(Debug, Clone)]
pub enum UriMatch {
    /// The whole path. With `ignore_case`, ASCII letters are compared without case.
    Exact { path: String, ignore_case: bool },
    /// A plain string prefix: `/foo` matches `/foobar`.
    Prefix { path: String, ignore_case: bool },
    /// A prefix of whole segments (Envoy's `path_separated_prefix`): `/foo` matches `/foo/bar` and not `/foobar`. Without
    /// a slash at its end; empty: every path.
    Segments(String),
    /// A match of the whole path.
    Regex(Regex),
}

/// A condition on a header.
#[derive(Debug, Clone)]
pub enum HeaderMatch {
    /// The header is present and its value matches.
    Value(StringMatch),
    /// The header is absent.
    Absent,
    /// Its value does not match; an absent header counts as empty. With [`StringMatch::Any`]: it is absent.
    Without(StringMatch),
}

/// A condition that a request does not meet. [`super::unmet`] formats it.
#[derive(Debug, Clone, Copy)]
pub enum Unmet<'a> {
    /// On the path.
    Uri(&'a UriMatch),
    /// On the method.
    Method(&'a StringMatch),
    /// On the authority.
    Authority(&'a StringMatch),
    /// On the scheme.
    Scheme(&'a StringMatch),
    /// On the port.
    Port(u16),
    /// On a header.
    Header(&'a HeaderName, &'a HeaderMatch),
    /// On a pseudo header.
    Pseudo(Pseudo, &'a HeaderMatch),
    /// On a query parameter.
    QueryParam(&'a str, &'a StringMatch),
}

impl Matcher {
    /// Whether all conditions hold.
    pub fn matches(&self, req: &RequestView<'_>) -> bool {
        self.unmet(req).is_none()
    }

    /// The first condition that does not hold; `None`: all do.
    pub fn unmet(&self, req: &RequestView<'_>) -> Option<Unmet<'_>> {
        if let Some(uri) = &self.uri
            && !uri.matches(req.path())
        {
            return Some(Unmet::Uri(uri));
        }
        if let Some(method) = unmet_text(&self.method, req.method.as_str()) {
            return Some(Unmet::Method(method));
        }
        if let Some(authority) = unmet_text(&self.authority, req.authority) {
            return Some(Unmet::Authority(authority));
        }
        if let Some(scheme) = unmet_text(&self.scheme, req.scheme) {
            return Some(Unmet::Scheme(scheme));
        }
        if let Some(port) = self.port.filter(|port| *port != req.local.port()) {
            return Some(Unmet::Port(port));
        }
        if let Some((name, condition)) = self.headers.iter().find(|(name, c)| !c.matches(req.header_values(name))) {
            return Some(Unmet::Header(name, condition));
        }
        let pseudo = |(pseudo, c): &&(Pseudo, HeaderMatch)| !c.matches(std::iter::once(pseudo.of(req).as_bytes()));
        if let Some((pseudo, condition)) = self.pseudo.iter().find(pseudo) {
            return Some(Unmet::Pseudo(*pseudo, condition));
        }
        let has = |name: &str, condition: &StringMatch| {
            req.query_param(name).is_some_and(|value| condition.matches(value.as_bytes()))
        };
        let param = self.query_params.iter().find(|(name, condition)| !has(name, condition));
        param.map(|(name, condition)| Unmet::QueryParam(name, condition))
    }

    /// Whether it matches every request, so that later routes are never reached.
    pub fn is_catch_all(&self) -> bool {
        let any_uri = match &self.uri {
            None => true,
            Some(UriMatch::Prefix { path, .. }) => path.is_empty() || path == "/",
            Some(UriMatch::Segments(path)) => path.is_empty(),
            Some(_) => false,
        };
        any_uri
            && matches!(self.method, None | Some(StringMatch::Any))
            && matches!(self.authority, None | Some(StringMatch::Any))
            && matches!(self.scheme, None | Some(StringMatch::Any))
            && self.port.is_none()
            && self.headers.is_empty()
            && self.pseudo.is_empty()
            && self.query_params.is_empty()
    }

    /// The rest of a matching path after the matched part, for its replacement: the text after the prefix; nothing
    /// after an exact or regex match. Without a condition the prefix is `/`.
    pub(crate) fn after_matched_path<'a>(&self, path: &'a str) -> &'a str {
        match &self.uri {
            None => path.strip_prefix('/').unwrap_or(path),
            // A matching path is at least as long, and the prefix ends on a character boundary in both.
            Some(UriMatch::Prefix { path: prefix, .. } | UriMatch::Segments(prefix)) => {
                path.get(prefix.len()..).unwrap_or("")
            }
            Some(UriMatch::Exact { .. } | UriMatch::Regex(_)) => "",
        }
    }
}

fn unmet_text<'a>(condition: &'a Option<StringMatch>, text: &str) -> Option<&'a StringMatch> {
    condition.as_ref().filter(|condition| !condition.matches(text.as_bytes()))
}

impl UriMatch {
    fn matches(&self, path: &str) -> bool {
        match self {
            UriMatch::Exact { path: exact, ignore_case: false } => path == exact,
            UriMatch::Exact { path: exact, ignore_case: true } => path.eq_ignore_ascii_case(exact),
            UriMatch::Prefix { path: prefix, ignore_case: false } => path.starts_with(prefix.as_str()),
            UriMatch::Prefix { path: prefix, ignore_case: true } => {
                path.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
            }
            UriMatch::Segments(prefix) => {
                path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            UriMatch::Regex(regex) => regex.is_match(path.as_bytes()),
        }
    }
}

impl HeaderMatch {
    /// Each of several values is matched separately, as in Envoy.
    fn matches<'a>(&self, mut values: impl Iterator<Item = &'a [u8]>) -> bool {
        match self {
            HeaderMatch::Value(condition) => values.any(|value| condition.matches(value)),
            HeaderMatch::Absent => values.next().is_none(),
            HeaderMatch::Without(StringMatch::Any) => values.next().is_none(),
            HeaderMatch::Without(condition) => {
                // Istio sets `treat_missing_header_as_empty` in Envoy: a missing header counts as empty.
                let first = values.next().unwrap_or_default();
                !std::iter::once(first).chain(values).any(|value| condition.matches(value))
            }
        }
    }
}
