//! TLS connections from their arrival to the end of their handshake: a peer that has proved nothing costs others nothing.
//!
//! One that says nothing is [`crate::quiet`]. One whose ClientHello has come waits for a slot, of which a single address can
//! take half. Of the control plane's listeners: sidecars', other data centres', and programs'.

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

use crate::quiet::Quiet;

/// A peer that has not sent its ClientHello by then is let go.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// So long a peer waits for a slot, when thousands come at once; a sidecar waits no longer than that either.
const SLOT_TIMEOUT: Duration = Duration::from_secs(15);
/// So long it may take over its part, once it has a slot: a round trip.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections of one address whose ClientHello has come, and of all: a machine, or a gateway that hides others behind its address,
/// may connect with thousands at once.
const WAITING: (usize, usize) = (10_240, 20_480);
/// Handshakes under way at once, of one address and of all.
const SLOTS: (usize, usize) = (128, 256);

/// Those that have proved nothing yet.
pub struct Admission {
    quiet: Arc<Quiet>,
    state: Mutex<State>,
    slots: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
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
        Admission { quiet: Arc::default(), state: Mutex::default(), slots: Arc::new(Semaphore::new(SLOTS.1)) }
    }
}

impl Admission {
    /// Makes the handshake with a peer.
    ///
    /// # Errors
    /// Says what its own part in the failure is, or that there are too many.
    pub async fn handshake(
        &self,
        stream: TcpStream,
        from: IpAddr,
        config: Arc<rustls::ServerConfig>,
    ) -> Result<TlsStream<TcpStream>> {
        stream.set_nodelay(true)?;
        let reading = timeout(HELLO_TIMEOUT, LazyConfigAcceptor::new(Acceptor::default(), stream));
        let hello = self.quiet.enter(from).until(reading).await.context("it was silent, and others came")?;
        let hello = hello.context("no ClientHello in time")??;
        let waiting = self.wait(from)?;
        let (of_address, of_all) = (waiting.slots.clone(), self.slots.clone());
        // Neither is ever closed.
        let slots = async { anyhow::Ok((of_address.acquire_owned().await?, of_all.acquire_owned().await?)) };
        let _slots: (OwnedSemaphorePermit, OwnedSemaphorePermit) =
            timeout(SLOT_TIMEOUT, slots).await.context("too many handshakes are under way")??;
        let answered = timeout(ANSWER_TIMEOUT, hello.into_stream(config)).await;
        Ok(answered.context("no answer in time")??)
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
