//! From wire messages to compiled policy: the only way in, and the only place where a policy can be wrong.
//!
//! The sidecar compiles what it receives and refuses (NACKs) what it cannot; the control plane runs the same functions
//! before it publishes, so that a mistake is the author's to see. An error names the field and what is wrong with it.

mod route;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use weft_proto::v1;

use crate::endpoint::{Address, EndpointConfig, Health, Remote};
use crate::gateway::{Server, Speaks, Termination};
use crate::hash::{Cookie, HashPolicy};
use crate::identity::{IdentityError, SpiffeId};
use crate::names::normalise;
use crate::policy::*;

/// What is wrong with a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct CompileError {
    /// Path of the field in the message, for example `ports[0].routes[2].matches[0].uri.regex`.
    pub field: String,
    /// What is wrong, and where it helps what is allowed.
    pub problem: String,
}

type Result<T> = std::result::Result<T, CompileError>;

fn error<T>(field: impl fmt::Display, problem: impl Into<String>) -> Result<T> {
    Err(CompileError { field: field.to_string(), problem: problem.into() })
}

/// Puts what happened inside a field under its name.
trait At<T> {
    fn at(self, field: impl fmt::Display) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at(self, field: impl fmt::Display) -> Result<T> {
        self.map_err(|inner| CompileError { field: format!("{field}.{}", inner.field), ..inner })
    }
}

impl<T> At<T> for std::result::Result<T, String> {
    fn at(self, field: impl fmt::Display) -> Result<T> {
        self.or_else(|problem| error(field, problem))
    }
}

/// Envoy's bound for a ring.
const MAX_RING_SIZE: u64 = 8_388_608;
const DEFAULT_RING_SIZE: u64 = 1024;
/// Envoy's bound for a Maglev table.
const MAX_TABLE_SIZE: u64 = 5_000_011;

/// Compiles a service with its ports, routes and clusters.
pub fn service(message: &v1::Service) -> Result<Service> {
    let mut clusters = Vec::with_capacity(message.clusters.len());
    for (i, item) in message.clusters.iter().enumerate() {
        clusters.push(Arc::new(cluster(item).at(format_args!("clusters[{i}]"))?));
    }
    let mut ports = Vec::with_capacity(message.ports.len());
    for (i, item) in message.ports.iter().enumerate() {
        ports.push(port(item, &clusters).at(format_args!("ports[{i}]"))?);
    }
    ports.sort_by_key(|port| port.number);
    if let Some(pair) = ports.windows(2).find(|pair| pair[0].number == pair[1].number) {
        return error("ports", format!("port {} is there twice", pair[0].number));
    }
    let mut addresses = Vec::with_capacity(message.addresses.len());
    for (i, text) in message.addresses.iter().enumerate() {
        let parsed = text.parse::<IpAddr>().map_err(|_| format!("{text:?} is not an IP address"));
        addresses.push(parsed.at(format_args!("addresses[{i}]"))?);
    }
    Ok(Service {
        host: host_name(&message.host).at("host")?,
        namespace: message.namespace.as_str().into(),
        addresses,
        names: message.names.iter().map(|name| normalise(name).into()).collect(),
        ports,
        clusters,
        external: message.external,
        exported: message.exported,
    })
}

/// Compiles the addresses of a host. Each is shared, so that the clusters it belongs to do not copy it.
pub fn endpoints(message: &v1::Endpoints) -> Result<Vec<Arc<EndpointConfig>>> {
    let mut compiled = Vec::with_capacity(message.endpoints.len());
    for (i, item) in message.endpoints.iter().enumerate() {
        compiled.push(Arc::new(endpoint(item).at(format_args!("endpoints[{i}]"))?));
    }
    for (i, item) in message.remotes.iter().enumerate() {
        compiled.extend(remote(item).at(format_args!("remotes[{i}]"))?);
    }
    Ok(compiled)
}

