//! `match` of a route.

use weft_core::re2;
use weft_core::route::matcher::Pseudo;
use weft_proto::v1::{self, string_match::Kind};

use super::RouteMatch;
use crate::decode::fields::Fields;
use crate::names;

/// Reads one entry.
pub(super) fn decode(fields: &Fields<'_>) -> RouteMatch {
    let http = v1::HttpMatch {
        uri: fields.object("uri").map(|uri| string_match(&uri, true)),
        ignore_uri_case: fields.boolean("ignoreUriCase").unwrap_or_default(),
        method: fields.object("method").map(|method| string_match(&method, false)),
        authority: fields.object("authority").map(|authority| string_match(&authority, false)),
        headers: named_matches(fields, "headers"),
        query_params: named_matches(fields, "queryParams"),
        without_headers: named_matches(fields, "withoutHeaders"),
        scheme: fields.object("scheme").map(|scheme| string_match(&scheme, false)),
        port: fields.port("port").unwrap_or_default(),
        path_separated_prefix: String::new(),
    };
    let headers = fields.map("headers").iter().chain(fields.map("withoutHeaders"));
    for header in headers.map(|(key, _)| key).filter(|key| !is_matched(&key.name)) {
        fields.error_at(header.place, format!("`{}` is not a header name", header.name));
    }
    if fields.has("statPrefix") {
        fields.warn("statPrefix", "`statPrefix` has no effect: requests are counted by their destination");
    }
    for (gateway, place) in fields.strings("gateways") {
        if !is_gateway(&gateway) {
            fields.error_at(place, format!("`{gateway}` is not a gateway: mesh, a name, or namespace/name"));
        }
    }
    let regex = http.uri.as_ref().is_some_and(|uri| matches!(uri.kind, Some(Kind::Regex(_))));
    if http.ignore_uri_case && regex {
        fields.error("ignoreUriCase", "`ignoreUriCase` has no effect on a regex: begin the regex with (?i)");
    }
    check_namespace(fields);
    RouteMatch {
        http,
        source_labels: fields.labels("sourceLabels"),
        source_namespace: fields.string("sourceNamespace").unwrap_or_default(),
        gateways: fields.strings("gateways").into_iter().map(|(gateway, _)| gateway).collect(),
    }
}

/// Whether a condition on a header may have this name: a header's, or a request's pseudo-header's.
fn is_matched(name: &str) -> bool {
    names::is_header(name) || Pseudo::parse(name).is_some()
}

/// Reports a `sourceNamespace` that is not a namespace.
pub(super) fn check_namespace(fields: &Fields<'_>) {
    if let Some(name) = fields.string("sourceNamespace").filter(|name| !names::is_label(name)) {
        fields.error("sourceNamespace", format!("namespace `{name}` {}", names::LABEL_RULE));
    }
}

/// `mesh`, a name or `namespace/name`.
pub(super) fn is_gateway(text: &str) -> bool {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    names::is_label(namespace) && names::is_subdomain(name)
}

fn named_matches(fields: &Fields<'_>, name: &'static str) -> Vec<v1::NamedMatch> {
    let entries = fields.object_map(name).into_iter();
    entries
        .map(|(key, value)| v1::NamedMatch { name: key.name.clone(), value: Some(string_match(&value, false)) })
        .collect()
}

/// One of `exact`, `prefix` and `regex`; none of them, or the regex `*`, means presence.
pub(super) fn string_match(fields: &Fields<'_>, empty_prefix: bool) -> v1::StringMatch {
    let kinds: Vec<Kind> = [
        fields.string("exact").map(Kind::Exact),
        fields.string("prefix").map(Kind::Prefix),
        fields.string("regex").map(Kind::Regex),
    ]
    .into_iter()
    .flatten()
    .collect();
    if kinds.len() > 1 {
        fields.error_at(fields.place, "give only one of `exact`, `prefix` and `regex`");
    }
    let kind = match kinds.into_iter().next() {
        None => Kind::Present(true),
        Some(Kind::Regex(regex)) if regex == "*" => Kind::Present(true),
        Some(Kind::Prefix(prefix)) if prefix.is_empty() && !empty_prefix => {
            fields.error("prefix", "an empty prefix matches everything: leave the match out");
            Kind::Prefix(prefix)
        }
        Some(Kind::Regex(pattern)) if pattern.is_empty() => {
            fields.error(
                "regex",
                "an empty regex matches the empty text alone: write `exact: \"\"`, or leave the match out",
            );
            Kind::Regex(pattern)
        }
        Some(Kind::Regex(pattern)) => {
            check_regex(fields, "regex", &pattern);
            Kind::Regex(pattern)
        }
        Some(kind) => kind,
    };
    v1::StringMatch { kind: Some(kind) }
}

/// Whether `outer` matches all texts that `inner` matches, as far as it can be decided: regexes are not compared.
pub(crate) fn covers(outer: &Kind, inner: &Kind) -> bool {
    match (outer, inner) {
        (Kind::Present(_), _) => true,
        (Kind::Exact(outer), Kind::Exact(inner)) => outer == inner,
        (Kind::Prefix(outer), Kind::Exact(inner) | Kind::Prefix(inner)) => inner.starts_with(outer),
        _ => false,
    }
}

/// Reports the field `name` if it is not a regular expression. The dry run, which compiles it, finds one that is too
/// large.
pub(super) fn check_regex(fields: &Fields<'_>, name: &str, pattern: &str) {
    if let Err(why) = re2::check(pattern) {
        let shown = if pattern.len() > 80 { "this" } else { &format!("`{pattern}`") };
        fields.error(name, format!("{shown} is not a regular expression of RE2 that is taken: {why}"));
    }
}
