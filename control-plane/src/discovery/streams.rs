//! The versions that each stream was sent and has acknowledged, and waits until all have acknowledged a change. The
//! cost of an acknowledgement grows with the number of waits, not of streams.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;
use weft_proto::ENDPOINTS_TYPE;

use super::Version;
use super::names::Name;

/// Type and host of a resource.
pub(super) type Resource = (&'static str, Name);

/// A stream, and the properties of its client.
#[derive(Clone)]
pub(super) struct Stream {
    pub node: String,
    pub version: String,
    pub identity: String,
    pub address: String,
    pub since: Instant,
    pub resources: HashMap<Resource, Delivery>,
}

/// A resource on a stream.
#[derive(Clone, Default)]
pub(super) struct Delivery {
    /// 0: none, as below.
    pub sent: Version,
    pub acknowledged: Version,
    /// Version of the world that the last acknowledged resource was translated from.
    acknowledged_at: u64,
    /// The reason why it was refused, if it was.
    pub refused: Option<Box<str>>,
}

/// The goal of a wait: the acknowledgement of this host's current endpoints.
#[derive(Debug, Clone)]
pub(super) struct Goal {
    pub host: Name,
    /// The current versions, one for each definition of the host.
    pub versions: Vec<Version>,
    /// Version of the world at which the host changed last: later translations fulfil the goal too.
    pub changed_at: u64,
}

impl Goal {
    fn is_reached(&self, delivery: &Delivery) -> bool {
        // A stream that refuses is not waited for.
        delivery.refused.is_some()
            || self.versions.contains(&delivery.acknowledged)
            || (delivery.acknowledged != 0 && delivery.acknowledged_at >= self.changed_at)
    }
}

/// One that waits.
struct Wait {
    goals: Vec<Goal>,
    /// Streams that have a host and have not acknowledged it.
    behind: BTreeSet<u64>,
    /// Streams that have a host.
    all: u32,
    done: Arc<Notify>,
}

/// All streams.
#[derive(Default)]
pub(super) struct Streams {
    all: BTreeMap<u64, Stream>,
    /// Streams that were sent a host's endpoints.
    holders: HashMap<Name, BTreeSet<u64>>,
    waits: BTreeMap<u64, Wait>,
    next_wait: u64,
}

impl Streams {
    pub(super) fn open(&mut self, id: u64, stream: Stream) {
        self.all.insert(id, stream);
    }

    pub(super) fn close(&mut self, id: u64) {
        let Some(stream) = self.all.remove(&id) else { return };
        for (kind, host) in stream.resources.keys() {
            if *kind == ENDPOINTS_TYPE {
                self.forget(id, host);
            }
        }
        for wait in self.waits.values_mut() {
            // It counts neither as behind nor as acknowledged.
            if wait.behind.remove(&id) {
                wait.all -= 1;
            }
        }
        self.wake();
    }

    /// Sets the name and version of the client.
    pub(super) fn name(&mut self, id: u64, node: &str, version: &str) {
        if let Some(stream) = self.all.get_mut(&id) {
            (stream.node, stream.version) = (node.to_owned(), version.to_owned());
        }
    }

    /// Records that resources were sent to the client.
    pub(super) fn sent<'a>(&mut self, id: u64, kind: &'static str, sent: impl Iterator<Item = (&'a Name, Version)>) {
        for (host, version) in sent {
            if let Some(delivery) = self.delivery(id, kind, host) {
                delivery.sent = version;
            }
        }
    }

    /// Records that the client has a resource in this version from an earlier stream.
    pub(super) fn known(&mut self, id: u64, kind: &'static str, host: &Name, version: Version) {
        let Some(delivery) = self.delivery(id, kind, host) else { return };
        if delivery.sent == 0 {
            (delivery.sent, delivery.acknowledged) = (version, version);
            self.settle(id, host);
        }
    }

    fn delivery(&mut self, id: u64, kind: &'static str, host: &Name) -> Option<&mut Delivery> {
        let stream = self.all.get_mut(&id)?;
        if kind == ENDPOINTS_TYPE {
            self.holders.entry(host.clone()).or_default().insert(id);
        }
        Some(stream.resources.entry((kind, host.clone())).or_default())
    }

    /// Records the answer to a response: hosts, each with the version and the version of the world that it was
    /// translated from.
    pub(super) fn answered(
        &mut self,
        id: u64,
        kind: &'static str,
        resources: Vec<(Name, Version, u64)>,
        refused: Option<&str>,
    ) {
        for (host, version, made_at) in resources {
            let stream = self.all.get_mut(&id);
            let Some(delivery) = stream.and_then(|stream| stream.resources.get_mut(&(kind, host.clone()))) else {
                continue;
            };
            match refused {
                None => {
                    (delivery.acknowledged, delivery.acknowledged_at) = (version, made_at);
                    delivery.refused = None;
                }
                Some(reason) => delivery.refused = Some(reason.into()),
            }
            if kind == ENDPOINTS_TYPE {
                self.settle(id, &host);
            }
        }
        self.wake();
    }

    /// Records that the client does not have these any more.
    pub(super) fn dropped(&mut self, id: u64, kind: &'static str, hosts: &[Name]) {
        for host in hosts {
            let Some(stream) = self.all.get_mut(&id) else { return };
            stream.resources.remove(&(kind, host.clone()));
            if kind == ENDPOINTS_TYPE {
                self.forget(id, host);
                self.settle(id, host);
            }
        }
        self.wake();
    }

    fn forget(&mut self, id: u64, host: &Name) {
        if let Some(holders) = self.holders.get_mut(host) {
            holders.remove(&id);
            if holders.is_empty() {
                self.holders.remove(host);
            }
        }
    }

    /// Updates the waits for a stream of which a host has changed.
    fn settle(&mut self, id: u64, host: &Name) {
        let Some(stream) = self.all.get(&id) else { return };
        for wait in self.waits.values_mut() {
            if wait.goals.iter().any(|goal| goal.host == *host) && !is_behind(stream, &wait.goals) {
                wait.behind.remove(&id);
            }
        }
    }

    fn wake(&self) {
        self.waits.values().filter(|wait| wait.behind.is_empty()).for_each(|wait| wait.done.notify_one());
    }

    /// Begins to wait until the goals are reached by all streams that have one of their hosts. The number is for
    /// [`Streams::end`]; the other value is notified when they are reached.
    pub(super) fn begin(&mut self, goals: Vec<Goal>) -> (u64, Arc<Notify>) {
        let holders: BTreeSet<u64> =
            goals.iter().filter_map(|goal| self.holders.get(&goal.host)).flatten().copied().collect();
        let all = u32::try_from(holders.len()).unwrap_or(u32::MAX);
        let is_behind = |id: &u64| self.all.get(id).is_some_and(|stream| is_behind(stream, &goals));
        let behind = holders.into_iter().filter(is_behind).collect();
        let done = Arc::new(Notify::new());
        let number = self.next_wait;
        self.next_wait += 1;
        self.waits.insert(number, Wait { goals, behind, all, done: done.clone() });
        self.wake();
        (number, done)
    }

    /// The number of streams that have reached the goals of a wait, and of all of its streams.
    pub(super) fn progress(&self, number: u64) -> (u32, u32) {
        let Some(wait) = self.waits.get(&number) else { return (0, 0) };
        let behind = u32::try_from(wait.behind.len()).unwrap_or(u32::MAX);
        (wait.all.saturating_sub(behind), wait.all)
    }

    /// Ends a wait.
    pub(super) fn end(&mut self, number: u64) {
        self.waits.remove(&number);
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.all.values()
    }
}

/// Whether a stream has a host of the goals in another state.
fn is_behind(stream: &Stream, goals: &[Goal]) -> bool {
    goals.iter().any(|goal| {
        let delivery = stream.resources.get(&(ENDPOINTS_TYPE, goal.host.clone()));
        delivery.is_some_and(|delivery| !goal.is_reached(delivery))
    })
}

#[cfg(test)]
mod tests {
    use weft_proto::SERVICE_TYPE;

    use super::*;

    fn streams(count: u64) -> Streams {
        let mut streams = Streams::default();
        for id in 0..count {
            let stream = Stream {
                node: format!("n{id}"),
                version: String::new(),
                identity: String::new(),
                address: String::new(),
                since: Instant::now(),
                resources: HashMap::new(),
            };
            streams.open(id, stream);
        }
        streams
    }

    fn send(streams: &mut Streams, id: u64, host: &str, version: Version) {
        streams.sent(id, ENDPOINTS_TYPE, std::iter::once((&host.into(), version)));
    }

    fn answer(streams: &mut Streams, id: u64, host: &str, (version, made_at): (Version, u64), refused: Option<&str>) {
        streams.answered(id, ENDPOINTS_TYPE, vec![(host.into(), version, made_at)], refused);
    }

    fn goal(host: &str, version: Version, changed_at: u64) -> Goal {
        Goal { host: host.into(), versions: vec![version], changed_at }
    }

    fn is_done(done: &Notify) -> bool {
        futures::FutureExt::now_or_never(done.notified()).is_some()
    }

    #[test]
    fn a_wait_ends_when_all_streams_that_have_a_host_are_current() {
        let mut streams = streams(5);
        for id in 0..4 {
            send(&mut streams, id, "a", 1);
            answer(&mut streams, id, "a", (1, 1), None);
        }
        send(&mut streams, 4, "b", 9);
        // One has it from an earlier stream.
        let (number, done) = streams.begin(vec![goal("a", 2, 7)]);
        assert!(!is_done(&done));
        answer(&mut streams, 0, "a", (2, 7), None);
        // A later translation fulfils the goal, an earlier one does not.
        answer(&mut streams, 1, "a", (3, 8), None);
        answer(&mut streams, 2, "a", (100, 6), None);
        assert!(!is_done(&done));
        answer(&mut streams, 2, "a", (2, 7), Some("no"));
        assert!(!is_done(&done), "one is behind");
        streams.close(3);
        assert!(is_done(&done));
        assert_eq!(streams.progress(number), (3, 3));
        streams.end(number);
        assert!(streams.waits.is_empty());
    }

    #[test]
    fn a_wait_that_ends_early_counts_those_that_are_current() {
        let mut streams = streams(3);
        for id in 0..3 {
            send(&mut streams, id, "a", 1);
        }
        streams.known(0, ENDPOINTS_TYPE, &"a".into(), 1);
        let (number, done) = streams.begin(vec![goal("a", 1, 3), goal("b", 1, 3)]);
        answer(&mut streams, 1, "a", (1, 1), None);
        assert!(!is_done(&done));
        assert_eq!(streams.progress(number), (1, 3));
        // Without a stream that has it there is no wait.
        let (number, done) = streams.begin(vec![goal("c", 1, 3)]);
        assert!(is_done(&done));
        assert_eq!(streams.progress(number), (0, 0));
    }

    #[test]
    fn a_wait_ignores_streams_that_dropped_the_host() {
        let mut streams = streams(1);
        send(&mut streams, 0, "a", 1);
        streams.sent(0, SERVICE_TYPE, std::iter::once((&"a".into(), 1)));
        let (number, done) = streams.begin(vec![goal("a", 2, 3)]);
        streams.dropped(0, SERVICE_TYPE, &["a".into()]);
        assert!(!is_done(&done));
        streams.dropped(0, ENDPOINTS_TYPE, &["a".into()]);
        assert!(is_done(&done));
        assert_eq!(streams.progress(number), (1, 1));
        assert!(streams.holders.is_empty());
    }
}
