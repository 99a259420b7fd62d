//! Waiters by topic: a change to one service must not wake waiters for another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use tokio::sync::Notify;

/// The topics of waits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Instances of a service, by canonical name.
    Service(String),
    /// The set of services, and any of their instances.
    Catalog,
    /// The set of nodes.
    Nodes,
    /// One key-value pair, by `<namespace>/<key>`.
    Pair(String),
    /// Any of them.
    Pairs,
    /// Sessions.
    Sessions,
    /// Prepared queries.
    Queries,
    /// Events.
    Events,
    /// Config entries.
    ConfigEntries,
}

/// The waiters by topic. Its size is their number.
#[derive(Default)]
pub(super) struct Topics(Mutex<HashMap<Topic, Arc<Notify>>>);

/// One waiter; removed when dropped.
pub(super) struct Waiting<'a> {
    topics: &'a Topics,
    entries: Vec<(Topic, Arc<Notify>)>,
}

impl Topics {
    /// Begins to wait.
    pub(super) fn wait(&self, topics: &[Topic]) -> Waiting<'_> {
        let mut all = self.lock();
        let entries =
            topics.iter().map(|topic| (topic.clone(), all.entry(topic.clone()).or_default().clone())).collect();
        Waiting { topics: self, entries }
    }

    /// Wakes all waiters for one of these.
    pub(super) fn wake(&self, topics: impl Iterator<Item = Topic>) {
        let all = self.lock();
        topics.filter_map(|topic| all.get(&topic)).for_each(|waiting| waiting.notify_waiters());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Topic, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting<'_> {
    /// Resolves when woken after this call, not after its first poll: changes in between are not missed.
    pub(super) fn woken(&self) -> impl Future<Output = ()> + use<'_> {
        let all: Vec<_> = self
            .entries
            .iter()
            .map(|(_, notify)| {
                let mut woken = Box::pin(notify.notified());
                woken.as_mut().enable();
                woken
            })
            .collect();
        futures::future::select_all(all).map(drop)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut all = self.topics.lock();
        for (topic, notify) in self.entries.drain(..) {
            drop(notify);
            if all.get(&topic).is_some_and(|left| Arc::strong_count(left) == 1) {
                all.remove(&topic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_wakes_its_waiters_and_is_removed_with_the_last() {
        let topics = Topics::default();
        let service = |name: &str| Topic::Service(name.into());
        let (one, two) = (topics.wait(&[service("a"), Topic::Pairs]), topics.wait(&[service("a")]));
        let (mut first, mut second) = (Box::pin(one.woken()), Box::pin(two.woken()));
        topics.wake([service("b"), Topic::Catalog].into_iter());
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        topics.wake([Topic::Pairs].into_iter());
        assert!(first.now_or_never().is_some() && second.as_mut().now_or_never().is_none());
        topics.wake([service("a")].into_iter());
        assert!(second.now_or_never().is_some());
        drop(one);
        assert_eq!(topics.lock().len(), 1);
        drop(two);
        assert!(topics.lock().is_empty());
    }
}
