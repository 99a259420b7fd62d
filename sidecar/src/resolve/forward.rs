//! Queries to the name servers that the application would have asked.
//!
//! A query is passed on byte for byte, with an id of the forwarder's, so that record types that Weft does not know pass too.
//! Its sockets are marked as deliveries, which the redirection leaves alone: a name server on loopback (127.0.0.53,
//! 127.0.0.11) is reached as well, and forwarded queries are not captured again.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rand::Rng;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use weft_core::dns;

use super::framing::{read_framed, write_framed};
use crate::net::connect::{self, MARK_DELIVERY};
use crate::resolve::resolv;

/// Longest wait for one name server.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long a name server that did not answer is asked after the others (RFC 1035, 7.2).
const SILENT: Duration = Duration::from_secs(30);
/// Where Linux takes the ports of sockets from that did not ask for one.
const EPHEMERAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Fewer ports than this would be too easy to guess.
const ENOUGH_PORTS: u16 = 2048;

/// How a query travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In one packet.
    Udp,
    /// In a stream, with lengths.
    Tcp,
}

/// The name servers.
pub struct Forwarder {
    source: Source,
    silent: Mutex<Silent>,
    /// Source ports of queries over UDP.
    ports: std::ops::RangeInclusive<u16>,
}

/// Name servers that did not answer their last query, and until when they are asked after the others.
#[derive(Debug, Default)]
struct Silent(HashMap<SocketAddr, Instant>);

impl Silent {
    /// The order to ask in: as listed, those that were silent last. Where that time is over one query finds out for all:
    /// until it has, the others ask such a server last still.
    fn order(&mut self, listed: &[SocketAddr], now: Instant) -> Vec<SocketAddr> {
        self.0.retain(|server, _| listed.contains(server));
        let (last, first): (Vec<SocketAddr>, Vec<SocketAddr>) =
            listed.iter().partition(|server| self.0.get(server).is_some_and(|until| *until > now));
        for server in &first {
            if let Some(until) = self.0.get_mut(server) {
                *until = now + TIMEOUT;
            }
        }
        first.into_iter().chain(last).collect()
    }

    fn note(&mut self, server: SocketAddr, answered: bool, now: Instant) {
        if answered {
            self.0.remove(&server);
        } else {
            self.0.insert(server, now + SILENT);
        }
    }
}

enum Source {
    /// The name servers of a resolv.conf file, read again when it changes.
    File { path: PathBuf, read: Mutex<(Option<SystemTime>, Arc<[SocketAddr]>)> },
    #[cfg(test)]
    Fixed(Arc<[SocketAddr]>),
}

impl Forwarder {
    /// Asks the name servers that `resolv_conf` lists.
    pub fn new(resolv_conf: impl Into<PathBuf>) -> Forwarder {
        let read = Mutex::new((None, Arc::default()));
        let source = Source::File { path: resolv_conf.into(), read };
        Forwarder { source, silent: Mutex::default(), ports: source_ports() }
    }

    #[cfg(test)]
    pub(crate) fn to(servers: &[SocketAddr]) -> Forwarder {
        Forwarder { source: Source::Fixed(servers.into()), silent: Mutex::default(), ports: source_ports() }
    }

    /// The first name server's answer that is not a failure, else the last one's; `None` where none answered.
    pub async fn ask(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let servers = self.silent().order(&self.servers(), Instant::now());
        let mut last = None;
        for server in servers {
            let asking = async {
                match transport {
                    Transport::Udp => self.over_udp(server, packet).await,
                    Transport::Tcp => over_tcp(server, packet).await,
                }
            };
            let answered = tokio::time::timeout(TIMEOUT, asking).await;
            self.silent().note(server, matches!(answered, Ok(Ok(_))), Instant::now());
            match answered {
                // The server has failed, and knows nothing of the name: another server may answer.
                Ok(Ok(answer)) if dns::is_failure(&answer) => last = Some(answer),
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(e)) => tracing::debug!(%server, "name server: {e}"),
                Err(_) => tracing::debug!(%server, "name server: no answer within {TIMEOUT:?}"),
            }
        }
        last
    }

    fn silent(&self) -> MutexGuard<'_, Silent> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn servers(&self) -> Arc<[SocketAddr]> {
        match &self.source {
            Source::File { path, read } => {
                let changed = fs::metadata(path).and_then(|m| m.modified()).ok();
                let mut read = read.lock().unwrap_or_else(PoisonError::into_inner);
                if read.0 != changed || changed.is_none() {
                    let text = fs::read_to_string(path).unwrap_or_default();
                    let servers = resolv::nameservers(&text).into_iter().map(|ip| SocketAddr::new(ip, 53));
                    *read = (changed, servers.collect());
                }
                read.1.clone()
            }
            #[cfg(test)]
            Source::Fixed(servers) => servers.clone(),
        }
    }

    async fn over_udp(&self, server: SocketAddr, packet: &[u8]) -> io::Result<Vec<u8>> {
        let socket = self.socket(server)?;
        let (query, id) = renumbered(packet)?;
        socket.send(&query).await?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let n = socket.recv(&mut buffer).await?;
            let answer = &buffer[..n];
            // Any other datagram that arrives here is forged.
            if dns::answers(answer, &query) {
                let mut answer = answer.to_vec();
                answer[..2].copy_from_slice(&id);
                return Ok(answer);
            }
        }
    }

    /// A socket with a source port that the kernel does not give to applications.
    ///
    /// The kernel remembers for half a minute how it translated packets between two pairs of address and port. If an application
    /// used the forwarder's source port soon after, its query would bypass the proxy; the other way round the forwarder's would
    /// be captured.
    fn socket(&self, server: SocketAddr) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(server), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        connect::mark(&socket, MARK_DELIVERY)?;
        let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let span = u32::from(self.ports.end() - self.ports.start()) + 1;
        let mut tries = 16;
        loop {
            let offset = u16::try_from(rand::rng().next_u32() % span).unwrap_or_default();
            match socket.bind(&SocketAddr::new(any, self.ports.start() + offset).into()) {
                Ok(()) => break,
                Err(e) if tries == 0 => return Err(e),
                Err(_) => tries -= 1,
            }
        }
        socket.connect(&server.into())?;
        UdpSocket::from_std(socket.into())
    }
}

