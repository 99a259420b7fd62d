//! The mesh as this control plane knows it: a world that follows the store, and the writers that change the store.
//!
//! There is one way in: a writer makes a transaction, the store's watch reports it ([`follow`]), the world changes and
//! every listener is notified. A writer is answered after its own change has arrived, so that a registration is visible
//! to the program that made it, and changes of other control planes arrive in the same way. Policy files belong to this
//! process and go into the world directly. Here are the state and its readers; the writers are in `sessions`,
//! `instances` and `policies`.

pub mod catalog;
mod follow;
mod instances;
mod kv;
mod nodes;
mod policies;
mod records;
pub mod remotes;
mod sessions;
mod topics;
mod usage;
mod virtual_ips;

pub use kv::{documents, locks, pairs, txn};
pub use nodes::Nodes;
pub use policies::{BesideFolder, Policies};
pub use topics::Topic;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;
use weft_proto::v1;

use crate::identity::bounds::Exceeded;
use crate::sources::api::ApiPolicies;
use crate::sources::folder::FolderState;
use crate::store::batch::{self, Interrupted};
use crate::store::{self, Condition, Op};
use topics::Topics;
use weft_kubernetes::AllPolicies;
use weft_world::explain;
use weft_world::{Changed, World};

/// Bound on the changes that a slow listener may be behind; beyond that it reads everything again.
const EVENTS: usize = 1024;
/// Longest wait until a change in the store arrives here.
const SEEN: Duration = Duration::from_secs(10);
/// Pause between attempts if the store does not answer.
const RETRY: Duration = Duration::from_millis(500);

/// A sidecar or another registrant that is connected, or was until its lease expires.
#[derive(Debug, Clone, PartialEq)]
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
    /// Revision of the store that created it.
    pub create_index: u64,
    /// Revision of the store that changed it last.
    pub modify_index: u64,
    /// The session that is responsible for it now.
    pub alive: Option<Alive>,
    /// Whether its lease expired together with many others, so that its instances were kept as unknown.
    pub unknown: bool,
    /// Whether it was written by `catalog/register`: then no session is responsible for it, and it stays until it is
    /// deregistered.
    pub catalog: bool,
}

impl Node {
    /// A node at `address` that joins with `identity`.
    pub fn new(namespace: impl Into<String>, identity: impl Into<String>, address: IpAddr) -> Node {
        Node {
            namespace: namespace.into(),
            identity: identity.into(),
            address,
            workload: String::new(),
            locality: String::new(),
            labels: BTreeMap::new(),
            checks: BTreeMap::new(),
            create_index: 0,
            modify_index: 0,
            alive: None,
            unknown: false,
            catalog: false,
        }
    }

    /// The node of workload `w<number>` at 10.0.0.`number`.
    #[cfg(test)]
    pub(crate) fn of_test(namespace: &str, number: u8) -> Node {
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/w{number}");
        Node { workload: format!("w{number}"), ..Node::new(namespace, identity, IpAddr::from([10, 0, 0, number])) }
    }
}

/// The session that is responsible for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alive {
    /// The control plane that it is connected to.
    pub owner: String,
    /// Its session there.
    pub session: u64,
    /// Revision of its record.
    pub modified: u64,
}

/// A session of a sidecar with this control plane.
struct LocalSession {
    session: u64,
    /// Its end unless renewed.
    ends: Instant,
    /// Whether its stream is open.
    connected: bool,
    /// Addresses of its instances; an instance that was removed meanwhile may still be among them.
    ports: BTreeSet<(IpAddr, u16)>,
    /// Endpoints that it has ejected, by host and address.
    ejected: Vec<v1::Ejected>,
    /// Milliseconds by which its clock is ahead of the control plane's; negative: behind.
    clock_ahead_ms: i64,
}

/// The reason why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not allowed; a text for the client.
    #[error("{0}")]
    Because(String),
    /// It is larger than the registry accepts.
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
    /// The session has been superseded, or the node was removed. The client must begin a new one.
    #[error("this session is over: the node has a newer one, or was removed after its lease expired; begin a new one")]
    SessionOver,
    /// The store refused. Another control plane's may accept.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl From<String> for Refusal {
    fn from(text: String) -> Refusal {
        Refusal::Because(text)
    }
}

impl From<&str> for Refusal {
    fn from(text: &str) -> Refusal {
        Refusal::Because(text.to_owned())
    }
}

