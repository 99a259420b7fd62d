//! `filters` of rules and backends.

use std::collections::HashSet;

use weft_proto::v1::{self, string_match::Kind};

use super::BackendMirror;
use super::matching::escaped;
use crate::decode::fields::{Fields, Shape, explicit, not_yet, object, read};
use crate::names;

/// The filters of a rule.
#[derive(Default)]
pub(in crate::kinds::gateway_api) struct Filters {
    pub(in crate::kinds::gateway_api) headers: Option<v1::HeaderOperations>,
    pub(in crate::kinds::gateway_api) redirect: Option<v1::Redirect>,
    pub(in crate::kinds::gateway_api) rewrite: Option<v1::Rewrite>,
    pub(in crate::kinds::gateway_api) cors: Option<v1::Cors>,
    pub(in crate::kinds::gateway_api) mirrors: Vec<BackendMirror>,
}

impl Filters {
    /// Whether one replaces the matched prefix of the path.
    pub(in crate::kinds::gateway_api) fn replaces_prefix(&self) -> bool {
        self.rewrite.as_ref().is_some_and(|rewrite| rewrite.uri.is_some())
            || self.redirect.as_ref().is_some_and(|redirect| redirect.prefix_rewrite.is_some())
    }
}

const HEADER: Shape = &[read("name"), read("value")];
const HEADERS: Shape = &[object("set", HEADER), object("add", HEADER), read("remove")];
const PATH: Shape = &[read("type"), explicit("replaceFullPath"), explicit("replacePrefixMatch")];
const MIRROR: Shape = &[
    object("backendRef", &[explicit("group"), read("kind"), read("namespace"), read("name"), read("port")]),
    explicit("percent"),
    object("fraction", &[explicit("numerator"), read("denominator")]),
];
/// Fields of a filter of an HTTPRoute.
pub(in crate::kinds::gateway_api) const HTTP: Shape = &[
    read("type"),
    object("requestHeaderModifier", HEADERS),
    object("responseHeaderModifier", HEADERS),
    object("requestMirror", MIRROR),
    object(
        "requestRedirect",
        &[read("scheme"), read("hostname"), object("path", PATH), read("port"), read("statusCode")],
    ),
    object("urlRewrite", &[read("hostname"), object("path", PATH)]),
    object(
        "cors",
        &[
            read("allowOrigins"),
            read("allowCredentials"),
            read("allowMethods"),
            read("allowHeaders"),
            read("exposeHeaders"),
            explicit("maxAge"),
        ],
    ),
    not_yet("externalAuth"),
    not_yet("extensionRef"),
];
/// Fields of a filter of a GRPCRoute.
pub(in crate::kinds::gateway_api) const GRPC: Shape = &[
    read("type"),
    object("requestHeaderModifier", HEADERS),
    object("responseHeaderModifier", HEADERS),
    object("requestMirror", MIRROR),
    not_yet("extensionRef"),
];
/// Fields of a filter of a backend: others than changes of headers are refused.
pub(in crate::kinds::gateway_api) const OF_BACKEND: Shape = &[
    read("type"),
    object("requestHeaderModifier", HEADERS),
    object("responseHeaderModifier", HEADERS),
    not_yet("requestMirror"),
    not_yet("requestRedirect"),
    not_yet("urlRewrite"),
    not_yet("cors"),
    not_yet("externalAuth"),
    not_yet("extensionRef"),
];

/// The types of filters, and the field of each.
const TYPES: &[(&str, &str)] = &[
    ("RequestHeaderModifier", "requestHeaderModifier"),
    ("ResponseHeaderModifier", "responseHeaderModifier"),
    ("RequestMirror", "requestMirror"),
    ("RequestRedirect", "requestRedirect"),
    ("URLRewrite", "urlRewrite"),
    ("CORS", "cors"),
    ("ExternalAuth", "externalAuth"),
    ("ExtensionRef", "extensionRef"),
];

