//! Connections on which nothing goes on: a bound for each source and in total, the oldest of which go for new ones.
//!
//! A connection that says nothing costs a socket and no more, so it holds no slot that another could use; without a bound
//! it would cost all sockets there are. A connection that waits, in a handshake, between requests or before its first byte,
//! enters here and leaves while something is done for it. Used by each listener that callers without proof can reach.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use weft_core::first_bytes::FirstBytesWait;

/// Quiet connections of one source.
const PER_SOURCE: usize = 512;
/// Quiet connections of all sources.
const TOTAL: usize = 4096;

/// What counts as one source: an IPv4 address, or a network of IPv6, of which one host has as many addresses as it likes.
pub fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The quiet connections of a listener, or of several.
pub struct Quiet(Mutex<State>);

struct State {
    waiting: FirstBytesWait<IpAddr>,
    /// Tells one that it has to go.
    goes: HashMap<u64, Arc<Notify>>,
}

/// The same at a sidecar's or a gateway's ports, which thousands of clients may reach by the address of one load balancer.
const TRAFFIC: (usize, usize) = (2048, 8192);

impl Default for Quiet {
    fn default() -> Quiet {
        Quiet::new(PER_SOURCE, TOTAL)
    }
}

impl Quiet {
    /// At most so many of one source, and in total; both 1 or more.
    pub fn new(per_source: usize, total: usize) -> Quiet {
        Quiet(Mutex::new(State { waiting: FirstBytesWait::new(per_source, total), goes: HashMap::new() }))
    }

    /// A connection that begins quiet.
    pub fn enter(self: &Arc<Quiet>, from: IpAddr) -> Connection {
        let connection =
            Connection { quiet: self.clone(), source: source(from), number: Mutex::default(), goes: Arc::default() };
        connection.rest();
        connection
    }

    /// With the bounds for ports that serve traffic.
    pub fn of_traffic() -> Quiet {
        Quiet::new(TRAFFIC.0, TRAFFIC.1)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection, quiet or not; counted for as long as this is held.
pub struct Connection {
    quiet: Arc<Quiet>,
    source: IpAddr,
    /// While it is quiet.
    number: Mutex<Option<u64>>,
    goes: Arc<Notify>,
}

impl Connection {
    /// Nothing is done for it from now on, and it may have to go.
    pub fn rest(&self) {
        let mut number = self.number();
        if number.is_some() {
            return;
        }
        let mut state = self.quiet.lock();
        let (own, other) = state.waiting.add(self.source);
        state.goes.insert(own, self.goes.clone());
        if let Some(other) = other.and_then(|other| state.goes.remove(&other)) {
            other.notify_one();
        }
        *number = Some(own);
    }

    /// Something is done for it: it stays until it rests again. One that was dismissed in this moment goes all the same.
    pub fn work(&self) {
        if let Some(own) = self.number().take() {
            let mut state = self.quiet.lock();
            state.waiting.remove(own);
            state.goes.remove(&own);
        }
    }

    /// What `reading` gives, for which the connection waits quietly; `None`: it had to go for others.
    pub async fn until<T>(self, reading: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            read = reading => Some(read),
            () = self.dismissed() => None,
        }
    }

    /// Waits until it has to go for others.
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
    fn quiet_connections_go_for_new_ones_and_working_ones_stay() {
        let quiet = Arc::new(Quiet::new(2, 3));
        let enter = |ip: &str| quiet.enter(ip.parse().unwrap());
        let goes = |connection: &Connection| connection.dismissed().now_or_never().is_some();
        let [first, second] = ["10.0.0.7", "::ffff:10.0.0.7"].map(enter);
        first.work();
        let third = enter("10.0.0.7");
        assert!(!goes(&first) && !goes(&second) && !goes(&third));
        first.rest();
        assert!(goes(&second) && !goes(&first), "the oldest that is quiet");
        let _other = enter("fd00::1");
        assert!(!goes(&third));
        let _more = enter("fd00:0:0:1::1");
        assert!(goes(&third), "the oldest of all");
        drop((first, second, third));
        let networks = [enter("fd00::2"), enter("fd00::3")];
        assert!(!goes(&networks[0]), "the first of its network went");
        drop((_other, _more, networks));
        assert!(quiet.lock().goes.is_empty());
    }
}
