//! The server side of a downstream connection.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, DATE, HeaderValue};
use http::{Method, Request, Response};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use weft_core::http1::Limits;

use super::outgoing::{Outgoing, SendError};
use super::tunnel::Tunnel;
use super::{CONNECTION_WINDOW, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};
use crate::http::body::ResponseBody;
use crate::http::date::with_now;
use crate::http::incoming::{Incoming, Upgrade};
use crate::http::index_no_unique_values;

/// Serves the requests of one connection to its end. Once `drain` completes, the downstream gets a GOAWAY, and its requests in
/// progress are finished.
///
/// # Errors
/// If the connection ended otherwise.
pub async fn serve<I, F, Fut>(io: I, drain: impl Future<Output = ()>, handle: F) -> Result<(), h2::Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Request<Incoming>) -> Fut,
    Fut: Future<Output = Response<ResponseBody>> + Send + 'static,
{
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        // More than is allowed, so that a slightly larger head gets a response with the reason; beyond it `h2` responds with 431.
        .max_header_list_size(2 * Limits::MESH.bytes as u32)
        .max_concurrent_streams(MAX_STREAMS);
    let mut connection = builder.handshake::<_, Bytes>(io).await?;
    let mut drain = pin!(drain);
    let mut draining = false;
    loop {
        let accepted = poll_fn(|cx| {
            if !draining && drain.as_mut().poll(cx).is_ready() {
                draining = true;
                connection.graceful_shutdown();
            }
            connection.poll_accept(cx)
        });
        let Some(accepted) = accepted.await else { return Ok(()) };
        let (request, respond) = accepted?;
        let (parts, received) = request.into_parts();
        let mut tunnel = None;
        let incoming = if parts.method == Method::CONNECT {
            let (sender, receiver) = oneshot::channel();
            tunnel = Some((sender, received));
            Incoming::empty(Bytes::new()).with_upgrade(Upgrade::Server(receiver))
        } else {
            Incoming::http2(received, &parts.headers)
        };
        let interim = Arc::<Mutex<Vec<Response<()>>>>::default();
        let incoming = incoming.with_interim(interim.clone());
        let is_head = parts.method == Method::HEAD;
        // A pointer moves from hand to hand until it runs, not a request's whole state.
        let handling = Box::pin(handle(Request::from_parts(parts, incoming)));
        tokio::spawn(answer(handling, respond, interim, is_head, tunnel));
    }
}

/// Where a stream goes that leaves HTTP.
type WayOut = (oneshot::Sender<crate::http::incoming::Upgraded>, RecvStream);

/// One request: its answer, to the end.
async fn answer(
    mut handling: Pin<Box<impl Future<Output = Response<ResponseBody>>>>,
    mut respond: SendResponse<Bytes>,
    interim: Arc<Mutex<Vec<Response<()>>>>,
    is_head: bool,
    tunnel: Option<WayOut>,
) {
    let response = poll_fn(|cx| {
        let handled = handling.as_mut().poll(cx);
        for response in interim.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A stream that cannot be written any more shows it below.
            let _ = respond.send_informational(response);
        }
        match handled {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            // A downstream that has reset the stream wants no response, and dropping the handler ends the request.
            Poll::Pending => respond.poll_reset(cx).map(|_| None),
        }
    });
    let Some(response) = response.await else { return };
    drop(handling);
    let (mut parts, mut body) = response.into_parts();
    index_no_unique_values(&mut parts.headers);
    parts.headers.entry(DATE).or_insert_with(|| with_now(HeaderValue::clone));
    let switching = tunnel.filter(|_| parts.status.is_success());
    if switching.is_none()
        && !body.is_end_stream()
        && let Some(length) = body.size_hint().exact()
        && !parts.headers.contains_key(CONTENT_LENGTH)
    {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let bodiless = switching.is_none() && (is_head || body.is_end_stream());
    let sent = respond.send_response(Response::from_parts(parts, ()), bodiless);
    let stream = match sent {
        Ok(stream) => stream,
        Err(e) => {
            tracing::debug!("a response could not be sent by HTTP/2: {e}");
            return respond.send_reset(Reason::INTERNAL_ERROR);
        }
    };
    if let Some((upgrade, received)) = switching {
        // The upgrade's task may have given up meanwhile.
        let _ = upgrade.send(Box::new(Tunnel::new(stream, received)));
    } else if bodiless {
        body.complete();
    } else {
        let mut outgoing = Outgoing::new(body, stream);
        match poll_fn(|cx| outgoing.poll_send(cx)).await {
            Ok(()) => {}
            Err(SendError::Stream(e)) => tracing::debug!("a response was not taken to its end: {e}"),
            Err(SendError::Body(e)) => {
                tracing::debug!("{e}");
                outgoing.reset(Reason::INTERNAL_ERROR);
            }
        }
    }
}
