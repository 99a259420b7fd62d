//! Sidecars that connect, stay and leave: their sessions and leases.
//!
//! A record bound to the lease of the control plane that a node is connected to marks the node as alive. Heartbeats of
//! a sidecar are counted here and not written; when they stop, its control plane removes the record, and when a control
//! plane fails, the store does, unless its sidecars have connected to another by then. Any control plane may decide to
//! remove the registrations of such a node, and the store lets only one do it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use prost::Message;
use tokio::time::Instant;
use weft_proto::v1::{self, StoredAlive, StoredNode};
use weft_registry_api::registration::digest;

use super::records::registration_key;
use super::usage::account;
use super::{LocalSession, Mesh, Node, RETRY, Refusal, State};
use crate::store::{self, Condition, MAX_OPS, Op, Table};
use weft_world::Changed;

/// If more than this share of leases lapses within one lease period, the control plane or the network is at fault: none
/// is removed.
const SELF_PRESERVATION: f64 = 0.15;
/// Attempts of a transaction that conflicts with others.
const TRIES: usize = 10;

impl Mesh {
    /// Begins a session of `node`; an earlier one of the node, here or elsewhere, is superseded.
    ///
    /// # Errors
    /// If the node's name or its address belongs to a live sidecar of another identity, or the store refuses.
    pub async fn begin_session(&self, name: &str, node: Node) -> Result<u64, Refusal> {
        for _ in 0..TRIES {
            let (session, condition, left) = {
                let mut state = self.lock();
                // A node whose lease expired with many others is kept: it may return at any moment.
                let lives = |existing: &Node| {
                    (existing.alive.is_some() || existing.unknown) && existing.identity != node.identity
                };
                let existing = state.nodes.get(name);
                if let Some(existing) = existing.filter(|existing| lives(existing)) {
                    return Err(format!("the node name {name} is in use by {}", existing.identity).into());
                }
                if let Some(first) =
                    existing.filter(|existing| self.is_connected_elsewhere(&state, name, existing, &node))
                {
                    return Err(format!(
                        "the node {name} of {} is connected from {}, and this sidecar comes from {}: two have one data folder (a \
                         copied machine?); give one of them an empty folder (--data-dir), where it creates a name of its own",
                        node.identity, first.address, node.address
                    )
                    .into());
                }
                // A node without an identity is not authenticated, and is replaced.
                let owns = |existing: &Node| {
                    !existing.address.is_loopback() && !existing.identity.is_empty() && lives(existing)
                };
                if let Some((other, existing)) =
                    state.nodes.at(node.address).find(|(n, existing)| *n != name && owns(existing))
                {
                    return Err(
                        format!("the address {} belongs to {} ({other})", node.address, existing.identity).into()
                    );
                }
                let modified = existing.and_then(|existing| existing.alive.as_ref()).map_or(0, |alive| alive.modified);
                // Registrations under the name in another namespace would not be found under this one any more.
                let moved = existing.filter(|existing| existing.namespace != node.namespace);
                let left = moved.map(|existing| {
                    let all = state.world.registered_of_node(&existing.namespace, name);
                    all.map(|left| Op::delete(Table::Registrations, registration_key(&left.key()))).collect::<Vec<_>>()
                });
                let session = state.next_session;
                state.next_session += 1;
                (session, Condition::unchanged(Table::Alive, name, modified), left.unwrap_or_default())
            };
            if !self.write_in_parts(&condition, left).await? {
                tokio::time::sleep(RETRY / 10).await;
                continue;
            }
            let record = stored(&node).encode_to_vec();
            self.lock().usage.admit(Table::Nodes, name, &account(&node.identity, &node.namespace), record.len())?;
            let ops = vec![Op::put(Table::Nodes, name, record), self.alive(name, session)];
            // Set before the write: the watch may be faster than the answer.
            let ends = Instant::now() + self.lease;
            self.lock().sessions.insert(
                name.to_owned(),
                LocalSession {
                    session,
                    ends,
                    connected: true,
                    ports: BTreeSet::new(),
                    ejected: Vec::new(),
                    clock_ahead_ms: 0,
                },
            );
            match self.write(vec![condition], ops).await {
                Ok(true) => {
                    self.take_over(&node).await?;
                    return Ok(session);
                }
                Ok(false) => tokio::time::sleep(RETRY / 10).await,
                Err(store::Error::LeaseEnded) => self.renew_own_lease().await?,
                Err(e) => return Err(e.into()),
            }
        }
        Err(format!("too many concurrent registrations of the node {name}").into())
    }

