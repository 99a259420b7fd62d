//! Listening sockets: bound here, or handed over by a supervisor that keeps them while the sidecar restarts.
//!
//! The second is socket activation, sd_listen_fds(3): systemd or another supervisor binds, leaves the sockets as descriptors
//! from 3 on and sets `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`. Connections that come while no sidecar runs wait in the
//! kernel's queue for the next one. A socket is identified by its address, not by its name: the address is on the command
//! line as well, and a name could contradict it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use tokio::sync::watch;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Where descriptors that are handed over begin (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;
/// Set by a predecessor in a hot restart, to its process id.
pub const HOT_RESTART: &str = "WEFT_PREDECESSOR";
/// Environment variables of sockets that are handed over; not for child processes.
pub const VARIABLES: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", HOT_RESTART];

/// Sockets that were handed over and are not in use yet.
static HANDED: Mutex<Vec<Handed>> = Mutex::new(Vec::new());

/// A listening socket that a successor is given.
#[derive(Debug)]
pub struct Shared {
    /// Another handle on it.
    pub socket: Socket,
    /// The supervisor has the socket too, and keeps it when this process ends.
    pub kept: bool,
}

/// Sockets that stay open to the end of the process.
static SHARED: Mutex<Vec<Shared>> = Mutex::new(Vec::new());

/// Whose turn it is to accept at sockets that two processes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Predecessor,
    Ours,
    Successor,
}

static TURN: LazyLock<watch::Sender<Turn>> = LazyLock::new(|| watch::Sender::new(Turn::Ours));

/// Leaves all sockets to the predecessor for now.
pub fn wait_for_turn() {
    TURN.send_replace(Turn::Predecessor);
}

/// Accepts at all sockets from now on.
pub fn begin_turn() {
    TURN.send_replace(Turn::Ours);
}

/// Leaves all sockets to the successor.
pub fn end_turn() {
    TURN.send_replace(Turn::Successor);
    SHARED.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Whether a successor has taken over.
pub fn is_turn_over() -> bool {
    *TURN.borrow() == Turn::Successor
}

/// Waits until no predecessor accepts any more.
pub async fn our_turn() {
    // Never closed: it is static.
    let _ = TURN.subscribe().wait_for(|turn| *turn != Turn::Predecessor).await;
}

/// Waits until a successor accepts.
pub async fn turn_over() {
    // Never closed: it is static.
    let _ = TURN.subscribe().wait_for(|turn| *turn == Turn::Successor).await;
}

/// Accepts as long as it is this process's turn. Accepted connections go on after that.
pub async fn in_turn(accepting: impl Future<Output = ()>) {
    our_turn().await;
    tokio::select! {
        biased;
        () = turn_over() => {}
        () = accepting => {}
    }
}

/// Addresses without a listener: a pod with a network of its own has no socket for them.
static WITHHELD: Mutex<Vec<SocketAddr>> = Mutex::new(Vec::new());

struct Handed {
    socket: Socket,
    address: SocketAddr,
    /// For people.
    name: String,
    /// Another process has the socket too, and keeps it when this one ends.
    kept: bool,
}

/// Takes over the sockets that are meant for this process. To be called first, before the process opens any descriptor.
pub fn take_over() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    // A parent process was given them, and did not remove the variables.
    if variable("LISTEN_PID").parse() != Ok(std::process::id()) {
        return;
    }
    let count: i32 = variable("LISTEN_FDS").parse().unwrap_or_default();
    let names = variable("LISTEN_FDNAMES");
    let mut names = names.split(':');
    for descriptor in FIRST..FIRST.saturating_add(count.clamp(0, 1024)) {
        let name = names.next().unwrap_or("unknown").to_owned();
        match adopt(descriptor) {
            Ok((socket, address)) => lock().push(Handed { socket, address, name, kept: true }),
            Err(e) => tracing::warn!("the descriptor {descriptor} ({name}) that was handed over is not used: {e:#}"),
        }
    }
}