/// The gateways of another data centre. A subset that nobody with an identity is in cannot be called there.
fn remote(message: &v1::Remote) -> Result<Vec<Arc<EndpointConfig>>> {
    let datacenter: Arc<str> = message.datacenter.as_str().into();
    let mut subsets = BTreeMap::new();
    for (name, subset) in message.subsets.iter().filter(|(_, subset)| !subset.identities.is_empty()) {
        let field = format!("subsets[{name:?}]");
        if subset.share > 100 {
            return error(format_args!("{field}.share"), format!("{} is more than 100 percent", subset.share));
        }
        let parse = |id: &String| id.parse().map_err(|e: IdentityError| e.to_string());
        let identities: std::result::Result<Vec<SpiffeId>, String> = subset.identities.iter().map(parse).collect();
        let identities = identities.at(format_args!("{field}.identities"))?;
        subsets
            .insert(name.clone(), Arc::new(Remote { datacenter: datacenter.clone(), share: subset.share, identities }));
    }
    let subsets = Arc::new(subsets);
    let mut gateways = Vec::with_capacity(message.gateways.len());
    for (i, gateway) in message.gateways.iter().enumerate() {
        let place = v1::Endpoint {
            address: gateway.address.clone(),
            port: gateway.port,
            workload: message.datacenter.clone(),
            namespace: "unknown".into(),
            locality: message.datacenter.clone(),
            ..v1::Endpoint::default()
        };
        let config = endpoint(&place).at(format_args!("gateways[{i}]"))?;
        gateways.push(Arc::new(EndpointConfig { remote: Some(subsets.clone()), ..config }));
    }
    Ok(gateways)
}

/// Compiles what a sidecar does with incoming traffic.
pub fn inbound(message: &v1::Inbound) -> Result<Inbound> {
    let mut port_mtls = BTreeMap::new();
    for (number, mode) in &message.port_mtls {
        let field = format_args!("port_mtls[{number}]").to_string();
        port_mtls.insert(port_number(*number).at(&field)?, mtls_mode(*mode).at(&field)?);
    }
    let mut services = Vec::with_capacity(message.services.len());
    for (i, item) in message.services.iter().enumerate() {
        services.push(inbound_service(item).at(format_args!("services[{i}]"))?);
    }
    Ok(Inbound {
        mtls: mtls_mode(message.mtls).at("mtls")?,
        port_mtls,
        services,
        policy: message.policy.as_str().into(),
        servers: servers(&message.servers)?,
        trust: trust(&message.trust)?,
    })
}

fn trust(bundles: &[v1::TrustBundle]) -> Result<BTreeMap<String, Vec<Vec<u8>>>> {
    let mut trust = BTreeMap::new();
    for (i, bundle) in bundles.iter().enumerate() {
        let domain = &bundle.trust_domain;
        SpiffeId::new(domain, "a", "a").map_err(|e| e.to_string()).at(format_args!("trust[{i}].trust_domain"))?;
        if bundle.roots_der.is_empty() {
            return error(format_args!("trust[{i}].roots_der"), "is empty");
        }
        if trust.insert(domain.clone(), bundle.roots_der.clone()).is_some() {
            return error(format_args!("trust[{i}].trust_domain"), format!("{domain} is there twice"));
        }
    }
    Ok(trust)
}

fn servers(messages: &[v1::GatewayServer]) -> Result<Vec<Arc<Server>>> {
    let mut compiled = Vec::with_capacity(messages.len());
    for (i, message) in messages.iter().enumerate() {
        compiled.push(Arc::new(server(message).at(format_args!("servers[{i}]"))?));
    }
    Ok(compiled)
}

