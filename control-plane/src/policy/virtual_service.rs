//! VirtualService: where a request to a host goes.

mod cors;
mod fault;
mod matching;
mod response;

use std::collections::BTreeMap;

use weft_proto::v1;

use super::{
    export::{self, Export},
    fields::{Fields, Shape, not_yet, object, read},
    names,
};
use crate::yaml::Place;

/// A VirtualService's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualService {
    /// `exportTo`.
    pub export: Export,
    /// As written: short names, full ones or `*.suffix`.
    pub hosts: Vec<String>,
    /// Gateways that it is for, `mesh` or `<name>` or `<namespace>/<name>`; empty: the mesh.
    pub gateways: Vec<String>,
    /// In order; the first match wins.
    pub http: Vec<Route>,
    /// TLS that a gateway passes through, by server name.
    pub tls: Vec<ConnectionRoute>,
    /// Connections of a gateway's TCP port.
    pub tcp: Vec<ConnectionRoute>,
}

/// The gateway that means all sidecars.
pub const MESH: &str = "mesh";

impl VirtualService {
    /// Whether it is for the callers in the mesh.
    pub fn of_mesh(&self) -> bool {
        self.gateways.is_empty() || self.gateways.iter().any(|gateway| gateway == MESH)
    }

    /// Namespace and name of the gateways that it is for, as a document in `namespace` names them.
    pub fn of_gateways<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let named = self.gateways.iter().filter(|gateway| *gateway != MESH);
        named.map(move |gateway| gateway.split_once('/').unwrap_or((namespace, gateway)))
    }

    /// All that routes of any kind lead to.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        let http = self.http.iter().filter_map(|route| match &route.action {
            Action::Forward(forward) => Some(&forward.destinations),
            _ => None,
        });
        let bytes = self.tls.iter().chain(&self.tcp).map(|route| &route.destinations);
        http.chain(bytes).flatten()
    }
}

/// One entry of `tls` or `tcp`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionRoute {
    /// `match.sniHosts`; empty for `tcp`.
    pub server_names: Vec<String>,
    /// `match.port`; empty: every port.
    pub ports: Vec<u32>,
    /// At least one.
    pub destinations: Vec<Destination>,
    /// Where it is written.
    pub place: Place,
}

/// One entry of `http`.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// For logs; empty: none.
    pub name: String,
    /// Any of them; empty: every request.
    pub matches: Vec<RouteMatch>,
    /// What happens.
    pub action: Action,
    /// Header operations of the route.
    pub headers: Option<v1::HeaderOperations>,
    /// `corsPolicy`.
    pub cors: Option<v1::Cors>,
    /// Where it is written.
    pub place: Place,
}

/// One entry of `match`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteMatch {
    /// What counts of the request.
    pub http: v1::HttpMatch,
    /// `sourceLabels` of the client.
    pub source_labels: BTreeMap<String, String>,
    /// `sourceNamespace`; empty: any.
    pub source_namespace: String,
    /// `gateways`; empty: those of the whole.
    pub gateways: Vec<String>,
}

impl RouteMatch {
    /// Whether it is for the requests of some clients only.
    pub fn is_of_some(&self) -> bool {
        !self.source_labels.is_empty() || !self.source_namespace.is_empty() || !self.gateways.is_empty()
    }
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
    /// `fault`.
    pub fault: Option<v1::Fault>,
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
    object("scheme", STRING_MATCH),
    object("withoutHeaders", STRING_MATCH),
    read("port"),
    read("gateways"),
    read("sourceLabels"),
    read("sourceNamespace"),
    read("name"),
    read("statPrefix"),
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
            read("retryIgnorePreviousHosts"),
        ],
    ),
    object("headers", HEADERS),
    object("fault", fault::SHAPE),
    not_yet("mirror"),
    not_yet("mirrors"),
    not_yet("mirrorPercentage"),
    not_yet("mirrorPercent"),
    not_yet("mirror_percent"),
    object("corsPolicy", cors::SHAPE),
    not_yet("delegate"),
];
const CONNECTION_ROUTE: Shape = &[object("destination", DESTINATION), read("weight")];
const TLS: Shape = &[
    object(
        "match",
        &[
            read("sniHosts"),
            read("port"),
            not_yet("destinationSubnets"),
            not_yet("sourceLabels"),
            not_yet("gateways"),
            not_yet("sourceNamespace"),
        ],
    ),
    object("route", CONNECTION_ROUTE),
];
const TCP: Shape = &[
    object(
        "match",
        &[
            read("port"),
            not_yet("destinationSubnets"),
            not_yet("sourceSubnet"),
            not_yet("sourceLabels"),
            not_yet("gateways"),
            not_yet("sourceNamespace"),
        ],
    ),
    object("route", CONNECTION_ROUTE),
];
/// Fields of `spec`.
pub(crate) const SHAPE: Shape =
    &[read("hosts"), read("gateways"), object("http", HTTP), object("tls", TLS), object("tcp", TCP), read("exportTo")];

