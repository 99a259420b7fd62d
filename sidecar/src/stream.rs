//! Byte streams whose first bytes were read already, to see what they are.
//!
//! The bytes are read and given back, not peeked: a peek leaves them in the socket, which then is readable for ever,
//! and costs the same system call again.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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

    /// The stream itself.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// What is left of the prefix, and the stream.
    pub fn into_parts(self) -> (Bytes, S) {
        (self.prefix, self.inner)
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

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewind<S> {
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

/// Bytes moved by [`relay`], one counter a direction, readable while it runs.
#[derive(Debug, Default)]
pub struct Moved {
    /// From the first stream to the second.
    pub sent: std::sync::atomic::AtomicU64,
    /// From the second stream to the first.
    pub received: std::sync::atomic::AtomicU64,
}

/// Why a relay ended before both sides had finished.
#[derive(Debug)]
pub enum RelayEnd {
    /// Both sides finished.
    Finished,
    /// Nothing moved for the idle timeout.
    Idle,
    /// The longest duration was reached.
    Duration,
    /// A side failed; `true`: the first one.
    Failed(bool, io::Error),
}

const RELAY_BUFFER: usize = 64 * 1024;
/// Buffers that a worker keeps for the next flow that has bytes.
const SPARE_BUFFERS: usize = 8;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer from those that this thread keeps: a flow needs one only while bytes are under way, and making one anew
/// each time means zeroing it.
fn take_buffer() -> Box<[u8]> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; RELAY_BUFFER].into_boxed_slice())
}

fn give_back(buffer: &mut Box<[u8]>) {
    let buffer = std::mem::take(buffer);
    SPARE.with_borrow_mut(|spare| {
        if !buffer.is_empty() && spare.len() < SPARE_BUFFERS {
            spare.push(buffer);
        }
    });
}

struct Direction {
    buffer: Box<[u8]>,
    filled: usize,
    written: usize,
    ended: bool,
    flush: bool,
    closed: bool,
}

impl Direction {
    fn new() -> Self {
        Direction { buffer: Box::default(), filled: 0, written: 0, ended: false, flush: false, closed: false }
    }

