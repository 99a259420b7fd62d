//! The listener for programs: UDP and TCP at one address, everything bounded.
//!
//! Callers here are in the namespace `default`: they are not identified.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use weft_listen::idle::{Connection, IdleLimit};

use super::Dns;
use super::packet::Transport;
use super::view::View;
use crate::sockets;

/// Concurrent queries, twice as many as may wait for recursors; beyond that they are dropped, and clients retry.
const IN_FLIGHT: usize = 1024;
/// A connection without a query for this long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// No query is longer.
const MAX_QUERY: usize = 4096;
/// Namespace of unidentified callers.
const NAMESPACE: &str = "default";

/// The addresses of DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Consul's usual address, unless it is in use: probably by Consul.
    Usual,
    /// This address only.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

/// Consul's usual address, on loopback.
const USUAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8600);

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        if text == "off" {
            return Ok(Listen::Off);
        }
        text.parse().map(Listen::At).map_err(|_| "neither an address and port nor off".into())
    }
}

impl Listen {
    /// The address, if other machines can reach it.
    pub fn reachable(self) -> Option<std::net::IpAddr> {
        match self {
            Listen::At(at) if !at.ip().is_loopback() && !at.ip().is_unspecified() => Some(at.ip()),
            _ => None,
        }
    }

    fn address(self) -> Option<SocketAddr> {
        match self {
            Listen::Usual => Some(USUAL),
            Listen::At(address) => Some(address),
            Listen::Off => None,
        }
    }

    /// Whether packets to `to` from this machine arrive at this listener.
    pub(super) fn takes(self, to: SocketAddr) -> bool {
        let here = |at: SocketAddr| at == to || (at.ip().is_unspecified() && to.ip().is_loopback());
        self.address().is_some_and(|at| at.port() == to.port() && here(at))
    }
}

/// Serves `dns` at all of these addresses for the life of the process.
///
/// # Errors
/// If an address is unavailable, unless it is the usual one, or if a recursor is one of them.
pub async fn serve(dns: &Arc<Dns>, places: &[Listen]) -> Result<()> {
    let recursors = &dns.settings.recursors;
    if let Some(own) = recursors.iter().find(|recursor| places.iter().any(|place| place.takes(**recursor))) {
        anyhow::bail!("--dns-recursor {own} is this server itself: queries would loop");
    }
    for place in places {
        let Some(address) = place.address() else { continue };
        match start(dns, address).await {
            Err(e) if *place == Listen::Usual => {
                tracing::warn!("no DNS: {e:#} (--dns-listen takes another address, or off)");
            }
            started => drop(started?),
        }
    }
    Ok(())
}

/// Begins to serve at `address`; with port 0 at one that is free for both protocols. Returns the address.
pub(super) async fn start<V: View + Send + Sync + 'static>(
    dns: &Arc<Dns<V>>,
    address: SocketAddr,
) -> Result<SocketAddr> {
    let context = || format!("cannot listen on {address} for DNS");
    let tcp = sockets::listen(address).with_context(context)?;
    let at = tcp.local_addr()?;
    let udp = UdpSocket::bind(at).await.with_context(context)?;
    let permits = Arc::new(Semaphore::new(IN_FLIGHT));
    tokio::spawn(serve_udp(dns.clone(), Arc::new(udp), permits.clone()));
    tokio::spawn(serve_tcp(dns.clone(), tcp, permits));
    Ok(at)
}

async fn serve_udp<V: View + Send + Sync + 'static>(dns: Arc<Dns<V>>, socket: Arc<UdpSocket>, permits: Arc<Semaphore>) {
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let (n, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(e) => {
                // One answer that could not be delivered is reported here; it does not affect the next query.
                tracing::debug!("DNS: {e}");
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
        let (dns, socket, packet) = (dns.clone(), socket.clone(), buffer[..n].to_vec());
        tokio::spawn(async move {
            if let Some(reply) = dns.handle(&packet, Transport::Udp, NAMESPACE, true).await {
                // The client may have gone.
                let _ = socket.send_to(&reply, from).await;
            }
            drop(permit);
        });
    }
}

async fn serve_tcp<V: View + Send + Sync + 'static>(dns: Arc<Dns<V>>, listener: TcpListener, permits: Arc<Semaphore>) {
    let idle = Arc::<IdleLimit>::default();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let (dns, permits, connection) = (dns.clone(), permits.clone(), idle.enter(from.ip()));
                tokio::spawn(async move {
                    tokio::select! {
                        // Errors of a client's connection concern only the client.
                        _ = serve_connection(&dns, stream, &permits, &connection) => {}
                        () = connection.dismissed() => {}
                    }
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve_connection<V: View>(
    dns: &Dns<V>,
    mut stream: TcpStream,
    permits: &Semaphore,
    connection: &Connection,
) -> io::Result<()> {
    loop {
        connection.rest();
        let packet = tokio::time::timeout(IDLE, read_framed(&mut stream, MAX_QUERY)).await??;
        let Ok(permit) = permits.acquire().await else { return Ok(()) };
        connection.work();
        let reply = dns.handle(&packet, Transport::Tcp, NAMESPACE, true).await;
        drop(permit);
        let Some(reply) = reply else { return Ok(()) };
        tokio::time::timeout(IDLE, write_framed(&mut stream, &reply)).await??;
    }
}

/// Reads one message with its length before it.
pub(super) async fn read_framed(stream: &mut TcpStream, limit: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a DNS message of {length} bytes")));
    }
    let mut packet = vec![0; length];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}

/// Writes one message with its length before it.
pub(super) async fn write_framed(stream: &mut TcpStream, packet: &[u8]) -> io::Result<()> {
    let length = u16::try_from(packet.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(packet);
    stream.write_all(&framed).await
}
