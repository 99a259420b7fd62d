//! The endpoint at a connection's original destination: for requests to unknown destinations, and to services without addresses
//! of their own (ServiceEntry NONE, PASSTHROUGH).
//!
//! It is one endpoint, but each request is under its own cluster's policy: clusters share no connections. The connections end
//! with the application's connection, since no other has this endpoint.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use weft_core::endpoint::Endpoint;

use crate::upstream::cluster::{ClusterView, Shared};
use crate::upstream::endpoints;

/// The endpoint, and the clusters that have connections to it; made when first needed.
#[derive(Default)]
pub struct Passthrough {
    endpoint: OnceLock<Arc<Endpoint>>,
    passthrough: OnceLock<Arc<ClusterView>>,
    /// As many at the most as there are clusters.
    used: Mutex<Vec<Arc<Shared>>>,
}

impl Passthrough {
    /// For a request to an unknown destination.
    pub(super) fn unknown(&self, to: SocketAddr) -> (Arc<ClusterView>, Arc<Endpoint>) {
        let cluster = self.passthrough.get_or_init(|| Arc::new(ClusterView::passthrough(u32::MAX))).clone();
        let endpoint = self.endpoint_of(&cluster, to);
        (cluster, endpoint)
    }

    /// For a request to a cluster.
    pub(super) fn endpoint_of(&self, cluster: &Arc<ClusterView>, to: SocketAddr) -> Arc<Endpoint> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if !used.iter().any(|known| Arc::ptr_eq(known, &cluster.shared)) {
            used.push(cluster.shared.clone());
        }
        self.endpoint.get_or_init(|| endpoints::passthrough(to)).clone()
    }
}

impl Drop for Passthrough {
    fn drop(&mut self) {
        let Some(endpoint) = self.endpoint.get() else { return };
        for shared in self.used.get_mut().unwrap_or_else(PoisonError::into_inner) {
            shared.pool.forget(endpoint.state.id());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One endpoint, and each request under its own cluster; the drop closes the connections in every pool.
    #[test]
    fn passthrough_requests_share_an_endpoint_and_no_connections() {
        let to = SocketAddr::from(([10, 0, 0, 1], 80));
        let (one, passthrough) = (Arc::new(ClusterView::passthrough(u32::MAX)), Passthrough::default());
        let endpoint = passthrough.endpoint_of(&one, to);
        let (unknown, same) = passthrough.unknown(to);
        assert!(!Arc::ptr_eq(&unknown.shared, &one.shared), "its connections are not those of the service");
        assert!(Arc::ptr_eq(&endpoint, &same) && Arc::ptr_eq(&passthrough.endpoint_of(&one, to), &endpoint));
        assert!(Arc::ptr_eq(&passthrough.unknown(to).0, &unknown));
        assert_eq!(passthrough.used.lock().unwrap().len(), 2, "each once");
    }
}
