//! Opening connections to endpoints: plain or mTLS, HTTP/1, HTTP/2 or bytes.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsConnector;
use weft_core::endpoint::{Endpoint, Target};
use weft_core::http1::Limits;
use weft_core::identity::SpiffeId;
use weft_core::outcome::Outcome;
use weft_core::policy::{Cluster, Http2Keepalive, Origination, Tls};
use weft_core::proxy_protocol::{self, ConnectionAddresses};
use weft_identity::certificate::spiffe_id;

use crate::http::http1;
use crate::http::http2;
use crate::net::connect::{self, Keepalive, MARK_UPSTREAM};
use crate::net::stream::{MaybeSocket, ReadAhead, Socket};
use crate::net::transport::Transport;
use crate::resolve::lookup;
use crate::tls::identity::{Identity, alpn};
use crate::upstream::pool::Opened;

/// Longest wait for a connection through a gateway of another data centre: the request may still be answered at home.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an endpoint may take to accept a connection where another one can be tried: enough for a SYN that is lost once,
/// which is sent again after a second.
pub const FAILOVER_PATIENCE: Duration = Duration::from_secs(3);
/// Pings on an HTTP/2 connection to a sidecar, unless a policy sets them. Without pings a vanished peer shows only while bytes
/// wait for their acknowledgement.
const MESH_KEEPALIVE: Http2Keepalive =
    Http2Keepalive { interval: Duration::from_secs(10), timeout: Duration::from_secs(10) };

/// Why a connection could not be opened.
#[derive(Debug, Clone)]
pub struct DialError {
    /// For ejection and retries.
    pub outcome: Outcome,
    /// For people.
    pub detail: String,
    /// The endpoint has no identity and mTLS is demanded.
    pub without_identity: bool,
}

impl DialError {
    /// With its class and a text for people.
    pub fn new(outcome: Outcome, detail: impl ToString) -> DialError {
        DialError { outcome, detail: detail.to_string(), without_identity: false }
    }

    /// Of a connection that takes longer than `limit`.
    pub fn late(limit: Duration) -> DialError {
        DialError::new(Outcome::ConnectTimeout, format!("no connection within {limit:?}"))
    }

    /// Of a peer that is registered with a sidecar.
    fn not_captured(endpoint: &Endpoint) -> DialError {
        let detail = format!(
            "{}: the peer answered without TLS: its traffic is not captured (`weft-sidecar redirect install` there)",
            endpoint.key
        );
        DialError::new(Outcome::ConnectFailure, detail)
    }

    fn io(e: &io::Error) -> DialError {
        let outcome =
            if e.kind() == io::ErrorKind::TimedOut { Outcome::ConnectTimeout } else { Outcome::ConnectFailure };
        DialError::new(outcome, e)
    }
}

/// Whether a handshake failed because the peer answered with something else than TLS.
fn is_plaintext(e: &io::Error) -> bool {
    let tls = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)))
}

