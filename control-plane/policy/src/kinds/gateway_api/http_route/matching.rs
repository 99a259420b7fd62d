//! `matches` of routes, with the rank that decides between several that match a request.

use std::collections::HashSet;

use weft_proto::v1::{self, string_match::Kind};

use crate::decode::fields::{Fields, Shape, object, read};
use crate::names;

/// A match, with its rank: of two that match a request the one with the greater rank applies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RankedMatch {
    /// The conditions on the request.
    pub http: v1::HttpMatch,
    /// Of HTTP the form of the path, its characters, whether there is a method, the number of headers and of query
    /// parameters; of gRPC the characters of service and method, and the number of headers.
    pub rank: [usize; 5],
}

const NAMED: Shape = &[read("type"), read("name"), read("value")];
/// Fields of an entry of an HTTPRoute's `matches`.
pub(in crate::kinds::gateway_api) const HTTP: Shape = &[
    object("path", &[read("type"), read("value")]),
    object("headers", NAMED),
    object("queryParams", NAMED),
    read("method"),
];
/// Fields of an entry of a GRPCRoute's `matches`.
pub(in crate::kinds::gateway_api) const GRPC: Shape =
    &[object("method", &[read("type"), read("service"), read("method")]), object("headers", NAMED)];

const METHODS: &[(&str, &str)] = &[
    ("GET", "GET"),
    ("HEAD", "HEAD"),
    ("POST", "POST"),
    ("PUT", "PUT"),
    ("DELETE", "DELETE"),
    ("CONNECT", "CONNECT"),
    ("OPTIONS", "OPTIONS"),
    ("TRACE", "TRACE"),
    ("PATCH", "PATCH"),
];

/// A match of every request.
pub(in crate::kinds::gateway_api) fn any() -> RankedMatch {
    ranked(v1::HttpMatch { path_separated_prefix: "/".to_owned(), ..v1::HttpMatch::default() })
}

/// Reads an entry of an HTTPRoute's `matches`.
pub(in crate::kinds::gateway_api) fn http(fields: &Fields<'_>) -> RankedMatch {
    let mut one = v1::HttpMatch { path_separated_prefix: "/".to_owned(), ..v1::HttpMatch::default() };
    if let Some(path) = fields.object("path") {
        let value = path.string("value").unwrap_or_else(|| "/".to_owned());
        let kind = path.one_of("type", &[("Exact", 0), ("PathPrefix", 1), ("RegularExpression", 2)]).unwrap_or(1);
        let plain =
            value.starts_with('/') && !["//", "/./", "/../", "%2f", "%2F", "#"].iter().any(|b| value.contains(b));
        if kind != 2 && !plain {
            let text = format!(
                "`{}`: `{value}` must begin with `/`, without `//`, `/./`, `/../` and `#`",
                path.path_of("value")
            );
            path.error("value", text);
        }
        one.path_separated_prefix = if kind == 1 { value.clone() } else { String::new() };
        one.uri = match kind {
            0 => Some(string_match(Kind::Exact(value))),
            2 => Some(regex(&path, "value", value)),
            _ => None,
        };
    }
    one.headers = named(fields, "headers", true);
    one.query_params = named(fields, "queryParams", false);
    one.method = fields.one_of("method", METHODS).map(|method| string_match(Kind::Exact(method.to_owned())));
    ranked(one)
}

/// Regular expressions come after prefixes, but before the prefix of all paths, which would leave them no request.
fn ranked(http: v1::HttpMatch) -> RankedMatch {
    let prefix = http.path_separated_prefix.trim_end_matches('/').len();
    let (form, path) = match http.uri.as_ref().and_then(|uri| uri.kind.as_ref()) {
        Some(Kind::Exact(path)) => (3, path.len()),
        Some(Kind::Regex(pattern)) => (1, pattern.len()),
        _ if prefix > 0 => (2, prefix),
        _ => (0, 0),
    };
    let rank = [form, path, usize::from(http.method.is_some()), http.headers.len(), http.query_params.len()];
    RankedMatch { http, rank }
}

/// Reads an entry of a GRPCRoute's `matches`: a method of gRPC is the path `/service/method`.
pub(in crate::kinds::gateway_api) fn grpc(fields: &Fields<'_>) -> RankedMatch {
    let (mut service, mut method) = (String::new(), String::new());
    let mut uri = None;
    if let Some(of) = fields.object("method") {
        let by_regex = of.one_of("type", &[("Exact", false), ("RegularExpression", true)]).unwrap_or_default();
        service = of.string("service").unwrap_or_default();
        method = of.string("method").unwrap_or_default();
        if service.is_empty() && method.is_empty() {
            of.error_at(of.place, "`method` needs `service` or `method`");
        }
        for (name, text) in [("service", &service), ("method", &method)] {
            if !by_regex && text.contains('/') {
                of.error(name, format!("`{}`: `{text}` must not contain `/`", of.path_of(name)));
            }
        }
        let any = "[^/]+";
        uri = Some(match (by_regex, service.as_str(), method.as_str()) {
            (false, service, "") => string_match(Kind::Prefix(format!("/{service}/"))),
            (false, "", method) => string_match(Kind::Regex(format!("/{any}/{}", escaped(method)))),
            (false, service, method) => string_match(Kind::Exact(format!("/{service}/{method}"))),
            (true, service, method) => {
                let or_any = |text: &str| if text.is_empty() { any.to_owned() } else { format!("(?:{text})") };
                regex(&of, "method", format!("/{}/{}", or_any(service), or_any(method)))
            }
        });
    }
    let headers = named(fields, "headers", true);
    let rank = [service.len(), method.len(), headers.len(), 0, 0];
    RankedMatch { http: v1::HttpMatch { uri, headers, ..v1::HttpMatch::default() }, rank }
}

/// Conditions on headers or query parameters: of two with the same name the first counts.
fn named(fields: &Fields<'_>, name: &'static str, of_headers: bool) -> Vec<v1::NamedMatch> {
    let mut seen = HashSet::new();
    let one = |fields: &Fields<'_>| {
        let name = fields.required_string("name");
        if of_headers && !name.is_empty() && !names::is_header(&name) {
            fields.error("name", format!("`{name}` is not a header name"));
        }
        fields.require("value");
        let value = fields.string("value").unwrap_or_default();
        let by_regex = fields.one_of("type", &[("Exact", false), ("RegularExpression", true)]).unwrap_or_default();
        let value = if by_regex { regex(fields, "value", value) } else { string_match(Kind::Exact(value)) };
        v1::NamedMatch { name, value: Some(value) }
    };
    let all: Vec<v1::NamedMatch> = fields.objects(name).iter().map(one).collect();
    let key = |one: &v1::NamedMatch| if of_headers { one.name.to_ascii_lowercase() } else { one.name.clone() };
    all.into_iter().filter(|one| seen.insert(key(one))).collect()
}

fn string_match(kind: Kind) -> v1::StringMatch {
    v1::StringMatch { kind: Some(kind) }
}

fn regex(fields: &Fields<'_>, name: &str, pattern: String) -> v1::StringMatch {
    if let Err(why) = weft_core::re2::whole(&pattern) {
        fields.error(name, format!("`{}`: `{pattern}` is not a regular expression: {why}", fields.path_of(name)));
    }
    string_match(Kind::Regex(pattern))
}

/// A text as a regular expression.
pub(in crate::kinds::gateway_api) fn escaped(text: &str) -> String {
    let escape =
        |c: char| if c.is_ascii_alphanumeric() || "-_/: ".contains(c) { c.to_string() } else { format!("\\{c}") };
    text.chars().map(escape).collect()
}
