//! Compiles a cluster: its balancer, limits, outlier detection and TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use weft_proto::v1;

use super::locality::{locality, warmup};
use super::{
    At, Result, error, header_name, host_name, millis, millis_or, port_number, port_or_any, protocol, sorted,
    unknown_number,
};
use crate::hash::{Cookie, HashPolicy};
use crate::policy::*;
use crate::proxy_protocol::Version;
use crate::tunnel::Tunnel;

/// Envoy's maximum for a ring.
const MAX_RING_SIZE: u64 = 8_388_608;
const DEFAULT_RING_SIZE: u64 = 1024;
/// Envoy's maximum for a Maglev table.
const MAX_TABLE_SIZE: u64 = 5_000_011;

pub(super) fn cluster(message: &v1::Cluster) -> Result<Cluster> {
    if message.name.is_empty() {
        return error("name", "is empty");
    }
    let number = port_or_any(message.target_port).at("target_port")?;
    let number = (number != 0).then_some(number);
    let target_port = match (message.target_port_name.as_str(), number) {
        ("", None) => TargetPort::Registered,
        ("", Some(number)) => TargetPort::Number(number),
        (name, otherwise) => TargetPort::Named { name: name.into(), otherwise },
    };
    let load_balancer = load_balancer(message.load_balancer.as_ref()).at("load_balancer")?;
    let balancing = message.load_balancer.as_ref();
    let outlier = message.outlier_detection.as_ref().map(outlier_detection).transpose().at("outlier_detection")?;
    let tls = match v1::Tls::try_from(message.tls) {
        Ok(v1::Tls::Auto) => Tls::Auto,
        Ok(v1::Tls::Disable) => Tls::Disable,
        Ok(v1::Tls::IstioMutual) => Tls::IstioMutual,
        Ok(v1::Tls::Originate) => Tls::Originate(Arc::new(origination(message).at("tls_origination")?)),
        Err(_) => return error("tls", unknown_number(message.tls)),
    };
    let locality =
        locality(balancing.and_then(|b| b.locality.as_ref()), outlier.is_some()).at("load_balancer.locality")?;
    let proxy_protocol = proxy_protocol(message.proxy_protocol).at("proxy_protocol")?;
    let mut pool = connection_pool(message.connection_pool.as_ref()).at("connection_pool")?;
    if proxy_protocol.is_some() {
        // The PROXY header declares one client per connection, so a connection cannot carry requests of several
        // clients.
        pool.max_concurrent_streams = 1;
    }
    let warmup = balancing.and_then(|b| b.warmup.as_ref()).map(warmup).transpose().at("load_balancer.warmup")?;
    Ok(Cluster {
        name: message.name.as_str().into(),
        host: host_name(&message.host).at("host")?,
        port: port_or_any(message.port).at("port")?,
        subset: message.subset.as_str().into(),
        labels: sorted(&message.labels),
        target_port,
        protocol: protocol(message.protocol).at("protocol")?,
        original_destination: message.original_destination || load_balancer == LoadBalancer::Passthrough,
        dynamic_dns: message.dynamic_dns,
        headless: message.headless,
        load_balancer,
        locality,
        warmup,
        pool,
        outlier,
        tls,
        proxy_protocol,
        tunnel: message.tunnel.as_ref().map(tunnel).transpose().at("tunnel")?,
        policy: message.policy.as_str().into(),
        undefined: message.undefined,
    })
}

fn proxy_protocol(number: i32) -> std::result::Result<Option<Version>, String> {
    match v1::ProxyProtocol::try_from(number) {
        Ok(v1::ProxyProtocol::None) => Ok(None),
        Ok(v1::ProxyProtocol::V1) => Ok(Some(Version::V1)),
        Ok(v1::ProxyProtocol::V2) => Ok(Some(Version::V2)),
        Err(_) => Err(unknown_number(number)),
    }
}

fn tunnel(message: &v1::Tunnel) -> Result<Tunnel> {
    let port = port_number(message.port).at("port")?;
    let authority = match message.host.parse() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{}:{port}", host_name(&message.host).at("host")?),
    };
    Ok(Tunnel { post: message.post, authority: authority.into() })
}

