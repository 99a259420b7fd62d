//! `corsPolicy`: requests of browsers from other origins.

use weft_proto::v1::{self, string_match::Kind};

use super::matching::string_match;
use crate::decode::fields::{Fields, Shape, object, read};
use crate::{names, nearest::suggest};

/// Its fields.
pub(super) const SHAPE: Shape = &[
    object("allowOrigins", super::STRING_MATCH),
    read("allowOrigin"),
    read("allowMethods"),
    read("allowHeaders"),
    read("exposeHeaders"),
    read("maxAge"),
    read("allowCredentials"),
    read("unmatchedPreflights"),
];

/// Values of `allowMethods`, as in Istio.
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"];

/// Unlike in a route's `match`, an origin without a condition does not allow all origins.
fn allowed_origin(fields: &Fields<'_>) -> v1::StringMatch {
    let empty = |name: &'static str| fields.written_node(name).and_then(|node| node.as_str()) == Some("");
    if fields.written() == 0 || empty("exact") {
        let text =
            format!("`{}` needs a non-empty `exact`, `prefix` or `regex`; `regex: .*` is any origin", fields.path);
        fields.error_at(fields.place, text);
    }
    string_match(fields, false)
}

/// Reads it.
pub(super) fn decode(fields: &Fields<'_>) -> v1::Cors {
    let mut origins: Vec<v1::StringMatch> = fields.objects("allowOrigins").iter().map(allowed_origin).collect();
    if fields.has("allowOrigin") {
        fields.warn("allowOrigin", "`allowOrigin` is deprecated: write `allowOrigins`");
        let old = fields.strings("allowOrigin").into_iter();
        origins.extend(old.map(|(origin, _)| v1::StringMatch { kind: Some(Kind::Exact(origin)) }));
    }
    let headers = |name| -> Vec<String> {
        let checked = fields.strings(name).into_iter().map(|(header, place)| {
            if header != "*" && !names::is_header(&header) {
                fields.error_at(place, format!("`{header}` is not a header name"));
            }
            header
        });
        checked.collect()
    };
    let methods = fields.strings("allowMethods").into_iter().map(|(method, place)| {
        if !METHODS.contains(&method.as_str()) {
            let hint = suggest(&method, METHODS, "allowed are");
            fields.error_at(place, format!("`{method}` is not a method that browsers ask for{hint}"));
        }
        method
    });
    let age = fields.duration("maxAge", 0);
    if age.is_some_and(|ms| ms % 1000 != 0) {
        fields.error("maxAge", "`maxAge` is in whole seconds");
    }
    let ignore = fields
        .one_of("unmatchedPreflights", &[("UNSPECIFIED", false), ("FORWARD", false), ("IGNORE", true)])
        .unwrap_or_default();
    v1::Cors {
        allow_origins: origins,
        allow_methods: methods.collect(),
        allow_headers: headers("allowHeaders"),
        expose_headers: headers("exposeHeaders"),
        max_age_s: age.map(|ms| ms / 1000),
        allow_credentials: fields.boolean("allowCredentials").unwrap_or_default(),
        ignore_unmatched_preflights: ignore,
        reflect_wildcards: false,
    }
}
