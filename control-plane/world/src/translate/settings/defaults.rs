//! Defaults of the mesh. They apply below DestinationRules, routes and Sidecars, and above the built-in defaults of the
//! sidecar.

use weft_proto::v1;

use crate::translate::rules::Decision;
use crate::world::World;
use weft_policy::{ClientTls, Document, MeshConfig};

/// Those of one world.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Defaults<'a>(Option<(&'a Document, &'a MeshConfig)>);

impl<'a> Defaults<'a> {
    pub(crate) fn of(world: &'a World) -> Self {
        Defaults(world.policies().mesh())
    }

    /// Fills what rules left open of a port that speaks `protocol`. Blocks are taken as a whole, as rules have them; what
    /// the mesh says of single fields is for whichever block it comes to be.
    pub(crate) fn fill(&self, decided: &mut Decision, protocol: v1::Protocol) {
        let Some((document, mesh)) = self.0 else { return };
        let settings = &mut decided.settings;
        let mut filled = false;
        if settings.connection_pool.is_none() {
            settings.connection_pool = mesh.connection_pool;
            filled |= mesh.connection_pool.is_some();
        }
        if settings.outlier_detection.is_none() {
            settings.outlier_detection.clone_from(&mesh.outlier_detection);
            filled |= mesh.outlier_detection.is_some();
        }
        if let Some(locality) = &mesh.locality {
            let balancer = settings.load_balancer.get_or_insert_default();
            balancer.locality.get_or_insert_with(|| locality.clone());
        }
        settings.connection_pool = self.pool(settings.connection_pool);
        // Of a port whose protocol is sniffed the application may know no HTTP/2.
        if mesh.h2_upgrade == v1::H2Upgrade::Upgrade && protocol == v1::Protocol::Http {
            let pool = settings.connection_pool.get_or_insert_default();
            if pool.h2_upgrade() == v1::H2Upgrade::H2Default {
                pool.set_h2_upgrade(v1::H2Upgrade::Upgrade);
            }
        }
        if mesh.no_auto_mtls && settings.tls.is_none() {
            settings.tls = Some(ClientTls { mode: v1::Tls::Disable, origination: None });
        }
        if filled {
            // Who is refused by a limit is told both: either may have it.
            let separator = if decided.policy.is_empty() { "" } else { "+" };
            decided.policy = format!("{}{separator}{}", decided.policy, document.reference());
        }
    }

    /// A connection pool with what the mesh says of single fields.
    pub(crate) fn pool(&self, pool: Option<v1::ConnectionPool>) -> Option<v1::ConnectionPool> {
        let Some((_, mesh)) = self.0 else { return pool };
        if mesh.connect_timeout_ms == 0 && mesh.tcp_keepalive.is_none() {
            return pool;
        }
        let mut pool = pool.unwrap_or_default();
        if pool.connect_timeout_ms == 0 {
            pool.connect_timeout_ms = mesh.connect_timeout_ms;
        }
        pool.tcp_keepalive = pool.tcp_keepalive.or(mesh.tcp_keepalive);
        Some(pool)
    }

    /// Of requests whose route says nothing of retries.
    pub(crate) fn retry(&self) -> Option<&'a v1::RetryPolicy> {
        self.0.and_then(|(_, mesh)| mesh.retry.as_ref())
    }

    /// Shortest stay of a proxy after SIGTERM, milliseconds.
    pub(crate) fn termination_drain_ms(&self) -> Option<u64> {
        self.0.and_then(|(_, mesh)| mesh.termination_drain_ms)
    }

    /// Of destinations that the mesh does not know.
    pub(crate) fn outbound(&self) -> v1::OutboundPolicy {
        self.0.map(|(_, mesh)| mesh.outbound).unwrap_or_default()
    }
}
