//! One connection: its stream, the bytes that are read and not used yet, and the bytes to be written.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;
use weft_core::http1::{self, Decoded, Framing, HeadError, Limits, Reading, write_interim};

use crate::http::incoming::Interim;
use crate::net::relay::{give_back, take_buffer};

/// Bodies of which at least this much is to come are read into memory of their own; less is read into a buffer of the
/// thread and copied.
const LARGE: u64 = 16 * 1024;
/// Most that is read at once.
const READ: usize = 64 * 1024;
/// Data up to this size is copied behind the head, so that one write takes both.
const SMALL: usize = 4 * 1024;
/// Framing and small data that wait for being written; more waits for room.
const ROOM: usize = 16 * 1024;

/// Why nothing more can be read of a message.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer's head is none.
    #[error("{0}")]
    Head(#[from] HeadError),
    /// The peer's body breaks the rules.
    #[error("{0}")]
    Body(#[from] http1::BodyError),
    /// The connection ended in the middle of a message.
    #[error("the connection ended before the message did")]
    Ended,
    /// The message was given up.
    #[error("the message was given up")]
    GivenUp,
}

/// Why a message will never be whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// The peer has gone.
    Gone,
    /// The bytes are not a valid body.
    Invalid,
}

/// The rest of the message that is being read, as a reason to keep the connection for the next one or to end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing.
    Nothing,
    /// At most [`Rest::MOST`], or of unknown length.
    Bounded,
    /// More; or the client waits for "100 Continue", and whether it sends the body without is its own choice.
    Unbounded,
}

impl Rest {
    /// Bytes of a body that are read for nothing but the next request behind it: Go's `net/http` reads as much.
    pub(super) const MOST: u64 = 256 * 1024;
}

/// A connection.
pub(super) struct Conn<I> {
    /// `None`: closed, or handed over.
    pub(super) io: Option<I>,
    /// Read, and not used yet.
    pub(super) pending: Bytes,
    /// The message that is being read, by number: a body of an earlier one reads nothing more.
    message: u64,
    body: http1::Body,
    /// "100 Continue" has to be sent before the body is read.
    pub(super) owes_continue: bool,
    /// Interim responses may be written: the client speaks HTTP/1.1, and its response has not begun.
    pub(super) takes_interim: bool,
    /// Bytes of a body that were read without use since the last message began.
    unused: u64,
    /// How large a head may be.
    limits: Limits,
    /// How much of `pending` is known to hold no complete head.
    scanned: usize,
    /// The peer sends nothing more.
    ended: bool,
    /// The message that is being read will never be whole.
    pub(super) broken: Option<Broken>,
    pub(super) out: Out,
}

/// Bytes to be written.
#[derive(Default)]
pub(super) struct Out {
    /// Heads, frames of chunks and small data.
    buffer: Vec<u8>,
    /// How much of `buffer`, then of `data`, was written.
    at: usize,
    /// Larger data after the buffer, and the bytes after that.
    data: Bytes,
    tail: &'static [u8],
    /// Something was written since the stream was flushed.
    unflushed: bool,
    /// Bytes written in all.
    pub(super) written: u64,
}

