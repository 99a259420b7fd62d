//! Heads and chunks, to bytes.

use std::io::Write;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE,
    HOST, MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, request, response};

use super::{Framing, path_and_query};

/// What a response says about its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// Nothing, or what its headers say already.
    Unsaid,
    /// It ends with this response.
    Close,
    /// It is kept; said to HTTP/1.0, which does not take that for granted.
    KeepAlive,
}

/// Writes a request's head. `origin`: the head that it was made of; empty where there is none.
pub fn write_request(out: &mut Vec<u8>, parts: &request::Parts, origin: &Bytes, framing: Framing) {
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    write_target(out, parts);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    write_headers(out, &parts.headers, origin, framing);
    out.extend_from_slice(b"\r\n");
}

/// The target in the form that the URI has: with a scheme it is absolute-form.
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
    // A query may stand alone in a URI, but not in a request.
    if path.starts_with('?') {
        out.push(b'/');
    }
    out.extend_from_slice(path.as_bytes());
}

/// Writes a response's head. `version`: what the client speaks. `origin`: the head that it was made of; empty where there is
/// none. `date`: for the header that an origin server must send, where the response has none.
pub fn write_response(
    out: &mut Vec<u8>,
    parts: &response::Parts,
    version: Version,
    origin: &Bytes,
    framing: Framing,
    closing: Closing,
    date: &[u8],
) {
    out.extend_from_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(parts.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason(parts.status, origin));
    out.extend_from_slice(b"\r\n");
    write_headers(out, &parts.headers, origin, framing);
    match closing {
        Closing::Unsaid => {}
        Closing::Close => out.extend_from_slice(b"connection: close\r\n"),
        Closing::KeepAlive => out.extend_from_slice(b"connection: keep-alive\r\n"),
    }
    if !parts.headers.contains_key(DATE) {
        out.extend_from_slice(b"date: ");
        out.extend_from_slice(date);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes an interim (1xx) response, which has neither a body nor anything that says where one ends. `origin`: the head that
/// it was made of; empty where there is none.
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

/// The words after the status: as they came, where it is the same status still.
fn reason(status: StatusCode, origin: &Bytes) -> &[u8] {
    let usual = status.canonical_reason().unwrap_or("").as_bytes();
    let Some(line) = origin.split(|b| *b == b'\n').next() else { return usual };
    let came = line.strip_suffix(b"\r").unwrap_or(line).strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(1..));
    let came = came.and_then(|rest| rest.strip_prefix(b" ")?.strip_prefix(status.as_str().as_bytes()));
    match came {
        Some(came) if came.starts_with(b" ") => &came[1..],
        _ => usual,
    }
}

fn write_headers(out: &mut Vec<u8>, headers: &HeaderMap, origin: &Bytes, framing: Framing) {
    let mut length_said = false;
    for (name, value) in headers {
        if *name == CONTENT_LENGTH {
            let keep = match framing {
                // What a HEAD's answer would have, or nothing.
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

/// The name as its sender spelled it: `value` is a slice of `origin`, and the name is before it there. `None`: it is not,
/// or it stands after another name.
fn spelled<'a>(name: &HeaderName, value: &HeaderValue, origin: &'a [u8]) -> Option<&'a [u8]> {
    // Addresses are compared, never followed: whatever they say, only `origin` is read.
    let at = (value.as_bytes().as_ptr() as usize).checked_sub(origin.as_ptr() as usize)?;
    let before = origin.get(..at)?.trim_ascii_end().strip_suffix(b":")?;
    let found = &before[before.len().checked_sub(name.as_str().len())?..];
    let begins = before.len() == found.len() || before[before.len() - found.len() - 1] == b'\n';
    (begins && found.eq_ignore_ascii_case(name.as_str().as_bytes())).then_some(found)
}

/// What follows a chunk's data.
pub const CHUNK_END: &[u8] = b"\r\n";

/// Writes what precedes a chunk's data, which must not be empty: that would be the last one.
pub fn begin_chunk(out: &mut Vec<u8>, length: usize) {
    debug_assert!(length > 0);
    // Writing to memory does not fail.
    let _ = write!(out, "{length:x}\r\n");
}

/// Writes the end of chunks, with trailers. Fields that a recipient must know before the body are left out (RFC 9110,
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

/// Whether a field may stand in trailers: none that a recipient must know before the body (RFC 9110, 6.5.1), nor one by which a
/// mesh says who calls.
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
