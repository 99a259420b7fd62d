//! Endpoints: as registered, and as seen by one cluster.
//!
//! The registered configuration (`EndpointConfig`) is replaced with every snapshot; the state observed from traffic
//! (`EndpointState`: requests in flight, ejection) is kept by address across snapshots, or each deployment would reset
//! ejections and lose count of requests in flight.

pub mod ejection;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::identity::SpiffeId;
use crate::policy::{Cluster, TargetPort};
use crate::pool::EndpointId;
pub use ejection::EjectionState;

/// An endpoint as registered. Shared by all of its clusters.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointConfig {
    /// Its address.
    pub address: Address,
    /// The registered port.
    pub port: u16,
    /// Further ports by name.
    pub ports: BTreeMap<String, u16>,
    /// Labels for the selection by subsets.
    pub labels: BTreeMap<String, String>,
    /// Share of the traffic; at least 1.
    pub weight: u32,
    /// Status by its health checks.
    pub health: Health,
    /// Identity of the sidecar at the address; `None`: no sidecar, plaintext.
    pub identity: Option<SpiffeId>,
    /// Registered id, for logs.
    pub id: Arc<str>,
    /// Name of the workload, for metrics.
    pub workload: Arc<str>,
    /// Namespace of the workload, for metrics.
    pub namespace: Arc<str>,
    /// `region/zone/subzone`; may be empty.
    pub locality: Arc<str>,
    /// Hostnames below a headless service's name for this endpoint alone, lower case.
    pub hostnames: Vec<Box<str>>,
    /// Set for a gateway of another data centre: the remote instances, by subset.
    pub remote: Option<Arc<BTreeMap<String, Arc<Remote>>>>,
}

/// A service, or a subset of one, in another data centre.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Name of the data centre.
    pub datacenter: Arc<str>,
    /// Percent of the requests for it; it gets all while there is no usable local endpoint.
    pub share: u32,
    /// Identities of the remote instances; at least one.
    pub identities: Vec<SpiffeId>,
}

/// Location of an endpoint: an IP address, a name that the sidecar resolves when it dials, or a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An address.
    Ip(IpAddr),
    /// A name, lower case, dialed at any one of its addresses.
    Name(Arc<str>),
    /// A name, lower case, each of whose addresses is an endpoint: see [`resolved`].
    EachOf(Arc<str>),
    /// A Unix socket: the absolute path of its file, or `@` and a name in Linux's abstract namespace. Set by policies
    /// only.
    Unix(Arc<str>),
}

/// Status of an endpoint by its health checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Used.
    Healthy,
    /// Not used.
    Unhealthy,
    /// Not used for new requests; it is shutting down.
    Draining,
    /// Its lease expired together with too many others: used.
    Unknown,
}

/// The address to dial.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// An address.
    Socket(SocketAddr),
    /// A name to resolve, and a port.
    Name(Arc<str>, u16),
    /// A host named by a request (DYNAMIC_DNS) and a port: addresses within the mesh or the machine are refused.
    RequestHost(Arc<str>, u16),
    /// A Unix socket, as in [`Address::Unix`].
    Unix(Arc<str>),
}

/// An endpoint of one cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// As registered.
    pub config: Arc<EndpointConfig>,
    /// The address to dial for this cluster.
    pub target: Target,
    /// `ip:port`, `[ip]:port`, `name:port` or the path of a Unix socket: the input of consistent hashing, and the
    /// endpoint's name in logs.
    pub key: Arc<str>,
    /// Kept across snapshots.
    pub state: Arc<EndpointState>,
    /// Set for a gateway of another data centre: the remote instances for this cluster.
    pub remote: Option<Arc<Remote>>,
}

/// State of an endpoint of one cluster, observed from traffic.
#[derive(Debug)]
pub struct EndpointState {
    id: EndpointId,
    in_flight: AtomicU32,
    /// Time at which a balancer first saw it usable.
    usable_since: OnceLock<Instant>,
    /// Counters of outlier detection.
    pub ejection: EjectionState,
}

/// Counts a request as in flight until dropped.
#[derive(Debug)]
pub struct InFlight(Arc<EndpointState>);

impl Default for EndpointState {
    fn default() -> Self {
        // The id identifies the endpoint's connections in the pool: unlike an address, it is never reused.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        EndpointState {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            in_flight: AtomicU32::new(0),
            usable_since: OnceLock::new(),
            ejection: EjectionState::default(),
        }
    }
}

impl EndpointState {
    /// Key of its connections in the pool.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// Requests (for TCP: connections) in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Time since it was first seen usable, which is the first call of this function.
    pub fn usable_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.usable_since.get_or_init(|| now))
    }

    /// Counts one more until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Endpoint {
    /// Whether the registry allows new requests to it. Ejection is separate.
    pub fn is_eligible(&self) -> bool {
        matches!(self.config.health, Health::Healthy | Health::Unknown)
    }

    /// Whether outlier detection ejects it now.
    pub fn is_ejected(&self) -> bool {
        self.state.ejection.is_ejected()
    }

    /// Accepted peer identities; the peer must prove one of them. Empty: no sidecar, plaintext.
    pub fn identities(&self) -> &[SpiffeId] {
        self.remote.as_ref().map_or(self.config.identity.as_slice(), |remote| &remote.identities)
    }

    /// Its IP address; `None` for a name or a Unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.target {
            Target::Socket(address) => Some(address.ip()),
            _ => None,
        }
    }

    /// Whether both are the same address, also across snapshots.
    pub fn is_same(&self, other: &Endpoint) -> bool {
        self.target == other.target
    }
}

