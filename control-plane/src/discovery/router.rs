//! Which streams a change concerns. A change wakes those that have asked for one of its hosts or addresses, and those whose own
//! instances it touched; a stream that has not costs it nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;

use crate::world::Changed;

/// Changes that wait for a stream; one that is further behind is told that everything may have changed.
const QUEUE: usize = 64;

/// What comes to a stream.
pub(super) struct Inbox {
    changes: mpsc::Receiver<Arc<Changed>>,
    /// Some did not fit.
    behind: Arc<AtomicBool>,
}

/// A stream, and what it is interested in.
struct Stream {
    changes: mpsc::Sender<Arc<Changed>>,
    behind: Arc<AtomicBool>,
    /// How often it has asked for each.
    hosts: HashMap<String, u32>,
    addresses: HashMap<IpAddr, u32>,
    node: String,
    /// Hosts of its own instances.
    own: BTreeSet<String>,
}

/// All streams, by what they are interested in.
#[derive(Default)]
pub(super) struct Router {
    streams: HashMap<u64, Stream>,
    hosts: HashMap<String, HashSet<u64>>,
    addresses: HashMap<IpAddr, HashSet<u64>>,
    nodes: HashMap<String, HashSet<u64>>,
}

impl Inbox {
    /// What has changed since the last call.
    pub(super) async fn changed(&mut self) -> Changed {
        let Some(first) = self.changes.recv().await else { return std::future::pending().await };
        let mut all = Changed::default();
        all.merge(&first);
        while let Ok(more) = self.changes.try_recv() {
            all.merge(&more);
        }
        if self.behind.swap(false, Ordering::AcqRel) {
            all = everything();
        }
        all
    }
}

/// All may have changed.
fn everything() -> Changed {
    Changed { all: true, names: true, ..Changed::default() }
}

impl Router {
    /// A stream begins, without interests.
    pub(super) fn open(&mut self, id: u64) -> Inbox {
        let (sender, changes) = mpsc::channel(QUEUE);
        let behind = Arc::new(AtomicBool::new(false));
        let stream = Stream {
            changes: sender,
            behind: behind.clone(),
            hosts: HashMap::new(),
            addresses: HashMap::new(),
            node: String::new(),
            own: BTreeSet::new(),
        };
        self.streams.insert(id, stream);
        Inbox { changes, behind }
    }

    pub(super) fn close(&mut self, id: u64) {
        let Some(stream) = self.streams.remove(&id) else { return };
        stream.hosts.keys().for_each(|host| remove(&mut self.hosts, host, id));
        stream.addresses.keys().for_each(|address| remove(&mut self.addresses, address, id));
        remove(&mut self.nodes, &stream.node, id);
    }

    /// Its sidecar is that of this node.
    pub(super) fn set_node(&mut self, id: u64, node: &str) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.node != node) else { return };
        remove(&mut self.nodes, &stream.node, id);
        node.clone_into(&mut stream.node);
        self.nodes.entry(node.to_owned()).or_default().insert(id);
    }

    /// It wants to hear of a host, once more.
    pub(super) fn watch(&mut self, id: u64, host: &str) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if add(&mut stream.hosts, host.to_owned()) {
            self.hosts.entry(host.to_owned()).or_default().insert(id);
        }
    }

    /// It wants to hear of a host once less.
    pub(super) fn unwatch(&mut self, id: u64, host: &str) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if subtract(&mut stream.hosts, host) {
            remove(&mut self.hosts, host, id);
        }
    }

    /// It wants to hear of endpoints at an address, once more.
    pub(super) fn watch_address(&mut self, id: u64, address: IpAddr) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if add(&mut stream.addresses, address) {
            self.addresses.entry(address).or_default().insert(id);
        }
    }

    /// It wants to hear of endpoints at an address once less.
    pub(super) fn unwatch_address(&mut self, id: u64, address: IpAddr) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if subtract(&mut stream.addresses, &address) {
            remove(&mut self.addresses, &address, id);
        }
    }

    /// The hosts of its own instances are these now.
    pub(super) fn set_own(&mut self, id: u64, own: BTreeSet<String>) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.own != own) else { return };
        let before = std::mem::replace(&mut stream.own, own.clone());
        own.difference(&before).for_each(|host| self.watch(id, host));
        before.difference(&own).for_each(|host| self.unwatch(id, host));
    }

    /// The streams that a change concerns.
    fn concerned(&self, changed: &Changed) -> HashSet<u64> {
        if changed.all || changed.names {
            return self.streams.keys().copied().collect();
        }
        let hosts = changed.hosts.iter().filter_map(|host| self.hosts.get(host));
        let addresses = changed.addresses.iter().filter_map(|address| self.addresses.get(address));
        let nodes = changed.nodes.iter().filter_map(|node| self.nodes.get(node));
        hosts.chain(addresses).chain(nodes).flatten().copied().collect()
    }

    fn route(&self, changed: &Arc<Changed>) {
        for id in self.concerned(changed) {
            let Some(stream) = self.streams.get(&id) else { continue };
            if stream.changes.try_send(changed.clone()).is_err() {
                stream.behind.store(true, Ordering::Release);
            }
        }
    }
}

