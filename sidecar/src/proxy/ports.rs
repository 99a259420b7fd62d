//! The application's ports, and the peers that call them.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use weft_core::endpoint::{Endpoint, Target};
use weft_core::inbound::{DeliverTo, Inbound};
use weft_core::policy::Cluster;

use crate::upstream::cluster::ClusterView;
use crate::upstream::endpoints;

/// Local addresses that are delivered to, and peers known to speak mesh TLS, that are remembered.
const MAX_REMEMBERED: usize = 4096;

type Delivery = (Arc<ClusterView>, Arc<Endpoint>);

/// The ports, by address.
#[derive(Default)]
pub struct Ports {
    deliveries: Mutex<HashMap<SocketAddr, Delivery>>,
    mesh_peers: Mutex<HashSet<IpAddr>>,
}

impl Ports {
    /// Connections to the application at `to`, with the limits of the service there.
    pub fn delivery(&self, to: SocketAddr, inbound: Option<&Inbound>) -> Delivery {
        let pool = inbound.map(|inbound| inbound.pool(to.port())).unwrap_or_default();
        let destination = inbound.map_or(DeliverTo::Address(to), |inbound| inbound.destination(to));
        let is_there = |endpoint: &Endpoint| match (&endpoint.target, &destination) {
            (Target::Socket(known), DeliverTo::Address(address)) => known == address,
            (Target::Unix(known), DeliverTo::Unix(path)) => known == path,
            _ => false,
        };
        let mut known = self.deliveries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = known.get(&to)
            && held.0.config.pool == pool
            && is_there(&held.1)
        {
            return held.clone();
        }
        let host =
            inbound.and_then(|i| i.service(to.port())).map_or("InboundPassthroughCluster".into(), |s| s.host.clone());
        let config = Arc::new(Cluster::original_destination(&format!("inbound|{}||", to.port()), &host, pool));
        let previous = known.get(&to).cloned();
        let view = Arc::new(ClusterView::new(config, &[], &Arc::default(), previous.as_ref().map(|(view, _)| &**view)));
        let same = previous.filter(|(_, endpoint)| is_there(endpoint));
        let endpoint = match (same, &destination) {
            (Some((_, endpoint)), _) => endpoint,
            (None, DeliverTo::Address(address)) => endpoints::passthrough(*address),
            (None, DeliverTo::Unix(path)) => endpoints::unix_socket(path),
        };
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(to, (view.clone(), endpoint.clone()));
        (view, endpoint)
    }

    /// Clusters of all ports.
    pub fn clusters(&self) -> Vec<Arc<ClusterView>> {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner).values().map(|(c, _)| c.clone()).collect()
    }

    pub fn speaks_mesh(&self, peer: IpAddr) -> bool {
        self.mesh_peers.lock().unwrap_or_else(PoisonError::into_inner).contains(&peer)
    }

    pub fn remember_mesh(&self, peer: IpAddr) {
        let mut peers = self.mesh_peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= MAX_REMEMBERED {
            peers.clear();
        }
        peers.insert(peer);
    }
}
