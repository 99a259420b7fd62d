//! Changes that a route or destination makes to request and response headers, in Envoy's order: inside one level remove,
//! then set, then add.
//!
//! Values may hold Envoy's `%VAR%` formatters; the common ones are supported and parsed when the policy is compiled, so
//! that a mistake is an error there and not a strange header here.

use std::fmt;
use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Version};

/// The changes of one level (route or destination).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderOps {
    /// To the request, before it is sent upstream.
    pub request: HeaderChange,
    /// To the response, before it is sent downstream.
    pub response: HeaderChange,
}

/// A list of changes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderChange {
    /// Removed first.
    pub remove: Vec<HeaderName>,
    /// Then set, replacing all values.
    pub set: Vec<(HeaderName, Template)>,
    /// Then added to the values that there are.
    pub add: Vec<(HeaderName, Template)>,
}

/// A header value with placeholders.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Hostname,
    Source,
    SourceIp,
    SourcePort,
    /// The first of the names that has a value, at most so many bytes of it.
    Request(Vec<Named>, usize),
    Protocol,
}

/// What `%REQ(name)%` may name.
#[derive(Debug, Clone, PartialEq)]
enum Named {
    Header(HeaderName),
    Authority,
    Method,
    Path,
}

impl Named {
    fn parse(name: &str) -> Option<Named> {
        match name.to_ascii_lowercase().as_str() {
            ":authority" | "host" => Some(Named::Authority),
            ":method" => Some(Named::Method),
            ":path" => Some(Named::Path),
            lower => HeaderName::from_bytes(lower.as_bytes()).ok().map(Named::Header),
        }
    }

    fn name(&self) -> &str {
        match self {
            Named::Header(name) => name.as_str(),
            Named::Authority => ":authority",
            Named::Method => ":method",
            Named::Path => ":path",
        }
    }

    fn value<'a>(&self, headers: &'a HeaderMap, context: &Context<'a>) -> Option<&'a [u8]> {
        match self {
            Named::Header(name) => headers.get(name).map(HeaderValue::as_bytes),
            Named::Authority => Some(context.authority.as_bytes()),
            Named::Method => Some(context.method.as_bytes()),
            Named::Path => Some(context.path_and_query.as_bytes()),
        }
    }
}

/// What placeholders are filled from, besides the request's headers.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Of the machine or pod that the proxy runs on.
    pub hostname: &'a str,
    /// The downstream's remote address.
    pub source: SocketAddr,
    /// The downstream's HTTP version.
    pub version: Version,
    /// The method, for `%REQ(:method)%`.
    pub method: &'a str,
    /// The authority, for `%REQ(:authority)%`.
    pub authority: &'a str,
    /// Path and query, for `%REQ(:path)%`.
    pub path_and_query: &'a str,
}

impl HeaderChange {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Changes a request's headers.
    pub fn apply_to_request(&self, headers: &mut HeaderMap, context: &Context<'_>) {
        self.apply(headers, |template, headers| template.render(headers, context));
    }

    /// Changes a response's headers. `request` are the request's headers as they were received; they may be empty
    /// unless [`HeaderChange::reads_request_headers`].
    pub fn apply_to_response(&self, headers: &mut HeaderMap, request: &HeaderMap, context: &Context<'_>) {
        self.apply(headers, |template, _| template.render(request, context));
    }

    /// A value has `%REQ(name)%`: the sidecar has to keep the request's headers for the response.
    pub fn reads_request_headers(&self) -> bool {
        let mut templates = self.set.iter().chain(&self.add);
        templates.any(|(_, template)| {
            template.0.iter().any(|part| match part {
                Part::Request(names, _) => names.iter().any(|name| matches!(name, Named::Header(_))),
                _ => false,
            })
        })
    }

    /// This level's changes, then `later`'s, as one level: removals of both first, then all sets, then all adds.
    pub(crate) fn merged(&self, later: &HeaderChange) -> HeaderChange {
        HeaderChange {
            remove: self.remove.iter().chain(&later.remove).cloned().collect(),
            set: self.set.iter().chain(&later.set).cloned().collect(),
            add: self.add.iter().chain(&later.add).cloned().collect(),
        }
    }