/// The endpoints of a cluster in the registry's order: those with its labels and its port, including unhealthy and
/// draining ones ([`crate::balance`] leaves those out). State is taken over from `previous`, the same cluster in the
/// preceding snapshot. Duplicate addresses are dropped.
pub fn for_cluster(
    cluster: &Cluster,
    configs: &[Arc<EndpointConfig>],
    previous: &[Arc<Endpoint>],
) -> Vec<Arc<Endpoint>> {
    let previous: HashMap<&Target, &Arc<Endpoint>> = previous.iter().map(|e| (&e.target, e)).collect();
    let mut seen = HashSet::with_capacity(configs.len());
    let mut list = Vec::with_capacity(configs.len());
    for config in configs {
        let has = |(name, value): (&String, &String)| config.labels.get(name) == Some(value);
        let remote = match &config.remote {
            None => None,
            // A gateway learns the destination from the server name of mutual TLS only.
            Some(_) if !cluster.tls.is_of_mesh() || cluster.original_destination => continue,
            Some(subsets) => match subsets.get(&*cluster.subset) {
                None => continue,
                behind => behind.cloned(),
            },
        };
        let port = match config.address {
            _ if remote.is_some() => Some(config.port),
            // A Unix socket has no port.
            Address::Unix(_) => Some(0),
            _ => dial_port(&cluster.target_port, config),
        };
        let Some(port) = port else { continue };
        if remote.is_none() && !cluster.labels.iter().all(has) {
            continue;
        }
        let target = match &config.address {
            Address::Ip(ip) => Target::Socket(SocketAddr::new(*ip, port)),
            Address::Name(name) | Address::EachOf(name) => Target::Name(name.clone(), port),
            Address::Unix(path) => Target::Unix(path.clone()),
        };
        if !seen.insert(target.clone()) {
            continue;
        }
        let before = previous.get(&target);
        if cluster.outlier.is_none()
            && remote.is_none()
            && let Some(before) = before
        {
            // Without outlier detection nothing would end earlier ejections.
            before.state.ejection.reset();
        }
        list.push(match before {
            Some(before) if before.config == *config => (*before).clone(),
            Some(before) => Arc::new(Endpoint {
                config: config.clone(),
                target,
                key: before.key.clone(),
                // Another workload has taken over the address: open connections and counters belong to its predecessor.
                state: if before.config.identity == config.identity { before.state.clone() } else { Arc::default() },
                remote,
            }),
            None => {
                let key = key_of(&target);
                Arc::new(Endpoint { config: config.clone(), target, key, state: Arc::default(), remote })
            }
        });
    }
    list
}

/// Replaces each resolved name by one endpoint per address. A name that was never resolved stays, and is resolved when
/// it is dialed.
pub fn resolved<'a>(
    configs: &'a [Arc<EndpointConfig>],
    addresses: &HashMap<Arc<str>, Vec<IpAddr>>,
) -> Cow<'a, [Arc<EndpointConfig>]> {
    let each = |config: &Arc<EndpointConfig>| match &config.address {
        Address::EachOf(name) => addresses.get(name),
        _ => None,
    };
    if !configs.iter().any(|config| each(config).is_some()) {
        return Cow::Borrowed(configs);
    }
    let mut expanded = Vec::with_capacity(configs.len());
    for config in configs {
        match each(config) {
            None => expanded.push(config.clone()),
            Some(addresses) => {
                let at = |ip: &IpAddr| EndpointConfig { address: Address::Ip(*ip), ..(**config).clone() };
                expanded.extend(addresses.iter().map(|ip| Arc::new(at(ip))));
            }
        }
    }
    Cow::Owned(expanded)
}

/// The endpoint at an address, whatever its health. For a headless service the service's port matches as well as the
/// endpoint's own.
pub fn find<'a>(cluster: &Cluster, endpoints: &'a [Arc<Endpoint>], address: SocketAddr) -> Option<&'a Arc<Endpoint>> {
    let exact = endpoints.iter().find(|endpoint| endpoint.target == Target::Socket(address));
    let is_there = |endpoint: &&Arc<Endpoint>| endpoint.ip() == Some(address.ip());
    let by_port = || endpoints.iter().find(is_there).filter(|_| cluster.headless && cluster.port == address.port());
    exact.or_else(by_port)
}

fn dial_port(target: &TargetPort, config: &EndpointConfig) -> Option<u16> {
    match target {
        TargetPort::Registered => Some(config.port),
        TargetPort::Number(number) => Some(*number),
        TargetPort::Named { name, otherwise } => config.ports.get(&**name).copied().or(*otherwise),
    }
}

/// Key of an endpoint, see [`Endpoint::key`].
pub fn key_of(target: &Target) -> Arc<str> {
    match target {
        Target::Socket(address) => address.to_string().into(),
        Target::Name(name, port) | Target::RequestHost(name, port) => format!("{name}:{port}").into(),
        Target::Unix(path) => path.clone(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
