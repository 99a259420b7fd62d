//! Listening sockets.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// Connections that the kernel keeps until they are accepted, as far as net.core.somaxconn allows: if all sidecars
/// connect at once, one that finds no space tries again after a second, then after three.
const BACKLOG: u32 = 4096;

/// Listens at an address.
///
/// # Errors
/// If it is unavailable.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // An earlier process's sockets in TIME_WAIT are not in use.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
