//! What is received: bodies, whichever protocol they come by, and connections that leave HTTP.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use crate::http1::{ReadError, Source};
use crate::stream::MaybeSocket;

/// A body that is received.
pub struct Incoming {
    from: From,
    /// The head that it came with; empty where it was not HTTP/1.
    pub origin: Bytes,
    upgrade: Option<Upgrade>,
}

enum From {
    Nothing,
    Http1 { source: Arc<dyn Source>, message: u64, ended: bool },
    Hyper(hyper::body::Incoming),
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    /// By HTTP/1.
    #[error("{0}")]
    Http1(#[from] ReadError),
    /// By HTTP/2.
    #[error("{0}")]
    Hyper(#[from] hyper::Error),
}

impl Incoming {
    /// No body.
    pub fn empty(origin: Bytes) -> Incoming {
        Incoming { from: From::Nothing, origin, upgrade: None }
    }

    /// Of message `message` of an HTTP/1 connection.
    pub fn http1(source: Arc<dyn Source>, message: u64, origin: Bytes) -> Incoming {
        Incoming { from: From::Http1 { source, message, ended: false }, origin, upgrade: None }
    }

    /// Of HTTP/2.
    pub fn hyper(incoming: hyper::body::Incoming) -> Incoming {
        Incoming { from: From::Hyper(incoming), origin: Bytes::new(), upgrade: None }
    }

    /// With the way out of HTTP.
    pub fn with_upgrade(mut self, upgrade: Upgrade) -> Incoming {
        self.upgrade = Some(upgrade);
        self
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
        match &mut self.from {
            From::Nothing => Poll::Ready(None),
            From::Http1 { ended: true, .. } => Poll::Ready(None),
            From::Http1 { source, message, ended } => {
                let frame = ready!(source.poll_body(cx, *message));
                *ended = !matches!(&frame, Some(Ok(frame)) if frame.is_data());
                Poll::Ready(frame.map(|result| result.map_err(IncomingError::Http1)))
            }
            From::Hyper(incoming) => {
                Pin::new(incoming).poll_frame(cx).map(|frame| frame.map(|result| result.map_err(IncomingError::Hyper)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.from {
            From::Nothing => true,
            From::Http1 { source, message, ended } => *ended || source.has_ended(*message),
            From::Hyper(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.from {
            From::Nothing => SizeHint::with_exact(0),
            From::Http1 { ended: true, .. } => SizeHint::with_exact(0),
            From::Http1 { source, message, .. } => {
                source.left(*message).map_or(SizeHint::default(), SizeHint::with_exact)
            }
            From::Hyper(incoming) => incoming.size_hint(),
        }
    }
}

/// The way out of HTTP, once both sides have agreed to take it.
pub enum Upgrade {
    /// Of an HTTP/1 client, when our answer has been written.
    Server(oneshot::Receiver<Upgraded>),
    /// Of an HTTP/1 endpoint that has agreed.
    Client(Upgraded),
    /// Of either, by HTTP/2.
    Hyper(hyper::upgrade::OnUpgrade),
}

impl Upgrade {
    /// The bytes of the connection, or of the stream, from here on. `None`: it ended instead.
    pub async fn stream(self) -> Option<Upgraded> {
        match self {
            Upgrade::Server(receiver) => receiver.await.ok(),
            Upgrade::Client(stream) => Some(stream),
            Upgrade::Hyper(upgrade) => Some(Box::new(TokioIo::new(upgrade.await.ok()?))),
        }
    }
}

/// A connection, or a stream of one, that has left HTTP.
pub type Upgraded = Box<dyn Stream>;

/// What an [`Upgraded`] can do.
pub trait Stream: AsyncRead + AsyncWrite + MaybeSocket + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + MaybeSocket + Send + Unpin> Stream for S {}
