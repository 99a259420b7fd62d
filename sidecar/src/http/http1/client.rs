//! The client side of a connection to an endpoint.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{EXPECT, UPGRADE};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body::Body;
use tokio::task::AbortHandle;
use tokio::time::Sleep;
use weft_core::http1::{Framing, HeadError, Limits, ResponseHead, parse_response, write_request};

use super::conn::{Conn, ReadError, lock};
use super::outgoing::{Outgoing, SendError};
use crate::http::body::{BodyError, RequestBody};
use crate::http::incoming::{Incoming, Interim, MAX_INTERIM, Upgrade, is_passed_on, pass_on};
use crate::net::stream::Rewind;
use crate::net::transport::Transport;

/// How long the body of a request with `Expect: 100-continue` waits for the endpoint's word: RFC 9110, 10.1.1, has a client wait
/// for a while only, and curl waits as long.
const EXPECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether the body of a request waits until the endpoint wants it.
pub(crate) fn waits_for_continue(head: &Parts, body: &RequestBody) -> Option<Pin<Box<Sleep>>> {
    if body.is_end_stream() {
        return None;
    }
    let expects = head.headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    expects.then(|| Box::pin(tokio::time::sleep(EXPECT_TIMEOUT)))
}

/// A connection that carries one request at a time.
pub struct Client {
    conn: Arc<Mutex<Conn<Transport>>>,
    /// How large the head of a response may be.
    limits: Limits,
    keep_alive: bool,
    /// Sends the rest of a request whose response came first.
    rest: Option<AbortHandle>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct ExchangeError {
    /// The cause.
    pub reason: Failure,
    /// Nothing of the request was sent.
    pub unsent: bool,
}

/// The cause of a failed exchange.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Reading the answer.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// Writing the request.
    #[error("{0}")]
    Write(io::Error),
    /// The request's body.
    #[error("{0}")]
    Body(BodyError),
    /// HTTP/2.
    #[error("{0}")]
    Http2(#[from] h2::Error),
}

impl Client {
    /// A connection over `stream`. `limits`: of the heads of responses.
    pub fn new(stream: Transport, limits: Limits) -> Client {
        Client { conn: Arc::new(Mutex::new(Conn::new(stream, limits))), limits, keep_alive: true, rest: None }
    }

    /// Whether an idle connection can take a request: the peer has neither closed it nor sent anything.
    pub fn is_open(&self) -> bool {
        // Costs no system call unless something has arrived. No task waits: the next user of the connection looks again.
        let mut cx = Context::from_waker(Waker::noop());
        let mut conn = lock(&self.conn);
        conn.io.is_some() && conn.poll_fill(&mut cx).is_pending()
    }

    /// Whether the last request and its answer have ended so that another may follow.
    pub fn is_reusable(&self) -> bool {
        let conn = lock(&self.conn);
        self.keep_alive
            && conn.io.is_some()
            && conn.has_read_all()
            && conn.pending.is_empty()
            && conn.out.is_empty()
            && self.rest.as_ref().is_none_or(AbortHandle::is_finished)
    }

    /// Sends a request. `origin`: the head that it came with; `interim`: where interim responses go. The answer's body is read
    /// from this connection.
    ///
    /// # Errors
    /// The connection is of no further use then.
    pub async fn send(
        &mut self,
        head: &Parts,
        origin: &Bytes,
        body: RequestBody,
        interim: Option<&dyn Interim>,
    ) -> Result<Response<Incoming>, ExchangeError> {
        let framing = framing(head, &body);
        let held = waits_for_continue(head, &body);
        let before = {
            let mut conn = lock(&self.conn);
            write_request(conn.out.buffer(), head, origin, framing);
            conn.begin(Framing::None);
            conn.out.written
        };
        let sending = Some(Outgoing::new(body, framing));
        let conn = self.conn.clone();
        let mut sent =
            Sending { conn: &conn, head, limits: self.limits, held, sending, failed: None, interim, passed_on: 0 };
        match std::future::poll_fn(|cx| sent.poll(cx)).await {
            Ok(answer) => {
                let unwanted = sent.held.is_some();
                let (rest, failed) = (sent.sending.take(), sent.failed.is_some());
                Ok(self.answered(head, answer, rest, unwanted, failed))
            }
            Err(reason) => Err(ExchangeError { reason, unsent: lock(&conn).out.written == before }),
        }
    }

