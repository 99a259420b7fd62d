//! Byte streams with a read-ahead: to recognise a protocol, or to read less often.
//!
//! The bytes are read and put back, not peeked: a peek leaves them in the socket, which then is readable for ever, and costs
//! the same system call again.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::net::relay::{give_back, take_buffer};

/// A stream that first yields the bytes that were read from it before.
#[derive(Debug)]
pub struct Rewind<S> {
    prefix: Bytes,
    inner: S,
}

impl<S> Rewind<S> {
    /// `inner` with `prefix` before it.
    pub fn new(prefix: Bytes, inner: S) -> Self {
        Rewind { prefix, inner }
    }

    /// The same stream, with `bytes` before the rest of its prefix.
    pub fn before(self, bytes: Bytes) -> Self {
        if self.prefix.is_empty() {
            return Rewind { prefix: bytes, ..self };
        }
        Rewind { prefix: [&bytes[..], &self.prefix[..]].concat().into(), ..self }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewind<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.has_remaining() {
            let n = self.prefix.remaining().min(buf.remaining());
            buf.put_slice(&self.prefix[..n]);
            self.prefix.advance(n);
            if self.prefix.is_empty() {
                // Lets go of the buffer.
                self.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

/// A stream that is read in large pieces, whichever size its reader asks for: rustls asks for 4 KiB at a time. The rest waits
/// in a buffer of the thread, which an idle stream does not hold.
#[derive(Debug)]
pub struct ReadAhead<S> {
    buffer: Box<[u8]>,
    filled: usize,
    given: usize,
    inner: S,
}

impl<S> ReadAhead<S> {
    /// `inner`, read ahead.
    pub fn new(inner: S) -> Self {
        ReadAhead { buffer: Box::default(), filled: 0, given: 0, inner }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.given == this.filled {
            if this.buffer.is_empty() {
                this.buffer = take_buffer();
            }
            let mut read = ReadBuf::new(&mut this.buffer);
            let polled = Pin::new(&mut this.inner).poll_read(cx, &mut read);
            (this.filled, this.given) = (read.filled().len(), 0);
            if !matches!(polled, Poll::Ready(Ok(()))) {
                this.filled = 0;
                give_back(&mut this.buffer);
                return polled;
            }
        }
        let n = (this.filled - this.given).min(buf.remaining());
        buf.put_slice(&this.buffer[this.given..this.given + n]);
        this.given += n;
        if this.given == this.filled {
            give_back(&mut this.buffer);
        }
        Poll::Ready(Ok(()))
    }
}

/// Both change only the reading side.
macro_rules! writes_to_inner {
    ($($stream:ident),*) => {$(
        impl<S: AsyncWrite + Unpin> AsyncWrite for $stream<S> {
            fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.inner).poll_write(cx, buf)
            }

            fn poll_write_vectored(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
            }

            fn is_write_vectored(&self) -> bool {
                self.inner.is_write_vectored()
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.inner).poll_flush(cx)
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.inner).poll_shutdown(cx)
            }
        }
    )*};
}

writes_to_inner!(Rewind, ReadAhead);

/// A stream that may be a bare socket, whose bytes the kernel can move.
pub trait MaybeSocket {
    /// The socket; `None`: the bytes are changed on their way (TLS), or some of them are here already.
    fn socket(&self) -> Option<&TcpStream>;

    /// The socket, whether bytes of it are here or not; `None`: the bytes are changed on their way (TLS).
    fn transport(&self) -> Option<&TcpStream> {
        self.socket()
    }
}

impl MaybeSocket for TcpStream {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

/// A connection that the proxy opened: to an address, or to a Unix socket.
#[derive(Debug)]
pub enum Socket {
    /// To an address.
    Tcp(TcpStream),
    /// To a Unix socket. The kernel does not move its bytes by itself here, and it has no reset.
    Unix(UnixStream),
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Socket {
        Socket::Tcp(stream)
    }
}

impl MaybeSocket for Socket {
    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Socket::Tcp(stream) => Some(stream),
            Socket::Unix(_) => None,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Socket::Tcp(stream) => stream.is_write_vectored(),
            Socket::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl<S: MaybeSocket> MaybeSocket for Rewind<S> {
    fn socket(&self) -> Option<&TcpStream> {
        if self.prefix.is_empty() { self.inner.socket() } else { None }
    }

    fn transport(&self) -> Option<&TcpStream> {
        self.inner.transport()
    }
}

impl<S: MaybeSocket + ?Sized> MaybeSocket for Box<S> {
    fn socket(&self) -> Option<&TcpStream> {
        (**self).socket()
    }

    fn transport(&self) -> Option<&TcpStream> {
        (**self).transport()
    }
}

impl<S> MaybeSocket for tokio_rustls::server::TlsStream<S> {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

/// Resets the stream when it is dropped, so that its peer does not take the end for that of the whole message. TLS ends
/// without a close_notify then, which means the same (RFC 8446, 6.1).
pub fn reset_on_close<S: MaybeSocket>(stream: Option<&S>) {
    if let Some(socket) = stream.and_then(MaybeSocket::transport) {
        // Without it the peer sees an end instead of a reset: a socket that refuses the option is closed already.
        let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn rewound_bytes_come_first() {
        let (a, mut b) = tokio::io::duplex(64);
        b.write_all(b" world").await.unwrap();
        drop(b);
        let mut text = String::new();
        Rewind::new(Bytes::from_static(b"hello"), a).read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello world");
    }

    #[tokio::test]
    async fn reading_ahead_loses_nothing_and_an_idle_stream_holds_no_buffer() {
        let (a, mut b) = tokio::io::duplex(200_000);
        let data: Vec<u8> = (0..150_000u32).map(|i| (i % 251) as u8).collect();
        b.write_all(&data).await.unwrap();
        let mut ahead = ReadAhead::new(a);
        let mut got = vec![0; 4096];
        ahead.read_exact(&mut got).await.unwrap();
        assert!(!ahead.buffer.is_empty());
        drop(b);
        ahead.read_to_end(&mut got).await.unwrap();
        assert!(got == data && ahead.buffer.is_empty());
    }
}