/// Everything that changes.
struct State {
    world: World,
    nodes: Nodes,
    /// The usage of each identity in the store.
    usage: usage::Usage,
    /// Sessions of sidecars here, by node name.
    sessions: HashMap<String, LocalSession>,
    /// The node of each address and port of a connected sidecar's instances, as [`LocalSession::ports`] has them.
    ports: HashMap<(IpAddr, u16), String>,
    next_session: u64,
    /// Nodes with instances whose leases had expired at the last check: those that have at the next one too are dead.
    lapsed: BTreeSet<String>,
    /// Time until which nodes that are marked unknown are not removed.
    unknown_until: Instant,
    /// Times at which nodes whose lease had expired were removed.
    removed: VecDeque<Instant>,
    pairs: pairs::Pairs,
    locks: locks::Sessions,
    queries: documents::Documents,
    events_fired: documents::Documents,
    config_entries: documents::Documents,
    /// Pairs in their lock delay, by key in the store.
    delays: HashSet<String>,
    folder: Arc<FolderState>,
    kubernetes: AllPolicies,
    api: ApiPolicies,
    /// World version at which a host last changed, and at which all did.
    host_versions: HashMap<String, u64>,
    all_version: u64,
}

/// Bound on the hosts with a known version of their last change; beyond that all count as changed once.
const HOST_VERSIONS: usize = 100_000;

/// The mesh in the state of this control plane.
pub struct Mesh {
    /// Identifies this process among those that share the store.
    id: String,
    state: Mutex<State>,
    store: store::Shared,
    events: broadcast::Sender<Arc<Changed>>,
    version: watch::Sender<u64>,
    /// Revision of the store up to which the world has followed it.
    seen: watch::Sender<u64>,
    topics: Topics,
    /// Notified when virtual IPs must be stored.
    virtual_ips: Arc<Notify>,
    /// Notified when a session of Consul's API was not renewed in time.
    sessions_over: Arc<Notify>,
    /// The lease of this process, to which the nodes connected to it are bound; 0: none yet.
    own_lease: AtomicU64,
    /// Since when the store has not answered for longer than a lease: the state here becomes stale.
    cut_off: watch::Sender<Option<Instant>>,
    /// Time without a sign of life after which a sidecar's instances are removed.
    pub lease: Duration,
    /// Number of sidecars' requests that were refused because they were out of bounds.
    pub out_of_bounds: Arc<AtomicU64>,
}

impl Mesh {
    /// Reads the store and follows it from then on, for as long as the mesh is in use.
    ///
    /// # Errors
    /// If the store cannot be read, or contains invalid records.
    pub async fn open(store: store::Shared, trust_domain: &str, lease: Duration) -> Result<Arc<Mesh>> {
        let watch = store.watch().await?;
        let mesh = Arc::new(Mesh {
            id: format!("{:016x}", rand::random::<u64>()),
            state: Mutex::new(State {
                world: World::new(trust_domain, watch.revision),
                nodes: Nodes::default(),
                usage: usage::Usage::default(),
                sessions: HashMap::new(),
                ports: HashMap::new(),
                next_session: 1,
                lapsed: BTreeSet::new(),
                unknown_until: Instant::now(),
                removed: VecDeque::new(),
                pairs: pairs::Pairs::new(watch.revision),
                locks: locks::Sessions::new(watch.revision),
                queries: documents::Documents::new(watch.revision),
                events_fired: documents::Documents::new(watch.revision),
                config_entries: documents::Documents::new(watch.revision),
                delays: HashSet::new(),
                folder: Arc::default(),
                kubernetes: AllPolicies::default(),
                api: ApiPolicies::default(),
                host_versions: HashMap::new(),
                all_version: 0,
            }),
            store,
            events: broadcast::Sender::new(EVENTS),
            version: watch::Sender::new(0),
            seen: watch::Sender::new(0),
            topics: Topics::default(),
            virtual_ips: Arc::default(),
            sessions_over: Arc::default(),
            own_lease: AtomicU64::new(0),
            cut_off: watch::Sender::new(None),
            lease,
            out_of_bounds: Arc::default(),
        });
        let changes = mesh.take_up(watch);
        mesh.renew_own_lease().await?;
        tokio::spawn(follow::run(Arc::downgrade(&mesh), changes));
        tokio::spawn(virtual_ips::keep(Arc::downgrade(&mesh), mesh.virtual_ips.clone()));
        tokio::spawn(sessions::keep_lease(Arc::downgrade(&mesh)));
        tokio::spawn(locks::watch(Arc::downgrade(&mesh), mesh.sessions_over.clone()));
        Ok(mesh)
    }

    /// Changes from now on.
    pub fn events(&self) -> broadcast::Receiver<Arc<Changed>> {
        self.events.subscribe()
    }

    /// Since when the store has not answered for longer than a lease. Sidecars should then use another control plane;
    /// if there is none, the state here is better than nothing.
    pub fn cut_off(&self) -> watch::Receiver<Option<Instant>> {
        self.cut_off.subscribe()
    }

