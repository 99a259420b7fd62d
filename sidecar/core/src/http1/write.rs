//! Writing of heads and chunks.

use std::io::Write;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE,
    HOST, MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, request, response};

use super::{Framing, path_and_query};

/// The response's statement about its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionHeader {
    /// None beyond the response's own headers.
    Unset,
    /// The connection ends with this response.
    Close,
    /// The connection is kept; needed for HTTP/1.0, where it is not the default.
    KeepAlive,
}

/// Writes a request's head. `origin`: the received head that it was made from; empty if there is none.
pub fn write_request(out: &mut Vec<u8>, parts: &request::Parts, origin: &Bytes, framing: Framing) {
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    write_target(out, parts);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    write_headers(out, &parts.headers, origin, framing);
    out.extend_from_slice(b"\r\n");
}

/// The target in the form of the URI: absolute-form if it has a scheme.
fn write_target(out: &mut Vec<u8>, parts: &request::Parts) {
    if let Some(authority) = parts.uri.authority() {
        if parts.method == Method::CONNECT {
            return out.extend_from_slice(authority.as_str().as_bytes());
        }
        if let Some(scheme) = parts.uri.scheme_str() {
            out.extend_from_slice(scheme.as_bytes());
            out.extend_from_slice(b"://");
            out.extend_from_slice(authority.as_str().as_bytes());
        }
    }
    let path = path_and_query(parts);
    // A URI may have a query without a path, a request may not.
    if path.starts_with('?') {
        out.push(b'/');
    }
    out.extend_from_slice(path.as_bytes());
}

/// Writes a response's head. `version`: the client's version. `origin`: the received head that it was made from; empty
/// if there is none. `date`: added if the response has no Date header, which an origin server must send.
pub fn write_response(
    out: &mut Vec<u8>,
    parts: &response::Parts,
    version: Version,
    origin: &Bytes,
    framing: Framing,
    connection: ConnectionHeader,
    date: &[u8],
) {
    out.extend_from_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(parts.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason(parts.status, origin));
    out.extend_from_slice(b"\r\n");
    write_headers(out, &parts.headers, origin, framing);
    match connection {
        ConnectionHeader::Unset => {}
        ConnectionHeader::Close => out.extend_from_slice(b"connection: close\r\n"),
        ConnectionHeader::KeepAlive => out.extend_from_slice(b"connection: keep-alive\r\n"),
    }
    if !parts.headers.contains_key(DATE) {
        out.extend_from_slice(b"date: ");
        out.extend_from_slice(date);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes an interim (1xx) response, which has neither a body nor framing headers. `origin`: the received head that it
/// was made from; empty if there is none.
pub fn write_interim(out: &mut Vec<u8>, status: StatusCode, headers: &HeaderMap, origin: &[u8]) {
    let reason = status.canonical_reason().unwrap_or("");
    // Writing to memory does not fail.
    let _ = write!(out, "HTTP/1.1 {} {reason}\r\n", status.as_u16());
    for (name, value) in headers {
        if *name != CONTENT_LENGTH && *name != TRANSFER_ENCODING {
            write_header(out, name, value, origin);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// The reason phrase: the received one if the status is unchanged.
fn reason(status: StatusCode, origin: &Bytes) -> &[u8] {
    let usual = status.canonical_reason().unwrap_or("").as_bytes();
    let Some(line) = origin.split(|b| *b == b'\n').next() else { return usual };
    let original = line.strip_suffix(b"\r").unwrap_or(line).strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(1..));
    let original = original.and_then(|rest| rest.strip_prefix(b" ")?.strip_prefix(status.as_str().as_bytes()));
    match original {
        Some(original) if original.starts_with(b" ") => &original[1..],
        _ => usual,
    }
}

fn write_headers(out: &mut Vec<u8>, headers: &HeaderMap, origin: &Bytes, framing: Framing) {
    let mut length_said = false;
    for (name, value) in headers {
        if *name == CONTENT_LENGTH {
            let keep = match framing {
                // The length of the body that GET would have, or nothing.
                Framing::None => true,
                Framing::Length(length) => !length_said && value.to_str().is_ok_and(|v| v.parse() == Ok(length)),
                Framing::Chunked | Framing::UntilClose => false,
            };
            if !keep {
                continue;
            }
            length_said = true;
        } else if *name == TRANSFER_ENCODING {
            continue;
        }
        write_header(out, name, value, origin);
    }
    match framing {
        Framing::Length(length) if !length_said => {
            let _ = write!(out, "content-length: {length}\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        _ => {}
    }
}

fn write_header(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue, origin: &[u8]) {
    out.extend_from_slice(spelled(name, value, origin).unwrap_or(name.as_str().as_bytes()));
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The name in its sender's spelling: `value` is a slice of `origin`, where the name precedes it. `None`: it is not a
/// slice of it, or another name precedes it there.
fn spelled<'a>(name: &HeaderName, value: &HeaderValue, origin: &'a [u8]) -> Option<&'a [u8]> {
    // Addresses are compared, never dereferenced: only `origin` is read.
    let at = (value.as_bytes().as_ptr() as usize).checked_sub(origin.as_ptr() as usize)?;
    let before = origin.get(..at)?.trim_ascii_end().strip_suffix(b":")?;
    let spelling = &before[before.len().checked_sub(name.as_str().len())?..];
    let begins = before.len() == spelling.len() || before[before.len() - spelling.len() - 1] == b'\n';
    (begins && spelling.eq_ignore_ascii_case(name.as_str().as_bytes())).then_some(spelling)
}

/// Terminator of a chunk's data.
pub const CHUNK_END: &[u8] = b"\r\n";

/// Writes the size line of a chunk. `length` must not be 0, which would end the body.
pub fn begin_chunk(out: &mut Vec<u8>, length: usize) {
    debug_assert!(length > 0);
    // Writing to memory does not fail.
    let _ = write!(out, "{length:x}\r\n");
}

/// Writes the last chunk, with trailers. Fields that a recipient must know before the body are dropped (RFC 9110,
/// 6.5.1).
pub fn end_of_chunks(out: &mut Vec<u8>, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        if may_be_trailer(name) {
            write_header(out, name, value, b"");
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether a field may be a trailer: not one that a recipient must know before the body (RFC 9110, 6.5.1), and not one
/// by which the mesh identifies the caller.
pub fn may_be_trailer(name: &HeaderName) -> bool {
    let text = name.as_str();
    !NO_TRAILERS.contains(name) && !NO_TRAILER_PREFIXES.iter().any(|prefix| text.starts_with(prefix))
}

const NO_TRAILER_PREFIXES: [&str; 3] = ["x-forwarded-", "x-envoy-", "x-weft-"];

const NO_TRAILERS: [HeaderName; 13] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    HOST,
    MAX_FORWARDS,
    SET_COOKIE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
];
