//! ServiceEntry: a host outside the registry, inside or outside the mesh.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use weft_proto::v1;

use super::{Content, Descriptor, Manifest, NETWORKING, NETWORKING_VERSIONS, Object};
use crate::decode::{
    fields::{Fields, Shape, object, read},
    protocol,
};
use crate::kinds::workload_entry;
use crate::{
    Subnet, WorkloadEntry,
    export::{self, Export},
    names,
    nearest::suggest,
};

pub(super) static DESCRIPTOR: Descriptor = Descriptor {
    group: NETWORKING,
    versions: NETWORKING_VERSIONS,
    plural: "serviceentries",
    short_names: &["se"],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::ServiceEntry(decode(manifest)),
};

/// A ServiceEntry's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceEntry {
    /// `exportTo`.
    pub export: Export,
    /// Exact names or `*.suffix`, lower case.
    pub hosts: Vec<String>,
    /// Virtual IPs or ranges.
    pub addresses: Vec<Subnet>,
    /// By unique number.
    pub ports: Vec<EntryPort>,
    /// `MESH_EXTERNAL`.
    pub external: bool,
    /// The source of addresses.
    pub resolution: Resolution,
    /// The endpoints of the entry itself.
    pub endpoints: Vec<WorkloadEntry>,
    /// Labels of the WorkloadEntries of this namespace that are endpoints.
    pub workload_selector: Option<BTreeMap<String, String>>,
    /// Names of which a server's certificate must have one if a sidecar originates TLS to it (DestinationRule `tls`).
    pub subject_alt_names: Vec<String>,
}

impl ServiceEntry {
    /// Whether a younger one of the same host and namespace joins it, as in Istio: the host has the ports of both.
    pub fn joins(&self, younger: &ServiceEntry) -> bool {
        (self.resolution, self.external) == (younger.resolution, younger.external)
    }
}

/// `resolution`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Connections go to their original destination.
    None,
    /// The endpoints' addresses.
    Static,
    /// The endpoints' (or the hosts') names, resolved by the sidecar: every address is an endpoint.
    Dns,
    /// The same, and each name is one endpoint, at any address that it has when it is dialed.
    DnsRoundRobin,
    /// For wildcards: the host that a request names is resolved and dialed.
    DynamicDns,
}

impl Resolution {
    /// Whether names are resolved by the sidecar.
    pub fn is_dns(self) -> bool {
        matches!(self, Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns)
    }

    /// Whether it has a list of endpoints.
    pub fn has_endpoints(self) -> bool {
        !matches!(self, Resolution::None | Resolution::DynamicDns)
    }
}

/// One entry of `ports`.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryPort {
    /// The port for callers.
    pub number: u32,
    /// Unique name.
    pub name: String,
    /// From `protocol`, else from the name.
    pub protocol: v1::Protocol,
    /// Port of the endpoints; absent: `number`.
    pub target_port: Option<u32>,
}

/// Fields of `spec`.
const SHAPE: Shape = &[
    read("hosts"),
    read("addresses"),
    object("ports", &[read("number"), read("name"), read("protocol"), read("targetPort")]),
    read("location"),
    read("resolution"),
    object("endpoints", workload_entry::SHAPE),
    object("workloadSelector", &[read("labels")]),
    read("exportTo"),
    read("subjectAltNames"),
];

impl Content for ServiceEntry {
    fn hosts(&self) -> &[String] {
        &self.hosts
    }

    fn export(&self) -> Option<&Export> {
        Some(&self.export)
    }
}

/// Reads `spec`.
fn decode(manifest: &Manifest<'_>) -> ServiceEntry {
    let spec = &manifest.spec;
    let resolution = resolution(spec);
    let hosts = hosts(spec, resolution);
    let addresses = spec.strings("addresses").into_iter().filter_map(|(text, place)| {
        let range = Subnet::parse(&text);
        match range {
            None => spec.error_at(place, format!("`{text}` is neither an IP address nor a CIDR range")),
            Some(range) if !range.is_single() && resolution.is_dns() => {
                spec.error_at(place, "a CIDR range needs `resolution` NONE or STATIC");
            }
            Some(_) => {}
        }
        range
    });
    let addresses = addresses.collect();
    let external = spec.one_of("location", &[("MESH_EXTERNAL", true), ("MESH_INTERNAL", false)]).unwrap_or(true);
    let export = export::decode(spec, &manifest.namespace);
    let entry = ServiceEntry {
        export,
        hosts,
        addresses,
        ports: ports(spec),
        external,
        resolution,
        endpoints: spec.objects("endpoints").iter().map(workload_entry::decode).collect(),
        workload_selector: spec.object("workloadSelector").map(|selector| selector.labels("labels")),
        subject_alt_names: spec.strings("subjectAltNames").into_iter().map(|(name, _)| name).collect(),
    };
    check(spec, &entry);
    entry
}

fn resolution(spec: &Fields<'_>) -> Resolution {
    const VALUES: &[(&str, Resolution)] = &[
        ("NONE", Resolution::None),
        ("STATIC", Resolution::Static),
        ("DNS", Resolution::Dns),
        ("DNS_ROUND_ROBIN", Resolution::DnsRoundRobin),
        ("DYNAMIC_DNS", Resolution::DynamicDns),
    ];
    spec.one_of("resolution", VALUES).unwrap_or(Resolution::None)
}

