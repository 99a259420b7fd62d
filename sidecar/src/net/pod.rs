//! A pod with a network of its own whose sidecar stays in the machine's network (`exec --netns` without root).
//!
//! The sockets between sidecar and application are the pod's: listeners that were opened there and handed over accept captured
//! connections, and a process there opens the sockets of deliveries ([`serve`]). Other sidecars and the control plane are
//! reached in the machine's network, where the sidecar listens on each registered port at the pod's address
//! ([`crate::host::pod_ports`]).

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use socket2::{Domain, Protocol, Socket, Type};

/// How long the process in the pod may take to open a socket.
const WITHIN: Duration = Duration::from_secs(5);

/// Where sockets of the pod come from; empty: the sidecar is in the pod's network itself.
static POD: OnceLock<Mutex<UnixStream>> = OnceLock::new();

/// Makes deliveries use the sockets of a pod from now on. `stream`: to its [`serve`].
///
/// # Errors
/// When there is a pod already.
pub fn enter(stream: UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    POD.set(Mutex::new(stream)).map_err(|_| io::ErrorKind::AlreadyExists.into())
}

/// Whether the pod's network is not the sidecar's.
pub fn is_elsewhere() -> bool {
    POD.get().is_some()
}

/// A TCP socket of the pod, not connected; `None`: the pod's network is the sidecar's.
pub fn socket(v6: bool) -> Option<io::Result<Socket>> {
    let pod = POD.get()?;
    // Held for one short exchange with a process that does nothing else.
    let mut stream = pod.lock().unwrap_or_else(PoisonError::into_inner);
    let opened = stream.write_all(if v6 { b"6" } else { b"4" }).and_then(|()| receive(&stream));
    Some(opened.and_then(|found| {
        let socket = found.ok_or_else(|| io::Error::other("the pod gave no socket"))?.into();
        Socket::set_nonblocking(&socket, true)?;
        Ok(socket)
    }))
}

/// The destination, in the pod, of a delivery to this address: the application is on loopback there, whichever address the
/// pod has in the machine's network.
pub fn delivery_address(to: SocketAddr) -> SocketAddr {
    let loopback: IpAddr = if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    if is_elsewhere() { SocketAddr::new(loopback, to.port()) } else { to }
}

/// Opens sockets in this network for the sidecar at the other end of `stream`, until that ends.
pub fn serve(mut stream: UnixStream) {
    let mut wanted = [0];
    while stream.read_exact(&mut wanted).is_ok() {
        let domain = if &wanted == b"6" { Domain::IPV6 } else { Domain::IPV4 };
        let opened = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).ok();
        if send(&stream, opened.as_ref().map(AsFd::as_fd)).is_err() {
            return;
        }
    }
}

/// Sends a descriptor, or that there is none.
///
/// # Errors
/// When the peer has gone.
pub fn send(stream: &UnixStream, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let said = [u8::from(descriptor.is_some())];
    sendmsg(stream, &[IoSlice::new(&said)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a descriptor; `None`: the peer has none.
///
/// # Errors
/// If the peer has gone, or does not answer in time.
pub fn receive(stream: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut said = [0];
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut said)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(descriptors.flatten().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_passed_over_a_socket() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut one, other) = UnixStream::pair().unwrap();
        send(&near, Some(other.as_fd())).unwrap();
        send(&near, None).unwrap();
        drop(other);
        let mut other = UnixStream::from(receive(&far).unwrap().unwrap());
        one.write_all(b"x").unwrap();
        let mut got = [0];
        other.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"x");
        assert!(receive(&far).unwrap().is_none());
        drop(near);
        assert_eq!(receive(&far).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_process_opens_sockets_for_another_until_the_other_ends() {
        let (near, far) = UnixStream::pair().unwrap();
        let serving = std::thread::spawn(move || serve(far));
        for (wanted, v6) in [(b"4", false), (b"6", true)] {
            (&near).write_all(wanted).unwrap();
            let socket = Socket::from(receive(&near).unwrap().unwrap());
            assert_eq!(socket.domain().unwrap() == Domain::IPV6, v6);
        }
        drop(near);
        serving.join().unwrap();
    }
}
