//! The one place where the world changes: registrations, policies and leases come in here, one writer at a time, and
//! every change is told to whoever listens.
//!
//! The order of a change is: to the store, into the world, out as an event. What was acknowledged is on disk, and what
//! is seen is acknowledged.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use prost::Message;
use tokio::sync::{broadcast, watch};
use weft_proto::v1;

use crate::policy::folder::FolderState;
use crate::policy::{Document, Problem};
use crate::store::{Op, Store, Table};
use crate::world::{Allocation, Changed, Instance, InstanceKey, World, derive_labels};

/// Changes that a slow listener may be behind; beyond that it looks at everything anew.
const EVENTS: usize = 1024;
/// A larger share of leases lapsing within one lease period is our fault, not theirs: none is removed.
const SELF_PRESERVATION: f64 = 0.15;

/// A sidecar that is, or was until its lease ends, connected.
#[derive(Debug, Clone)]
pub struct Node {
    /// Namespace of its identity.
    pub namespace: String,
    /// Its SPIFFE ID.
    pub identity: String,
    /// Address that its stream comes from.
    pub address: IpAddr,
    /// Workload's name.
    pub workload: String,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Labels given on its command line.
    pub labels: BTreeMap<String, String>,
    /// Checks of the node itself.
    pub checks: BTreeMap<String, v1::Check>,
    /// Distinguishes this stream from an earlier one of the same node.
    pub session: u64,
    /// When its lease ends, unless renewed.
    pub lease_ends: Instant,
}

/// Everything that changes.
struct State {
    world: World,
    nodes: HashMap<String, Node>,
    api_policies: Vec<Arc<Document>>,
    folder: Arc<FolderState>,
    next_session: u64,
    /// Virtual IPs as the store has them.
    stored_ips: BTreeMap<String, Allocation>,
    /// World version at which a host last changed, and at which all did.
    host_versions: HashMap<String, u64>,
    all_version: u64,
}

/// Hosts whose last change is remembered; beyond that all are taken as changed once.
const HOST_VERSIONS: usize = 100_000;

/// The mesh as the control plane knows it.
pub struct Mesh {
    state: Mutex<State>,
    store: Store,
    events: broadcast::Sender<Arc<Changed>>,
    version: watch::Sender<u64>,
    /// Time without a sign of life after which a sidecar's instances are removed.
    pub lease: Duration,
    /// Orders writers: the store and the world must see changes in the same order.
    writer: tokio::sync::Mutex<()>,
}

