//! HTTP/1 on bytes (RFC 9112): parsing and writing of heads, and body framing.
//!
//! A parser of its own, because it is on the hot path of the proxy, which passes most of a head on unchanged. Values
//! are slices of the received head, so that a head costs one copy; a header name is written in its sender's spelling,
//! which is found in front of the value in that head.

mod chunked;
mod read;
mod target;
mod write;

#[cfg(test)]
mod tests;

pub use chunked::{Body, BodyError, Decoded};
pub use read::{HeadError, Reading, RequestHead, ResponseHead, parse_request, parse_response};
pub use target::{Target, is_authority, path_and_query};
pub use write::{
    CHUNK_END, ConnectionHeader, begin_chunk, end_of_chunks, may_be_trailer, write_interim, write_request,
    write_response,
};

/// Bounds of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, from the first line to the empty line.
    pub bytes: usize,
    /// Header fields.
    pub headers: usize,
}

impl Limits {
    /// For messages from an application or from outside the mesh. Envoy's `max_headers_count` is 100 by default, its
    /// `max_request_headers_kb` 60 KiB.
    pub const OUTSIDE: Limits = Limits { bytes: 64 * 1024, headers: 100 };
    /// For messages from another sidecar: [`Limits::OUTSIDE`] plus the headers that sidecars and policies add.
    pub const MESH: Limits = Limits { bytes: 96 * 1024, headers: 200 };
}

/// End of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// After this number of bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// At the end of the connection.
    UntilClose,
}
