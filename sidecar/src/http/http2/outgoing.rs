//! A body on its way out, as a stream's DATA frames and trailers.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

/// A body, and how far it has been sent.
pub(super) struct Outgoing<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Data for which the peer has no window yet.
    waiting: Option<Bytes>,
    /// Whether anything was sent.
    begun: bool,
}

/// Why a body was not sent to its end.
#[derive(Debug)]
pub(super) enum SendError<E> {
    /// The stream or its connection failed.
    Stream(h2::Error),
    /// The body did.
    Body(E),
}

/// Waits until the peer's window has room for at least a byte of the reservation.
pub(super) fn poll_room(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<usize, h2::Error>> {
    // First: `poll_capacity` reports changes only.
    while stream.capacity() == 0 {
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(e)) => return Poll::Ready(Err(e)),
            None => return Poll::Ready(Err(Reason::CANCEL.into())),
        }
    }
    Poll::Ready(Ok(stream.capacity()))
}

impl<B: Body<Data = Bytes> + Unpin> Outgoing<B> {
    /// `body`, on `stream`, whose head announced a body.
    pub(super) fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Outgoing { body, stream, waiting: None, begun: false }
    }

    /// Resets the stream.
    pub(super) fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// Sends what the body yields, as far as the peer's window allows.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError<B::Error>>> {
        loop {
            if self.waiting.is_some() {
                ready!(poll_room(&mut self.stream, cx)).map_err(SendError::Stream)?;
            }
            if let Some(data) = self.waiting.take()
                && self.send(data)?
            {
                return Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    // Most bodies are one piece. It is sent at once, whether there is window for it or not: one piece would wait here otherwise.
                    Ok(data) if !self.begun || data.is_empty() => {
                        if self.send(data)? {
                            return Poll::Ready(Ok(()));
                        }
                    }
                    Ok(data) => {
                        // One byte of the connection's window: a larger reservation would block other streams meanwhile.
                        self.stream.reserve_capacity(1);
                        self.waiting = Some(data);
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        return Poll::Ready(self.stream.send_trailers(trailers).map_err(SendError::Stream));
                    }
                },
                Poll::Ready(None) => {
                    return Poll::Ready(self.stream.send_data(Bytes::new(), true).map_err(SendError::Stream));
                }
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(SendError::Body(e))),
                Poll::Pending => {
                    // A peer that wants no more resets the stream.
                    return match self.stream.poll_reset(cx) {
                        Poll::Ready(Ok(reason)) => Poll::Ready(Err(SendError::Stream(reason.into()))),
                        Poll::Ready(Err(e)) => Poll::Ready(Err(SendError::Stream(e))),
                        Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
    }

    /// `true`: it was the last.
    fn send(&mut self, data: Bytes) -> Result<bool, SendError<B::Error>> {
        let last = self.body.is_end_stream();
        self.begun = true;
        if data.is_empty() && !last {
            return Ok(false);
        }
        self.stream.send_data(data, last).map_err(SendError::Stream)?;
        Ok(last)
    }
}
