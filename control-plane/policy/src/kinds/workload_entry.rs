//! WorkloadEntry: an endpoint of ServiceEntries; also the shape of a ServiceEntry's own `endpoints` and, except for the
//! address, of a WorkloadGroup's `template`.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Content, Descriptor, NETWORKING, NETWORKING_VERSIONS, Object};
use crate::decode::fields::{Fields, Shape, read, refused};
use crate::names;

pub(super) static DESCRIPTOR: Descriptor = Descriptor {
    group: NETWORKING,
    versions: NETWORKING_VERSIONS,
    plural: "workloadentries",
    short_names: &["we"],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::WorkloadEntry(decode(&manifest.spec)),
};

/// A WorkloadEntry's `spec`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkloadEntry {
    /// IP address, a host name to resolve, or `unix://` and a socket on the machine of each caller.
    pub address: String,
    /// Ports by the name that a ServiceEntry gives them.
    pub ports: BTreeMap<String, u32>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// 0: 1.
    pub weight: u32,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Service account of the workload; empty: none.
    pub service_account: String,
}

/// Fields of `spec`, and of a ServiceEntry's `endpoints`.
pub(crate) const SHAPE: Shape = &[
    read("address"),
    read("ports"),
    read("labels"),
    read("weight"),
    read("locality"),
    read("serviceAccount"),
    refused("network", NETWORK),
];

/// The reason why `network` is an error.
pub(crate) const NETWORK: &str = "other networks are other data centres here, and are reached through their gateways";

impl Content for WorkloadEntry {}

/// Reads it.
pub(crate) fn decode(fields: &Fields<'_>) -> WorkloadEntry {
    let address = fields.required_string("address");
    if let Some(path) = address.strip_prefix(names::UNIX_PREFIX) {
        if let Some(why) = names::unix_problem(path) {
            fields.error("address", format!("`{address}` {why}"));
        }
        if fields.has("ports") {
            fields.error("ports", format!("`{address}` has no ports: a Unix socket is one endpoint"));
        }
    } else if !address.is_empty() && address.parse::<IpAddr>().is_err() && !names::is_host(&address) {
        fields.error("address", format!("`{address}` is neither an IP address nor a host name"));
    }
    WorkloadEntry { address, ..template(fields) }
}

impl WorkloadEntry {
    /// Whether it is a Unix socket.
    pub fn is_unix(&self) -> bool {
        self.address.starts_with(names::UNIX_PREFIX)
    }
}

/// Ports by name, with the rules for the port names of a ServiceEntry.
fn port_map(fields: &Fields<'_>) -> BTreeMap<String, u32> {
    for (key, _) in fields.map("ports") {
        if !names::is_label(&key.name) {
            fields.error_at(key.place, format!("port name `{}` {}", key.name, names::LABEL_RULE));
        }
    }
    fields.number_map("ports", 1..=65535)
}

/// Reads all fields except the address.
pub(crate) fn template(fields: &Fields<'_>) -> WorkloadEntry {
    WorkloadEntry {
        address: String::new(),
        ports: port_map(fields),
        labels: fields.labels("labels"),
        weight: fields.limit("weight").unwrap_or_default(),
        locality: fields.string("locality").unwrap_or_default(),
        service_account: fields.string("serviceAccount").unwrap_or_default(),
    }
}
