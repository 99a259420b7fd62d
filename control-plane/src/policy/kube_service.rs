//! Kubernetes' Service: names the ports of a registered service.

use std::{collections::BTreeMap, net::IpAddr};

use weft_proto::v1;

/// A Service's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct KubeService {
    /// TCP ports, by unique number.
    pub ports: Vec<KubePort>,
    /// Labels of further instances of the namespace that belong, whatever service they registered as.
    pub selector: BTreeMap<String, String>,
    /// `clusterIP`, a virtual IP beside the allocated one.
    pub cluster_ip: Option<IpAddr>,
}

/// One entry of `ports`.
#[derive(Clone, Debug, PartialEq)]
pub struct KubePort {
    /// Port that callers use.
    pub number: u32,
    /// Name; may be empty when it is the only one.
    pub name: String,
    /// From `appProtocol`, else from the name.
    pub protocol: v1::Protocol,
    /// Port of the instances.
    pub target: TargetPort,
}

/// `targetPort`.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetPort {
    /// A number.
    Number(u32),
    /// A name: the port that the instance registered.
    Name(String),
}
