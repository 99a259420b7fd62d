//! HTTP server of the APIs, shared by agents and control plane: connections, bodies, compression.
//!
//! Uses hyper directly, because clients send bodies without a content type or with a wrong one, which extractors
//! refuse.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
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
use tokio::net::{TcpListener, TcpStream};
use weft_registry_api::error::ApiError;
use weft_registry_api::path;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use crate::admission::Admission;
use crate::clients::{Clients, Kind};
use crate::counts;
use crate::idle::IdleLimit;

/// Maximum size of a request's body in bytes.
pub const MAX_BODY: usize = 512 << 10;
/// Idle timeout of a connection.
const IDLE: Duration = Duration::from_secs(900);
/// Idle timeout where remote clients may connect.
const REMOTE_IDLE: Duration = Duration::from_secs(90);
/// Minimum size of a compressed response in bytes; compressing smaller ones has no benefit.
const MIN_COMPRESSED: usize = 1024;
/// Size in bytes above which compression moves to another thread, because it takes long.
const MAX_HERE: usize = 64 << 10;

/// Time after which a client over its limit may retry, in seconds.
const RETRY_AFTER: &str = "1";
/// Timeout for a request's body.
const BODY: Duration = Duration::from_secs(60);

/// Handler of requests.
pub trait Answers: Send + Sync + 'static {
    /// Maximum size of a request's body in bytes.
    fn max_body(&self) -> usize {
        MAX_BODY
    }

    /// Refuses a request before its body is read.
    fn turned_away(&self, _head: &request::Parts) -> Option<Reply> {
        None
    }

    /// Completes when another process takes over: connections are closed after their current request, and no new ones
    /// are accepted.
    fn ending(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Responds to one request.
    fn answer(&self, from: SocketAddr, request: Request<Bytes>) -> impl Future<Output = Reply> + Send;
}

/// Limits of a listener.
pub struct Bounds {
    idle: Arc<IdleLimit>,
    clients: Arc<Clients>,
}

impl Bounds {
    /// `per_client`: maximum number of concurrent requests of one client, per [`Kind`].
    pub fn new(per_client: usize) -> Bounds {
        Bounds { idle: Arc::new(IdleLimit::of_traffic()), clients: Arc::new(Clients::new(per_client)) }
    }
}

/// Serves plaintext until another process takes over.
pub async fn serve(answers: Arc<impl Answers>, listener: TcpListener, bounds: Bounds) {
    let bounds = Arc::new(bounds);
    while let Some((stream, from)) = next(&*answers, &listener).await {
        tokio::spawn(connection(answers.clone(), from, stream, IDLE, bounds.clone()));
    }
}

/// Serves TLS until another process takes over.
pub async fn serve_tls(
    answers: Arc<impl Answers>,
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    bounds: Bounds,
) {
    let (bounds, admission) = (Arc::new(bounds), Arc::new(Admission::default()));
    while let Some((stream, from)) = next(&*answers, &listener).await {
        let (answers, admission, config, bounds) = (answers.clone(), admission.clone(), config.clone(), bounds.clone());
        tokio::spawn(async move {
            match admission.handshake(stream, from.ip(), config).await {
                Ok(stream) => connection(answers, from, stream, REMOTE_IDLE, bounds).await,
                Err(e) => tracing::debug!(%from, "TLS handshake failed: {e:#}"),
            }
        });
    }
}

