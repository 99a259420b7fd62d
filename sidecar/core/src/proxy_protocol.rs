//! The PROXY protocol: a header at the start of a connection with the client's addresses, for a server that would
//! otherwise see only the proxy's. HAProxy's specification, "The PROXY protocol, versions 1 & 2", sections 2.1 and 2.2.
//!
//! Only the sender's part for TCP clients: the `PROXY` command. The sidecar's `upstream` sends it before everything
//! else, including TLS.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Version of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// The two addresses of a client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionAddresses {
    /// The client's address.
    pub source: SocketAddr,
    /// The original destination, before any redirection.
    pub destination: SocketAddr,
}

/// Start of a version 2 header: bytes with which no other protocol begins.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_COMMAND: u8 = 0x21;
/// STREAM over the address families.
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// The header for a client's connection.
pub fn header(version: Version, ends: &ConnectionAddresses) -> Vec<u8> {
    match version {
        Version::V1 => line(ends).into_bytes(),
        Version::V2 => binary(ends),
    }
}

fn line(ConnectionAddresses { source, destination }: &ConnectionAddresses) -> String {
    let (family, from, to) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ("TCP4", from.to_string(), to.to_string()),
        (from, to) => ("TCP6", text(six(from)), text(six(to))),
    };
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port())
}

fn binary(ConnectionAddresses { source, destination }: &ConnectionAddresses) -> Vec<u8> {
    let mut out = Vec::with_capacity(SIGNATURE.len() + 4 + 36);
    out.extend_from_slice(&SIGNATURE);
    out.push(VERSION_COMMAND);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[TCP_OVER_IPV4, 0, 12]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            out.extend_from_slice(&[TCP_OVER_IPV6, 0, 36]);
            out.extend_from_slice(&six(from).octets());
            out.extend_from_slice(&six(to).octets());
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
    out
}

/// A header has one address family: for mixed families, IPv4 addresses are mapped (RFC 4291, 2.5.5.2), as HAProxy does.
fn six(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// Hexadecimal groups only: version 1 has no dotted notation for mapped addresses.
fn text(ip: Ipv6Addr) -> String {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] => format!("::ffff:{high:x}:{low:x}"),
        _ => ip.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(source: &str, destination: &str) -> ConnectionAddresses {
        ConnectionAddresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn version_1_is_a_text_line() {
        for (from, to, want) in [
            ("192.0.2.1:56324", "198.51.100.7:443", "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"),
            ("[2001:db8::1]:1", "[2001:db8::2]:65535", "PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n"),
            ("192.0.2.1:1", "[2001:db8::2]:2", "PROXY TCP6 ::ffff:c000:201 2001:db8::2 1 2\r\n"),
        ] {
            let got = header(Version::V1, &ends(from, to));
            assert_eq!(String::from_utf8(got).unwrap(), want);
        }
        let all = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        // The longest line of the specification, which receivers size their buffers for.
        assert_eq!(header(Version::V1, &ends(all, all)).len(), 104);
    }

    #[test]
    fn version_2_matches_the_specified_layout() {
        let got = header(Version::V2, &ends("192.0.2.1:56324", "198.51.100.7:443"));
        let mut want = vec![0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
        want.extend([0x21, 0x11, 0x00, 0x0c]);
        want.extend([192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 0x01, 0xbb]);
        assert_eq!(got, want);

        let got = header(Version::V2, &ends("[2001:db8::1]:256", "[2001:db8::2]:2"));
        assert_eq!((got.len(), &got[12..16]), (16 + 36, &[0x21, 0x21, 0x00, 0x24][..]));
        assert_eq!((got[16..18].to_vec(), got[31], got[47]), (vec![0x20, 0x01], 1, 2));
        assert_eq!(got[48..], [1, 0, 0, 2]);

        let mixed = header(Version::V2, &ends("192.0.2.1:1", "[2001:db8::2]:2"));
        assert_eq!(mixed[13], 0x21);
        assert_eq!(mixed[26..32], [0xff, 0xff, 192, 0, 2, 1]);
    }
}