    /// The response to a request. `rest`: the unsent part of the request; `unwanted`: the endpoint has responded without asking for
    /// the body; `failed`: the request could not be sent to its end.
    fn answered(
        &mut self,
        head: &Parts,
        answer: ResponseHead,
        rest: Option<Outgoing<RequestBody>>,
        unwanted: bool,
        failed: bool,
    ) -> Response<Incoming> {
        let switching = answer.parts.status == StatusCode::SWITCHING_PROTOCOLS
            || (head.method == Method::CONNECT && answer.parts.status.is_success());
        let (message, handed_over) = {
            let mut conn = lock(&self.conn);
            let stream = if switching { conn.io.take() } else { None };
            (conn.begin(answer.framing), stream.map(|io| Rewind::new(std::mem::take(&mut conn.pending), io)))
        };
        // An endpoint that did not want the body does not get it, and cannot find the beginning of the next request then.
        self.keep_alive = answer.keep_alive && !failed && !unwanted;
        if let Some(mut outgoing) = rest.filter(|_| !unwanted) {
            // The response came first. Its reader may not ask for more until the request has gone.
            let conn = self.conn.clone();
            let task = tokio::spawn(async move {
                // A failure shows where the response is read.
                let _ = std::future::poll_fn(|cx| outgoing.poll_send(cx, &conn)).await;
            });
            self.rest = Some(task.abort_handle());
        }
        let incoming = match (handed_over, answer.framing) {
            (Some(stream), _) => Incoming::empty(answer.origin).with_upgrade(Upgrade::Client(Box::new(stream))),
            (None, Framing::None) => Incoming::empty(answer.origin),
            (None, _) => Incoming::http1(self.conn.clone(), message, answer.origin),
        };
        Response::from_parts(answer.parts, incoming)
    }
}

/// A request that is being sent while its response is waited for.
struct Sending<'a> {
    conn: &'a Mutex<Conn<Transport>>,
    head: &'a Parts,
    limits: Limits,
    /// The body waits for "100 Continue" until then.
    held: Option<Pin<Box<Sleep>>>,
    sending: Option<Outgoing<RequestBody>>,
    failed: Option<io::Error>,
    interim: Option<&'a dyn Interim>,
    passed_on: usize,
}

impl Sending<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Failure>> {
        let (method, limits) = (&self.head.method, self.limits);
        loop {
            self.poll_send(cx)?;
            let head = ready!(lock(self.conn).poll_head(cx, |input| parse_response(input, method, limits)));
            let answer = match head {
                Ok(Some(answer)) => answer,
                Ok(None) => {
                    let failed = self.failed.take();
                    return Poll::Ready(Err(failed.map_or(ReadError::Ended.into(), Failure::Write)));
                }
                Err(e) => return Poll::Ready(Err(e.into())),
            };
            match answer.parts.status {
                StatusCode::SWITCHING_PROTOCOLS if !self.head.headers.contains_key(UPGRADE) => {
                    let e = HeadError::Invalid("101 Switching Protocols to a request without an upgrade");
                    return Poll::Ready(Err(ReadError::Head(e).into()));
                }
                StatusCode::CONTINUE => self.held = None,
                status if is_passed_on(status) => {
                    if let Some(interim) = self.interim.filter(|_| self.passed_on < MAX_INTERIM) {
                        self.passed_on += 1;
                        pass_on(interim, answer.parts, &answer.origin);
                    }
                }
                _ => return Poll::Ready(Ok(answer)),
            }
        }
    }

    /// Sends as much of the request as the connection takes.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        if self.held.as_mut().is_some_and(|held| held.as_mut().poll(cx).is_ready()) {
            self.held = None;
        }
        let sent = match &mut self.sending {
            Some(_) if self.held.is_some() => lock(self.conn).poll_flush(cx).map_err(SendError::Io),
            Some(outgoing) => outgoing.poll_send(cx, self.conn),
            None => Poll::Pending,
        };
        match sent {
            Poll::Ready(Err(SendError::Body(e))) => return Err(Failure::Body(e)),
            Poll::Ready(Err(SendError::Io(e))) => {
                // The endpoint may have responded before it closed.
                self.sending = None;
                self.failed = Some(e);
            }
            Poll::Ready(Ok(())) if self.held.is_none() => self.sending = None,
            _ => {}
        }
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(rest) = self.rest.take() {
            rest.abort();
        }
        // A body that is still held somewhere does not keep the connection open. One that was handed over is not here.
        let stream = lock(&self.conn).io.take();
        drop(stream);
    }
}

/// How a request's body is framed: as its length is known, or in chunks.
fn framing(head: &Parts, body: &RequestBody) -> Framing {
    // A server may expect a body of these methods unless the head says that there is none (RFC 9110, 8.6).
    let usual = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
    if head.method == Method::CONNECT || (matches!(body, RequestBody::Empty) && !usual) {
        return Framing::None;
    }
    match body.size_hint().exact() {
        Some(length) => Framing::Length(length),
        None => Framing::Chunked,
    }
}
