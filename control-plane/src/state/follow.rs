//! The world follows the store.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Weak;

use prost::Message;
use tokio::sync::mpsc;
use weft_core::backoff::jittered;
use weft_proto::v1::{StoredAlive, StoredInstance, StoredNode, StoredPolicy, StoredSummaries, StoredVirtualIp};

use super::records::{health_of, instance_of, key_of, registration_key};
use super::topics::Topic;
use super::usage::account;
use super::{Alive, Mesh, Node, RETRY, State};
use crate::clock::unix_now;
use crate::store::{Change, Changes, Record, Table, Watch};
use weft_world::{Allocation, Changed, Instance, InstanceKey, Origin};

/// Bound on the transactions that are applied together.
const BATCH: usize = 256;

/// Applies changes for as long as the mesh is in use.
pub(super) async fn run(mesh: Weak<Mesh>, mut changes: mpsc::Receiver<Changes>) {
    let mut batch = Vec::new();
    loop {
        let read = changes.recv_many(&mut batch, BATCH).await;
        let Some(mesh) = mesh.upgrade() else { return };
        if read > 0 {
            mesh.apply(batch.drain(..));
            continue;
        }
        // Changes were lost, or the store is gone.
        match mesh.store.watch().await {
            Ok(watch) => changes = mesh.take_up(watch),
            Err(e) => {
                tracing::error!("the store cannot be followed: {e}");
                // All control planes lose a store at once.
                tokio::time::sleep(jittered(2 * RETRY, rand::random())).await;
            }
        }
    }
}

impl Mesh {
    /// Brings the world to the whole content of the store.
    pub(super) fn take_up(&self, watch: Watch) -> mpsc::Receiver<Changes> {
        let known = self.known();
        let there: HashSet<(Table, &str)> = watch.records.iter().map(|(t, record)| (*t, record.key.as_str())).collect();
        let gone = known.iter().filter(|(table, key)| !there.contains(&(*table, key.as_str())));
        let gone = gone.map(|(table, key)| Change { table: *table, key: key.clone(), record: None });
        let mut changes: Vec<Change> = gone.collect();
        drop(there);
        let came = watch.records.into_iter();
        changes.extend(came.map(|(table, record)| Change { table, key: record.key.clone(), record: Some(record) }));
        // Addresses come before the hosts that would choose new ones, nodes before their instances.
        let order = [Table::VirtualIps, Table::Nodes, Table::Alive, Table::Sessions];
        changes.sort_by_key(|change| order.iter().position(|table| *table == change.table).unwrap_or(order.len()));
        self.apply(std::iter::once(Changes { revision: watch.revision, changes }));
        watch.changes
    }

    /// Keys of all applied records.
    fn known(&self) -> Vec<(Table, String)> {
        let state = self.lock();
        let registrations = state.world.registered().filter(|i| i.origin == Origin::Registry);
        let registrations = registrations.map(|i| (Table::Registrations, registration_key(&i.key())));
        let nodes = state.nodes.keys().map(|name| (Table::Nodes, name.clone()));
        let alive = state.nodes.iter().filter(|(_, node)| node.alive.is_some());
        let policies = state.api.keys().map(|key| (Table::Policies, key.clone()));
        let ips = state.world.virtual_ips().iter().filter(|(_, a)| a.modified != 0);
        registrations
            .chain(nodes)
            .chain(alive.map(|(name, _)| (Table::Alive, name.clone())))
            .chain(policies)
            .chain(ips.map(|(_, a)| (Table::VirtualIps, a.address.to_string())))
            .chain(state.pairs.paths().map(|path| (Table::Kv, path.clone())))
            .chain(state.locks.paths().flat_map(|p| [Table::Sessions, Table::SessionAlive].map(|t| (t, p.clone()))))
            .chain(state.queries.paths().map(|path| (Table::Queries, path.clone())))
            .chain(state.events_fired.paths().map(|path| (Table::Events, path.clone())))
            .chain(state.config_entries.paths().map(|path| (Table::ConfigEntries, path.clone())))
            .chain(state.world.remote_summaries().map(|(name, ..)| (Table::Remotes, name.to_owned())))
            .chain(state.delays.iter().map(|path| (Table::LockDelays, path.clone())))
            .collect()
    }

