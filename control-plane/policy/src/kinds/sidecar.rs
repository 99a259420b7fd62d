//! Sidecar: the hosts that a workload's proxy can reach, and its settings for inbound traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use weft_proto::v1;

use super::{Content, Descriptor, NETWORKING, NETWORKING_VERSIONS, Object};
use crate::decode::{
    connection_pool,
    fields::{Fields, Shape, object, read, refused},
    protocol,
};
use crate::yaml::Place;
use crate::{Document, canonical, covers, names, nearest::suggest};

pub(super) static DESCRIPTOR: Descriptor = Descriptor {
    group: NETWORKING,
    versions: NETWORKING_VERSIONS,
    plural: "sidecars",
    short_names: &[],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::Sidecar(Box::new(decode(&manifest.spec))),
};

/// A Sidecar's `spec`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sidecar {
    /// Labels of the workloads; empty: all workloads of the namespace that no Sidecar with labels selects.
    pub selector: BTreeMap<String, String>,
    /// The hosts that may be called; empty: all.
    pub egress: Vec<Egress>,
    /// `outboundTrafficPolicy.mode`; unset: the mesh's, else the proxy's option.
    pub outbound: v1::OutboundPolicy,
    /// Ports of the workload with settings that differ from their registration.
    pub ingress: Vec<Ingress>,
    /// `inboundConnectionPool`, for all ports.
    pub inbound_pool: Option<v1::ConnectionPool>,
}

/// One entry of `egress`.
#[derive(Clone, Debug, PartialEq)]
pub struct Egress {
    /// Calls to this port; `None`: to ports without an entry of their own.
    pub port: Option<u32>,
    /// Any of them.
    pub hosts: Vec<Import>,
}

/// One of the `hosts`, `<namespace>/<host>`.
#[derive(Clone, Debug, PartialEq)]
pub struct Import {
    /// Whether these hosts are excluded.
    pub excluded: bool,
    /// `None`: any.
    pub namespace: Option<String>,
    /// A host, `*.suffix` or `*`.
    pub host: String,
}

/// One entry of `ingress`.
#[derive(Clone, Debug, PartialEq)]
pub struct Ingress {
    /// Port of the workload.
    pub port: u32,
    /// Its protocol.
    pub protocol: v1::Protocol,
    /// Where its connections are delivered; unspecified address: that of the workload; `None`: the original
    /// destination.
    pub to: Option<String>,
    /// `connectionPool`.
    pub pool: Option<v1::ConnectionPool>,
}

const NO_LISTENER: &str = "connections are redirected; other programs use `weft-sidecar run --http-proxy ADDRESS`";
const PORT: Shape = &[read("number"), read("protocol"), read("name"), read("targetPort")];
/// Fields of `spec`.
const SHAPE: Shape = &[
    object("workloadSelector", &[read("labels")]),
    object("egress", &[object("port", PORT), read("hosts"), refused("bind", NO_LISTENER), read("captureMode")]),
    object(
        "ingress",
        &[
            object("port", PORT),
            refused(
                "bind",
                "inbound connections are accepted at every address; the application binds the one that it wants",
            ),
            read("captureMode"),
            read("defaultEndpoint"),
            refused("tls", "callers without a sidecar use a Gateway, which terminates their TLS"),
            object("connectionPool", connection_pool::SHAPE),
        ],
    ),
    object("inboundConnectionPool", connection_pool::SHAPE),
    object(
        "outboundTrafficPolicy",
        &[
            read("mode"),
            refused(
                "egressProxy",
                "write a ServiceEntry for a host behind a proxy, with `tunnel` in its DestinationRule",
            ),
        ],
    ),
];

impl Content for Sidecar {}

