//! Bodies: of requests that may have to be sent twice, and of responses that hold the request's resources.

mod copies;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Notify;
use weft_core::flag::ResponseFlag;
use weft_core::outcome::Outcome;

use crate::http::incoming::{Incoming, IncomingError};
use crate::http::outcome::classify_body;
use copies::Copies;
pub use copies::{BUDGET as COPY_BUDGET, BodyCopy};

/// A request body that has grown beyond this is not kept for a retry. Envoy's limit is that of its connection buffer
/// (1 MiB in Istio); every request in flight may hold this much, so that Weft keeps less.
const REPLAY_LIMIT: usize = 64 * 1024;

/// How far the client's request body has come.
#[derive(Debug, Default)]
pub struct BodyState {
    done: AtomicBool,
    finished: Notify,
    received: AtomicU64,
}

impl BodyState {
    /// Bytes that were read from the client.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether the whole body was read from the client.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Waits until it was.
    pub async fn done(&self) {
        let finished = self.finished.notified();
        tokio::pin!(finished);
        finished.as_mut().enable();
        if !self.is_done() {
            finished.await;
        }
    }

    fn finish(&self) {
        if !self.done.swap(true, Ordering::AcqRel) {
            self.finished.notify_waiters();
        }
    }
}

/// The downstream's body, and the part that was read so far: a retry begins with that.
pub struct Replay {
    source: Mutex<Source>,
    /// How far it has come.
    pub state: Arc<BodyState>,
}

struct Source {
    incoming: Incoming,
    chunks: Vec<Bytes>,
    kept: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// Too large to be kept: the part that was read is dropped.
    lost: bool,
    /// The attempt that may read; an earlier one's body may linger in its connection.
    attempt: u32,
    /// Mirrors of the request.
    copies: Copies,
}

impl Source {
    /// Keeps a frame for later attempts. Returns the next chunk of the attempt that read it.
    fn keep(&mut self, frame: &Frame<Bytes>, state: &BodyState) -> usize {
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        state.received.fetch_add(length, Ordering::Relaxed);
        if !self.copies.is_empty() {
            self.copies.frame(frame);
        }
        let next = match frame.data_ref() {
            Some(data) if !self.lost && self.kept + data.len() <= REPLAY_LIMIT => {
                self.kept += data.len();
                self.chunks.push(data.clone());
                self.chunks.len()
            }
            Some(_) => {
                self.lost = true;
                self.chunks = Vec::new();
                0
            }
            None => {
                self.trailers = frame.trailers_ref().cloned();
                self.end(state);
                self.chunks.len() + 1
            }
        };
        if self.incoming.is_end_stream() {
            self.end(state);
        }
        next
    }

    fn end(&mut self, state: &BodyState) {
        self.ended = true;
        self.copies.end();
        state.finish();
    }
}

impl Replay {
    /// Wraps the client's body.
    pub fn new(incoming: Incoming) -> Arc<Replay> {
        Arc::new(Replay {
            source: Mutex::new(Source {
                incoming,
                chunks: Vec::new(),
                kept: 0,
                trailers: None,
                ended: false,
                lost: false,
                attempt: 0,
                copies: Copies::default(),
            }),
            state: Arc::default(),
        })
    }

    /// A copy, for a mirrored request: it gets all frames from now on. `cut`: counts it if it falls too far behind.
    pub fn copy(&self, cut: Counter) -> RequestBody {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let left = source.incoming.size_hint().exact();
        RequestBody::Copy(source.copies.add(left, cut))
    }

    /// Whether all that was read is kept, so that it can be sent again.
    pub fn is_whole(&self) -> bool {
        !self.source.lock().unwrap_or_else(PoisonError::into_inner).lost
    }

    /// The body for the next attempt; `None` if the part that was read was not kept.
    pub fn attempt(self: &Arc<Self>) -> Option<RequestBody> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        if source.lost {
            return None;
        }
        source.attempt += 1;
        Some(RequestBody::Replay { replay: self.clone(), attempt: source.attempt, next: 0 })
    }
}

