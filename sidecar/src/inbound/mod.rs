//! Connections to the application: the phases of a connection, in order.
//!
//! 1. Recognition: mesh TLS (a ClientHello with an ALPN of the mesh), the application's own TLS, or plaintext.
//! 2. Admission: STRICT accepts mesh TLS alone.
//! 3. HTTP or bytes: by the ALPN, else by the registry, else by the first bytes.
//! 4. Delivery to the application, at the original destination, within the limits of its service's policy.

mod request;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use weft_core::hex;
use weft_core::identity::SpiffeId;
use weft_core::inbound::{Inbound, MtlsMode};
use weft_core::policy::Protocol;
use weft_core::proxy_protocol::ConnectionAddresses;
use weft_core::sniff::Sniff;
use weft_core::tls_hello::{Hello, MAX_HELLO, client_hello};
use weft_identity::certificate::{fingerprint, spiffe_id};

use crate::exchange::tcp::{self, First, To};
use crate::http::http1::{Service, Unread};
use crate::http::incoming::Incoming;
use crate::http::{serve_http1, serve_http2};
use crate::net::connect::MARK_DELIVERY;
use crate::net::stream::{MaybeSocket, ReadAhead, Rewind};
use crate::proxy::Proxy;
use crate::proxy::labels;
use crate::telemetry::labels::Pair;
use crate::tls::identity::alpn;
use http::Version;

/// Silence of a client after which a server may speak first, under PERMISSIVE.
const SILENCE: Duration = Duration::from_secs(1);
/// A peer that has not finished its handshake by then is let go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection to the application, and its client.
pub struct Caller {
    proxy: Arc<Proxy>,
    worker: u16,
    peer: SocketAddr,
    /// Where it was addressed to: where the application listens.
    to: SocketAddr,
    /// By mTLS; `None`: plaintext.
    id: Option<SpiffeId>,
    /// SHA-256 of its certificate, hex.
    certificate: String,
    policy: Option<Arc<Inbound>>,
    pair: Arc<Pair>,
}

/// A connection that turned out to be HTTP, and of which version.
enum Http {
    Plain(Rewind<TcpStream>, Version),
    Mesh(Box<TlsStream>, Version),
}

type TlsStream = tokio_rustls::server::TlsStream<ReadAhead<Rewind<TcpStream>>>;

/// Serves a connection from outside.
pub async fn connection(proxy: Arc<Proxy>, stream: TcpStream, peer: SocketAddr, to: SocketAddr, worker: u16) {
    // On the heap while it lasts: a connection has room for its idle time only.
    let found = Box::pin(recognise(proxy, stream, peer, to, worker)).await;
    match found {
        None => {}
        Some((caller, Http::Plain(stream, version))) => http(caller, stream, version).await,
        Some((caller, Http::Mesh(stream, version))) => http(caller, stream, version).await,
    }
}

/// Phases 1 to 3: recognises a connection and its client, and serves the connection here unless it is HTTP.
async fn recognise(
    proxy: Arc<Proxy>,
    mut stream: TcpStream,
    peer: SocketAddr,
    to: SocketAddr,
    worker: u16,
) -> Option<(Arc<Caller>, Http)> {
    let policy = proxy.directory.snapshot().inbound.clone();
    let Some(policy) = policy else {
        tracing::warn!(%peer, "refused: no inbound policy has arrived yet");
        return None;
    };
    let mode = policy.mode_for(to.port());
    let protocol = policy.protocol(to.port());
    // Phase 1. Under STRICT there is no plaintext to wait for.
    let budget = match (mode, protocol) {
        (MtlsMode::Strict, _) => None,
        (_, Protocol::Tcp) if !proxy.ports.speaks_mesh(peer.ip()) && is_server_first(to.port()) => Some(Duration::ZERO),
        _ if proxy.ports.speaks_mesh(peer.ip()) => None,
        _ => Some(SILENCE),
    };
    let first = match proxy.idle.enter(peer.ip()).until(tls_or_not(&mut stream, budget)).await {
        None => {
            tracing::debug!(%peer, "a silent connection is closed to make room for others");
            return None;
        }
        Some(Ok(first)) => first,
        Some(Err(e)) => {
            tracing::debug!(%peer, "connection failed before its first byte: {e}");
            return None;
        }
    };
    let caller = |id: Option<SpiffeId>, certificate: String| {
        let pair = proxy.metrics.pair(labels::inbound(&proxy, &policy, to, id.as_ref()));
        let (proxy, policy) = (proxy.clone(), Some(policy.clone()));
        Arc::new(Caller { proxy, worker, peer, to, id, certificate, policy, pair })
    };
    match first {
        Start::Mesh(bytes) if mode != MtlsMode::Disable => {
            proxy.ports.remember_mesh(peer.ip());
            let exported = policy.allows_federated_peers(to.port());
            mesh(&proxy, stream, bytes, (peer, to), exported, caller).await
        }
        // Phase 2.
        Start::Other(bytes) | Start::Mesh(bytes) | Start::Silence(bytes) if mode == MtlsMode::Strict => {
            proxy.metrics.plaintext_refused.inc();
            tracing::warn!(%peer, %to, policy = %policy.policy, "refused: plaintext, and mTLS is STRICT here");
            refuse_plaintext(caller(None, String::new()), stream, bytes).await;
            None
        }
        Start::Mesh(bytes) | Start::Other(bytes) => {
            plain(caller(None, String::new()), Rewind::new(bytes.freeze(), stream), protocol).await
        }
        Start::Silence(bytes) => {
            let caller = caller(None, String::new());
            bytes_to_application(&caller, Rewind::new(bytes.freeze(), stream)).await;
            None
        }
    }
}

