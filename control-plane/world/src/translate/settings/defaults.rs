//! Defaults of the mesh. They apply below DestinationRules, routes and Sidecars, and above the built-in defaults of the
//! sidecar.

use weft_proto::v1;

use crate::translate::rules::Decision;
use crate::world::World;
use weft_policy::{ClientTls, Document, MeshConfig};

/// The defaults of one world.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Defaults<'a>(Option<(&'a Document, &'a MeshConfig)>);

impl<'a> Defaults<'a> {
    pub(crate) fn of(world: &'a World) -> Self {
        Defaults(world.policies().mesh())
    }

    /// Fills the settings that rules left open for a port with `protocol`. Blocks are taken as a whole, as with rules;
    /// the mesh's single fields apply to whichever block is used.
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
        // On a port with protocol sniffing the application may not support HTTP/2.
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
            // A response that a limit refuses names both: either may have set it.
            let separator = if decided.policy.is_empty() { "" } else { "+" };
            decided.policy = format!("{}{separator}{}", decided.policy, document.reference());
        }
    }

    /// A connection pool with the mesh's single fields.
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

    /// For requests whose route has no retry policy.
    pub(crate) fn retry(&self) -> Option<&'a v1::RetryPolicy> {
        self.0.and_then(|(_, mesh)| mesh.retry.as_ref())
    }

    /// Minimum time that a proxy stays after SIGTERM, milliseconds.
    pub(crate) fn termination_drain_ms(&self) -> Option<u64> {
        self.0.and_then(|(_, mesh)| mesh.termination_drain_ms)
    }

    /// For unknown destinations.
    pub(crate) fn outbound(&self) -> v1::OutboundPolicy {
        self.0.map(|(_, mesh)| mesh.outbound).unwrap_or_default()
    }
}
