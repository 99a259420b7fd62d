//! DestinationRule: how to call a host (balancing, limits, ejection, TLS) and which subsets it has.

use std::collections::BTreeMap;

use weft_proto::v1;

use super::{
    connection_pool,
    fields::{Fields, Shape, not_yet, object, read},
    names,
};

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

const COOKIE: Shape = &[read("name"), read("path"), read("ttl"), object("attributes", &[read("name"), read("value")])];
const CONSISTENT_HASH: Shape = &[
    read("httpHeaderName"),
    object("httpCookie", COOKIE),
    read("useSourceIp"),
    read("httpQueryParameterName"),
    object("ringHash", &[read("minimumRingSize")]),
    object("maglev", &[read("tableSize")]),
    read("minimumRingSize"),
];
const LOAD_BALANCER: Shape = &[
    read("simple"),
    object("consistentHash", CONSISTENT_HASH),
    not_yet("localityLbSetting"),
    not_yet("zoneAwareLbSetting"),
    not_yet("warmup"),
    not_yet("warmupDurationSecs"),
];
const OUTLIER_DETECTION: Shape = &[
    read("consecutive5xxErrors"),
    read("consecutiveGatewayErrors"),
    read("consecutiveErrors"),
    read("interval"),
    read("baseEjectionTime"),
    read("maxEjectionPercent"),
    read("minHealthPercent"),
    read("splitExternalLocalOriginErrors"),
    read("consecutiveLocalOriginFailures"),
    not_yet("outlierDetectionHttpErrorCodes"),
];
const TLS: Shape = &[
    read("mode"),
    not_yet("sni"),
    not_yet("subjectAltNames"),
    not_yet("caCertificates"),
    not_yet("clientCertificate"),
    not_yet("privateKey"),
    not_yet("credentialName"),
    not_yet("insecureSkipVerify"),
    not_yet("caCrl"),
];
const PORT_LEVEL: Shape = &[
    object("port", &[read("number")]),
    object("loadBalancer", LOAD_BALANCER),
    object("connectionPool", connection_pool::SHAPE),
    object("outlierDetection", OUTLIER_DETECTION),
    object("tls", TLS),
];
const TRAFFIC_POLICY: Shape = &[
    object("loadBalancer", LOAD_BALANCER),
    object("connectionPool", connection_pool::SHAPE),
    object("outlierDetection", OUTLIER_DETECTION),
    object("tls", TLS),
    object("portLevelSettings", PORT_LEVEL),
    not_yet("tunnel"),
    not_yet("proxyProtocol"),
    not_yet("retryBudget"),
];
/// Fields of `spec`.
pub(crate) const SHAPE: Shape = &[
    read("host"),
    object("trafficPolicy", TRAFFIC_POLICY),
    object("subsets", &[read("name"), read("labels"), object("trafficPolicy", TRAFFIC_POLICY)]),
    read("exportTo"),
    not_yet("workloadSelector"),
];

/// Reads `spec`.
pub(crate) fn decode(spec: &Fields<'_>) -> DestinationRule {
    let host = spec.required_string("host");
    if !host.is_empty() && host != "*" && !names::is_host_or_wildcard(&host) {
        spec.error(
            "host",
            format!("`host`: `{host}` is not a host name; write a service's name, a full name or *.suffix"),
        );
    }
    names::export_to(spec);
    let mut subsets: Vec<Subset> = Vec::new();
    for fields in spec.objects("subsets") {
        let name = fields.required_string("name");
        if !name.is_empty() && !names::is_label(&name) {
            fields.error(
                "name",
                format!("subset name `{name}` must be lower-case letters, digits and hyphens, at most 63"),
            );
        }
        if subsets.iter().any(|subset| subset.name == name) {
            fields.error("name", format!("subset `{name}` is defined twice"));
        }
        let labels = fields.string_map("labels");
        let traffic_policy = fields.object("trafficPolicy").map(|fields| traffic_policy(&fields));
        subsets.push(Subset { name, labels, traffic_policy });
    }
    let traffic_policy = spec.object("trafficPolicy").map(|fields| traffic_policy(&fields));
    DestinationRule { host, traffic_policy, subsets }
}

fn traffic_policy(fields: &Fields<'_>) -> TrafficPolicy {
    if fields.written() == 0 {
        fields.error_at(fields.place, format!("`{}` must have at least one field", fields.path));
    }
    let mut ports = BTreeMap::new();
    for entry in fields.objects("portLevelSettings") {
        entry.require("port");
        let Some(port) = entry.object("port") else { continue };
        port.require("number");
        let Some(number) = port.port("number") else { continue };
        if ports.insert(number, settings(&entry)).is_some() {
            port.error("number", format!("port {number} has settings already"));
        }
    }
    TrafficPolicy { settings: settings(fields), ports }
}

fn settings(fields: &Fields<'_>) -> Settings {
    Settings {
        load_balancer: fields.object("loadBalancer").map(|fields| load_balancer(&fields)),
        connection_pool: fields.object("connectionPool").map(|fields| connection_pool::decode(&fields)),
        outlier_detection: fields.object("outlierDetection").map(|fields| outlier_detection(&fields)),
        tls: fields.object("tls").map(|fields| tls(&fields)),
    }
}