    fn apply(&self, headers: &mut HeaderMap, render: impl Fn(&Template, &HeaderMap) -> Option<HeaderValue>) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, template) in &self.set {
            if let Some(value) = render(template, headers) {
                headers.insert(name, value);
            }
        }
        for (name, template) in &self.add {
            if let Some(value) = render(template, headers) {
                headers.append(name, value);
            }
        }
    }
}

impl HeaderOps {
    /// See [`HeaderChange::merged`].
    pub(crate) fn merged(&self, later: &HeaderOps) -> HeaderOps {
        HeaderOps { request: self.request.merged(&later.request), response: self.response.merged(&later.response) }
    }
}

impl Template {
    /// Parses a value; the error says which placeholder is not supported or where one is left open.
    pub fn parse(text: &str) -> Result<Template, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(start) = rest.find('%') {
            literal.push_str(&rest[..start]);
            rest = &rest[start + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            let end = rest
                .find('%')
                .ok_or_else(|| format!("a '%' without its end in {text:?}; write %% for a percent sign"))?;
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(Part::parse(&rest[..end])?);
            rest = &rest[end + 1..];
        }
        literal.push_str(rest);
        if HeaderValue::from_str(&literal).is_err() {
            return Err(format!("{text:?} has a byte that no header value may have"));
        }
        if !literal.is_empty() || parts.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Template(parts))
    }

    /// The value; `None` when it is empty because the headers it reads are missing, or would be an illegal value. An
    /// empty value without placeholders is a value.
    fn render(&self, headers: &HeaderMap, context: &Context<'_>) -> Option<HeaderValue> {
        if let [Part::Text(text)] = &self.0[..] {
            return HeaderValue::from_str(text).ok();
        }
        let mut value = Vec::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => value.extend_from_slice(text.as_bytes()),
                Part::Hostname => value.extend_from_slice(context.hostname.as_bytes()),
                Part::Source => value.extend_from_slice(context.source.to_string().as_bytes()),
                Part::SourceIp => value.extend_from_slice(context.source.ip().to_string().as_bytes()),
                Part::SourcePort => value.extend_from_slice(context.source.port().to_string().as_bytes()),
                Part::Request(names, most) => {
                    if let Some(found) = names.iter().find_map(|name| name.value(headers, context)) {
                        value.extend_from_slice(&found[..found.len().min(*most)]);
                    }
                }
                Part::Protocol => value.extend_from_slice(protocol_text(context.version).as_bytes()),
            }
        }
        if value.is_empty() { None } else { HeaderValue::from_bytes(&value).ok() }
    }
}

/// As it is written in a policy.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.0 {
            match part {
                Part::Text(text) => f.write_str(&text.replace('%', "%%"))?,
                Part::Hostname => f.write_str("%HOSTNAME%")?,
                Part::Source => f.write_str("%DOWNSTREAM_REMOTE_ADDRESS%")?,
                Part::SourceIp => f.write_str("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%")?,
                Part::SourcePort => f.write_str("%DOWNSTREAM_REMOTE_PORT%")?,
                Part::Protocol => f.write_str("%PROTOCOL%")?,
                Part::Request(names, most) => {
                    let names: Vec<&str> = names.iter().map(Named::name).collect();
                    write!(f, "%REQ({})", names.join("?"))?;
                    if *most != usize::MAX {
                        write!(f, ":{most}")?;
                    }
                    f.write_str("%")?;
                }
            }
        }
        Ok(())
    }
}

impl Part {
    fn parse(text: &str) -> Result<Part, String> {
        match text {
            "HOSTNAME" => return Ok(Part::Hostname),
            "DOWNSTREAM_REMOTE_ADDRESS" => return Ok(Part::Source),
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => return Ok(Part::SourceIp),
            "DOWNSTREAM_REMOTE_PORT" => return Ok(Part::SourcePort),
            "PROTOCOL" => return Ok(Part::Protocol),
            _ => {}
        }
        let unsupported = || {
            format!(
                "%{text}% is not supported yet; supported are %HOSTNAME%, %DOWNSTREAM_REMOTE_ADDRESS%, \
                 %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%, %DOWNSTREAM_REMOTE_PORT%, %REQ(name)%, \
                 %REQ(name?other):LENGTH%, %PROTOCOL% and %%"
            )
        };
        let (names, most) = text.strip_prefix("REQ(").and_then(|rest| rest.rsplit_once(')')).ok_or_else(unsupported)?;
        let most = match most.strip_prefix(':') {
            Some(length) => length.parse().map_err(|_| unsupported())?,
            None if most.is_empty() => usize::MAX,
            None => return Err(unsupported()),
        };
        let names: Vec<&str> = names.split('?').collect();
        // As in Envoy there is one alternative.
        let parsed: Option<Vec<Named>> = names.iter().take(3).map(|name| Named::parse(name)).collect();
        parsed.filter(|parsed| parsed.len() <= 2).map(|names| Part::Request(names, most)).ok_or_else(unsupported)
    }
}

