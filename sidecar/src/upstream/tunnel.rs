//! Bytes through an HTTP proxy: the far side of a flow whose cluster has a `tunnel`, once the proxy has opened it.
//!
//! After CONNECT in HTTP/1 the bare connection is left, and may be spliced; in HTTP/2 a stream of a connection of its own. With
//! POST the bytes are chunks in HTTP/1 (`posted`). The relay does not know the difference.

mod posted;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use weft_core::http1::Limits;
use weft_core::outcome::Outcome;
use weft_core::policy::{Cluster, H2Upgrade, Protocol};
use weft_core::tunnel::{Tunnel, TunnelError};

use crate::http::http2;
use crate::net::stream::{MaybeSocket, Rewind};
use crate::net::transport::Transport;
use crate::tls::identity::alpn;
use crate::upstream::dial::{DialError, Dialer, connect};
use posted::Posted;

/// Where a flow's bytes go to and come from.
pub enum Far {
    /// A connection, bare or after CONNECT.
    Connection(Rewind<Transport>),
    /// The bodies of a request and its answer.
    Posted(Box<Posted>),
    /// A stream of HTTP/2.
    Stream(Box<http2::Tunnel>),
}

/// Connects for bytes as the cluster's policy says: to the endpoint, or through it.
///
/// # Errors
/// The cause, within the time to connect.
pub async fn open(dialer: &Dialer<'_>) -> Result<Far, DialError> {
    let Some(tunnel) = &dialer.cluster.tunnel else {
        let upstream = connect(dialer, alpn::TCP).await?;
        return Ok(Far::Connection(Rewind::new(Bytes::new(), upstream)));
    };
    let limit = dialer.cluster.pool.connect_timeout;
    match tokio::time::timeout(limit, Box::pin(through(dialer, tunnel))).await {
        Ok(opened) => opened,
        Err(_) => {
            let detail = format!("no tunnel to {} within {limit:?}", tunnel.authority);
            Err(DialError::new(Outcome::ConnectTimeout, detail))
        }
    }
}

async fn through(dialer: &Dialer<'_>, tunnel: &Tunnel) -> Result<Far, DialError> {
    if speaks_http2(dialer.cluster) {
        let upstream = connect(dialer, alpn::HTTP2).await?;
        return by_http2(dialer.cluster, upstream, tunnel).await;
    }
    let upstream = connect(dialer, alpn::HTTP1).await?;
    by_http1(upstream, tunnel).await
}

/// As Envoy asks a cluster of HTTP/2 for its tunnels.
fn speaks_http2(cluster: &Cluster) -> bool {
    matches!(cluster.protocol, Protocol::Http2 | Protocol::Grpc) || cluster.pool.h2_upgrade == H2Upgrade::Upgrade
}

async fn by_http1(mut upstream: Transport, tunnel: &Tunnel) -> Result<Far, DialError> {
    let broken = |e: io::Error| failed(tunnel, Outcome::Reset { request_started: true }, e);
    upstream.write_all(&tunnel.request()).await.map_err(broken)?;
    upstream.flush().await.map_err(broken)?;
    let mut came = BytesMut::with_capacity(1024);
    let open = loop {
        if upstream.read_buf(&mut came).await.map_err(broken)? == 0 {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        match tunnel.answer(&came) {
            Ok(Some(open)) => break open,
            // Heads that come before the answer have a bound together, too.
            Ok(None) if came.len() < Limits::OUTSIDE.bytes => came.reserve(1024),
            Ok(None) => return Err(failed(tunnel, Outcome::ProtocolError, "its answer is too long")),
            Err(TunnelError::Status(status)) => return Err(refused(tunnel, status)),
            Err(e @ TunnelError::Head(_)) => return Err(failed(tunnel, Outcome::ProtocolError, e)),
        }
    };
    let rest = came.split_off(open.head).freeze();
    Ok(match tunnel.post {
        false => Far::Connection(Rewind::new(rest, upstream)),
        true => Far::Posted(Box::new(Posted::new(upstream, open.framing, rest))),
    })
}

async fn by_http2(cluster: &Cluster, upstream: Transport, tunnel: &Tunnel) -> Result<Far, DialError> {
    let broken = |e: h2::Error| failed(tunnel, Outcome::Reset { request_started: true }, e);
    let authority = &*tunnel.authority;
    // RFC 9113, 8.5: a CONNECT has neither scheme nor path.
    let target = if tunnel.post { format!("http://{authority}/") } else { authority.to_owned() };
    let request = Request::builder().method(tunnel.method()).uri(target).body(());
    let request = request.map_err(|e| failed(tunnel, Outcome::ConnectFailure, e))?;
    let (mut client, driver) = http2::open(upstream, cluster.pool.http2_keepalive).await.map_err(broken)?;
    // Ends with the one stream that the connection is for.
    tokio::spawn(async move {
        if let Err(e) = driver.await {
            tracing::debug!("HTTP/2 connection of a tunnel ended: {e}");
        }
    });
    match client.tunnel(request).await.map_err(broken)? {
        (StatusCode::OK, stream) => Ok(Far::Stream(Box::new(stream))),
        (status, _) => Err(refused(tunnel, status)),
    }
}

fn failed(tunnel: &Tunnel, outcome: Outcome, why: impl std::fmt::Display) -> DialError {
    DialError::new(outcome, format!("no tunnel to {}: {why}", tunnel.authority))
}

/// A refusal, for ejection too: it is a response, so that the proxy counts as healthy.
fn refused(tunnel: &Tunnel, status: StatusCode) -> DialError {
    let outcome = Outcome::Response { status, grpc_status: None, grpc: false, rate_limited: false };
    failed(tunnel, outcome, TunnelError::Status(status))
}

impl MaybeSocket for Far {
    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Far::Connection(stream) => stream.socket(),
            Far::Posted(_) | Far::Stream(_) => None,
        }
    }
}

impl AsyncRead for Far {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Far::Connection(stream) => Pin::new(stream).poll_read(cx, buf),
            Far::Posted(stream) => Pin::new(stream).poll_read(cx, buf),
            Far::Stream(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Far {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Far::Connection(stream) => Pin::new(stream).poll_write(cx, buf),
            Far::Posted(stream) => Pin::new(stream).poll_write(cx, buf),
            Far::Stream(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Far::Connection(stream) => Pin::new(stream).poll_flush(cx),
            Far::Posted(stream) => Pin::new(stream).poll_flush(cx),
            Far::Stream(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Far::Connection(stream) => Pin::new(stream).poll_shutdown(cx),
            Far::Posted(stream) => Pin::new(stream).poll_shutdown(cx),
            Far::Stream(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests;
