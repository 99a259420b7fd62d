//! Bytes: connections that are not HTTP, or that must not be looked into. And finding out which one it is.
//!
//! When the registry does not say what a port speaks, the first bytes do. Some servers speak first: after a short
//! silence of the client the connection to the server is opened, and whoever speaks first decides. A slow HTTP client is
//! still served as HTTP then, and a database greets without delay.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::Rng;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use weft_core::balance::Again;
use weft_core::endpoint::{Endpoint, InFlight};
use weft_core::flag::ResponseFlag;
use weft_core::hash::connection_hash;
use weft_core::proxy_protocol::Ends;
use weft_core::sniff::{self, Sniff};

use crate::net::relay::{Moved, RelayEnd, relay};
use crate::net::stream::{MaybeSocket, Rewind};
use crate::proxy::activity::Activity;
use crate::proxy::{Proxy, labels};
use crate::telemetry::metrics::Pair;
use crate::upstream::cluster::ClusterView;
use crate::upstream::dial::{Dialer, FAILOVER_PATIENCE, connect_through};
use crate::upstream::pool::TcpSlot;
use crate::upstream::tunnel::{self, Far};

/// Another attempt to connect goes to another endpoint.
const OTHERS: Again = Again { other_endpoints: true, other_levels: false };

/// Bytes that are read to find out what a connection speaks.
const SNIFF_LIMIT: usize = 16 * 1024;

/// What a connection turned out to be.
#[derive(Debug)]
pub enum First {
    /// These bytes, of this protocol; not [`Sniff::NeedMore`].
    Bytes(BytesMut, Sniff),
    /// It has said nothing yet.
    Silence(BytesMut),
    /// It ended before it said enough.
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
    /// To one of this data centre that has an identity, without TLS of our own: the caller brings it, and it ends there.
    Through,
}

/// Picks an endpoint of `cluster` and connects to it. `reported_as`: labels, where they are not those of
/// a call of our own.
///
/// # Errors
/// The flag that says why not; it was counted and logged.
pub async fn open(
    proxy: &Proxy,
    cluster: &Arc<ClusterView>,
    to: To<'_>,
    ends: &Ends,
    mark: u32,
    reported_as: Option<&Arc<Pair>>,
) -> Result<Flow, ResponseFlag> {
    let fixed = match to {
        To::Fixed(endpoint) => Some(endpoint),
        To::Any | To::Through => None,
    };
    let pair = |endpoint: Option<&Arc<Endpoint>>| match reported_as {
        Some(pair) => pair.clone(),
        None => labels::to_cluster(proxy, cluster, endpoint),
    };
    let refuse = |flag: ResponseFlag, why: &dyn std::fmt::Display| {
        tracing::warn!(cluster = %cluster.config.name, source = %ends.source, flag = flag.as_str(), "TCP connection refused: {why}");
        let pair = pair(fixed);
        proxy.metrics.tcp_opened(&pair);
        proxy.metrics.tcp_closed(&pair, Some(flag), 0, 0);
        flag
    };
    if cluster.config.undefined {
        return Err(refuse(ResponseFlag::NoCluster, &"the host or subset is not defined"));
    }
    let slot = match cluster.shared.pool.checkout_tcp() {
        Ok(slot) => slot,
        Err(overflow) => return Err(refuse(ResponseFlag::UpstreamOverflow, &overflow)),
    };
    let hash = connection_hash(cluster.config.load_balancer.hash_policies(), ends.source);
    let mut random = || rand::rng().next_u64();
    let mut tried = Vec::new();
    // As Istio's default for TCP: three attempts to connect, each to another endpoint where there is one.
    for attempt in 0.. {
        let picked = match to {
            To::Fixed(endpoint) => Some(endpoint.clone()),
            To::Any => cluster.balancer().pick_again(OTHERS, hash, &mut random, &tried).cloned(),
            To::Through => {
                let picked = cluster.balancer().pick_here(hash, &mut random, attempt).cloned();
                picked.filter(|endpoint| !endpoint.identities().is_empty())
            }
        };
        let Some(endpoint) = picked else {
            return Err(refuse(ResponseFlag::NoHealthyUpstream, &"no healthy endpoint"));
        };
        let in_flight = endpoint.state.enter();
        let connected = match to {
            To::Through => connect_through(&cluster.config, &endpoint, mark)
                .await
                .map(|upstream| Far::Connection(Rewind::new(Bytes::new(), upstream))),
            To::Any | To::Fixed(_) => {
                let more = attempt < 2 && fixed.is_none() && cluster.has_others();
                let patience = more.then_some(FAILOVER_PATIENCE);
                let dialer = cluster.dialer(&endpoint, &proxy.identity, mark);
                let dialer = Dialer { ends: Some(ends), patience, ..dialer };
                tunnel::open(&dialer).await
            }
        };
        match connected {
            Ok(upstream) => {
                let pair = pair(Some(&endpoint));
                proxy.metrics.tcp_opened(&pair);
                let cluster = cluster.clone();
                return Ok(Flow { upstream, pair, cluster, endpoint, _slot: slot, _in_flight: in_flight });
            }
            Err(e) => {
                cluster.record(&endpoint, &e.outcome);
                if attempt >= 2 || fixed.is_some() {
                    return Err(refuse(ResponseFlag::UpstreamConnectionFailure, &e.detail));
                }
                tried.push(endpoint);
            }
        }
    }
    Err(ResponseFlag::UpstreamConnectionFailure)
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
