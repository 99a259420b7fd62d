//! Limits of idle connections, per source and in total: the oldest are closed for new ones.
//!
//! An idle connection costs a socket and holds no slot, but without a limit idle connections would use up all sockets.
//! A connection that waits (in a handshake, between requests or before its first byte) is registered here, and
//! deregistered while a request is served. Used by every listener that unauthenticated clients can reach.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use weft_core::first_bytes::FirstBytesWait;

use crate::counts;

/// Maximum idle connections of one source.
const PER_SOURCE: usize = 512;
/// Maximum idle connections of all sources.
const TOTAL: usize = 4096;

/// The source of a connection: an IPv4 address, or an IPv6 network, in which a single host can use any number of
/// addresses.
pub fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The idle connections of one or several listeners.
pub struct IdleLimit(Mutex<State>);

struct State {
    waiting: FirstBytesWait<IpAddr>,
    /// Notifies a connection that it must close.
    goes: HashMap<u64, Arc<Notify>>,
}

/// Limits at the ports of a sidecar or gateway, which thousands of clients may reach through one load balancer's
/// address.
const TRAFFIC: (usize, usize) = (2048, 8192);

impl Default for IdleLimit {
    fn default() -> IdleLimit {
        IdleLimit::new(PER_SOURCE, TOTAL)
    }
}

impl IdleLimit {
    /// Limits per source and in total; both must be at least 1.
    pub fn new(per_source: usize, total: usize) -> IdleLimit {
        IdleLimit(Mutex::new(State { waiting: FirstBytesWait::new(per_source, total), goes: HashMap::new() }))
    }

    /// Registers a new connection, which is idle at first.
    pub fn enter(self: &Arc<IdleLimit>, from: IpAddr) -> Connection {
        let connection =
            Connection { idle: self.clone(), source: source(from), number: Mutex::default(), goes: Arc::default() };
        connection.rest();
        connection
    }

    /// Limits for ports that serve traffic.
    pub fn of_traffic() -> IdleLimit {
        IdleLimit::new(TRAFFIC.0, TRAFFIC.1)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection, idle or not; counted as long as this is held.
pub struct Connection {
    idle: Arc<IdleLimit>,
    source: IpAddr,
    /// Set while it is idle.
    number: Mutex<Option<u64>>,
    goes: Arc<Notify>,
}

impl Connection {
    /// Marks it as idle: it may be closed for others.
    pub fn rest(&self) {
        let mut number = self.number();
        if number.is_some() {
            return;
        }
        let mut state = self.idle.lock();
        let (own, other) = state.waiting.add(self.source);
        state.goes.insert(own, self.goes.clone());
        if let Some(other) = other.and_then(|other| state.goes.remove(&other)) {
            counts::IDLE_CLOSED.increase();
            other.notify_one();
        }
        *number = Some(own);
    }

    /// Marks it as busy, so that it is not closed. A dismissal at the same moment still applies.
    pub fn work(&self) {
        if let Some(own) = self.number().take() {
            let mut state = self.idle.lock();
            state.waiting.remove(own);
            state.goes.remove(&own);
        }
    }

    /// Waits for `reading` while the connection is idle; `None`: it must be closed for others.
    pub async fn until<T>(self, reading: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            read = reading => Some(read),
            () = self.dismissed() => None,
        }
    }

    /// Waits until it must be closed for others.
    pub async fn dismissed(&self) {
        self.goes.notified().await;
    }

    fn number(&self) -> MutexGuard<'_, Option<u64>> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.work();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn idle_connections_are_closed_for_new_ones_and_busy_ones_stay() {
        let (idle, before) = (Arc::new(IdleLimit::new(2, 3)), counts::IDLE_CLOSED.value());
        let enter = |ip: &str| idle.enter(ip.parse().unwrap());
        let goes = |connection: &Connection| connection.dismissed().now_or_never().is_some();
        let [first, second] = ["10.0.0.7", "::ffff:10.0.0.7"].map(enter);
        first.work();
        let third = enter("10.0.0.7");
        assert!(!goes(&first) && !goes(&second) && !goes(&third));
        first.rest();
        assert!(goes(&second) && !goes(&first), "the oldest idle one");
        assert!(counts::IDLE_CLOSED.value() > before);
        let _other = enter("fd00::1");
        assert!(!goes(&third));
        let _more = enter("fd00:0:0:1::1");
        assert!(goes(&third), "the oldest of all");
        drop((first, second, third));
        let networks = [enter("fd00::2"), enter("fd00::3")];
        assert!(!goes(&networks[0]), "the first of its network is closed");
        drop((_other, _more, networks));
        assert!(idle.lock().goes.is_empty());
    }
}