/// The next connection; `None`: another process takes over.
async fn next(answers: &impl Answers, listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    tokio::select! {
        biased;
        () = answers.ending() => None,
        accepted = accept(listener) => Some(accepted),
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // Most likely out of file descriptors: waiting is the only remedy.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn connection(
    answers: Arc<impl Answers>,
    from: SocketAddr,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    idle: Duration,
    bounds: Arc<Bounds>,
) {
    let connection = Arc::new(bounds.idle.enter(from.ip()));
    let own = connection.clone();
    let ending = answers.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (answers, connection, clients) = (answers.clone(), own.clone(), bounds.clients.clone());
        async move {
            connection.work();
            let response = admitted(&*answers, from, request, &clients).await;
            connection.rest();
            Ok::<_, Infallible>(response)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        // An aborted connection is the client's decision and not logged.
        _ = serving.as_mut() => return,
        () = connection.dismissed() => {
            tracing::debug!(%from, "an idle connection is closed for a new one");
            return;
        }
        () = ending.ending() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

/// Responds to one request, unless its client is over its limit.
async fn admitted<B>(
    answers: &impl Answers,
    from: SocketAddr,
    request: Request<B>,
    clients: &Arc<Clients>,
) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let _admitted = match clients.admit(from.ip(), Kind::of(&head)) {
        Ok(admitted) => admitted,
        Err(error) => {
            counts::TOO_MANY_REQUESTS.increase();
            let query = Query::parse(head.uri.query().unwrap_or_default());
            let mut refusal = reply::error(&error, head.method == Method::GET, &query);
            reply::set(&mut refusal, "retry-after", RETRY_AFTER);
            // The body is not read, so the connection must be closed.
            reply::set(&mut refusal, "connection", "close");
            return path::in_format(head.uri.path(), &head.headers, refusal).map(Full::new);
        }
    };
    let mut response = handle(answers, from, Request::from_parts(head, body)).await;
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        counts::TOO_MANY_REQUESTS.increase();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    }
    response
}

/// Responds to one request.
pub async fn handle<B>(answers: &impl Answers, from: SocketAddr, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let (path, headers) = (head.uri.path().to_owned(), head.headers.clone());
    let refusal = path::redirect_or_refusal(&path, head.uri.query()).or_else(|| answers.turned_away(&head));
    if let Some(mut refusal) = refusal {
        // The body is not read, so the connection must be closed.
        reply::set(&mut refusal, "connection", "close");
        return path::in_format(&path, &headers, refusal).map(Full::new);
    }
    let gzip = takes_gzip(&head.headers);
    let reply = match collect(body, answers.max_body()).await {
        Ok(body) => answers.answer(from, Request::from_parts(head, body)).await,
        Err(error) => {
            let query = Query::parse(head.uri.query().unwrap_or_default());
            reply::error(&error, head.method == Method::GET, &query)
        }
    };
    let reply = path::in_format(&path, &headers, reply);
    let reply = if gzip { compressed(reply).await } else { reply };
    reply.map(Full::new)
}

async fn collect<B>(body: B, most: usize) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Ok(collected) = tokio::time::timeout(BODY, Limited::new(body, most).collect()).await else {
        let text = format!("the request's body did not arrive within {} seconds", BODY.as_secs());
        return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, text));
    };
    match collected {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => {
            let text = format!("Request body too large, max size: {most} bytes");
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Err(e) => Err(ApiError::bad_request(format!("cannot read the request's body: {e}"))),
    }
}

/// Whether a client accepts gzip explicitly (RFC 9110, 12.5.3); a wildcard alone is not sufficient.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("q="));
        let refused = weight.is_some_and(|weight| weight.trim().parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

async fn compressed(reply: Reply) -> Reply {
    let (mut head, body) = reply.into_parts();
    if body.len() <= MIN_COMPRESSED || head.headers.contains_key(header::CONTENT_ENCODING) {
        return Response::from_parts(head, body);
    }
    let plain = body.clone();
    let packed = if body.len() <= MAX_HERE {
        gzip(&body)
    } else {
        tokio::task::spawn_blocking(move || gzip(&body)).await.unwrap_or_else(|e| Err(std::io::Error::other(e)))
    };
    // Compression in memory does not fail; if it did, the plain response would still be valid.
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

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Responds with the number of bytes in the path.
    struct Zeros;

    impl Answers for Zeros {
        async fn answer(&self, _: SocketAddr, request: Request<Bytes>) -> Reply {
            Response::new(vec![b'0'; request.uri().path()[1..].parse().unwrap()].into())
        }
    }

    #[tokio::test]
    async fn long_responses_are_compressed_if_gzip_is_accepted() {
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
            let reply = handle(&Zeros, ([127, 0, 0, 1], 1).into(), request).await;
            assert_eq!(reply.headers().contains_key("content-encoding"), packed, "{accept} {length}");
            let body = reply.into_body().collect().await.unwrap().to_bytes();
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

    /// Never responds to blocking queries, but at once to all other requests.
    struct Waits;

    impl Answers for Waits {
        async fn answer(&self, _: SocketAddr, request: Request<Bytes>) -> Reply {
            match request.uri().query() {
                Some(_) => std::future::pending().await,
                None => Response::new("now".into()),
            }
        }
    }

    async fn ask(at: SocketAddr, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let request = format!("PUT {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
        let request = if path.contains('?') { request.replace("PUT", "GET") } else { request };
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn head(stream: &mut TcpStream) -> String {
        let mut bytes = [0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut bytes)).await;
        String::from_utf8_lossy(&bytes[..read.unwrap().unwrap()]).into_owned()
    }

    #[tokio::test]
    async fn blocking_queries_of_one_client_do_not_delay_other_requests() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(serve(Arc::new(Waits), listener, Bounds::new(10)));
        let mut silent = Vec::new();
        for _ in 0..2100 {
            silent.push(TcpStream::connect(at).await.unwrap());
        }
        let mut waiting = Vec::new();
        for _ in 0..10 {
            waiting.push(ask(at, "/v1/kv/a?index=1").await);
        }
        let refused = async {
            loop {
                // The earlier requests may not be counted yet.
                let mut one = ask(at, "/v1/kv/a?index=1").await;
                if let Ok(text) = tokio::time::timeout(Duration::from_millis(200), head(&mut one)).await {
                    return text;
                }
            }
        };
        let text = tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 429") && text.contains("connection: close"), "{text}");
        assert!(text.contains("retry-after: 1"), "{text}");
        let text = head(&mut ask(at, "/v1/agent/check/pass/a").await).await;
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("now"), "{text}");
    }
}
