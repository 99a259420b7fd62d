//! VirtualService: routes of the requests to a host.

mod connection;
mod cors;
mod fault;
mod headers;
mod matching;
mod mirror;
pub(crate) mod response;
mod rewrite;

use std::collections::{BTreeMap, HashMap};

use weft_core::names::patterns;
use weft_proto::v1;

use super::{Content, Descriptor, Manifest, NETWORKING, NETWORKING_VERSIONS, Object};
use crate::decode::fields::{Fields, Shape, explicit, object, read};
use crate::{
    export::{self, Export},
    names,
};
pub use connection::{ConnectionMatch, ConnectionRoute};

use crate::yaml::Place;

pub(crate) use matching::covers;

pub(super) static DESCRIPTOR: Descriptor = Descriptor {
    group: NETWORKING,
    versions: NETWORKING_VERSIONS,
    plural: "virtualservices",
    short_names: &["vs"],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::VirtualService(decode(manifest)),
};

/// A VirtualService's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualService {
    /// `exportTo`.
    pub export: Export,
    /// As written: short names, full ones or `*.suffix`.
    pub hosts: Vec<String>,
    /// Gateways that it applies to, `mesh` or `<name>` or `<namespace>/<name>`; empty: the mesh.
    pub gateways: Vec<String>,
    /// In order; the first match wins.
    pub http: Vec<Route>,
    /// TLS that a gateway passes through, by server name.
    pub tls: Vec<ConnectionRoute>,
    /// Connections of a gateway's TCP port.
    pub tcp: Vec<ConnectionRoute>,
}

/// The gateway that stands for all sidecars.
pub const MESH: &str = "mesh";

impl VirtualService {
    /// Whether it applies to callers in the mesh.
    pub fn of_mesh(&self) -> bool {
        self.gateways.is_empty() || self.gateways.iter().any(|gateway| gateway == MESH)
    }

    /// Namespace and name of the gateways that it applies to, resolved for a document in `namespace`.
    pub fn of_gateways<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let gateways = self.gateways.iter().filter(|gateway| *gateway != MESH);
        gateways.map(move |gateway| gateway.split_once('/').unwrap_or((namespace, gateway)))
    }

    /// Destinations of routes of any kind.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        let http = self.http.iter().filter_map(|route| match &route.action {
            Action::Forward(forward) => Some(forward.all_destinations()),
            _ => None,
        });
        let bytes = self.tls.iter().chain(&self.tcp).flat_map(|route| &route.destinations);
        http.flatten().chain(bytes)
    }
}

/// One entry of `http`.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// For logs; empty: none.
    pub name: String,
    /// Any of them; empty: every request.
    pub matches: Vec<RouteMatch>,
    /// Its action.
    pub action: Action,
    /// Header operations of the route.
    pub headers: Option<v1::HeaderOperations>,
    /// `corsPolicy`.
    pub cors: Option<v1::Cors>,
    /// Its place in the file.
    pub place: Place,
}

/// One entry of `match`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteMatch {
    /// The conditions on the request.
    pub http: v1::HttpMatch,
    /// `sourceLabels` of the client.
    pub source_labels: BTreeMap<String, String>,
    /// `sourceNamespace`; empty: any.
    pub source_namespace: String,
    /// `gateways`; empty: those of the VirtualService.
    pub gateways: Vec<String>,
}

impl RouteMatch {
    /// Whether it matches by a prefix of the path.
    fn has_prefix(&self) -> bool {
        let uri = self.http.uri.as_ref().and_then(|uri| uri.kind.as_ref());
        matches!(uri, Some(v1::string_match::Kind::Prefix(_)))
    }

    /// Whether it applies to some clients only.
    pub fn is_of_some(&self) -> bool {
        !self.source_labels.is_empty() || !self.source_namespace.is_empty() || !self.gateways.is_empty()
    }
}

