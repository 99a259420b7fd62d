//! Compiled policy in the names of its document: the fields that differ from the defaults.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_core::hash::HashPolicy;
use weft_core::locality::{Failover, Locality};
use weft_core::policy::{
    Cluster, ConnectionPool, H2Upgrade, Http2Keepalive, LoadBalancer, OutlierDetection, Protocol, TcpKeepalive, Tls,
};
use weft_proto::v1;

use super::report::Setting;

/// Its name in documents.
pub(super) fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Unknown => "detected by the first bytes",
        Protocol::Http => "HTTP",
        Protocol::Http2 => "HTTP2",
        Protocol::Grpc => "GRPC",
        Protocol::Tcp => "TCP",
        Protocol::Tls => "TLS",
    }
}

/// Its value on the wire.
pub(super) fn wire(protocol: Protocol) -> v1::Protocol {
    match protocol {
        Protocol::Unknown => v1::Protocol::Unknown,
        Protocol::Http => v1::Protocol::Http,
        Protocol::Http2 => v1::Protocol::Http2,
        Protocol::Grpc => v1::Protocol::Grpc,
        Protocol::Tcp => v1::Protocol::Tcp,
        Protocol::Tls => v1::Protocol::Tls,
    }
}

/// `a=b,c=d`
pub(super) fn labels(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join(",")
}

pub(super) fn hash_policy(policy: &HashPolicy) -> String {
    match policy {
        HashPolicy::Header(name) => format!("header {name}"),
        HashPolicy::Cookie(cookie) => format!("cookie {}", cookie.name),
        HashPolicy::SourceIp => "the caller's address".to_owned(),
        HashPolicy::QueryParam(name) => format!("query parameter {name}"),
    }
}

pub(super) fn balancer(cluster: &Cluster) -> String {
    let balancer = match &cluster.load_balancer {
        _ if cluster.original_destination => return "none: passthrough to the original destination".to_owned(),
        _ if cluster.dynamic_dns => return "none: the host in the request is resolved and dialed".to_owned(),
        LoadBalancer::LeastRequest => "LEAST_REQUEST".to_owned(),
        LoadBalancer::RoundRobin => "ROUND_ROBIN".to_owned(),
        LoadBalancer::Random => "RANDOM".to_owned(),
        LoadBalancer::Passthrough => "PASSTHROUGH".to_owned(),
        LoadBalancer::RingHash { policy, minimum_size } => {
            format!("ring hash by {}, {minimum_size} entries at least", hash_policy(policy))
        }
        LoadBalancer::Maglev { policy, table_size } => {
            format!("Maglev by {}, {table_size} entries", hash_policy(policy))
        }
    };
    let balancer = match cluster.headless {
        true => format!("the endpoint that the caller dials (headless), else {balancer}"),
        false => balancer,
    };
    match &cluster.warmup {
        Some(warmup) => format!("{balancer}, new endpoints warm up for {:?}", warmup.duration),
        None => balancer,
    }
}

pub(super) fn locality(locality: &Locality) -> String {
    match locality {
        Locality::Any => "",
        Locality::Distribute(_) => "by the shares of distribute",
        Locality::Failover(Failover::Regions(_)) => "the nearest first",
        Locality::Failover(Failover::Labels(_)) => "the nearest first, by the labels of failoverPriority",
        Locality::Failover(Failover::Both(..)) => {
            "the nearest first, by the labels of failoverPriority and then by regions"
        }
    }
    .to_owned()
}