/// Reads `spec`.
pub(crate) fn decode(spec: &Fields<'_>) -> VirtualService {
    spec.require("hosts");
    let mut hosts: Vec<String> = Vec::new();
    let gateways: Vec<String> = spec.strings("gateways").into_iter().map(|(gateway, _)| gateway).collect();
    let of_mesh = gateways.is_empty() || gateways.iter().any(|gateway| gateway == MESH);
    for (host, place) in spec.strings("hosts") {
        if host == "*" && !of_mesh {
        } else if host == "*" {
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
        if !matching::is_gateway(&gateway) {
            spec.error_at(place, format!("`{gateway}` is not a gateway: mesh, a name, or namespace/name"));
        }
    }
    let export = export::decode(spec);
    let http: Vec<Route> = spec.objects("http").iter().map(route).collect();
    let tls: Vec<ConnectionRoute> = spec.objects("tls").iter().map(|fields| connection_route(fields, true)).collect();
    let tcp: Vec<ConnectionRoute> = spec.objects("tcp").iter().map(|fields| connection_route(fields, false)).collect();
    if http.is_empty() && tls.is_empty() && tcp.is_empty() {
        spec.error("http", "`http` must have at least one route");
    }
    for (name, given) in [("tls", !tls.is_empty()), ("tcp", !tcp.is_empty())] {
        if given && of_mesh {
            let text =
                format!("`{name}` routes of callers in the mesh are not supported yet: only those of `gateways`");
            spec.error(name, text);
        }
    }
    VirtualService { export, hosts, gateways, http, tls, tcp }
}

fn connection_route(fields: &Fields<'_>, tls: bool) -> ConnectionRoute {
    fields.require("route");
    let destinations: Vec<Destination> = fields.objects("route").iter().map(plain_destination).collect();
    if destinations.len() > 1 && destinations.iter().all(|destination| destination.weight == 0) {
        fields.error("route", "the weights add up to 0: no destination would get a connection");
    }
    let (mut server_names, mut ports) = (Vec::new(), Vec::new());
    for one in fields.objects("match") {
        ports.extend(one.port("port"));
        for (name, place) in if tls { one.strings("sniHosts") } else { Vec::new() } {
            if name != "*" && !names::is_host_or_wildcard(&name) {
                one.error_at(place, format!("`{name}` is not a server name: a host, *.suffix or *"));
            }
            server_names.push(name.to_ascii_lowercase());
        }
    }
    if tls && server_names.is_empty() {
        fields.error_at(fields.place, "`match` with `sniHosts` is required");
    }
    ConnectionRoute { server_names, ports, destinations, place: fields.place }
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
        for name in ["rewrite", "timeout", "retries", "fault"].into_iter().filter(|name| fields.has(name)) {
            fields.error(name, format!("`{name}` needs a `route`"));
        }
    }
    Route {
        name: fields.string("name").unwrap_or_default(),
        matches: fields.objects("match").iter().map(matching::decode).collect(),
        action,
        headers: fields.object("headers").map(|headers| header_operations(&headers)),
        cors: fields.object("corsPolicy").map(|cors| cors::decode(&cors)),
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
        fault: fields.object("fault").map(|fault| fault::decode(&fault)),
    }
}

fn destination(fields: &Fields<'_>) -> Destination {
    let headers = fields.object("headers").map(|headers| header_operations(&headers));
    Destination { headers, ..plain_destination(fields) }
}

/// One of bytes, which have no headers.
fn plain_destination(fields: &Fields<'_>) -> Destination {
    fields.require("destination");
    let weight = fields.limit("weight").unwrap_or_default();
    let headers = None;
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
