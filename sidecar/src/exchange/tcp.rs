//! Byte streams: connections that are not HTTP, or that must not be parsed; and the recognition of protocols.
//!
//! Where the registry has no protocol for a port, the first bytes decide. Some servers speak first: after a short silence of
//! the client the connection to the server is opened, and the side that speaks first decides. A slow HTTP client is still
//! served as HTTP then, and a database greets without delay.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::Rng;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use weft_core::balance::RetrySelection;
use weft_core::endpoint::{Endpoint, InFlight};
use weft_core::flag::ResponseFlag;
use weft_core::hash::connection_hash;
use weft_core::proxy_protocol::ConnectionAddresses;
use weft_core::sniff::{self, Sniff};

use crate::net::relay::{Moved, RelayEnd, relay};
use crate::net::stream::{MaybeSocket, Rewind};
use crate::proxy::activity::Activity;
use crate::proxy::{Proxy, labels};
use crate::telemetry::labels::Pair;
use crate::upstream::cluster::ClusterView;
use crate::upstream::dial::{DialError, Dialer, FAILOVER_PATIENCE, connect_through};
use crate::upstream::pool::TcpSlot;
use crate::upstream::tunnel::{self, Far};

/// Another attempt to connect goes to another endpoint.
const OTHERS: RetrySelection = RetrySelection { other_endpoints: true, other_levels: false };

/// Bytes that are read to recognise a protocol.
const SNIFF_LIMIT: usize = 16 * 1024;

/// The result of reading the first bytes.
#[derive(Debug)]
pub enum First {
    /// These bytes, of this protocol; not [`Sniff::NeedMore`].
    Bytes(BytesMut, Sniff),
    /// The client is silent so far.
    Silence(BytesMut),
    /// The client closed before its protocol was clear.
    Closed(BytesMut),
}

/// Reads until the protocol is clear, or nothing came within `budget` (`None`: wait for ever).
///
/// # Errors
/// When reading fails.
pub async fn first<S: AsyncRead + Unpin>(
    stream: &mut S,
    mut bytes: BytesMut,
    budget: Option<Duration>,
) -> std::io::Result<First> {
    loop {
        match sniff::protocol(&bytes) {
            Sniff::NeedMore if bytes.len() >= SNIFF_LIMIT => return Ok(First::Bytes(bytes, Sniff::Other)),
            Sniff::NeedMore => {}
            decided => return Ok(First::Bytes(bytes, decided)),
        }
        bytes.reserve(1024);
        let read = stream.read_buf(&mut bytes);
        let n = match budget {
            None => read.await?,
            Some(budget) => match tokio::time::timeout(budget, read).await {
                Ok(n) => n?,
                // The beginning of something that takes its time is not silence, but it decides nothing either.
                Err(_) => return Ok(First::Silence(bytes)),
            },
        };
        if n == 0 {
            return Ok(First::Closed(bytes));
        }
    }
}

/// An open connection to where a client's bytes go.
pub struct Flow {
    /// The other side.
    pub upstream: Far,
    pair: Arc<Pair>,
    cluster: Arc<ClusterView>,
    endpoint: Arc<Endpoint>,
    _slot: TcpSlot,
    _in_flight: InFlight,
}

/// Where a connection goes.
#[derive(Clone, Copy)]
pub enum To<'a> {
    /// To whichever endpoint the balancer picks.
    Any,
    /// To this one.
    Fixed(&'a Arc<Endpoint>),
    /// To an endpoint of this data centre that has an identity, without originating TLS: the downstream's TLS is terminated there.
    Through,
}

/// Picks an endpoint of `cluster` and connects to it. `reported_as`: labels, where they are not those of a call of the
/// application.
///
/// # Errors
/// The response flag; it was counted and logged.
pub async fn open(
    proxy: &Proxy,
    cluster: &Arc<ClusterView>,
    to: To<'_>,
    ends: &ConnectionAddresses,
    mark: u32,
    reported_as: Option<&Arc<Pair>>,
) -> Result<Flow, ResponseFlag> {
    let opening = Opening { proxy, cluster, to, ends, mark, reported_as };
    opening.run().await.map_err(|(flag, why)| opening.refuse(flag, &why))
}

/// A connection on its way to an endpoint.
struct Opening<'a> {
    proxy: &'a Proxy,
    cluster: &'a Arc<ClusterView>,
    to: To<'a>,
    ends: &'a ConnectionAddresses,
    mark: u32,
    reported_as: Option<&'a Arc<Pair>>,
}

/// Attempts to connect, as Istio's default for TCP: each to another endpoint where there is one.
const ATTEMPTS: u32 = 3;

