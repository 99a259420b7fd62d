//! Header values with Envoy's `%VAR%` formatters. They are parsed when a policy is compiled, so that a mistake is an error
//! there and not a strange header later. What Envoy knows and a sidecar does not is refused with the reason.

mod parse;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};

use super::request_line::Line;
use super::start_time::Format;
use super::tls::{Field, Tls};
use crate::flag::ResponseFlags;
use crate::proxy_protocol::Ends;

/// Whose headers a value is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A request's, which has not been sent yet.
    Request,
    /// A response's.
    Response,
}

/// A header value with placeholders.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    parts: Vec<Part>,
    /// As it stands in the policy.
    written: Box<str>,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Hostname,
    Remote(Piece),
    Local(Piece),
    /// The first of the names that has a value, at most so many bytes of it.
    Request(Vec<Named>, usize),
    /// At most so many bytes of a part of the target.
    Line(Line, usize),
    Tls(Field),
    Protocol,
    StartTime(Format),
    Cluster,
    Route,
    Unique,
    /// A variable of the proxy's environment, at most so many bytes of it.
    Environment(String, usize),
    /// The first of the response's headers that is there, at most so many bytes of it.
    Response(Vec<HeaderName>, usize),
    Code,
    CodeDetails,
    Flags,
    Upstream(Piece),
    Attempts,
}

/// Which part of an address.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Piece {
    Whole,
    Ip,
    Port,
}

impl Piece {
    fn of(self, address: SocketAddr) -> String {
        match self {
            Piece::Whole => address.to_string(),
            Piece::Ip => address.ip().to_string(),
            Piece::Port => address.port().to_string(),
        }
    }

    /// Of what an endpoint is called: `ip:port`, `name:port` or the path of a Unix socket.
    fn of_endpoint(self, key: &str) -> String {
        let split = key.rsplit_once(':').filter(|_| !key.starts_with(['/', '@']));
        match (self, split) {
            (Piece::Whole, _) | (Piece::Ip, None) => key.to_owned(),
            (Piece::Port, None) => String::new(),
            (Piece::Ip, Some((host, _))) => {
                let bare = host.trim_matches(['[', ']']);
                bare.parse::<IpAddr>().map_or(host.to_owned(), |ip| ip.to_string())
            }
            (Piece::Port, Some((_, port))) => port.to_owned(),
        }
    }
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

    fn value<'a>(&self, headers: &'a HeaderMap, context: &Context<'a>) -> Option<&'a [u8]> {
        match self {
            Named::Header(name) => headers.get(name).map(HeaderValue::as_bytes),
            Named::Authority => Some(context.authority.as_bytes()),
            Named::Method => Some(context.method.as_bytes()),
            Named::Path => Some(context.path_and_query.as_bytes()),
        }
    }
}

/// What placeholders are filled from, besides headers.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Of the proxy.
    pub surroundings: &'a Surroundings,
    /// The downstream's remote address, and the one that it dialed.
    pub ends: &'a Ends,
    /// The TLS that the request came by, where it ends here.
    pub tls: Option<&'a Tls>,
    /// The downstream's HTTP version.
    pub version: Version,
    /// When the request came.
    pub start: &'a Instant,
    /// The method, for `%REQ(:method)%`.
    pub method: &'a str,
    /// The authority, for `%REQ(:authority)%`.
    pub authority: &'a str,
    /// Path and query, for `%REQ(:path)%`.
    pub path_and_query: &'a str,
    /// The cluster; empty: none is called.
    pub cluster: &'a str,
    /// The route, as [`crate::route::Route`] is called.
    pub route: &'a str,
}

/// What a proxy is for all of its requests.
#[derive(Debug)]
pub struct Surroundings {
    /// Of the machine or pod that it runs on.
    pub hostname: String,
    /// What time it was at an instant.
    pub time: fn(Instant) -> SystemTime,
    /// A random number.
    pub random: fn() -> u128,
    /// A variable of its environment.
    pub environment: fn(&str) -> Option<String>,
}

/// What is known of an answer besides its headers.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// Its status.
    pub status: StatusCode,
    /// Whose it is, in Envoy's words.
    pub details: &'static str,
    /// Why it did not come the usual way.
    pub flags: ResponseFlags,
    /// The endpoint that gave it.
    pub upstream: Option<&'a str>,
    /// Requests to endpoints that were made.
    pub attempts: u32,
}

impl Answer<'_> {
    /// Details of an answer that an endpoint gave.
    pub const UPSTREAM: &'static str = "via_upstream";
    /// Details of an answer that the route gives itself.
    pub const DIRECT: &'static str = "direct_response";
}

