//! Received bodies of either protocol, and connections that leave HTTP.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Response, StatusCode, response};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::http::http1::{ReadError, Source};
use crate::http::{clean_trailers, remove_hop_headers};
use crate::net::stream::MaybeSocket;

/// A body that is received.
pub struct Incoming {
    from: From,
    /// The head that it came with; empty where it was not HTTP/1.
    pub origin: Bytes,
    upgrade: Option<Upgrade>,
    interim: Option<Arc<dyn Interim>>,
}

/// Where the interim responses (1xx) to a request go before its response.
pub trait Interim: Send + Sync {
    /// Sends one to the client, unless it does not know them, or its response has begun. `origin`: the head that it came with;
    /// empty where it did not come by HTTP/1.
    fn interim(&self, status: StatusCode, headers: HeaderMap, origin: &Bytes);
}

/// Most interim responses that one attempt passes on: there is seldom more than one, and each may be a whole head.
pub const MAX_INTERIM: usize = 16;

/// Those to a client's HTTP/2 stream wait for its task, which sends them when the request's own work pauses.
impl Interim for Mutex<Vec<Response<()>>> {
    fn interim(&self, status: StatusCode, headers: HeaderMap, _: &Bytes) {
        let mut waiting = self.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MAX_INTERIM {
            let mut response = Response::new(());
            (*response.status_mut(), *response.headers_mut()) = (status, headers);
            waiting.push(response);
        }
    }
}

/// Passes an interim response on.
pub fn pass_on(interim: &dyn Interim, mut parts: response::Parts, origin: &Bytes) {
    remove_hop_headers(&mut parts.headers, false);
    parts.headers.remove(CONTENT_LENGTH);
    interim.interim(parts.status, parts.headers, origin);
}

/// Whether an interim response is for the client: "100 Continue" is sent anew by each hop, and "101 Switching Protocols" is a
/// response.
pub fn is_passed_on(status: StatusCode) -> bool {
    status.is_informational() && !matches!(status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS)
}

enum From {
    Nothing,
    Http1 { source: Arc<dyn Source>, message: u64, ended: bool },
    Http2(Box<Http2>),
}

/// A body that is a stream's DATA frames and trailers.
struct Http2 {
    stream: RecvStream,
    /// Bytes to come according to `content-length`.
    left: Option<u64>,
    data_ended: bool,
    /// Sends the rest of the request to which this is the answer.
    rest: Option<AbortHandle>,
}

impl Drop for Http2 {
    fn drop(&mut self) {
        if let Some(rest) = self.rest.take() {
            rest.abort();
        }
    }
}

impl Http2 {
    /// Whether the reset follows a whole response: NO_ERROR means that the rest of the request is not wanted (RFC 9113, 8.1).
    fn is_early_end(&self, error: &h2::Error) -> bool {
        error.is_reset()
            && error.is_remote()
            && error.reason() == Some(Reason::NO_ERROR)
            && self.left.is_none_or(|n| n == 0)
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The reader has room for it.
                    self.stream.flow_control().release_capacity(data.len())?;
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(e)) if self.is_early_end(&e) => return Poll::Ready(None),
                Some(Err(e)) => return Poll::Ready(Some(Err(e))),
                None => self.data_ended = true,
            }
        }
        let trailers = match ready!(self.stream.poll_trailers(cx)) {
            Err(e) if self.is_early_end(&e) => None,
            trailers => trailers?,
        };
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    /// By HTTP/1.
    #[error("{0}")]
    Http1(#[from] ReadError),
    /// By HTTP/2.
    #[error("{0}")]
    Http2(#[from] h2::Error),
}

impl Incoming {
    /// No body.
    pub fn empty(origin: Bytes) -> Incoming {
        Incoming { from: From::Nothing, origin, upgrade: None, interim: None }
    }

    /// Of message `message` of an HTTP/1 connection.
    pub fn http1(source: Arc<dyn Source>, message: u64, origin: Bytes) -> Incoming {
        Incoming { from: From::Http1 { source, message, ended: false }, origin, upgrade: None, interim: None }
    }

    /// Of a stream of an HTTP/2 connection, which began with `headers`.
    pub fn http2(stream: RecvStream, headers: &HeaderMap) -> Incoming {
        if stream.is_end_stream() {
            return Incoming::empty(Bytes::new());
        }
        let left = headers.get(CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse().ok());
        let body = Http2 { stream, left, data_ended: false, rest: None };
        Incoming { from: From::Http2(Box::new(body)), origin: Bytes::new(), upgrade: None, interim: None }
    }

    /// The rest of the request is sent while this answer is read, and no longer.
    pub fn with_rest(mut self, sending: AbortHandle) -> Incoming {
        match &mut self.from {
            From::Http2(body) => body.rest = Some(sending),
            _ => sending.abort(),
        }
        self
    }

    /// With the way out of HTTP.
    pub fn with_upgrade(mut self, upgrade: Upgrade) -> Incoming {
        self.upgrade = Some(upgrade);
        self
    }

    /// With the way of interim responses back to the client.
    pub fn with_interim(mut self, interim: Arc<dyn Interim>) -> Incoming {
        self.interim = Some(interim);
        self
    }

    /// The way of interim responses back to the client.
    pub fn take_interim(&mut self) -> Option<Arc<dyn Interim>> {
        self.interim.take()
    }

    /// Whether there is a way out of HTTP: the request asks for it.
    pub fn may_upgrade(&self) -> bool {
        self.upgrade.is_some()
    }

    /// The way out of HTTP, where there is one.
    pub fn take_upgrade(&mut self) -> Option<Upgrade> {
        self.upgrade.take()
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = IncomingError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, IncomingError>>> {
        let mut frame = match &mut self.from {
            From::Nothing => return Poll::Ready(None),
            From::Http1 { ended: true, .. } => return Poll::Ready(None),
            From::Http1 { source, message, ended } => {
                let frame = ready!(source.poll_body(cx, *message));
                *ended = !matches!(&frame, Some(Ok(frame)) if frame.is_data());
                frame.map(|result| result.map_err(IncomingError::Http1))
            }
            From::Http2(body) => ready!(body.poll_frame(cx)).map(|result| result.map_err(IncomingError::Http2)),
        };
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            clean_trailers(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.from {
            From::Nothing => true,
            From::Http1 { source, message, ended } => *ended || source.has_ended(*message),
            From::Http2(body) => body.stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.from {
            From::Nothing => SizeHint::with_exact(0),
            From::Http1 { ended: true, .. } => SizeHint::with_exact(0),
            From::Http1 { source, message, .. } => {
                source.left(*message).map_or(SizeHint::default(), SizeHint::with_exact)
            }
            From::Http2(body) => body.left.map_or(SizeHint::default(), SizeHint::with_exact),
        }
    }
}

/// The way out of HTTP, once both sides have agreed to take it.
pub enum Upgrade {
    /// Of a downstream, available when the response has been written.
    Server(oneshot::Receiver<Upgraded>),
    /// Of an endpoint that has agreed.
    Client(Upgraded),
}

impl Upgrade {
    /// The bytes of the connection, or of the stream, from here on. `None`: it ended instead.
    pub async fn stream(self) -> Option<Upgraded> {
        match self {
            Upgrade::Server(receiver) => receiver.await.ok(),
            Upgrade::Client(stream) => Some(stream),
        }
    }
}

/// A connection, or a stream of one, that has left HTTP.
pub type Upgraded = Box<dyn Stream>;

/// The abilities of an [`Upgraded`].
pub trait Stream: AsyncRead + AsyncWrite + MaybeSocket + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + MaybeSocket + Send + Unpin> Stream for S {}
