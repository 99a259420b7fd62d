//! Protocol detection from the first bytes of a connection.
//!
//! Only for ports whose protocol the registry does not declare. Decides as early as possible: server-first protocols
//! must not wait, and bytes that can no longer become HTTP or TLS are classified at once.

/// Result of the detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniff {
    /// Undecided: read on, or treat the bytes as opaque after the timeout.
    NeedMore,
    /// An HTTP/1.x request line.
    Http1,
    /// HTTP/2's preface.
    Http2,
    /// A TLS handshake.
    Tls,
    /// None of these.
    Other,
}

const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A request line that is not complete after this many bytes counts as HTTP if it began like one.
const MAX_REQUEST_LINE: usize = 8192;
/// Longer than any registered method.
const MAX_METHOD: usize = 24;

/// Classifies the first bytes of a connection.
pub fn protocol(bytes: &[u8]) -> Sniff {
    if bytes.is_empty() {
        return Sniff::NeedMore;
    }
    if bytes[0] == 0x16 {
        // Record header: handshake, version 3.x.
        return match bytes.get(1) {
            None => Sniff::NeedMore,
            Some(3) => Sniff::Tls,
            Some(_) => Sniff::Other,
        };
    }
    let common = bytes.iter().zip(H2_PREFACE).take_while(|(a, b)| a == b).count();
    if common == H2_PREFACE.len() {
        return Sniff::Http2;
    }
    if common == bytes.len() {
        return Sniff::NeedMore;
    }
    http1(bytes)
}

/// `<method> <target> HTTP/1.x`, after empty lines, which a client may send.
fn http1(bytes: &[u8]) -> Sniff {
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
    let bytes = &bytes[start..];
    let method = bytes.iter().take_while(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_')).count();
    if method == bytes.len() {
        return if method <= MAX_METHOD && start <= 8 { Sniff::NeedMore } else { Sniff::Other };
    }
    if method == 0 || method > MAX_METHOD || bytes[method] != b' ' {
        return Sniff::Other;
    }
    let rest = &bytes[method + 1..];
    let Some(end) = rest.iter().position(|b| *b == b'\n') else {
        let plausible = rest.iter().all(|b| *b >= b' ' || *b == b'\r');
        return match plausible {
            false => Sniff::Other,
            true if rest.len() > MAX_REQUEST_LINE => Sniff::Http1,
            true => Sniff::NeedMore,
        };
    };
    let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
    let version = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
    if matches!(version, b"HTTP/1.1" | b"HTTP/1.0") { Sniff::Http1 } else { Sniff::Other }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn protocols_are_detected_from_their_first_bytes() {
        for (bytes, expected) in [
            (&b""[..], Sniff::NeedMore),
            (b"G", Sniff::NeedMore),
            (b"GET / HT", Sniff::NeedMore),
            (b"GET / HTTP/1.1\r\n", Sniff::Http1),
            (b"\r\nPOST /a b HTTP/1.0\n", Sniff::Http1),
            (b"M-SEARCH * HTTP/1.1\r\n", Sniff::Http1),
            (b"GET / HTTP/3\r\n", Sniff::Other),
            (b"GET /\r\n", Sniff::Other),
            (b"get / HTTP/1.1\r\n", Sniff::Other),
            (b"PRI", Sniff::NeedMore),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Sniff::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Sniff::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSX", Sniff::Other),
            (b"PRINT x HTTP/1.1\r\n", Sniff::Http1),
            (b"\x16", Sniff::NeedMore),
            (b"\x16\x03", Sniff::Tls),
            (b"\x16\x04", Sniff::Other),
            (b"*1\r\n$4\r\nPING\r\n", Sniff::Other),
            (b"PING\r\n", Sniff::Other),
            (b"EHLO mail\r\n", Sniff::Other),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Sniff::Other),
        ] {
            assert_eq!(protocol(bytes), expected, "{}", bytes.escape_ascii());
        }
        assert_eq!(protocol(&[b'A'; 100]), Sniff::Other);
        let long = [&b"GET /"[..], &[b'a'; MAX_REQUEST_LINE + 1]].concat();
        assert_eq!(protocol(&long), Sniff::Http1);
    }

    proptest! {
        #[test]
        fn a_decision_is_stable_as_more_bytes_arrive(bytes in "(GET|PRI|PUT) .{0,20}|.{0,40}", more in proptest::collection::vec(any::<u8>(), 0..40)) {
            let bytes = bytes.into_bytes();
            let first = protocol(&bytes);
            let all = [&bytes[..], &more].concat();
            if first != Sniff::NeedMore {
                prop_assert_eq!(protocol(&all), first);
            }
        }
    }
}
