//! Connections to endpoints: `weft_core::pool` decides which request gets which, this file opens, watches and closes them.
//!
//! `Drop` gives back a connection's place, wherever the connection ends: a [`Slot`] lives with the connection (for HTTP/2 in its
//! task and its users), and frees the place in the pool when the socket is closed.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use tokio::sync::oneshot;
use weft_core::limits::Overflow;
use weft_core::policy::ConnectionPool;
use weft_core::pool::{Acquired, EndpointId, Grant, Pool, PoolLimits, SharedId, Ticket, Wake};

use crate::http::body::RequestBody;
use crate::http::http1::{self, ExchangeError};
use crate::http::http2;
use crate::http::incoming::{Incoming, Interim};
use crate::upstream::dial::{DialError, Dialer, open_http};

type State = Pool<Http1, Http2, oneshot::Sender<Granted>>;

/// The connections of one cluster.
pub struct ClusterPool {
    state: Mutex<State>,
    /// `maxRequestsPerConnection`; 0: any number.
    max_requests: AtomicU32,
    /// `maxConnectionDuration`, milliseconds; 0: any time.
    max_age_ms: AtomicU64,
    /// Connections of an older one were made under another policy, and serve no further request.
    generation: AtomicU32,
}

/// The settings and time under which a connection was opened.
#[derive(Clone, Copy)]
struct Opening {
    generation: u32,
    at: Instant,
    /// It serves one request alone: it carries a PROXY header, or was dialed under older settings.
    for_one: bool,
}

/// Place of one open connection in the pool.
struct Slot {
    pool: Arc<ClusterPool>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let wakes = self.pool.lock().closed();
        self.pool.deliver(wakes);
    }
}

/// An HTTP/1 connection: one request at a time.
struct Http1 {
    // Closed before its place is given back.
    client: http1::Client,
    served: u32,
    made: Opening,
    _slot: Slot,
}

/// A handle on an HTTP/2 connection.
#[derive(Clone)]
struct Http2 {
    client: http2::Client,
    served: Arc<AtomicU32>,
    made: Opening,
    _slot: Arc<Slot>,
}

/// The grant to a waiting request. Dropped unread, it gives back its place.
enum Granted {
    Lease(Lease),
    Dial(Dialing),
    /// The dial that it waited for has failed.
    Failed(DialError),
}

/// The right to one connection or stream, for one request. Dropped before [`Lease::finish`], an HTTP/1 connection is
/// closed (its state is unknown) and an HTTP/2 stream reset.
pub struct Lease {
    /// `None` only while it is being dropped.
    kind: Option<LeaseKind>,
    pool: Arc<ClusterPool>,
    endpoint: EndpointId,
    /// Whether the connection served a request before: its peer may have closed it meanwhile.
    pub reused: bool,
}

enum LeaseKind {
    Http1(Http1),
    Http2(Http2, SharedId),
}

/// The duty to dial. Dropped before it is fulfilled, the place goes to the next.
struct Dialing {
    pool: Option<Arc<ClusterPool>>,
    endpoint: EndpointId,
    multiplex: bool,
}

impl Drop for Dialing {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            let wakes = pool.lock().dial_failed(self.endpoint, self.multiplex);
            pool.deliver(wakes);
        }
    }
}

/// A request in the queue. Dropped, it leaves it.
struct Waiting<'a> {
    pool: &'a Arc<ClusterPool>,
    ticket: Ticket,
    granted: oneshot::Receiver<Granted>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Race window: a grant that comes between these two is dropped with the receiver, and gives itself back.
        self.granted.close();
        self.pool.lock().cancel(self.ticket);
    }
}

/// A freshly opened connection, from the dialer.
pub enum Opened {
    /// HTTP/1.
    Http1(http1::Client),
    /// HTTP/2.
    Http2(http2::Client, http2::Driver),
}

/// Why there is no connection.
#[derive(Debug)]
pub enum CheckoutError {
    /// A limit.
    Overflow(Overflow),
    /// The dialer's reason.
    Dial(DialError),
}

