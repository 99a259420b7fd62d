//! Compilation of wire messages to policy: the only entry, and the only place where invalid configuration is detected.
//!
//! The sidecar compiles the messages that it receives and rejects invalid ones (NACK); the control plane runs the same
//! functions before it publishes a policy, so that its author sees the error. An error names the field and the problem.

mod cluster;
mod connection;
mod gateway;
mod locality;
mod matching;
mod route;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use weft_proto::v1;

use crate::endpoint::{Address, EndpointConfig, Health, Remote};
use crate::identity::{IdentityError, SpiffeId};
use crate::inbound::*;
use crate::names::normalise;
use crate::policy::*;
use crate::service::*;
pub use gateway::gateway_servers;
use gateway::servers;

/// An invalid field of a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct CompileError {
    /// Path of the field in the message, for example `ports[0].routes[2].matches[0].uri.regex`.
    pub field: String,
    /// The problem and, where it helps, the allowed values.
    pub problem: String,
}

type Result<T> = std::result::Result<T, CompileError>;

fn error<T>(field: impl fmt::Display, problem: impl Into<String>) -> Result<T> {
    Err(CompileError { field: field.to_string(), problem: problem.into() })
}

/// Prefixes the field of an error with the name of the surrounding field.
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

/// Compiles a service with its ports, routes and clusters.
pub fn service(message: &v1::Service) -> Result<Service> {
    let mut clusters = Vec::with_capacity(message.clusters.len());
    for (i, item) in message.clusters.iter().enumerate() {
        clusters.push(Arc::new(cluster::cluster(item).at(format_args!("clusters[{i}]"))?));
    }
    let mut ports = Vec::with_capacity(message.ports.len());
    for (i, item) in message.ports.iter().enumerate() {
        ports.push(port(item, &clusters).at(format_args!("ports[{i}]"))?);
    }
    ports.sort_by_key(|port| port.number);
    if let Some(pair) = ports.windows(2).find(|pair| pair[0].number == pair[1].number) {
        return error("ports", format!("port {} is defined twice", pair[0].number));
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
        routed_by_address: message.routed_by_address,
        external_name: match message.external_name.as_str() {
            "" => None,
            name => Some(host_name(name).at("external_name")?),
        },
    })
}

/// Compiles the addresses of a host. Each is shared, so that the clusters with this endpoint do not copy it.
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

/// The gateways of another data centre. A subset without identities cannot be called there and is dropped.
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
        if gateway.address.starts_with(UNIX_PREFIX) {
            return error(
                format_args!("gateways[{i}].address"),
                "the gateway of another data centre cannot be a Unix socket",
            );
        }
        let config = endpoint(&place).at(format_args!("gateways[{i}]"))?;
        gateways.push(Arc::new(EndpointConfig { remote: Some(subsets.clone()), ..config }));
    }
    Ok(gateways)
}

/// Compiles the treatment of incoming traffic.
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
        allow_any: match v1::OutboundPolicy::try_from(message.outbound_policy) {
            Ok(v1::OutboundPolicy::OutboundUnset) => None,
            Ok(v1::OutboundPolicy::AllowAny) => Some(true),
            Ok(v1::OutboundPolicy::RegistryOnly) => Some(false),
            Err(_) => return error("outbound_policy", unknown_number(message.outbound_policy)),
        },
        ingress: ingress(&message.ingress)?,
        pool: pool(message.connection_pool.as_ref()).at("connection_pool")?,
        group: message.group.clone(),
        termination_drain: message.termination_drain_ms.map(Duration::from_millis),
        locality: message.locality.as_str().into(),
    })
}

fn pool(message: Option<&v1::ConnectionPool>) -> Result<Option<ConnectionPool>> {
    message.map(|message| cluster::connection_pool(Some(message))).transpose()
}