fn tcp_probes(TcpKeepalive { probes, time, interval }: TcpKeepalive) -> String {
    let parts = [
        time.map(|time| format!("after {}", text(time))),
        interval.map(|interval| format!("every {}", text(interval))),
        probes.map(|probes| format!("{probes} probes")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "on".to_owned() } else { parts.join(", ") }
}

fn pings(Http2Keepalive { interval, timeout }: Http2Keepalive) -> String {
    format!("every {}, {} for an answer", text(interval), text(timeout))
}

pub(super) fn limits(pool: &ConnectionPool) -> Vec<Setting> {
    let unset = ConnectionPool::default();
    // Without `..`: a new field is shown, or left out on purpose.
    let ConnectionPool {
        max_connections,
        connect_timeout,
        max_pending_requests,
        max_requests,
        max_requests_per_connection,
        max_retries,
        retry_budget,
        http_idle_timeout,
        tcp_idle_timeout,
        max_connection_duration,
        tcp_keepalive,
        max_concurrent_streams,
        h2_upgrade,
        use_client_protocol,
        http2_keepalive,
    } = *pool;
    let count = |field: &str, value: u32, unset: u32| (value != unset).then(|| Setting::new(field, value));
    let time =
        |field: &str, value: Duration, unset: Duration| (value != unset).then(|| Setting::new(field, text(value)));
    let or_off = |field: &str, value: Option<Duration>, unset: Option<Duration>| {
        (value != unset).then(|| Setting::new(field, value.map_or("off".to_owned(), text)))
    };
    let upgrade = match h2_upgrade {
        H2Upgrade::Default => None,
        H2Upgrade::DoNotUpgrade => Some("DO_NOT_UPGRADE"),
        H2Upgrade::Upgrade => Some("UPGRADE"),
    };
    let budget = retry_budget.map(|budget| format!("{} %, {} at least", budget.percent, budget.minimum));
    let all = [
        count("maxConnections", max_connections, unset.max_connections),
        count("http1MaxPendingRequests", max_pending_requests, unset.max_pending_requests),
        count("http2MaxRequests", max_requests, unset.max_requests),
        count("maxRequestsPerConnection", max_requests_per_connection, unset.max_requests_per_connection),
        count("maxRetries", max_retries, unset.max_retries),
        budget.map(|budget| Setting::new("retryBudget", budget)),
        // HTTP/2's own bound is not a configured limit.
        count("maxConcurrentStreams", max_concurrent_streams, unset.max_concurrent_streams.min(i32::MAX as u32)),
        time("connectTimeout", connect_timeout, unset.connect_timeout),
        time("http.idleTimeout", http_idle_timeout, unset.http_idle_timeout),
        or_off("tcp.idleTimeout", tcp_idle_timeout, unset.tcp_idle_timeout),
        or_off("maxConnectionDuration", max_connection_duration, unset.max_connection_duration),
        upgrade.map(|upgrade| Setting::new("h2UpgradePolicy", upgrade)),
        tcp_keepalive.map(|keepalive| Setting::new("tcpKeepalive", tcp_probes(keepalive))),
        http2_keepalive.map(|keepalive| Setting::new("http2KeepAlive", pings(keepalive))),
        use_client_protocol.then(|| Setting::new("useClientProtocol", true)),
    ];
    all.into_iter().flatten().collect()
}

pub(super) fn outlier(policy: &OutlierDetection) -> Vec<Setting> {
    let count = |field: &str, value: Option<u32>| value.map(|value| Setting::new(field, value));
    // Without `..`, as above.
    let OutlierDetection {
        consecutive_5xx,
        consecutive_gateway_errors,
        interval,
        base_ejection_time,
        max_ejection_percent,
        min_health_percent,
        split_external_local_origin_errors: split,
        consecutive_local_origin_failures,
        ref error_codes,
    } = *policy;
    let codes: Vec<&str> = error_codes.iter().map(|code| code.as_str()).collect();
    let all = [
        count("consecutive5xxErrors", consecutive_5xx),
        count("consecutiveGatewayErrors", consecutive_gateway_errors),
        count("consecutiveLocalOriginFailures", consecutive_local_origin_failures.filter(|_| split)),
        Some(Setting::new("interval", text(interval))),
        Some(Setting::new("baseEjectionTime", text(base_ejection_time))),
        Some(Setting::new("maxEjectionPercent", max_ejection_percent)),
        count("minHealthPercent", Some(min_health_percent).filter(|percent| *percent > 0)),
        (!codes.is_empty()).then(|| Setting::new("outlierDetectionHttpErrorCodes", codes.join(","))),
    ];
    all.into_iter().flatten().collect()
}

/// The security of a connection, and the header or tunnel before its content.
pub(super) fn connection(cluster: &Cluster) -> String {
    let mut text = tls(&cluster.tls);
    if let Some(version) = cluster.proxy_protocol {
        text += &format!(", behind a PROXY header {version:?}");
    }
    if let Some(tunnel) = &cluster.tunnel {
        let method = if tunnel.post { "POST" } else { "CONNECT" };
        text += &format!(", tunneled with {method} to {}", tunnel.authority);
    }
    text
}

fn tls(tls: &Tls) -> String {
    match tls {
        Tls::Auto => "mutual if the endpoint has a sidecar, else plaintext".to_owned(),
        Tls::Disable => "DISABLE: plaintext".to_owned(),
        Tls::IstioMutual => "ISTIO_MUTUAL: mutual, always".to_owned(),
        Tls::Originate(origination) => {
            let mode = if origination.client.is_some() { "MUTUAL" } else { "SIMPLE" };
            let unverified = if origination.skip_verify { ", without verification of the certificate" } else { "" };
            let name = match &*origination.server_name {
                wildcard if wildcard.starts_with('*') => "the server name of the request".to_owned(),
                name => format!("server name {name}"),
            };
            let names = match &origination.subject_alt_names[..] {
                [] => String::new(),
                names => format!(", whose certificate has {}", names.join(" or ")),
            };
            let authority = origination.credential.as_ref().map(|it| format!(", by credential {}", it.name));
            format!("{mode}: to {name}{names}{}{unverified}", authority.unwrap_or_default())
        }
    }
}

/// The protocol and security of connections to one endpoint.
pub(super) fn transport(tls: &Tls, has_identity: bool) -> &'static str {
    match (tls, has_identity) {
        (Tls::Auto | Tls::IstioMutual, true) => "mutual TLS",
        (Tls::IstioMutual, false) => "refused: it has no sidecar",
        (Tls::Originate(_), _) => "TLS",
        (Tls::Auto | Tls::Disable, _) => "plaintext",
    }
}

/// `2s`, `25ms`
pub(super) fn text(duration: Duration) -> String {
    format!("{duration:?}")
}
