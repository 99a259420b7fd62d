//! A tunnel by POST in HTTP/1: written bytes become chunks of the request, read bytes come from the response's body.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_core::http1::{Body, CHUNK_END, Decoded, Framing, begin_chunk, end_of_chunks};

use crate::net::transport::Transport;

/// Largest chunk, and bytes that are read at a time.
const PIECE: usize = 16 * 1024;

/// The connection, and the bytes under way on it.
pub struct Posted<S = Transport> {
    inner: S,
    body: Body,
    /// Bytes that were read and not decoded yet, and decoded bytes that were not read yet.
    came: Bytes,
    data: Bytes,
    space: BytesMut,
    /// One chunk that is not written to its end, from `written` on.
    out: Vec<u8>,
    written: usize,
    ended: bool,
}

impl<S> Posted<S> {
    /// Over `inner`; the body of its response is framed so and begins with `came`.
    pub(super) fn new(inner: S, framing: Framing, came: Bytes) -> Self {
        let (data, space) = (Bytes::new(), BytesMut::new());
        Posted { inner, body: Body::new(framing), came, data, space, out: Vec::new(), written: 0, ended: false }
    }
}

impl<S: AsyncWrite + Unpin> Posted<S> {
    /// Writes the rest of the chunk.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.out.len() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.out[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        self.out.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Posted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.data.is_empty() {
            let broken = |e| io::Error::new(io::ErrorKind::InvalidData, e);
            match this.body.decode(&mut this.came).map_err(broken)? {
                Decoded::Data(data) => this.data = data,
                Decoded::Trailers(_) => {}
                Decoded::End => return Poll::Ready(Ok(())),
                Decoded::NeedMore => {
                    this.space.reserve(PIECE);
                    let n = ready!(tokio_util::io::poll_read_buf(Pin::new(&mut this.inner), cx, &mut this.space))?;
                    if n == 0 {
                        let whole = matches!(this.body, Body::UntilClose);
                        let end = if whole { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                        return Poll::Ready(end);
                    }
                    this.came = this.space.split().freeze();
                }
            }
        }
        let n = this.data.len().min(buf.remaining());
        buf.put_slice(&this.data[..n]);
        this.data.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Posted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_out(cx))?;
        let n = buf.len().min(PIECE);
        if n == 0 {
            return Poll::Ready(Ok(0));
        }
        begin_chunk(&mut this.out, n);
        this.out.extend_from_slice(&buf[..n]);
        this.out.extend_from_slice(CHUNK_END);
        // The rest goes before the next chunk, or with a flush.
        match this.poll_out(cx) {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            _ => Poll::Ready(Ok(n)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// Ends the request's body. The connection stays open in both directions: servers take its end for the client's.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_out(cx))?;
        if !this.ended {
            this.ended = true;
            end_of_chunks(&mut this.out, None);
        }
        self.poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_post_tunnel_encodes_and_decodes_chunks() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut posted = Posted::new(near, Framing::Chunked, Bytes::from_static(b"5\r\nhel"));
        let peer = tokio::spawn(async move {
            far.write_all(b"lo\r\n6\r\n world\r\n0\r\n\r\n").await.unwrap();
            let mut sent = String::new();
            // Shut down, and still open: only the end of the body was sent.
            while !sent.ends_with("0\r\n\r\n") {
                let mut piece = [0; 7];
                let n = far.read(&mut piece).await.unwrap();
                sent.push_str(std::str::from_utf8(&piece[..n]).unwrap());
            }
            (sent, far)
        });
        let mut text = String::new();
        posted.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello world");
        posted.write_all(b"a").await.unwrap();
        posted.write_all(&[b'b'; 40]).await.unwrap();
        posted.shutdown().await.unwrap();
        let (sent, _far) = peer.await.unwrap();
        assert_eq!(sent, format!("1\r\na\r\n28\r\n{}\r\n0\r\n\r\n", "b".repeat(40)));
    }

    #[tokio::test]
    async fn only_a_response_without_a_length_ends_with_the_connection() {
        for (framing, fine) in [(Framing::UntilClose, true), (Framing::Length(9), false), (Framing::Chunked, false)] {
            let (near, mut far) = tokio::io::duplex(64);
            far.write_all(b"5\r\nhello").await.unwrap();
            drop(far);
            let mut all = Vec::new();
            let read = Posted::new(near, framing, Bytes::new()).read_to_end(&mut all).await;
            assert_eq!(read.is_ok(), fine, "{framing:?}: {all:?}");
        }
    }
}
