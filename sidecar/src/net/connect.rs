//! Sockets as the redirection expects them: marked, so that nftables tells the proxy's traffic from the application's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpStream, UnixStream};
use weft_listen::address;

use crate::net::pod;

/// Socket mark of traffic to other workloads. Sent to an address of this pod, it is redirected to the inbound port like any
/// other traffic.
pub const MARK_UPSTREAM: u32 = 0x57ef_0001;
/// Socket mark of deliveries to the proxy's own application, health checks included: never redirected.
pub const MARK_DELIVERY: u32 = 0x57ef_0002;

/// Source address of deliveries within this pod where sockets cannot be marked: the redirection tells deliveries from
/// upstream traffic by it, as Istio does (its `InboundPassthroughBindIpv4`).
pub const DELIVERY_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// The source address of connections to the control plane; empty: the system's choice.
static SOURCE: OnceLock<IpAddr> = OnceLock::new();

/// Sets the source address of connections to the control plane: it is the pod's address in the mesh.
pub fn set_source_address(address: IpAddr) {
    // Said once, before anything is connected.
    let _ = SOURCE.set(address);
}

/// The address that was given to [`set_source_address`].
pub fn source() -> Option<IpAddr> {
    SOURCE.get().copied()
}

/// Whether sockets can be marked; without the right to, the redirection cannot work and is refused.
static MARKS: AtomicBool = AtomicBool::new(true);

/// Tries whether this process may mark its sockets, and remembers it.
pub fn probe_marks() -> bool {
    let works = Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|s| s.set_mark(MARK_UPSTREAM)).is_ok();
    MARKS.store(works, Ordering::Relaxed);
    works
}

/// Whether sockets are marked.
pub fn marks() -> bool {
    MARKS.load(Ordering::Relaxed)
}

/// Marks a socket, where this process may.
///
/// # Errors
/// When the system refuses although [`probe_marks`] found that it would not.
pub fn mark(socket: &Socket, mark: u32) -> io::Result<()> {
    if marks() { socket.set_mark(mark) } else { Ok(()) }
}

/// Keep-alive of every connection, on both sides of the proxy, unless a policy sets it: a peer that has vanished is noticed
/// after 7 minutes, and its socket is closed.
const DEFAULT_KEEPALIVE: Keepalive =
    Keepalive { probes: 4, time: Duration::from_secs(300), interval: Duration::from_secs(30) };
/// Between probes of a half-closed connection. Connection tracking forgets a redirected one after 60 s without a packet
/// (`nf_conntrack_tcp_timeout_close_wait`), and drops the packets that come back then.
const HALF_CLOSED: Duration = Duration::from_secs(20);

/// How long a peer may leave data unacknowledged on a connection for requests, milliseconds; 0: as long as the kernel sends it
/// again, some 15 minutes.
static USER_TIMEOUT: AtomicU32 = AtomicU32::new(20_000);

/// Sets how long a peer may leave data of requests unacknowledged; zero: as long as the kernel allows.
pub fn set_user_timeout(timeout: Duration) {
    USER_TIMEOUT.store(u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX), Ordering::Relaxed);
}

/// Closes a connection for requests when its peer vanishes: when data is not acknowledged (TCP_USER_TIMEOUT, tcp(7)) or, while
/// a response is awaited, when probes are not, unless the policy has `probes` of its own. Not for byte streams: the kernel
/// counts a peer that reads nothing as vanished, for example a message broker that slows its publishers down.
pub fn end_when_peer_vanishes(socket: &TcpStream, probes: bool) {
    let timeout = Duration::from_millis(USER_TIMEOUT.load(Ordering::Relaxed).into());
    if timeout.is_zero() {
        return;
    }
    let socket = SockRef::from(socket);
    // A socket that refuses it is closed already.
    let _ = socket.set_tcp_user_timeout(Some(timeout));
    if !probes {
        // Whole seconds, one at least. How many are lost does not matter beside TCP_USER_TIMEOUT.
        let (time, interval) = ((timeout / 3).max(Duration::from_secs(1)), (timeout / 6).max(Duration::from_secs(1)));
        let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(interval));
    }
}

/// Turns keep-alive on, with the proxy's defaults; on a listener, for accepted connections.
///
/// # Errors
/// When the system refuses.
pub fn keep_alive(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_keepalive(&DEFAULT_KEEPALIVE.options())
}