/// Reads the `filters` of a rule.
pub(in crate::kinds::gateway_api) fn decode(rule: &Fields<'_>, namespace: &str) -> Filters {
    let mut found = Filters::default();
    let mut seen = HashSet::new();
    for fields in rule.objects("filters") {
        let Some(field) = of_type(&fields) else { continue };
        if !seen.insert(field) && field != "requestMirror" {
            fields.error("type", format!("a filter with `{field}` is there twice"));
        }
        match field {
            "requestHeaderModifier" | "responseHeaderModifier" => {
                if let Some(of) = fields.object(field) {
                    change(&of, field, &mut found.headers);
                }
            }
            "requestMirror" => found.mirrors.extend(fields.object(field).map(|of| mirror(&of, namespace))),
            "requestRedirect" => found.redirect = fields.object(field).map(|of| redirect(&of)),
            "urlRewrite" => found.rewrite = fields.object(field).map(|of| rewrite(&of)),
            "cors" => found.cors = fields.object(field).map(|of| cors(&of)),
            // Refused by the shape.
            _ => {}
        }
    }
    if found.redirect.is_some() && found.rewrite.is_some() {
        rule.error("filters", "filters of type RequestRedirect and URLRewrite exclude each other");
    }
    found
}

/// The changes of headers in the `filters` of a backend.
pub(in crate::kinds::gateway_api) fn of_backend(backend: &Fields<'_>) -> Option<v1::HeaderOperations> {
    let mut headers = None;
    for fields in backend.objects("filters") {
        let Some(field) = of_type(&fields) else { continue };
        if let Some(of) = Some(field).filter(|field| field.ends_with("Modifier")).and_then(|field| fields.object(field))
        {
            change(&of, field, &mut headers);
        }
    }
    headers
}

/// The field that the `type` of a filter requires, which must be there.
fn of_type(fields: &Fields<'_>) -> Option<&'static str> {
    fields.require("type");
    let field = fields.one_of("type", TYPES)?;
    // A field that the shape does not have is reported by it.
    if fields.knows(field) {
        fields.require(field);
        return Some(field);
    }
    fields.error("type", format!("a filter with `{field}` is not supported here"));
    None
}

/// A change of the headers of requests or responses.
fn change(fields: &Fields<'_>, field: &str, headers: &mut Option<v1::HeaderOperations>) {
    let check = |name: &str, place| {
        if !names::is_header(name) {
            fields.error_at(place, format!("`{name}` is not a header name"));
        } else if name.eq_ignore_ascii_case("host") {
            fields.error_at(place, "`host` cannot be changed here: a filter of type URLRewrite changes it".to_owned());
        }
    };
    let values = |name| {
        let mut seen = HashSet::new();
        let one = |fields: &Fields<'_>| {
            let (name, value) = (fields.required_string("name"), fields.required_string("value"));
            check(&name, fields.place);
            // A percent sign begins a variable in Envoy's values; here it is a character.
            v1::HeaderValue { name, value: value.replace('%', "%%") }
        };
        let all: Vec<v1::HeaderValue> = fields.objects(name).iter().map(one).collect();
        all.into_iter().filter(|one| seen.insert(one.name.to_ascii_lowercase())).collect()
    };
    let remove = fields.strings("remove").into_iter().map(|(name, place)| {
        check(&name, place);
        name
    });
    let change = v1::HeaderChange { set: values("set"), add: values("add"), remove: remove.collect() };
    let headers = headers.get_or_insert_default();
    match field {
        "requestHeaderModifier" => headers.request = Some(change),
        _ => headers.response = Some(change),
    }
}

fn mirror(fields: &Fields<'_>, namespace: &str) -> BackendMirror {
    fields.require("backendRef");
    let backend = match fields.object("backendRef") {
        Some(backend) => super::super::backend(&backend, namespace),
        None => super::super::backend(fields, namespace),
    };
    let percent = fields.number("percent", 0..=100);
    let fraction = fields.object("fraction").map(|fraction| {
        let denominator = fraction.number("denominator", 1..=i64::from(i32::MAX)).unwrap_or(100);
        let numerator = fraction.number("numerator", 0..=i64::from(i32::MAX)).unwrap_or_default();
        if numerator > denominator {
            fraction.error("numerator", "`numerator` is more than `denominator`");
        }
        numerator.min(denominator) as f64 * 100.0 / denominator as f64
    });
    if percent.is_some() && fraction.is_some() {
        fields.error("fraction", "`percent` and `fraction` exclude each other");
    }
    BackendMirror { backend, percent: percent.map(|percent| percent as f64).or(fraction).unwrap_or(100.0) }
}