fn origination(message: &v1::Cluster) -> Result<Origination> {
    let Some(tls) = &message.tls_origination else { return error("", "is missing") };
    let server_name = if tls.sni.is_empty() { &message.host } else { &tls.sni };
    let given = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
    let client = match (given(&tls.client_certificate), given(&tls.private_key)) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate, key)),
        _ => return error("private_key", "requires a certificate, and a certificate requires a key"),
    };
    let credential = given(&tls.credential_name).map(|name| Credential { name, shown: tls.show_credential });
    if let Some(Credential { name, .. }) = &credential {
        // The name becomes part of a path on the sidecar's disk.
        if name.contains(['/', '\\']) || matches!(&**name, "." | "..") {
            return error("credential_name", format!("{name:?} is not the name of a folder"));
        }
        if client.is_some() || [&tls.ca_certificates, &tls.ca_crl].iter().any(|file| !file.is_empty()) {
            return error("credential_name", "cannot be given together with files");
        }
    }
    Ok(Origination {
        server_name: host_name(server_name).at("sni")?,
        subject_alt_names: tls.subject_alt_names.clone(),
        ca: given(&tls.ca_certificates),
        client,
        crl: given(&tls.ca_crl),
        credential,
        skip_verify: tls.insecure_skip_verify,
    })
}

fn load_balancer(message: Option<&v1::LoadBalancer>) -> Result<LoadBalancer> {
    let Some(message) = message else { return Ok(LoadBalancer::LeastRequest) };
    if let Some(hash) = &message.consistent_hash {
        return consistent_hash(hash).at("consistent_hash");
    }
    Ok(match v1::load_balancer::Simple::try_from(message.simple) {
        Ok(v1::load_balancer::Simple::LeastRequest) => LoadBalancer::LeastRequest,
        Ok(v1::load_balancer::Simple::RoundRobin) => LoadBalancer::RoundRobin,
        Ok(v1::load_balancer::Simple::Random) => LoadBalancer::Random,
        Ok(v1::load_balancer::Simple::Passthrough) => LoadBalancer::Passthrough,
        Err(_) => return error("simple", unknown_number(message.simple)),
    })
}

fn consistent_hash(message: &v1::ConsistentHash) -> Result<LoadBalancer> {
    use v1::consistent_hash::Key;
    let policy = match &message.key {
        Some(Key::HttpHeaderName(name)) => HashPolicy::Header(header_name(name).at("http_header_name")?),
        Some(Key::HttpCookie(message)) => HashPolicy::Cookie(cookie(message).at("http_cookie")?),
        Some(Key::UseSourceIp(true)) => HashPolicy::SourceIp,
        Some(Key::UseSourceIp(false)) => return error("use_source_ip", "must be true if it is the hash key"),
        Some(Key::HttpQueryParameterName(name)) if name.is_empty() => {
            return error("http_query_parameter_name", "is empty");
        }
        Some(Key::HttpQueryParameterName(name)) => HashPolicy::QueryParam(name.clone()),
        None => return error("key", "one of http header, cookie, source IP and query parameter must be given"),
    };
    match (message.minimum_ring_size, message.maglev_table_size) {
        (0, 0) => Ok(LoadBalancer::RingHash { policy, minimum_size: DEFAULT_RING_SIZE }),
        (1..=MAX_RING_SIZE, 0) => Ok(LoadBalancer::RingHash { policy, minimum_size: message.minimum_ring_size }),
        (_, 0) => error("minimum_ring_size", format!("must be at most {MAX_RING_SIZE}")),
        (0, 2..MAX_TABLE_SIZE) if is_prime(message.maglev_table_size) => {
            Ok(LoadBalancer::Maglev { policy, table_size: message.maglev_table_size })
        }
        (0, _) => error("maglev_table_size", format!("must be a prime below {MAX_TABLE_SIZE}")),
        _ => error("maglev_table_size", "cannot be given together with minimum_ring_size"),
    }
}

fn cookie(message: &v1::HttpCookie) -> Result<Cookie> {
    // The name of a cookie is a token, like that of a header.
    if HeaderName::from_bytes(message.name.as_bytes()).is_err() {
        return error("name", format!("{:?} is not a cookie name", message.name));
    }
    let is_plain = |text: &str| text.bytes().all(|b| matches!(b, b' '..=b'~') && b != b';');
    if !is_plain(&message.path) {
        return error("path", "may have visible ASCII without ';' only");
    }
    for (i, attribute) in message.attributes.iter().enumerate() {
        if attribute.name.is_empty() || !is_plain(&attribute.name) || !is_plain(&attribute.value) {
            return error(format_args!("attributes[{i}]"), "needs a name, and may have visible ASCII without ';' only");
        }
    }
    let attributes = message.attributes.iter().map(|pair| (pair.name.clone(), pair.value.clone()));
    Ok(Cookie {
        name: message.name.clone(),
        path: message.path.clone(),
        ttl: message.ttl_ms.map(Duration::from_millis),
        attributes: attributes.collect(),
    })
}