enum Start {
    /// A ClientHello with the mesh's ALPN.
    Mesh(BytesMut),
    /// Anything else.
    Other(BytesMut),
    /// Nothing.
    Silence(BytesMut),
}

async fn tls_or_not(stream: &mut TcpStream, budget: Option<Duration>) -> std::io::Result<Start> {
    let mut bytes = BytesMut::new();
    loop {
        match client_hello(&bytes) {
            Hello::ClientHello { alpn: offered, .. } => {
                let ours = offered.iter().any(|a| alpn::ALL.contains(&a.as_slice()));
                return Ok(if ours { Start::Mesh(bytes) } else { Start::Other(bytes) });
            }
            Hello::NotTls if !bytes.is_empty() => return Ok(Start::Other(bytes)),
            _ if bytes.len() >= MAX_HELLO => return Ok(Start::Other(bytes)),
            _ => {}
        }
        bytes.reserve(2048);
        let read = stream.read_buf(&mut bytes);
        let n = match tokio::time::timeout(budget.unwrap_or(HANDSHAKE_TIMEOUT), read).await {
            Ok(n) => n?,
            Err(_) if budget.is_some() => return Ok(Start::Silence(bytes)),
            Err(_) => return Err(std::io::ErrorKind::TimedOut.into()),
        };
        if n == 0 {
            return Ok(Start::Other(bytes));
        }
    }
}

async fn mesh(
    proxy: &Arc<Proxy>,
    stream: TcpStream,
    bytes: BytesMut,
    (peer, to): (SocketAddr, SocketAddr),
    exported: bool,
    caller: impl FnOnce(Option<SpiffeId>, String) -> Arc<Caller>,
) -> Option<(Arc<Caller>, Http)> {
    let accepted = async {
        // An expired one too: the peer refuses it then, with the reason.
        let credentials = proxy.identity.current().ok_or_else(|| anyhow::anyhow!("no certificate yet"))?;
        let accept =
            TlsAcceptor::from(credentials.server()).accept(ReadAhead::new(Rewind::new(bytes.freeze(), stream)));
        let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, accept).await??;
        let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let leaf = certificates.first().ok_or_else(|| anyhow::anyhow!("no client certificate"))?;
        let id = spiffe_id(leaf)?;
        let federated = id.trust_domain() != credentials.id.trust_domain();
        // The trust bundle may have been removed since the handshake.
        anyhow::ensure!(credentials.trusts_domain(id.trust_domain()), "{id} is of another trust domain");
        let port = to.port();
        anyhow::ensure!(
            !federated || exported,
            "{id} of another trust domain calls port {port}, which is not exported"
        );
        let hash = hex::encode(&fingerprint(leaf));
        Ok((tls, id, hash))
    };
    let (tls, id, hash) = match accepted.await {
        Ok(accepted) => accepted,
        Err(e) => {
            proxy.metrics.handshakes_failed.inc();
            tracing::warn!(%peer, "mTLS handshake failed: {e:#}");
            return None;
        }
    };
    let inside = tls.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    let caller = caller(Some(id), hash);
    match inside.as_deref() {
        Some(alpn::HTTP1) => Some((caller, Http::Mesh(Box::new(tls), Version::HTTP_11))),
        Some(alpn::HTTP2) => Some((caller, Http::Mesh(Box::new(tls), Version::HTTP_2))),
        _ => {
            bytes_to_application(&caller, tls).await;
            None
        }
    }
}

