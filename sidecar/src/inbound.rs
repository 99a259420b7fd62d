//! What others call of our application: the phases of a connection, in order.
//!
//! 1. What is it: mesh TLS (a ClientHello with our ALPN), the application's own TLS, or plaintext.
//! 2. May it come in: STRICT takes mesh TLS alone.
//! 3. HTTP or bytes: the ALPN says, else the registry, else the first bytes.
//! 4. Delivery to the application, at the address that was dialed, within the limits of its service's policy.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use weft_core::endpoint::Endpoint;
use weft_core::identity::SpiffeId;
use weft_core::limits::Overflow;
use weft_core::names;
use weft_core::outcome::Outcome;
use weft_core::policy::{Cluster, Inbound, MtlsMode, Protocol};
use weft_core::reply::{LocalReply, Reason, is_grpc};
use weft_core::sniff::Sniff;
use weft_core::tls_hello::{Hello, MAX_HELLO, client_hello};

use crate::body::{Replay, RequestBody, ResponseBody};
use crate::call::{Ending, LogFields, Record};
use crate::cluster::ClusterView;
use crate::connect::MARK_DELIVERY;
use crate::http::{
    REQUEST_ID, address_request, address_response, authority, ensure_request_id, local_reply, path_and_query,
    remove_hop_headers, serve_http1, serve_http2, wants_upgrade,
};
use crate::identity::{alpn, spiffe_id};
use crate::metrics::{Pair, Workload};
use crate::pool::CheckoutError;
use crate::proxy::{Proxy, foreign_endpoint, workload_of};
use crate::stream::{Moved, Rewind, relay};
use crate::tcp::{self, First};
use crate::upstream::Dialer;

/// Who calls, by its certificate.
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// Silence of a client after which a server may speak first, under PERMISSIVE.
const SILENCE: Duration = Duration::from_secs(1);
/// A peer that has not finished its handshake by then is let go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Local addresses that are delivered to, and peers known to speak mesh TLS, that are remembered.
const MAX_REMEMBERED: usize = 4096;

type Delivery = (Arc<ClusterView>, Arc<Endpoint>);

/// What is known of our application's ports, and of who calls them.
#[derive(Default)]
pub struct Ports {
    deliveries: Mutex<HashMap<SocketAddr, Delivery>>,
    mesh_peers: Mutex<HashSet<IpAddr>>,
}

impl Ports {
    /// Connections to the application at `to`, with the limits of the service there.
    fn delivery(&self, to: SocketAddr, inbound: Option<&Inbound>) -> Delivery {
        let pool = inbound.and_then(|i| i.service(to.port())).map(|s| s.pool.clone()).unwrap_or_default();
        let mut known = self.deliveries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = known.get(&to)
            && held.0.config.pool == pool
        {
            return held.clone();
        }
        let host =
            inbound.and_then(|i| i.service(to.port())).map_or("InboundPassthroughCluster".into(), |s| s.host.clone());
        let config = Arc::new(Cluster::original_destination(&format!("inbound|{}||", to.port()), &host, pool));
        let previous = known.get(&to).cloned();
        let view = Arc::new(ClusterView::new(config, &[], previous.as_ref().map(|(view, _)| &**view)));
        let endpoint = previous.map_or_else(|| foreign_endpoint(to), |(_, endpoint)| endpoint);
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(to, (view.clone(), endpoint.clone()));
        (view, endpoint)
    }

    /// Clusters of all ports.
    pub fn clusters(&self) -> Vec<Arc<ClusterView>> {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner).values().map(|(c, _)| c.clone()).collect()
    }

    fn speaks_mesh(&self, peer: IpAddr) -> bool {
        self.mesh_peers.lock().unwrap_or_else(PoisonError::into_inner).contains(&peer)
    }

    fn remember_mesh(&self, peer: IpAddr) {
        let mut peers = self.mesh_peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= MAX_REMEMBERED {
            peers.clear();
        }
        peers.insert(peer);
    }
}

/// A connection that came in, and who is behind it.
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

