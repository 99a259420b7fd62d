//! PeerAuthentication: whether a workload accepts plaintext.

use std::collections::BTreeMap;

use weft_proto::v1;

/// A PeerAuthentication's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerAuthentication {
    /// Labels of the workloads; empty: all of the namespace (of the mesh, in the root namespace).
    pub selector: BTreeMap<String, String>,
    /// `mtls.mode`; `None`: inherited.
    pub mode: Option<v1::MtlsMode>,
    /// `portLevelMtls`, by port of the workload; `None`: `mode`.
    pub ports: BTreeMap<u32, Option<v1::MtlsMode>>,
}
