//! Our side of a client's connection: its requests one after the other.

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
use weft_core::http1::{Closing, Framing, HeadError, RequestHead, parse_request, write_response};

use super::conn::{Broken, Conn, ReadError, lock};
use super::outgoing::{Outgoing, SendError};
use crate::body::ResponseBody;
use crate::date::with_now;
use crate::http::wants_upgrade;
use crate::incoming::{Incoming, Upgrade};
use crate::stream::{MaybeSocket, Rewind};

/// How long a client that is still sending is listened to after our last answer: an end with its bytes unread would reset
/// the connection, and could take the answer with it.
const LINGER: Duration = Duration::from_secs(1);

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
    Response(crate::body::ResponseError),
    /// The client has gone before its answer.
    #[error("the client has gone")]
    Gone,
}

/// Serves the requests of one connection to its end.
///
/// # Errors
/// Says how it ended, when not between requests.
pub async fn serve<I, F, Fut>(io: I, handle: F) -> Result<(), ServeError>
where
    I: AsyncRead + AsyncWrite + MaybeSocket + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> Fut,
    Fut: Future<Output = Response<ResponseBody>>,
{
    let conn = Arc::new(Mutex::new(Conn::new(io)));
    loop {
        let head = std::future::poll_fn(|cx| lock(&conn).poll_head(cx, parse_request)).await;
        let head = match head {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(ReadError::Head(e)) => {
                refuse(&conn, e).await.map_err(ServeError::Write)?;
                return Err(ReadError::Head(e).into());
            }
            Err(e) => return Err(e.into()),
        };
        // On the heap while it lasts: an idle connection has no room for a request.
        if !Box::pin(exchange(&conn, head, &handle)).await? {
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
    let RequestHead { parts, framing, keep_alive, expects_continue, origin } = head;
    let message = {
        let mut conn = lock(conn);
        conn.owes_continue = expects_continue;
        conn.begin(framing)
    };
    let version = parts.version;
    let (is_head, is_connect) = (parts.method == Method::HEAD, parts.method == Method::CONNECT);
    let mut incoming = match framing {
        Framing::None => Incoming::empty(origin),
        _ => Incoming::http1(conn.clone(), message, origin),
    };
    let mut upgrade = None;
    if wants_upgrade(&parts) {
        let (sender, receiver) = oneshot::channel();
        upgrade = Some(sender);
        incoming = incoming.with_upgrade(Upgrade::Server(receiver));
    }
    let response = {
        let mut handling = pin!(handle(Request::from_parts(parts, incoming)));
        std::future::poll_fn(|cx| {
            let handled = handling.as_mut().poll(cx);
            // Nobody waits for an answer to half a request.
            if let Some(broken) = lock(conn).broken {
                return Poll::Ready(Err(broken));
            }
            if let Poll::Ready(response) = handled {
                return Poll::Ready(Ok(response));
            }
            // A client that has gone wants no answer.
            lock(conn).poll_end(cx).map(|()| Err(Broken::Gone))
        })
        .await
    };
    let response = match response {
        Ok(response) => response,
        Err(Broken::Gone) => return Err(ServeError::Gone),
        Err(Broken::Invalid) => {
            refuse(conn, HeadError::Invalid("the body is not chunked as it should be"))
                .await
                .map_err(ServeError::Write)?;
            return Ok(false);
        }
    };

    let (parts, mut body) = response.into_parts();
    let switching = upgrade
        .filter(|_| parts.status == StatusCode::SWITCHING_PROTOCOLS || (is_connect && parts.status.is_success()));
    let bodiless = switching.is_some()
        || parts.status.is_informational()
        || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framing = match body.size_hint().exact() {
        _ if bodiless => Framing::None,
        // The answer to a HEAD says what it would have been, where that is known.
        Some(0) if is_head => Framing::None,
        Some(length) => Framing::Length(length),
        None if is_head => Framing::None,
        None if version == Version::HTTP_10 => Framing::UntilClose,
        None => Framing::Chunked,
    };
    let says_close = parts.headers.get(CONNECTION).is_some_and(|c| c.as_bytes().eq_ignore_ascii_case(b"close"));
    let keep = keep_alive && !says_close && framing != Framing::UntilClose;
    let closing = match keep {
        _ if switching.is_some() || says_close => Closing::Unsaid,
        true if version == Version::HTTP_10 => Closing::KeepAlive,
        true => Closing::Unsaid,
        false => Closing::Close,
    };
    let origin = body.take_origin();
    {
        let mut conn = lock(conn);
        conn.owes_continue = false;
        let has_date = parts.headers.contains_key(DATE);
        let out = conn.out.buffer();
        let mut write = |date: &[u8]| write_response(out, &parts, version, &origin, framing, closing, date);
        if has_date { write(b"") } else { with_now(|date| write(date.as_bytes())) }
    }
    drop((parts, origin));
    let sent = if bodiless || is_head {
        body.complete();
        drop(body);
        send(conn, Outgoing::new(ResponseBody::empty(), Framing::None)).await
    } else {
        send(conn, Outgoing::new(body, framing)).await
    };
    sent?;

    if let Some(upgrade) = switching {
        let (pending, io) = {
            let mut conn = lock(conn);
            (std::mem::take(&mut conn.pending), conn.io.take())
        };
        if let Some(io) = io {
            // Who asked for it may have given up meanwhile.
            let _ = upgrade.send(Box::new(Rewind::new(pending, io)));
        }
        return Ok(false);
    }
    if keep && lock(conn).has_read_all() {
        return Ok(true);
    }
    end(conn).await;
    Ok(false)
}

/// Sends a response's body, and looks for the client's end while there is nothing to send.
async fn send<I, B>(conn: &Mutex<Conn<I>>, mut outgoing: Outgoing<B>) -> Result<(), ServeError>
where
    I: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes, Error = crate::body::ResponseError> + Unpin,
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
        std::future::poll_fn(|cx| {
            loop {
                let mut conn = lock(conn);
                conn.pending = Bytes::new();
                match conn.poll_fill(cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    };
    // A peer that reads nothing, or sends for ever, is not waited for.
    let _ = tokio::time::timeout(LINGER, ending).await;
}

/// Answers what is no request.
async fn refuse<I: AsyncRead + AsyncWrite + Unpin>(conn: &Mutex<Conn<I>>, error: HeadError) -> io::Result<()> {
    let text = format!("{error}\n");
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = error.status();
    let framing = Framing::Length(text.len() as u64);
    {
        let mut conn = lock(conn);
        // What follows cannot be told apart any more.
        conn.begin(Framing::UntilClose);
        let out = conn.out.buffer();
        with_now(|date| {
            write_response(out, &parts, Version::HTTP_11, &Bytes::new(), framing, Closing::Close, date.as_bytes());
        });
        out.extend_from_slice(text.as_bytes());
    }
    std::future::poll_fn(|cx| lock(conn).poll_flush(cx)).await?;
    end(conn).await;
    Ok(())
}
