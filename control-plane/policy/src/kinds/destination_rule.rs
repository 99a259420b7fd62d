//! DestinationRule: traffic policy for a host (balancing, limits, ejection, TLS) and its subsets.

pub(crate) mod load_balancer;
mod proxy;
mod tls;

use std::collections::{BTreeMap, HashSet};

use weft_proto::v1;

use super::{Content, Descriptor, Manifest, NETWORKING, NETWORKING_VERSIONS, Object};
use crate::decode::{
    connection_pool,
    fields::{Fields, Shape, explicit, object, read},
};
use crate::{
    export::{self, Export},
    names,
};

pub use tls::ClientTls;

pub(super) static DESCRIPTOR: Descriptor = Descriptor {
    group: NETWORKING,
    versions: NETWORKING_VERSIONS,
    plural: "destinationrules",
    short_names: &["dr"],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::DestinationRule(Box::new(decode(manifest))),
};

/// A DestinationRule's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationRule {
    /// `exportTo`.
    pub export: Export,
    /// `workloadSelector.matchLabels`: the clients of its own namespace that it applies to; empty: all clients.
    pub selector: BTreeMap<String, String>,
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
    /// `tls`.
    pub tls: Option<ClientTls>,
    /// `retryBudget`; not of a port's settings.
    pub retry_budget: Option<v1::RetryBudget>,
    /// `tunnel`; not of a port's settings.
    pub tunnel: Option<v1::Tunnel>,
    /// `proxyProtocol`; not of a port's settings.
    pub proxy_protocol: Option<v1::ProxyProtocol>,
}

/// Endpoints of a host that have all of the given labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    /// Its name in routes.
    pub name: String,
    /// Required labels.
    pub labels: BTreeMap<String, String>,
    /// Overrides of the rule's policy.
    pub traffic_policy: Option<TrafficPolicy>,
}

/// Fields of `outlierDetection`.
pub(crate) const OUTLIER_DETECTION: Shape = &[
    explicit("consecutive5xxErrors"),
    explicit("consecutiveGatewayErrors"),
    read("consecutiveErrors"),
    read("interval"),
    read("baseEjectionTime"),
    read("maxEjectionPercent"),
    read("minHealthPercent"),
    read("splitExternalLocalOriginErrors"),
    explicit("consecutiveLocalOriginFailures"),
    read("outlierDetectionHttpErrorCodes"),
];
const PORT_LEVEL: Shape = &[
    object("port", &[read("number")]),
    object("loadBalancer", load_balancer::SHAPE),
    object("connectionPool", connection_pool::SHAPE),
    object("outlierDetection", OUTLIER_DETECTION),
    object("tls", tls::SHAPE),
];
const TRAFFIC_POLICY: Shape = &[
    object("loadBalancer", load_balancer::SHAPE),
    object("connectionPool", connection_pool::SHAPE),
    object("outlierDetection", OUTLIER_DETECTION),
    object("tls", tls::SHAPE),
    object("portLevelSettings", PORT_LEVEL),
    object("tunnel", proxy::TUNNEL),
    object("proxyProtocol", proxy::PROXY_PROTOCOL),
    object("retryBudget", &[explicit("percent"), explicit("minRetryConcurrency"), read("budgetInterval")]),
];
/// Fields of `spec`.
const SHAPE: Shape = &[
    read("host"),
    object("trafficPolicy", TRAFFIC_POLICY),
    object("subsets", &[read("name"), read("labels"), object("trafficPolicy", TRAFFIC_POLICY)]),
    read("exportTo"),
    object("workloadSelector", &[read("matchLabels")]),
];

impl Content for DestinationRule {
    fn hosts(&self) -> &[String] {
        std::slice::from_ref(&self.host)
    }

    fn export(&self) -> Option<&Export> {
        Some(&self.export)
    }
}

/// Reads `spec`.
fn decode(manifest: &Manifest<'_>) -> DestinationRule {
    let spec = &manifest.spec;
    let host = spec.required_string("host");
    if !host.is_empty() && host != "*" && !names::is_host_or_wildcard(&host) {
        spec.error(
            "host",
            format!("`host`: `{host}` is not a host name; write a service's name, a full name, *.suffix or *-suffix"),
        );
    }
    let export = export::decode(spec, &manifest.namespace);
    let selector = spec.object("workloadSelector").map(|selector| selector.labels("matchLabels")).unwrap_or_default();
    if !selector.is_empty() && spec.strings("exportTo").iter().any(|(name, _)| name != ".") {
        let text =
            "with a `workloadSelector` only `exportTo: [.]` is allowed: the selected workloads are of this namespace";
        spec.error("exportTo", text);
    }
    let selected = !selector.is_empty();
    let mut subsets: Vec<Subset> = Vec::new();
    let mut names = HashSet::new();
    for fields in spec.objects("subsets") {
        let name = fields.required_string("name");
        if !name.is_empty() && !names::is_label(&name) {
            fields.error(
                "name",
                format!("subset name `{name}` must be lower-case letters, digits and hyphens, at most 63"),
            );
        }
        if !names.insert(name.clone()) {
            fields.error("name", format!("subset `{name}` is defined twice"));
        }
        let labels = fields.labels("labels");
        let traffic_policy = fields.object("trafficPolicy").map(|fields| traffic_policy(&fields, selected));
        subsets.push(Subset { name, labels, traffic_policy });
    }
    let traffic_policy = spec.object("trafficPolicy").map(|fields| traffic_policy(&fields, selected));
    DestinationRule { export, selector, host, traffic_policy, subsets }
}

