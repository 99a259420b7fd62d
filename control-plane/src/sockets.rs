//! Listening sockets.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// Connections that the kernel keeps until they are accepted, as far as net.core.somaxconn allows: when all sidecars come at
/// once, one that finds no room tries again after a second, then after three.
const BACKLOG: u32 = 4096;

/// Listens at an address.
///
/// # Errors
/// When it is not to be had.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // What a process that ended has left in TIME_WAIT is no other's.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