impl Opening<'_> {
    fn fixed(&self) -> Option<&Arc<Endpoint>> {
        match self.to {
            To::Fixed(endpoint) => Some(endpoint),
            To::Any | To::Through => None,
        }
    }

    fn pair(&self, endpoint: Option<&Arc<Endpoint>>) -> Arc<Pair> {
        match self.reported_as {
            Some(pair) => pair.clone(),
            None => labels::to_cluster(self.proxy, self.cluster, endpoint),
        }
    }

    /// Logs and counts a connection that has no endpoint.
    fn refuse(&self, flag: ResponseFlag, why: &str) -> ResponseFlag {
        let (cluster, source) = (&self.cluster.config.name, self.ends.source);
        tracing::warn!(%cluster, %source, flag = flag.as_str(), "TCP connection refused: {why}");
        let pair = self.pair(self.fixed());
        self.proxy.metrics.tcp_opened(&pair);
        self.proxy.metrics.tcp_closed(&pair, Some(flag), 0, 0);
        flag
    }

    async fn run(&self) -> Result<Flow, (ResponseFlag, String)> {
        let cluster = self.cluster;
        if cluster.config.undefined {
            return Err((ResponseFlag::NoCluster, "the host or subset is not defined".to_owned()));
        }
        let slot = cluster.shared.pool.checkout_tcp().map_err(|e| (ResponseFlag::UpstreamOverflow, e.to_string()))?;
        let hash = connection_hash(cluster.config.load_balancer.hash_policies(), self.ends.source);
        let mut tried = Vec::new();
        let mut detail = String::new();
        for attempt in 0..ATTEMPTS {
            let Some(endpoint) = self.pick(hash, &tried, attempt) else {
                return Err((ResponseFlag::NoHealthyUpstream, "no healthy endpoint".to_owned()));
            };
            let in_flight = endpoint.state.enter();
            match self.connect(&endpoint, attempt).await {
                Ok(upstream) => {
                    let pair = self.pair(Some(&endpoint));
                    self.proxy.metrics.tcp_opened(&pair);
                    let cluster = cluster.clone();
                    return Ok(Flow { upstream, pair, cluster, endpoint, _slot: slot, _in_flight: in_flight });
                }
                Err(e) => {
                    cluster.record(&endpoint, &e.outcome);
                    detail = e.detail;
                    if self.fixed().is_some() {
                        break;
                    }
                    tried.push(endpoint);
                }
            }
        }
        Err((ResponseFlag::UpstreamConnectionFailure, detail))
    }

    fn pick(&self, hash: Option<u64>, tried: &[Arc<Endpoint>], attempt: u32) -> Option<Arc<Endpoint>> {
        let mut random = || rand::rng().next_u64();
        let balancer = self.cluster.balancer();
        match self.to {
            To::Fixed(endpoint) => Some(endpoint.clone()),
            To::Any => balancer.pick_for_retry(OTHERS, hash, &mut random, tried).cloned(),
            To::Through => {
                let picked = balancer.pick_here(hash, &mut random, attempt).cloned();
                picked.filter(|endpoint| !endpoint.identities().is_empty())
            }
        }
    }

    async fn connect(&self, endpoint: &Arc<Endpoint>, attempt: u32) -> Result<Far, DialError> {
        let cluster = self.cluster;
        if let To::Through = self.to {
            let upstream = connect_through(&cluster.config, endpoint, self.mark).await?;
            return Ok(Far::Connection(Rewind::new(Bytes::new(), upstream)));
        }
        let more = attempt + 1 < ATTEMPTS && self.fixed().is_none() && cluster.has_others();
        let patience = more.then_some(FAILOVER_PATIENCE);
        let dialer = cluster.dialer(endpoint, &self.proxy.identity, self.mark);
        tunnel::open(&Dialer { ends: Some(self.ends), patience, ..dialer }).await
    }
}

/// Moves bytes between a client and an open flow until both have ended, or `forbidden` does: it may go on no longer.
/// `seen`: read from the upstream already.
pub async fn run<S>(
    proxy: &Proxy,
    activity: &Arc<Activity>,
    client: S,
    flow: Flow,
    seen: Bytes,
    forbidden: impl Future<Output = ()>,
) where
    S: AsyncRead + AsyncWrite + MaybeSocket + Unpin,
{
    let _active = activity.begin();
    let pool = &flow.cluster.config.pool;
    let moved = Moved::default();
    let upstream = Rewind::new(seen, flow.upstream);
    let end = tokio::select! {
        biased;
        () = forbidden => None,
        end = relay(client, upstream, &moved, pool.tcp_idle_timeout, pool.max_connection_duration) => Some(end),
    };
    let flag = match &end {
        None => Some(ResponseFlag::UnauthorizedExternalService),
        Some(RelayEnd::Finished | RelayEnd::Failed(true, _)) => None,
        Some(RelayEnd::Failed(false, _)) => Some(ResponseFlag::UpstreamConnectionTermination),
        Some(RelayEnd::Idle) => Some(ResponseFlag::StreamIdleTimeout),
        Some(RelayEnd::Duration) => Some(ResponseFlag::DurationTimeout),
    };
    let (received, sent) = (moved.sent.into_inner(), moved.received.into_inner());
    proxy.metrics.tcp_closed(&flow.pair, flag, received, sent);
    if let Some(log) = &proxy.log {
        log.line(&serde_json::json!({
            "reporter": flow.pair.reporter,
            "protocol": "tcp",
            "response_flags": flag.map_or("-", ResponseFlag::as_str),
            "bytes_received": received,
            "bytes_sent": sent,
            "upstream_host": &*flow.endpoint.key,
            "upstream_cluster": &*flow.cluster.config.name,
            "source_principal": &*flow.pair.source.principal,
            "destination_principal": &*flow.pair.destination.principal,
            "destination_service": &*flow.pair.service,
        }));
    }
}