fn server(message: &v1::GatewayServer) -> Result<Server> {
    let protocol = match v1::GatewayProtocol::try_from(message.protocol) {
        Ok(v1::GatewayProtocol::GatewayHttp) => Speaks::Http,
        Ok(v1::GatewayProtocol::GatewayHttps) => Speaks::Https,
        Ok(v1::GatewayProtocol::GatewayTls) => Speaks::Tls,
        Ok(v1::GatewayProtocol::GatewayTcp) => Speaks::Tcp,
        Err(_) => return error("protocol", unknown_number(message.protocol)),
    };
    let tls = message.tls.as_ref().map(|tls| Termination {
        mutual: tls.mutual,
        certificate: tls.server_certificate.as_str().into(),
        key: tls.private_key.as_str().into(),
        ca: tls.ca_certificates.as_str().into(),
        credential: tls.credential_name.as_str().into(),
        tls13_only: tls.tls13_only,
    });
    if protocol == Speaks::Https && tls.is_none() {
        return error("tls", "is missing");
    }
    Ok(Server {
        name: message.name.as_str().into(),
        port: port_number(message.port).at("port")?,
        protocol,
        tls,
        https_redirect: message.https_redirect,
        hosts: message.hosts.iter().map(|host| host.as_str().into()).collect(),
        virtual_hosts: message
            .virtual_hosts
            .iter()
            .map(|host| (Arc::from(host.domain.to_ascii_lowercase()), Arc::from(host.service.as_str())))
            .collect(),
        auto_passthrough: message.auto_passthrough && protocol == Speaks::Tls,
    })
}

fn inbound_service(message: &v1::InboundService) -> Result<InboundService> {
    Ok(InboundService {
        host: host_name(&message.host).at("host")?,
        namespace: message.namespace.as_str().into(),
        port: port_number(message.port).at("port")?,
        protocol: protocol(message.protocol).at("protocol")?,
        pool: connection_pool(message.connection_pool.as_ref()).at("connection_pool")?,
        exported: message.exported,
    })
}

fn endpoint(message: &v1::Endpoint) -> Result<EndpointConfig> {
    let address = match message.address.parse() {
        Ok(ip) => Address::Ip(ip),
        Err(_) => Address::Name(host_name(&message.address).at("address")?),
    };
    let mut ports = BTreeMap::new();
    for (name, number) in &message.ports {
        ports.insert(name.clone(), port_number(*number).at(format_args!("ports[{name:?}]"))?);
    }
    let identity = match message.identity.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|e: IdentityError| e.to_string()).at("identity")?),
    };
    let health = match v1::Health::try_from(message.health) {
        Ok(v1::Health::Healthy) => Health::Healthy,
        Ok(v1::Health::Unhealthy) => Health::Unhealthy,
        Ok(v1::Health::Draining) => Health::Draining,
        Ok(v1::Health::Unknown) => Health::Unknown,
        Err(_) => return error("health", unknown_number(message.health)),
    };
    Ok(EndpointConfig {
        address,
        port: port_number(message.port).at("port")?,
        ports,
        labels: sorted(&message.labels),
        weight: message.weight.max(1),
        health,
        identity,
        id: message.id.as_str().into(),
        workload: message.workload.as_str().into(),
        namespace: message.namespace.as_str().into(),
        locality: message.locality.as_str().into(),
        remote: None,
    })
}

fn port(message: &v1::Port, clusters: &[Arc<Cluster>]) -> Result<Port> {
    let cluster = cluster_index(message.cluster, clusters).at("cluster")?;
    Ok(Port {
        number: port_or_any(message.number).at("number")?,
        name: message.name.as_str().into(),
        protocol: protocol(message.protocol).at("protocol")?,
        cluster,
        routes: route::table(&message.routes, cluster, clusters)?,
    })
}

