//! Forwards queries for other names to recursors.
//!
//! The query is forwarded byte for byte. Each query has a socket of its own, and so a port that the kernel chooses: a
//! packet from another address, or an answer to another question, is ignored.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rand::Rng;
use tokio::net::{TcpStream, UdpSocket};
use weft_core::dns;

use super::listen::{read_framed, write_framed};
use super::packet::Transport;

/// Longest wait for one name server.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The first recursor's answer that is not a failure, else the last one's; `None` if none answered. An answer that is
/// truncated over UDP is passed on as such if the client used UDP, because the client may accept less than this server
/// could get.
pub async fn ask(recursors: &[SocketAddr], packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let mut last = None;
    for recursor in recursors {
        match tokio::time::timeout(TIMEOUT, ask_one(*recursor, packet, transport)).await {
            // The recursor failed, which is no statement about the name: another one may answer.
            Ok(Ok(answer)) if dns::is_failure(&answer) => last = Some(answer),
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(e)) => tracing::debug!(%recursor, "recursor: {e}"),
            Err(_) => tracing::debug!(%recursor, "recursor: no answer within {TIMEOUT:?}"),
        }
    }
    last
}

async fn ask_one(recursor: SocketAddr, packet: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
    let [high, low, ..] = rand::rng().next_u32().to_be_bytes();
    let (query, id) = dns::renumbered(packet, [high, low]).ok_or(io::ErrorKind::InvalidData)?;
    let mut answer = match transport {
        Transport::Udp => over_udp(recursor, &query).await?,
        Transport::Tcp => over_tcp(recursor, &query).await?,
    };
    answer[..2].copy_from_slice(&id);
    Ok(answer)
}

async fn over_udp(recursor: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if recursor.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(recursor).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let n = socket.recv(&mut buffer).await?;
        if dns::answers(&buffer[..n], query) {
            return Ok(buffer[..n].to_vec());
        }
    }
}

async fn over_tcp(recursor: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(recursor).await?;
    write_framed(&mut stream, query).await?;
    let answer = read_framed(&mut stream, usize::from(u16::MAX)).await?;
    if !dns::answers(&answer, query) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"));
    }
    Ok(answer)
}