fn limits(policy: &ConnectionPool) -> PoolLimits {
    PoolLimits {
        max_connections: policy.max_connections,
        max_pending: policy.max_pending_requests,
        max_streams: policy.max_concurrent_streams,
    }
}

impl ClusterPool {
    /// An empty pool.
    pub fn new(policy: &ConnectionPool) -> Arc<ClusterPool> {
        let pool = Arc::new(ClusterPool {
            state: Mutex::new(Pool::new(limits(policy))),
            max_requests: AtomicU32::default(),
            max_age_ms: AtomicU64::default(),
            generation: AtomicU32::default(),
        });
        pool.set_policy(policy);
        pool
    }

    /// Takes a changed policy.
    pub fn set_policy(self: &Arc<Self>, policy: &ConnectionPool) {
        let limits = limits(policy);
        let unlimited = policy.max_requests_per_connection == u32::MAX;
        let max_requests = if unlimited { 0 } else { policy.max_requests_per_connection };
        self.max_requests.store(max_requests, Ordering::Relaxed);
        let max_age = policy.max_connection_duration.unwrap_or_default().as_millis();
        self.max_age_ms.store(u64::try_from(max_age).unwrap_or(u64::MAX), Ordering::Relaxed);
        let wakes = self.lock().set_limits(limits);
        self.deliver(wakes);
    }

    /// Generation of the connection settings.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Connections are made otherwise from now on: those that are open serve no further request.
    pub fn renew(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        let unused = self.lock().forget_all();
        drop(unused);
    }

    /// Whether a connection serves no further request.
    fn is_over(&self, made: Opening, served: u32) -> bool {
        let max_requests = self.max_requests.load(Ordering::Relaxed);
        let max_age = self.max_age_ms.load(Ordering::Relaxed);
        made.for_one
            || made.generation != self.generation.load(Ordering::Relaxed)
            || (max_requests > 0 && served >= max_requests)
            || (max_age > 0 && made.at.elapsed() >= Duration::from_millis(max_age))
    }

    /// Connections open or being dialed, and requests without one.
    pub fn counts(&self) -> (u32, u32) {
        let state = self.lock();
        (state.open(), state.pending())
    }

    /// Closes connections that have been idle for `idle`, and those that their peers have closed.
    pub fn sweep(&self, idle: Duration) {
        let unused = self.lock().sweep(Instant::now(), idle, |x| x.client.is_open());
        drop(unused);
    }

    /// Closes idle connections to other endpoints than these, and keeps none to them from now on.
    pub fn set_live(&self, live: impl IntoIterator<Item = EndpointId>) {
        let unused = self.lock().set_live(live);
        drop(unused);
    }

    /// Keeps connections to all endpoints.
    pub fn set_all_live(&self) {
        self.lock().set_all_live();
    }

    /// Closes idle connections to one endpoint.
    pub fn forget(&self, endpoint: EndpointId) {
        let unused = self.lock().forget(endpoint);
        drop(unused);
    }

