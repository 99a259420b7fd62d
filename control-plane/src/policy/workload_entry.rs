//! WorkloadEntry: an address that stands behind ServiceEntries; also the shape of a ServiceEntry's own `endpoints`.

use std::collections::BTreeMap;

/// A WorkloadEntry's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadEntry {
    /// IP address, or a host name to resolve.
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
