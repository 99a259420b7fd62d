//! A connection of the application: its service, whether it is HTTP, and the destination of its bytes if not.
//!
//! The service is found by the original destination. An unknown one may still be known by the server name of its TLS: the
//! application resolves hosts outside the mesh (ServiceEntry without addresses) by its own DNS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::Rng;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use weft_core::endpoint::{Endpoint, find};
use weft_core::flag::ResponseFlag;
use weft_core::route::Connection;
use weft_core::service::{Port, Service};
use weft_core::sniff::Sniff;
use weft_core::target::{self, Address, Inspection};

use crate::control::directory::{Lookup, ServiceView};
use crate::exchange::tcp::{self, First, Flow, To};
use crate::net::connect::MARK_UPSTREAM;
use crate::net::stream::Rewind;
use crate::outbound::{self, Downstream};
use crate::tls::client_hello::{ClientHello, hello};
use crate::upstream::cluster::ClusterView;
use crate::upstream::endpoints;

/// Silence of a client after which its server may speak first.
const SERVER_FIRST_AFTER: Duration = Duration::from_millis(50);
/// Longest wait for a ClientHello that has begun.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// A connection that turned out to be HTTP, of which these were the first bytes.
pub type Http = (TcpStream, BytesMut, Sniff);

/// Recognises a connection's protocol, and serves the connection here unless it is HTTP.
pub async fn connection(down: &Arc<Downstream>, mut stream: TcpStream, original: SocketAddr) -> Option<Http> {
    let service = match down.proxy.directory.lookup(&original.to_string()).await {
        Lookup::Service(view) => Some(view),
        _ => None,
    };
    let destination = OriginalDestination { down, original, service };
    let budget = match target::inspection(destination.compiled(), original.port()) {
        Inspection::Pass => return destination.relay(stream, Bytes::new(), None).await,
        Inspection::ServerName => return destination.tls(stream, BytesMut::new()).await,
        Inspection::Http => None,
        Inspection::Unknown => Some(SERVER_FIRST_AFTER),
    };
    // The first speaker does not matter at an unknown destination that may not be dialed. Nor where a server name decides: a
    // client that is routed by one speaks first, sooner or later.
    let by_name = destination.service.is_some() && destination.asks_for_server_name();
    let budget = budget.filter(|_| destination.is_somewhere() && !by_name);
    let mut first = tcp::first(&mut stream, BytesMut::new(), budget).await.ok()?;
    let mut opened = None;
    let mut seen = BytesMut::new();
    if let First::Silence(bytes) = first {
        let mut flow = destination.open(None).await?;
        seen.reserve(16 * 1024);
        // The first speaker decides. Both reads lose nothing when they are dropped.
        first = tokio::select! {
            biased;
            n = flow.upstream.read_buf(&mut seen) => match n {
                Ok(0) | Err(_) => First::Closed(bytes),
                Ok(_) => First::Bytes(bytes, Sniff::Other),
            },
            first = tcp::first(&mut stream, bytes.clone(), None) => first.ok()?,
        };
        opened = Some(flow);
    }
    let bytes = match first {
        First::Bytes(bytes, kind @ (Sniff::Http1 | Sniff::Http2)) => return Some((stream, bytes, kind)),
        First::Bytes(bytes, Sniff::Tls) if opened.is_none() && destination.asks_for_server_name() => {
            return destination.tls(stream, bytes).await;
        }
        First::Bytes(bytes, _) | First::Closed(bytes) | First::Silence(bytes) => bytes,
    };
    match opened {
        Some(flow) => destination.run(stream, bytes.freeze(), flow, seen.freeze()).await,
        None => return destination.relay(stream, bytes.freeze(), None).await,
    }
    None
}

/// A connection that is to be HTTP, and ends where it is not.
pub async fn http(mut stream: TcpStream) -> Option<Http> {
    match tcp::first(&mut stream, BytesMut::new(), None).await {
        Ok(First::Bytes(bytes, kind @ (Sniff::Http1 | Sniff::Http2))) => Some((stream, bytes, kind)),
        _ => None,
    }
}

/// The original destination.
struct OriginalDestination<'a> {
    down: &'a Arc<Downstream>,
    original: SocketAddr,
    /// `None`: the directory knows no service at the address.
    service: Option<Arc<ServiceView>>,
}

/// Where bytes go.
struct Way {
    cluster: Arc<ClusterView>,
    /// Where there is no choice.
    endpoint: Option<Arc<Endpoint>>,
}