/// Counts one more. Whether it is the first.
fn add<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: K) -> bool {
    let count = counts.entry(key).or_default();
    *count += 1;
    *count == 1
}

/// Counts one less. Whether it was the last.
fn subtract<K, Q>(counts: &mut HashMap<K, u32>, key: &Q) -> bool
where
    K: Eq + Hash + std::borrow::Borrow<Q>,
    Q: Eq + Hash + ?Sized,
{
    let Some(count) = counts.get_mut(key) else { return false };
    *count -= 1;
    *count == 0 && counts.remove(key).is_some()
}

fn remove<K, Q>(index: &mut HashMap<K, HashSet<u64>>, key: &Q, id: u64)
where
    K: Eq + Hash + std::borrow::Borrow<Q>,
    Q: Eq + Hash + ?Sized,
{
    if let Some(ids) = index.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

/// Routes changes for as long as there are any.
pub(super) async fn run(router: Arc<Mutex<Router>>, mut events: broadcast::Receiver<Arc<Changed>>) {
    loop {
        let changed = match events.recv().await {
            Ok(changed) => changed,
            Err(RecvError::Lagged(_)) => Arc::new(everything()),
            Err(RecvError::Closed) => return,
        };
        router.lock().unwrap_or_else(PoisonError::into_inner).route(&changed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(hosts: &[&str]) -> Changed {
        Changed { hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), ..Changed::default() }
    }

    fn of(router: &Router, changed: &Changed) -> Vec<u64> {
        let mut ids: Vec<u64> = router.concerned(changed).into_iter().collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn a_change_concerns_streams_that_have_asked_for_it_and_those_of_its_node() {
        let mut router = Router::default();
        let _boxes: Vec<Inbox> = (0..4).map(|id| router.open(id)).collect();
        router.watch(0, "a");
        router.watch(0, "a");
        router.watch(1, "b");
        router.watch_address(1, [10, 0, 0, 1].into());
        router.set_node(2, "n2");
        router.set_own(3, ["a".to_owned()].into());
        assert_eq!(of(&router, &hosts(&["a"])), [0, 3]);
        assert_eq!(of(&router, &hosts(&["a", "b", "c"])), [0, 1, 3]);
        let at = Changed { addresses: [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()].into(), ..Changed::default() };
        assert_eq!(of(&router, &at), [1]);
        let node = Changed { nodes: ["n2".to_owned()].into(), ..Changed::default() };
        assert_eq!(of(&router, &node), [2]);
        assert_eq!(of(&router, &Changed { names: true, ..Changed::default() }), [0, 1, 2, 3]);
        // Asked for twice, it is wanted until it is given up twice.
        router.unwatch(0, "a");
        assert_eq!(of(&router, &hosts(&["a"])), [0, 3]);
        router.unwatch(0, "a");
        router.unwatch(0, "a");
        router.set_own(3, ["b".to_owned()].into());
        assert_eq!((of(&router, &hosts(&["a"])), of(&router, &hosts(&["b"]))), (vec![], vec![1, 3]));
        (0..4).for_each(|id| router.close(id));
        assert!(router.hosts.is_empty() && router.addresses.is_empty() && router.nodes.is_empty());
    }

    #[tokio::test]
    async fn a_stream_that_is_behind_hears_that_everything_may_have_changed() {
        let mut router = Router::default();
        let mut inbox = router.open(0);
        router.watch(0, "a");
        router.watch(0, "b");
        router.route(&Arc::new(hosts(&["a"])));
        router.route(&Arc::new(hosts(&["b"])));
        assert_eq!(inbox.changed().await, hosts(&["a", "b"]));
        for _ in 0..=QUEUE {
            router.route(&Arc::new(hosts(&["a"])));
        }
        assert_eq!(inbox.changed().await, everything());
        router.route(&Arc::new(hosts(&["a"])));
        assert_eq!(inbox.changed().await, hosts(&["a"]));
    }
}