pub(super) fn connection_pool(message: Option<&v1::ConnectionPool>) -> Result<ConnectionPool> {
    let message = message.copied().unwrap_or_default();
    let or_unlimited = |limit| if limit == 0 { u32::MAX } else { limit };
    const HOUR_MS: u64 = 3_600_000;
    let seconds = |count: u32| (count != 0).then(|| Duration::from_secs(u64::from(count)));
    let h2_upgrade = match v1::H2Upgrade::try_from(message.h2_upgrade) {
        Ok(v1::H2Upgrade::H2Default) => H2Upgrade::Default,
        Ok(v1::H2Upgrade::DoNotUpgrade) => H2Upgrade::DoNotUpgrade,
        Ok(v1::H2Upgrade::Upgrade) => H2Upgrade::Upgrade,
        Err(_) => return error("h2_upgrade", unknown_number(message.h2_upgrade)),
    };
    let tcp_idle_ms = message.tcp_idle_timeout_ms.unwrap_or(HOUR_MS);
    // The HTTP idle timeout defaults to the TCP one if that is set, otherwise to an hour.
    let http_idle_ms = match (message.http_idle_timeout_ms, tcp_idle_ms) {
        (0, 0) => HOUR_MS,
        (0, tcp) => tcp,
        (http, _) => http,
    };
    Ok(ConnectionPool {
        max_connections: or_unlimited(message.max_connections),
        connect_timeout: millis_or(message.connect_timeout_ms, 10_000),
        max_pending_requests: or_unlimited(message.http1_max_pending_requests),
        max_requests: or_unlimited(message.http2_max_requests),
        max_requests_per_connection: or_unlimited(message.max_requests_per_connection),
        max_retries: or_unlimited(message.max_retries),
        retry_budget: message.retry_budget.map(retry_budget).transpose().at("retry_budget")?,
        http_idle_timeout: Duration::from_millis(http_idle_ms),
        tcp_idle_timeout: millis(tcp_idle_ms),
        max_connection_duration: millis(message.max_connection_duration_ms),
        tcp_keepalive: message.tcp_keepalive.map(|keepalive| TcpKeepalive {
            probes: (keepalive.probes != 0).then_some(keepalive.probes),
            time: seconds(keepalive.time_s),
            interval: seconds(keepalive.interval_s),
        }),
        // Istio's default is the maximum of HTTP/2.
        max_concurrent_streams: or_unlimited(message.max_concurrent_streams).min(i32::MAX as u32),
        h2_upgrade,
        use_client_protocol: message.use_client_protocol,
        http2_keepalive: message.http2_keepalive.map(|keepalive| Http2Keepalive {
            interval: millis_or(keepalive.interval_ms, 1),
            timeout: millis_or(keepalive.timeout_ms, 1),
        }),
    })
}

fn error_codes(codes: &[u32]) -> std::result::Result<Vec<StatusCode>, String> {
    let status = |code: &u32| u16::try_from(*code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    codes.iter().map(|code| status(code).ok_or_else(|| format!("{code} is not a status"))).collect()
}

fn retry_budget(message: v1::RetryBudget) -> Result<RetryBudget> {
    if !(0.0..=100.0).contains(&message.percent) {
        return error("percent", format!("{} is not 0 to 100", message.percent));
    }
    Ok(RetryBudget {
        percent: message.percent,
        minimum: message.min_retry_concurrency,
        interval: millis(message.budget_interval_ms),
    })
}

pub(super) fn outlier_detection(message: &v1::OutlierDetection) -> Result<OutlierDetection> {
    for (field, percent) in
        [("max_ejection_percent", message.max_ejection_percent), ("min_health_percent", message.min_health_percent)]
    {
        if percent > 100 {
            return error(field, format!("{percent} is above 100"));
        }
    }
    let or = |value: u32, default| if value == 0 { default } else { value };
    let on = |count: Option<u32>, default| Some(count.unwrap_or(default)).filter(|count| *count > 0);
    Ok(OutlierDetection {
        consecutive_5xx: on(message.consecutive_5xx_errors, 5),
        consecutive_gateway_errors: on(message.consecutive_gateway_errors, 0),
        interval: millis_or(message.interval_ms, 10_000),
        base_ejection_time: millis_or(message.base_ejection_time_ms, 30_000),
        max_ejection_percent: or(message.max_ejection_percent, 10),
        min_health_percent: message.min_health_percent,
        split_external_local_origin_errors: message.split_external_local_origin_errors,
        consecutive_local_origin_failures: on(message.consecutive_local_origin_failures, 5),
        error_codes: error_codes(&message.http_error_codes).at("http_error_codes")?,
    })
}

fn is_prime(number: u64) -> bool {
    number > 1 && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests;
