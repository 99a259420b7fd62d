//! ServiceEntry: a host that nothing registers, inside or outside the mesh.

use std::{collections::BTreeMap, net::IpAddr};

use weft_proto::v1;

use super::WorkloadEntry;

/// A ServiceEntry's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceEntry {
    /// Exact names or `*.suffix`, lower case.
    pub hosts: Vec<String>,
    /// Virtual IPs or ranges.
    pub addresses: Vec<AddressRange>,
    /// By unique number.
    pub ports: Vec<EntryPort>,
    /// `MESH_EXTERNAL`.
    pub external: bool,
    /// Where addresses come from.
    pub resolution: Resolution,
    /// Addresses given here.
    pub endpoints: Vec<WorkloadEntry>,
    /// Labels of the WorkloadEntries of this namespace that are endpoints.
    pub workload_selector: Option<BTreeMap<String, String>>,
}

/// `resolution`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The caller knows the address.
    None,
    /// The endpoints' addresses.
    Static,
    /// The endpoints' (or the hosts') names, resolved by the sidecar.
    Dns,
}

/// An address or a CIDR range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// First address as written.
    pub address: IpAddr,
    /// Bits that count: 32 or 128 for one address.
    pub prefix: u8,
}

/// One entry of `ports`.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryPort {
    /// Port that callers use.
    pub number: u32,
    /// Unique name.
    pub name: String,
    /// From `protocol`, else from the name.
    pub protocol: v1::Protocol,
    /// Port of the endpoints; absent: `number`.
    pub target_port: Option<u32>,
}
