//! Connections to the control plane, and the join.
//!
//! Every connection is TLS 1.3 to a server that proves the control plane's SPIFFE ID: by the root that is trusted already, or
//! at the first contact by the root that came with the token ([`Introduction`]).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rand::RngExt;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use weft_agent::connect::{Leaf, Signer};
use weft_core::backoff::Backoff;
use weft_proto::v1::identity_client::IdentityClient;
use weft_proto::v1::{SignRequest, SignResponse};

use crate::net::connect;
use crate::tls::identity::{Identity, PendingKey};
use crate::tls::introduction::Introduction;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A control plane to which thousands of sidecars connect at once makes their handshakes in turn: one that answered the connection
/// is worth waiting for, and to leave would only put the sidecar at the end of the queue.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);
/// Between looks at a certificate that is not due.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Between tries to renew a certificate that ends soon, at least.
const MIN_RETRY: Duration = Duration::from_millis(500);
/// The longest, while it is valid for longer.
const MAX_RETRY: Duration = Duration::from_secs(10);

/// Between looks whether the control plane of its own is back, at least; up to twice as long, so that those that left it at once do
/// not return at once.
const RETURN: Duration = Duration::from_secs(300);

/// The control planes' addresses and the credentials for them.
pub struct Control {
    addresses: Vec<String>,
    /// Which of them is this sidecar's own: sidecars are shared out among them by their names.
    own: usize,
    next: AtomicUsize,
    /// Control planes in succession that have refused a discovery stream.
    refusals: AtomicUsize,
    introduction: Option<Introduction>,
    /// The connection that short questions share.
    shared: Mutex<Option<Channel>>,
    /// The workload's credentials.
    pub identity: Arc<Identity>,
}

impl Control {
    /// `addresses`: `host:port` each, tried in turn, beginning with the one that `node`, the name of this sidecar, is shared
    /// out to.
    pub fn new(
        addresses: Vec<String>,
        node: &str,
        introduction: Option<Introduction>,
        identity: Arc<Identity>,
    ) -> Control {
        let own = share(node, addresses.len());
        let (next, refusals) = (AtomicUsize::new(own), AtomicUsize::new(0));
        Control { addresses, own, next, refusals, introduction, shared: Mutex::default(), identity }
    }

    /// Returns to the control plane of its own after a failure of that, for ever: `moved` is called when the streams are to
    /// be made anew, which then begin with it.
    pub async fn keep_home(self: Arc<Self>, moved: impl Fn()) {
        if self.addresses.len() < 2 {
            return;
        }
        loop {
            let pause = RETURN.mul_f64(rand::rng().random_range(1.0..=2.0));
            tokio::time::sleep(pause).await;
            if self.is_home() {
                continue;
            }
            let Some(address) = self.addresses.get(self.own) else { return };
            let back = match self.identity.valid() {
                Ok(held) => dial(address, held.control()).await,
                Err(e) => Err(e),
            };
            match back {
                Ok(_) => {
                    tracing::info!(control_plane = address, "the control plane is back: returning to it");
                    self.next.store(self.own, Ordering::Relaxed);
                    self.forget_channel();
                    moved();
                }
                Err(e) => tracing::debug!(control_plane = address, "not back yet: {e:#}"),
            }
        }
    }

    fn is_home(&self) -> bool {
        self.next.load(Ordering::Relaxed) % self.addresses.len().max(1) == self.own
    }

    /// A connection with the workload certificate to the first control plane that answers, starting with the one that did last.
    ///
    /// # Errors
    /// If none answers; the last one's reason.
    pub async fn connect(&self) -> Result<Channel> {
        let tls = self.identity.valid()?.control();
        self.connect_with(tls).await
    }

    /// A connection that is shared and made anew when it broke: for questions, not for streams. It is made when it is
    /// first used, so that this never waits; each time it is made it goes to the next control plane.
    pub fn channel(self: &Arc<Self>) -> Channel {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = shared.get_or_insert_with(|| {
            let control = self.clone();
            let connector = tower::service_fn(move |_| {
                let control = control.clone();
                async move {
                    let tls = control.identity.valid().map_err(std::io::Error::other)?.control();
                    let result = open(control.address(), tls).await;
                    if result.is_err() {
                        control.next.fetch_add(1, Ordering::Relaxed);
                    }
                    result
                }
            });
            endpoint().connect_with_connector_lazy(connector)
        });
        channel.clone()
    }

