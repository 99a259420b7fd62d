//! The HTTP side of the API, one for all who serve it: connections, bodies, compression.
//!
//! Served by hyper directly: clients send bodies without or with a wrong content type, which extractors refuse.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::answer::{self, Answered};
use crate::path;
use crate::query::Query;
use crate::refused::Refused;

/// Largest body of a request, bytes.
pub const MAX_BODY: usize = 512 << 10;
/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 1024;
/// Connections of one address (of IPv6 the network) where anybody may connect; more are closed: one must not take all.
const MAX_OF_ADDRESS: usize = 256;
/// Longest silence of a connection that is kept.
const IDLE: Duration = Duration::from_secs(900);
/// The same where anybody may connect.
const REMOTE_IDLE: Duration = Duration::from_secs(90);
/// Shorter answers are not worth compressing, bytes.
const MIN_COMPRESSED: usize = 1024;
/// Longer ones take long enough to be compressed on another thread, bytes.
const MAX_HERE: usize = 64 << 10;

/// A peer that has not finished its handshake by then is let go.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest time that a body may take to come.
const BODY: Duration = Duration::from_secs(60);

/// Who answers requests.
pub trait Answers: Send + Sync + 'static {
    /// Turns away a request before its body is read.
    fn turned_away(&self, _head: &request::Parts) -> Option<Answered> {
        None
    }

    /// Ends when another process is to answer: connections are closed then after the request that they have, and no new ones
    /// are accepted.
    fn ending(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Answers one.
    fn answer(&self, from: SocketAddr, request: Request<Bytes>) -> impl Future<Output = Answered> + Send;
}

/// Serves for ever, plaintext.
pub async fn serve(answers: Arc<impl Answers>, listener: TcpListener) {
    serve_by(answers, listener, None).await;
}

/// Serves for ever, TLS.
pub async fn serve_tls(answers: Arc<impl Answers>, listener: TcpListener, tls: TlsAcceptor) {
    serve_by(answers, listener, Some(tls)).await;
}

async fn serve_by(answers: Arc<impl Answers>, listener: TcpListener, tls: Option<TlsAcceptor>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let callers = Arc::new(Callers::default());
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = answers.ending() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let entered = if tls.is_some() { callers.enter(from.ip()) } else { None };
        if tls.is_some() && entered.is_none() {
            tracing::debug!(%from, "a connection too many of one address");
            continue;
        }
        let (answers, tls) = (answers.clone(), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => connection(answers, from, stream, IDLE).await,
                Some(tls) => {
                    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                        connection(answers, from, stream, REMOTE_IDLE).await;
                    }
                }
            }
            drop((permit, entered));
        });
    }
}

/// Connections by the address that they come from.
#[derive(Default)]
struct Callers(Mutex<HashMap<IpAddr, usize>>);

/// Counts while it is held.
struct Entered(Arc<Callers>, IpAddr);