async fn over_tcp(server: SocketAddr, packet: &[u8]) -> io::Result<Vec<u8>> {
    let (query, id) = renumbered(packet)?;
    let mut stream = connect::outside(server, TIMEOUT).await?;
    write_framed(&mut stream, &query).await?;
    let mut answer = read_framed(&mut stream, usize::from(u16::MAX)).await?;
    if !dns::answers(&answer, &query) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"));
    }
    answer[..2].copy_from_slice(&id);
    Ok(answer)
}

/// The packet with a random number, and the number that it came with.
fn renumbered(packet: &[u8]) -> io::Result<(Vec<u8>, [u8; 2])> {
    let [high, low, ..] = rand::rng().next_u32().to_be_bytes();
    dns::renumbered(packet, [high, low]).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Ports outside the kernel's range of ephemeral ports.
pub(crate) fn source_ports() -> std::ops::RangeInclusive<u16> {
    let range = fs::read_to_string(EPHEMERAL_PORTS).unwrap_or_default();
    let mut range = range.split_ascii_whitespace().filter_map(|word| word.parse::<u16>().ok());
    let (first, last) = (range.next().unwrap_or(32768), range.next().unwrap_or(60999));
    outside(first, last)
}

fn outside(first: u16, last: u16) -> std::ops::RangeInclusive<u16> {
    if u16::MAX - last >= ENOUGH_PORTS {
        last + 1..=u16::MAX
    } else if first >= 16384 + ENOUGH_PORTS {
        // Below, where well-known servers are rarer.
        16384..=first - 1
    } else {
        // All are taken: a collision is rare, and the next try succeeds.
        first.max(1024)..=last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_name_servers_are_queried_last_for_a_while() {
        let [a, b, c] = [1, 2, 3].map(|n| SocketAddr::from(([10, 0, 0, n], 53)));
        let (mut silent, start) = (Silent::default(), Instant::now());
        assert_eq!(silent.order(&[a, b, c], start), [a, b, c]);
        silent.note(a, false, start);
        silent.note(b, true, start);
        assert_eq!(silent.order(&[a, b, c], start), [b, c, a]);
        silent.note(b, false, start);
        silent.note(c, false, start);
        assert_eq!(silent.order(&[a, b, c], start), [a, b, c], "all alike: as listed");
        silent.note(b, true, start);
        silent.note(c, true, start);
        let later = start + SILENT;
        assert_eq!(silent.order(&[a, b, c], later), [a, b, c], "one query tries it again");
        assert_eq!(silent.order(&[a, b, c], later), [b, c, a], "others do not wait for it meanwhile");
        silent.note(a, true, later);
        assert_eq!(silent.order(&[a, b, c], later), [a, b, c]);
        silent.note(a, false, later);
        silent.order(&[b, c], later);
        assert!(silent.0.is_empty(), "servers that are listed no more are forgotten");
    }

    #[test]
    fn source_ports_of_queries_are_outside_the_ephemeral_range() {
        assert_eq!(outside(32768, 60999), 61000..=65535);
        assert_eq!(outside(32768, 65000), 16384..=32767);
        assert_eq!(outside(1024, 65535), 1024..=65535);
        assert_eq!(outside(0, 0), 1..=65535);
    }
}
