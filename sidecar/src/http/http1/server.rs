//! The server side of a downstream connection: its requests one after the other.

use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, DATE};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use weft_core::http1::{ConnectionHeader, Framing, HeadError, Limits, RequestHead, parse_request, write_response};

use super::conn::{Broken, Conn, ReadError, Rest, lock};
use super::outgoing::{Outgoing, SendError};
use crate::http::body::ResponseBody;
use crate::http::date::with_now;
use crate::http::incoming::{Incoming, Upgrade, Upgraded};
use crate::http::may_upgrade;
use crate::net::stream::{MaybeSocket, Rewind, reset_on_close};

/// How long the rest of a request is read whose response was sent early: nginx's `client_body_timeout`.
const REST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client that is still sending is read after the last response of its connection: to close with its bytes unread
/// resets the connection, and can take the response with it. nginx's `lingering_time`.
const LINGER: Duration = Duration::from_secs(30);
/// How long it may pause meanwhile: nginx's `lingering_timeout`.
const LINGER_PAUSE: Duration = Duration::from_secs(5);

/// Why a connection ended otherwise than between requests.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A request could not be read.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// A response could not be written.
    #[error("{0}")]
    Write(io::Error),
    /// A response broke off.
    #[error("{0}")]
    Response(crate::http::body::ResponseError),
    /// The client has gone before its answer.
    #[error("the client has gone")]
    Gone,
}

/// Answers the requests of a connection.
pub struct Service<F, R> {
    /// How large the head of a request may be.
    pub limits: Limits,
    /// Answers a request.
    pub answer: F,
    /// Answers a request whose head cannot be read.
    pub refuse: R,
}

/// A request whose head cannot be read.
#[derive(Debug)]
pub struct Unread {
    /// The rule that it breaks.
    pub error: HeadError,
    /// Its first line, escaped, at most [`Unread::LINE`] bytes of it.
    pub line: String,
}

impl Unread {
    /// Bytes of a first line that are kept.
    const LINE: usize = 256;

    fn new(error: HeadError, input: &[u8]) -> Unread {
        let line = input.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        Unread { error, line: line[..line.len().min(Unread::LINE)].escape_ascii().to_string() }
    }
}

/// The properties of a request that decide the form of its response.
struct ResponseForm {
    version: Version,
    is_head: bool,
    is_connect: bool,
    keep_alive: bool,
    /// Where the connection goes if the response agrees to leave HTTP.
    upgrade: Option<oneshot::Sender<Upgraded>>,
}

/// Serves the requests of one connection to its end.
///
/// # Errors
/// The cause of the end, if the connection did not end between requests.
pub async fn serve<I, F, R, Fut>(io: I, service: Service<F, R>) -> Result<(), ServeError>
where
    I: AsyncRead + AsyncWrite + MaybeSocket + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> Fut,
    R: Fn(Unread) -> Response<ResponseBody>,
    Fut: Future<Output = Response<ResponseBody>>,
{
    let conn = Arc::new(Mutex::new(Conn::new(io, service.limits)));
    loop {
        let parse = |input: &[u8]| parse_request(input, service.limits);
        let head = std::future::poll_fn(|cx| lock(&conn).poll_head(cx, parse)).await;
        let head = match head {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(ReadError::Head(error)) => {
                let unread = Unread::new(error.clone(), &lock(&conn).pending);
                // Where the request ends is unknown: all that follows is its rest.
                lock(&conn).begin(Framing::UntilClose);
                let form = ResponseForm {
                    version: Version::HTTP_11,
                    is_head: false,
                    is_connect: false,
                    keep_alive: false,
                    upgrade: None,
                };
                Box::pin(respond(&conn, (service.refuse)(unread), form)).await?;
                return Err(ReadError::Head(error).into());
            }
            Err(e) => return Err(e.into()),
        };
        // On the heap while it lasts: an idle connection has no room for a request.
        if !Box::pin(exchange(&conn, head, &service.answer)).await? {
            return Ok(());
        }
    }
}

