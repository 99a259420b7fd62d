//! Connections as they arrive: where they were meant to go, what they speak, and who serves them.
//!
//! Each worker accepts from the same listening sockets, and what it accepts stays with it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use weft_core::endpoint::find;
use weft_core::policy::Protocol;
use weft_core::sniff::Sniff;

use crate::cluster::ClusterView;
use crate::connect::{MARK_UPSTREAM, original_destination};
use crate::directory::Lookup;
use crate::http::{serve_http1, serve_http2};
use crate::inbound;
use crate::outbound::{self, Downstream};
use crate::proxy::{Proxy, foreign_endpoint};
use crate::stream::Rewind;
use crate::tcp::{self, First, To};

/// Silence of a client after which its server may speak first.
const SERVER_FIRST_AFTER: Duration = Duration::from_millis(50);

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// What our application calls, redirected.
    Outbound,
    /// What our application calls, addressed to us as an HTTP proxy.
    HttpProxy,
    /// What others call.
    Inbound,
}

/// Accepts for ever.
pub async fn accept(proxy: Arc<Proxy>, listener: TcpListener, role: Role, worker: u16) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let proxy = proxy.clone();
                tokio::spawn(async move { connection(proxy, stream, peer, role, worker).await });
            }
            Err(e) => {
                // Out of descriptors, most likely: waiting is all that helps.
                tracing::warn!("cannot accept a connection: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(proxy: Arc<Proxy>, stream: TcpStream, peer: SocketAddr, role: Role, worker: u16) {
    // A socket that cannot be set up is gone already.
    let Ok(own) = stream.local_addr() else { return };
    let _ = stream.set_nodelay(true);
    let own = SocketAddr::new(own.ip().to_canonical(), own.port());
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    if role == Role::HttpProxy {
        let down =
            Downstream { proxy, worker, peer, local: own, original: None, gateway: None, foreign: Default::default() };
        let down = Arc::new(down);
        let found = Box::pin(http(stream)).await;
        return serve(down, found).await;
    }
    // A connection that was addressed to ourselves would be passed on to ourselves, for ever.
    let original = match original_destination(&stream) {
        Some(original) if original != own => original,
        _ => {
            proxy.metrics.loops.inc();
            tracing::warn!(%peer, %own, "closing a connection that was addressed to the proxy's own port");
            return;
        }
    };
    match role {
        Role::Inbound => inbound::connection(proxy, stream, peer, original, worker).await,
        _ => {
            let original_port = Some(original);
            let down = Downstream {
                proxy,
                worker,
                peer,
                local: original,
                original: original_port,
                gateway: None,
                foreign: Default::default(),
            };
            let down = Arc::new(down);
            // On the heap while it lasts: a connection has room for its idle time only.
            let found = Box::pin(outbound_connection(&down, stream, original)).await;
            serve(down, found).await;
        }
    }
}

/// A connection that turned out to be HTTP, of which these were the first bytes.
type Http = (TcpStream, BytesMut, Sniff);

/// Finds out what a connection is, and serves it here unless it is HTTP.
async fn outbound_connection(down: &Arc<Downstream>, mut stream: TcpStream, original: SocketAddr) -> Option<Http> {
    let lookup = down.proxy.directory.lookup(&original.to_string()).await;
    let service = match &lookup {
        Lookup::Service(view) => Some(view),
        _ => None,
    };
    let port = service.and_then(|view| view.service.port(original.port()));
    let protocol = port.map_or(Protocol::Unknown, |port| port.protocol);
    // Where the bytes go if they are not HTTP: to the endpoint that was dialed, to any of the service, or as addressed.
    let fixed = service
        .and_then(|view| view.clusters.iter().find_map(|c| Some((c.clone(), find(&c.endpoints, original)?.clone()))));
    let by_port = service.and_then(|view| Some(view.clusters[port?.cluster].clone()));
    let is_virtual = service.is_some_and(|view| view.service.addresses.contains(&original.ip()));
    let (cluster, endpoint) = match (fixed, by_port) {
        (Some((cluster, endpoint)), _) if !is_virtual => (cluster, Some(endpoint)),
        (_, Some(cluster)) if !cluster.config.original_destination => (cluster, None),
        (_, Some(cluster)) => (cluster, Some(foreign_endpoint(original))),
        _ if outbound::may_pass(&down.proxy, original) => {
            (Arc::new(ClusterView::passthrough(u32::MAX)), Some(foreign_endpoint(original)))
        }
        _ => {
            // HTTP may still name a service that we know; other bytes go nowhere.
            return http(stream).await;
        }
    };
    let to = endpoint.as_ref().map_or(To::Any, To::Fixed);
    let open = || tcp::open(&down.proxy, &cluster, to, down.peer, MARK_UPSTREAM, None);
    let outbound = &down.proxy.outbound;
    let budget = match protocol {
        Protocol::Tcp | Protocol::Tls => {
            let flow = open().await.ok()?;
            tcp::run(&down.proxy, outbound, stream, flow, Default::default(), std::future::pending()).await;
            return None;
        }
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => None,
        Protocol::Unknown => Some(SERVER_FIRST_AFTER),
    };
    let mut first = tcp::first(&mut stream, BytesMut::new(), budget).await.ok()?;
    let mut flow = None;
    let mut seen = BytesMut::new();
    if let First::Silence(bytes) = first {
        let mut opened = open().await.ok()?;
        seen.reserve(16 * 1024);
        // Whoever speaks first decides. Both reads lose nothing when they are dropped.
        first = tokio::select! {
            biased;
            n = opened.upstream.read_buf(&mut seen) => match n {
                Ok(0) | Err(_) => First::Closed(bytes),
                Ok(_) => First::Bytes(bytes, Sniff::Other),
            },
            first = tcp::first(&mut stream, bytes.clone(), None) => first.ok()?,
        };
        flow = Some(opened);
    }
    let bytes = match first {
        First::Bytes(bytes, kind @ (Sniff::Http1 | Sniff::Http2)) => return Some((stream, bytes, kind)),
        First::Bytes(bytes, _) | First::Closed(bytes) | First::Silence(bytes) => bytes,
    };
    let flow = match flow {
        Some(flow) => flow,
        None => open().await.ok()?,
    };
    let client = Rewind::new(bytes.freeze(), stream);
    tcp::run(&down.proxy, outbound, client, flow, seen.freeze(), std::future::pending()).await;
    None
}

/// A connection that is to be HTTP, and ends where it is not.
async fn http(mut stream: TcpStream) -> Option<Http> {
    match tcp::first(&mut stream, BytesMut::new(), None).await {
        Ok(First::Bytes(bytes, kind @ (Sniff::Http1 | Sniff::Http2))) => Some((stream, bytes, kind)),
        _ => None,
    }
}

async fn serve(down: Arc<Downstream>, found: Option<Http>) {
    let Some((stream, bytes, kind)) = found else { return };
    let io = Rewind::new(bytes.freeze(), stream);
    if kind == Sniff::Http2 {
        let proxy = down.proxy.clone();
        let answer = move |request| {
            let down = down.clone();
            async move { outbound::request(&down, request).await }
        };
        Box::pin(serve_http2(io, &proxy, answer)).await;
    } else {
        let down = &down;
        let answer = |request| async move {
            let mut response = outbound::request(down, request).await;
            down.proxy.bid_farewell(&mut response);
            response
        };
        serve_http1(io, answer).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a task of this function occupies.
    fn task<F, Fut>(_: F) -> usize
    where
        F: Fn(Arc<Proxy>, TcpStream, SocketAddr, Role, u16) -> Fut,
    {
        size_of::<Fut>()
    }

    fn request<'a, F, Fut>(_: F) -> usize
    where
        F: Fn(&'a Arc<Downstream>, http::Request<crate::incoming::Incoming>) -> Fut,
    {
        size_of::<Fut>()
    }

    /// Thousands of connections are idle at a time: what one needs for a while is on the heap for that while.
    #[test]
    fn tasks_are_small() {
        let (connection, request) = (task(connection), request(outbound::request));
        assert!(connection <= 1536, "an idle connection: {connection} bytes");
        assert!(request <= 4096, "a request: {request} bytes");
    }
}
