//! Header values with Envoy's `%VAR%` formatters. They are parsed when a policy is compiled, so that a mistake is
//! reported there instead of producing a wrong header later. Formatters that Envoy has and a sidecar lacks are refused
//! with the reason.

mod parse;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};

use super::request_line::Line;
use super::start_time::Format;
use super::tls::{Field, Tls};
use crate::flag::ResponseFlags;
use crate::proxy_protocol::ConnectionAddresses;

/// Message that a value belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A request before it is sent upstream.
    Request,
    /// A response's.
    Response,
}

/// A header value with placeholders.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    parts: Vec<Part>,
    /// Source text in the policy.
    written: Box<str>,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Hostname,
    Remote(Piece),
    Local(Piece),
    /// The first of the headers with a value, and the maximum number of bytes.
    Request(Vec<Named>, usize),
    /// A part of the target, and the maximum number of bytes.
    Line(Line, usize),
    Tls(Field),
    Protocol,
    StartTime(Format),
    Cluster,
    Route,
    Unique,
    /// A variable of the proxy's environment, and the maximum number of bytes.
    Environment(String, usize),
    /// The first of the response's headers that is present, and the maximum number of bytes.
    Response(Vec<HeaderName>, usize),
    Code,
    CodeDetails,
    Flags,
    Upstream(Piece),
    Attempts,
}

/// Part of an address.
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

    /// Part of an endpoint's key: `ip:port`, `name:port` or the path of a Unix socket.
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

/// Argument of `%REQ(name)%`.
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

/// Values for placeholders, besides headers.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Constants of the proxy.
    pub proxy: &'a ProxyContext,
    /// The downstream's remote address and its original destination.
    pub ends: &'a ConnectionAddresses,
    /// Downstream TLS, if it is terminated by this proxy.
    pub tls: Option<&'a Tls>,
    /// The downstream's HTTP version.
    pub version: Version,
    /// Time of the request's arrival.
    pub start: &'a Instant,
    /// The method, for `%REQ(:method)%`.
    pub method: &'a str,
    /// The authority, for `%REQ(:authority)%`.
    pub authority: &'a str,
    /// Path and query, for `%REQ(:path)%`.
    pub path_and_query: &'a str,
    /// The cluster; empty: the request is not forwarded.
    pub cluster: &'a str,
    /// Name of the route, see [`crate::route::Route`].
    pub route: &'a str,
}

/// Constants and functions of the proxy process.
#[derive(Debug)]
pub struct ProxyContext {
    /// Host name of the machine or pod.
    pub hostname: String,
    /// Converts an instant to wall-clock time.
    pub time: fn(Instant) -> SystemTime,
    /// Returns a random number.
    pub random: fn() -> u128,
    /// Reads an environment variable.
    pub environment: fn(&str) -> Option<String>,
}

/// Properties of a response besides its headers.
#[derive(Debug, Clone, Copy)]
pub struct ResponseContext<'a> {
    /// Its status.
    pub status: StatusCode,
    /// Origin of the response, in Envoy's terms (`response_code_details`).
    pub details: &'static str,
    /// Reasons for an unusual outcome.
    pub flags: ResponseFlags,
    /// The endpoint that responded.
    pub upstream: Option<&'a str>,
    /// Number of upstream attempts.
    pub attempts: u32,
}

impl ResponseContext<'_> {
    /// Details of a response from an endpoint.
    pub const UPSTREAM: &'static str = "via_upstream";
    /// Details of a direct response of the route.
    pub const DIRECT: &'static str = "direct_response";
}

impl Template {
    /// Parses a value.
    ///
    /// # Errors
    /// Names the placeholder that is unsupported or unterminated, and the reason.
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
                end(rest).ok_or_else(|| format!("an unterminated '%' in {text:?}; write %% for a percent sign"))?;
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(Part::parse(&rest[..end], side)?);
            rest = &rest[end + 1..];
        }
        literal.push_str(rest);
        if HeaderValue::from_str(&literal).is_err() {
            return Err(format!("{text:?} has a byte that is not allowed in a header value"));
        }
        if !literal.is_empty() || parts.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Template { parts, written: text.into() })
    }

    /// Whether a placeholder reads a request header, such as `%REQ(name)%`.
    pub(super) fn reads_request_headers(&self) -> bool {
        self.parts.iter().any(|part| match part {
            Part::Request(names, _) => names.iter().any(|name| matches!(name, Named::Header(_))),
            Part::Line(line, _) => line.reads_headers(),
            Part::Tls(field) => field.reads_headers(),
            _ => false,
        })
    }

    /// The value; `None` if it is empty because the headers it reads are missing, or if it is not a valid header value.
    /// A template without placeholders may be empty. `response`: the response, with its headers before the change.
    pub(super) fn render(
        &self,
        request: &HeaderMap,
        context: &Context<'_>,
        response: Option<(&ResponseContext<'_>, &HeaderMap)>,
    ) -> Option<HeaderValue> {
        if let [Part::Text(text)] = &self.parts[..] {
            return HeaderValue::from_str(text).ok();
        }
        let mut value = Vec::new();
        for part in &self.parts {
            part.render(&mut value, request, context, response);
        }
        if value.is_empty() { None } else { HeaderValue::from_bytes(&value).ok() }
    }
}

/// The source text in the policy.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// End of the placeholder at the beginning of `text`: its argument may contain percent signs.
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
        response: Option<(&ResponseContext<'_>, &HeaderMap)>,
    ) {
        let mut push = |text: &[u8]| value.extend_from_slice(text);
        match (self, response) {
            (Part::Text(text), _) => push(text.as_bytes()),
            (Part::Hostname, _) => push(context.proxy.hostname.as_bytes()),
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
                push(format.text((context.proxy.time)(*context.start)).as_bytes());
            }
            (Part::Cluster, _) => push(context.cluster.as_bytes()),
            (Part::Route, _) => push(route_text(context.route).as_bytes()),
            (Part::Unique, _) => push(uuid((context.proxy.random)()).as_bytes()),
            (Part::Environment(name, most), _) => {
                // `-` for a missing variable, as in Envoy.
                let found = (context.proxy.environment)(name).unwrap_or("-".to_owned());
                push(&found.as_bytes()[..found.len().min(*most)]);
            }
            (Part::Response(names, most), Some((_, headers))) => {
                if let Some(found) = names.iter().find_map(|name| headers.get(name)) {
                    push(&found.as_bytes()[..found.len().min(*most)]);
                }
            }
            (Part::Code, Some((response, _))) => push(response.status.as_str().as_bytes()),
            (Part::CodeDetails, Some((response, _))) => push(response.details.as_bytes()),
            (Part::Flags, Some((response, _))) => push(response.flags.to_string().as_bytes()),
            (Part::Attempts, Some((response, _))) => push(response.attempts.to_string().as_bytes()),
            (Part::Upstream(piece), Some((response, _))) => {
                push(response.upstream.map(|key| piece.of_endpoint(key)).unwrap_or_default().as_bytes());
            }
            // Not reachable for a request: its parser refuses these placeholders.
            (
                Part::Response(..) | Part::Code | Part::CodeDetails | Part::Flags | Part::Attempts | Part::Upstream(_),
                None,
            ) => {}
        }
    }
}

/// The name of the route in the VirtualService, which Istio gives the route in Envoy.
fn route_text(name: &str) -> &str {
    match name.strip_prefix("VirtualService/") {
        Some(rest) => rest.splitn(3, '/').nth(2).unwrap_or_default(),
        None => name,
    }
}

/// A random UUID (RFC 9562, 5.4) from a random number.
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
