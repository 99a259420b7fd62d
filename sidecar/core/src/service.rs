//! Services: hosts of the mesh with their ports, clusters and routes.

use std::net::IpAddr;
use std::sync::Arc;

use crate::policy::{Cluster, Protocol};
use crate::route::{ConnectionRoutes, RouteTable};

/// One host of the mesh: the configuration for calls to it, without endpoints.
#[derive(Debug, Clone)]
pub struct Service {
    /// Canonical name, `order-service.default.svc.cluster.local` or a ServiceEntry's host. Lower case.
    pub host: Arc<str>,
    /// The service's namespace.
    pub namespace: Arc<str>,
    /// Virtual IPs.
    pub addresses: Vec<IpAddr>,
    /// Authorities of this service for this client: lower case, without port and trailing dot.
    pub names: Vec<Arc<str>>,
    /// Ascending by number.
    pub ports: Vec<Port>,
    /// Clusters, referred to by index from routes and ports.
    pub clusters: Vec<Arc<Cluster>>,
    /// Outside the mesh.
    pub external: bool,
    /// Whether other data centres may call it.
    pub exported: bool,
    /// Its routes are for requests to its addresses, whatever host they name.
    pub routed_by_address: bool,
    /// Set for an alias of a host outside the mesh (ExternalName): its only address is that host.
    pub external_name: Option<Arc<str>>,
}

impl Service {
    /// The port with this number, otherwise the logical port 0, which matches any.
    pub fn port(&self, number: u16) -> Option<&Port> {
        let exact = self.ports.iter().find(|port| port.number == number);
        exact.or_else(|| self.ports.iter().find(|port| port.number == 0))
    }

    /// The cluster of the service itself if it is headless: that of any port, since all have the same endpoints.
    pub fn headless(&self) -> Option<usize> {
        self.clusters
            .iter()
            .position(|cluster| cluster.headless && cluster.subset.is_empty() && cluster.host == self.host)
    }

    /// A cluster by the index in ports and routes.
    ///
    /// # Panics
    /// Never for an index of this service: indices are checked by the compiler.
    pub fn cluster(&self, index: usize) -> &Arc<Cluster> {
        &self.clusters[index]
    }
}

/// A port of a service.
#[derive(Debug, Clone)]
pub struct Port {
    /// 0: any.
    pub number: u16,
    /// As declared; may be empty.
    pub name: Arc<str>,
    /// Protocol of the port.
    pub protocol: Protocol,
    /// Index of the cluster that serves this port by default, and for TCP.
    pub cluster: usize,
    /// Never empty: a port without routes has one default route to `cluster`, with Istio's default retries.
    pub routes: RouteTable,
    /// Routes of TCP and TLS connections.
    pub connection_routes: ConnectionRoutes,
}
