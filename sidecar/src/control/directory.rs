//! The sidecar's knowledge of the mesh: one task writes it, all others read an immutable [`Snapshot`].
//!
//! It starts empty: a name is subscribed to when the application first uses it, the request waits for the answer (bounded),
//! and the name is dropped after long disuse. While the control plane is away nothing waits, and the last state keeps
//! serving; it is kept on disk too, so that it survives a restart.

mod saved;
mod writer;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};
use weft_core::inbound::Inbound;
use weft_core::service::Service;

use crate::upstream::cluster::ClusterView;
pub use writer::{Interest, Writer, new};

/// Longest wait of a request for an answer about an unknown name.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
/// The same for a virtual IP: the request cannot be passed through, so that waiting costs nothing.
const VIRTUAL_LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// A service as of one snapshot.
pub struct ServiceView {
    /// Its ports, routes and names.
    pub service: Arc<Service>,
    /// Its clusters, by the index that routes use.
    pub clusters: Vec<Arc<ClusterView>>,
}

/// The meaning of a name.
#[derive(Clone)]
pub enum Name {
    /// It means this service.
    Service(Arc<ServiceView>),
    /// The control plane knows no such name.
    Absent,
}

struct Entry {
    name: Name,
    /// Seconds since the directory was made, at the last use.
    used: AtomicU64,
}

/// All that is known, at one moment.
#[derive(Default)]
pub struct Snapshot {
    names: HashMap<Arc<str>, Arc<Entry>>,
    clusters: HashMap<Arc<str>, Arc<ClusterView>>,
    /// The inbound policy; `None` before the first one.
    pub inbound: Option<Arc<Inbound>>,
}

impl Snapshot {
    /// Every cluster.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<ClusterView>> {
        self.clusters.values()
    }

    /// Names and their meanings, for the admin endpoint.
    pub fn names(&self) -> impl Iterator<Item = (&str, &Name)> {
        self.names.iter().map(|(name, entry)| (&**name, &entry.name))
    }
}

/// The answer to a look-up.
pub enum Lookup {
    /// A service of the mesh.
    Service(Arc<ServiceView>),
    /// Not of the mesh.
    Absent,
    /// Unknown, and the control plane cannot be queried now.
    Unknown,
}

enum Command {
    Lookup(Arc<str>, oneshot::Sender<()>),
}

/// The readers' side.
pub struct Directory {
    snapshot: ArcSwap<Snapshot>,
    commands: mpsc::Sender<Command>,
    connected: AtomicBool,
    ready: watch::Sender<bool>,
    inbound: watch::Sender<Option<Arc<Inbound>>>,
    start: Instant,
}

impl Directory {
    /// The current snapshot. A request takes it once.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The meaning of `name`: `host`, or `ip:port`. Queries the control plane if it is unknown.
    pub async fn lookup(&self, name: &str) -> Lookup {
        if let Some(known) = self.known(name) {
            return known;
        }
        if !self.connected.load(Ordering::Relaxed) || name.len() > 253 {
            return Lookup::Unknown;
        }
        // Seldom: a request should not have room for it always.
        Box::pin(self.ask(name)).await
    }

    /// Asks the control plane.
    async fn ask(&self, name: &str) -> Lookup {
        let (answered, answer) = oneshot::channel();
        // A full queue means a flood of new names: those are not worth waiting for.
        if self.commands.try_send(Command::Lookup(name.into(), answered)).is_err() {
            return Lookup::Unknown;
        }
        // Time-out and loss of the connection are both "unknown".
        let limit = if name.starts_with("240.240.") { VIRTUAL_LOOKUP_TIMEOUT } else { LOOKUP_TIMEOUT };
        let _ = tokio::time::timeout(limit, answer).await;
        self.known(name).unwrap_or(Lookup::Unknown)
    }

    /// As [`Directory::lookup`], without asking.
    pub fn known(&self, name: &str) -> Option<Lookup> {
        let snapshot = self.snapshot.load();
        let entry = snapshot.names.get(name)?;
        let now = self.start.elapsed().as_secs();
        // Written only when it moves, so that readers on other cores keep their copy of the line.
        if entry.used.load(Ordering::Relaxed) != now {
            entry.used.store(now, Ordering::Relaxed);
        }
        Some(match &entry.name {
            Name::Service(view) => Lookup::Service(view.clone()),
            Name::Absent => Lookup::Absent,
        })
    }

    /// Whether the stream to the control plane is up.
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// The inbound policy, for code that outlives one.
    pub fn inbound(&self) -> watch::Receiver<Option<Arc<Inbound>>> {
        self.inbound.subscribe()
    }

    /// Whether an inbound policy has arrived: before that nothing is served.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }
}