    /// Whether the sidecar with the name is alive at another address than the new one. A sidecar that returns at its
    /// address is accepted at once, and so is one whose stream has ended.
    fn is_connected_elsewhere(&self, state: &State, name: &str, existing: &Node, new: &Node) -> bool {
        let lives = existing.alive.as_ref().is_some_and(|alive| {
            // A node that is connected to another control plane is alive as long as its record.
            alive.owner != self.id || state.sessions.get(name).is_some_and(|existing| existing.connected)
        });
        lives && existing.identity == new.identity && existing.address != new.address
    }

    /// Does all of `ops` as long as the condition holds. `false`: it does not, or does not any more.
    async fn write_in_parts(&self, condition: &Condition, ops: Vec<Op>) -> Result<bool, store::Error> {
        for ops in ops.chunks(MAX_OPS) {
            if !self.write(vec![condition.clone()], ops.to_vec()).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A sidecar with an identity owns its address: catalog entries there are removed, so that the mesh does not speak
    /// plaintext to it.
    async fn take_over(&self, node: &Node) -> Result<(), store::Error> {
        if node.identity.is_empty() || node.address.is_loopback() {
            return Ok(());
        }
        let gone: Vec<_> = {
            let state = self.lock();
            let of_catalog = |name: &str| state.nodes.get(name).is_some_and(|held| held.catalog);
            let there = state.world.at_address(node.address).filter(|instance| of_catalog(&instance.node));
            there.map(|instance| (instance.key(), vec![instance.host()])).collect()
        };
        for (key, _) in &gone {
            let text = "its address is that of a sidecar now: taken out of the catalog";
            tracing::info!(node = key.node, service = key.service_id, "{text}");
        }
        self.remove(&gone).await
    }

    fn alive(&self, name: &str, session: u64) -> Op {
        let stored = StoredAlive { owner: self.id.clone(), session };
        Op::put_leased(Table::Alive, name, stored.encode_to_vec(), self.own_lease.load(Ordering::Relaxed))
    }

    /// Records a message of the session, which will be handled later.
    pub fn heard(&self, name: &str, session: u64) {
        if let Some(held) = self.lock().sessions.get_mut(name).filter(|held| held.session == session) {
            held.ends = Instant::now() + self.lease;
        }
    }

    /// Stores a heartbeat's report: ejected endpoints, and the milliseconds by which the sidecar's clock is ahead.
    pub fn set_reported(&self, name: &str, session: u64, ejected: Vec<v1::Ejected>, clock_ahead_ms: i64) {
        if let Some(held) = self.lock().sessions.get_mut(name).filter(|held| held.session == session) {
            (held.ejected, held.clock_ahead_ms) = (ejected, clock_ahead_ms);
        }
    }

    /// Records the end of the session's stream: its lease runs from here.
    pub async fn disconnected(&self, name: &str, session: u64) {
        {
            let mut state = self.lock();
            let held = state.sessions.get_mut(name).filter(|held| held.session == session);
            let ports = held.map(|held| {
                held.connected = false;
                std::mem::take(&mut held.ports)
            });
            for at in ports.unwrap_or_default() {
                if state.ports.get(&at).is_some_and(|node| node == name) {
                    state.ports.remove(&at);
                }
            }
        }
        self.renew(name, session).await;
    }

    /// Renews the session after a message, or for the last time at its end. False: it was superseded.
    pub async fn renew(&self, name: &str, session: u64) -> bool {
        let lost = {
            let mut state = self.lock();
            let Some(held) = state.sessions.get_mut(name).filter(|held| held.session == session) else { return false };
            held.ends = Instant::now() + self.lease;
            state.nodes.get(name).is_some_and(|node| node.alive.is_none())
        };
        if lost {
            // It was silent for too long and has returned.
            let absent = Condition::absent(Table::Alive, name);
            if let Err(e) = self.write(vec![absent], vec![self.alive(name, session)]).await {
                tracing::warn!(
                    node = name,
                    "cannot write that it is alive, tried again with its next sign of life: {e}"
                );
            }
        }
        true
    }

    /// Digest of the registrations of a node; `None`: there is no node of that name.
    pub fn registrations_digest(&self, name: &str) -> Option<u64> {
        let state = self.lock();
        let node = state.nodes.get(name)?;
        Some(digest(state.world.registered_of_node(&node.namespace, name).map(|held| held.service_id.as_str())))
    }

    /// Creates a lease for this process, and binds all connected nodes to it.
    pub(super) async fn renew_own_lease(&self) -> Result<(), store::Error> {
        let lease = self.store.grant(self.lease).await?;
        self.own_lease.store(lease, Ordering::Relaxed);
        let held: Vec<(String, u64)> =
            self.lock().sessions.iter().map(|(name, held)| (name.clone(), held.session)).collect();
        for (name, session) in held {
            // Not those that have moved to another control plane meanwhile.
            let modified = self.lock().nodes.get(&name).map(|node| node.alive.as_ref().map_or(0, |a| a.modified));
            let Some(modified) = modified else { continue };
            let condition = Condition::unchanged(Table::Alive, name.clone(), modified);
            self.write(vec![condition], vec![self.alive(&name, session)]).await?;
        }
        Ok(())
    }

    /// Handles nodes with expired leases for the life of the process. To be spawned.
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

    pub(super) async fn reap_once(&self, now: Instant) -> Result<(), store::Error> {
        self.end_silent_sessions(now).await?;
        let (lapsed, total, recent) = {
            let mut state = self.lock();
            while state.removed.front().is_some_and(|at| *at + self.lease < now) {
                state.removed.pop_front();
            }
            let leased = || state.nodes.iter().filter(|(_, node)| !node.catalog);
            let dead = leased().filter(|(_, node)| node.alive.is_none());
            let lapsed: Vec<(String, bool)> = dead
                .map(|(name, node)| (name, state.world.registered_of_node(&node.namespace, name).next().is_none()))
                .map(|(name, empty)| (name.clone(), empty))
                .collect();
            (lapsed, leased().count(), state.removed.len())
        };
        // A node without registrations has left in order.
        let (left, lapsed): (Vec<_>, Vec<_>) = lapsed.into_iter().partition(|(_, empty)| *empty);
        for (name, _) in left {
            self.remove_dead(&name, now).await?;
        }
        let lapsed: BTreeSet<String> = lapsed.into_iter().map(|(name, _)| name).collect();
        // Leases that expire from one cause expire over some time: a check in the middle sees only the first of them.
        let before = std::mem::replace(&mut self.lock().lapsed, lapsed.clone());
        // A single one is a death, whatever its share of a small mesh is.
        let dying = lapsed.len() + recent;
        if dying > 1 && dying as f64 > (total + recent) as f64 * SELF_PRESERVATION {
            self.mark_unknown(&lapsed);
            // Those that come back do so one after another: the last of them are not dead for being the last.
            self.lock().unknown_until = now + self.lease;
            return Ok(());
        }
        for name in lapsed.intersection(&before) {
            let waits = {
                let state = self.lock();
                now < state.unknown_until && state.nodes.get(name).is_some_and(|node| node.unknown)
            };
            if !waits {
                self.remove_dead(name, now).await?;
            }
        }
        Ok(())
    }

    /// Ends the sessions of sidecars here that were silent for too long.
    pub(super) async fn end_silent_sessions(&self, now: Instant) -> Result<(), store::Error> {
        let silent: Vec<(String, u64)> = {
            let state = self.lock();
            let ours = state.sessions.iter().filter(|(_, held)| held.ends <= now);
            let alive = ours.filter_map(|(name, held)| {
                let alive = state.nodes.get(name)?.alive.as_ref()?;
                (alive.owner == self.id && alive.session == held.session).then(|| (name.clone(), alive.modified))
            });
            alive.collect()
        };
        for (name, modified) in silent {
            let condition = Condition::unchanged(Table::Alive, name.clone(), modified);
            self.write(vec![condition], vec![Op::delete(Table::Alive, name)]).await?;
        }
        Ok(())
    }

    /// Removes a node with an expired lease and its registrations, unless it has returned.
    async fn remove_dead(&self, name: &str, now: Instant) -> Result<(), store::Error> {
        let instances = self.instances_of(name, |_| true);
        let mut ops: Vec<Op> =
            instances.iter().map(|(key, _)| Op::delete(Table::Registrations, registration_key(key))).collect();
        // The node is removed last: until then, left-over registrations are found by it.
        ops.push(Op::delete(Table::Nodes, name));
        if !self.write_in_parts(&Condition::absent(Table::Alive, name), ops).await? {
            // Its sidecar registers anew what was removed by then: its next sign of life shows the difference.
            tracing::info!(node = name, "it is back: it is not removed");
            return Ok(());
        }
        let mut state = self.lock();
        state.sessions.remove(name);
        if !instances.is_empty() {
            state.removed.push_back(now);
            drop(state);
            let text = "its lease has ended: it and its instances are removed";
            tracing::warn!(node = name, instances = instances.len(), "{text}");
        }
        Ok(())
    }

    fn mark_unknown(&self, nodes: &BTreeSet<String>) {
        let mut state = self.lock();
        let mut all = Changed::default();
        let mut marked = 0;
        for name in nodes {
            let Some(node) = state.nodes.get_mut(name).filter(|node| !node.unknown) else { continue };
            node.unknown = true;
            marked += 1;
            let changed = state.refresh_health(name);
            all.merge(&changed);
        }
        if marked > 0 {
            let text = "many leases ended at once: their instances are kept and marked unknown";
            tracing::warn!(sidecars = marked, "{text}");
            self.publish(&mut state, all);
        }
    }
}

/// Keeps the lease of this process, for as long as the mesh is in use.
pub(super) async fn keep_lease(mesh: Weak<Mesh>) {
    let mut reply = Instant::now();
    loop {
        let Some(pause) = mesh.upgrade().map(|mesh| mesh.lease / 3) else { return };
        tokio::time::sleep(pause).await;
        let Some(mesh) = mesh.upgrade() else { return };
        let kept = match mesh.store.keep_alive(mesh.own_lease.load(Ordering::Relaxed)).await {
            Ok(true) => Ok(()),
            Ok(false) => mesh.renew_own_lease().await,
            Err(e) => Err(e),
        };
        match kept {
            Ok(()) => {
                reply = Instant::now();
                mesh.cut_off.send_if_modified(|since| since.take().is_some());
            }
            Err(e) => {
                tracing::error!("cannot tell the store that this control plane is alive: {e}");
                let late = reply.elapsed() > mesh.lease;
                mesh.cut_off.send_if_modified(|since| {
                    let new = late && since.is_none();
                    if new {
                        *since = Some(Instant::now());
                    }
                    new
                });
            }
        }
    }
}

pub(super) fn stored(node: &Node) -> StoredNode {
    StoredNode {
        namespace: node.namespace.clone(),
        identity: node.identity.clone(),
        address: node.address.to_string(),
        workload: node.workload.clone(),
        locality: node.locality.clone(),
        labels: node.labels.clone().into_iter().collect(),
        checks: node.checks.values().cloned().collect(),
        catalog: node.catalog,
    }
}