/// The body of a request to an upstream.
pub enum RequestBody {
    /// None.
    Empty,
    /// The client's.
    Replay {
        /// Whose bytes these are.
        replay: Arc<Replay>,
        /// Which attempt this is.
        attempt: u32,
        /// Next kept chunk.
        next: usize,
    },
    /// A copy of the downstream's body, for a mirrored request.
    Copy(BodyCopy),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (replay, attempt, next) = match self.get_mut() {
            RequestBody::Empty => return Poll::Ready(None),
            RequestBody::Copy(copy) => return copy.poll_frame(cx),
            RequestBody::Replay { replay, attempt, next } => (replay, attempt, next),
        };
        let mut guard = replay.source.lock().unwrap_or_else(PoisonError::into_inner);
        let source = &mut *guard;
        if source.attempt != *attempt {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if *next < source.chunks.len() {
            *next += 1;
            return Poll::Ready(Some(Ok(Frame::data(source.chunks[*next - 1].clone()))));
        }
        if source.ended {
            // Once as a frame, then the end.
            if *next == source.chunks.len() {
                *next += 1;
                if let Some(trailers) = &source.trailers {
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
                }
            }
            return Poll::Ready(None);
        }
        match ready!(Pin::new(&mut source.incoming).poll_frame(cx)) {
            None => {
                source.end(&replay.state);
                Poll::Ready(None)
            }
            Some(Err(e)) => Poll::Ready(Some(Err(BodyError::Client(e)))),
            Some(Ok(frame)) => {
                *next = source.keep(&frame, &replay.state);
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty => true,
            RequestBody::Copy(copy) => copy.state.is_done(),
            RequestBody::Replay { replay, next, .. } => {
                let source = replay.source.lock().unwrap_or_else(PoisonError::into_inner);
                source.ended && *next >= source.chunks.len() && source.trailers.is_none()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty => SizeHint::with_exact(0),
            RequestBody::Copy(copy) => copy.left.map_or(SizeHint::default(), SizeHint::with_exact),
            RequestBody::Replay { replay, next, .. } => {
                let source = replay.source.lock().unwrap_or_else(PoisonError::into_inner);
                let kept: usize = source.chunks.iter().skip(*next).map(Bytes::len).sum();
                match source.incoming.size_hint().exact() {
                    Some(rest) if !source.ended => SizeHint::with_exact(rest + kept as u64),
                    _ if source.ended => SizeHint::with_exact(kept as u64),
                    _ => SizeHint::default(),
                }
            }
        }
    }
}

/// Why a request body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client's side failed.
    #[error("the client's request body broke off: {0}")]
    Client(IncomingError),
    /// A newer attempt reads it now.
    #[error("superseded by a retry")]
    Superseded,
    /// Of a copy: it was too slow, or the client's body was not read to its end.
    #[error("left behind by the request that it is a copy of")]
    LeftBehind,
}

/// Observes the body of a response on its way to the downstream. Dropped before [`complete`](ResponseObserver::complete) or
/// [`failed`](ResponseObserver::failed), the downstream has gone.
pub trait ResponseObserver: Send {
    /// So many bytes of the body went to the downstream.
    fn sent(&mut self, bytes: usize);
    /// Trailers came.
    fn trailers(&mut self, trailers: &HeaderMap);
    /// The response has ended as it should.
    fn complete(&mut self);
    /// The response broke off in its middle.
    fn failed(&mut self, flag: ResponseFlag);
}

/// The body of a response to a client.
pub struct ResponseBody {
    inner: Inner,
    observer: Option<Box<dyn ResponseObserver>>,
    /// It must have ended by then.
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
    /// The head that it came with.
    origin: Bytes,
}

/// Why a response broke off.
#[derive(Debug, thiserror::Error)]
pub enum ResponseError {
    /// The upstream's side failed.
    #[error("the upstream's response broke off: {0}")]
    Upstream(IncomingError),
    /// The request's timeout ended in the middle of it.
    #[error("the request's timeout ended before its response did")]
    Timeout,
}

enum Inner {
    Empty,
    Full(Bytes),
    Upstream(Incoming),
}

impl ResponseBody {
    /// A local answer.
    pub fn full(bytes: Bytes) -> ResponseBody {
        let inner = if bytes.is_empty() { Inner::Empty } else { Inner::Full(bytes) };
        ResponseBody { inner, observer: None, deadline: None, origin: Bytes::new() }
    }