/// Reads `spec` of a document in `namespace`.
fn decode(spec: &Fields<'_>) -> Sidecar {
    let egress: Vec<Egress> = spec.objects("egress").iter().map(decode_egress).collect();
    let mut ports = BTreeSet::new();
    for (at, one) in egress.iter().enumerate() {
        match one.port {
            None if at + 1 < egress.len() => {
                spec.error("egress", "only the last entry of `egress` may be without `port`")
            }
            Some(port) if !ports.insert(port) => {
                spec.error("egress", format!("port {port} is there twice in `egress`"))
            }
            _ => {}
        }
    }
    let ingress: Vec<Ingress> = spec.objects("ingress").iter().map(decode_ingress).collect();
    let mut ports = BTreeSet::new();
    for twice in ingress.iter().filter(|one| !ports.insert(one.port)) {
        spec.error("ingress", format!("port {} is there twice in `ingress`", twice.port));
    }
    let says = ["egress", "ingress", "outboundTrafficPolicy", "inboundConnectionPool"];
    if !says.iter().any(|name| spec.has(name)) && !says.iter().any(|name| spec.misspelled(name)) {
        spec.error_at(spec.place, format!("a Sidecar needs at least one of `{}`", says.join("`, `")));
    }
    Sidecar {
        selector: spec.object("workloadSelector").map(|fields| fields.labels("labels")).unwrap_or_default(),
        egress,
        outbound: spec.object("outboundTrafficPolicy").map(|fields| outbound(&fields)).unwrap_or_default(),
        ingress,
        inbound_pool: spec.object("inboundConnectionPool").map(|fields| connection_pool::decode(&fields)),
    }
}

/// Values of `outboundTrafficPolicy.mode`.
pub(crate) const OUTBOUND_MODES: &[(&str, v1::OutboundPolicy)] =
    &[("ALLOW_ANY", v1::OutboundPolicy::AllowAny), ("REGISTRY_ONLY", v1::OutboundPolicy::RegistryOnly)];

/// As in Istio, a block without a mode means the stricter one.
fn outbound(fields: &Fields<'_>) -> v1::OutboundPolicy {
    if !fields.has("mode") {
        fields.warn("mode", "without a `mode` this is REGISTRY_ONLY, as in Istio");
    }
    fields.one_of("mode", OUTBOUND_MODES).unwrap_or(v1::OutboundPolicy::RegistryOnly)
}

fn decode_egress(fields: &Fields<'_>) -> Egress {
    capture(fields);
    fields.require("hosts");
    let hosts: Vec<Import> =
        fields.strings("hosts").iter().filter_map(|(text, place)| import(fields, text, *place)).collect();
    let port = fields.object("port").and_then(|port| {
        has_no_target(&port);
        port.require("number");
        port.port("number")
    });
    Egress { port, hosts }
}

/// `<namespace>/<host>`; `None`: no hosts, or an error was reported.
fn import(fields: &Fields<'_>, text: &str, place: Place) -> Option<Import> {
    let Some((namespace, host)) = text.split_once('/') else {
        let text = format!("`{text}` must be <namespace>/<host>, such as `./*` or `*/reviews.prod.svc.cluster.local`");
        fields.error_at(place, text);
        return None;
    };
    let host = host.to_ascii_lowercase();
    if let Some(wrong) = names::wrong_import(&host) {
        fields.error_at(place, format!("`{text}`: `{host}` {wrong}"));
        return None;
    }
    let (excluded, name) = match namespace.strip_prefix('~') {
        // No hosts.
        Some("") => return None,
        Some(name) => (true, name),
        None => (false, namespace),
    };
    if !matches!(name, "." | "*") && !names::is_label(name) {
        fields.error_at(place, format!("`{name}` is not a namespace, nor one of `.`, `*` and `~`"));
        return None;
    }
    Some(Import { excluded, namespace: (name != "*").then(|| name.to_owned()), host })
}

fn decode_ingress(fields: &Fields<'_>) -> Ingress {
    capture(fields);
    fields.require("port");
    let mut ingress = Ingress {
        port: 0,
        protocol: v1::Protocol::Unknown,
        to: None,
        pool: fields.object("connectionPool").map(|pool| connection_pool::decode(&pool)),
    };
    if let Some(port) = fields.object("port") {
        has_no_target(&port);
        // Without a protocol it is sniffed, as on any port.
        for name in ["number", "name"] {
            port.require(name);
        }
        ingress.port = port.port("number").unwrap_or_default();
        ingress.protocol = port.string("protocol").map(|name| spoken(&port, &name)).unwrap_or_default();
        port.string("name");
    }
    if let Some(text) = fields.string("defaultEndpoint").filter(|text| !text.is_empty()) {
        ingress.to = endpoint(fields, &text);
    }
    ingress
}