/// One request and its response. `true`: another may follow.
async fn exchange<I, F, Fut>(conn: &Arc<Mutex<Conn<I>>>, head: RequestHead, handle: &F) -> Result<bool, ServeError>
where
    I: AsyncRead + AsyncWrite + MaybeSocket + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> Fut,
    Fut: Future<Output = Response<ResponseBody>>,
{
    let RequestHead { parts, framing, keep_alive, expects_continue, names_upgrade, origin } = head;
    let version = parts.version;
    let message = {
        let mut conn = lock(conn);
        conn.owes_continue = expects_continue;
        conn.takes_interim = version == Version::HTTP_11;
        conn.begin(framing)
    };
    let mut form = ResponseForm {
        version,
        is_head: parts.method == Method::HEAD,
        is_connect: parts.method == Method::CONNECT,
        keep_alive,
        upgrade: None,
    };
    let mut incoming = match framing {
        Framing::None => Incoming::empty(origin),
        _ => Incoming::http1(conn.clone(), message, origin),
    }
    .with_interim(conn.clone());
    if may_upgrade(&parts, names_upgrade) {
        let (sender, receiver) = oneshot::channel();
        form.upgrade = Some(sender);
        incoming = incoming.with_upgrade(Upgrade::Server(receiver));
    }
    let response = {
        let mut handling = pin!(handle(Request::from_parts(parts, incoming)));
        std::future::poll_fn(|cx| {
            let handled = handling.as_mut().poll(cx);
            let mut conn = lock(conn);
            // Half a request has no response, unless it breaks a rule: then the handler, which reads it, responds.
            if conn.broken == Some(Broken::Gone) {
                return Poll::Ready(Err(ServeError::Gone));
            }
            if let Poll::Ready(response) = handled {
                return Poll::Ready(Ok(response));
            }
            // "100 Continue" and other interim responses.
            if let Poll::Ready(Err(e)) = conn.poll_flush(cx) {
                return Poll::Ready(Err(ServeError::Write(e)));
            }
            conn.poll_end(cx).map(|()| Err(ServeError::Gone))
        })
        .await?
    };
    if lock(conn).broken == Some(Broken::Invalid) {
        form.keep_alive = false;
        // Later bytes cannot be divided into requests any more.
        lock(conn).begin(Framing::UntilClose);
    }
    respond(conn, response, form).await
}

/// Writes a response's head; the future sends its body. `true`: the connection serves another request.
// Inlined, so that the future is made where it stays.
#[inline(always)]
fn respond<I>(
    conn: &Arc<Mutex<Conn<I>>>,
    response: Response<ResponseBody>,
    form: ResponseForm,
) -> impl Future<Output = Result<bool, ServeError>>
where
    I: AsyncRead + AsyncWrite + MaybeSocket + Unpin + Send + 'static,
{
    let ResponseForm { version, is_head, is_connect, keep_alive, upgrade } = form;
    let (parts, mut body) = response.into_parts();
    let switching = upgrade
        .filter(|_| parts.status == StatusCode::SWITCHING_PROTOCOLS || (is_connect && parts.status.is_success()));
    let bodiless = switching.is_some()
        || parts.status.is_informational()
        || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framing = framing(&body, bodiless, is_head, version);
    let says_close = parts.headers.get(CONNECTION).is_some_and(|c| c.as_bytes().eq_ignore_ascii_case(b"close"));
    // If the close were not announced with the response, the next request would be lost.
    let readable = lock(conn).rest() != Rest::Unbounded;
    let keep = keep_alive && !says_close && framing != Framing::UntilClose && readable;
    let closing = match keep {
        _ if switching.is_some() || says_close => ConnectionHeader::Unset,
        true if version == Version::HTTP_10 => ConnectionHeader::KeepAlive,
        true => ConnectionHeader::Unset,
        false => ConnectionHeader::Close,
    };
    let origin = body.take_origin();
    {
        let mut conn = lock(conn);
        (conn.owes_continue, conn.takes_interim) = (false, false);
        let has_date = parts.headers.contains_key(DATE);
        let out = conn.out.buffer();
        let mut write = |date: &[u8]| write_response(out, &parts, version, &origin, framing, closing, date);
        if has_date { write(b"") } else { with_now(|date| write(date.as_bytes())) }
    }
    async move {
        let sent = if bodiless || is_head {
            body.complete();
            drop(body);
            send(conn, Outgoing::new(ResponseBody::empty(), Framing::None)).await
        } else {
            send(conn, Outgoing::new(body, framing)).await
        };
        if sent.is_err() && framing == Framing::UntilClose {
            // Its end would be taken for the end of the body.
            reset_on_close(lock(conn).io.as_ref());
        }
        sent?;

        if let Some(upgrade) = switching {
            hand_over(conn, upgrade);
            return Ok(false);
        }
        if keep && (lock(conn).has_read_all() || read_rest(conn).await) {
            return Ok(true);
        }
        end(conn).await;
        Ok(false)
    }
}