impl OriginalDestination<'_> {
    fn compiled(&self) -> Option<&Service> {
        self.service.as_ref().map(|view| &*view.service)
    }

    fn port(&self) -> Option<&Port> {
        self.service.as_ref()?.service.port(self.original.port())
    }

    /// Whether the server name of TLS decides about the destination.
    fn asks_for_server_name(&self) -> bool {
        target::wants_server_name(self.compiled(), self.original.port())
    }

    /// Whether the connection has a destination for bytes, whichever they are.
    fn is_somewhere(&self) -> bool {
        self.port().is_some() || self.fixed().is_some() || outbound::may_pass(&self.down.proxy, self.original)
    }

    /// The endpoint that was dialed itself: the application balances, and its choice stands.
    fn fixed(&self) -> Option<Way> {
        let view = self.service.as_ref()?;
        let find = |at: usize| find(&view.clusters[at].config, &view.clusters[at].endpoints, self.original).cloned();
        match target::address(&view.service, self.original, true, find) {
            Address::Endpoint(at, endpoint) => {
                Some(Way { cluster: view.clusters[at].clone(), endpoint: Some(endpoint) })
            }
            Address::Service | Address::Other => None,
        }
    }

    /// To the endpoint that was dialed, by the routes of the service's port, to any of the service, or as addressed.
    fn way(&self, server_name: Option<&str>) -> Result<Way, &'static str> {
        // Routes of a headless service come before the choice of the endpoint.
        let is_routed = self.compiled().is_some_and(|service| target::is_routed(service, self.original.port()));
        if !is_routed && let Some(way) = self.fixed() {
            return Ok(way);
        }
        let Some((service, port)) = self.service.as_ref().zip(self.port()) else {
            if !outbound::may_pass(&self.down.proxy, self.original) {
                return Err("unknown destination (outbound traffic policy is REGISTRY_ONLY)");
            }
            let cluster = Arc::new(ClusterView::passthrough(u32::MAX));
            return Ok(Way { cluster, endpoint: Some(endpoints::passthrough(self.original)) });
        };
        let view = Connection { server_name, source: self.down.ends.source, destination: self.original };
        let cluster =
            target::cluster(port, &view, rand::rng().next_u64()).ok_or("no route matches this server name")?;
        let cluster = service.clusters[cluster].clone();
        let mut endpoint = cluster.config.original_destination.then(|| endpoints::passthrough(self.original));
        if cluster.config.headless {
            let names = &service.service.names;
            endpoint =
                target::headless_endpoint(&cluster.config, &cluster.endpoints, Some(self.original), "", names).cloned();
        }
        if cluster.config.dynamic_dns {
            let dynamic = cluster.dynamic_endpoint(server_name.unwrap_or_default());
            endpoint = Some(dynamic.map_err(|_| "the server name is none of the hosts that may be called")?);
        }
        Ok(Way { cluster, endpoint })
    }

    async fn open(&self, server_name: Option<&str>) -> Option<Flow> {
        let way = match self.way(server_name) {
            Ok(way) => way,
            Err(why) => {
                let flag = ResponseFlag::NoRoute.as_str();
                let (original, name) = (self.original, server_name.unwrap_or_default());
                tracing::warn!(%original, server_name = name, flag, "TCP connection refused: {why}");
                return None;
            }
        };
        let to = way.endpoint.as_ref().map_or(To::Any, To::Fixed);
        tcp::open(&self.down.proxy, &way.cluster, to, &self.down.ends, MARK_UPSTREAM, None).await.ok()
    }

    /// TLS that has begun with `bytes`: its server name is looked at.
    async fn tls(mut self, mut stream: TcpStream, bytes: BytesMut) -> Option<Http> {
        let said = tokio::time::timeout(HELLO_WITHIN, hello(&mut stream, bytes)).await.ok()?;
        let (bytes, name) = match said {
            Ok(ClientHello { bytes, name, .. }) => (bytes, name),
            Err(bytes) => (bytes, String::new()),
        };
        if self.service.is_none()
            && !name.is_empty()
            && let Lookup::Service(view) = self.down.proxy.directory.lookup(&name).await
            && view.service.port(self.original.port()).is_some()
        {
            self.service = Some(view);
        }
        self.relay(stream, bytes.freeze(), Some(&name)).await
    }

    /// Opens the connection to where the bytes go, and passes them on; `seen` were read already. Never HTTP.
    async fn relay(&self, stream: TcpStream, seen: Bytes, server_name: Option<&str>) -> Option<Http> {
        let flow = self.open(server_name.filter(|name| !name.is_empty())).await?;
        self.run(stream, seen, flow, Bytes::new()).await;
        None
    }

    async fn run(&self, stream: TcpStream, seen: Bytes, flow: Flow, answered: Bytes) {
        let client = Rewind::new(seen, stream);
        let outbound = &self.down.proxy.outbound;
        tcp::run(&self.down.proxy, outbound, client, flow, answered, std::future::pending()).await;
    }
}