fn has_no_target(port: &Fields<'_>) {
    if port.has("targetPort") {
        port.warn("targetPort", "`targetPort` has no effect here, as in Istio");
    }
}

fn spoken(fields: &Fields<'_>, name: &str) -> v1::Protocol {
    let ingress = protocol::from_name(name);
    if ingress == v1::Protocol::Unknown {
        let known: Vec<&str> = protocol::NAMES.iter().map(|(name, _)| *name).collect();
        let hint = suggest(&name.to_ascii_lowercase(), &known, "known are");
        fields.error("protocol", format!("`protocol`: unknown protocol `{name}`{hint}"));
    }
    ingress
}

/// As in Istio: loopback, unspecified for the workload's own address, or a Unix socket.
fn endpoint(fields: &Fields<'_>, text: &str) -> Option<String> {
    if let Some(path) = text.strip_prefix(names::UNIX_PREFIX) {
        if let Some(why) = names::unix_problem(path) {
            fields.error("defaultEndpoint", format!("`defaultEndpoint`: `{text}` {why}"));
        }
        return Some(text.to_owned());
    }
    let address: Option<SocketAddr> = text.parse().ok();
    let found = address.filter(|a| a.port() != 0 && (a.ip().is_loopback() || a.ip().is_unspecified()));
    if found.is_none() {
        let text = format!(
            "`defaultEndpoint`: `{text}` must be 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT or unix://PATH"
        );
        fields.error("defaultEndpoint", text);
    }
    found.map(|found| found.to_string())
}

fn capture(fields: &Fields<'_>) {
    let mode = fields.one_of("captureMode", &[("DEFAULT", true), ("IPTABLES", true), ("NONE", false)]);
    if mode == Some(false) {
        fields.error("captureMode", format!("`captureMode: NONE` is not supported: {NO_LISTENER}"));
    }
}

impl Import {
    /// Whether it applies to `host` of `namespace`; its document is in `own`.
    fn means(&self, own: &str, namespace: &str, host: &str) -> bool {
        let of = self.namespace.as_deref().map(|name| if name == "." { own } else { name });
        of.is_none_or(|name| name == namespace) && covers(&self.host, host)
    }
}

impl Sidecar {
    /// Whether its workloads can reach `host` of `namespace`, at `port` (`None`: at any). The document is in `own`.
    pub fn imports(&self, own: &str, namespace: &str, host: &str, port: Option<u32>) -> bool {
        if self.egress.is_empty() {
            return true;
        }
        self.egress_of(port).any(|egress| {
            let mut hosts = egress.hosts.iter().filter(|import| import.means(own, namespace, host)).peekable();
            hosts.peek().is_some() && hosts.all(|import| !import.excluded)
        })
    }

    /// Whether `host` of `namespace` is excluded, by name or pattern.
    pub fn excludes(&self, own: &str, namespace: &str, host: &str, port: Option<u32>) -> bool {
        let excluded = self.egress_of(port).flat_map(|egress| &egress.hosts).filter(|import| import.excluded);
        excluded.into_iter().any(|import| import.means(own, namespace, host))
    }

    /// Whether it imports a VirtualService: one of a host that it imports from its namespace.
    pub fn imports_routes(&self, own: &str, document: &Document, port: Option<u32>) -> bool {
        let Object::VirtualService(service) = &document.object else { return false };
        let namespace = &document.namespace;
        service.hosts.iter().any(|host| self.imports(own, namespace, &canonical(host, namespace), port))
    }

    /// Entries for `port`; `None`: for any.
    fn egress_of(&self, port: Option<u32>) -> impl Iterator<Item = &Egress> {
        self.egress.iter().filter(move |egress| match (egress.port, port) {
            (Some(own), Some(port)) => own == port,
            (None, Some(port)) => self.egress.iter().all(|other| other.port != Some(port)),
            (_, None) => true,
        })
    }
}

#[cfg(test)]
mod tests;