    fn apply(&self, batch: impl Iterator<Item = Changes>) {
        let mut state = self.lock();
        let mut applying = Applying::default();
        let mut last = 0;
        for Changes { revision, changes } in batch {
            last = revision;
            state.world.at_revision(revision);
            for change in changes {
                applying.one(self, &mut state, change, revision);
            }
        }
        if applying.policies {
            applying.merge(state.apply_policies());
        }
        self.publish(&mut state, applying.changed);
        self.topics.wake(applying.woken.into_iter());
        drop(state);
        self.seen.send_if_modified(|seen| {
            let later = last > *seen;
            *seen = last.max(*seen);
            later
        });
    }
}

/// The effects of a batch of changes.
#[derive(Default)]
struct Applying {
    changed: Changed,
    woken: HashSet<Topic>,
    policies: bool,
}

impl Applying {
    fn merge(&mut self, other: Changed) {
        self.changed.merge(&other);
    }

    fn one(&mut self, mesh: &Mesh, state: &mut State, change: Change, revision: u64) {
        let Change { table, key, record } = change;
        let result = match table {
            Table::Registrations => self.registration(state, &key, record),
            Table::Nodes => self.node(state, key.clone(), record),
            Table::Alive => self.alive(mesh, state, key.clone(), record),
            Table::Policies => self.policy(state, key.clone(), record),
            Table::VirtualIps => self.virtual_ip(state, &key, record),
            Table::Kv => {
                self.woken.extend([Topic::Pairs, Topic::Pair(key.clone())]);
                state.pairs.follow(key.clone(), record, revision)
            }
            Table::Sessions => {
                self.woken.insert(Topic::Sessions);
                state.locks.follow(key.clone(), record, revision)
            }
            Table::SessionAlive => {
                if record.is_none() {
                    mesh.sessions_over.notify_one();
                }
                state.locks.alive(&key, record.is_some());
                Ok(())
            }
            Table::LockDelays => {
                if record.is_some() {
                    state.delays.insert(key.clone());
                } else {
                    state.delays.remove(&key);
                }
                Ok(())
            }
            Table::Remotes => self.remote(state, &key, record),
            Table::Queries => {
                self.woken.insert(Topic::Queries);
                state.queries.follow(key.clone(), record, revision)
            }
            Table::Events => {
                self.woken.insert(Topic::Events);
                state.events_fired.follow(key.clone(), record, revision)
            }
            Table::ConfigEntries => {
                self.woken.insert(Topic::ConfigEntries);
                state.config_entries.follow(key.clone(), record, revision)
            }
            // Read on demand.
            Table::Secrets | Table::Grants => Ok(()),
        };
        if let Err(why) = result {
            tracing::error!("the store's record {}/{key} cannot be read and is left out: {why}", table.name());
        }
    }

    fn registration(&mut self, state: &mut State, key: &str, record: Option<Record>) -> Result<(), String> {
        let Some(record) = record else {
            state.usage.remove(Table::Registrations, key);
            let key = key_of(key).ok_or("its key is not namespace/node/id")?;
            if is_of_cluster(state, &key) {
                return Ok(());
            }
            let changed = state.world.remove(&key, unix_now());
            self.merge(changed);
            return Ok(());
        };
        let stored = StoredInstance::decode(record.value.as_slice()).map_err(|e| e.to_string())?;
        let account = account(&stored.identity, &stored.namespace);
        state.usage.put(Table::Registrations, key, &account, record.value.len());
        let instance = instance_of(&stored).ok_or("its address or port is invalid")?;
        if is_of_cluster(state, &instance.key()) {
            return Err("an endpoint of the Kubernetes cluster has its key, and takes precedence".into());
        }
        let none = BTreeMap::new();
        let node = state.nodes.get(&instance.node);
        let health = health_of(&instance.checks, node.map_or(&none, |n| &n.checks), node.is_some_and(|n| n.unknown));
        let instance = Instance { health, create_index: record.created, modify_index: record.modified, ..instance };
        let changed = state.world.upsert(instance, unix_now());
        self.merge(changed);
        Ok(())
    }