    /// Makes the next [`Control::channel`] a new one, with the certificate that is current then.
    pub fn forget_channel(&self) {
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The preferred control plane.
    pub fn address(&self) -> &str {
        let at = self.next.load(Ordering::Relaxed) % self.addresses.len().max(1);
        self.addresses.get(at).map_or("", String::as_str)
    }

    /// The turn of the preferred control plane; see [`Control::leave`].
    pub fn turn(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }

    /// Prefers another control plane from the next connection on, unless another caller has already done so since that turn.
    pub fn leave(&self, turn: usize) {
        // The winner of the race did the same.
        let _ = self.next.compare_exchange(turn, turn + 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Number of other control planes that may serve a discovery stream: one that has its share refuses the stream of a
    /// sidecar that has others, and the last one serves it.
    pub fn others(&self) -> usize {
        self.addresses.len().saturating_sub(1 + self.refusals.load(Ordering::Relaxed))
    }

    /// Records whether a discovery stream was refused.
    pub fn refused(&self, refused: bool) {
        let count = if refused { self.refusals.load(Ordering::Relaxed) + 1 } else { 0 };
        self.refusals.store(count, Ordering::Relaxed);
    }

    async fn connect_with(&self, tls: Arc<rustls::ClientConfig>) -> Result<Channel> {
        let mut last = anyhow::anyhow!("no control plane address given");
        for _ in 0..self.addresses.len() {
            let at = self.next.load(Ordering::Relaxed) % self.addresses.len();
            match dial(&self.addresses[at], tls.clone()).await {
                Ok(channel) => return Ok(channel),
                Err(e) => last = e.context(format!("control plane {}", self.addresses[at])),
            }
            self.next.fetch_add(1, Ordering::Relaxed);
        }
        Err(last)
    }

    /// Gets a certificate: by the current one while it is valid, else by a token.
    ///
    /// # Errors
    /// If no control plane answers or it refuses; the text has its reason.
    pub async fn join(&self) -> Result<()> {
        let (pending, signed) = self.signed().await?;
        let credentials = pending.finish(signed)?;
        tracing::info!(id = %credentials.id, "certificate signed");
        self.identity.install(credentials).await;
        Ok(())
    }

    /// A new key, and the certificate that a control plane has signed for it: authenticated by the current certificate, which may
    /// have expired recently, else by the token.
    async fn signed(&self) -> Result<(PendingKey, SignResponse)> {
        let pending = PendingKey::generate()?;
        let request = || tonic::Request::new(SignRequest { csr_der: pending.csr_der.clone() });
        let refused = match self.identity.current() {
            Some(held) => match self.ask_to_sign(held.control(), request()).await {
                Ok(signed) => return Ok((pending, signed)),
                Err(e) if self.identity.valid().is_ok() => return Err(e),
                Err(e) => Some(e.context("by the certificate that has expired")),
            },
            None => None,
        };
        let by_token = async {
            let introduction = self.introduction.as_ref();
            let (token, tls) = introduction.context("a join token is needed: --token-file")?.present()?;
            let mut request = request();
            request
                .metadata_mut()
                .insert("authorization", format!("Bearer {token}").parse().context("the token is damaged")?);
            self.ask_to_sign(tls, request).await
        };
        match (by_token.await, refused) {
            (Ok(signed), _) => Ok((pending, signed)),
            (Err(e), Some(refused)) => Err(e.context(format!("{refused:#}; by the token"))),
            (Err(e), None) => Err(e),
        }
    }

    async fn ask_to_sign(
        &self,
        tls: Arc<rustls::ClientConfig>,
        request: tonic::Request<SignRequest>,
    ) -> Result<SignResponse> {
        let channel = self.connect_with(tls).await?;
        let sent = SystemTime::now();
        let signed = tokio::time::timeout(SIGN_TIMEOUT, IdentityClient::new(channel).sign(request)).await;
        match signed.context("the control plane did not sign in time")? {
            Ok(signed) => {
                let signed = signed.into_inner();
                self.identity.clock.measured(sent, signed.now_ms);
                Ok(signed)
            }
            Err(status) => bail!("the control plane refused to sign the workload certificate: {}", status.message()),
        }
    }

    /// Renews at half life ([`weft_core::renewal`]) for ever, and calls `renewed` after each renewal.
    pub async fn keep_renewed(self: Arc<Self>, renewed: impl Fn()) {
        let mut backoff = Backoff::new(2 * MIN_RETRY, MAX_RETRY);
        loop {
            let wait = self.identity.renewal_due_in();
            // Looked at anew: a machine that was suspended is late by the wall clock, which this timer does not follow.
            if wait > Duration::ZERO {
                tokio::time::sleep(wait.min(LOOK_AGAIN)).await;
                continue;
            }
            match self.join().await {
                Ok(()) => {
                    backoff.reset();
                    renewed();
                }
                Err(e) => {
                    let left = self.identity.current().map(|c| c.not_after.duration_since(SystemTime::now()));
                    let left = left.and_then(Result::ok).unwrap_or_default();
                    tracing::warn!(left_s = left.as_secs(), "cannot renew the certificate: {e:#}");
                    tokio::time::sleep(renewal_pause(&mut backoff, left, rand::random())).await;
                }
            }
        }
    }
}

impl Signer for Control {
    fn sign(&self) -> BoxFuture<'_, Result<Leaf>> {
        Box::pin(async {
            let (pending, signed) = self.signed().await?;
            let leaf = pending.finish_leaf(&signed)?;
            tracing::info!(id = leaf.uri, "certificate signed for a program of this pod");
            Ok(leaf)
        })
    }

    fn services(&self) -> Vec<String> {
        self.identity.current().map(|held| held.services.clone()).unwrap_or_default()
    }
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://weft-control-plane")
        .connect_timeout(CONNECT_TIMEOUT + HANDSHAKE_TIMEOUT)
        // A control plane that is cut off is noticed in seconds, not when the kernel gives up.
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
}

async fn open(address: &str, tls: Arc<rustls::ClientConfig>) -> std::io::Result<TokioIo<TlsStream<TcpStream>>> {
    let split = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let (host, port) = split.ok_or_else(|| std::io::Error::other("a control plane's address is host:port"))?;
    let to = connect::resolve(host.trim_matches(['[', ']']), port).await?;
    let stream = connect::control(to, CONNECT_TIMEOUT).await?;
    // The control plane is identified by its SPIFFE ID, not by this name (see `MeshVerifier`).
    let name = ServerName::from(to.ip());
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsConnector::from(tls).connect(name, stream));
    let late = |_| {
        let text = format!("{to} has not ended the TLS handshake within {} s", HANDSHAKE_TIMEOUT.as_secs());
        std::io::Error::new(std::io::ErrorKind::TimedOut, text)
    };
    Ok(TokioIo::new(handshake.await.map_err(late)??))
}

async fn dial(address: &str, tls: Arc<rustls::ClientConfig>) -> Result<Channel> {
    let address = address.to_owned();
    let connector = tower::service_fn(move |_| {
        let (address, tls) = (address.clone(), tls.clone());
        async move { open(&address, tls).await }
    });
    endpoint().connect_with_connector(connector).await.map_err(|e| {
        // The cause is helpful: "invalid peer certificate", "connection refused".
        let mut text = e.to_string();
        let mut source = std::error::Error::source(&e);
        while let Some(inner) = source {
            text = inner.to_string();
            source = inner.source();
        }
        anyhow::anyhow!(text)
    })
}

/// Which of so many control planes a sidecar begins with: the same each time, and others as evenly as names are.
fn share(node: &str, count: usize) -> usize {
    let hash = xxhash_rust::xxh64::xxh64(node.as_bytes(), 0);
    usize::try_from(hash % count.max(1) as u64).unwrap_or_default()
}

/// The pause after a failed renewal of a certificate that is valid for `left` more. One that ends soon is worth more
/// tries, though never more than one in half a second; one that has ended is not.
fn renewal_pause(backoff: &mut Backoff, left: Duration, draw: f64) -> Duration {
    let most = if left.is_zero() { Duration::MAX } else { (left / 8).max(2 * MIN_RETRY) };
    backoff.pause_within(most, draw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_spread_sidecars_over_control_planes() {
        let mut counts = [0; 3];
        for n in 0..3000 {
            counts[share(&format!("order-{n:08x}"), 3)] += 1;
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
        assert_eq!((share("order-1", 3), share("", 0), share("order-1", 1)), (share("order-1", 3), 0, 0));
    }

    #[test]
    fn renewals_are_tried_again_after_half_a_second_at_least() {
        let s = Duration::from_secs;
        for (left, tries, draw, want) in [
            (s(3600), 0, 0.0, MIN_RETRY),
            (s(3600), 9, 0.0, s(5)),
            (s(3600), 9, 1.0, s(10)),
            (s(2), 9, 0.0, MIN_RETRY),
            (s(2), 9, 1.0, s(1)),
            (s(40), 9, 0.0, s(40) / 16),
            (s(0), 9, 1.0, s(10)),
        ] {
            let mut backoff = Backoff::new(2 * MIN_RETRY, MAX_RETRY);
            for _ in 0..tries {
                backoff.pause(0.5);
            }
            assert_eq!(renewal_pause(&mut backoff, left, draw), want, "{left:?} after {tries} tries, {draw}");
        }
    }

    #[test]
    fn a_sidecar_that_all_others_refused_names_no_others() {
        let addresses = ["a:15012", "b:15012", "c:15012"].map(str::to_owned).to_vec();
        let control = Control::new(addresses, "order-1", None, Arc::new(Identity::default()));
        let others = [false, true, true, true, false].map(|refused| {
            control.refused(refused);
            control.others()
        });
        assert_eq!(others, [2, 1, 0, 0, 2]);
    }

    #[test]
    fn a_sidecar_that_left_its_preferred_control_plane_returns() {
        let addresses = ["a:15012", "b:15012"].map(str::to_owned).to_vec();
        let control = Control::new(addresses, "order-1", None, Arc::new(Identity::default()));
        assert!(control.is_home());
        control.leave(control.turn());
        assert!(!control.is_home());
        control.leave(control.turn());
        assert!(control.is_home(), "round to it again");
    }
}