/// The action of a route.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// `route`.
    Forward(Forward),
    /// `redirect`.
    Redirect(v1::Redirect),
    /// `directResponse`.
    Respond(v1::DirectResponse),
    /// `delegate`.
    Delegate(Delegate),
}

/// The VirtualService whose routes replace this one.
#[derive(Clone, Debug, PartialEq)]
pub struct Delegate {
    /// Empty: that of the document.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Settings for its routes that have none of their own; without destinations.
    pub rest: Forward,
}

/// `route` with its settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// At least one.
    pub destinations: Vec<Destination>,
    /// Milliseconds; 0: none.
    pub timeout_ms: u64,
    /// `rewrite`.
    pub rewrite: Option<v1::Rewrite>,
    /// `retries`; absent: the mesh's default.
    pub retry: Option<v1::RetryPolicy>,
    /// `fault`.
    pub fault: Option<v1::Fault>,
    /// `mirror` or `mirrors`.
    pub mirrors: Vec<Mirror>,
}

impl Forward {
    /// Destinations of the requests, and of their mirrors.
    pub fn all_destinations(&self) -> impl Iterator<Item = &Destination> {
        self.destinations.iter().chain(self.mirrors.iter().map(|mirror| &mirror.destination))
    }
}

/// A destination of mirrored requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Its weight is ignored.
    pub destination: Destination,
    /// Of the requests, 0 to 100.
    pub percent: f64,
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
    /// Its place in the file.
    pub place: Place,
}

impl Destination {
    /// The whole of a host.
    pub fn to(host: &str, place: Place) -> Destination {
        Destination { host: host.to_owned(), ..Destination::nowhere(place) }
    }

    fn nowhere(place: Place) -> Destination {
        Destination { host: String::new(), subset: String::new(), port: None, weight: 0, headers: None, place }
    }
}

const STRING_MATCH: Shape = &[explicit("exact"), explicit("prefix"), explicit("regex")];
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
const DESTINATION: Shape = &[read("host"), read("subset"), object("port", &[read("number")])];
const HTTP: Shape = &[
    read("name"),
    object("match", MATCH),
    object("route", &[object("destination", DESTINATION), read("weight"), object("headers", headers::SHAPE)]),
    object(
        "redirect",
        &[
            read("uri"),
            read("authority"),
            read("scheme"),
            read("port"),
            read("derivePort"),
            read("redirectCode"),
            read("prefixRewrite"),
        ],
    ),
    object("directResponse", &[read("status"), object("body", &[explicit("string"), explicit("bytes")])]),
    object("rewrite", rewrite::SHAPE),
    read("timeout"),
    object("retries", response::RETRIES),
    object("headers", headers::SHAPE),
    object("fault", fault::SHAPE),
    object("mirror", DESTINATION),
    object("mirrors", mirror::SHAPE),
    object("mirrorPercentage", fault::PERCENTAGE),
    explicit("mirrorPercent"),
    explicit("mirror_percent"),
    object("corsPolicy", cors::SHAPE),
    object("delegate", &[read("name"), read("namespace")]),
];
/// Fields of `spec`.
const SHAPE: Shape = &[
    read("hosts"),
    read("gateways"),
    object("http", HTTP),
    object("tls", connection::TLS),
    object("tcp", connection::TCP),
    read("exportTo"),
];

impl Content for VirtualService {
    fn hosts(&self) -> &[String] {
        &self.hosts
    }

    fn export(&self) -> Option<&Export> {
        Some(&self.export)
    }
}

