//! Sidecars that come, stay and go: their sessions and leases.

use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_proto::v1;

use super::stored::health_of;
use super::{Mesh, Node, unix_now};
use crate::world::Instance;

/// A larger share of leases lapsing within one lease period is our fault, not theirs: none is removed.
const SELF_PRESERVATION: f64 = 0.15;

impl Mesh {
    /// Begins a session of `node`; one that the node had before is superseded.
    ///
    /// # Errors
    /// When the node's name or its address belongs to a live sidecar of another identity.
    pub fn begin_session(&self, name: &str, mut node: Node) -> Result<u64, String> {
        let mut state = self.lock();
        if let Some(held) = state.nodes.get(name)
            && held.identity != node.identity
            && held.session != 0
        {
            return Err(format!("the node name {name} is in use by {}", held.identity));
        }
        let other = |(n, held): &(&String, &Node)| {
            held.address == node.address && !held.address.is_loopback() && n.as_str() != name && held.session != 0
        };
        if let Some((other, held)) = state.nodes.iter().find(other)
            && held.identity != node.identity
        {
            return Err(format!("the address {} belongs to {} ({other})", node.address, held.identity));
        }
        node.session = state.next_session;
        node.lease_ends = Instant::now() + self.lease;
        state.next_session += 1;
        let session = node.session;
        state.nodes.insert(name.to_owned(), node);
        Ok(session)
    }

    /// The session gave a sign of life, or ended (then its lease still runs).
    pub fn renew(&self, name: &str, session: u64) {
        let mut state = self.lock();
        let Some(node) = state.nodes.get_mut(name).filter(|n| n.session == session) else { return };
        node.lease_ends = Instant::now() + self.lease;
        if !std::mem::take(&mut node.unknown) {
            return;
        }
        // One that was marked unknown is known again.
        let (checks, namespace) = (node.checks.clone(), node.namespace.clone());
        let revived: Vec<Instance> = state
            .world
            .instances_of_node(&namespace, name)
            .filter(|i| i.health == v1::Health::Unknown)
            .map(|i| Instance { health: health_of(&i.checks, &checks), ..(**i).clone() })
            .collect();
        for instance in revived {
            let changed = state.world.upsert(instance, unix_now());
            self.publish(&mut state, changed);
        }
    }

    /// Removes the instances of sidecars whose lease has ended, for ever. To be spawned.
    pub async fn reap(self: Arc<Self>) {
        let mut tick = tokio::time::interval((self.lease / 10).max(Duration::from_millis(100)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Err(e) = self.reap_once(Instant::now()).await {
                tracing::error!("cannot remove instances whose lease has ended: {e}");
            }
        }
    }

    pub(super) async fn reap_once(&self, now: Instant) -> Result<(), String> {
        let (lapsed, total) = {
            let state = self.lock();
            let lapsed: Vec<String> =
                state.nodes.iter().filter(|(_, n)| n.lease_ends <= now).map(|(name, _)| name.clone()).collect();
            (lapsed, state.nodes.len())
        };
        if lapsed.is_empty() {
            return Ok(());
        }
        // One alone is a death, whatever share of a small mesh it is.
        if lapsed.len() > 1 && lapsed.len() as f64 > total as f64 * SELF_PRESERVATION {
            self.mark_unknown(&lapsed);
            return Ok(());
        }
        for name in lapsed {
            // A new session may have come meanwhile.
            let still = self.lock().nodes.get(&name).is_some_and(|n| n.lease_ends <= now);
            if still {
                tracing::warn!(node = name, "its lease has ended: removing its instances");
                self.deregister(&name, "").await?;
                self.lock().nodes.remove(&name);
            }
        }
        Ok(())
    }

    fn mark_unknown(&self, nodes: &[String]) {
        let mut state = self.lock();
        for node in nodes {
            if let Some(node) = state.nodes.get_mut(node) {
                node.unknown = true;
            }
        }
        let instances: Vec<Instance> = state
            .world
            .instances()
            .filter(|i| nodes.contains(&i.node) && i.health != v1::Health::Unknown)
            .map(|i| (**i).clone())
            .collect();
        if !instances.is_empty() {
            tracing::warn!(
                sidecars = nodes.len(),
                "many leases ended at once: their instances are kept and marked unknown"
            );
        }
        for instance in instances {
            let changed = state.world.upsert(Instance { health: v1::Health::Unknown, ..instance }, unix_now());
            self.publish(&mut state, changed);
        }
    }
}