    /// Moves what can be moved. `Ok(true)`: the end was passed on. The error's flag: reading failed.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut R>,
        mut to: Pin<&mut W>,
        moved: &std::sync::atomic::AtomicU64,
        progress: &mut bool,
    ) -> Poll<Result<(), (bool, io::Error)>>
    where
        R: AsyncRead,
        W: AsyncWrite,
    {
        loop {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            while self.written < self.filled {
                let n = ready!(to.as_mut().poll_write(cx, &self.buffer[self.written..self.filled]))
                    .map_err(|e| (false, e))?;
                if n == 0 {
                    return Poll::Ready(Err((false, io::ErrorKind::WriteZero.into())));
                }
                self.written += n;
                self.flush = true;
                *progress = true;
                moved.fetch_add(n as u64, std::sync::atomic::Ordering::Relaxed);
            }
            if self.ended {
                ready!(to.as_mut().poll_shutdown(cx)).map_err(|e| (false, e))?;
                self.closed = true;
                continue;
            }
            if self.buffer.is_empty() {
                self.buffer = take_buffer();
            }
            let mut buf = ReadBuf::new(&mut self.buffer);
            match from.as_mut().poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) => {
                    (self.filled, self.written) = (buf.filled().len(), 0);
                    if self.filled == 0 {
                        self.ended = true;
                        give_back(&mut self.buffer);
                    }
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err((true, e))),
                Poll::Pending => {
                    if self.flush {
                        ready!(to.as_mut().poll_flush(cx)).map_err(|e| (false, e))?;
                        self.flush = false;
                    }
                    // An idle connection holds no buffer.
                    give_back(&mut self.buffer);
                    (self.filled, self.written) = (0, 0);
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Moves bytes both ways until both sides have ended. The end of one direction is passed on while the other goes on.
/// `idle`: longest silence; `longest`: longest duration; both optional.
pub async fn relay<A, B>(
    a: A,
    b: B,
    moved: &Moved,
    idle: Option<std::time::Duration>,
    longest: Option<std::time::Duration>,
) -> RelayEnd
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    // Both halves of one task: no lock, and one wake-up handles whatever is ready.
    tokio::pin!(a, b);
    let (mut out, mut back) = (Direction::new(), Direction::new());
    let start = tokio::time::Instant::now();
    let far = std::time::Duration::from_secs(365 * 24 * 3600);
    let idle_timer = tokio::time::sleep(idle.unwrap_or(far));
    let end_timer = tokio::time::sleep(longest.unwrap_or(far));
    tokio::pin!(idle_timer, end_timer);
    let mut last = start;
    std::future::poll_fn(|cx| {
        let mut progress = false;
        // Split borrows: each direction reads one side and writes the other.
        let sent = poll_direction(&mut out, cx, &mut a, &mut b, &moved.sent, &mut progress);
        let received = poll_direction(&mut back, cx, &mut b, &mut a, &moved.received, &mut progress);
        match (sent, received) {
            (Poll::Ready(Err((reading, e))), _) => return Poll::Ready(RelayEnd::Failed(reading, e)),
            (_, Poll::Ready(Err((reading, e)))) => return Poll::Ready(RelayEnd::Failed(!reading, e)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(RelayEnd::Finished),
            _ => {}
        }
        if longest.is_some() && std::future::Future::poll(end_timer.as_mut(), cx).is_ready() {
            return Poll::Ready(RelayEnd::Duration);
        }
        if let Some(idle) = idle {
            if progress {
                last = tokio::time::Instant::now();
            }
            while std::future::Future::poll(idle_timer.as_mut(), cx).is_ready() {
                // The timer is not moved at each byte but looked at when it fires.
                if last.elapsed() >= idle {
                    return Poll::Ready(RelayEnd::Idle);
                }
                idle_timer.as_mut().reset(last + idle);
            }
        }
        Poll::Pending
    })
    .await
}

fn poll_direction<R: AsyncRead, W: AsyncWrite>(
    direction: &mut Direction,
    cx: &mut Context<'_>,
    from: &mut Pin<&mut R>,
    to: &mut Pin<&mut W>,
    moved: &std::sync::atomic::AtomicU64,
    progress: &mut bool,
) -> Poll<Result<(), (bool, io::Error)>> {
    direction.poll(cx, from.as_mut(), to.as_mut(), moved, progress)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;
    use std::time::Duration;
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
    async fn half_close_is_passed_on_and_the_answer_still_comes() {
        let (mut client, a) = tokio::io::duplex(64);
        let (b, mut server) = tokio::io::duplex(64);
        let moved = std::sync::Arc::new(Moved::default());
        let counters = moved.clone();
        let relay = tokio::spawn(async move { relay(a, b, &counters, None, None).await });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        server.write_all(b"a long answer").await.unwrap();
        drop(server);
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "a long answer");
        assert!(matches!(relay.await.unwrap(), RelayEnd::Finished));
        assert_eq!((moved.sent.load(Relaxed), moved.received.load(Relaxed)), (8, 13));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_after_the_idle_timeout_and_bytes_put_that_off() {
        let (mut client, a) = tokio::io::duplex(64);
        let (b, mut server) = tokio::io::duplex(64);
        let start = tokio::time::Instant::now();
        let relay =
            tokio::spawn(async move { relay(a, b, &Moved::default(), Some(Duration::from_secs(10)), None).await });
        tokio::time::sleep(Duration::from_secs(7)).await;
        client.write_all(b"x").await.unwrap();
        server.read_u8().await.unwrap();
        assert!(matches!(relay.await.unwrap(), RelayEnd::Idle));
        let took = start.elapsed();
        assert!(took >= Duration::from_secs(17) && took < Duration::from_secs(18), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_duration_ends_it_whatever_moves() {
        let (_client, a) = tokio::io::duplex(64);
        let (b, _server) = tokio::io::duplex(64);
        let end = relay(a, b, &Moved::default(), None, Some(Duration::from_secs(5))).await;
        assert!(matches!(end, RelayEnd::Duration));
    }
}