/// Reads `spec`.
fn decode(manifest: &Manifest<'_>) -> VirtualService {
    let spec = &manifest.spec;
    let mut hosts: Vec<String> = Vec::new();
    let mut hosts_with_places: Vec<(String, Place)> = Vec::new();
    let gateways: Vec<String> = spec.strings("gateways").into_iter().map(|(gateway, _)| gateway).collect();
    let of_mesh = gateways.is_empty() || gateways.iter().any(|gateway| gateway == MESH);
    for (host, place) in spec.strings("hosts") {
        if host == "*" && of_mesh {
            spec.error_at(place, "host `*` is for gateways: name the hosts whose callers in the mesh this is for");
        } else if host != "*" && !names::is_host_or_wildcard(&host) {
            spec.error_at(
                place,
                format!("`{host}` is not a host name; write a service's name, a full name, *.suffix or *-suffix"),
            );
        }
        hosts_with_places.push((host.clone(), place));
        hosts.push(host);
    }
    overlaps(spec, &hosts_with_places);
    for (gateway, place) in spec.strings("gateways") {
        if !matching::is_gateway(&gateway) {
            spec.error_at(place, format!("`{gateway}` is not a gateway: mesh, a name, or namespace/name"));
        }
    }
    let export = export::decode(spec, &manifest.namespace);
    let http: Vec<Route> = spec.objects("http").iter().map(route).collect();
    let tls: Vec<ConnectionRoute> = spec
        .objects("tls")
        .iter()
        .map(|fields| connection::decode(fields, Some(&hosts), gateways.len() > usize::from(of_mesh)))
        .collect();
    let tcp: Vec<ConnectionRoute> = spec
        .objects("tcp")
        .iter()
        .map(|fields| connection::decode(fields, None, gateways.len() > usize::from(of_mesh)))
        .collect();
    if hosts.is_empty() && http.is_empty() {
        spec.require("hosts");
    } else if hosts.is_empty() && !spec.misspelled("hosts") {
        // Without hosts it is a delegate.
        for name in ["gateways", "tls", "tcp"].into_iter().filter(|name| spec.has(name)) {
            let text = format!("`{name}` needs `hosts`; without them it is a delegate, which has `http` alone");
            spec.error(name, text);
        }
    }
    if hosts.is_empty() {
        for (n, _) in http.iter().enumerate().filter(|(_, route)| matches!(route.action, Action::Delegate(_))) {
            let text = format!("`http[{n}].delegate` needs `hosts`: a delegate does not delegate itself");
            spec.error("http", text);
        }
    }
    if http.is_empty() && tls.is_empty() && tcp.is_empty() {
        spec.error("http", "`http` must have at least one route");
    }
    VirtualService { export, hosts, gateways, http, tls, tcp }
}

/// Reports hosts that another one covers.
fn overlaps(spec: &Fields<'_>, hosts: &[(String, Place)]) {
    let mut first: HashMap<&str, usize> = HashMap::new();
    for (n, (host, place)) in hosts.iter().enumerate() {
        if *first.entry(host).or_insert(n) != n {
            spec.error_at(*place, format!("hosts `{host}` and `{host}` overlap: give only one of them"));
        }
    }
    for (n, (host, _)) in hosts.iter().enumerate() {
        let mut wider = patterns(host, true).skip(1).filter(|pattern| pattern != host);
        if let Some(other) = wider.find_map(|pattern| first.get(pattern.as_str()).copied()) {
            let ((first, _), (second, place)) = (&hosts[n.min(other)], &hosts[n.max(other)]);
            spec.error_at(*place, format!("hosts `{first}` and `{second}` overlap: give only one of them"));
        }
    }
}

/// The actions, of which a route has exactly one.
const ACTIONS: [&str; 4] = ["route", "redirect", "directResponse", "delegate"];