    /// No body.
    pub fn empty() -> ResponseBody {
        ResponseBody { inner: Inner::Empty, observer: None, deadline: None, origin: Bytes::new() }
    }

    /// An upstream's answer; it breaks off at the deadline.
    pub fn upstream(
        mut incoming: Incoming,
        mut observer: Option<Box<dyn ResponseObserver>>,
        deadline: Option<tokio::time::Instant>,
    ) -> ResponseBody {
        let origin = std::mem::take(&mut incoming.origin);
        if incoming.is_end_stream() {
            if let Some(observer) = &mut observer {
                observer.complete();
            }
            return ResponseBody { origin, ..ResponseBody::empty() };
        }
        let deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
        ResponseBody { inner: Inner::Upstream(incoming), observer, deadline, origin }
    }

    /// The head that the response came with; empty where it did not come by HTTP/1.
    pub fn take_origin(&mut self) -> Bytes {
        std::mem::take(&mut self.origin)
    }

    /// With an observer.
    pub fn with_observer(mut self, mut observer: Box<dyn ResponseObserver>) -> ResponseBody {
        // An empty body is never polled.
        if matches!(self.inner, Inner::Empty) {
            observer.complete();
        } else {
            self.observer = Some(observer);
        }
        self
    }

    /// Completes the response without its body: it will not be read.
    pub fn complete(&mut self) {
        if let Some(mut observer) = self.observer.take() {
            observer.complete();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        let this = self.get_mut();
        match &mut this.inner {
            Inner::Empty => {
                this.complete();
                Poll::Ready(None)
            }
            Inner::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.inner = Inner::Empty;
                if let Some(observer) = &mut this.observer {
                    observer.sent(bytes.len());
                }
                this.complete();
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Inner::Upstream(incoming) => {
                let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
                    if let Some(deadline) = &mut this.deadline {
                        ready!(deadline.as_mut().poll(cx));
                        if let Some(mut observer) = this.observer.take() {
                            observer.failed(ResponseFlag::UpstreamRequestTimeout);
                        }
                        return Poll::Ready(Some(Err(ResponseError::Timeout)));
                    }
                    return Poll::Pending;
                };
                match &frame {
                    Some(Ok(frame)) => {
                        if let (Some(data), Some(observer)) = (frame.data_ref(), &mut this.observer) {
                            observer.sent(data.len());
                        }
                        if let (Some(trailers), Some(observer)) = (frame.trailers_ref(), &mut this.observer) {
                            observer.trailers(trailers);
                        }
                        // The reader may stop here, and never poll for the end.
                        if incoming.is_end_stream() || frame.is_trailers() {
                            this.complete();
                        }
                    }
                    Some(Err(e)) => {
                        if let Some(mut observer) = this.observer.take() {
                            let reset = classify_body(e) == Outcome::RemoteReset;
                            observer.failed(if reset {
                                ResponseFlag::UpstreamRemoteReset
                            } else {
                                ResponseFlag::UpstreamConnectionTermination
                            });
                        }
                    }
                    None => this.complete(),
                }
                Poll::Ready(frame.map(|result| result.map_err(ResponseError::Upstream)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Empty => true,
            Inner::Full(_) => false,
            Inner::Upstream(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Upstream(incoming) => incoming.size_hint(),
        }
    }
}