/// Dials as the cluster's policy says. `alpn`: the protocol inside mTLS.
///
/// # Errors
/// The cause; an endpoint without the registered identity was sent at most a PROXY header, where the policy wants one.
pub async fn connect(dialer: &Dialer<'_>, alpn: &[u8]) -> Result<Transport, DialError> {
    let Dialer { cluster, endpoint, identity, mark, .. } = *dialer;
    let expected = match (&cluster.tls, endpoint.identities()) {
        (Tls::Disable | Tls::Originate(_), _) | (Tls::Auto, []) => None,
        (Tls::Auto | Tls::IstioMutual, ids @ [_, ..]) => Some(ids),
        (Tls::IstioMutual, []) => {
            let error = DialError::new(Outcome::ConnectFailure, "mTLS is required and the endpoint has no identity");
            return Err(DialError { without_identity: true, ..error });
        }
    };
    let limit = match endpoint.remote {
        Some(_) => cluster.pool.connect_timeout.min(GATEWAY_TIMEOUT),
        None => cluster.pool.connect_timeout,
    };
    let limit = dialer.patience.map_or(limit, |patience| limit.min(patience));
    let connecting = async {
        let mut stream = dial(cluster, endpoint, mark).await?;
        if alpn != alpn::TCP
            && mark == MARK_UPSTREAM
            && let Some(socket) = stream.socket()
        {
            connect::end_when_peer_vanishes(socket, cluster.pool.tcp_keepalive.is_some());
        }
        if let Some(header) = dialer.header() {
            stream.write_all(&header).await.map_err(|e| DialError::io(&e))?;
        }
        if let Tls::Originate(origination) = &cluster.tls {
            return originate(origination, name_of(origination, endpoint), identity, alpn, stream).await;
        }
        let Some(expected) = expected else { return Ok(Transport::Plain(stream)) };
        let credentials = identity.valid().map_err(|e| DialError::new(Outcome::ConnectFailure, format!("{e:#}")))?;
        let stream = ReadAhead::new(stream);
        let tls = TlsConnector::from(credentials.client(alpn)).connect(server_name(cluster), stream).await;
        let tls =
            tls.map_err(|e| if is_plaintext(&e) { DialError::not_captured(endpoint) } else { DialError::io(&e) })?;
        let to = &endpoint.key;
        let found = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).map(spiffe_id);
        match found {
            Some(Ok(found)) if expected.contains(&found) => Ok(Transport::Tls(Box::new(tls))),
            Some(Ok(found)) => Err(DialError::new(
                Outcome::IdentityMismatch,
                format!("{to} presents {found}, the registry says {}", list(expected)),
            )),
            Some(Err(e)) => Err(DialError::new(Outcome::IdentityMismatch, format!("{to}: {e:#}"))),
            None => Err(DialError::new(Outcome::IdentityMismatch, format!("{to} presents no certificate"))),
        }
    };
    match tokio::time::timeout(limit, connecting).await {
        Ok(result) => result,
        Err(_) => Err(DialError::late(limit)),
    }
}

/// The server name of originated TLS: the policy's, and where that is a wildcard the host of the request.
fn name_of<'a>(origination: &'a Origination, endpoint: &'a Endpoint) -> &'a str {
    match &endpoint.target {
        Target::RequestHost(host, _) if origination.server_name.starts_with('*') => host,
        _ => &origination.server_name,
    }
}

/// TLS that is not the mesh's, over a connection that is open.
async fn originate(
    origination: &Arc<Origination>,
    name: &str,
    identity: &Identity,
    alpn: &[u8],
    stream: Socket,
) -> Result<Transport, DialError> {
    let failed = |detail: String| DialError::new(Outcome::ConnectFailure, format!("TLS to {name}: {detail}"));
    let config = identity.outside.config(origination, alpn).map_err(|e| failed(format!("{e:#}")))?;
    let server = ServerName::try_from(name.to_string()).map_err(|_| failed("it is no name of a server".into()))?;
    let tls = TlsConnector::from(config).connect(server, ReadAhead::new(stream)).await;
    tls.map(|tls| Transport::Tls(Box::new(tls))).map_err(|e| failed(e.to_string()))
}

/// Dials `endpoint` as `cluster` says, for a downstream whose own TLS is terminated there.
///
/// # Errors
/// The cause.
pub async fn connect_through(cluster: &Cluster, endpoint: &Endpoint, mark: u32) -> Result<Transport, DialError> {
    let limit = cluster.pool.connect_timeout;
    match tokio::time::timeout(limit, dial(cluster, endpoint, mark)).await {
        Ok(stream) => stream.map(Transport::Plain),
        Err(_) => Err(DialError::new(Outcome::ConnectTimeout, format!("no connection within {limit:?}"))),
    }
}

