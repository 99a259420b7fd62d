//! The client side of a connection to an endpoint.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body::Body;
use weft_core::http1::Limits;
use weft_core::policy::Http2Keepalive;

use super::outgoing::{Outgoing, SendError};
use super::tunnel::Tunnel;
use super::{CONNECTION_WINDOW, SEND_BUFFER, STREAM_WINDOW};
use crate::http::body::RequestBody;
use crate::http::http1::{ExchangeError, Failure, waits_for_continue};
use crate::http::incoming::{Incoming, Interim, MAX_INTERIM, is_passed_on, pass_on};
use crate::http::index_no_unique_values;
use crate::net::transport::Transport;

/// A handle on a connection that carries many requests at a time.
#[derive(Clone)]
pub struct Client {
    sender: SendRequest<Bytes>,
}

/// Moves the connection's frames, until the connection ends.
pub struct Driver {
    connection: Box<h2::client::Connection<Transport, Bytes>>,
    /// Ends when the peer does not answer any more.
    dead: Option<Pin<Box<dyn Future<Output = h2::Error> + Send>>>,
}

impl Future for Driver {
    type Output = Result<(), h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        if let Poll::Ready(ended) = Pin::new(&mut self.connection).poll(cx) {
            return Poll::Ready(ended);
        }
        match &mut self.dead {
            None => Poll::Pending,
            Some(dead) => dead.as_mut().poll(cx).map(Err),
        }
    }
}

/// Asks whether the peer lives, until it does not.
async fn dead(mut ping: h2::PingPong, keepalive: Http2Keepalive) -> h2::Error {
    loop {
        tokio::time::sleep(keepalive.interval).await;
        match tokio::time::timeout(keepalive.timeout, ping.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return e,
            Err(_) => return Reason::CANCEL.into(),
        }
    }
}

/// Begins HTTP/2 over `stream`.
///
/// # Errors
/// When the stream fails.
pub async fn open(stream: Transport, keepalive: Option<Http2Keepalive>) -> Result<(Client, Driver), h2::Error> {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(Limits::MESH.bytes as u32)
        .enable_push(false);
    let (sender, mut connection) = builder.handshake(stream).await?;
    let ping = connection.ping_pong();
    let dead = keepalive.zip(ping).map(|(keepalive, ping)| Box::pin(dead(ping, keepalive)) as Pin<Box<_>>);
    Ok((Client { sender }, Driver { connection: Box::new(connection), dead }))
}

impl Client {
    /// Waits until the connection takes a request.
    ///
    /// # Errors
    /// When it has ended, or is about to.
    pub async fn ready(&mut self) -> Result<(), h2::Error> {
        poll_fn(|cx| self.sender.poll_ready(cx)).await
    }

    /// Whether the connection takes no request any more.
    pub fn is_closed(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        matches!(self.sender.poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// Sends a request whose body is a byte stream, CONNECT or another. The tunnel carries bytes both ways.
    ///
    /// # Errors
    /// If the stream or the connection fails.
    pub async fn tunnel(&mut self, request: Request<()>) -> Result<(StatusCode, Tunnel), h2::Error> {
        self.ready().await?;
        let (answer, send) = self.sender.send_request(request, false)?;
        let (parts, recv) = answer.await?.into_parts();
        Ok((parts.status, Tunnel::new(send, recv)))
    }

    /// Sends a request other than CONNECT, which has a connection of its own. `interim`: where interim responses go.
    ///
    /// # Errors
    /// The cause, and whether provably nothing was sent.
    pub async fn send(
        &mut self,
        head: &Parts,
        body: RequestBody,
        interim: Option<&dyn Interim>,
    ) -> Result<Response<Incoming>, ExchangeError> {
        let mut held = waits_for_continue(head, &body);
        let bodiless = body.is_end_stream();
        let request = request(head, &body);
        let (mut answer, stream) = match self.sender.send_request(request, bodiless) {
            Ok(begun) => begun,
            // An invalid request is invalid on another connection too.
            Err(e) => return Err(ExchangeError { unsent: self.is_closed(), reason: e.into() }),
        };
        let mut sending = (!bodiless).then(|| Outgoing::new(body, stream));
        let mut passed_on = 0;
        let answered = poll_fn(|cx| {
            while let Poll::Ready(Some(Ok(found))) = answer.poll_informational(cx) {
                let (parts, ()) = found.into_parts();
                if parts.status == StatusCode::CONTINUE {
                    held = None;
                } else if let Some(interim) = interim
                    && is_passed_on(parts.status)
                    && passed_on < MAX_INTERIM
                {
                    passed_on += 1;
                    pass_on(interim, parts, &Bytes::new());
                }
            }
            if held.as_mut().is_some_and(|held| held.as_mut().poll(cx).is_ready()) {
                held = None;
            }
            if held.is_none()
                && let Some(outgoing) = &mut sending
                && let Poll::Ready(sent) = outgoing.poll_send(cx)
            {
                match sent {
                    Err(SendError::Body(e)) => {
                        outgoing.reset(Reason::CANCEL);
                        return Poll::Ready(Err(Failure::Body(e)));
                    }
                    // A failed stream shows, or has shown before, where the response is read.
                    Ok(()) | Err(SendError::Stream(_)) => sending = None,
                }
            }
            Pin::new(&mut answer).poll(cx).map_err(Failure::Http2)
        });
        let response = answered.await.map_err(|reason| ExchangeError { reason, unsent: false })?;
        // An endpoint that did not want the body does not get it.
        Ok(incoming(response, sending.filter(|_| held.is_none())))
    }
}

/// The request as `h2` takes it.
fn request(head: &Parts, body: &RequestBody) -> Request<()> {
    let mut request = Request::new(());
    request.method_mut().clone_from(&head.method);
    request.uri_mut().clone_from(&head.uri);
    *request.version_mut() = head.version;
    request.headers_mut().clone_from(&head.headers);
    index_no_unique_values(request.headers_mut());
    if !body.is_end_stream()
        && let Some(length @ 1..) = body.size_hint().exact()
        && !head.headers.contains_key(CONTENT_LENGTH)
    {
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    request
}

/// The response; `rest`: the unsent part of the request.
fn incoming(response: Response<RecvStream>, rest: Option<Outgoing<RequestBody>>) -> Response<Incoming> {
    let (mut parts, received) = response.into_parts();
    if matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        // Some servers send one all the same, and a strict client resets the stream then.
        parts.headers.remove(CONTENT_LENGTH);
    }
    let mut incoming = Incoming::http2(received, &parts.headers);
    if let Some(mut outgoing) = rest {
        // The response came first. Its reader may not ask for more until the request has gone.
        let rest = tokio::spawn(async move {
            if let Err(SendError::Body(_)) = poll_fn(|cx| outgoing.poll_send(cx)).await {
                outgoing.reset(Reason::CANCEL);
            }
        });
        incoming = incoming.with_rest(rest.abort_handle());
    }
    Response::from_parts(parts, incoming)
}
