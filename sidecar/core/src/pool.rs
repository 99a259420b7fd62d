//! Assignment of connections to requests: the exact book-keeping of one cluster's connections.
//!
//! One `Pool` holds the connections of all workers to all endpoints of one service, port and subset, so that a limit of
//! 100 is 100 and not 100 per worker. It neither dials nor waits: it returns the next action, and records the results.
//! The sidecar keeps it behind a mutex that is held for a few dozen instructions; `X` is its connection for one request
//! at a time, `S` a handle on a multiplexed one, `W` wakes a waiting request. The caller drops the connections that are
//! returned for closing after it has released the mutex.
//!
//! At `maxConnections` an idle connection to another endpoint is closed to make room; otherwise requests wait in one
//! FIFO queue, bounded by `http1MaxPendingRequests`. As in Envoy, a request counts as pending from the time when it
//! finds no ready connection until it has one, including the dial (circuit breaking, "maximum pending requests").
//! Unlike in Envoy, the limit of connections applies to all workers and hosts together.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Instant;

use crate::limits::Overflow;

/// Identifies an endpoint within its cluster; taken from a counter.
pub type EndpointId = u64;

/// Identifies a waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// Identifies a multiplexed (HTTP/2) connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SharedId(u64);

/// Limits of a pool. Unlimited: `u32::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimits {
    /// Connections, those being dialed included.
    pub max_connections: u32,
    /// Requests without a connection.
    pub max_pending: u32,
    /// Streams on one multiplexed connection.
    pub max_streams: u32,
}

/// Next action of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Acquired<X, S> {
    /// Use this connection, and return it with [`Pool::release`].
    Exclusive(X),
    /// Use a stream of this connection, and return it with [`Pool::release_stream`].
    Stream(S, SharedId),
    /// Dial, then report [`Pool::connected`], [`Pool::connected_shared`] or [`Pool::dial_failed`].
    Dial,
    /// Wait for a grant; [`Pool::cancel`] on giving up. The caller closes the returned connection first; reporting
    /// [`Pool::closed`] for it frees a slot.
    Wait(Ticket, Option<Unused<X, S>>),
}

/// An unused connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Unused<X, S> {
    /// HTTP/1.
    Exclusive(X),
    /// HTTP/2.
    Shared(S),
}

/// Grant to a waiting request.
#[derive(Debug, PartialEq, Eq)]
pub enum Grant<X, S> {
    /// See [`Acquired::Exclusive`].
    Exclusive(X),
    /// See [`Acquired::Stream`].
    Stream(S, SharedId),
    /// See [`Acquired::Dial`].
    Dial,
}

/// A grant, to be delivered by the caller.
#[derive(Debug, PartialEq, Eq)]
pub struct Wake<X, S, W> {
    /// Handle of the waiting request.
    pub wake: W,
    /// The granted action.
    pub grant: Grant<X, S>,
    /// The requested endpoint.
    pub endpoint: EndpointId,
    /// Whether a stream was requested.
    pub multiplex: bool,
}

struct Idle<X> {
    connection: X,
    worker: u16,
    since: Instant,
}

struct Shared<S> {
    id: SharedId,
    connection: S,
    streams: u32,
    /// The peer's limit.
    peer_max_streams: u32,
    idle_since: Instant,
}

struct Waiter<W> {
    ticket: Ticket,
    endpoint: EndpointId,
    multiplex: bool,
    wake: W,
}

impl<W> Waiter<W> {
    fn granted<X, S>(self, grant: Grant<X, S>) -> Wake<X, S, W> {
        Wake { wake: self.wake, grant, endpoint: self.endpoint, multiplex: self.multiplex }
    }
}