/// Probes a half-closed connection as often as connection tracking needs it.
pub fn keep_tracked(socket: &TcpStream) {
    let often = TcpKeepalive::new().with_time(HALF_CLOSED).with_interval(HALF_CLOSED);
    // A socket that refuses it is closed already.
    let _ = SockRef::from(socket).set_tcp_keepalive(&often);
}

/// Keep-alive of connections (`connectionPool.tcp.tcpKeepalive`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Probes before the connection is given up; 0: the system's.
    pub probes: u32,
    /// Idle time before the first probe; zero: the system's.
    pub time: Duration,
    /// Time between probes; zero: the system's.
    pub interval: Duration,
}

impl Keepalive {
    fn options(self) -> TcpKeepalive {
        let mut options = TcpKeepalive::new();
        if !self.time.is_zero() {
            options = options.with_time(self.time);
        }
        if !self.interval.is_zero() {
            options = options.with_interval(self.interval);
        }
        if self.probes > 0 {
            options = options.with_retries(self.probes);
        }
        options
    }
}

/// Opens a connection to `to` within `timeout`. `keepalive`: where it is not the default.
///
/// # Errors
/// As `connect(2)`; `TimedOut` after `timeout`.
pub async fn tcp(
    to: SocketAddr,
    mark_with: u32,
    timeout: Duration,
    keepalive: Option<Keepalive>,
) -> io::Result<TcpStream> {
    if mark_with == MARK_DELIVERY
        && let Some(socket) = pod::socket(to.is_ipv6())
    {
        return begin(socket?, pod::delivery_address(to), timeout, keepalive).await;
    }
    let within = mark_with == MARK_DELIVERY && !marks() && to.is_ipv4() && !to.ip().is_loopback();
    let from = (within && address::is_local(to.ip())).then_some(DELIVERY_SOURCE.into());
    open(to, from, mark_with, timeout, keepalive).await
}

/// Opens a connection to a Unix socket: the path of its file, or `@` and a name in the abstract namespace of the proxy's own
/// network. The proxy's user needs write permission on the file.
///
/// # Errors
/// As `connect(2)`: `WouldBlock` (EAGAIN) where the server's queue is full.
pub async fn unix(path: &str) -> io::Result<UnixStream> {
    let name = path.strip_prefix('@').map(|name| format!("\0{name}"));
    if name.is_some() && pod::is_elsewhere() {
        let text = "an abstract Unix socket is in the pod's network, which is not the proxy's: give it a path";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    UnixStream::connect(name.as_deref().unwrap_or(path)).await
}

/// Opens a connection to a program of this machine's own network that is neither of the mesh nor of the pod, such as a name
/// server: no redirection catches it.
///
/// # Errors
/// As [`tcp`].
pub async fn outside(to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    open(to, None, MARK_DELIVERY, timeout, None).await
}

/// Opens a connection to the control plane, from the pod's address in the mesh.
///
/// # Errors
/// As [`tcp`].
pub async fn control(to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let from = source().filter(|from| from.is_ipv4() == to.is_ipv4());
    open(to, from, MARK_DELIVERY, timeout, None).await
}

async fn open(
    to: SocketAddr,
    from: Option<IpAddr>,
    mark_with: u32,
    timeout: Duration,
    keepalive: Option<Keepalive>,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    mark(&socket, mark_with)?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::from((from, 0)).into())?;
    }
    begin(socket, to, timeout, keepalive).await
}

async fn begin(
    socket: Socket,
    to: SocketAddr,
    timeout: Duration,
    keepalive: Option<Keepalive>,
) -> io::Result<TcpStream> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive.unwrap_or(DEFAULT_KEEPALIVE).options())?;
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(e) => return Err(e),
    }
    let stream = TcpStream::from_std(socket.into())?;
    tokio::time::timeout(timeout, stream.writable())
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {to} within {timeout:?}")))??;
    match stream.take_error()? {
        Some(e) => Err(e),
        None => Ok(stream),
    }
}

/// Resolves a host name with the system's resolver (`/etc/hosts`, `/etc/resolv.conf`).
///
/// # Errors
/// When the name has no address.
pub async fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let mut found = tokio::net::lookup_host((host, port)).await?;
    found.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")))
}

/// Where the application wanted to go before the redirection, when there was one.
pub fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = socket2::SockRef::from(stream);
    let local = stream.local_addr().ok()?;
    let original = match local.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    let found = original.ok()?.as_socket()?;
    Some(SocketAddr::new(found.ip().to_canonical(), found.port()))
}