fn cluster(message: &v1::Cluster) -> Result<Cluster> {
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
    let outlier = message.outlier_detection.as_ref().map(outlier_detection).transpose().at("outlier_detection")?;
    let tls = match v1::Tls::try_from(message.tls) {
        Ok(v1::Tls::Auto) => Tls::Auto,
        Ok(v1::Tls::Disable) => Tls::Disable,
        Ok(v1::Tls::IstioMutual) => Tls::IstioMutual,
        Err(_) => return error("tls", unknown_number(message.tls)),
    };
    Ok(Cluster {
        name: message.name.as_str().into(),
        host: host_name(&message.host).at("host")?,
        port: port_or_any(message.port).at("port")?,
        subset: message.subset.as_str().into(),
        labels: sorted(&message.labels),
        target_port,
        protocol: protocol(message.protocol).at("protocol")?,
        original_destination: message.original_destination || load_balancer == LoadBalancer::Passthrough,
        load_balancer,
        pool: connection_pool(message.connection_pool.as_ref()).at("connection_pool")?,
        outlier,
        tls,
        policy: message.policy.as_str().into(),
        undefined: message.undefined,
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
        Some(Key::UseSourceIp(false)) => return error("use_source_ip", "must be true, or another key be given"),
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
    // A cookie's name is a token, as a header's name is.
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

fn connection_pool(message: Option<&v1::ConnectionPool>) -> Result<ConnectionPool> {
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
    // HTTP's falls back to TCP's where that is given, then to an hour.
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
        http_idle_timeout: Duration::from_millis(http_idle_ms),
        tcp_idle_timeout: millis(tcp_idle_ms),
        max_connection_duration: millis(message.max_connection_duration_ms),
        tcp_keepalive: message.tcp_keepalive.map(|keepalive| TcpKeepalive {
            probes: (keepalive.probes != 0).then_some(keepalive.probes),
            time: seconds(keepalive.time_s),
            interval: seconds(keepalive.interval_s),
        }),
        // Istio's default, the most that HTTP/2 allows.
        max_concurrent_streams: or_unlimited(message.max_concurrent_streams).min(i32::MAX as u32),
        h2_upgrade,
        use_client_protocol: message.use_client_protocol,
    })
}

fn outlier_detection(message: &v1::OutlierDetection) -> Result<OutlierDetection> {
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
    })
}

fn cluster_index(index: u32, clusters: &[Arc<Cluster>]) -> std::result::Result<usize, String> {
    let found = usize::try_from(index).ok().filter(|index| *index < clusters.len());
    found.ok_or_else(|| format!("refers to cluster {index} of {}", clusters.len()))
}

fn host_name(text: &str) -> std::result::Result<Arc<str>, String> {
    let is_host_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'*' | b':');
    if text.is_empty() || text.len() > 255 || !text.bytes().all(is_host_byte) {
        return Err(format!("{text:?} is not a host name"));
    }
    let lower = text.to_ascii_lowercase();
    Ok(lower.strip_suffix('.').unwrap_or(&lower).into())
}

fn header_name(text: &str) -> std::result::Result<HeaderName, String> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("{text:?} is not a valid header name"))
}

fn port_number(number: u32) -> std::result::Result<u16, String> {
    match u16::try_from(number) {
        Ok(number) if number != 0 => Ok(number),
        _ => Err(format!("{number} is not a port (1 to 65535)")),
    }
}

fn port_or_any(number: u32) -> std::result::Result<u16, String> {
    u16::try_from(number).map_err(|_| format!("{number} is not a port (1 to 65535), nor 0"))
}

fn protocol(number: i32) -> std::result::Result<Protocol, String> {
    Ok(match v1::Protocol::try_from(number) {
        Ok(v1::Protocol::Unknown) => Protocol::Unknown,
        Ok(v1::Protocol::Http) => Protocol::Http,
        Ok(v1::Protocol::Http2) => Protocol::Http2,
        Ok(v1::Protocol::Grpc) => Protocol::Grpc,
        Ok(v1::Protocol::Tcp) => Protocol::Tcp,
        Ok(v1::Protocol::Tls) => Protocol::Tls,
        Err(_) => return Err(unknown_number(number)),
    })
}

fn mtls_mode(number: i32) -> std::result::Result<MtlsMode, String> {
    Ok(match v1::MtlsMode::try_from(number) {
        Ok(v1::MtlsMode::Permissive) => MtlsMode::Permissive,
        Ok(v1::MtlsMode::Strict) => MtlsMode::Strict,
        Ok(v1::MtlsMode::MtlsDisable) => MtlsMode::Disable,
        Err(_) => return Err(unknown_number(number)),
    })
}

fn unknown_number(number: i32) -> String {
    format!("{number} is not a value that this version knows")
}

fn millis(ms: u64) -> Option<Duration> {
    (ms != 0).then(|| Duration::from_millis(ms))
}

fn millis_or(ms: u64, default: u64) -> Duration {
    Duration::from_millis(if ms == 0 { default } else { ms })
}

fn sorted(map: &std::collections::HashMap<String, String>) -> BTreeMap<String, String> {
    map.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn is_prime(number: u64) -> bool {
    number > 1 && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests;