/// Endpoint ids come from a counter and need no hashing.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*b);
        }
    }
    fn write_u64(&mut self, id: u64) {
        // Spreads the ids to the high bits, from which the table derives its tags.
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type ById<V> = HashMap<EndpointId, V, BuildHasherDefault<IdHasher>>;

/// The connections of one cluster.
pub struct Pool<X, S, W> {
    limits: PoolLimits,
    open: u32,
    pending: u32,
    next: u64,
    idle: ById<VecDeque<Idle<X>>>,
    shared: ById<Vec<Shared<S>>>,
    /// Multiplexed connections being dialed, by endpoint.
    dialing: ById<u32>,
    waiters: VecDeque<Waiter<W>>,
    /// Endpoints to which connections may be kept; `None`: any.
    live: Option<HashSet<EndpointId, BuildHasherDefault<IdHasher>>>,
}

impl<X, S: Clone, W> Pool<X, S, W> {
    /// An empty pool.
    pub fn new(limits: PoolLimits) -> Self {
        Pool {
            limits,
            open: 0,
            pending: 0,
            next: 0,
            idle: HashMap::default(),
            shared: HashMap::default(),
            dialing: HashMap::default(),
            waiters: VecDeque::new(),
            live: None,
        }
    }

    /// Changes the limits. Connections above a lowered limit stay until they are returned.
    pub fn set_limits(&mut self, limits: PoolLimits) -> Vec<Wake<X, S, W>> {
        self.limits = limits;
        let mut wakes = Vec::new();
        while let Some(wake) = self.grant_slot() {
            wakes.push(wake);
        }
        wakes
    }

    /// Number of connections that are open or being dialed.
    pub fn open(&self) -> u32 {
        self.open
    }

    /// Number of requests without a connection.
    pub fn pending(&self) -> u32 {
        self.pending
    }

    /// Requests a connection to `endpoint` on `worker`. `multiplex`: the endpoint uses HTTP/2. `wake` is called only if
    /// the request has to wait.
    ///
    /// # Errors
    /// If too many requests are pending.
    pub fn acquire(
        &mut self,
        endpoint: EndpointId,
        worker: u16,
        multiplex: bool,
        wake: impl FnOnce() -> W,
    ) -> Result<Acquired<X, S>, Overflow> {
        if multiplex {
            let max = self.limits.max_streams;
            let room = |s: &&mut Shared<S>| s.streams < max.min(s.peer_max_streams).max(1);
            let ready = self.shared.get_mut(&endpoint).and_then(|all| all.iter_mut().find(room));
            if let Some(shared) = ready {
                shared.streams += 1;
                return Ok(Acquired::Stream(shared.connection.clone(), shared.id));
            }
        } else if let Some(connection) = self.take_idle(endpoint, worker) {
            return Ok(Acquired::Exclusive(connection));
        }
        if self.pending >= self.limits.max_pending {
            return Err(Overflow { field: "http1MaxPendingRequests", limit: self.limits.max_pending });
        }
        self.pending += 1;
        let under_way = multiplex && self.is_dialing(endpoint);
        // FIFO: no request overtakes those that wait for room. Requests that wait for a dial are not counted: its
        // endpoint may have vanished, and others must proceed.
        let wants_room = |w: &Waiter<W>| !self.waits_for_dial(w);
        if !under_way && !self.waiters.iter().any(wants_room) && self.open < self.limits.max_connections {
            self.begin_dial(endpoint, multiplex);
            return Ok(Acquired::Dial);
        }
        let ticket = Ticket(self.next_id());
        self.waiters.push_back(Waiter { ticket, endpoint, multiplex, wake: wake() });
        let victim = if under_way { None } else { self.evict() };
        Ok(Acquired::Wait(ticket, victim))
    }

    /// Takes a slot for a TCP connection; never waits, since there is no way to report a delay on a byte stream.
    /// Returned by [`Pool::closed`].
    ///
    /// # Errors
    /// At `maxConnections`.
    pub fn acquire_tcp(&mut self) -> Result<(), Overflow> {
        if self.open >= self.limits.max_connections {
            return Err(Overflow { field: "maxConnections", limit: self.limits.max_connections });
        }
        self.open += 1;
        Ok(())
    }

    /// An exclusive connection was dialed; the dialing request uses it.
    pub fn connected(&mut self) {
        self.pending = self.pending.saturating_sub(1);
    }

    /// A multiplexed connection was dialed; the dialing request uses its first stream. The grants are further streams
    /// for the requests that waited for it.
    pub fn connected_shared(
        &mut self,
        endpoint: EndpointId,
        connection: S,
        peer_max_streams: u32,
        now: Instant,
    ) -> (SharedId, Vec<Wake<X, S, W>>) {
        self.pending = self.pending.saturating_sub(1);
        self.end_dial(endpoint);
        let id = SharedId(self.next_id());
        let max_streams = self.limits.max_streams.min(peer_max_streams).max(1);
        let mut wakes = Vec::new();
        let mut streams = 1;
        let mut i = 0;
        while streams < max_streams && i < self.waiters.len() {
            if self.waiters[i].multiplex && self.waiters[i].endpoint == endpoint {
                if let Some(waiter) = self.waiters.remove(i) {
                    self.pending = self.pending.saturating_sub(1);
                    streams += 1;
                    wakes.push(waiter.granted(Grant::Stream(connection.clone(), id)));
                }
            } else {
                i += 1;
            }
        }
        let shared = Shared { id, connection, streams, peer_max_streams, idle_since: now };
        self.shared.entry(endpoint).or_default().push(shared);
        // Requests that waited for this dial and found no free stream may dial themselves.
        while let Some(wake) = self.grant_slot() {
            wakes.push(wake);
        }
        (id, wakes)
    }

    /// A dial failed or was abandoned.
    pub fn dial_failed(&mut self, endpoint: EndpointId, multiplex: bool) -> Vec<Wake<X, S, W>> {
        self.pending = self.pending.saturating_sub(1);
        if multiplex {
            self.end_dial(endpoint);
        }
        self.closed()
    }

    /// The requests that wait for the multiplexed connection to `endpoint` whose dial has failed, to be notified of the
    /// failure: otherwise each would dial in turn, and the last would wait for all of these dials.
    pub fn fail_waiters(&mut self, endpoint: EndpointId) -> Vec<W> {
        // Another connection may still have a stream for them.
        if self.shared.contains_key(&endpoint) || self.dialing.get(&endpoint).is_some_and(|n| *n > 1) {
            return Vec::new();
        }
        let (failed, rest): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.waiters).into_iter().partition(|w| w.multiplex && w.endpoint == endpoint);
        self.waiters = rest;
        self.pending = self.pending.saturating_sub(u32::try_from(failed.len()).unwrap_or(u32::MAX));
        failed.into_iter().map(|waiter| waiter.wake).collect()
    }

    /// An exclusive connection is free. It is granted to the request that waits longest, or kept, or returned for
    /// closing to make room for a request that waits for another endpoint.
    pub fn release(
        &mut self,
        endpoint: EndpointId,
        worker: u16,
        connection: X,
        now: Instant,
    ) -> (Option<Wake<X, S, W>>, Option<X>) {
        let wants_room = self.waiters.front().is_some_and(|w| !self.waits_for_dial(w));
        if self.open > self.limits.max_connections || !self.is_live(endpoint) {
            return (None, Some(connection));
        }
        if wants_room {
            let same = self.waiters.front().is_some_and(|w| !w.multiplex && w.endpoint == endpoint);
            if !same {
                return (None, Some(connection));
            }
            if let Some(waiter) = self.waiters.pop_front() {
                self.pending = self.pending.saturating_sub(1);
                return (Some(waiter.granted(Grant::Exclusive(connection))), None);
            }
        }
        self.idle.entry(endpoint).or_default().push_back(Idle { connection, worker, since: now });
        (None, None)
    }

    /// A stream of a multiplexed connection has ended; it is granted to the request that waits longest for one there.
    /// Returns a connection for closing, to make room for a request that waits for another endpoint.
    pub fn release_stream(
        &mut self,
        endpoint: EndpointId,
        id: SharedId,
        now: Instant,
    ) -> (Option<Wake<X, S, W>>, Option<S>) {
        let waiter = self.waiters.iter().position(|w| w.multiplex && w.endpoint == endpoint);
        let room_wanted = waiter.is_none() && self.waiters.iter().any(|w| !self.waits_for_dial(w));
        let Some(all) = self.shared.get_mut(&endpoint) else { return (None, None) };
        let Some(at) = all.iter().position(|s| s.id == id) else { return (None, None) };
        let shared = &mut all[at];
        shared.streams = shared.streams.saturating_sub(1);
        let room = shared.streams < self.limits.max_streams.min(shared.peer_max_streams).max(1);
        if let Some(waiter) = waiter.filter(|_| room).and_then(|at| self.waiters.remove(at)) {
            shared.streams += 1;
            self.pending = self.pending.saturating_sub(1);
            return (Some(waiter.granted(Grant::Stream(shared.connection.clone(), id))), None);
        }
        if shared.streams == 0 {
            shared.idle_since = now;
            if room_wanted {
                return (None, self.retire(endpoint, id));
            }
        }
        (None, None)
    }

    /// Opens no further streams on this connection (GOAWAY, or its maximum number of requests). Its slot is freed by
    /// [`Pool::closed`]. Returns the pool's handle, to be dropped.
    pub fn retire(&mut self, endpoint: EndpointId, id: SharedId) -> Option<S> {
        let all = self.shared.get_mut(&endpoint)?;
        let at = all.iter().position(|s| s.id == id)?;
        let retired = all.remove(at);
        if all.is_empty() {
            self.shared.remove(&endpoint);
        }
        Some(retired.connection)
    }

    /// A connection was closed in whichever state: its slot is granted to the request that waits longest.
    pub fn closed(&mut self) -> Vec<Wake<X, S, W>> {
        self.open = self.open.saturating_sub(1);
        self.grant_slot().into_iter().collect()
    }

    /// A waiting request gives up. `false`: a grant was made in the meantime and is on its way.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let Some(at) = self.waiters.iter().position(|w| w.ticket == ticket) else { return false };
        self.waiters.remove(at);
        self.pending = self.pending.saturating_sub(1);
        true
    }

    /// Grants a free slot, if any, to the request that waits longest and not for a dial in progress.
    fn grant_slot(&mut self) -> Option<Wake<X, S, W>> {
        if self.open >= self.limits.max_connections {
            return None;
        }
        let at = self.waiters.iter().position(|w| !self.waits_for_dial(w))?;
        let waiter = self.waiters.remove(at)?;
        self.begin_dial(waiter.endpoint, waiter.multiplex);
        Some(waiter.granted(Grant::Dial))
    }

    fn waits_for_dial(&self, waiter: &Waiter<W>) -> bool {
        waiter.multiplex && self.is_dialing(waiter.endpoint)
    }

    /// Whether a dial is in progress whose connection will have room for other requests.
    pub fn is_dialing(&self, endpoint: EndpointId) -> bool {
        self.limits.max_streams > 1 && self.dialing.get(&endpoint).is_some_and(|n| *n > 0)
    }

    fn begin_dial(&mut self, endpoint: EndpointId, multiplex: bool) {
        self.open += 1;
        if multiplex {
            *self.dialing.entry(endpoint).or_default() += 1;
        }
    }

    fn end_dial(&mut self, endpoint: EndpointId) {
        if let Some(n) = self.dialing.get_mut(&endpoint) {
            *n -= 1;
            if *n == 0 {
                self.dialing.remove(&endpoint);
            }
        }
    }

    fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
mod tests;
mod unused;
