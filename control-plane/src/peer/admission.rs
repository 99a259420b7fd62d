//! Connections from their arrival to the end of their handshake: a peer that has proved nothing costs others nothing.
//!
//! One that says nothing holds a socket and no more, and goes when there are too many, the oldest first. One whose
//! ClientHello has come waits for a slot, of which a single address can take half.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use weft_core::silent::Silent;

/// A peer that has not sent its ClientHello by then is let go.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// So long a peer waits for a slot, when thousands come at once; a sidecar waits no longer than that either.
const SLOT_TIMEOUT: Duration = Duration::from_secs(15);
/// So long it may take over its part, once it has a slot: a round trip.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Silent connections of one address, and of all.
const SILENT: (usize, usize) = (512, 4096);
/// Connections of one address whose ClientHello has come, and of all: a machine, or a gateway that hides others behind its address,
/// may connect with thousands at once.
const WAITING: (usize, usize) = (10_240, 20_480);
/// Handshakes under way at once, of one address and of all.
const SLOTS: (usize, usize) = (128, 256);

/// Those that have proved nothing yet.
pub(super) struct Admission {
    state: Mutex<State>,
    slots: Arc<Semaphore>,
}

struct State {
    silent: Silent<IpAddr>,
    /// Tells a silent one that it has to go.
    goes: HashMap<u64, oneshot::Sender<()>>,
    waiting: HashMap<IpAddr, OfAddress>,
    total: usize,
}

/// Those of one address whose ClientHello has come.
struct OfAddress {
    count: usize,
    slots: Arc<Semaphore>,
}

impl Default for Admission {
    fn default() -> Admission {
        let silent = Silent::new(SILENT.0, SILENT.1);
        let state = State { silent, goes: HashMap::new(), waiting: HashMap::new(), total: 0 };
        Admission { state: Mutex::new(state), slots: Arc::new(Semaphore::new(SLOTS.1)) }
    }
}

impl Admission {
    /// Makes the handshake with a peer.
    ///
    /// # Errors
    /// Says what its own part in the failure is, or that there are too many.
    pub(super) async fn handshake(
        &self,
        stream: TcpStream,
        from: IpAddr,
        config: Arc<rustls::ServerConfig>,
    ) -> Result<TlsStream<TcpStream>> {
        stream.set_nodelay(true)?;
        let hello = {
            let (silent, goes) = self.enter(from);
            let reading = timeout(HELLO_TIMEOUT, LazyConfigAcceptor::new(Acceptor::default(), stream));
            let hello = tokio::select! {
                biased;
                hello = reading => hello,
                _ = goes => anyhow::bail!("it was silent, and others came"),
            };
            drop(silent);
            hello.context("no ClientHello in time")??
        };
        let waiting = self.wait(from)?;
        let (of_address, of_all) = (waiting.slots.clone(), self.slots.clone());
        // Neither is ever closed.
        let slots = async { anyhow::Ok((of_address.acquire_owned().await?, of_all.acquire_owned().await?)) };
        let _slots: (OwnedSemaphorePermit, OwnedSemaphorePermit) =
            timeout(SLOT_TIMEOUT, slots).await.context("too many handshakes are under way")??;
        let answered = timeout(ANSWER_TIMEOUT, hello.into_stream(config)).await;
        Ok(answered.context("no answer in time")??)
    }

    fn enter(&self, from: IpAddr) -> (Quiet<'_>, oneshot::Receiver<()>) {
        let (sender, goes) = oneshot::channel();
        let mut state = self.lock();
        let (number, other) = state.silent.add(from);
        state.goes.insert(number, sender);
        if let Some(other) = other.and_then(|other| state.goes.remove(&other)) {
            // It may have spoken in this moment.
            let _ = other.send(());
        }
        (Quiet { admission: self, number }, goes)
    }

    fn wait(&self, from: IpAddr) -> Result<Waiting<'_>> {
        let mut state = self.lock();
        let of_address = state.waiting.get(&from).map_or(0, |held| held.count);
        ensure!(of_address < WAITING.0, "{of_address} connections of {from} wait for their handshake");
        ensure!(state.total < WAITING.1, "{} connections wait for their handshake", state.total);
        state.total += 1;
        let new = || OfAddress { count: 0, slots: Arc::new(Semaphore::new(SLOTS.0)) };
        let held = state.waiting.entry(from).or_insert_with(new);
        held.count += 1;
        Ok(Waiting { admission: self, from, slots: held.slots.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A silent connection.
struct Quiet<'a> {
    admission: &'a Admission,
    number: u64,
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        state.silent.remove(self.number);
        state.goes.remove(&self.number);
    }
}

/// A connection whose ClientHello has come.
struct Waiting<'a> {
    admission: &'a Admission,
    from: IpAddr,
    slots: Arc<Semaphore>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        state.total -= 1;
        if let Some(held) = state.waiting.get_mut(&self.from) {
            held.count -= 1;
            if held.count == 0 {
                state.waiting.remove(&self.from);
            }
        }
    }
}
