//! The one place where the world changes: registrations, policies and leases come in here, one writer at a time, and
//! every change is told to whoever listens.
//!
//! The order of a change is: to the store, into the world, out as an event. What was acknowledged is on disk, and what
//! is seen is acknowledged. Here are the state and its readers; the writers are in `sessions`, `instances` and `policies`.

mod instances;
mod policies;
mod sessions;
mod stored;

pub(crate) use stored::wire;
use stored::{decode_allocation, encode_allocation, instance_of};

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use prost::Message;
use tokio::sync::{broadcast, watch};
use weft_proto::v1;

use crate::policy::Document;
use crate::policy::folder::FolderState;
use crate::store::{Op, Store, Table};
use crate::world::{Allocation, Changed, World};

/// Changes that a slow listener may be behind; beyond that it looks at everything anew.
const EVENTS: usize = 1024;
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
    /// Its lease ended together with many others, and its instances were kept as unknown.
    pub unknown: bool,
}

/// Everything that changes.
struct State {
    world: World,
    nodes: HashMap<String, Node>,
    api_policies: Vec<Arc<Document>>,
    folder: Arc<FolderState>,
    next_session: u64,
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
        world.restore_virtual_ips(stored_ips);
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
                unknown: false,
            });
            world.upsert(instance, unix_now());
        }
        let mut api_policies = Vec::new();
        for (key, bytes) in store.list(Table::Policies)? {
            let stored = v1::StoredPolicy::decode(bytes.as_slice())
                .with_context(|| format!("the stored policy {key} cannot be read"))?;
            let parsed = crate::policy::parse(&key, &stored.yaml);
            for problem in &parsed.problems {
                tracing::warn!("stored policy: {problem}");
            }
            let documents = parsed.documents.into_iter();
            api_policies.extend(documents.map(|d| Arc::new(Document { created: stored.created, ..d })));
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

    /// Writes virtual IPs that were given or released since.
    async fn keep_virtual_ips(&self) {
        let changed = self.lock().world.take_changed_virtual_ips();
        let op = |(host, kept): &(String, Option<Allocation>)| match kept {
            Some(allocation) => Op::Put(Table::VirtualIps, host.clone(), encode_allocation(*allocation)),
            None => Op::Delete(Table::VirtualIps, host.clone()),
        };
        let ops: Vec<Op> = changed.iter().map(op).collect();
        if !ops.is_empty()
            && let Err(e) = self.store.commit(ops).await
        {
            tracing::error!("virtual IPs could not be kept, tried again with the next change: {e:#}");
            self.lock().world.put_back_virtual_ips(changed.into_iter().map(|(host, _)| host));
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

#[cfg(test)]
mod tests;
