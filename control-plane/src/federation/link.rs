//! The connection to another data centre: receives its exports, and sends it queries that name it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use weft_proto::v1::federation_client::FederationClient;
use weft_proto::v1::{Answer, PeerDns, PeerQuestion, Summaries, WatchRequest};

use super::tls;
use crate::api::remote::NoAnswer;
use crate::identity::peer::OwnCertificate;
use crate::state::Mesh;
use weft_world::{Peering, sound};

/// Timeout of a connection attempt.
const CONNECT: Duration = Duration::from_secs(5);
/// A broken connection is detected within this time.
const PING: Duration = Duration::from_secs(5);
/// Longest silence of a healthy peer: it sends every ten seconds.
const SILENCE: Duration = Duration::from_secs(25);
/// Shortest and longest pause between attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Concurrent questions.
const QUESTIONS: usize = 1000;
/// Timeout of a question of DNS.
const DNS_PATIENCE: Duration = Duration::from_secs(2);

/// The connection to another data centre.
pub struct Link {
    /// Name of this data centre.
    own: String,
    peering: Peering,
    address: String,
    channel: Channel,
    questions: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connected: bool,
    last_message: Option<SystemTime>,
    error: String,
}

impl Link {
    pub(super) fn new(
        own_name: &str,
        peering: Peering,
        address: String,
        own: Arc<OwnCertificate>,
    ) -> Result<Arc<Link>> {
        let tls = TlsConnector::from(Arc::new(tls::client(&peering, own)?));
        let to = address.clone();
        let connector = tower::service_fn(move |_| {
            let (tls, to) = (tls.clone(), to.clone());
            async move {
                let opened = tokio::time::timeout(CONNECT, open(&tls, &to)).await;
                opened.unwrap_or_else(|_| Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer")))
            }
        });
        let channel = Endpoint::from_static("http://federation")
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connector);
        let questions = Semaphore::new(QUESTIONS);
        Ok(Arc::new(Link { own: own_name.to_owned(), peering, address, channel, questions, state: Mutex::default() }))
    }

    /// Its name.
    pub fn datacenter(&self) -> &str {
        &self.peering.datacenter
    }

    pub(super) fn peering(&self) -> &Peering {
        &self.peering
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Whether it is connected, the time of its last message, and the error.
    pub(super) fn state(&self) -> (bool, Option<SystemTime>, String) {
        let state = self.lock();
        (state.connected, state.last_message, state.error.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Receives its exports for the life of the process. Its last summary is kept for `keep` after the connection is
    /// lost.
    pub(super) async fn listen(self: Arc<Self>, mesh: Arc<Mesh>, keep: Duration) {
        let mut pause = PAUSES.0;
        let mut last_message = Instant::now();
        loop {
            let before = last_message;
            let error = match self.watch(&mesh, &mut last_message).await {
                Ok(()) => "it ended the stream".to_owned(),
                Err(e) => format!("{e:#}"),
            };
            mesh.set_connected(self.datacenter(), false);
            let was = {
                let mut state = self.lock();
                state.error.clone_from(&error);
                std::mem::take(&mut state.connected)
            };
            if was || pause == PAUSES.0 {
                tracing::warn!(datacenter = self.datacenter(), address = self.address, "not connected: {error}");
            }
            if last_message.elapsed() > keep
                && mesh.read(|world| world.remote_summaries().any(|(name, ..)| name == self.datacenter()))
            {
                tracing::warn!(datacenter = self.datacenter(), "silent for too long: its summary is deleted");
                if let Err(e) = mesh.forget_remote(self.datacenter()).await {
                    tracing::error!("it cannot be forgotten: {e}");
                }
            }
            pause = if last_message > before { PAUSES.0 } else { (pause * 2).min(PAUSES.1) };
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.8..1.2))).await;
        }
    }

    async fn watch(&self, mesh: &Mesh, last_message: &mut Instant) -> Result<()> {
        let mut client = FederationClient::new(self.channel.clone());
        let request = WatchRequest { datacenter: self.own.clone() };
        let stream = tokio::time::timeout(SILENCE, client.watch(request)).await.context("no answer")?;
        let mut stream = stream.map_err(|status| anyhow::anyhow!("{}", status_text(&status)))?.into_inner();
        loop {
            let next = tokio::time::timeout(SILENCE, stream.message()).await;
            let next = next.with_context(|| format!("silent for {} s", SILENCE.as_secs()))?;
            let Some(summaries) = next.map_err(|status| anyhow::anyhow!("{}", status_text(&status)))? else {
                return Ok(());
            };
            self.take(mesh, summaries).await?;
            mesh.set_connected(self.datacenter(), true);
            *last_message = Instant::now();
            let mut state = self.lock();
            state.last_message = Some(SystemTime::now());
            state.error.clear();
            if !std::mem::replace(&mut state.connected, true) {
                tracing::info!(datacenter = self.datacenter(), address = self.address, "connected");
            }
        }
    }

    async fn take(&self, mesh: &Mesh, summaries: Summaries) -> Result<()> {
        let (name, expected) = (&summaries.datacenter, self.datacenter());
        if name != expected {
            bail!("the control plane at {} belongs to the data centre {name:?}, not {expected:?}", self.address);
        }
        mesh.keep_remote(expected, sound(summaries, &self.peering)).await.context("cannot store its summary")
    }

    /// Asks for an answer of Consul's API.
    ///
    /// # Errors
    /// If there is none.
    pub async fn ask(&self, question: PeerQuestion) -> Result<Answer, NoAnswer> {
        let _permit = self.questions.try_acquire().map_err(|_| NoAnswer::Busy)?;
        self.ready()?;
        let answer = FederationClient::new(self.channel.clone()).ask(question).await;
        answer.map(tonic::Response::into_inner).map_err(|status| NoAnswer::NoPath(status_text(&status)))
    }

    /// Asks a question of DNS; returns the answer's packet.
    ///
    /// # Errors
    /// If there is none.
    pub async fn resolve(&self, question: PeerDns) -> Result<Vec<u8>, NoAnswer> {
        let _permit = self.questions.try_acquire().map_err(|_| NoAnswer::Busy)?;
        self.ready()?;
        let mut client = FederationClient::new(self.channel.clone());
        let answer = tokio::time::timeout(DNS_PATIENCE, client.resolve(question)).await;
        let answer = answer.map_err(|_| NoAnswer::NoPath("no answer".into()))?;
        answer.map(|answer| answer.into_inner().packet).map_err(|status| NoAnswer::NoPath(status_text(&status)))
    }

    /// A peer that is known to be unreachable is not waited for.
    fn ready(&self) -> Result<(), NoAnswer> {
        let state = self.lock();
        if state.connected { Ok(()) } else { Err(NoAnswer::NoPath(state.error.clone())) }
    }
}

async fn open(tls: &TlsConnector, to: &str) -> std::io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    // Not verified: the certificate must contain an identity, not a name.
    let name = stream.peer_addr().map(|address: SocketAddr| ServerName::from(address.ip()))?;
    Ok(TokioIo::new(tls.connect(name, stream).await?))
}

/// The text of a status, down to the cause of a failed connection.
fn status_text(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Refuses a name that differs from the configured name of a peer.
pub(super) fn same_name(reported: &str, known: &str) -> Result<()> {
    ensure!(
        reported == known,
        "this peer reports the data centre {reported:?}, but is configured as {known:?} here (--peer and --datacenter must agree)"
    );
    Ok(())
}