/// The path of a redirect or rewrite: the whole, or the replacement of the matched prefix.
fn path(fields: &Fields<'_>) -> (Option<String>, Option<String>) {
    let Some(path) = fields.object("path") else { return (None, None) };
    path.require("type");
    let kind =
        path.one_of("type", &[("ReplaceFullPath", "replaceFullPath"), ("ReplacePrefixMatch", "replacePrefixMatch")]);
    let Some(name) = kind else { return (None, None) };
    path.require(name);
    let mut text = path.string(name);
    if let Some(text) = text.as_mut() {
        if text.is_empty() && name == "replacePrefixMatch" {
            text.push('/');
        }
        if !text.starts_with('/') || !text.bytes().all(|b| b.is_ascii_graphic()) {
            path.error(
                name,
                format!("`{}`: `{text}` must begin with `/` and have visible ASCII only", path.path_of(name)),
            );
        }
    }
    if name == "replaceFullPath" { (text, None) } else { (None, text) }
}

fn hostname(fields: &Fields<'_>) -> Option<String> {
    let name = fields.string("hostname");
    if let Some(name) = name.as_deref().filter(|name| !names::is_host(name)) {
        fields.error("hostname", format!("`{}`: `{name}` is not a host name", fields.path_of("hostname")));
    }
    name
}

fn redirect(fields: &Fields<'_>) -> v1::Redirect {
    let scheme = fields.one_of("scheme", &[("http", 80), ("https", 443)]);
    // Without a port it is that of the new scheme, else that of the request.
    let port = fields.port("port").or(scheme);
    let code = fields.number("statusCode", 301..=308).unwrap_or(302);
    if !matches!(code, 301 | 302 | 303 | 307 | 308) {
        fields.error("statusCode", format!("`{}` is 301, 302, 303, 307 or 308", fields.path_of("statusCode")));
    }
    let (uri, prefix_rewrite) = path(fields);
    let derive = if port.is_none() { v1::DerivePort::FromRequestPort } else { v1::DerivePort::Unset };
    v1::Redirect {
        uri,
        prefix_rewrite,
        authority: hostname(fields),
        scheme: fields.string("scheme"),
        port,
        derive_port: derive.into(),
        code: u32::try_from(code).unwrap_or_default(),
    }
}

fn rewrite(fields: &Fields<'_>) -> v1::Rewrite {
    let (full_path, uri) = path(fields);
    v1::Rewrite { uri, full_path, authority: hostname(fields), uri_regex: None }
}

fn cors(fields: &Fields<'_>) -> v1::Cors {
    let list = |name| -> Vec<String> { fields.strings(name).into_iter().map(|(text, _)| text).collect() };
    for name in ["allowHeaders", "exposeHeaders", "allowMethods"] {
        for (text, place) in fields.strings(name).into_iter().filter(|(text, _)| text != "*" && !names::is_header(text))
        {
            fields.error_at(place, format!("`{text}` in `{name}` is not a token"));
        }
    }
    let origin = |(text, place): (String, _)| {
        let rest = text.split_once("://").map(|(_, host)| host);
        let is_plain = |host: &str| !host.is_empty() && !host.contains(['/', '*', '@']);
        if text != "*" && !rest.is_some_and(|host| is_plain(host.strip_prefix("*.").unwrap_or(host))) {
            fields
                .error_at(place, format!("`{text}` is not an origin: `*`, or a scheme, `://` and a host or *.suffix"));
        }
        let kind = match text.split_once("://*.") {
            Some((scheme, suffix)) => Kind::Regex(format!("{}://.+\\.{}", escaped(scheme), escaped(suffix))),
            None => Kind::Exact(text),
        };
        v1::StringMatch { kind: Some(kind) }
    };
    v1::Cors {
        allow_origins: fields.strings("allowOrigins").into_iter().map(origin).collect(),
        allow_methods: list("allowMethods"),
        allow_headers: list("allowHeaders"),
        expose_headers: list("exposeHeaders"),
        max_age_s: fields.number("maxAge", 1..=i64::from(i32::MAX)).or(Some(5)),
        allow_credentials: fields.boolean("allowCredentials").unwrap_or_default(),
        ignore_unmatched_preflights: true,
        reflect_wildcards: true,
    }
}
