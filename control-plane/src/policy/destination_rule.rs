//! DestinationRule: how to call a host (balancing, limits, ejection, TLS) and which subsets it has.

use std::collections::BTreeMap;

use weft_proto::v1;

/// A DestinationRule's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationRule {
    /// As written: a short name, a full one or `*.suffix`.
    pub host: String,
    /// For every port and subset.
    pub traffic_policy: Option<TrafficPolicy>,
    /// By unique name.
    pub subsets: Vec<Subset>,
}

/// `trafficPolicy`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficPolicy {
    /// For ports without an entry of their own.
    pub settings: Settings,
    /// `portLevelSettings`, by port number.
    pub ports: BTreeMap<u32, Settings>,
}

/// The blocks of a policy. A block overrides or is absent; no block is merged field by field.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// `loadBalancer`.
    pub load_balancer: Option<v1::LoadBalancer>,
    /// `connectionPool`.
    pub connection_pool: Option<v1::ConnectionPool>,
    /// `outlierDetection`.
    pub outlier_detection: Option<v1::OutlierDetection>,
    /// `tls.mode`.
    pub tls: Option<v1::Tls>,
}

/// Endpoints of a host that have all of some labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    /// Name that routes use.
    pub name: String,
    /// Required labels.
    pub labels: BTreeMap<String, String>,
    /// Overrides of the rule's policy.
    pub traffic_policy: Option<TrafficPolicy>,
}
