//! HTTP/1 as bytes (RFC 9112): heads read and written, and where bodies end.
//!
//! Ours, because it is the proxy's path: a proxy passes most of a head on as it came. Values are slices of the head that
//! was read, so that a head costs one copy; and a name is written as its sender spelled it, found again by where its value
//! lies in that head.

mod chunked;
mod read;
mod write;

#[cfg(test)]
mod tests;

pub use chunked::{Body, BodyError, Decoded};
pub use read::{HeadError, Reading, RequestHead, ResponseHead, parse_request, parse_response};
pub use write::{CHUNK_END, Closing, begin_chunk, end_of_chunks, write_request, write_response};

/// Largest head of a message, in bytes. Envoy's default is 60 KiB.
pub const MAX_HEAD: usize = 64 * 1024;
/// Most headers of a message, as Envoy's default (`max_headers_count`).
pub const MAX_HEADERS: usize = 100;

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