impl Callers {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Entered> {
        let from = match from.to_canonical() {
            // One host has as many addresses of its network as it likes.
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
            v4 @ IpAddr::V4(_) => v4,
        };
        let mut counts = self.lock();
        let count = counts.entry(from).or_default();
        if *count >= MAX_OF_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Entered(self.clone(), from))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut counts = self.0.lock();
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

async fn connection(
    answers: Arc<impl Answers>,
    from: SocketAddr,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    idle: Duration,
) {
    let ending = answers.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let answers = answers.clone();
        async move { Ok::<_, Infallible>(handle(&*answers, from, request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        // A client that breaks off is its own affair.
        _ = serving.as_mut() => return,
        () = ending.ending() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

/// Answers one request.
pub async fn handle<B>(answers: &impl Answers, from: SocketAddr, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let (path, headers) = (head.uri.path().to_owned(), head.headers.clone());
    let away = path::turned_away(&path, head.uri.query()).or_else(|| answers.turned_away(&head));
    if let Some(mut away) = away {
        // What it sends is not read, and it holds no connection.
        answer::set(&mut away, "connection", "close");
        return path::in_format(&path, &headers, away).map(Full::new);
    }
    let gzip = takes_gzip(&head.headers);
    let answered = match collect(body).await {
        Ok(body) => answers.answer(from, Request::from_parts(head, body)).await,
        Err(refused) => {
            let query = Query::parse(head.uri.query().unwrap_or_default());
            answer::refusal(&refused, head.method == Method::GET, &query)
        }
    };
    let answered = path::in_format(&path, &headers, answered);
    let answered = if gzip { compressed(answered).await } else { answered };
    answered.map(Full::new)
}

async fn collect<B>(body: B) -> Result<Bytes, Refused>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Ok(collected) = tokio::time::timeout(BODY, Limited::new(body, MAX_BODY).collect()).await else {
        let text = format!("the request's body did not come within {} seconds", BODY.as_secs());
        return Err(Refused::new(StatusCode::REQUEST_TIMEOUT, text));
    };
    match collected {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => {
            let text = format!("Request body too large, max size: {MAX_BODY} bytes");
            Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Err(e) => Err(Refused::bad(format!("the request's body broke off: {e}"))),
    }
}

/// Whether a client takes gzip (RFC 9110, 12.5.3); one that only says "anything" may not mean it.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("q="));
        let refused = weight.is_some_and(|weight| weight.trim().parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

async fn compressed(answered: Answered) -> Answered {
    let (mut head, body) = answered.into_parts();
    if body.len() <= MIN_COMPRESSED || head.headers.contains_key(header::CONTENT_ENCODING) {
        return Response::from_parts(head, body);
    }
    let plain = body.clone();
    let packed = if body.len() <= MAX_HERE {
        gzip(&body)
    } else {
        tokio::task::spawn_blocking(move || gzip(&body)).await.unwrap_or_else(|e| Err(std::io::Error::other(e)))
    };
    // It cannot fail; if it did, the answer would still be one.
    let Ok(packed) = packed else { return Response::from_parts(head, plain) };
    head.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    head.headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    Response::from_parts(head, packed.into())
}

fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Answers with as many bytes as the path says.
    struct Zeros;

    impl Answers for Zeros {
        async fn answer(&self, _: SocketAddr, request: Request<Bytes>) -> Answered {
            Response::new(vec![b'0'; request.uri().path()[1..].parse().unwrap()].into())
        }
    }

    #[tokio::test]
    async fn long_answers_are_compressed_for_those_who_ask() {
        for (accept, length, packed) in [
            ("gzip", 1024, false),
            ("gzip", 1025, true),
            ("deflate, GZIP;q=0.5", 100_000, true),
            ("gzip;q=0", 100_000, false),
            ("*", 100_000, false),
            ("", 100_000, false),
        ] {
            let request = Request::get(format!("/{length}")).header("accept-encoding", accept);
            let request = request.body(Full::<Bytes>::default()).unwrap();
            let answered = handle(&Zeros, ([127, 0, 0, 1], 1).into(), request).await;
            assert_eq!(answered.headers().contains_key("content-encoding"), packed, "{accept} {length}");
            let body = answered.into_body().collect().await.unwrap().to_bytes();
            let mut text = String::new();
            if packed {
                assert!(body.len() < length);
                flate2::read::GzDecoder::new(&body[..]).read_to_string(&mut text).unwrap();
            } else {
                text = String::from_utf8(body.to_vec()).unwrap();
            }
            assert_eq!(text, "0".repeat(length));
        }
    }

    #[test]
    fn one_address_does_not_take_all_connections() {
        let callers = Arc::new(Callers::default());
        let enter = |ip: &str| callers.enter(ip.parse().unwrap());
        let mut entered: Vec<_> = (0..MAX_OF_ADDRESS).map(|_| enter("10.0.0.7").unwrap()).collect();
        assert!(enter("10.0.0.7").is_none() && enter("::ffff:10.0.0.7").is_none());
        assert!(enter("10.0.0.8").is_some());
        entered.pop();
        assert!(enter("10.0.0.7").is_some());
        entered.clear();
        let one_network: Vec<_> = (0..MAX_OF_ADDRESS).map(|n| enter(&format!("fd00::{n:x}")).unwrap()).collect();
        assert!(enter("fd00::ffff:1").is_none() && enter("fd00:0:0:1::1").is_some());
        drop(one_network);
        assert!(callers.lock().is_empty());
    }
}
