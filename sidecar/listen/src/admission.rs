//! Admission of TLS connections, from accept to the end of the handshake: an unauthenticated peer must not consume the
//! resources of others.
//!
//! Connections without a ClientHello are held in [`crate::idle`]. After its ClientHello a connection waits for a slot;
//! one address can take half of the slots. Used by the control plane's listeners for sidecars, other data centres and
//! programs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use crate::idle::IdleLimit;

/// Time after which a connection without a ClientHello is closed.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum wait for a slot when thousands of peers connect at once; sidecars give up after this time too.
const SLOT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for a peer's part of the handshake, once it has a slot: one round trip.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum number of connections waiting after their ClientHello, per address and in total: a machine, or a gateway
/// that hides others behind its address, may open thousands at once.
const WAITING: (usize, usize) = (10_240, 20_480);
/// Maximum number of concurrent handshakes, per address and in total.
const SLOTS: (usize, usize) = (128, 256);

/// Unauthenticated connections of the listeners.
pub struct Admission {
    idle: Arc<IdleLimit>,
    state: Mutex<State>,
    slots: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    waiting: HashMap<IpAddr, OfAddress>,
    total: usize,
}

/// Waiting connections of one address.
struct OfAddress {
    count: usize,
    slots: Arc<Semaphore>,
}

impl Default for Admission {
    fn default() -> Admission {
        Admission { idle: Arc::default(), state: Mutex::default(), slots: Arc::new(Semaphore::new(SLOTS.1)) }
    }
}

impl Admission {
    /// Performs the handshake with a peer.
    ///
    /// # Errors
    /// If the handshake fails, or too many are in progress.
    pub async fn handshake(
        &self,
        stream: TcpStream,
        from: IpAddr,
        config: Arc<rustls::ServerConfig>,
    ) -> Result<TlsStream<TcpStream>> {
        stream.set_nodelay(true)?;
        let reading = timeout(HELLO_TIMEOUT, LazyConfigAcceptor::new(Acceptor::default(), stream));
        let hello = self
            .idle
            .enter(from)
            .until(reading)
            .await
            .context("closed for newer connections before its ClientHello arrived")?;
        let hello = hello.context("no ClientHello within the timeout")??;
        let waiting = self.wait(from)?;
        let (of_address, of_all) = (waiting.slots.clone(), self.slots.clone());
        // Neither semaphore is ever closed.
        let slots = async { anyhow::Ok((of_address.acquire_owned().await?, of_all.acquire_owned().await?)) };
        let _slots: (OwnedSemaphorePermit, OwnedSemaphorePermit) =
            timeout(SLOT_TIMEOUT, slots).await.context("too many handshakes are in progress")??;
        let handshake_result = timeout(ANSWER_TIMEOUT, hello.into_stream(config)).await;
        Ok(handshake_result.context("no answer from the peer within the timeout")??)
    }

    fn wait(&self, from: IpAddr) -> Result<Waiting<'_>> {
        let mut state = self.lock();
        let of_address = state.waiting.get(&from).map_or(0, |peer| peer.count);
        ensure!(of_address < WAITING.0, "{of_address} connections of {from} are waiting for their handshake");
        ensure!(state.total < WAITING.1, "{} connections are waiting for their handshake", state.total);
        state.total += 1;
        let new = || OfAddress { count: 0, slots: Arc::new(Semaphore::new(SLOTS.0)) };
        let peer = state.waiting.entry(from).or_insert_with(new);
        peer.count += 1;
        Ok(Waiting { admission: self, from, slots: peer.slots.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection waiting after its ClientHello.
struct Waiting<'a> {
    admission: &'a Admission,
    from: IpAddr,
    slots: Arc<Semaphore>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        state.total -= 1;
        if let Some(peer) = state.waiting.get_mut(&self.from) {
            peer.count -= 1;
            if peer.count == 0 {
                state.waiting.remove(&self.from);
            }
        }
    }
}
