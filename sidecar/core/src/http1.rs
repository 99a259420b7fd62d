//! HTTP/1 as bytes (RFC 9112): heads read and written, and where bodies end.
//!
//! Ours, because it is the proxy's path: a proxy passes most of a head on as it came. Values are slices of the head that
//! was read, so that a head costs one copy; and a name is written as its sender spelled it, found again by where its value
//! lies in that head.

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
    CHUNK_END, Closing, begin_chunk, end_of_chunks, may_be_trailer, write_interim, write_request, write_response,
};

/// How large a head may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, from the first line to the empty one.
    pub bytes: usize,
    /// Header fields.
    pub headers: usize,
}

impl Limits {
    /// Of a message from an application or from outside the mesh. Envoy's `max_headers_count` is 100 by default, its
    /// `max_request_headers_kb` 60 KiB.
    pub const OUTSIDE: Limits = Limits { bytes: 64 * 1024, headers: 100 };
    /// Of a message from another sidecar: what came there within [`Limits::OUTSIDE`], with what sidecars and policies add.
    pub const MESH: Limits = Limits { bytes: 96 * 1024, headers: 200 };
}

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// With the connection.
    UntilClose,
}