/// Locks a connection. Only a panic could have poisoned it, and then the connection is closed with its task.
pub(super) fn lock<I>(conn: &Mutex<Conn<I>>) -> MutexGuard<'_, Conn<I>> {
    conn.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<I> Conn<I> {
    pub(super) fn new(io: I, limits: Limits) -> Conn<I> {
        Conn {
            io: Some(io),
            pending: Bytes::new(),
            message: 0,
            body: http1::Body::Length(0),
            owes_continue: false,
            takes_interim: false,
            unused: 0,
            limits,
            scanned: 0,
            ended: false,
            broken: None,
            out: Out::default(),
        }
    }

    /// Another message's body is read from now on.
    pub(super) fn begin(&mut self, framing: Framing) -> u64 {
        self.message += 1;
        self.unused = 0;
        self.body = http1::Body::new(framing);
        self.message
    }

    /// From now on the body of the current message is read by the connection itself: an [`Incoming`](crate::http::incoming::Incoming)
    /// of it reads nothing more.
    pub(super) fn take_body(&mut self) {
        self.message += 1;
    }

    /// The rest of the message that is being read.
    pub(super) fn rest(&self) -> Rest {
        match self.body.left() {
            Some(0) => Rest::Nothing,
            _ if self.owes_continue && self.pending.is_empty() => Rest::Unbounded,
            Some(left) if left > Rest::MOST => Rest::Unbounded,
            _ => Rest::Bounded,
        }
    }

    /// Whether the message that is being read has come whole.
    pub(super) fn has_read_all(&self) -> bool {
        self.body.has_ended()
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Conn<I> {
    /// Reads the bytes that are ready, after the pending ones. 0: the peer has ended.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        let expected = self.body.expected();
        let n = if self.pending.is_empty() && expected >= LARGE {
            let mut buffer = BytesMut::with_capacity(usize::try_from(expected).unwrap_or(READ).min(READ));
            let n = ready!(poll_read_buf(Pin::new(io), cx, &mut buffer))?;
            self.pending = buffer.freeze();
            n
        } else {
            let mut scratch = take_buffer();
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = Pin::new(io).poll_read(cx, &mut buffer);
            let filled = buffer.filled();
            let n = filled.len();
            if n > 0 && self.pending.is_empty() {
                self.pending = Bytes::copy_from_slice(filled);
            } else if n > 0 {
                let mut both = BytesMut::with_capacity(self.pending.len() + n);
                both.extend_from_slice(&self.pending);
                both.extend_from_slice(filled);
                self.pending = both.freeze();
            }
            give_back(&mut scratch);
            ready!(read)?;
            n
        };
        self.ended = n == 0;
        Poll::Ready(Ok(n))
    }

    /// Reads a head. `None`: the peer ended before the first byte of one.
    pub(super) fn poll_head<T>(
        &mut self,
        cx: &mut Context<'_>,
        parse: impl Fn(&[u8]) -> Reading<T>,
    ) -> Poll<Result<Option<T>, ReadError>> {
        loop {
            // Only a new line can complete a head; looking anew at each byte of a slow one would be much work.
            let new = self.pending.get(self.scanned..).unwrap_or_default();
            if (new.contains(&b'\n') || self.pending.len() >= self.limits.bytes)
                && let Some((head, length)) = parse(&self.pending)?
            {
                // Lets go of the buffer where nothing is left in it.
                self.pending = if length == self.pending.len() { Bytes::new() } else { self.pending.slice(length..) };
                self.scanned = 0;
                return Poll::Ready(Ok(Some(head)));
            }
            self.scanned = self.pending.len();
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(if self.pending.iter().all(u8::is_ascii_whitespace) {
                    Ok(None)
                } else {
                    Err(ReadError::Ended)
                });
            }
        }
    }

    /// Reads the next part of message `message`'s body.
    fn poll_body(&mut self, cx: &mut Context<'_>, message: u64) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        if message != self.message {
            return Poll::Ready(Some(Err(ReadError::GivenUp)));
        }
        if std::mem::take(&mut self.owes_continue) && !self.body.has_ended() && self.pending.is_empty() {
            // A client that waits for it sends nothing before. The task that serves the connection writes it.
            write_interim(self.out.buffer(), StatusCode::CONTINUE, &HeaderMap::new(), b"");
        }
        loop {
            match self.body.decode(&mut self.pending) {
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Decoded::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::NeedMore) => {}
                Err(e) => {
                    self.broken = Some(Broken::Invalid);
                    return Poll::Ready(Some(Err(e.into())));
                }
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) if matches!(self.body, http1::Body::UntilClose) => {
                    self.body = http1::Body::Length(0);
                    return Poll::Ready(None);
                }
                Ok(0) => {
                    self.broken = Some(Broken::Gone);
                    return Poll::Ready(Some(Err(ReadError::Ended)));
                }
                Ok(_) => {}
                Err(e) => {
                    self.broken = Some(Broken::Gone);
                    return Poll::Ready(Some(Err(e.into())));
                }
            }
        }
    }

    /// Reads the rest of a body for nothing. `true`: it has come, and the connection may serve another message.
    pub(super) fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match self.body.decode(&mut self.pending) {
                Ok(Decoded::Data(data)) => self.unused += data.len() as u64,
                Ok(Decoded::Trailers(_) | Decoded::End) => return Poll::Ready(true),
                Ok(Decoded::NeedMore) if self.unused > Rest::MOST => return Poll::Ready(false),
                Ok(Decoded::NeedMore) => {
                    if !matches!(ready!(self.poll_fill(cx)), Ok(1..)) {
                        return Poll::Ready(false);
                    }
                }
                Err(_) => return Poll::Ready(false),
            }
        }
    }

    /// Reads and discards. `false`: nothing comes any more.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.pending = Bytes::new();
        self.poll_fill(cx).map(|read| matches!(read, Ok(1..)))
    }

    /// Detects the peer's end while no bytes of it are wanted; bytes that it sends meanwhile wait, up to a limit. Ready: it has
    /// ended, or failed.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.body.has_ended() {
            return Poll::Pending;
        }
        while self.pending.len() < self.limits.bytes {
            if !matches!(ready!(self.poll_fill(cx)), Ok(1..)) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Writes all that is to be written.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        self.out.poll_write(cx, io)
    }

    /// Writes everything, and flushes the stream's own buffers.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx))?;
        let Some(io) = &mut self.io else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        if self.out.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.out.unflushed = false;
        }
        self.out.release();
        Poll::Ready(Ok(()))
    }

    /// Ends the writing side.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Ok(())) };
        Pin::new(io).poll_shutdown(cx)
    }
}