/// `selected`: the rule has a `workloadSelector`.
fn traffic_policy(fields: &Fields<'_>, selected: bool) -> TrafficPolicy {
    if fields.written() == 0 {
        fields.error_at(fields.place, format!("`{}` must have at least one field", fields.path));
    }
    let mut ports = BTreeMap::new();
    for entry in fields.objects("portLevelSettings") {
        entry.require("port");
        let Some(port) = entry.object("port") else { continue };
        port.require("number");
        let Some(number) = port.port("number") else { continue };
        if ports.insert(number, settings(&entry, selected)).is_some() {
            port.error("number", format!("port {number} has settings already"));
        }
    }
    let settings = settings(fields, selected);
    let retry_budget = fields.object("retryBudget").map(|budget| v1::RetryBudget {
        percent: budget.decimal("percent", 0.0..=100.0).unwrap_or(20.0),
        min_retry_concurrency: budget.limit("minRetryConcurrency").unwrap_or(3),
        budget_interval_ms: budget.duration("budgetInterval", 0).unwrap_or_default(),
    });
    let (tunnel, proxy_protocol) = proxy::decode(fields, settings.tls.as_ref());
    TrafficPolicy { settings: Settings { retry_budget, tunnel, proxy_protocol, ..settings }, ports }
}

fn settings(fields: &Fields<'_>, selected: bool) -> Settings {
    let fails_over = fields.object("loadBalancer").and_then(|balancer| balancer.object("localityLbSetting"));
    let fails_over = fails_over.is_some_and(|locality| locality.has("failover") || locality.has("failoverPriority"));
    if fails_over && !fields.has("outlierDetection") {
        let text =
            "the failover has no effect without an `outlierDetection`: unhealthy local endpoints are not detected";
        fields.warn("loadBalancer", text);
    }
    Settings {
        load_balancer: fields.object("loadBalancer").map(|fields| load_balancer::decode(&fields)),
        connection_pool: fields.object("connectionPool").map(|fields| connection_pool::decode(&fields)),
        outlier_detection: fields.object("outlierDetection").map(|fields| outlier_detection(&fields)),
        tls: fields.object("tls").map(|fields| tls::decode(&fields, selected)),
        ..Settings::default()
    }
}

/// Reads `outlierDetection`.
pub(crate) fn outlier_detection(fields: &Fields<'_>) -> v1::OutlierDetection {
    let count = |name| fields.number(name, 0..=i64::from(u32::MAX)).and_then(|n| u32::try_from(n).ok());
    let percent = |name| fields.number(name, 0..=100).and_then(|n| u32::try_from(n).ok()).unwrap_or_default();
    if fields.has("consecutiveErrors") {
        fields
            .warn("consecutiveErrors", "`consecutiveErrors` has no effect, as in Istio: write `consecutive5xxErrors`");
    }
    let split = fields.boolean("splitExternalLocalOriginErrors").unwrap_or_default();
    let local = count("consecutiveLocalOriginFailures");
    if local.is_some_and(|n| n > 0) && !split {
        let text = "`consecutiveLocalOriginFailures` needs `splitExternalLocalOriginErrors: true`";
        fields.error("consecutiveLocalOriginFailures", text);
    }
    let codes = fields.numbers("outlierDetectionHttpErrorCodes", 100..=599);
    v1::OutlierDetection {
        http_error_codes: codes.into_iter().filter_map(|code| u32::try_from(code).ok()).collect(),
        consecutive_5xx_errors: count("consecutive5xxErrors"),
        consecutive_gateway_errors: count("consecutiveGatewayErrors"),
        interval_ms: fields.duration("interval", 1).unwrap_or_default(),
        base_ejection_time_ms: fields.duration("baseEjectionTime", 1).unwrap_or_default(),
        max_ejection_percent: percent("maxEjectionPercent"),
        min_health_percent: percent("minHealthPercent"),
        split_external_local_origin_errors: split,
        consecutive_local_origin_failures: local,
    }
}

#[cfg(test)]
mod tests;