    /// A connection to the dialer's endpoint: an idle one, a new one, or one that another request gives back.
    ///
    /// # Errors
    /// When a limit refuses, or dialing fails.
    pub async fn checkout(self: &Arc<Self>, worker: u16, dialer: &Dialer<'_>) -> Result<Lease, CheckoutError> {
        let (endpoint, multiplex) = (dialer.endpoint.state.id(), dialer.multiplex);
        loop {
            let mut receiver = None;
            let acquired = self.lock().acquire(endpoint, worker, multiplex, || {
                let (sender, granted) = oneshot::channel();
                receiver = Some(granted);
                sender
            });
            let mut lease = match acquired.map_err(CheckoutError::Overflow)? {
                // Race window: it was given back while the others of its policy were forgotten.
                Acquired::Exclusive(x) if self.is_over(x.made, x.served) => continue,
                Acquired::Exclusive(x) => self.lease_http1(endpoint, x),
                Acquired::Stream(s, id) => self.lease_http2(endpoint, s, id),
                Acquired::Dial => {
                    let duty = Dialing { pool: Some(self.clone()), endpoint, multiplex };
                    Box::pin(self.dial(duty, dialer)).await.map_err(CheckoutError::Dial)?
                }
                Acquired::Wait(ticket, victim) => {
                    // Closing the victim makes the room that this request waits for. It must not happen under the lock.
                    drop(victim);
                    let Some(granted) = receiver else { continue };
                    let mut waiting = Waiting { pool: self, ticket, granted };
                    // The request that dials may have more time than this one.
                    let patience = dialer.patience.filter(|_| multiplex && self.lock().is_dialing(endpoint));
                    let granted = match patience {
                        None => (&mut waiting.granted).await,
                        Some(patience) => match tokio::time::timeout(patience, &mut waiting.granted).await {
                            Ok(granted) => granted,
                            Err(_) => return Err(CheckoutError::Dial(DialError::late(patience))),
                        },
                    };
                    match granted {
                        Ok(Granted::Lease(lease)) => lease,
                        Ok(Granted::Dial(duty)) => {
                            drop(waiting);
                            Box::pin(self.dial(duty, dialer)).await.map_err(CheckoutError::Dial)?
                        }
                        Ok(Granted::Failed(e)) => return Err(CheckoutError::Dial(e)),
                        Err(_) => continue,
                    }
                }
            };
            if lease.ready().await {
                return Ok(lease);
            }
            // The connection was closed while it was idle: another one is taken, and no request is lost.
        }
    }

    /// A place for a TCP connection to be held while it is open.
    ///
    /// # Errors
    /// At `maxConnections`.
    pub fn checkout_tcp(self: &Arc<Self>) -> Result<TcpSlot, Overflow> {
        self.lock().acquire_tcp()?;
        Ok(TcpSlot { _slot: Slot { pool: self.clone() } })
    }

    async fn dial(self: &Arc<Self>, mut duty: Dialing, dialer: &Dialer<'_>) -> Result<Lease, DialError> {
        let opened = match open_http(dialer).await {
            Ok(opened) => opened,
            Err(e) => {
                let failed = if duty.multiplex { self.lock().fail_waiters(duty.endpoint) } else { Vec::new() };
                // A waiter that has gone needs no answer.
                failed.into_iter().for_each(|waiter| drop(waiter.send(Granted::Failed(e.clone()))));
                return Err(e);
            }
        };
        // A request that began under older settings dials by those, and has the connection for itself.
        let generation = dialer.generation;
        let for_one = dialer.speaks_for_one() || generation != self.generation();
        let made = Opening { generation, at: Instant::now(), for_one };
        let endpoint = duty.endpoint;
        duty.pool = None;
        let slot = Slot { pool: self.clone() };
        match opened {
            Opened::Http1(client) => {
                self.lock().connected();
                Ok(self.lease_http1(endpoint, Http1 { client, served: 0, made, _slot: slot }))
            }
            Opened::Http2(client, driver) => {
                let shared = Http2 { client, served: Arc::default(), made, _slot: Arc::new(slot) };
                // One handle is enough to keep an HTTP/2 connection open: its task needs none.
                let most = if for_one { 1 } else { u32::MAX };
                let (id, wakes) = self.lock().connected_shared(endpoint, shared.clone(), most, Instant::now());
                let held = shared._slot.clone();
                let pool = self.clone();
                tokio::spawn(async move {
                    if let Err(e) = driver.await {
                        tracing::debug!("HTTP/2 connection to an endpoint ended: {e}");
                    }
                    let retired = pool.lock().retire(endpoint, id);
                    drop(retired);
                    drop(held);
                });
                self.deliver(wakes);
                let mut lease = self.lease_http2(endpoint, shared, id);
                lease.reused = false;
                Ok(lease)
            }
        }
    }

