//! Where a check may go: this pod, and nowhere else.
//!
//! A check is a request that anybody who may register can make the sidecar send, from a socket that passes the
//! redirection. Were other hosts allowed, it would be a way around every policy.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Whether `ip` is one of this pod's own.
pub fn is_local(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    if ip.is_loopback() {
        return true;
    }
    if ip.is_unspecified() || ip.is_multicast() {
        return false;
    }
    // To an address of its own the system would talk from that address. Nothing is sent.
    source_towards(SocketAddr::new(ip, 9)).is_some_and(|source| source == ip)
}

/// The address that this host would talk to `remote` from.
pub fn source_towards(remote: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip().to_canonical())
}

/// Whether a check may name `host`: a loopback or own address, `localhost`, or this host's name.
pub fn allowed(host: &str) -> bool {
    match bare(host).parse::<IpAddr>() {
        Ok(ip) => is_local(ip),
        Err(_) => host.eq_ignore_ascii_case("localhost") || host.eq_ignore_ascii_case(&own_name()),
    }
}

/// The addresses to try for `host`, in turn.
///
/// # Errors
/// When the host is not this pod, or its name has no address here.
pub async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let refused = || io::Error::new(io::ErrorKind::PermissionDenied, format!("{host} is not an address of this pod"));
    if !allowed(host) {
        return Err(refused());
    }
    if host.eq_ignore_ascii_case("localhost") {
        // What the resolver says of it is not asked: a file that is missing must not fail every check.
        return Ok(vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]);
    }
    let to = match bare(host).parse() {
        Ok(ip) => Some(SocketAddr::new(ip, port)),
        Err(_) => tokio::net::lookup_host((host, port)).await?.next(),
    };
    let none = || io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    let to = to.ok_or_else(none)?;
    if is_local(to.ip()) { Ok(vec![to]) } else { Err(refused()) }
}

/// An IPv6 address of a URL without its brackets.
pub(super) fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

fn own_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_pod_may_be_checked() {
        for host in
            ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST", "::ffff:127.0.0.1", &own_name()]
        {
            assert!(allowed(host), "{host}");
        }
        for host in ["192.0.2.1", "169.254.169.254", "example.com", "0.0.0.0", "::", "224.0.0.1", "240.240.0.1", ""] {
            assert!(!allowed(host), "{host}");
        }
        if let Some(own) = source_towards(([192, 0, 2, 1], 9).into()) {
            assert!(is_local(own), "{own}");
        }
    }
}
