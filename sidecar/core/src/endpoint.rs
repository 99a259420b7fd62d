//! Endpoints: as the registry gives them, and as one cluster sees them.
//!
//! What an endpoint is (`EndpointConfig`) comes anew with every snapshot; what is known of it from traffic
//! (`EndpointState`: requests in flight, ejection) is kept by address across snapshots, or each deployment would forget
//! which endpoints are bad and count requests that are still in flight as gone.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::identity::SpiffeId;
use crate::outlier::EjectionState;
use crate::policy::{Cluster, TargetPort};
use crate::pool::EndpointId;

/// An endpoint as registered. Shared by all clusters that it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointConfig {
    /// Where it is.
    pub address: Address,
    /// The port that it registered.
    pub port: u16,
    /// Further ports by name.
    pub ports: BTreeMap<String, u16>,
    /// Labels, by which subsets select.
    pub labels: BTreeMap<String, String>,
    /// Share of the traffic; at least 1.
    pub weight: u32,
    /// What its checks say.
    pub health: Health,
    /// Of the sidecar that owns the address; `None`: no sidecar, plaintext.
    pub identity: Option<SpiffeId>,
    /// Registered id, for logs.
    pub id: Arc<str>,
    /// Name of the workload, for metrics.
    pub workload: Arc<str>,
    /// Namespace of the workload, for metrics.
    pub namespace: Arc<str>,
    /// `region/zone/subzone`; may be empty.
    pub locality: Arc<str>,
    /// Names before a headless service's own that mean this endpoint alone, lower case.
    pub hostnames: Vec<Box<str>>,
    /// It is a gateway of another data centre: what is behind it, by subset.
    pub remote: Option<Arc<BTreeMap<String, Arc<Remote>>>>,
}

/// A service, or a subset of one, in another data centre.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Its name.
    pub datacenter: Arc<str>,
    /// Percent of the requests that go there; all of them while there is no usable endpoint here.
    pub share: u32,
    /// Of the instances; at least one.
    pub identities: Vec<SpiffeId>,
}

/// Where an endpoint is: an IP address, a name that the sidecar resolves when it dials, or a socket of its own machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An address.
    Ip(IpAddr),
    /// A name, lower case: whichever of its addresses it has when it is dialed.
    Name(Arc<str>),
    /// A name, lower case, of which every address is an endpoint: see [`resolved`].
    EachOf(Arc<str>),
    /// A Unix socket: the absolute path of its file, or `@` and a name in Linux's abstract namespace. Only policies give it.
    Unix(Arc<str>),
}

/// What an endpoint's checks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Used.
    Healthy,
    /// Not used.
    Unhealthy,
    /// Not used for new requests; it is going away.
    Draining,
    /// Its lease lapsed together with too many others: used.
    Unknown,
}

/// What to dial.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// An address.
    Socket(SocketAddr),
    /// A name to resolve, and a port.
    Name(Arc<str>, u16),
    /// The same, where a request gave the name: not any address will do.
    Asked(Arc<str>, u16),
    /// A Unix socket, as in [`Address::Unix`].
    Unix(Arc<str>),
}

/// An endpoint of one cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// As registered.
    pub config: Arc<EndpointConfig>,
    /// What to dial for this cluster.
    pub target: Target,
    /// `ip:port`, `[ip]:port`, `name:port` or the path of a Unix socket: what consistent hashing places it by, and its name in logs.
    pub key: Arc<str>,
    /// Kept across snapshots.
    pub state: Arc<EndpointState>,
    /// It is a gateway of another data centre: what is behind it for this cluster.
    pub remote: Option<Arc<Remote>>,
}

/// What traffic has shown of an endpoint of one cluster.
#[derive(Debug)]
pub struct EndpointState {
    id: EndpointId,
    in_flight: AtomicU32,
    /// When a balancer first could use it.
    usable_since: OnceLock<Instant>,
    /// Counters of outlier detection.
    pub ejection: EjectionState,
}

/// Counts a request as in flight until dropped.
#[derive(Debug)]
pub struct InFlight(Arc<EndpointState>);

impl Default for EndpointState {
    fn default() -> Self {
        // Names the endpoint's connections in the pool: unlike its address, an id is never used again.
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
    /// What its connections are kept under.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// Requests (for TCP: connections) in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// How long it has been known as usable, from the first time that this was asked.
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
    /// Takes new requests, as far as the registry knows. Ejection is another matter.
    pub fn is_eligible(&self) -> bool {
        matches!(self.config.health, Health::Healthy | Health::Unknown)
    }

    /// Ejected by outlier detection now.
    pub fn is_ejected(&self) -> bool {
        self.state.ejection.is_ejected()
    }

    /// Who may answer there: whoever does has to be one of them. None: it has no sidecar, plaintext.
    pub fn identities(&self) -> &[SpiffeId] {
        self.remote.as_ref().map_or(self.config.identity.as_slice(), |remote| &remote.identities)
    }

    /// Its IP address, where it is not a name.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.target {
            Target::Socket(address) => Some(address.ip()),
            _ => None,
        }
    }

    /// The same address, be it of this snapshot or another.
    pub fn is_same(&self, other: &Endpoint) -> bool {
        self.target == other.target
    }
}

/// The endpoints of a cluster, in the registry's order: those with its labels and its port, unhealthy and draining ones
/// too ([`crate::balance`] leaves them out). State is taken over from `previous`, the same cluster's of the snapshot before.
/// An address that comes twice is taken once.
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
            // Only by mutual TLS does a gateway know where to.
            Some(_) if !cluster.tls.is_of_mesh() || cluster.original_destination => continue,
            Some(subsets) => match subsets.get(&*cluster.subset) {
                None => continue,
                behind => behind.cloned(),
            },
        };
        let port = match config.address {
            _ if remote.is_some() => Some(config.port),
            // It has none, whichever the cluster means.
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
        let known = previous.get(&target);
        if cluster.outlier.is_none()
            && remote.is_none()
            && let Some(known) = known
        {
            // Ejections made under a policy that is gone must not last for ever.
            known.state.ejection.reset();
        }
        list.push(match known {
            Some(known) if known.config == *config => (*known).clone(),
            Some(known) => Arc::new(Endpoint {
                config: config.clone(),
                target,
                key: known.key.clone(),
                // Somebody else is there: what is open leads to who was there before, or says nothing of who it is.
                state: if known.config.identity == config.identity { known.state.clone() } else { Arc::default() },
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

/// Endpoints with each address of a name instead of the name. One that was never resolved stays, and is resolved when it is
/// dialed.
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
    let mut found = Vec::with_capacity(configs.len());
    for config in configs {
        match each(config) {
            None => found.push(config.clone()),
            Some(addresses) => {
                let at = |ip: &IpAddr| EndpointConfig { address: Address::Ip(*ip), ..(**config).clone() };
                found.extend(addresses.iter().map(|ip| Arc::new(at(ip))));
            }
        }
    }
    Cow::Owned(found)
}

/// The endpoint at an address, whatever its health. Endpoints of a headless service are at the service's port too, which
/// stands for the one that each has.
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

/// What an endpoint is called in logs and placed by, see [`Endpoint::key`].
pub fn key_of(target: &Target) -> Arc<str> {
    match target {
        Target::Socket(address) => address.to_string().into(),
        Target::Name(name, port) | Target::Asked(name, port) => format!("{name}:{port}").into(),
        Target::Unix(path) => path.clone(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
