//! Moving bytes both ways between two streams, until both have ended.
//!
//! Bytes are copied through a buffer that a flow holds only while bytes are under way. Where both sides are bare sockets
//! and much is moved, the kernel does it by splice(2): for little at a time a copy costs no more calls and is simpler.

mod pipe;

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::Instant;

use crate::net::connect;
use crate::net::stream::{MaybeSocket, reset_on_close};
use pipe::Pipe;

/// Bytes moved by [`relay`], one counter a direction, readable while it runs.
#[derive(Debug, Default)]
pub struct Moved {
    /// From the first stream to the second.
    pub sent: AtomicU64,
    /// From the second stream to the first.
    pub received: AtomicU64,
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

/// Bytes that are read from a stream at a time.
const READ: usize = 64 * 1024;
/// The same with the overhead of TLS for each 16 KiB (RFC 8446, 5.2), so that a sidecar's single write is one read.
const BUFFER: usize = READ / (16 * 1024) * (16 * 1024 + 22);
/// Buffers that a worker keeps for the next flow that has bytes.
const SPARE_BUFFERS: usize = 8;
/// A read of at least this much is followed by splicing.
const MUCH: usize = READ / 4;
/// Bytes that one direction moves before other tasks have their turn.
const TURN: u64 = 1024 * 1024;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer from those that this thread keeps: making one anew each time means zeroing it.
pub(crate) fn take_buffer() -> Box<[u8]> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
}

/// Gives a buffer of [`take_buffer`] back; an empty one is none.
pub(crate) fn give_back(buffer: &mut Box<[u8]>) {
    let buffer = std::mem::take(buffer);
    SPARE.with_borrow_mut(|spare| {
        if !buffer.is_empty() && spare.len() < SPARE_BUFFERS {
            spare.push(buffer);
        }
    });
}

/// One direction. Bytes under way are in the buffer or in the pipe, never in both.
struct Direction {
    buffer: Box<[u8]>,
    filled: usize,
    written: usize,
    pipe: Option<Pipe>,
    /// The last read was a large one.
    much: bool,
    /// The system does not splice these two.
    copy_only: bool,
    ended: bool,
    flush: bool,
    closed: bool,
}

/// The failure, and whether it was in reading.
type Failed = (bool, io::Error);

impl Direction {
    fn new() -> Self {
        Direction {
            buffer: Box::default(),
            filled: 0,
            written: 0,
            pipe: None,
            much: false,
            copy_only: false,
            ended: false,
            flush: false,
            closed: false,
        }
    }

