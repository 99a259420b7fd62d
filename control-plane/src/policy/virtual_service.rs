//! VirtualService: where a request to a host goes.

mod matching;
mod response;

use weft_proto::v1;

use super::{
    fields::{Fields, Shape, not_yet, object, read},
    names,
};
use crate::yaml::Place;

/// A VirtualService's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualService {
    /// As written: short names, full ones or `*.suffix`.
    pub hosts: Vec<String>,
    /// In order; the first match wins.
    pub http: Vec<Route>,
}

/// One entry of `http`.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// For logs; empty: none.
    pub name: String,
    /// Any of them; empty: every request.
    pub matches: Vec<v1::HttpMatch>,
    /// What happens.
    pub action: Action,
    /// Header operations of the route.
    pub headers: Option<v1::HeaderOperations>,
    /// Where it is written.
    pub place: Place,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// `route`.
    Forward(Forward),
    /// `redirect`.
    Redirect(v1::Redirect),
    /// `directResponse`.
    Respond(v1::DirectResponse),
}

/// `route` with what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// At least one.
    pub destinations: Vec<Destination>,
    /// Milliseconds; 0: none.
    pub timeout_ms: u64,
    /// `rewrite`.
    pub rewrite: Option<v1::Rewrite>,
    /// `retries`; absent: the default of the mesh.
    pub retry: Option<v1::RetryPolicy>,
}

/// One entry of `route`.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// As written.
    pub host: String,
    /// Empty: none.
    pub subset: String,
    /// `port.number`.
    pub port: Option<u32>,
    /// Share of the requests.
    pub weight: u32,
    /// Header operations of this destination.
    pub headers: Option<v1::HeaderOperations>,
    /// Where it is written.
    pub place: Place,
}

const STRING_MATCH: Shape = &[read("exact"), read("prefix"), read("regex")];
const MATCH: Shape = &[
    object("uri", STRING_MATCH),
    read("ignoreUriCase"),
    object("method", STRING_MATCH),
    object("authority", STRING_MATCH),
    object("headers", STRING_MATCH),
    object("queryParams", STRING_MATCH),
    not_yet("name"),
    not_yet("scheme"),
    not_yet("withoutHeaders"),
    not_yet("port"),
    not_yet("gateways"),
    not_yet("sourceLabels"),
    not_yet("sourceNamespace"),
    not_yet("statPrefix"),
];
const CHANGE: Shape = &[read("set"), read("add"), read("remove")];
const HEADERS: Shape = &[object("request", CHANGE), object("response", CHANGE)];
const DESTINATION: Shape = &[read("host"), read("subset"), object("port", &[read("number")])];
const HTTP: Shape = &[
    read("name"),
    object("match", MATCH),
    object("route", &[object("destination", DESTINATION), read("weight"), object("headers", HEADERS)]),
    object(
        "redirect",
        &[
            read("uri"),
            read("authority"),
            read("scheme"),
            read("port"),
            read("derivePort"),
            read("redirectCode"),
            not_yet("prefixRewrite"),
        ],
    ),
    object("directResponse", &[read("status"), object("body", &[read("string"), read("bytes")])]),
    object("rewrite", &[read("uri"), read("authority"), not_yet("uriRegexRewrite")]),
    read("timeout"),
    object(
        "retries",
        &[
            read("attempts"),
            read("perTryTimeout"),
            read("retryOn"),
            read("backoff"),
            not_yet("retryRemoteLocalities"),
            not_yet("retryIgnorePreviousHosts"),
        ],
    ),
    object("headers", HEADERS),
    not_yet("fault"),
    not_yet("mirror"),
    not_yet("mirrors"),
    not_yet("mirrorPercentage"),
    not_yet("mirrorPercent"),
    not_yet("mirror_percent"),
    not_yet("corsPolicy"),
    not_yet("delegate"),
];
/// Fields of `spec`.
pub(crate) const SHAPE: Shape =
    &[read("hosts"), read("gateways"), object("http", HTTP), not_yet("tls"), not_yet("tcp"), read("exportTo")];

/// Reads `spec`.
pub(crate) fn decode(spec: &Fields<'_>) -> VirtualService {
    spec.require("hosts");
    let mut hosts: Vec<String> = Vec::new();
    for (host, place) in spec.strings("hosts") {
        if host == "*" {
            spec.error_at(place, "host `*` is for gateways: name the hosts whose callers in the mesh this is for");
        } else if !names::is_host_or_wildcard(&host) {
            spec.error_at(
                place,
                format!("`{host}` is not a host name; write a service's name, a full name or *.suffix"),
            );
        } else if let Some(other) =
            hosts.iter().find(|other| names::covers(other, &host) || names::covers(&host, other))
        {
            spec.error_at(place, format!("hosts `{other}` and `{host}` overlap: give only one of them"));
        }
        hosts.push(host);
    }
    if spec.has("hosts") && hosts.is_empty() {
        spec.error("hosts", "`hosts` must name at least one host");
    }
    for (gateway, place) in spec.strings("gateways") {
        if gateway != "mesh" {
            spec.error_at(place, "`gateways` other than [mesh] is not supported yet");
        }
    }
    names::export_to(spec);
    let http: Vec<Route> = spec.objects("http").iter().map(route).collect();
    if http.is_empty() {
        spec.error("http", "`http` must have at least one route");
    }
    VirtualService { hosts, http }
}