impl Mesh {
    /// Restores what the store kept. Lease timers start anew.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn open(store: Store, trust_domain: &str, lease: Duration) -> Result<Arc<Mesh>> {
        let now = Instant::now();
        let mut world = World::new(trust_domain, first_version());
        let mut stored_ips = BTreeMap::new();
        for (host, bytes) in store.list(Table::VirtualIps)? {
            let allocation = decode_allocation(&bytes).with_context(|| format!("stored virtual IP of {host}"))?;
            stored_ips.insert(host, allocation);
        }
        world.restore_virtual_ips(stored_ips.clone());
        let mut nodes = HashMap::new();
        for (key, bytes) in store.list(Table::Registrations)? {
            let stored = v1::StoredInstance::decode(bytes.as_slice())
                .with_context(|| format!("the stored registration {key} cannot be read"))?;
            let Some(instance) = instance_of(&stored) else { continue };
            nodes.entry(stored.node.clone()).or_insert_with(|| Node {
                namespace: stored.namespace.clone(),
                identity: stored.identity.clone(),
                address: instance.address,
                workload: stored.workload.clone(),
                locality: stored.locality.clone(),
                labels: stored.labels.clone().into_iter().collect(),
                checks: BTreeMap::new(),
                session: 0,
                lease_ends: now + lease,
            });
            world.upsert(instance, unix_now());
        }
        let mut api_policies = Vec::new();
        for (key, bytes) in store.list(Table::Policies)? {
            let text = String::from_utf8_lossy(&bytes);
            let parsed = crate::policy::parse(&key, &text);
            for problem in &parsed.problems {
                tracing::warn!("stored policy: {problem}");
            }
            api_policies.extend(parsed.documents.into_iter().map(Arc::new));
        }
        world.set_policies(api_policies.clone(), unix_now());
        let version = world.version();
        Ok(Arc::new(Mesh {
            state: Mutex::new(State {
                world,
                nodes,
                api_policies,
                folder: Arc::default(),
                next_session: 1,
                stored_ips,
                host_versions: HashMap::new(),
                all_version: version,
            }),
            store,
            events: broadcast::Sender::new(EVENTS),
            version: watch::Sender::new(version),
            lease,
            writer: tokio::sync::Mutex::new(()),
        }))
    }

    /// Changes from now on.
    pub fn events(&self) -> broadcast::Receiver<Arc<Changed>> {
        self.events.subscribe()
    }

    /// Version of the world, to wait on.
    pub fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Reads the world. The closure must be short: everything waits for it.
    pub fn read<T>(&self, f: impl FnOnce(&World) -> T) -> T {
        f(&self.lock().world)
    }

    /// Reads the world, and the version at which what is said of `host` last changed.
    pub fn read_host<T>(&self, host: &str, f: impl FnOnce(&World, u64) -> T) -> T {
        let state = self.lock();
        let changed_at = state.host_versions.get(host).copied().unwrap_or(0).max(state.all_version);
        f(&state.world, changed_at)
    }

    /// Reads the nodes.
    pub fn read_nodes<T>(&self, f: impl FnOnce(&HashMap<String, Node>) -> T) -> T {
        f(&self.lock().nodes)
    }

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
        if let Some(node) = state.nodes.get_mut(name).filter(|n| n.session == session) {
            node.lease_ends = Instant::now() + self.lease;
        }
        // One that was marked unknown is known again.
        let revived: Vec<Instance> = state
            .world
            .instances()
            .filter(|i| i.node == name && i.health == v1::Health::Unknown)
            .map(|i| Instance { health: health_of(&i.checks, &BTreeMap::new()), ..(**i).clone() })
            .collect();
        for instance in revived {
            let changed = state.world.upsert(instance, unix_now());
            self.publish(&mut state, changed);
        }
    }

    /// Registers an instance of `node`, or changes it.
    ///
    /// # Errors
    /// When the address is not the node's, the node has no session, or the store refuses.
    pub async fn register(&self, name: &str, session: u64, registered: v1::Instance) -> Result<(), String> {
        let _writer = self.writer.lock().await;
        let stored = {
            let state = self.lock();
            let node = state.nodes.get(name).filter(|n| n.session == session);
            let node = node.ok_or("this session was superseded by a newer one of the same node")?;
            let mut instance = registered;
            if instance.address.is_empty() {
                instance.address = node.address.to_string();
            }
            let address: IpAddr = instance
                .address
                .parse()
                .map_err(|_| format!("{:?} is not an IP address; register the pod's own", instance.address))?;
            if address.to_canonical() != node.address {
                return Err(format!(
                    "{address} is not an address of this sidecar, whose stream comes from {}",
                    node.address
                ));
            }
            v1::StoredInstance {
                namespace: node.namespace.clone(),
                node: name.to_owned(),
                identity: node.identity.clone(),
                workload: node.workload.clone(),
                locality: node.locality.clone(),
                labels: node.labels.clone().into_iter().collect(),
                instance: Some(instance),
            }
        };
        self.put(stored).await
    }

    async fn put(&self, stored: v1::StoredInstance) -> Result<(), String> {
        let mut instance = instance_of(&stored).ok_or("the registration is not complete")?;
        let op = Op::Put(Table::Registrations, registration_key(&instance.key()), stored.encode_to_vec());
        self.store.commit(vec![op]).await.map_err(|e| format!("{e:#}"))?;
        {
            let mut state = self.lock();
            if let Some(node) = state.nodes.get(&instance.node) {
                instance.health = health_of(&instance.checks, &node.checks);
            }
            let changed = state.world.upsert(instance, unix_now());
            self.publish(&mut state, changed);
        }
        self.keep_virtual_ips().await;
        Ok(())
    }

    /// Changes a check of an instance, or of the node when it names no service.
    ///
    /// # Errors
    /// When there is no such instance, or the store refuses.
    pub async fn update_check(&self, name: &str, session: u64, update: v1::CheckUpdate) -> Result<(), String> {
        let check = update.check.ok_or("no check in the update")?;
        let _writer = self.writer.lock().await;
        if check.service_id.is_empty() {
            let mut state = self.lock();
            let node = state.nodes.get_mut(name).filter(|n| n.session == session).ok_or("no such session")?;
            if update.removed {
                node.checks.remove(&check.check_id);
            } else {
                node.checks.insert(check.check_id.clone(), check);
            }
            let checks = node.checks.clone();
            let instances: Vec<Instance> =
                state.world.instances().filter(|i| i.node == name).map(|i| (**i).clone()).collect();
            for mut instance in instances {
                instance.health = health_of(&instance.checks, &checks);
                let changed = state.world.upsert(instance, unix_now());
                self.publish(&mut state, changed);
            }
            return Ok(());
        }
        let stored = {
            let state = self.lock();
            let node = state.nodes.get(name).filter(|n| n.session == session).ok_or("no such session")?;
            let key = InstanceKey {
                namespace: node.namespace.clone(),
                node: name.to_owned(),
                service_id: check.service_id.clone(),
            };
            let instance = state.world.instance(&key).ok_or_else(|| format!("no service {:?}", check.service_id))?;
            let mut stored = stored_of(instance, node);
            if let Some(instance) = &mut stored.instance {
                instance.checks.retain(|c| c.check_id != check.check_id);
                if !update.removed {
                    instance.checks.push(check);
                }
            }
            stored
        };
        self.put(stored).await
    }

    /// Removes an instance of `node`, or all of them when `service_id` is empty; returns the hosts they were of.
    ///
    /// # Errors
    /// When there is none of that id, or the store refuses.
    pub async fn deregister(&self, name: &str, service_id: &str) -> Result<Vec<String>, String> {
        let _writer = self.writer.lock().await;
        let gone: Vec<(InstanceKey, String)> = self.read(|world| {
            let ours = world.instances().filter(|i| i.node == name);
            let ours = ours.filter(|i| service_id.is_empty() || i.service_id == service_id);
            ours.map(|i| (i.key(), i.host())).collect()
        });
        if gone.is_empty() && !service_id.is_empty() {
            return Err(format!("no service {service_id:?} is registered here"));
        }
        self.remove(&gone).await?;
        Ok(gone.into_iter().map(|(_, host)| host).collect())
    }

    /// Removes what `name` registered in an earlier session and not in this one.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn keep_only(&self, name: &str, service_ids: &[String]) -> Result<(), String> {
        let _writer = self.writer.lock().await;
        let gone: Vec<(InstanceKey, String)> = self.read(|world| {
            let old = world.instances().filter(|i| i.node == name && !service_ids.contains(&i.service_id));
            old.map(|i| (i.key(), i.host())).collect()
        });
        self.remove(&gone).await
    }

    async fn remove(&self, gone: &[(InstanceKey, String)]) -> Result<(), String> {
        if gone.is_empty() {
            return Ok(());
        }
        let ops = gone.iter().map(|(key, _)| Op::Delete(Table::Registrations, registration_key(key))).collect();
        self.store.commit(ops).await.map_err(|e| format!("{e:#}"))?;
        {
            let mut state = self.lock();
            for (key, _) in gone {
                let changed = state.world.remove(key, unix_now());
                self.publish(&mut state, changed);
            }
        }
        self.keep_virtual_ips().await;
        Ok(())
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

    async fn reap_once(&self, now: Instant) -> Result<(), String> {
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

    /// Takes the folder's documents and the problems of those that were refused.
    pub async fn set_folder(&self, folder: Arc<FolderState>) {
        let _writer = self.writer.lock().await;
        for problem in &folder.problems {
            tracing::warn!("{problem}");
        }
        self.lock().folder = folder;
        self.apply_policies().await;
    }

    /// Problems of the policies as they are now: what was refused of the folder's files, and what is odd about those that
    /// are applied, given who is registered.
    pub fn policy_problems(&self) -> Vec<Problem> {
        let state = self.lock();
        let refused = state.folder.problems.iter().cloned();
        refused.chain(crate::translate::warnings(&state.world, true)).collect()
    }

    /// The folder's documents and the API's.
    pub fn policies(&self) -> (Vec<Arc<Document>>, Vec<Arc<Document>>) {
        let state = self.lock();
        (state.folder.documents.clone(), state.api_policies.clone())
    }

    /// Replaces the API's documents named in `put`, and removes those in `delete`.
    ///
    /// # Errors
    /// When the store refuses; nothing changed then.
    pub async fn change_policies(&self, put: Vec<Document>, delete: &[Document]) -> Result<()> {
        let _writer = self.writer.lock().await;
        let key = |d: &Document| d.reference();
        let mut ops: Vec<Op> = delete.iter().map(|d| Op::Delete(Table::Policies, key(d))).collect();
        ops.extend(put.iter().map(|d| Op::Put(Table::Policies, key(d), d.yaml.clone().into_bytes())));
        self.store.commit(ops).await?;
        {
            let mut state = self.lock();
            state.api_policies.retain(|old| !put.iter().chain(delete).any(|new| new.key() == old.key()));
            state.api_policies.extend(put.into_iter().map(Arc::new));
        }
        self.apply_policies().await;
        Ok(())
    }

    async fn apply_policies(&self) {
        {
            let mut state = self.lock();
            // An object given by both: the folder owns it.
            let mut all: Vec<Arc<Document>> = state.folder.documents.clone();
            let api = state.api_policies.iter().filter(|a| !all.iter().any(|f| f.key() == a.key())).cloned();
            let api: Vec<_> = api.collect();
            all.extend(api);
            let changed = state.world.set_policies(all, unix_now());
            self.publish(&mut state, changed);
        }
        self.keep_virtual_ips().await;
    }

    /// Writes virtual IPs that were given or released since.
    async fn keep_virtual_ips(&self) {
        let ops: Vec<Op> = {
            let mut state = self.lock();
            let now = state.world.virtual_ips().iter();
            let current: BTreeMap<String, Allocation> = now.map(|(host, a)| (host.to_owned(), a)).collect();
            let put = current.iter().filter(|(host, a)| state.stored_ips.get(*host) != Some(a));
            let mut ops: Vec<Op> =
                put.map(|(host, a)| Op::Put(Table::VirtualIps, host.clone(), encode_allocation(*a))).collect();
            let gone = state.stored_ips.keys().filter(|host| !current.contains_key(*host));
            ops.extend(gone.map(|host| Op::Delete(Table::VirtualIps, host.clone())));
            state.stored_ips = current;
            ops
        };
        if !ops.is_empty()
            && let Err(e) = self.store.commit(ops).await
        {
            tracing::error!("virtual IPs could not be kept: {e:#}");
        }
    }

    fn publish(&self, state: &mut State, changed: Changed) {
        if !changed.all && !changed.names && changed.hosts.is_empty() {
            return;
        }
        let version = state.world.version();
        if changed.all || state.host_versions.len() > HOST_VERSIONS {
            state.host_versions.clear();
            state.all_version = version;
        } else {
            state.host_versions.extend(changed.hosts.iter().map(|host| (host.clone(), version)));
        }
        // Without listeners nobody needs to know.
        let _ = self.events.send(Arc::new(changed));
        self.version.send_replace(version);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Where versions begin: the time in milliseconds, so that the indexes that clients hold never go back over a restart
/// (unless more than a thousand changes a second came before it, for as long as it ran).
fn first_version() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn registration_key(key: &InstanceKey) -> String {
    format!("{}/{}/{}", key.namespace, key.node, key.service_id)
}

fn encode_allocation(allocation: Allocation) -> Vec<u8> {
    format!("{} {}", allocation.address, allocation.released.map_or(String::new(), |s| s.to_string())).into_bytes()
}

fn decode_allocation(bytes: &[u8]) -> Result<Allocation> {
    let text = std::str::from_utf8(bytes)?;
    let (address, released) = text.split_once(' ').context("not an address and a time")?;
    let released = if released.is_empty() { None } else { Some(released.parse()?) };
    Ok(Allocation { address: address.parse()?, released })
}

/// Consul's rule: critical when any check is; warning still serves.
fn health_of(checks: &[v1::Check], node_checks: &BTreeMap<String, v1::Check>) -> v1::Health {
    let critical = checks.iter().chain(node_checks.values()).any(|c| c.status == "critical");
    if critical { v1::Health::Unhealthy } else { v1::Health::Healthy }
}

fn stored_of(instance: &Instance, node: &Node) -> v1::StoredInstance {
    v1::StoredInstance {
        namespace: instance.namespace.clone(),
        node: instance.node.clone(),
        identity: instance.identity.clone(),
        workload: instance.workload.clone(),
        locality: instance.locality.clone(),
        labels: node.labels.clone().into_iter().collect(),
        instance: Some(v1::Instance {
            service_id: instance.service_id.clone(),
            service: instance.service.clone(),
            address: instance.address.to_string(),
            port: u32::from(instance.port),
            tags: instance.tags.clone(),
            meta: instance.meta.clone().into_iter().collect(),
            weight: instance.weight,
            checks: instance.checks.clone(),
            enable_tag_override: false,
        }),
    }
}

fn instance_of(stored: &v1::StoredInstance) -> Option<Instance> {
    let registered = stored.instance.as_ref()?;
    let sidecar: BTreeMap<String, String> = stored.labels.clone().into_iter().collect();
    let meta: BTreeMap<String, String> = registered.meta.clone().into_iter().collect();
    Some(Instance {
        namespace: stored.namespace.clone(),
        node: stored.node.clone(),
        service_id: registered.service_id.clone(),
        service: registered.service.clone(),
        address: registered.address.parse().ok()?,
        port: u16::try_from(registered.port).ok()?,
        tags: registered.tags.clone(),
        labels: derive_labels(&sidecar, &meta, &registered.tags),
        meta,
        weight: registered.weight,
        health: health_of(&registered.checks, &BTreeMap::new()),
        identity: stored.identity.clone(),
        workload: stored.workload.clone(),
        locality: stored.locality.clone(),
        draining: false,
        create_index: 0,
        modify_index: 0,
        checks: registered.checks.clone(),
    })
}