/// Serves a connection from outside.
pub async fn connection(proxy: Arc<Proxy>, mut stream: TcpStream, peer: SocketAddr, to: SocketAddr, worker: u16) {
    let policy = proxy.directory.snapshot().inbound.clone();
    let Some(policy) = policy else {
        tracing::warn!(%peer, "refused: no inbound policy has arrived yet");
        return;
    };
    let mode = policy.mode_for(to.port());
    let protocol = policy.service(to.port()).map_or(Protocol::Unknown, |s| s.protocol);
    // Phase 1. Under STRICT there is no plaintext to wait for.
    let budget = match (mode, protocol) {
        (MtlsMode::Strict, _) => None,
        (_, Protocol::Tcp) if !proxy.ports.speaks_mesh(peer.ip()) && is_server_first(to.port()) => Some(Duration::ZERO),
        _ if proxy.ports.speaks_mesh(peer.ip()) => None,
        _ => Some(SILENCE),
    };
    let first = match tls_or_not(&mut stream, budget).await {
        Ok(first) => first,
        Err(e) => return tracing::debug!(%peer, "connection failed before it said anything: {e}"),
    };
    let caller = |id: Option<SpiffeId>, certificate: String| {
        let pair = proxy.metrics.pair(pair(&proxy, &policy, to, id.as_ref()));
        let (proxy, policy) = (proxy.clone(), Some(policy.clone()));
        Arc::new(Caller { proxy, worker, peer, to, id, certificate, policy, pair })
    };
    match first {
        Start::Mesh(bytes) if mode != MtlsMode::Disable => {
            proxy.ports.remember_mesh(peer.ip());
            mesh(&proxy, stream, bytes, peer, caller).await;
        }
        // Phase 2.
        Start::Other(bytes) | Start::Mesh(bytes) | Start::Silence(bytes) if mode == MtlsMode::Strict => {
            proxy.metrics.plaintext_refused.inc();
            tracing::warn!(%peer, %to, policy = %policy.policy, "refused: plaintext, and mTLS is STRICT here");
            refuse_plaintext(caller(None, String::new()), stream, bytes).await;
        }
        Start::Mesh(bytes) | Start::Other(bytes) => {
            plain(caller(None, String::new()), Rewind::new(bytes.freeze(), stream), protocol).await;
        }
        Start::Silence(bytes) => {
            let caller = caller(None, String::new());
            bytes_to_application(&caller, Rewind::new(bytes.freeze(), stream)).await;
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
        let n = match budget {
            None => read.await?,
            Some(budget) => match tokio::time::timeout(budget, read).await {
                Ok(n) => n?,
                Err(_) => return Ok(Start::Silence(bytes)),
            },
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
    peer: SocketAddr,
    caller: impl FnOnce(Option<SpiffeId>, String) -> Arc<Caller>,
) {
    let accepted = async {
        // One that has expired too: the peer refuses it then, and can say why.
        let credentials = proxy.identity.current().ok_or_else(|| anyhow::anyhow!("no certificate yet"))?;
        let accept = TlsAcceptor::from(credentials.server()).accept(Rewind::new(bytes.freeze(), stream));
        let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, accept).await??;
        let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let leaf = certificates.first().ok_or_else(|| anyhow::anyhow!("no client certificate"))?;
        let id = spiffe_id(leaf)?;
        anyhow::ensure!(id.trust_domain() == credentials.id.trust_domain(), "{id} is of another trust domain");
        let hash = crate::files::sha256(leaf).iter().map(|b| format!("{b:02x}")).collect::<String>();
        Ok((tls, id, hash))
    };
    let (tls, id, hash) = match accepted.await {
        Ok(accepted) => accepted,
        Err(e) => {
            proxy.metrics.handshakes_failed.inc();
            return tracing::warn!(%peer, "mTLS handshake failed: {e:#}");
        }
    };
    let inside = tls.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    let caller = caller(Some(id), hash);
    match inside.as_deref() {
        Some(alpn::HTTP1) => http1(caller, tls).await,
        Some(alpn::HTTP2) => http2(caller, tls).await,
        _ => bytes_to_application(&caller, tls).await,
    }
}

/// Phase 3 of plaintext.
async fn plain(caller: Arc<Caller>, mut stream: Rewind<TcpStream>, protocol: Protocol) {
    if matches!(protocol, Protocol::Tcp | Protocol::Tls) {
        return bytes_to_application(&caller, stream).await;
    }
    match tcp::first(&mut stream, BytesMut::new(), None).await {
        Ok(First::Bytes(bytes, Sniff::Http1)) => http1(caller, Rewind::new(bytes.freeze(), stream)).await,
        Ok(First::Bytes(bytes, Sniff::Http2)) => http2(caller, Rewind::new(bytes.freeze(), stream)).await,
        Ok(First::Bytes(bytes, _) | First::Closed(bytes) | First::Silence(bytes)) => {
            bytes_to_application(&caller, Rewind::new(bytes.freeze(), stream)).await;
        }
        Err(_) => {}
    }
}

/// An HTTP client is told why; whoever speaks something else sees the connection end.
async fn refuse_plaintext(caller: Arc<Caller>, mut stream: TcpStream, bytes: BytesMut) {
    let first = tokio::time::timeout(HANDSHAKE_TIMEOUT, tcp::first(&mut stream, bytes, None)).await;
    if let Ok(Ok(First::Bytes(bytes, Sniff::Http1))) = first {
        let policy = caller.policy.as_ref().map(|p| p.policy.to_string()).unwrap_or_default();
        let handle = |request: Request<Incoming>| {
            let (caller, policy) = (caller.clone(), policy.clone());
            async move {
                let (parts, _) = request.into_parts();
                let record = caller.record(&parts, Instant::now());
                caller.local(record, &Reason::PlaintextRefused, &policy, &parts.headers, true)
            }
        };
        // One answer, then the end.
        let serving = serve_http1(Rewind::new(bytes.freeze(), stream), handle);
        let _ = tokio::time::timeout(HANDSHAKE_TIMEOUT, serving).await;
    }
}

async fn http1<S>(caller: Arc<Caller>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    serve_http1(stream, |request| request_to_application(&caller, request)).await;
}

async fn http2<S>(caller: Arc<Caller>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let proxy = caller.proxy.clone();
    serve_http2(stream, &proxy, move |request| {
        let caller = caller.clone();
        async move { request_to_application(&caller, request).await }
    })
    .await;
}

/// Phase 4 for bytes.
async fn bytes_to_application<S>(caller: &Arc<Caller>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let proxy = &caller.proxy;
    let (cluster, endpoint) = proxy.ports.delivery(caller.to, caller.policy.as_deref());
    match tcp::open(proxy, &cluster, Some(&endpoint), caller.peer, MARK_DELIVERY, Some(&caller.pair)).await {
        Ok(flow) => tcp::run(proxy, &proxy.inbound, stream, flow, Bytes::new()).await,
        Err(flag) => tracing::debug!(to = %caller.to, flag = flag.as_str(), "not delivered"),
    }
}

/// Phase 4 for a request.
async fn request_to_application(caller: &Arc<Caller>, mut request: Request<Incoming>) -> Response<ResponseBody> {
    let start = Instant::now();
    let active = caller.proxy.inbound.begin();
    let upgrade = request.extensions().get::<OnUpgrade>().is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut parts, incoming) = request.into_parts();
    let upgrade = upgrade.filter(|_| wants_upgrade(&parts));
    let client_version = parts.version;
    ensure_request_id(&mut parts.headers);
    let mut record = caller.record(&parts, start);
    // As the policy is now, not as it was when the connection came: a kept connection may outlive many policies.
    let inbound = caller.proxy.directory.snapshot().inbound.clone();
    // A connection that came while plaintext was allowed does not outlive that.
    let strict = inbound.as_ref().is_some_and(|i| i.mode_for(caller.to.port()) == MtlsMode::Strict);
    if strict && caller.id.is_none() {
        caller.proxy.metrics.plaintext_refused.inc();
        let policy = inbound.as_ref().map(|i| i.policy.to_string()).unwrap_or_default();
        return caller.local(record, &Reason::PlaintextRefused, &policy, &parts.headers, true);
    }
    let (cluster, endpoint) = caller.proxy.ports.delivery(caller.to, inbound.as_deref());
    record.cluster = Some(cluster.config.name.clone());
    record.upstream = Some(endpoint.key.clone());
    let grpc = is_grpc(&parts.headers);
    let policy = cluster.config.policy.to_string();
    let permit = match cluster.shared.limits.requests.try_acquire(cluster.config.pool.max_requests) {
        Ok(permit) => permit,
        Err(overflow) => return caller.local(record, &Reason::Overflow(overflow), &policy, &parts.headers, false),
    };

    remove_hop_headers(&mut parts.headers, upgrade.is_some());
    caller.name_in(&mut parts.headers);
    let host = authority(&parts).to_owned();
    let is_head = parts.method == http::Method::HEAD;
    let is_connect = parts.method == http::Method::CONNECT;
    let multiplex = upgrade.is_none() && !is_connect && client_version == http::Version::HTTP_2;
    address_request(&mut parts, &host, multiplex);
    let body = if incoming.is_end_stream() { None } else { Some(Replay::new(incoming)) };
    let in_flight = endpoint.state.enter();

    let mut head = Some(parts);
    let (mut response, lease) = loop {
        let identity = &caller.proxy.identity;
        let dialer = Dialer { cluster: &cluster.config, endpoint: &endpoint, identity, multiplex, mark: MARK_DELIVERY };
        let checkout = cluster.shared.pool.checkout(caller.worker, dialer).await;
        let none = http::HeaderMap::new();
        let headers = head.as_ref().map_or(&none, |h| &h.headers);
        let mut lease = match checkout {
            Ok(lease) => lease,
            Err(CheckoutError::Overflow(overflow)) => {
                return caller.local(record, &Reason::Overflow(overflow), &policy, headers, false);
            }
            Err(CheckoutError::Dial(e)) => {
                let reason = Reason::of(&e.outcome, None::<Overflow>, &e.detail).unwrap_or(Reason::UpstreamClosed);
                return caller.local(record, &reason, &policy, headers, false);
            }
        };
        let sending = match &body {
            None => Some(RequestBody::Empty),
            Some(body) => body.attempt(),
        };
        let (Some(parts), Some(sending)) = (head.take(), sending) else {
            return caller.local(record, &Reason::UpstreamClosed, &policy, &grpc_hint(grpc), false);
        };
        record.attempts += 1;
        match lease.send(Request::from_parts(parts, sending)).await {
            Ok(response) => break (response, lease),
            Err(mut failed) => {
                // Provably not sent: the application closed the connection while it was idle.
                if let Some(unsent) = failed.take_message()
                    && lease.reused
                    && body.as_ref().is_none_or(|b| b.is_whole())
                {
                    head = Some(unsent.into_parts().0);
                    continue;
                }
                let error = failed.error();
                let outcome =
                    if error.is_parse() { Outcome::ProtocolError } else { Outcome::Reset { request_started: true } };
                let reason = Reason::of(&outcome, None, &error.to_string()).unwrap_or(Reason::UpstreamClosed);
                return caller.local(record, &reason, &policy, &grpc_hint(grpc), false);
            }
        }
    };
    record.code = response.status().as_u16();
    record.grpc_status = response.headers().get("grpc-status").and_then(|s| s.to_str().ok()?.parse().ok());
    let mut ending = Ending::none();
    ending.lease = Some(lease);
    ending.worker = caller.worker;
    ending.request = body.map(|b| b.state.clone());
    ending.in_flight = Some(in_flight);
    ending.permit = Some(permit);
    ending.active = Some(active);
    ending.record = Some(record);
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS
        || (upgrade.is_some() && is_connect && response.status().is_success());
    let server = switching.then(|| hyper::upgrade::on(&mut response));
    address_response(&mut response, client_version, caller.proxy.is_draining());
    let (parts, incoming) = response.into_parts();
    if let (Some(client), Some(server)) = (upgrade, server) {
        tokio::spawn(async move {
            let (Ok(client), Ok(server)) = (client.await, server.await) else { return };
            let moved = Moved::default();
            relay(TokioIo::new(client), TokioIo::new(server), &moved, None, None).await;
            ending.sent(usize::try_from(moved.received.into_inner()).unwrap_or(usize::MAX));
            ending.lease = None;
            ending.complete();
        });
        return Response::from_parts(parts, ResponseBody::empty());
    }
    if is_head {
        ending.complete();
        return Response::from_parts(parts, ResponseBody::upstream(incoming, Ending::none()));
    }
    Response::from_parts(parts, ResponseBody::upstream(incoming, ending))
}

/// Enough of a request's headers to answer it in its own protocol.
fn grpc_hint(grpc: bool) -> http::HeaderMap {
    let value = HeaderValue::from_static("application/grpc");
    grpc.then_some((http::header::CONTENT_TYPE, value)).into_iter().collect()
}

impl Caller {
    /// Says who calls, in the header that Istio uses. What a caller without a certificate says of itself is removed.
    fn name_in(&self, headers: &mut http::HeaderMap) {
        let Some(id) = &self.id else {
            headers.remove(CLIENT_CERT);
            return;
        };
        let own = self.proxy.identity.current();
        let by = own.as_ref().map_or("", |o| o.id.as_str());
        let mut text =
            headers.get(CLIENT_CERT).and_then(|h| h.to_str().ok()).map(|h| format!("{h},")).unwrap_or_default();
        text.push_str(&format!("By={by};Hash={};Subject=\"\";URI={id}", self.certificate));
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(CLIENT_CERT, value);
        }
    }

    fn record(&self, parts: &http::request::Parts, start: Instant) -> Record {
        let log = self.proxy.log.as_ref().map(|log| {
            let request_id = parts.headers.get(REQUEST_ID).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let fields = LogFields {
                method: parts.method.to_string(),
                path: path_and_query(&parts.uri).to_owned(),
                authority: authority(parts).to_owned(),
                version: format!("{:?}", parts.version),
                source: self.peer,
                request_id: request_id.to_owned(),
            };
            (log.clone(), fields)
        });
        Record {
            start,
            pair: self.pair.clone(),
            metrics: self.proxy.metrics.clone(),
            log,
            grpc: is_grpc(&parts.headers),
            code: 0,
            flag: None,
            reason: None,
            grpc_status: None,
            upstream: None,
            cluster: None,
            route: None,
            attempts: 0,
            sent: 0,
        }
    }

    fn local(
        &self,
        mut record: Record,
        reason: &Reason,
        policy: &str,
        request: &http::HeaderMap,
        close: bool,
    ) -> Response<ResponseBody> {
        let (reply, mut response): (LocalReply, _) = local_reply(reason, policy, request);
        record.code = response.status().as_u16();
        record.flag = Some(reply.flag);
        record.reason = Some(reply.reason);
        address_response(&mut response, http::Version::HTTP_11, close || self.proxy.is_draining());
        let mut ending = Ending::none();
        ending.record = Some(record);
        response.map(|body| body.with_ending(ending))
    }
}

/// Ports whose protocols begin with the server's greeting (as Istio lists them).
fn is_server_first(port: u16) -> bool {
    matches!(port, 25 | 53 | 3306 | 27017)
}

/// Labels for what comes to a port of ours.
fn pair(proxy: &Proxy, policy: &Inbound, to: SocketAddr, id: Option<&SpiffeId>) -> Pair {
    let unknown: Arc<str> = "unknown".into();
    let (host, namespace) = match policy.service(to.port()) {
        Some(service) => (service.host.clone(), service.namespace.clone()),
        None => (unknown.clone(), unknown),
    };
    let name = names::parse_fqdn(&host).map_or(&*host, |(name, _)| name);
    let source = workload_of(id);
    Pair {
        reporter: "destination",
        source: Workload { ..source },
        destination: proxy.own(),
        service_name: name.into(),
        service_namespace: namespace,
        service: host.clone(),
        mtls: id.is_some(),
    }
}
