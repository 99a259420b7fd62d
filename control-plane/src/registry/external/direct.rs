//! Registration of an external program's agent with the state, without a stream.
//!
//! The registrations are stored here, so that they can be repeated if the store did not answer or the lease has
//! expired.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use http::StatusCode;
use tokio::sync::Mutex;
use tokio::time::Instant;
use weft_agent::upstream::Upstream;
use weft_proto::v1::{Check, CheckUpdate, Instance};
use weft_registry_api::error::ApiError;

use super::lapses::Lapses;
use crate::discovery::Discovery;
use crate::registry;
use crate::state::{Mesh, Node, Refusal};

/// The connection of one node to the state.
pub(super) struct Direct {
    mesh: Arc<Mesh>,
    discovery: Arc<Discovery>,
    name: String,
    node: Node,
    /// 0: none yet.
    session: AtomicU64,
    registrations: Mutex<Registrations>,
    lapses: Arc<Lapses>,
    /// Whether registrations of before a restart are being restored: then a store that does not answer is no reason to
    /// drop them.
    pub(super) restoring: AtomicBool,
}

#[derive(Default)]
struct Registrations {
    /// The desired registrations.
    instances: BTreeMap<String, Instance>,
    /// Whether the mesh may lack some of them.
    behind: bool,
    /// Whether the mesh may have others.
    stray: bool,
}

impl Direct {
    pub(super) fn new(
        mesh: Arc<Mesh>,
        discovery: Arc<Discovery>,
        name: &str,
        namespace: &str,
        address: IpAddr,
        lapses: Arc<Lapses>,
    ) -> Direct {
        let node = Node { workload: name.to_owned(), ..Node::new(namespace, String::new(), address) };
        Direct {
            mesh,
            discovery,
            name: name.to_owned(),
            node,
            session: AtomicU64::new(0),
            registrations: Mutex::default(),
            lapses,
            restoring: AtomicBool::new(false),
        }
    }

    /// The session; a new one if none is alive.
    async fn session(&self, registrations: &mut Registrations) -> Result<u64, Refusal> {
        let session = self.session.load(Ordering::Relaxed);
        if session > 0 && self.mesh.renew(&self.name, session).await {
            return Ok(session);
        }
        let session = self.mesh.begin_session(&self.name, self.node.clone()).await?;
        self.session.store(session, Ordering::Relaxed);
        registrations.behind |= !registrations.instances.is_empty();
        Ok(session)
    }

    /// Registers everything again, if the mesh may lack some of it.
    async fn settle(&self, registrations: &mut Registrations) -> Result<(), Refusal> {
        let session = self.session(registrations).await?;
        if registrations.behind {
            for instance in registrations.instances.values() {
                self.mesh.register(&self.name, session, instance.clone()).await?;
            }
            registrations.behind = false;
        }
        // Not with each new session: the host may register with another control plane, too.
        if registrations.stray {
            let ids: Vec<String> = registrations.instances.keys().cloned().collect();
            self.mesh.keep_only(&self.name, session, &ids).await?;
            registrations.stray = false;
        }
        Ok(())
    }

    /// Renews the lease, and repeats missing registrations. False: there are no registrations.
    pub(super) async fn keep(&self) -> bool {
        // The holder of the lock may wait for the store for longer than the lease.
        self.mesh.heard(&self.name, self.session.load(Ordering::Relaxed));
        let Ok(mut registrations) = self.registrations.try_lock() else { return true };
        if registrations.instances.is_empty() && !registrations.stray {
            return false;
        }
        if let Err(e) = self.settle(&mut registrations).await {
            tracing::warn!(node = self.name, "external registration pending: {e}");
        }
        true
    }

    /// After a restart, removes registrations of this node that its file does not have.
    pub(super) async fn restored(&self) {
        self.restoring.store(false, Ordering::Relaxed);
        self.registrations.lock().await.stray = true;
        self.keep().await;
    }

    /// Removes all registrations.
    pub(super) async fn leave(&self) {
        let mut registrations = self.registrations.lock().await;
        registrations.instances.clear();
        registrations.stray = true;
        if let Err(e) = self.settle(&mut registrations).await {
            tracing::warn!(node = self.name, "external deregistration pending: {e}");
        }
    }

    async fn put(&self, instance: Instance) -> Result<(), ApiError> {
        registry::fits(&instance).map_err(ApiError::upstream)?;
        let mut registrations = self.registrations.lock().await;
        let registered = match self.session(&mut registrations).await {
            Ok(session) => self.mesh.register(&self.name, session, instance.clone()).await,
            Err(e) => Err(e),
        };
        match registered {
            Ok(()) => {}
            Err(e @ (Refusal::Store(_) | Refusal::SessionOver)) if self.restoring.load(Ordering::Relaxed) => {
                tracing::warn!(node = self.name, "the registration is repeated later: {e}");
                registrations.behind = true;
            }
            Err(e @ (Refusal::Store(_) | Refusal::SessionOver)) => {
                // The store may have accepted it nevertheless.
                (registrations.behind, registrations.stray) = (true, true);
                let text = format!("No cluster leader: {e}");
                return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, text));
            }
            Err(Refusal::Because(text)) => return Err(ApiError::upstream(text)),
            Err(Refusal::Exceeded(exceeded)) => return Err(ApiError::upstream(exceeded.0)),
        }
        registrations.instances.insert(instance.service_id.clone(), instance);
        Ok(())
    }

    async fn remove(&self, service_id: &str, wait: Duration) {
        let removed = {
            let mut registrations = self.registrations.lock().await;
            registrations.instances.remove(service_id);
            match self.session(&mut registrations).await {
                Ok(session) => self.mesh.deregister(&self.name, session, service_id).await,
                Err(e) => Err(e),
            }
            .inspect_err(|e| {
                registrations.stray = true;
                tracing::warn!(node = self.name, service_id, "not taken out of the mesh yet: {e}");
            })
        };
        if let (Ok(hosts), false) = (removed, wait.is_zero()) {
            // The number of acknowledgements is reported to a draining program.
            let _ = self.discovery.wait_current(&hosts, wait).await;
        }
    }

    async fn change(&self, check: Check, removed: bool) {
        let mut registrations = self.registrations.lock().await;
        let Some(instance) = registrations.instances.get_mut(&check.service_id) else { return };
        instance.checks.retain(|other| other.check_id != check.check_id);
        if !removed {
            instance.checks.push(check.clone());
        }
        let update = CheckUpdate { check: Some(check), removed };
        let changed = match self.session(&mut registrations).await {
            Ok(session) => self.mesh.update_check(&self.name, session, update).await,
            Err(e) => Err(e),
        };
        if let Err(e) = changed {
            tracing::warn!(node = self.name, "the change of a check is repeated later: {e}");
            registrations.behind = true;
        }
    }
}

impl Upstream for Direct {
    fn register(&self, instance: Instance) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(self.put(instance))
    }

    fn deregister<'a>(&'a self, service_id: &'a str, wait: Duration) -> BoxFuture<'a, ()> {
        Box::pin(self.remove(service_id, wait))
    }

    fn check(&self, check: Check, removed: bool) -> BoxFuture<'_, ()> {
        Box::pin(self.change(check, removed))
    }

    fn refused(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn may_lapse(&self) -> bool {
        self.lapses.may_lapse(Instant::now())
    }

    /// The token of each request is checked before the agent.
    fn may_register(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}