    /// Version of the world, to wait on.
    pub fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Reads the world. The closure must be short: it holds the lock.
    pub fn read<T>(&self, f: impl FnOnce(&World) -> T) -> T {
        f(&self.lock().world)
    }

    /// Reads the world, and the version of the last change that concerned `host`.
    pub fn read_host<T>(&self, host: &str, f: impl FnOnce(&World, u64) -> T) -> T {
        let state = self.lock();
        let changed_at = state.host_versions.get(host).copied().unwrap_or(0).max(state.all_version);
        f(&state.world, changed_at)
    }

    /// Milliseconds by which the clocks of the sidecars connected here are ahead of the control plane's, by node.
    pub fn clocks(&self) -> HashMap<String, i64> {
        self.lock().sessions.iter().map(|(name, held)| (name.clone(), held.clock_ahead_ms)).collect()
    }

    /// Number of sidecars connected here that have ejected an endpoint, by host and address.
    pub fn ejected(&self) -> HashMap<(String, String), u32> {
        let mut counts = HashMap::new();
        for v1::Ejected { host, address } in self.lock().sessions.values().flat_map(|held| &held.ejected) {
            *counts.entry((host.clone(), address.clone())).or_default() += 1;
        }
        counts
    }

    /// Reads the nodes.
    pub fn read_nodes<T>(&self, f: impl FnOnce(&Nodes) -> T) -> T {
        f(&self.lock().nodes)
    }

    /// The workload of a connected sidecar as a client.
    ///
    /// # Errors
    /// If no such workload is connected, or several are.
    pub fn client(&self, name: &explain::Name) -> Result<explain::Client, String> {
        let state = self.lock();
        let ejected = |node: &str| {
            let held = state.sessions.get(node).map(|held| held.ejected.as_slice()).unwrap_or_default();
            held.iter().map(|one| (one.host.clone(), one.address.clone())).collect()
        };
        explain::find(name, &state.nodes.connected(), &state.world, ejected)
    }

    /// Waits until something under `topics` has changed and the index of the result differs from `index`; at most for
    /// `wait`. An index from before a loss of state is answered at once, and the client starts anew.
    pub async fn wait_past(&self, topics: &[Topic], index: u64, wait: Duration, index_of: impl Fn(&World) -> u64) {
        self.wait_until_not(topics, index, wait, |state| index_of(&state.world)).await;
    }

    async fn wait_until_not(&self, topics: &[Topic], index: u64, wait: Duration, index_of: impl Fn(&State) -> u64) {
        let waiting = self.topics.wait(topics);
        let changed = async {
            loop {
                let woken = waiting.woken();
                if index_of(&self.lock()) != index {
                    return;
                }
                woken.await;
            }
        };
        // Both outcomes are an answer.
        let _ = tokio::time::timeout(wait, changed).await;
    }

    /// Makes a transaction and waits until it arrives here. False: a condition does not hold.
    async fn write(&self, conditions: Vec<Condition>, ops: Vec<Op>) -> Result<bool, store::Error> {
        Ok(self.write_at(conditions, ops).await?.is_some())
    }

    /// The same; returns its revision, 0 if there was nothing to change.
    async fn write_at(&self, conditions: Vec<Condition>, ops: Vec<Op>) -> Result<Option<u64>, store::Error> {
        let Some(revision) = self.store.txn(conditions, ops).await? else { return Ok(None) };
        let mut seen = self.seen.subscribe();
        // It is safe in the store; if the watch is broken, the change becomes visible once it is restored.
        let _ = tokio::time::timeout(SEEN, seen.wait_for(|seen| *seen >= revision)).await;
        Ok(Some(revision))
    }

    /// Makes changes that belong together, at once if the store accepts that, and waits until they arrive here.
    async fn write_batch(&self, ops: Vec<Op>) -> Result<(), Interrupted> {
        batch::write(ops, self.store.limits(), |part| async { self.write(Vec::new(), part).await.map(drop) }).await
    }

    fn publish(&self, state: &mut State, changed: Changed) {
        let touched = state.world.take_changed_services();
        if !touched.is_empty() {
            self.topics.wake(touched.into_iter().map(Topic::Service).chain([Topic::Catalog]));
        }
        if state.world.virtual_ips().has_changed() {
            self.virtual_ips.notify_one();
        }
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
        // There may be no listeners.
        let _ = self.events.send(Arc::new(changed));
        self.version.send_replace(version);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Mesh {
    /// Two checks for expired leases: a node is removed at the second.
    pub(crate) async fn reap_for_tests(&self) {
        for _ in 0..2 {
            self.reap_once(Instant::now()).await.unwrap();
        }
    }
}

#[cfg(test)]
pub(crate) use tests::store as tests_store;

#[cfg(test)]
mod tests;