fn protocol_text(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context<'static> {
        Context {
            hostname: "pod-1",
            source: SocketAddr::from(([10, 0, 0, 1], 4000)),
            version: Version::HTTP_11,
            method: "GET",
            authority: "order",
            path_and_query: "/a?b",
        }
    }

    fn pair(name: &'static str, value: &str) -> (HeaderName, Template) {
        (HeaderName::from_static(name), Template::parse(value).unwrap())
    }

    fn render(text: &str, headers: &HeaderMap) -> Option<String> {
        let value = Template::parse(text).unwrap().render(headers, &context())?;
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn remove_then_set_then_add() {
        let change = HeaderChange {
            remove: vec![HeaderName::from_static("a")],
            set: vec![pair("b", "set"), pair("a", "back")],
            add: vec![pair("b", "added"), pair("c", "added")],
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [("a", "1"), ("b", "1"), ("b", "2"), ("c", "1")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        change.apply_to_request(&mut headers, &context());
        let all = |name| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((all("a"), all("b"), all("c")), (vec!["back"], vec!["set", "added"], vec!["1", "added"]));
    }

    #[test]
    fn placeholders() {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", HeaderValue::from_static("alice"));
        for (text, expected) in [
            ("plain", Some("plain")),
            ("", Some("")),
            ("100%%", Some("100%")),
            ("%DOWNSTREAM_REMOTE_ADDRESS%", Some("10.0.0.1:4000")),
            ("ip=%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%;", Some("ip=10.0.0.1;")),
            ("%REQ(X-User)%/%REQ(:path)%", Some("alice//a?b")),
            ("%REQ(:method)% %REQ(:authority)% %PROTOCOL%", Some("GET order HTTP/1.1")),
            ("%REQ(missing)%", None),
            ("a%REQ(missing)%", Some("a")),
            ("%REQ(missing?x-user)%", Some("alice")),
            ("%REQ(X-User?:path):3%", Some("ali")),
            ("%REQ(:path):2%", Some("/a")),
            ("%DOWNSTREAM_REMOTE_PORT%", Some("4000")),
            ("at %HOSTNAME%", Some("at pod-1")),
        ] {
            assert_eq!(render(text, &headers).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_template_is_shown_as_it_is_written() {
        for text in ["plain", "100%%", "%REQ(x-a?:path):3% of %PROTOCOL%", "%DOWNSTREAM_REMOTE_PORT%"] {
            assert_eq!(Template::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let error = Template::parse("a %START_TIME% b").unwrap_err();
        assert!(error.starts_with("%START_TIME% is not supported yet"), "{error}");
        assert!(Template::parse("50% off").unwrap_err().contains("%%"));
        for wrong in ["%REQ(a b)%", "%REQ(a?b?c)%", "%REQ(a):x%", "%REQ(a)x%", "%REQ(a)"] {
            assert!(Template::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Template::parse("a\nb").is_err());
    }

    #[test]
    fn responses_read_the_request() {
        let change = HeaderChange { set: vec![pair("x", "%REQ(x-user)%")], ..HeaderChange::default() };
        assert!(change.reads_request_headers());
        let (mut response, mut request) = (HeaderMap::new(), HeaderMap::new());
        request.insert("x-user", HeaderValue::from_static("bob"));
        change.apply_to_response(&mut response, &request, &context());
        assert_eq!(response["x"], "bob");
    }

    #[test]
    fn a_merged_level_sets_the_later_last() {
        let route = HeaderChange { set: vec![pair("a", "route")], ..HeaderChange::default() };
        let remove = vec![HeaderName::from_static("a")];
        let destination = HeaderChange { set: vec![pair("a", "destination")], remove, ..HeaderChange::default() };
        let mut headers = HeaderMap::new();
        route.merged(&destination).apply_to_request(&mut headers, &context());
        assert_eq!(headers["a"], "destination");
    }
}
