//! Which connection a request gets, waits for or is refused: the exact book-keeping of one cluster's connections.
//!
//! One `Pool` holds the connections of all workers to all endpoints of one service, port and subset, so that a limit of
//! 100 is 100 and not 100 for each worker. It neither dials nor waits: it says what to do, and takes what was done. The
//! sidecar keeps it behind a mutex that is held for a few dozen instructions; `X` is its connection for one request at a
//! time, `S` a handle on a multiplexed one, `W` what wakes a waiting request. Connections that come out to be closed are
//! dropped by the caller, after it has let go of the mutex.
//!
//! At `maxConnections` an idle connection to another endpoint is closed to make room; otherwise requests wait in one
//! queue, first come first served, bounded by `http1MaxPendingRequests`. As in Envoy, a request counts as pending
//! from when it finds no ready connection until it has one, dialing included (circuit breaking, "maximum pending
//! requests"). Unlike Envoy, the bound on connections holds over all workers and hosts.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Instant;

use crate::limits::Overflow;

/// Identifies an endpoint within its cluster; ids are handed out by a counter.
pub type EndpointId = u64;

/// Identifies a waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// Identifies a multiplexed (HTTP/2) connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SharedId(u64);

/// What bounds a pool. Unlimited: `u32::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimits {
    /// Connections, those being dialed included.
    pub max_connections: u32,
    /// Requests without a connection.
    pub max_pending: u32,
    /// Streams on one multiplexed connection.
    pub max_streams: u32,
}

/// What a request has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Acquired<X, S> {
    /// Use this connection, and give it back with [`Pool::release`].
    Exclusive(X),
    /// Use a stream of this connection, and give it back with [`Pool::release_stream`].
    Stream(S, SharedId),
    /// Dial, then say [`Pool::connected`], [`Pool::connected_shared`] or [`Pool::dial_failed`].
    Dial,
    /// Wait to be granted something; [`Pool::cancel`] on giving up. The victim, if any, is to be closed first: its
    /// [`Pool::closed`] makes the room.
    Wait(Ticket, Option<Unused<X, S>>),
}

/// A connection that nobody uses.
#[derive(Debug, PartialEq, Eq)]
pub enum Unused<X, S> {
    /// Of HTTP/1.
    Exclusive(X),
    /// Of HTTP/2.
    Shared(S),
}

/// What a waiting request is given.
#[derive(Debug, PartialEq, Eq)]
pub enum Grant<X, S> {
    /// As [`Acquired::Exclusive`].
    Exclusive(X),
    /// As [`Acquired::Stream`].
    Stream(S, SharedId),
    /// As [`Acquired::Dial`].
    Dial,
}

/// A grant to deliver.
#[derive(Debug, PartialEq, Eq)]
pub struct Wake<X, S, W> {
    /// Whom.
    pub wake: W,
    /// What.
    pub grant: Grant<X, S>,
    /// The endpoint that was asked for.
    pub endpoint: EndpointId,
    /// Whether it was asked for as a stream.
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
    /// The peer's own bound.
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

/// Endpoint ids come from a counter: they need no hashing.
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
        // Spread over the high bits too, where the table looks for its tags.
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
    /// Endpoints that connections may be kept to; `None`: any.
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

    /// Changes the limits. Connections above a lowered limit live on until they are given back.
    pub fn set_limits(&mut self, limits: PoolLimits) -> Vec<Wake<X, S, W>> {
        self.limits = limits;
        let mut wakes = Vec::new();
        while let Some(wake) = self.grant_slot() {
            wakes.push(wake);
        }
        wakes
    }

    /// Connections open or being dialed.
    pub fn open(&self) -> u32 {
        self.open
    }

    /// Requests without a connection.
    pub fn pending(&self) -> u32 {
        self.pending
    }

    /// Asks for a connection to `endpoint` for a request on `worker`. `multiplex`: the endpoint speaks HTTP/2. `wake`
    /// is called only when the answer is to wait.
    ///
    /// # Errors
    /// When too many requests are pending.
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
        // No request overtakes those that wait for room already. Those that wait for a dial do not: it may be to an endpoint that
        // has vanished, and others go on.
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

    /// A slot for a TCP connection: never waits, as a byte stream cannot be told why it does. Ends with
    /// [`Pool::closed`].
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

    /// A dial for an exclusive connection succeeded; the dialer uses it.
    pub fn connected(&mut self) {
        self.pending = self.pending.saturating_sub(1);
    }

    /// A dial gave a multiplexed connection; the dialer uses its first stream. The grants are further streams for
    /// requests that waited for it.
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
        // Those who waited for this dial and found no stream on it may dial themselves.
        while let Some(wake) = self.grant_slot() {
            wakes.push(wake);
        }
        (id, wakes)
    }

    /// A dial failed, or was given up.
    pub fn dial_failed(&mut self, endpoint: EndpointId, multiplex: bool) -> Vec<Wake<X, S, W>> {
        self.pending = self.pending.saturating_sub(1);
        if multiplex {
            self.end_dial(endpoint);
        }
        self.closed()
    }

    /// Requests that wait for the multiplexed connection to `endpoint` whose dial has failed: each would else dial in its turn, and
    /// the last wait for all of them. To be told of the failure.
    pub fn fail_waiters(&mut self, endpoint: EndpointId) -> Vec<W> {
        // Others may still have a stream for them.
        if self.shared.contains_key(&endpoint) || self.dialing.get(&endpoint).is_some_and(|n| *n > 1) {
            return Vec::new();
        }
        let (failed, rest): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.waiters).into_iter().partition(|w| w.multiplex && w.endpoint == endpoint);
        self.waiters = rest;
        self.pending = self.pending.saturating_sub(u32::try_from(failed.len()).unwrap_or(u32::MAX));
        failed.into_iter().map(|waiter| waiter.wake).collect()
    }

    /// An exclusive connection is free for another request. Either it is granted to the request that waits longest,
    /// or kept, or returned to be closed: to make room for a request that waits for another endpoint.
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

    /// A stream of a multiplexed connection has ended: it goes to the request that waits for one there, if any.
    /// Returns a connection that is to be closed, to make room for a request that waits for another endpoint.
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

    /// No further stream is to be opened on this connection (GOAWAY, or its number of requests is reached). Its slot
    /// is free when [`Pool::closed`] says so. Returns the pool's handle, to be dropped.
    pub fn retire(&mut self, endpoint: EndpointId, id: SharedId) -> Option<S> {
        let all = self.shared.get_mut(&endpoint)?;
        let at = all.iter().position(|s| s.id == id)?;
        let retired = all.remove(at);
        if all.is_empty() {
            self.shared.remove(&endpoint);
        }
        Some(retired.connection)
    }

    /// A connection is closed, whatever it was doing: its slot goes to the request that waits longest.
    pub fn closed(&mut self) -> Vec<Wake<X, S, W>> {
        self.open = self.open.saturating_sub(1);
        self.grant_slot().into_iter().collect()
    }

    /// A waiting request gave up. `false`: it was granted something meanwhile, which is on its way.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let Some(at) = self.waiters.iter().position(|w| w.ticket == ticket) else { return false };
        self.waiters.remove(at);
        self.pending = self.pending.saturating_sub(1);
        true
    }

    /// Gives a free slot, if there is one, to the request that waits longest and not for a dial under way.
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

    /// Whether a connection is under way that others than its dialer will find room on.
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