    fn node(&mut self, state: &mut State, name: String, record: Option<Record>) -> Result<(), String> {
        self.woken.insert(Topic::Nodes);
        state.world.touch_nodes();
        let Some(record) = record else {
            state.nodes.remove(&name);
            state.usage.remove(Table::Nodes, &name);
            // A connected sidecar has to register everything again.
            state.sessions.remove(&name);
            return Ok(());
        };
        let stored = StoredNode::decode(record.value.as_slice()).map_err(|e| e.to_string())?;
        let account = account(&stored.identity, &stored.namespace);
        state.usage.put(Table::Nodes, &name, &account, record.value.len());
        let old = state.nodes.remove(&name);
        let unknown = old.as_ref().is_some_and(|old| old.unknown);
        let node = Node {
            address: stored.address.parse().map_err(|_| "its address is invalid")?,
            namespace: stored.namespace,
            identity: stored.identity,
            workload: stored.workload,
            locality: stored.locality,
            labels: stored.labels.into_iter().collect(),
            checks: stored.checks.into_iter().map(|check| (check.check_id.clone(), check)).collect(),
            create_index: record.created,
            modify_index: record.modified,
            alive: old.as_ref().and_then(|old| old.alive.clone()),
            unknown,
            catalog: stored.catalog,
        };
        let namespace = node.namespace.clone();
        let differs = old.is_none_or(|old| old.checks != node.checks);
        state.nodes.insert(name.clone(), node);
        if differs {
            state.world.touch_node(&namespace, &name);
            self.refresh_health(state, &name);
        }
        Ok(())
    }

    fn alive(&mut self, mesh: &Mesh, state: &mut State, name: String, record: Option<Record>) -> Result<(), String> {
        let Some(record) = record else {
            if let Some(node) = state.nodes.get_mut(&name) {
                node.alive = None;
            }
            return Ok(());
        };
        let stored = StoredAlive::decode(record.value.as_slice()).map_err(|e| e.to_string())?;
        if stored.owner != mesh.id {
            // It has moved to another control plane.
            state.sessions.remove(&name);
        }
        // A left-over record of a removed node is ignored.
        let Some(node) = state.nodes.get_mut(&name) else { return Ok(()) };
        node.alive = Some(Alive { owner: stored.owner, session: stored.session, modified: record.modified });
        if std::mem::take(&mut node.unknown) {
            self.refresh_health(state, &name);
        }
        Ok(())
    }

    fn refresh_health(&mut self, state: &mut State, name: &str) {
        let changed = state.refresh_health(name);
        self.merge(changed);
    }

    fn policy(&mut self, state: &mut State, key: String, record: Option<Record>) -> Result<(), String> {
        self.policies = true;
        let Some(record) = record else {
            state.api.remove(&key);
            return Ok(());
        };
        let stored = StoredPolicy::decode(record.value.as_slice()).map_err(|e| e.to_string())?;
        state.api.insert(key, &stored);
        Ok(())
    }

    fn remote(&mut self, state: &mut State, datacenter: &str, record: Option<Record>) -> Result<(), String> {
        let stored = record.map(|record| StoredSummaries::decode(record.value.as_slice())).transpose();
        let stored = stored.map_err(|e| e.to_string())?;
        let changed = state.world.set_remote(datacenter, stored.as_ref(), unix_now());
        self.merge(changed);
        Ok(())
    }

    fn virtual_ip(&mut self, state: &mut State, key: &str, record: Option<Record>) -> Result<(), String> {
        let address: Ipv4Addr = key.parse().map_err(|_| "its key is not an address")?;
        let kept = match record {
            Some(record) => {
                let stored = StoredVirtualIp::decode(record.value.as_slice()).map_err(|e| e.to_string())?;
                let released = Some(stored.released).filter(|at| *at != 0);
                Some((stored.host, Allocation { address, released, modified: record.modified }))
            }
            None => None,
        };
        let changed = state.world.adopt_virtual_ip(address, kept);
        self.merge(changed);
        Ok(())
    }
}

/// Whether a key is that of an endpoint of a Kubernetes cluster. One that came later than a registration has replaced it.
fn is_of_cluster(state: &State, key: &InstanceKey) -> bool {
    state.world.instance(key).is_some_and(|held| held.origin == Origin::Kubernetes)
}

impl State {
    /// Updates the health of a node's instances.
    pub(super) fn refresh_health(&mut self, name: &str) -> Changed {
        let mut all = Changed::default();
        let Some(node) = self.nodes.get(name) else { return all };
        let (checks, unknown, namespace) = (node.checks.clone(), node.unknown, node.namespace.clone());
        let instances: Vec<Instance> =
            self.world.registered_of_node(&namespace, name).map(|instance| (**instance).clone()).collect();
        for instance in instances {
            let health = health_of(&instance.checks, &checks, unknown);
            let changed = self.world.upsert(Instance { health, ..instance }, unix_now());
            all.merge(&changed);
        }
        all
    }
}
