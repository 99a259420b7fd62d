//! The policy of incoming traffic: mTLS modes, listeners of gateways, delivery to the application.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_proto::v1;

use crate::gateway::Server;
use crate::policy::{ConnectionPool, Protocol};

/// Treatment of incoming traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct Inbound {
    /// Mode of ports without a mode of their own.
    pub mtls: MtlsMode,
    /// Mode by port of the workload.
    pub port_mtls: BTreeMap<u16, MtlsMode>,
    /// Services that this workload is an instance of.
    pub services: Vec<InboundService>,
    /// `PeerAuthentication/<namespace>/<name>` that applies; empty: the default.
    pub policy: Arc<str>,
    /// Listening servers of a gateway.
    pub servers: Vec<Arc<Server>>,
    /// Roots (DER) of other trust domains, by domain: each proves identities of its own domain only.
    pub trust: BTreeMap<String, Vec<Vec<u8>>>,
    /// Whether calls to unknown destinations pass; `None`: the proxy's own setting.
    pub allow_any: Option<bool>,
    /// Ports that are served differently than registered.
    pub ingress: BTreeMap<u16, Ingress>,
    /// Connection settings of ports without a service.
    pub pool: Option<ConnectionPool>,
    /// Status of a sidecar that joins by a WorkloadGroup, for its health probe; not used on the request path.
    pub group: Option<v1::JoinedGroup>,
    /// Minimum time that the proxy keeps serving after SIGTERM; `None`: its own default.
    pub termination_drain: Option<Duration>,
    /// `region/zone/subzone` of the pod, for a sidecar without that setting; empty: unknown.
    pub locality: Arc<str>,
}

/// Treatment of a port.
#[derive(Debug, Clone, PartialEq)]
pub struct Ingress {
    /// Protocol of the port.
    pub protocol: Protocol,
    /// Delivery address. `None`: the original destination.
    pub to: Option<DeliverTo>,
    /// Replaces the connection settings of the port's service.
    pub pool: Option<ConnectionPool>,
}

/// Listening address of an application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliverTo {
    /// An address; an unspecified IP stands for the original destination's.
    Address(SocketAddr),
    /// A Unix socket: its absolute path, or `@` and a name in the abstract namespace.
    Unix(Arc<str>),
}

impl Inbound {
    /// The mTLS mode of a port of the workload.
    pub fn mode_for(&self, port: u16) -> MtlsMode {
        self.port_mtls.get(&port).copied().unwrap_or(self.mtls)
    }

    /// Whether a port accepts callers of other trust domains: only where an exported service is.
    pub fn allows_federated_peers(&self, port: u16) -> bool {
        self.services.iter().any(|service| service.port == port && service.exported)
    }

    /// Protocol of a port.
    pub fn protocol(&self, port: u16) -> Protocol {
        let of_service = || self.service(port).map_or(Protocol::Unknown, |service| service.protocol);
        self.ingress.get(&port).map_or_else(of_service, |ingress| ingress.protocol)
    }

    /// Connection settings of a port.
    pub fn pool(&self, port: u16) -> ConnectionPool {
        let of_port = self.ingress.get(&port).and_then(|ingress| ingress.pool.as_ref());
        let of_service = || self.service(port).map(|service| &service.pool);
        of_port.or_else(of_service).or(self.pool.as_ref()).cloned().unwrap_or_default()
    }

    /// Delivery address for traffic to `to`.
    pub fn destination(&self, to: SocketAddr) -> DeliverTo {
        match self.ingress.get(&to.port()).and_then(|ingress| ingress.to.as_ref()) {
            None => DeliverTo::Address(to),
            Some(DeliverTo::Address(other)) if other.ip().is_unspecified() => {
                DeliverTo::Address(SocketAddr::new(to.ip(), other.port()))
            }
            Some(other) => other.clone(),
        }
    }

    /// The service of the workload on this port; the first one if several share it.
    pub fn service(&self, port: u16) -> Option<&InboundService> {
        self.services.iter().find(|service| service.port == port)
    }
}

/// Whether plaintext and mTLS are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtlsMode {
    /// Both.
    Permissive,
    /// mTLS only.
    Strict,
    /// Plaintext only.
    Disable,
}

/// A service that this workload is an instance of.
#[derive(Debug, Clone, PartialEq)]
pub struct InboundService {
    /// Canonical name.
    pub host: Arc<str>,
    /// The service's namespace.
    pub namespace: Arc<str>,
    /// Port on this workload.
    pub port: u16,
    /// Protocol of the port.
    pub protocol: Protocol,
    /// Connection settings from the service's DestinationRule.
    pub pool: ConnectionPool,
    /// Whether callers of other trust domains may call it.
    pub exported: bool,
}