/// Takes a socket that a predecessor hands over.
///
/// # Errors
/// When it cannot be used.
pub fn adopt_shared(descriptor: OwnedFd, kept: bool) -> Result<()> {
    let socket = Socket::from(descriptor);
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?.as_socket().context("a socket that was handed over has no IP address")?;
    lock().push(Handed { socket, address, name: "of the predecessor".into(), kept });
    Ok(())
}

/// Other handles on all sockets that are open to the end of the process.
///
/// # Errors
/// When the system has no descriptor left.
pub fn shared() -> Result<Vec<Shared>> {
    let all = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let again = |one: &Shared| Ok(Shared { socket: one.socket.try_clone()?, kept: one.kept });
    all.iter().map(again).collect()
}

fn share(socket: Socket, kept: bool) {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner).push(Shared { socket, kept });
}

fn adopt(descriptor: i32) -> Result<(Socket, SocketAddr)> {
    let kind = std::fs::metadata(format!("/proc/self/fd/{descriptor}")).context("it is not open")?.file_type();
    anyhow::ensure!(kind.is_socket(), "it is not a socket");
    #[allow(unsafe_code)]
    // SAFETY: it is open, as was just seen, and belongs to this process alone: the parent left it (`LISTEN_PID`), this is done
    // once for each descriptor, and before the process opens any itself.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let socket = Socket::from(owned);
    socket.set_cloexec(true)?;
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?.as_socket().context("it has no IP address")?;
    Ok((socket, address))
}

/// Takes over a socket that listens at `address` in another network.
///
/// # Errors
/// When it cannot be used.
pub fn hand_over(socket: Socket, address: SocketAddr) -> Result<()> {
    socket.set_nonblocking(true)?;
    lock().push(Handed { socket, address, name: "of the pod".into(), kept: false });
    Ok(())
}

/// Lets nothing listen at `address` in this network: it would be meant for another one.
pub fn withhold(address: SocketAddr) {
    WITHHELD.lock().unwrap_or_else(PoisonError::into_inner).push(address);
}

fn is_withheld(address: SocketAddr) -> bool {
    WITHHELD.lock().unwrap_or_else(PoisonError::into_inner).contains(&address)
}

/// Whether `address` will be listened on by a socket that another process has too, and that outlives this process.
pub fn is_kept(address: SocketAddr) -> bool {
    lock().iter().any(|handed| handed.kept && handed.is(address, Type::STREAM))
}

/// Logs the sockets that were handed over and are not used. To be called when all listeners are open.
pub fn warn_of_unused() {
    for Handed { address, name, .. } in lock().drain(..).filter(|handed| handed.kept) {
        tracing::warn!("the socket {address} ({name}) that was handed over is not used: no option names this address");
    }
}

impl Handed {
    fn is(&self, address: SocketAddr, kind: Type) -> bool {
        let any = |ip: IpAddr| ip.is_unspecified();
        let same = self.address == address
            || (any(self.address.ip()) && any(address.ip()) && self.address.port() == address.port());
        same && self.socket.r#type().is_ok_and(|found| found == kind)
    }
}

fn handed(address: SocketAddr, kind: Type) -> Option<(Socket, bool)> {
    let mut all = lock();
    let at = all.iter().position(|handed| handed.is(address, kind))?;
    let Handed { socket, name, kept, .. } = all.remove(at);
    tracing::debug!("listening on {address} by the socket that was handed over ({name})");
    Some((socket, kept))
}

fn lock() -> MutexGuard<'static, Vec<Handed>> {
    HANDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All addresses, IPv6's too where there is any.
pub fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}

/// Listens on all addresses, to the end of the process.
///
/// # Errors
/// When the port is in use.
pub fn tcp_any(port: u16) -> Result<TcpListener> {
    lasting(closable_any(port)?)
}

/// Listens on one address, to the end of the process.
///
/// # Errors
/// If the address is in use, or is not one of this machine.
pub fn tcp(address: SocketAddr) -> Result<TcpListener> {
    lasting(closable(address)?)
}

fn lasting((listener, kept): (TcpListener, bool)) -> Result<TcpListener> {
    share(listener.try_clone().context("no descriptor is left")?.into(), kept);
    Ok(listener)
}

