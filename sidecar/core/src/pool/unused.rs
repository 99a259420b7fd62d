//! Unused connections: which are kept, for how long, and the choice of the one to close for room.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{EndpointId, Idle, Pool, Shared, Unused};

impl<X, S: Clone, W> Pool<X, S, W> {
    /// Removes the connections unused since `now - idle`, for closing.
    pub fn sweep(&mut self, now: Instant, idle: Duration, is_open: impl Fn(&X) -> bool) -> Vec<Unused<X, S>> {
        let mut old = Vec::new();
        self.idle.retain(|_, all| {
            let is_old = |i: &mut Idle<X>| now.saturating_duration_since(i.since) >= idle || !is_open(&i.connection);
            let mut at = 0;
            while let Some(next) = all.get_mut(at) {
                if is_old(next) {
                    old.extend(all.remove(at).map(|i| Unused::Exclusive(i.connection)));
                } else {
                    at += 1;
                }
            }
            !all.is_empty()
        });
        self.shared.retain(|_, all| {
            let is_old = |s: &Shared<S>| s.streams == 0 && now.saturating_duration_since(s.idle_since) >= idle;
            old.extend(all.iter().filter(|s| is_old(s)).map(|s| Unused::Shared(s.connection.clone())));
            all.retain(|s| !is_old(s));
            !all.is_empty()
        });
        old
    }

    /// Allows connections to be kept to any endpoint.
    pub fn set_all_live(&mut self) {
        self.live = None;
    }

    /// Sets the endpoints to which connections may be kept. Removes the unused connections to others, for closing;
    /// those in use are closed when they are returned.
    pub fn set_live(&mut self, live: impl IntoIterator<Item = EndpointId>) -> Vec<Unused<X, S>> {
        let live: HashSet<EndpointId, _> = live.into_iter().collect();
        let keep = |endpoint: EndpointId| live.contains(&endpoint);
        let mut gone = Vec::new();
        self.idle.retain(|endpoint, all| {
            let keep_all = keep(*endpoint);
            if !keep_all {
                gone.extend(all.drain(..).map(|i| Unused::Exclusive(i.connection)));
            }
            keep_all
        });
        self.shared.retain(|endpoint, all| {
            let keep_all = keep(*endpoint);
            if !keep_all {
                gone.extend(all.drain(..).map(|s| Unused::Shared(s.connection)));
            }
            keep_all
        });
        self.live = Some(live);
        gone
    }

    /// Removes the unused connections to one endpoint, and keeps none in the future.
    pub fn forget(&mut self, endpoint: EndpointId) -> Vec<Unused<X, S>> {
        let idle = self.idle.remove(&endpoint).into_iter().flatten().map(|i| Unused::Exclusive(i.connection));
        let shared = self.shared.remove(&endpoint).into_iter().flatten().map(|s| Unused::Shared(s.connection));
        idle.chain(shared).collect()
    }

    /// Removes all unused connections and the multiplexed ones, which were opened under an older policy. Streams in
    /// progress continue.
    pub fn forget_all(&mut self) -> Vec<Unused<X, S>> {
        let idle = self.idle.drain().flat_map(|(_, all)| all).map(|i| Unused::Exclusive(i.connection));
        let shared = self.shared.drain().flat_map(|(_, all)| all).map(|s| Unused::Shared(s.connection));
        idle.chain(shared).collect()
    }

    pub(super) fn is_live(&self, endpoint: EndpointId) -> bool {
        self.live.as_ref().is_none_or(|live| live.contains(&endpoint))
    }

    pub(super) fn take_idle(&mut self, endpoint: EndpointId, worker: u16) -> Option<X> {
        let all = self.idle.get_mut(&endpoint)?;
        // Prefers this worker's newest connection: its caches are warm, and the older ones may time out. Otherwise
        // another worker's connection is better than a new one.
        let at = all.iter().rposition(|i| i.worker == worker).unwrap_or(all.len().saturating_sub(1));
        let taken = all.remove(at)?;
        if all.is_empty() {
            self.idle.remove(&endpoint);
        }
        Some(taken.connection)
    }

    /// The connection that was unused for longest.
    pub(super) fn evict(&mut self) -> Option<Unused<X, S>> {
        let idle = self.idle.iter().filter_map(|(e, all)| Some((all.front()?.since, *e))).min();
        let shared = self
            .shared
            .iter()
            .flat_map(|(e, all)| all.iter().filter(|s| s.streams == 0).map(|s| (s.idle_since, *e, s.id)));
        let shared = shared.min_by_key(|(since, ..)| *since);
        match (idle, shared) {
            (Some((since, endpoint)), other) if other.is_none_or(|(s, ..)| since <= s) => {
                let all = self.idle.get_mut(&endpoint)?;
                let victim = all.pop_front()?.connection;
                if all.is_empty() {
                    self.idle.remove(&endpoint);
                }
                Some(Unused::Exclusive(victim))
            }
            (_, Some((_, endpoint, id))) => self.retire(endpoint, id).map(Unused::Shared),
            _ => None,
        }
    }
}