fn route(fields: &Fields<'_>) -> Route {
    let given: Vec<&'static str> = ACTIONS.into_iter().filter(|name| fields.has(name)).collect();
    match given[..] {
        [] if ACTIONS.into_iter().any(|name| fields.misspelled(name)) => {}
        [] => fields.error_at(fields.place, "one of `route`, `redirect`, `directResponse` and `delegate` is required"),
        [_] => {}
        [first, second, ..] => fields.error(second, format!("`{first}` and `{second}` exclude each other")),
    }
    let forward = forward(fields);
    let action = if let Some(redirect) = fields.object("redirect") {
        Action::Redirect(response::redirect(&redirect))
    } else if let Some(direct) = fields.object("directResponse") {
        Action::Respond(response::direct(&direct))
    } else if let Some(delegate) = fields.object("delegate") {
        let (name, namespace) = (delegate.required_string("name"), delegate.string("namespace").unwrap_or_default());
        Action::Delegate(Delegate { namespace, name, rest: forward })
    } else {
        Action::Forward(forward)
    };
    if matches!(action, Action::Redirect(_) | Action::Respond(_)) {
        for name in
            ["rewrite", "timeout", "retries", "fault", "mirror", "mirrors"].into_iter().filter(|name| fields.has(name))
        {
            fields.error(name, format!("`{name}` needs a `route`"));
        }
    }
    let matches: Vec<RouteMatch> = fields.objects("match").iter().map(matching::decode).collect();
    if let Action::Redirect(v1::Redirect { prefix_rewrite: Some(_), .. }) = &action {
        for (n, _) in matches.iter().enumerate().filter(|(_, one)| !one.has_prefix()) {
            let text = format!("`redirect.prefixRewrite` needs a `uri.prefix` to replace, which `match[{n}]` has not");
            fields.error("redirect", text);
        }
    }
    let headers = fields.object("headers").map(|headers| headers::decode(&headers));
    let rewrite = match &action {
        Action::Forward(forward) | Action::Delegate(Delegate { rest: forward, .. }) => forward.rewrite.as_ref(),
        _ => None,
    };
    headers::check_authority(fields, headers.as_ref(), rewrite);
    Route {
        name: fields.string("name").unwrap_or_default(),
        matches,
        action,
        headers,
        cors: fields.object("corsPolicy").map(|cors| cors::decode(&cors)),
        place: fields.place,
    }
}

fn forward(fields: &Fields<'_>) -> Forward {
    let destinations: Vec<Destination> = fields.objects("route").iter().map(destination).collect();
    if destinations.len() > 1 && destinations.iter().all(|destination| destination.weight == 0) {
        fields.error("route", "the weights add up to 0: no destination would get a request");
    }
    Forward {
        destinations,
        timeout_ms: fields.duration("timeout", 0).unwrap_or_default(),
        rewrite: fields.object("rewrite").map(|rewrite| rewrite::decode(&rewrite)),
        retry: fields.object("retries").map(|retries| response::retry(&retries)),
        fault: fields.object("fault").map(|fault| fault::decode(&fault)),
        mirrors: mirror::decode(fields),
    }
}

fn destination(fields: &Fields<'_>) -> Destination {
    let headers = fields.object("headers").map(|headers| headers::decode(&headers));
    Destination { headers, ..plain_destination(fields) }
}

/// A destination of a connection, which has no headers.
fn plain_destination(fields: &Fields<'_>) -> Destination {
    fields.require("destination");
    let weight = fields.limit("weight").unwrap_or_default();
    let mut destination = Destination { weight, ..Destination::nowhere(fields.place) };
    if let Some(fields) = fields.object("destination") {
        read_destination(&fields, &mut destination);
    }
    destination
}

/// Host, subset and port.
fn read_destination(fields: &Fields<'_>, destination: &mut Destination) {
    destination.place = fields.place;
    destination.host = fields.required_string("host");
    // A wildcard refers to the ServiceEntry of exactly this host, which dials the hosts that requests or callers name.
    if !destination.host.is_empty() && (destination.host == "*" || !names::is_host_or_wildcard(&destination.host)) {
        fields.error("host", format!("`{}` is not a host name to send requests to", destination.host));
    }
    destination.subset = fields.string("subset").unwrap_or_default();
    if !destination.subset.is_empty() && !names::is_label(&destination.subset) {
        fields.error("subset", format!("subset name `{}` {}", destination.subset, names::LABEL_RULE));
    }
    destination.port = fields.object("port").and_then(|port| {
        port.require("number");
        port.port("number")
    });
}

#[cfg(test)]
mod tests;
