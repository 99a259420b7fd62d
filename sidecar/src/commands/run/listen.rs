//! Connections as they arrive: their original destination, their protocol, and the code that serves them.
//!
//! Each worker accepts from the same listening sockets, and a connection stays with its worker.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use weft_core::http1::Limits;
use weft_core::proxy_protocol::ConnectionAddresses;
use weft_core::sniff::Sniff;

use crate::http::http1::{Service, Unread};
use crate::http::{serve_http1, serve_http2};
use crate::inbound;
use crate::net::connect::original_destination;
use crate::net::stream::Rewind;
use crate::outbound::connection;
use crate::outbound::{self, Downstream};
use crate::proxy::Proxy;

/// The purpose of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Redirected connections of the application.
    Outbound,
    /// Connections of the application that use the sidecar as an HTTP proxy.
    HttpProxy,
    /// Redirected connections to the application.
    Inbound,
}

/// Accepts for ever.
pub async fn accept(proxy: Arc<Proxy>, listener: TcpListener, role: Role, worker: u16) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let proxy = proxy.clone();
                tokio::spawn(async move { accepted(proxy, stream, peer, role, worker).await });
            }
            Err(e) => {
                // Out of descriptors, most likely: waiting is all that helps.
                tracing::warn!("cannot accept a connection: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn accepted(proxy: Arc<Proxy>, stream: TcpStream, peer: SocketAddr, role: Role, worker: u16) {
    // A socket that cannot be set up is gone already.
    let Ok(own) = stream.local_addr() else { return };
    let _ = stream.set_nodelay(true);
    let own = SocketAddr::new(own.ip().to_canonical(), own.port());
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let _open = if role == Role::Inbound { proxy.callers.begin() } else { proxy.connections.begin() };
    if role == Role::HttpProxy {
        let ends = ConnectionAddresses { source: peer, destination: own };
        let down = Downstream { proxy, worker, ends, original: None, gateway: None, passthrough: Default::default() };
        let down = Arc::new(down);
        let found = Box::pin(connection::http(stream)).await;
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
        Role::Inbound if proxy.redirection.is_probe(peer) => {}
        Role::Inbound => inbound::connection(proxy, stream, peer, original, worker).await,
        _ => {
            let original_port = Some(original);
            let down = Downstream {
                proxy,
                worker,
                ends: ConnectionAddresses { source: peer, destination: original },
                original: original_port,
                gateway: None,
                passthrough: Default::default(),
            };
            let down = Arc::new(down);
            // On the heap while it lasts: a connection has room for its idle time only.
            let found = Box::pin(connection::connection(&down, stream, original)).await;
            serve(down, found).await;
        }
    }
}

async fn serve(down: Arc<Downstream>, found: Option<connection::Http>) {
    let Some((stream, bytes, kind)) = found else { return };
    let io = Rewind::new(bytes.freeze(), stream);
    if kind == Sniff::Http2 {
        let proxy = down.proxy.clone();
        let answer = move |request| {
            let down = down.clone();
            async move { outbound::serve(&down, request).await }
        };
        Box::pin(serve_http2(io, proxy.leaving.wait(), answer)).await;
    } else {
        let down = &down;
        let answer = |request| async move {
            let mut response = outbound::serve(down, request).await;
            down.proxy.set_connection_close(&mut response);
            response
        };
        let refuse = |unread: Unread| outbound::refuse(down, &unread);
        serve_http1(io, Service { limits: Limits::OUTSIDE, answer, refuse }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of this function's task.
    fn task<F, Fut>(_: F) -> usize
    where
        F: Fn(Arc<Proxy>, TcpStream, SocketAddr, Role, u16) -> Fut,
    {
        size_of::<Fut>()
    }

    fn request<'a, F, Fut>(_: F) -> usize
    where
        F: Fn(&'a Arc<Downstream>, http::Request<crate::http::incoming::Incoming>) -> Fut,
    {
        size_of::<Fut>()
    }

    /// Thousands of connections are idle at a time: state that is needed for a while is on the heap for that while.
    #[test]
    fn tasks_of_idle_connections_are_small() {
        let (connection, request) = (task(accepted), request(outbound::serve));
        assert!(connection <= 1536, "an idle connection: {connection} bytes");
        assert!(request <= 4096, "a request: {request} bytes");
    }
}