fn load_balancer(fields: &Fields<'_>) -> v1::LoadBalancer {
    use v1::load_balancer::Simple;
    const SIMPLE: &[(&str, Simple)] = &[
        ("UNSPECIFIED", Simple::LeastRequest),
        ("LEAST_REQUEST", Simple::LeastRequest),
        ("LEAST_CONN", Simple::LeastRequest),
        ("ROUND_ROBIN", Simple::RoundRobin),
        ("RANDOM", Simple::Random),
        ("PASSTHROUGH", Simple::Passthrough),
    ];
    if fields.has("simple") && fields.has("consistentHash") {
        fields.error("consistentHash", "give either `simple` or `consistentHash`, not both");
    }
    v1::LoadBalancer {
        simple: fields.one_of("simple", SIMPLE).unwrap_or_default().into(),
        consistent_hash: fields.object("consistentHash").map(|fields| consistent_hash(&fields)),
    }
}

fn consistent_hash(fields: &Fields<'_>) -> v1::ConsistentHash {
    use v1::consistent_hash::Key;
    const KEYS: [&str; 4] = ["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"];
    let header = fields.string("httpHeaderName");
    if let Some(name) = header.as_deref().filter(|name| !names::is_header(name)) {
        fields.error("httpHeaderName", format!("`{name}` is not a header name"));
    }
    let source_ip = fields.boolean("useSourceIp").filter(|&used| used);
    let keys = [
        header.map(Key::HttpHeaderName),
        fields.object("httpCookie").map(|fields| Key::HttpCookie(cookie(&fields))),
        source_ip.map(Key::UseSourceIp),
        fields.string("httpQueryParameterName").map(Key::HttpQueryParameterName),
    ];
    if keys.iter().flatten().count() != 1 && !KEYS.iter().any(|key| fields.misspelled(key)) {
        let text = format!("`{}` needs exactly one of {}", fields.path, KEYS.join(", "));
        fields.error_at(fields.place, text);
    }
    let ring = fields.object("ringHash");
    let maglev = fields.object("maglev");
    let algorithms = [ring.is_some(), maglev.is_some(), fields.has("minimumRingSize")];
    if algorithms.into_iter().filter(|&given| given).count() > 1 {
        fields.error_at(fields.place, "give only one of `ringHash`, `maglev` and the deprecated `minimumRingSize`");
    }
    if fields.has("minimumRingSize") {
        fields.warn("minimumRingSize", "`minimumRingSize` is deprecated: write `ringHash.minimumRingSize`");
    }
    let ring_size = |fields: &Fields<'_>| fields.number("minimumRingSize", 0..=8_388_608);
    v1::ConsistentHash {
        key: keys.into_iter().flatten().next(),
        minimum_ring_size: ring.as_ref().and_then(ring_size).or_else(|| ring_size(fields)).unwrap_or_default(),
        maglev_table_size: maglev.map(|fields| maglev_size(&fields)).unwrap_or_default(),
    }
}

fn maglev_size(fields: &Fields<'_>) -> u64 {
    fields.require("tableSize");
    let size = fields.number("tableSize", 2..=5_000_010).unwrap_or_default();
    if size != 0 && (2..).take_while(|n| n * n <= size).any(|n| size.is_multiple_of(n)) {
        fields.error("tableSize", format!("`tableSize` must be a prime number, such as 65537; {size} is none"));
    }
    size
}

fn cookie(fields: &Fields<'_>) -> v1::HttpCookie {
    let mut attributes: Vec<v1::HeaderValue> = Vec::new();
    for attribute in fields.objects("attributes") {
        let name = attribute.required_string("name");
        if attributes.iter().any(|known| known.name.eq_ignore_ascii_case(&name)) {
            attribute.error("name", format!("attribute `{name}` is given twice"));
        }
        attributes.push(v1::HeaderValue { name, value: attribute.string("value").unwrap_or_default() });
    }
    v1::HttpCookie {
        name: fields.required_string("name"),
        path: fields.string("path").unwrap_or_default(),
        ttl_ms: fields.duration("ttl", 0),
        attributes,
    }
}

fn outlier_detection(fields: &Fields<'_>) -> v1::OutlierDetection {
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
    v1::OutlierDetection {
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

fn tls(fields: &Fields<'_>) -> v1::Tls {
    const MODES: &[(&str, Option<v1::Tls>)] = &[
        ("DISABLE", Some(v1::Tls::Disable)),
        ("ISTIO_MUTUAL", Some(v1::Tls::IstioMutual)),
        ("SIMPLE", None),
        ("MUTUAL", None),
    ];
    let mode = fields.one_of("mode", MODES);
    if mode == Some(None) {
        let text =
            format!("`{}: {}` is not supported yet", fields.path_of("mode"), fields.string("mode").unwrap_or_default());
        fields.error("mode", text);
    }
    mode.flatten().unwrap_or(v1::Tls::Disable)
}

#[cfg(test)]
mod tests;