impl Template {
    /// Parses a value; the error says which placeholder is not supported or where one is left open.
    ///
    /// # Errors
    /// Names the placeholder, and why it cannot be used.
    pub fn parse(text: &str, side: Side) -> Result<Template, String> {
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
            let end =
                end(rest).ok_or_else(|| format!("a '%' without its end in {text:?}; write %% for a percent sign"))?;
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(Part::parse(&rest[..end], side)?);
            rest = &rest[end + 1..];
        }
        literal.push_str(rest);
        if HeaderValue::from_str(&literal).is_err() {
            return Err(format!("{text:?} has a byte that no header value may have"));
        }
        if !literal.is_empty() || parts.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Template { parts, written: text.into() })
    }

    /// It has `%REQ(name)%` of a header, or another formatter that reads one.
    pub(super) fn reads_request_headers(&self) -> bool {
        self.parts.iter().any(|part| match part {
            Part::Request(names, _) => names.iter().any(|name| matches!(name, Named::Header(_))),
            Part::Line(line, _) => line.reads_headers(),
            Part::Tls(field) => field.reads_headers(),
            _ => false,
        })
    }

    /// The value; `None` when it is empty because the headers it reads are missing, or would be an illegal value. An
    /// empty value without placeholders is a value. `answer`: of a response, with its headers as they are.
    pub(super) fn render(
        &self,
        request: &HeaderMap,
        context: &Context<'_>,
        answer: Option<(&Answer<'_>, &HeaderMap)>,
    ) -> Option<HeaderValue> {
        if let [Part::Text(text)] = &self.parts[..] {
            return HeaderValue::from_str(text).ok();
        }
        let mut value = Vec::new();
        for part in &self.parts {
            part.render(&mut value, request, context, answer);
        }
        if value.is_empty() { None } else { HeaderValue::from_bytes(&value).ok() }
    }
}

/// As it is written in a policy.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// Where a placeholder that begins `text` ends: its argument may have percent signs of its own.
fn end(text: &str) -> Option<usize> {
    let is_name = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    let name = text.bytes().take_while(|b| is_name(*b)).count();
    let after = match text[name..].strip_prefix('(').and_then(|argument| argument.find(')')) {
        Some(argument) => name + argument + 2,
        None => name,
    };
    text[after..].find('%').map(|end| after + end)
}

impl Part {
    fn render(
        &self,
        value: &mut Vec<u8>,
        request: &HeaderMap,
        context: &Context<'_>,
        answer: Option<(&Answer<'_>, &HeaderMap)>,
    ) {
        let mut push = |text: &[u8]| value.extend_from_slice(text);
        match (self, answer) {
            (Part::Text(text), _) => push(text.as_bytes()),
            (Part::Hostname, _) => push(context.surroundings.hostname.as_bytes()),
            (Part::Remote(piece), _) => push(piece.of(context.ends.source).as_bytes()),
            (Part::Local(piece), _) => push(piece.of(context.ends.destination).as_bytes()),
            (Part::Request(names, most), _) => {
                if let Some(found) = names.iter().find_map(|name| name.value(request, context)) {
                    push(&found[..found.len().min(*most)]);
                }
            }
            (Part::Line(line, most), _) => {
                let found = line.of(request, context);
                push(&found[..found.len().min(*most)]);
            }
            (Part::Tls(field), _) => push(&field.of(request, context)),
            (Part::Protocol, _) => push(protocol_text(context.version).as_bytes()),
            (Part::StartTime(format), _) => {
                push(format.text((context.surroundings.time)(*context.start)).as_bytes());
            }
            (Part::Cluster, _) => push(context.cluster.as_bytes()),
            (Part::Route, _) => push(route_text(context.route).as_bytes()),
            (Part::Unique, _) => push(uuid((context.surroundings.random)()).as_bytes()),
            (Part::Environment(name, most), _) => {
                // As in Envoy.
                let found = (context.surroundings.environment)(name).unwrap_or("-".to_owned());
                push(&found.as_bytes()[..found.len().min(*most)]);
            }
            (Part::Response(names, most), Some((_, headers))) => {
                if let Some(found) = names.iter().find_map(|name| headers.get(name)) {
                    push(&found.as_bytes()[..found.len().min(*most)]);
                }
            }
            (Part::Code, Some((answer, _))) => push(answer.status.as_str().as_bytes()),
            (Part::CodeDetails, Some((answer, _))) => push(answer.details.as_bytes()),
            (Part::Flags, Some((answer, _))) => push(answer.flags.to_string().as_bytes()),
            (Part::Attempts, Some((answer, _))) => push(answer.attempts.to_string().as_bytes()),
            (Part::Upstream(piece), Some((answer, _))) => {
                push(answer.upstream.map(|key| piece.of_endpoint(key)).unwrap_or_default().as_bytes());
            }
            // Never in a request: it is refused when it is parsed.
            (
                Part::Response(..) | Part::Code | Part::CodeDetails | Part::Flags | Part::Attempts | Part::Upstream(_),
                None,
            ) => {}
        }
    }
}

/// The name that the VirtualService gives its route, as Istio calls it in Envoy.
fn route_text(name: &str) -> &str {
    match name.strip_prefix("VirtualService/") {
        Some(rest) => rest.splitn(3, '/').nth(2).unwrap_or_default(),
        None => name,
    }
}

/// A random UUID (RFC 9562, 5.4) of a random number.
fn uuid(random: u128) -> String {
    let number = random & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{number:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn protocol_text(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
pub(super) mod tests;