/// Listens on all addresses. Whether the supervisor keeps the socket when it is closed here comes with it.
///
/// # Errors
/// When the port is in use.
pub fn closable_any(port: u16) -> Result<(TcpListener, bool)> {
    closable(any(port)).or_else(|_| closable(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)))
}

/// Listens on one address. Whether the supervisor keeps the socket when it is closed here comes with it.
///
/// # Errors
/// If the address is in use, or is not one of this machine.
pub fn closable(address: SocketAddr) -> Result<(TcpListener, bool)> {
    let context = || format!("cannot listen on {address}");
    if let Some((socket, kept)) = handed(address, Type::STREAM) {
        crate::net::connect::keep_alive(&socket).with_context(context)?;
        socket.listen(BACKLOG).with_context(context)?;
        return Ok((socket.into(), kept));
    }
    anyhow::ensure!(!is_withheld(address), "the pod's network has no socket at {address}");
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).with_context(context)?;
    if address.is_ipv6() && address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(true).with_context(context)?;
    }
    socket.set_reuse_address(true).with_context(context)?;
    crate::net::connect::keep_alive(&socket).with_context(context)?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false).with_context(context)?;
    }
    socket.bind(&address.into()).with_context(context)?;
    socket.listen(BACKLOG).with_context(context)?;
    socket.set_nonblocking(true).with_context(context)?;
    Ok((socket.into(), false))
}

/// Stops new connections to a listener; a handshake in progress completes, and its connection is accepted as any other.
/// Closing a listener resets the connections in the kernel's queue, requests and all: between this call and the close there
/// is time to accept them. A client that connects meanwhile gets no answer, and is refused when it retries.
///
/// # Errors
/// If the kernel cannot attach the filter.
pub fn stop_new_connections(listener: &TcpListener) -> std::io::Result<()> {
    // The flags of the TCP header; where SYN is set the packet is dropped, else it is left as long as it is.
    let (load_byte, jump_if_set, give) = (0x30, 0x45, 0x06);
    let (flags, syn) = (13, 2);
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(load_byte, 0, 0, flags),
        SockFilter::new(jump_if_set, 0, 1, syn),
        SockFilter::new(give, 0, 0, 0),
        SockFilter::new(give, 0, 0, u32::MAX),
    ])
}

/// Takes datagrams at one address, to the end of the process.
///
/// # Errors
/// If the address is in use, or is not one of this machine.
pub fn udp(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let (socket, kept): (UdpSocket, bool) = match handed(address, Type::DGRAM) {
        Some((socket, kept)) => (socket.into(), kept),
        None if is_withheld(address) => return Err(std::io::ErrorKind::AddrNotAvailable.into()),
        None => (UdpSocket::bind(address)?, false),
    };
    share(socket.try_clone()?.into(), kept);
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    /// Inherited from the listener: it costs no connection a system call.
    #[test]
    fn accepted_connections_are_kept_alive() {
        let listener = tcp((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.keepalive().unwrap());
        // And a successor would have it.
        let of = |shared: &Shared| shared.socket.local_addr().ok().and_then(|at| at.as_socket());
        assert!(shared().unwrap().iter().any(|one| of(one) == listener.local_addr().ok() && !one.kept));
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(300));
    }

    #[test]
    fn connections_in_the_accept_queue_are_accepted_and_new_ones_are_not() {
        let (listener, _) = closable((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let at = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&at, Duration::from_millis(200));
        let mut before = connect().unwrap();
        stop_new_connections(&listener).unwrap();
        assert_eq!(connect().unwrap_err().kind(), ErrorKind::TimedOut);
        let (mut accepted, _) = listener.accept().unwrap();
        drop(listener);
        assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused);
        // Its connection is as any other, both ways and to its end.
        before.write_all(b"request").unwrap();
        before.shutdown(std::net::Shutdown::Write).unwrap();
        accepted.set_nonblocking(false).unwrap();
        assert_eq!(std::io::read_to_string(&accepted).unwrap(), "request");
        accepted.write_all(b"answer").unwrap();
        drop(accepted);
        assert_eq!(std::io::read_to_string(&before).unwrap(), "answer");
    }
}