    /// Moves the bytes that are ready. `Ok`: the end was passed on.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut R>,
        mut to: Pin<&mut W>,
        moved: &AtomicU64,
    ) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + MaybeSocket,
        W: AsyncWrite + MaybeSocket,
    {
        let turn_ends = moved.load(Ordering::Relaxed) + TURN;
        loop {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            if self.pipe.as_ref().is_some_and(|pipe| pipe.filled() > 0) {
                ready!(self.drain(cx, to.as_ref(), moved)).map_err(|e| (false, e))?;
                continue;
            }
            ready!(self.write(cx, to.as_mut(), moved))?;
            if self.ended {
                ready!(to.as_mut().poll_shutdown(cx)).map_err(|e| (false, e))?;
                self.closed = true;
                continue;
            }
            if moved.load(Ordering::Relaxed) >= turn_ends {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let read = match self.splice_from(cx, from.as_ref(), to.as_ref()) {
                Some(read) => read,
                None => self.read(cx, from.as_mut()),
            };
            match read {
                Poll::Ready(Ok(n)) => {
                    self.ended = n == 0;
                    self.much = n >= MUCH;
                    if self.ended {
                        self.release();
                    }
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err((true, e))),
                Poll::Pending => {
                    if self.flush {
                        ready!(to.as_mut().poll_flush(cx)).map_err(|e| (false, e))?;
                        self.flush = false;
                    }
                    // An idle connection holds nothing.
                    self.release();
                    return Poll::Pending;
                }
            }
        }
    }

    /// Writes what the buffer holds.
    fn write<W: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        mut to: Pin<&mut W>,
        moved: &AtomicU64,
    ) -> Poll<Result<(), Failed>> {
        while self.written < self.filled {
            let under_way = &self.buffer[self.written..self.filled];
            let n = ready!(to.as_mut().poll_write(cx, under_way)).map_err(|e| (false, e))?;
            if n == 0 {
                return Poll::Ready(Err((false, io::ErrorKind::WriteZero.into())));
            }
            self.written += n;
            self.flush = true;
            moved.fetch_add(n as u64, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }

    fn read<R: AsyncRead>(&mut self, cx: &mut Context<'_>, from: Pin<&mut R>) -> Poll<io::Result<usize>> {
        if self.buffer.is_empty() {
            self.buffer = take_buffer();
        }
        let mut buffer = ReadBuf::new(&mut self.buffer[..READ]);
        ready!(from.poll_read(cx, &mut buffer))?;
        (self.filled, self.written) = (buffer.filled().len(), 0);
        Poll::Ready(Ok(self.filled))
    }

    /// Splices from the source into the pipe; `None`: the bytes have to be copied.
    fn splice_from<R, W>(&mut self, cx: &mut Context<'_>, from: Pin<&R>, to: Pin<&W>) -> Option<Poll<io::Result<usize>>>
    where
        R: MaybeSocket,
        W: MaybeSocket,
    {
        if !self.much || self.copy_only {
            return None;
        }
        let from = from.socket()?;
        to.socket()?;
        let mut pipe = self.pipe.take().or_else(Pipe::take)?;
        let read = loop {
            match from.poll_read_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => break Poll::Ready(Err(e)),
                Poll::Pending => break Poll::Pending,
            }
            match from.try_io(Interest::READABLE, || pipe.fill(from)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // Nothing was moved, so that nothing is lost by going on without.
                Err(e) if matches!(e.raw_os_error(), Some(22 | 38)) => {
                    self.copy_only = true;
                    return None;
                }
                result => break Poll::Ready(result),
            }
        };
        give_buffer(self);
        self.pipe = Some(pipe);
        Some(read)
    }

    /// Splices from the pipe to the destination.
    fn drain<W: MaybeSocket>(&mut self, cx: &mut Context<'_>, to: Pin<&W>, moved: &AtomicU64) -> Poll<io::Result<()>> {
        let (Some(pipe), Some(to)) = (&mut self.pipe, to.socket()) else {
            return Poll::Ready(Err(io::Error::other("a socket became something else")));
        };
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || pipe.drain(to)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    moved.fetch_add(n as u64, Ordering::Relaxed);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Nothing is under way: others may have the buffer and the pipe.
    fn release(&mut self) {
        give_buffer(self);
        if let Some(pipe) = self.pipe.take() {
            pipe.give_back();
        }
    }
}

fn give_buffer(direction: &mut Direction) {
    give_back(&mut direction.buffer);
    (direction.filled, direction.written) = (0, 0);
}

/// Moves bytes both ways until both sides have ended. The end of one direction is passed on while the other goes on. A failure
/// of one side resets the other: an end would make data whole that is not.
/// `idle`: longest silence; `longest`: longest duration; both optional.
pub async fn relay<A, B>(a: A, b: B, moved: &Moved, idle: Option<Duration>, longest: Option<Duration>) -> RelayEnd
where
    A: AsyncRead + AsyncWrite + MaybeSocket,
    B: AsyncRead + AsyncWrite + MaybeSocket,
{
    // Both halves are in one task: no lock, and one wake-up handles both directions.
    tokio::pin!(a, b);
    let (mut out, mut back) = (Direction::new(), Direction::new());
    let far = Duration::from_secs(365 * 24 * 3600);
    let idle_timer = tokio::time::sleep(idle.unwrap_or(far));
    let end_timer = tokio::time::sleep(longest.unwrap_or(far));
    tokio::pin!(idle_timer, end_timer);
    let mut last = (Instant::now(), 0);
    let mut half_closed = false;
    let end = std::future::poll_fn(|cx| {
        // Each direction reads one side and writes the other.
        let sent = out.poll(cx, a.as_mut(), b.as_mut(), &moved.sent);
        let received = back.poll(cx, b.as_mut(), a.as_mut(), &moved.received);
        match (sent, received) {
            (Poll::Ready(Err((reading, e))), _) => return Poll::Ready(RelayEnd::Failed(reading, e)),
            (_, Poll::Ready(Err((reading, e)))) => return Poll::Ready(RelayEnd::Failed(!reading, e)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(RelayEnd::Finished),
            (Poll::Pending, Poll::Pending) => {}
            _ if half_closed => {}
            _ => {
                half_closed = true;
                for socket in [a.transport(), b.transport()].into_iter().flatten() {
                    connect::keep_tracked(socket);
                }
            }
        }
        if longest.is_some() && Future::poll(end_timer.as_mut(), cx).is_ready() {
            return Poll::Ready(RelayEnd::Duration);
        }
        if let Some(idle) = idle {
            let now = moved.sent.load(Ordering::Relaxed) + moved.received.load(Ordering::Relaxed);
            if now != last.1 {
                last = (Instant::now(), now);
            }
            while Future::poll(idle_timer.as_mut(), cx).is_ready() {
                // The timer is not moved at each byte but looked at when it fires.
                if last.0.elapsed() >= idle {
                    return Poll::Ready(RelayEnd::Idle);
                }
                idle_timer.as_mut().reset(last.0 + idle);
            }
        }
        Poll::Pending
    })
    .await;
    if matches!(end, RelayEnd::Failed(..)) {
        reset_on_close(Some(&*a));
        reset_on_close(Some(&*b));
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::net::{TcpListener, TcpStream};

    impl MaybeSocket for DuplexStream {
        fn socket(&self) -> Option<&TcpStream> {
            None
        }
    }

    async fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    /// Large and small writes, in both directions at once, past a reader that is slow: spliced and copied, nothing lost.
    #[tokio::test]
    async fn sockets_are_spliced_and_every_byte_arrives() {
        let ((client, a), (b, server)) = (sockets().await, sockets().await);
        let moved = std::sync::Arc::new(Moved::default());
        let counters = moved.clone();
        let relay = tokio::spawn(async move { relay(a, b, &counters, None, None).await });
        let total = 20_000_000;
        let write = |mut stream: tokio::net::tcp::OwnedWriteHalf| async move {
            let data: Vec<u8> = (0..total).map(|i| (i % 251) as u8).collect();
            let mut rest = &data[..];
            for size in [1, 100, 70_000, 3_000_000, 10, 5_000_000].iter().cycle() {
                let n = rest.len().min(*size);
                stream.write_all(&rest[..n]).await.unwrap();
                rest = &rest[n..];
                if rest.is_empty() {
                    return;
                }
            }
        };
        let read = |mut stream: tokio::net::tcp::OwnedReadHalf| async move {
            let (mut buffer, mut at) = (vec![0; 10_000], 0usize);
            loop {
                let n = stream.read(&mut buffer).await.unwrap();
                if n == 0 {
                    return at;
                }
                assert!(buffer[..n].iter().enumerate().all(|(i, b)| usize::from(*b) == (at + i) % 251), "at {at}");
                at += n;
            }
        };
        let ((client_read, client_write), (server_read, server_write)) = (client.into_split(), server.into_split());
        let (.., got, back) =
            tokio::join!(write(client_write), write(server_write), read(server_read), read(client_read));
        assert_eq!((got, back), (total, total));
        assert!(matches!(relay.await.unwrap(), RelayEnd::Finished));
        assert_eq!((moved.sent.load(Relaxed), moved.received.load(Relaxed)), (total as u64, total as u64));
        assert!(Pipe::spare() > 0, "nothing was spliced");
    }

    #[tokio::test]
    async fn a_half_close_is_passed_on_and_the_response_still_arrives() {
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

    /// Either side's, whichever way the data went.
    #[tokio::test]
    async fn a_reset_is_passed_on_as_a_reset() {
        for from_server in [true, false] {
            let ((client, a), (b, server)) = (sockets().await, sockets().await);
            let relay = tokio::spawn(async move { relay(a, b, &Moved::default(), None, None).await });
            let (mut from, mut to) = if from_server { (server, client) } else { (client, server) };
            from.write_all(b"half of it").await.unwrap();
            let mut got = [0; 10];
            to.read_exact(&mut got).await.unwrap();
            reset_on_close(Some(&from));
            drop(from);
            let end = to.read(&mut got).await;
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            assert!(matches!(relay.await.unwrap(), RelayEnd::Failed(first, _) if first != from_server));
        }
    }

    /// The kernel forgets a redirected connection of which one side has ended after 60 s without a packet, and drops the packets
    /// that come back then.
    #[tokio::test]
    async fn a_half_closed_connection_is_probed_more_often_than_connection_tracking_forgets_it() {
        let ((mut client, a), (b, mut server)) = (sockets().await, sockets().await);
        let copies = [&a, &b].map(|socket| socket2::SockRef::from(socket).try_clone().unwrap());
        let relay = tokio::spawn(async move { relay(a, b, &Moved::default(), None, None).await });
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
        tokio::task::yield_now().await;
        for socket in &copies {
            assert!(socket.keepalive().unwrap() && socket.tcp_keepalive_time().unwrap() < Duration::from_secs(30));
        }
        drop(copies);
        server.write_all(b"late").await.unwrap();
        drop(server);
        let mut got = String::new();
        client.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "late");
        assert!(matches!(relay.await.unwrap(), RelayEnd::Finished));
    }

    #[tokio::test(start_paused = true)]
    async fn the_idle_timeout_ends_a_relay_and_bytes_restart_it() {
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
    async fn max_connection_duration_ends_a_busy_relay() {
        let (_client, a) = tokio::io::duplex(64);
        let (b, _server) = tokio::io::duplex(64);
        let end = relay(a, b, &Moved::default(), None, Some(Duration::from_secs(5))).await;
        assert!(matches!(end, RelayEnd::Duration));
    }
}
