//! The streams that a change concerns: those that subscribe to one of its hosts or addresses, and those whose own
//! instances it affects. Other streams cost nothing.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;

use super::names::{Label, Name, address_of, first_label, labels_of};
use weft_world::Changed;

/// Bound on the changes that wait for a stream; a stream that is further behind assumes that everything has changed.
const QUEUE: usize = 64;

/// The changes for a stream.
pub(super) struct Inbox {
    changes: mpsc::Receiver<Arc<Changed>>,
    /// Set when some did not fit.
    behind: Arc<AtomicBool>,
}

struct Stream {
    changes: mpsc::Sender<Arc<Changed>>,
    behind: Arc<AtomicBool>,
}

/// Streams by their interest, with the number of subscriptions.
struct Index<K>(HashMap<K, HashMap<u64, u32>>);

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Index<K> {
    fn watch(&mut self, key: K, id: u64) {
        *self.0.entry(key).or_default().entry(id).or_default() += 1;
    }

    fn unwatch<Q>(&mut self, key: &Q, id: u64)
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let Some(ids) = self.0.get_mut(key) else { return };
        if let Some(count) = ids.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                ids.remove(&id);
            }
        }
        if ids.is_empty() {
            self.0.remove(key);
        }
    }

    fn of<Q>(&self, key: &Q) -> impl Iterator<Item = u64>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.0.get(key).into_iter().flat_map(HashMap::keys).copied()
    }
}

/// All streams by their interests. A stream withdraws each of its interests, at its end at the latest.
#[derive(Default)]
pub(super) struct Router {
    streams: HashMap<u64, Stream>,
    hosts: Index<Name>,
    /// By the labels of names that may resolve to another host.
    labels: Index<Label>,
    addresses: Index<IpAddr>,
    nodes: Index<String>,
}

impl Inbox {
    /// The changes since the last call.
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

/// A change of everything.
fn everything() -> Changed {
    Changed { all: true, names: true, ..Changed::default() }
}

impl Router {
    /// Adds a stream, without interests.
    pub(super) fn open(&mut self, id: u64) -> Inbox {
        let (sender, changes) = mpsc::channel(QUEUE);
        let behind = Arc::new(AtomicBool::new(false));
        self.streams.insert(id, Stream { changes: sender, behind: behind.clone() });
        Inbox { changes, behind }
    }

    /// Removes a stream, which has withdrawn all of its interests.
    pub(super) fn close(&mut self, id: u64) {
        self.streams.remove(&id);
    }

    /// Sets the node of its sidecar from `old` to `new`.
    pub(super) fn set_node(&mut self, id: u64, old: &str, new: &str) {
        self.nodes.unwatch(old, id);
        if !new.is_empty() {
            self.nodes.watch(new.to_owned(), id);
        }
    }

    /// Adds an interest in a host.
    pub(super) fn watch(&mut self, id: u64, host: &Name) {
        self.hosts.watch(host.clone(), id);
    }

    /// Withdraws one interest in a host.
    pub(super) fn unwatch(&mut self, id: u64, host: &Name) {
        self.hosts.unwatch(host, id);
    }

    /// Adds an interest in the hosts that a name may resolve to.
    pub(super) fn watch_name(&mut self, id: u64, name: &str) {
        match address_of(name) {
            Some(address) => self.addresses.watch(address, id),
            None => labels_of(name).for_each(|label| self.labels.watch(label, id)),
        }
    }

    /// Withdraws one interest in the hosts that a name may resolve to.
    pub(super) fn unwatch_name(&mut self, id: u64, name: &str) {
        match address_of(name) {
            Some(address) => self.addresses.unwatch(&address, id),
            None => labels_of(name).for_each(|label| self.labels.unwatch(&label, id)),
        }
    }

    /// The streams that a change concerns.
    fn concerned(&self, changed: &Changed) -> HashSet<u64> {
        if changed.all || changed.names {
            return self.streams.keys().copied().collect();
        }
        let hosts = changed.hosts.iter().flat_map(|host| self.hosts.of(host.as_str()));
        let renamed = changed.renamed.iter().map(|host| first_label(host)).collect::<Vec<_>>();
        let renamed = renamed.iter().flat_map(|label| self.labels.of(label));
        let addresses = changed.addresses.iter().flat_map(|address| self.addresses.of(address));
        let nodes = changed.nodes.iter().flat_map(|node| self.nodes.of(node));
        hosts.chain(renamed).chain(addresses).chain(nodes).collect()
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

/// Routes changes until their source ends.
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
    fn a_change_concerns_its_subscribers_and_the_streams_of_its_node() {
        let mut router = Router::default();
        let _boxes: Vec<Inbox> = (0..4).map(|id| router.open(id)).collect();
        let (a, b): (Name, Name) = ("a".into(), "b".into());
        router.watch(0, &a);
        router.watch(0, &a);
        router.watch(1, &b);
        router.watch_name(1, "10.0.0.1:80");
        router.watch_name(2, "10.0.0.1");
        router.set_node(2, "", "n1");
        router.set_node(2, "n1", "n2");
        router.watch(3, &a);
        router.watch_name(3, "Order.shop");
        assert_eq!(of(&router, &hosts(&["a"])), [0, 3]);
        assert_eq!(of(&router, &hosts(&["a", "b", "c"])), [0, 1, 3]);
        let at = Changed { addresses: [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()].into(), ..Changed::default() };
        assert_eq!(of(&router, &at), [1, 2]);
        let node = |name: &str| Changed { nodes: [name.to_owned()].into(), ..Changed::default() };
        assert_eq!((of(&router, &node("n1")), of(&router, &node("n2"))), (vec![], vec![2]));
        let renamed = |host: &str| Changed { renamed: [host.to_owned()].into(), ..Changed::default() };
        assert_eq!(of(&router, &renamed("order.default.svc.cluster.local")), [3]);
        assert_eq!(of(&router, &renamed("shop.default.svc.cluster.local")), [3], "order may be an endpoint of shop");
        assert!(of(&router, &renamed("default.other.svc.cluster.local")).is_empty());
        assert_eq!(of(&router, &Changed { names: true, ..Changed::default() }), [0, 1, 2, 3]);
        // An interest that was added twice ends when it is withdrawn twice.
        router.unwatch(0, &a);
        assert_eq!(of(&router, &hosts(&["a"])), [0, 3]);
        router.unwatch(0, &a);
        router.unwatch(0, &a);
        router.unwatch(3, &a);
        router.unwatch(1, &b);
        router.unwatch_name(1, "10.0.0.1:80");
        router.unwatch_name(2, "10.0.0.1");
        router.unwatch_name(3, "Order.shop");
        router.set_node(2, "n2", "");
        (0..4).for_each(|id| router.close(id));
        assert!(router.hosts.0.is_empty() && router.addresses.0.is_empty() && router.nodes.0.is_empty());
        assert!(router.labels.0.is_empty() && router.streams.is_empty());
    }

    #[tokio::test]
    async fn a_stream_that_is_too_far_behind_is_notified_of_a_change_of_everything() {
        let mut router = Router::default();
        let mut inbox = router.open(0);
        router.watch(0, &"a".into());
        router.watch(0, &"b".into());
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