async fn dial(cluster: &Cluster, endpoint: &Endpoint, mark: u32) -> Result<Socket, DialError> {
    let to = match &endpoint.target {
        Target::Socket(address) => *address,
        Target::Name(name, port) => lookup::socket_address(name, *port).await.map_err(|e| DialError::io(&e))?,
        Target::RequestHost(name, port) => {
            lookup::on_demand::socket_address(name, *port).await.map_err(|e| DialError::io(&e))?
        }
        Target::Unix(path) => {
            let opened = connect::unix(path).await;
            return opened.map(Socket::Unix).map_err(|e| DialError::io(&e));
        }
    };
    let keepalive = cluster.pool.tcp_keepalive.map(|k| Keepalive {
        probes: k.probes.unwrap_or(0),
        time: k.time.unwrap_or(Duration::ZERO),
        interval: k.interval.unwrap_or(Duration::ZERO),
    });
    let stream = connect::tcp(to, mark, cluster.pool.connect_timeout, keepalive).await;
    stream.map(Socket::Tcp).map_err(|e| DialError::io(&e))
}

fn list(ids: &[SpiffeId]) -> String {
    ids.iter().map(SpiffeId::as_str).collect::<Vec<_>>().join(" or ")
}

/// The SNI that Istio sends inside the mesh; gateways route by it without a key.
fn server_name(cluster: &Cluster) -> ServerName<'static> {
    let name = format!("outbound_.{}_.{}_.{}", cluster.port, cluster.subset, cluster.host);
    // An IP address is not sent as a server name (RFC 6066, 3), so that any will do.
    ServerName::try_from(name).unwrap_or(ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
}

/// The parameters of a new connection.
pub struct Dialer<'a> {
    /// Its policy.
    pub cluster: &'a Cluster,
    /// Where to.
    pub endpoint: &'a Endpoint,
    /// The workload's identity.
    pub identity: &'a Identity,
    /// The downstream connection that it is opened for; `None`: any.
    pub ends: Option<&'a ConnectionAddresses>,
    /// Whether HTTP/2 is spoken.
    pub multiplex: bool,
    /// Mark of the socket.
    pub mark: u32,
    /// Less than `connectTimeout`, where another endpoint can be tried.
    pub patience: Option<Duration>,
    /// Of the pool's, that of the policy: which connections are made under one that is no more ([`crate::upstream::pool`]).
    pub generation: u32,
}

impl Dialer<'_> {
    /// Whether the connection carries a PROXY header: then it serves one downstream connection alone.
    pub fn speaks_for_one(&self) -> bool {
        self.ends.is_some() && self.cluster.proxy_protocol.is_some()
    }

    fn header(&self) -> Option<Vec<u8>> {
        // A gateway of another data centre passes TLS on by its ClientHello.
        if self.endpoint.remote.is_some() {
            return None;
        }
        Some(proxy_protocol::header(self.cluster.proxy_protocol?, self.ends?))
    }
}

/// Dials for HTTP and shakes hands.
///
/// # Errors
/// As [`connect()`].
pub async fn open_http(dialer: &Dialer<'_>) -> Result<Opened, DialError> {
    let Dialer { cluster, multiplex, .. } = *dialer;
    let alpn = if multiplex { alpn::HTTP2 } else { alpn::HTTP1 };
    let stream = connect(dialer, alpn).await?;
    let mesh = matches!(stream, Transport::Tls(_)) && !matches!(cluster.tls, Tls::Originate(_));
    if !multiplex {
        let limits = if mesh { Limits::MESH } else { Limits::OUTSIDE };
        return Ok(Opened::Http1(http1::Client::new(stream, limits)));
    }
    let keepalive = cluster.pool.http2_keepalive.or(mesh.then_some(MESH_KEEPALIVE));
    let opened = http2::open(stream, keepalive).await.map_err(|e| DialError::new(Outcome::ConnectFailure, e));
    opened.map(|(client, driver)| Opened::Http2(client, driver))
}