    fn lease_http1(self: &Arc<Self>, endpoint: EndpointId, mut x: Http1) -> Lease {
        x.served += 1;
        Lease { reused: x.served > 1, kind: Some(LeaseKind::Http1(x)), pool: self.clone(), endpoint }
    }

    fn lease_http2(self: &Arc<Self>, endpoint: EndpointId, s: Http2, id: SharedId) -> Lease {
        let served = s.served.fetch_add(1, Ordering::Relaxed) + 1;
        if self.is_over(s.made, served) {
            let retired = self.lock().retire(endpoint, id);
            drop(retired);
        }
        Lease { reused: served > 1, kind: Some(LeaseKind::Http2(s, id)), pool: self.clone(), endpoint }
    }

    fn deliver(self: &Arc<Self>, wakes: impl IntoIterator<Item = Wake<Http1, Http2, oneshot::Sender<Granted>>>) {
        for Wake { wake, grant, endpoint, multiplex } in wakes {
            let granted = match grant {
                Grant::Exclusive(x) => Granted::Lease(self.lease_http1(endpoint, x)),
                Grant::Stream(s, id) => Granted::Lease(self.lease_http2(endpoint, s, id)),
                Grant::Dial => Granted::Dial(Dialing { pool: Some(self.clone()), endpoint, multiplex }),
            };
            // A waiter that has gone drops the grant, which gives itself back.
            drop(wake.send(granted));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The pool's methods keep no broken state on a panic, and traffic is worth more than purity.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Waits until the connection takes a request. `false`: it is dead.
    async fn ready(&mut self) -> bool {
        match &mut self.kind {
            Some(LeaseKind::Http1(x)) => x.client.is_open(),
            Some(LeaseKind::Http2(s, id)) => {
                let id = *id;
                let ready = s.client.ready().await.is_ok();
                if !ready {
                    self.retire(id);
                }
                ready
            }
            None => false,
        }
    }

    /// Sends a request. `origin`: the head as it came; `interim`: where interim responses go.
    ///
    /// # Errors
    /// The cause, and whether provably nothing was sent.
    pub async fn send(
        &mut self,
        head: &Parts,
        origin: &Bytes,
        body: RequestBody,
        interim: Option<&dyn Interim>,
    ) -> Result<Response<Incoming>, ExchangeError> {
        let (s, id) = match &mut self.kind {
            Some(LeaseKind::Http1(x)) => return x.client.send(head, origin, body, interim).await,
            Some(LeaseKind::Http2(s, id)) => (s, *id),
            None => unreachable!("a lease is sent on only while it is held"),
        };
        let result = s.client.send(head, body, interim).await;
        if result.is_err() && s.client.is_closed() {
            self.retire(id);
        }
        result
    }

    /// The request and its response have ended cleanly: the connection may serve another one.
    pub fn finish(mut self, worker: u16) {
        match self.kind.take() {
            Some(LeaseKind::Http1(x)) => {
                if !x.client.is_reusable() || self.pool.is_over(x.made, x.served) {
                    drop(x);
                    return;
                }
                let (wake, closing) = self.pool.lock().release(self.endpoint, worker, x, Instant::now());
                drop(closing);
                self.pool.deliver(wake);
            }
            Some(LeaseKind::Http2(s, id)) => self.end_stream(s, id),
            None => {}
        }
    }

    fn end_stream(&self, s: Http2, id: SharedId) {
        let (wake, closing) = self.pool.lock().release_stream(self.endpoint, id, Instant::now());
        drop((closing, s));
        self.pool.deliver(wake);
    }

    fn retire(&self, id: SharedId) {
        let retired = self.pool.lock().retire(self.endpoint, id);
        drop(retired);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(LeaseKind::Http2(s, id)) = self.kind.take() {
            self.end_stream(s, id);
        }
    }
}

/// Place of a TCP connection, held while it is open.
pub struct TcpSlot {
    _slot: Slot,
}

#[cfg(test)]
mod tests;