fn route(fields: &Fields<'_>) -> Route {
    let given: Vec<&'static str> =
        ["route", "redirect", "directResponse"].into_iter().filter(|name| fields.has(name)).collect();
    match given[..] {
        [] if ["route", "redirect", "directResponse"].into_iter().any(|name| fields.misspelled(name)) => {}
        [] => fields.error_at(fields.place, "one of `route`, `redirect` and `directResponse` is required"),
        [_] => {}
        [first, second, ..] => fields.error(second, format!("`{first}` and `{second}` exclude each other")),
    }
    let forward = forward(fields);
    let action = if let Some(redirect) = fields.object("redirect") {
        Action::Redirect(response::redirect(&redirect))
    } else if let Some(direct) = fields.object("directResponse") {
        Action::Respond(response::direct(&direct))
    } else {
        Action::Forward(forward)
    };
    if !matches!(action, Action::Forward(_)) {
        for name in ["rewrite", "timeout", "retries"].into_iter().filter(|name| fields.has(name)) {
            fields.error(name, format!("`{name}` needs a `route`"));
        }
    }
    Route {
        name: fields.string("name").unwrap_or_default(),
        matches: fields.objects("match").iter().map(matching::decode).collect(),
        action,
        headers: fields.object("headers").map(|headers| header_operations(&headers)),
        place: fields.place,
    }
}

fn forward(fields: &Fields<'_>) -> Forward {
    let destinations: Vec<Destination> = fields.objects("route").iter().map(destination).collect();
    if fields.has("route") && destinations.is_empty() {
        fields.error("route", "`route` must have at least one destination");
    }
    if destinations.len() > 1 && destinations.iter().all(|destination| destination.weight == 0) {
        fields.error("route", "the weights add up to 0: no destination would get a request");
    }
    Forward {
        destinations,
        timeout_ms: fields.duration("timeout", 0).unwrap_or_default(),
        rewrite: fields.object("rewrite").map(|rewrite| {
            if !rewrite.has("uri") && !rewrite.has("authority") {
                rewrite.error_at(rewrite.place, "`rewrite` needs `uri` or `authority`");
            }
            v1::Rewrite { uri: rewrite.string("uri"), authority: rewrite.string("authority") }
        }),
        retry: fields.object("retries").map(|retries| response::retry(&retries)),
    }
}

fn destination(fields: &Fields<'_>) -> Destination {
    fields.require("destination");
    let weight = fields.limit("weight").unwrap_or_default();
    let headers = fields.object("headers").map(|headers| header_operations(&headers));
    let mut found =
        Destination { host: String::new(), subset: String::new(), port: None, weight, headers, place: fields.place };
    if let Some(destination) = fields.object("destination") {
        found.place = destination.place;
        found.host = destination.required_string("host");
        if !found.host.is_empty() && !names::is_host(&found.host) {
            destination.error("host", format!("`{}` is not a host name to send requests to", found.host));
        }
        found.subset = destination.string("subset").unwrap_or_default();
        found.port = destination.object("port").and_then(|port| {
            port.require("number");
            port.port("number")
        });
    }
    found
}

fn header_operations(fields: &Fields<'_>) -> v1::HeaderOperations {
    let change = |name| fields.object(name).map(|fields| header_change(&fields));
    v1::HeaderOperations { request: change("request"), response: change("response") }
}

fn header_change(fields: &Fields<'_>) -> v1::HeaderChange {
    let check = |name: &str, place| {
        if matches!(name.to_ascii_lowercase().as_str(), "host" | ":authority") {
            fields.error_at(place, format!("`{name}` is changed by `rewrite.authority`"));
        } else if !names::is_header(name) {
            fields.error_at(place, format!("`{name}` is not a header name"));
        }
    };
    let values = |name| {
        for (key, _) in fields.map(name) {
            check(&key.name, key.place);
        }
        let values = fields.string_map(name).into_iter();
        values.map(|(name, value)| v1::HeaderValue { name, value }).collect()
    };
    let remove = fields.strings("remove").into_iter().map(|(name, place)| {
        check(&name, place);
        name
    });
    v1::HeaderChange { set: values("set"), add: values("add"), remove: remove.collect() }
}

#[cfg(test)]
mod tests;