fn ingress(messages: &[v1::Ingress]) -> Result<BTreeMap<u16, Ingress>> {
    let mut compiled = BTreeMap::new();
    for (i, message) in messages.iter().enumerate() {
        let at = format_args!("ingress[{i}]").to_string();
        let to = match message.deliver_to.as_str() {
            "" => None,
            text => Some(deliver_to(text).at("deliver_to").at(&at)?),
        };
        let port = port_number(message.port).at("port").at(&at)?;
        let protocol = protocol(message.protocol).at("protocol").at(&at)?;
        let pool = pool(message.connection_pool.as_ref()).at("connection_pool").at(&at)?;
        compiled.insert(port, Ingress { protocol, to, pool });
    }
    Ok(compiled)
}

fn deliver_to(text: &str) -> std::result::Result<DeliverTo, String> {
    match text.strip_prefix(UNIX_PREFIX) {
        Some(path) => unix_socket(path).map(DeliverTo::Unix),
        None => text.parse().map(DeliverTo::Address).map_err(|_| format!("{text:?} is not an IP address with a port")),
    }
}

/// Prefix of the address of a Unix socket.
const UNIX_PREFIX: &str = "unix://";

/// The path of a Unix socket, or `@` and its name in the abstract namespace.
fn unix_socket(path: &str) -> std::result::Result<Arc<str>, String> {
    /// The size of `sun_path` in Linux, without the terminator (unix(7)).
    const MOST: usize = 107;
    let is_named = match path.strip_prefix('@') {
        Some(name) => !name.is_empty(),
        None => path.starts_with('/') && !path.ends_with('/'),
    };
    if !is_named || path.len() > MOST || path.contains(char::is_control) {
        return Err(format!(
            "{path:?} is not the absolute path of a Unix socket, nor `@` and a name, of {MOST} bytes at most"
        ));
    }
    Ok(path.into())
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
            return error(format_args!("trust[{i}].trust_domain"), format!("{domain} is defined twice"));
        }
    }
    Ok(trust)
}

fn inbound_service(message: &v1::InboundService) -> Result<InboundService> {
    Ok(InboundService {
        host: host_name(&message.host).at("host")?,
        namespace: message.namespace.as_str().into(),
        port: port_number(message.port).at("port")?,
        protocol: protocol(message.protocol).at("protocol")?,
        pool: cluster::connection_pool(message.connection_pool.as_ref()).at("connection_pool")?,
        exported: message.exported,
    })
}

fn endpoint(message: &v1::Endpoint) -> Result<EndpointConfig> {
    let unix = message.address.strip_prefix(UNIX_PREFIX).map(unix_socket).transpose().at("address")?;
    let is_unix = unix.is_some();
    let address = match message.address.parse() {
        Ok(ip) => Address::Ip(ip),
        Err(_) if is_unix => Address::Unix(unix.unwrap_or_default()),
        Err(_) if message.every_address => Address::EachOf(host_name(&message.address).at("address")?),
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
        port: if is_unix { 0 } else { port_number(message.port).at("port")? },
        ports,
        labels: sorted(&message.labels),
        weight: message.weight.max(1),
        health,
        identity,
        id: message.id.as_str().into(),
        workload: message.workload.as_str().into(),
        namespace: message.namespace.as_str().into(),
        locality: message.locality.as_str().into(),
        hostnames: message.hostnames.iter().map(|name| name.to_ascii_lowercase().into()).collect(),
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
        routes: route::table(message, cluster, clusters)?,
        connection_routes: connection::table(&message.connection_routes, clusters)?,
    })
}

fn cluster_index(index: u32, clusters: &[Arc<Cluster>]) -> std::result::Result<usize, String> {
    let position = usize::try_from(index).ok().filter(|index| *index < clusters.len());
    position.ok_or_else(|| format!("refers to cluster {index} of {}", clusters.len()))
}

/// A host; at gateways also the key of one, which holds the names of the Gateway and a listener too.
fn host_name(text: &str) -> std::result::Result<Arc<str>, String> {
    let most = if text.starts_with("gateway:") { 1024 } else { 255 };
    let is_host_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'*' | b':');
    if text.is_empty() || text.len() > most || !text.bytes().all(is_host_byte) {
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

#[cfg(test)]
mod tests;
