//! A body on its way out, over either side's connection.

use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use weft_core::http1::{CHUNK_END, Framing, begin_chunk, end_of_chunks};

use super::conn::{Conn, lock};

/// A body, and how far it has been sent.
pub(super) struct Outgoing<B> {
    body: B,
    chunked: bool,
    ended: bool,
}

/// Why a body was not sent to its end.
#[derive(Debug)]
pub(super) enum SendError<E> {
    /// The connection failed.
    Io(io::Error),
    /// The body did.
    Body(E),
}

impl<B: Body<Data = Bytes> + Unpin> Outgoing<B> {
    /// `body`, framed as its head announces.
    pub(super) fn new(body: B, framing: Framing) -> Self {
        Outgoing { ended: framing == Framing::None, chunked: framing == Framing::Chunked, body }
    }

    /// Sends what the body yields, after the bytes that are to be written already, and polls for more while there is room: a head and
    /// the beginning of its body go out together.
    pub(super) fn poll_send<I: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        conn: &Mutex<Conn<I>>,
    ) -> Poll<Result<(), SendError<B::Error>>> {
        loop {
            let mut waits = false;
            while !self.ended && lock(conn).out.has_room() {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => {
                        // Polled before the lock is taken: it may be this connection's own body.
                        let last = self.body.is_end_stream();
                        let out = &mut lock(conn).out;
                        match frame.into_data() {
                            Ok(data) if data.is_empty() => {}
                            Ok(data) if self.chunked => {
                                begin_chunk(out.buffer(), data.len());
                                out.push(data, CHUNK_END);
                            }
                            Ok(data) => out.push(data, b""),
                            Err(frame) => {
                                if self.chunked {
                                    end_of_chunks(out.buffer(), frame.trailers_ref());
                                }
                                self.ended = true;
                            }
                        }
                        if !self.ended && last && out.has_room() {
                            self.end(out.buffer());
                        }
                    }
                    Poll::Ready(None) => self.end(lock(conn).out.buffer()),
                    Poll::Ready(Some(Err(e))) => {
                        // The bytes before it were complete.
                        let _ = lock(conn).poll_write(cx);
                        return Poll::Ready(Err(SendError::Body(e)));
                    }
                    Poll::Pending => {
                        waits = true;
                        break;
                    }
                }
            }
            let mut conn = lock(conn);
            ready!(conn.poll_write(cx)).map_err(SendError::Io)?;
            if self.ended || waits {
                ready!(conn.poll_flush(cx)).map_err(SendError::Io)?;
                return if self.ended { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.chunked {
            end_of_chunks(out, None);
        }
        self.ended = true;
    }
}