fn hosts(spec: &Fields<'_>, resolution: Resolution) -> Vec<String> {
    spec.require("hosts");
    let mut hosts: Vec<String> = Vec::new();
    let mut seen = HashSet::new();
    for (host, place) in spec.strings("hosts") {
        let host = host.to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host).to_owned();
        if host == "*" || !names::is_host_or_wildcard(&host) {
            spec.error_at(place, format!("`{host}` is not a host name; write a full name, *.suffix or *-suffix"));
        }
        if !seen.insert(host.clone()) {
            spec.error_at(place, format!("host `{host}` is given twice"));
        }
        let is_wildcard = host.starts_with('*');
        if is_wildcard && resolution.is_dns() && resolution.has_endpoints() && !spec.has("endpoints") {
            let text = format!("`{host}` cannot be resolved: name each host, or use `resolution: DYNAMIC_DNS` or NONE");
            spec.error_at(place, text);
        }
        if !is_wildcard && resolution == Resolution::DynamicDns {
            let text = format!("`resolution: DYNAMIC_DNS` is for wildcards such as `*.{host}`: for `{host}` use DNS");
            spec.error_at(place, text);
        }
        hosts.push(host);
    }
    hosts
}

fn ports(spec: &Fields<'_>) -> Vec<EntryPort> {
    let mut ports: Vec<EntryPort> = Vec::new();
    let (mut numbers, mut names) = (HashSet::new(), HashSet::new());
    for fields in spec.objects("ports") {
        fields.require("number");
        let number = fields.port("number").unwrap_or_default();
        let name = fields.required_string("name");
        if !name.is_empty() && !names::is_label(&name) {
            fields.error("name", format!("port name `{name}` {}", names::LABEL_RULE));
        }
        if !numbers.insert(number) && number != 0 {
            fields.error("number", format!("port {number} is given twice"));
        }
        if !names.insert(name.clone()) {
            fields.error("name", format!("port name `{name}` is given twice"));
        }
        let written = fields.string("protocol");
        let protocol = match written.as_deref() {
            None => protocol::from_port_name(&name),
            Some(text) => protocol::from_name(text),
        };
        if let Some(text) = written.filter(|_| protocol == v1::Protocol::Unknown) {
            const ALLOWED: &[&str] =
                &["HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "REDIS", "MYSQL", "TCP", "TLS"];
            let hint = suggest(&text, ALLOWED, "allowed are");
            fields.error("protocol", format!("`protocol`: unknown value `{text}`{hint}"));
        }
        ports.push(EntryPort { number, name, protocol, target_port: fields.port("targetPort") });
    }
    ports.sort_by_key(|port| port.number);
    ports
}

fn check(spec: &Fields<'_>, entry: &ServiceEntry) {
    if entry.ports.is_empty() {
        spec.error("ports", "`ports` must name at least one port");
    }
    if entry.workload_selector.is_some() && !entry.endpoints.is_empty() {
        spec.error("workloadSelector", "`endpoints` and `workloadSelector` exclude each other");
    }
    let literal = |endpoint: &WorkloadEntry| endpoint.is_unix() || endpoint.address.parse::<IpAddr>().is_ok();
    if let Some(unix) = entry.endpoints.iter().find(|endpoint| endpoint.is_unix()) {
        if entry.resolution != Resolution::Static {
            spec.error("endpoints", format!("`{}` needs `resolution: STATIC`", unix.address));
        }
        if entry.ports.len() > 1 {
            spec.error("ports", format!("`{}` needs exactly one port: several cannot be distinguished", unix.address));
        }
    }
    match entry.resolution {
        Resolution::None if !entry.endpoints.is_empty() => {
            spec.error("endpoints", "`endpoints` need `resolution` STATIC or DNS");
        }
        Resolution::DynamicDns if !entry.endpoints.is_empty() || entry.workload_selector.is_some() => {
            let field = if entry.endpoints.is_empty() { "workloadSelector" } else { "endpoints" };
            spec.error(field, "`resolution: DYNAMIC_DNS` has no endpoints: each request names its own");
        }
        Resolution::DynamicDns if !entry.addresses.is_empty() => {
            spec.error(
                "addresses",
                "`resolution: DYNAMIC_DNS` has no addresses: hosts are distinguished by their names",
            );
        }
        Resolution::Static if entry.endpoints.is_empty() && entry.workload_selector.is_none() => {
            spec.error("resolution", "`resolution: STATIC` needs `endpoints` or a `workloadSelector`");
        }
        Resolution::DnsRoundRobin if entry.endpoints.len() > 1 => {
            spec.error("endpoints", "`resolution: DNS_ROUND_ROBIN` has one endpoint at most: use DNS for several");
        }
        Resolution::Static if !entry.endpoints.iter().all(literal) => {
            spec.error(
                "endpoints",
                "with `resolution: STATIC` every endpoint's address must be an IP address or `unix://PATH`",
            );
        }
        _ => {}
    }
    if entry.resolution == Resolution::DynamicDns
        && let Some(port) = entry.ports.iter().find(|port| port.protocol == v1::Protocol::Tcp)
    {
        let text = format!(
            "port {} is TCP: `resolution: DYNAMIC_DNS` needs HTTP or TLS, whose requests and handshakes name their host",
            port.number
        );
        spec.error("ports", text);
    }
    let known: Vec<&str> = entry.ports.iter().map(|port| port.name.as_str()).collect();
    let names: HashSet<&str> = known.iter().copied().collect();
    for name in entry.endpoints.iter().flat_map(|endpoint| endpoint.ports.keys()) {
        if !names.contains(name.as_str()) {
            let hint = suggest(name, &known, "`ports` has");
            spec.error("endpoints", format!("an endpoint maps port `{name}`, which `ports` does not name{hint}"));
        }
    }
}