/// How the end of a response's body is shown.
fn framing(body: &ResponseBody, bodiless: bool, is_head: bool, version: Version) -> Framing {
    match body.size_hint().exact() {
        _ if bodiless => Framing::None,
        // The response to HEAD announces the length of the response to GET, where that is known.
        Some(0) if is_head => Framing::None,
        Some(length) => Framing::Length(length),
        None if is_head => Framing::None,
        None if version == Version::HTTP_10 => Framing::UntilClose,
        None => Framing::Chunked,
    }
}

/// Gives a connection that has left HTTP to the task that relays its bytes.
fn hand_over<I>(conn: &Mutex<Conn<I>>, upgrade: oneshot::Sender<Upgraded>)
where
    I: AsyncRead + AsyncWrite + MaybeSocket + Unpin + Send + 'static,
{
    let (pending, io) = {
        let mut conn = lock(conn);
        (std::mem::take(&mut conn.pending), conn.io.take())
    };
    if let Some(io) = io {
        // The request's task may have ended meanwhile.
        let _ = upgrade.send(Box::new(Rewind::new(pending, io)));
    }
}

/// Reads the rest of a request that has its response, so that the next one can be read. `false`: it does not come, or is
/// more than [`Rest::MOST`].
async fn read_rest<I: AsyncRead + AsyncWrite + Unpin>(conn: &Mutex<Conn<I>>) -> bool {
    lock(conn).take_body();
    let reading = std::future::poll_fn(|cx| lock(conn).poll_rest(cx));
    tokio::time::timeout(REST_TIMEOUT, reading).await.unwrap_or(false)
}

/// Sends a response's body, and looks for the client's end while there is nothing to send.
async fn send<I, B>(conn: &Mutex<Conn<I>>, mut outgoing: Outgoing<B>) -> Result<(), ServeError>
where
    I: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes, Error = crate::http::body::ResponseError> + Unpin,
{
    std::future::poll_fn(|cx| match outgoing.poll_send(cx, conn) {
        Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
        Poll::Ready(Err(SendError::Io(e))) => Poll::Ready(Err(ServeError::Write(e))),
        Poll::Ready(Err(SendError::Body(e))) => Poll::Ready(Err(ServeError::Response(e))),
        Poll::Pending => lock(conn).poll_end(cx).map(|()| Err(ServeError::Gone)),
    })
    .await
}

/// Ends a connection whose last response has been written.
async fn end<I: AsyncRead + AsyncWrite + Unpin>(conn: &Mutex<Conn<I>>) {
    let ending = async {
        // It ends anyhow, when the connection is dropped.
        let _ = std::future::poll_fn(|cx| lock(conn).poll_shutdown(cx)).await;
        if lock(conn).has_read_all() {
            return;
        }
        lock(conn).take_body();
        let read = || std::future::poll_fn(|cx| lock(conn).poll_discard(cx));
        while let Ok(true) = tokio::time::timeout(LINGER_PAUSE, read()).await {}
    };
    // A peer that reads nothing, or sends for ever, is not waited for.
    let _ = tokio::time::timeout(LINGER, ending).await;
}