impl Out {
    /// Bytes of heads, frames and small data go here.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        if self.buffer.capacity() == 0 {
            self.buffer = spare::take();
        }
        &mut self.buffer
    }

    /// Whether more may be added.
    pub(super) fn has_room(&self) -> bool {
        self.data.is_empty() && self.buffer.len() < ROOM
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.data.is_empty()
    }

    /// Adds data, and the bytes after it.
    pub(super) fn push(&mut self, data: Bytes, tail: &'static [u8]) {
        if data.len() <= SMALL {
            self.buffer().extend_from_slice(&data);
            self.buffer.extend_from_slice(tail);
        } else {
            (self.data, self.tail) = (data, tail);
        }
    }

    fn poll_write<I: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, io: &mut I) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let (buffer, data) = (self.buffer.len(), self.data.len());
            let rest = self.buffer.get(self.at..).unwrap_or_default();
            let n = if data == 0 {
                ready!(Pin::new(&mut *io).poll_write(cx, rest))?
            } else {
                let of_data = self.at.saturating_sub(buffer);
                let of_tail = of_data.saturating_sub(data);
                let slices = [
                    IoSlice::new(rest),
                    IoSlice::new(self.data.get(of_data..).unwrap_or_default()),
                    IoSlice::new(&self.tail[of_tail..]),
                ];
                let first = slices.iter().position(|s| !s.is_empty()).unwrap_or(2);
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[first..]))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.at += n;
            self.written += n as u64;
            self.unflushed = true;
            if self.at == buffer + data + self.tail.len() {
                self.buffer.clear();
                (self.at, self.data, self.tail) = (0, Bytes::new(), b"");
            }
        }
        Poll::Ready(Ok(()))
    }

    /// An idle connection keeps no buffer.
    fn release(&mut self) {
        spare::give_back(std::mem::take(&mut self.buffer));
    }
}

/// Write buffers, kept by each thread.
mod spare {
    use std::cell::RefCell;

    const MOST: usize = 64;
    /// Larger ones are let go.
    const LARGEST: usize = 32 * 1024;

    thread_local! {
        static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn take() -> Vec<u8> {
        SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(1024))
    }

    pub(super) fn give_back(mut buffer: Vec<u8>) {
        buffer.clear();
        if (1..=LARGEST).contains(&buffer.capacity()) {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < MOST {
                    spare.push(buffer);
                }
            });
        }
    }
}

/// The source of a body, for any stream.
pub trait Source: Send + Sync {
    /// The next part of the body of message `message`.
    fn poll_body(&self, cx: &mut Context<'_>, message: u64) -> Poll<Option<Result<Frame<Bytes>, ReadError>>>;

    /// Whether the body of message `message` has come whole.
    fn has_ended(&self, message: u64) -> bool;

    /// Bytes that are left of it, where that is known.
    fn left(&self, message: u64) -> Option<u64>;
}

impl<I: AsyncRead + AsyncWrite + Unpin + Send> Source for Mutex<Conn<I>> {
    fn poll_body(&self, cx: &mut Context<'_>, message: u64) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        lock(self).poll_body(cx, message)
    }

    fn has_ended(&self, message: u64) -> bool {
        let conn = lock(self);
        conn.message != message || conn.body.has_ended()
    }

    fn left(&self, message: u64) -> Option<u64> {
        let conn = lock(self);
        if conn.message == message { conn.body.left() } else { None }
    }
}

impl<I: Send> Interim for Mutex<Conn<I>> {
    fn interim(&self, status: StatusCode, headers: HeaderMap, origin: &Bytes) {
        let mut conn = lock(self);
        if conn.takes_interim {
            write_interim(conn.out.buffer(), status, &headers, origin);
        }
    }
}