/// Phase 3 of plaintext.
async fn plain(caller: Arc<Caller>, mut stream: Rewind<TcpStream>, protocol: Protocol) -> Option<(Arc<Caller>, Http)> {
    if matches!(protocol, Protocol::Tcp | Protocol::Tls) {
        bytes_to_application(&caller, stream).await;
        return None;
    }
    match tcp::first(&mut stream, BytesMut::new(), None).await {
        Ok(First::Bytes(bytes, kind @ (Sniff::Http1 | Sniff::Http2))) => {
            let version = if kind == Sniff::Http1 { Version::HTTP_11 } else { Version::HTTP_2 };
            Some((caller, Http::Plain(stream.before(bytes.freeze()), version)))
        }
        Ok(First::Bytes(bytes, _) | First::Closed(bytes) | First::Silence(bytes)) => {
            bytes_to_application(&caller, stream.before(bytes.freeze())).await;
            None
        }
        Err(_) => None,
    }
}

/// Responds to an HTTP client with the reason; a client of another protocol sees the connection end.
async fn refuse_plaintext(caller: Arc<Caller>, mut stream: TcpStream, bytes: BytesMut) {
    let first = tokio::time::timeout(HANDSHAKE_TIMEOUT, tcp::first(&mut stream, bytes, None)).await;
    if let Ok(Ok(First::Bytes(bytes, Sniff::Http1))) = first {
        let handle = |request: Request<Incoming>| {
            let caller = caller.clone();
            async move {
                let (parts, _) = request.into_parts();
                let exchange = caller.exchange(&parts, Instant::now());
                caller.refuse_plaintext(exchange, caller.policy.as_deref(), &parts.headers)
            }
        };
        // One answer, then the end.
        let refuse = |unread: Unread| caller.refuse_unread(&unread);
        let service = Service { limits: caller.limits(), answer: handle, refuse };
        let serving = serve_http1(Rewind::new(bytes.freeze(), stream), service);
        let _ = tokio::time::timeout(HANDSHAKE_TIMEOUT, serving).await;
    }
}

async fn http<S>(caller: Arc<Caller>, stream: S, version: Version)
where
    S: AsyncRead + AsyncWrite + MaybeSocket + Unpin + Send + 'static,
{
    if version == Version::HTTP_2 {
        let proxy = caller.proxy.clone();
        let answer = move |request| {
            let caller = caller.clone();
            async move { request::serve(&caller, request).await }
        };
        return Box::pin(serve_http2(stream, proxy.drained(), answer)).await;
    }
    let answer = |request| request::serve(&caller, request);
    let refuse = |unread: Unread| caller.refuse_unread(&unread);
    serve_http1(stream, Service { limits: caller.limits(), answer, refuse }).await;
}

/// Phase 4 for bytes.
async fn bytes_to_application<S>(caller: &Arc<Caller>, stream: S)
where
    S: AsyncRead + AsyncWrite + MaybeSocket + Unpin,
{
    let proxy = &caller.proxy;
    // STRICT may have come while the connection was silent, and may come while it is open.
    let forbidden = async {
        if caller.id.is_some() {
            return std::future::pending().await;
        }
        let strict = |inbound: &Option<Arc<Inbound>>| {
            inbound.as_ref().is_some_and(|i| i.mode_for(caller.to.port()) == MtlsMode::Strict)
        };
        // Never closed: the directory lives as long as the proxy.
        let _ = proxy.directory.inbound().wait_for(strict).await;
        proxy.metrics.plaintext_refused.inc();
        tracing::warn!(peer = %caller.peer, to = %caller.to, "ended: plaintext, and mTLS is STRICT here by now");
    };
    tokio::pin!(forbidden);
    let inbound = proxy.directory.snapshot().inbound.clone();
    let (cluster, endpoint) = proxy.ports.delivery(caller.to, inbound.as_deref());
    let ends = ConnectionAddresses { source: caller.peer, destination: caller.to };
    let opened = tokio::select! {
        biased;
        () = &mut forbidden => return,
        opened = tcp::open(proxy, &cluster, To::Fixed(&endpoint), &ends, MARK_DELIVERY, Some(&caller.pair)) => opened,
    };
    match opened {
        Ok(flow) => tcp::run(proxy, &proxy.inbound, stream, flow, Bytes::new(), forbidden).await,
        Err(flag) => tracing::debug!(to = %caller.to, flag = flag.as_str(), "not delivered"),
    }
}

/// Ports whose protocols begin with the server's greeting (as Istio lists them).
fn is_server_first(port: u16) -> bool {
    matches!(port, 25 | 53 | 3306 | 27017)
}
