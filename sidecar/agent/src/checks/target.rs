//! Allowed destinations of checks: the agent's own pod, or the host of a program that registered remotely.
//!
//! A check lets every client with registration rights send a request from a socket that bypasses the redirection. If
//! other hosts were allowed, a check could circumvent every policy.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use weft_listen::address::is_local;

/// Addresses of an agent: it registers them, and its checks go there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// All addresses of this pod.
    Pod,
    /// The address of a remote program; `localhost` refers to it.
    At(IpAddr),
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Own::Pod => f.write_str("this pod"),
            Own::At(ip) => write!(f, "the program that asks from {ip}"),
        }
    }
}

impl Own {
    /// Whether `ip` is included.
    pub fn has(self, ip: IpAddr) -> bool {
        match self {
            Own::Pod => is_local(ip),
            Own::At(own) => ip.to_canonical() == own.to_canonical(),
        }
    }

    /// Whether a check may use `host`: a loopback or own address, `localhost`, or in a pod its host name.
    pub fn allowed(self, host: &str) -> bool {
        let localhost = host.eq_ignore_ascii_case("localhost");
        match (self, bare(host).parse::<IpAddr>()) {
            (Own::Pod, Ok(ip)) => is_local(ip),
            (Own::Pod, Err(_)) => localhost || host.eq_ignore_ascii_case(&own_name()),
            (Own::At(_), Ok(ip)) => ip.to_canonical().is_loopback() || self.has(ip),
            // Other names are refused, because DNS decides their meaning and can change it.
            (Own::At(_), Err(_)) => localhost,
        }
    }

    /// The addresses to try for `host`, in order.
    ///
    /// # Errors
    /// If the host is not allowed, or has no address here.
    pub async fn resolve(self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let refused = || io::Error::new(io::ErrorKind::PermissionDenied, format!("{host} is not an address of {self}"));
        if !self.allowed(host) {
            return Err(refused());
        }
        if let Own::At(own) = self {
            return Ok(vec![(own, port).into()]);
        }
        if host.eq_ignore_ascii_case("localhost") {
            // Answered without the resolver: a missing hosts file must not fail every check.
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
}

/// Removes the brackets of an IPv6 address in a URL.
pub(super) fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

fn own_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use weft_listen::address::source_towards;

    use super::*;

    #[test]
    fn checks_are_limited_to_this_pod() {
        for host in
            ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST", "::ffff:127.0.0.1", &own_name()]
        {
            assert!(Own::Pod.allowed(host), "{host}");
        }
        for host in ["192.0.2.1", "169.254.169.254", "example.com", "0.0.0.0", "::", "224.0.0.1", "240.240.0.1", ""] {
            assert!(!Own::Pod.allowed(host), "{host}");
        }
        if let Some(own) = source_towards(([192, 0, 2, 1], 9).into()) {
            assert!(is_local(own), "{own}");
        }
    }

    #[tokio::test]
    async fn checks_of_a_remote_program_go_to_its_source_address() {
        let own = Own::At([10, 0, 0, 7].into());
        for host in ["10.0.0.7", "::ffff:10.0.0.7", "localhost", "LocalHost", "127.0.0.1", "127.9.9.9", "[::1]"] {
            assert_eq!(own.resolve(host, 80).await.unwrap(), [([10, 0, 0, 7], 80).into()], "{host}");
        }
        let here = source_towards(([192, 0, 2, 1], 9).into()).map_or_else(own_name, |ip| ip.to_string());
        let metadata = "169.254.169.254";
        for host in
            ["10.0.0.8", metadata, "0.0.0.0", "::", "example.com", &own_name(), &here, "localhost.", "2130706433", ""]
        {
            let error = own.resolve(host, 80).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{host}");
        }
        assert!(own.has([10, 0, 0, 7].into()) && !own.has([127, 0, 0, 1].into()));
    }
}
