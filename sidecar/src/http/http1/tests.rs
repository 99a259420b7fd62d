mod relayed;

use super::*;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use weft_core::http1::Limits;

use crate::http::body::{Replay, RequestBody, ResponseBody};
use crate::http::incoming::Incoming;
use crate::http::local_reply;
use crate::net::transport::Transport;

/// A service with this handler, which refuses an unreadable head with the rule that it breaks.
fn service<F>(answer: F) -> Service<F, fn(Unread) -> Response<ResponseBody>> {
    let refuse = |unread: Unread| {
        let reason = weft_core::reply::Reason::from(&unread.error);
        local_reply(&reason, "", false).1
    };
    Service { limits: Limits::OUTSIDE, answer, refuse }
}

/// A server that echoes bodies, in the other end of the stream.
fn echo() -> (DuplexStream, tokio::task::JoinHandle<Result<(), ServeError>>) {
    let (client, server) = tokio::io::duplex(1 << 20);
    let handle = |request: Request<Incoming>| async {
        let (parts, body) = request.into_parts();
        let mut response = match parts.uri.path() {
            "/never" => std::future::pending().await,
            "/early" => Response::new(ResponseBody::full("early".into())),
            _ if body.is_end_stream() => Response::new(ResponseBody::full("none".into())),
            _ => Response::new(ResponseBody::upstream(body, None, None)),
        };
        if let Some(status) = parts.headers.get("status") {
            *response.status_mut() = StatusCode::from_bytes(status.as_bytes()).unwrap();
        }
        response.headers_mut().insert("date", HeaderValue::from_static("today"));
        response
    };
    (client, tokio::spawn(serve(server, service(handle))))
}

/// The server's response to `text`, until it closes or pauses.
async fn answer(text: &str) -> String {
    let (mut client, _server) = echo();
    client.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_secs(5), client.read_buf(&mut answer)).await {}
    String::from_utf8(answer).unwrap()
}

#[tokio::test(start_paused = true)]
async fn pipelined_requests_are_answered_in_order() {
    let text = "GET /a HTTP/1.1\r\nhost: a\r\n\r\nPOST /b HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc\
                POST /c HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nde\r\n0\r\nSum: 1\r\n\r\n";
    assert_eq!(
        answer(text).await,
        "HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 4\r\n\r\nnone\
         HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 3\r\n\r\nabc\
         HTTP/1.1 200 OK\r\ndate: today\r\ntransfer-encoding: chunked\r\n\r\n2\r\nde\r\n0\r\nsum: 1\r\n\r\n"
    );
}

#[tokio::test(start_paused = true)]
async fn http_1_0_clients_get_responses_without_chunks() {
    let chunks = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi";
    assert!(answer(chunks).await.contains("\r\nconnection: close\r\n"));
    assert!(answer("GET / HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 200 OK\r\n"));
    let kept = answer("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n").await;
    assert_eq!((kept.matches("connection: keep-alive").count(), kept.matches("HTTP/1.0 200").count()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn responses_without_a_body_have_none() {
    let head = answer("HEAD / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!((head.matches("content-length: 4").count(), head.matches("none").count()), (2, 1));
    let empty = answer("GET / HTTP/1.1\r\nhost: a\r\nstatus: 204\r\n\r\n").await;
    assert!(empty.starts_with("HTTP/1.1 204 No Content\r\n") && empty.ends_with("\r\n\r\n"), "{empty}");
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_head_gets_a_local_reply() {
    let answered = answer("GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n").await;
    assert!(answered.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answered}");
    assert!(answered.contains("x-weft-reason: bad_request: more than one content-length\r\n"), "{answered}");
    assert!(answered.contains("connection: close\r\n"), "{answered}");
    let large = format!("GET / HTTP/1.1\r\nh: {}\r\n\r\n", "x".repeat(70_000));
    assert!(answer(&large).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn an_expecting_client_gets_100_continue() {
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let handle = |request: Request<Incoming>| async {
        let body = request.into_body().collect().await.unwrap();
        Response::new(ResponseBody::full(body.to_bytes()))
    };
    tokio::spawn(serve(server, service(handle)));
    let head = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut got = vec![0; 25];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&got), "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"hi").await.unwrap();
    got.clear();
    while !got.ends_with(b"hi") {
        assert!(client.read_buf(&mut got).await.unwrap() > 0);
    }
    assert!(got.starts_with(b"HTTP/1.1 200 OK\r\n"));
    // A client that has sent its body already gets no "100 Continue".
    client.write_all(format!("{head}hi").as_bytes()).await.unwrap();
    got.clear();
    while !got.ends_with(b"hi") {
        assert!(client.read_buf(&mut got).await.unwrap() > 0);
    }
    assert!(got.starts_with(b"HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn a_closed_downstream_ends_its_request() {
    let (mut client, server) = echo();
    client.write_all(b"GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    tokio::task::yield_now().await;
    drop(client);
    assert!(matches!(server.await.unwrap(), Err(ServeError::Gone)));
}

/// A connection that closes after its response without saying so loses the request that the client sends next.
#[tokio::test(start_paused = true)]
async fn the_rest_of_a_request_is_read_after_an_early_response_or_the_close_is_announced() {
    let posts = |framing: &str, rest: &[u8], next: &str| {
        let head = format!("POST /early HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n");
        ([head.as_bytes(), b"ab"].concat(), [rest, next.as_bytes()].concat())
    };
    let get = "GET /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    for (framing, rest, kept) in [
        ("content-length: 5", &b"cde"[..], true),
        ("transfer-encoding: chunked", b"", true),
        ("content-length: 300000", b"", false),
        ("connection: close\r\ncontent-length: 5", b"cde", false),
        ("expect: 100-continue\r\ncontent-length: 5", b"cde", true),
    ] {
        let (mut client, server) = echo();
        let (mut begin, mut rest) = posts(framing, rest, get);
        if framing.contains("chunked") {
            begin.truncate(begin.len() - 2);
            begin.extend_from_slice(b"2\r\nab\r\n");
            rest = [b"1\r\nc\r\n0\r\n\r\n", &rest[..]].concat();
        }
        client.write_all(&begin).await.unwrap();
        let mut got = String::new();
        while !got.ends_with("early") {
            let mut byte = [0];
            client.read_exact(&mut byte).await.unwrap();
            got.push(char::from(byte[0]));
        }
        assert_eq!(got.contains("connection: close\r\n"), !kept, "{framing}: {got}");
        client.write_all(&rest).await.unwrap();
        got.clear();
        client.read_to_string(&mut got).await.unwrap();
        assert_eq!(got.starts_with("HTTP/1.1 200 OK\r\n"), kept, "{framing}: {got}");
        drop(client);
        assert!(server.await.unwrap().is_ok());
    }
}

/// The client may or may not send the body then: later bytes could not be divided into requests.
#[tokio::test(start_paused = true)]
async fn a_response_instead_of_100_continue_announces_the_close() {
    let (mut client, _server) = echo();
    let head = "POST /early HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut got = String::new();
    client.read_to_string(&mut got).await.unwrap();
    assert!(got.contains("connection: close\r\n") && !got.contains("100 Continue"), "{got}");
}

#[tokio::test(start_paused = true)]
async fn lingering_close_is_bounded() {
    for framing in ["transfer-encoding: chunked\r\n\r\n7fffffff\r\n", "content-length: 100000\r\n\r\n"] {
        let (mut client, server) = echo();
        let head = format!("POST /early HTTP/1.1\r\nhost: a\r\n{framing}");
        client.write_all(head.as_bytes()).await.unwrap();
        let start = tokio::time::Instant::now();
        // More than is read for nothing, or a byte now and then.
        let piece = if framing.contains("chunked") { vec![b'x'; 1000] } else { vec![b'x'] };
        while client.write_all(&piece).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(start.elapsed() < Duration::from_secs(95), "{:?}", start.elapsed());
        assert!(server.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn a_response_body_that_breaks_off_closes_the_downstream() {
    let (mut client, server) = echo();
    client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcX").await.unwrap();
    let mut got = Vec::new();
    while client.read_buf(&mut got).await.unwrap() > 0 {}
    // The part that came is passed on, and no final chunk follows.
    assert!(got.ends_with(b"\r\n\r\n3\r\nabc\r\n"), "{}", String::from_utf8_lossy(&got));
    assert!(matches!(server.await.unwrap(), Err(ServeError::Response(_))));
}

/// An endpoint's answer that needs the whole body is not waited for when that never comes.
#[tokio::test]
async fn half_a_request_is_dropped_or_refused() {
    for (rest, is_refused) in [("", false), ("zz\r\n", true)] {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let handle = |request: Request<Incoming>| async {
            // As an attempt that failed does: it makes an answer.
            drop(request.into_body().collect().await);
            let mut response = Response::new(ResponseBody::full("the rule".into()));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        };
        let serving = tokio::spawn(serve(server, service(handle)));
        let text = format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n{rest}");
        client.write_all(text.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = String::new();
        client.read_to_string(&mut got).await.unwrap();
        assert_eq!((got.starts_with("HTTP/1.1 400"), got.is_empty()), (is_refused, !is_refused), "{got}");
        assert_eq!(serving.await.unwrap().is_ok(), is_refused);
    }
}

/// An endpoint under the test's control, and a connection to it.
async fn endpoint() -> (Client, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (Client::new(Transport::Plain(stream.into()), Limits::OUTSIDE), listener.accept().await.unwrap().0)
}

fn get() -> http::request::Parts {
    Request::get("/x").header("host", "a").body(()).unwrap().into_parts().0
}

async fn read_head(peer: &mut TcpStream) -> String {
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\n") {
        // Not a byte further: a body may follow.
        got.push(peer.read_u8().await.unwrap());
    }
    String::from_utf8(got).unwrap()
}

async fn ask(client: &mut Client) -> Result<Response<Incoming>, ExchangeError> {
    client.send(&get(), &Bytes::new(), RequestBody::Empty, None).await
}

#[tokio::test]
async fn an_upstream_connection_serves_requests_in_turn() {
    let (mut client, mut peer) = endpoint().await;
    for i in 0..3 {
        assert!(client.is_open());
        let served = async {
            assert_eq!(read_head(&mut peer).await, "GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
            let text = format!("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{i}");
            peer.write_all(text.as_bytes()).await.unwrap();
        };
        let (answer, ()) = tokio::join!(ask(&mut client), served);
        assert!(!client.is_reusable());
        assert_eq!(answer.unwrap().collect().await.unwrap().to_bytes(), format!("{i}"));
        assert!(client.is_reusable());
    }
    drop(peer);
    while client.is_open() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_unexpected_response_ends_an_idle_connection() {
    let (mut client, mut peer) = endpoint().await;
    peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n").await.unwrap();
    ask(&mut client).await.unwrap();
    assert!(!client.is_reusable(), "the next request would get an answer that is not its own");
    let (client, mut peer) = endpoint().await;
    peer.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
    while client.is_open() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn failures_report_whether_anything_was_sent() {
    let (mut client, mut peer) = endpoint().await;
    let (answer, ()) = tokio::join!(ask(&mut client), async {
        read_head(&mut peer).await;
        peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").await.unwrap();
        drop(peer);
    });
    let error = answer.err().unwrap();
    assert!(!error.unsent && matches!(error.reason, Failure::Read(ReadError::Ended)), "{error:?}");
    let (mut client, mut peer) = endpoint().await;
    peer.write_all(b"SSH-2.0-OpenSSH\r\n\r\n").await.unwrap();
    let error = ask(&mut client).await.err().unwrap();
    assert!(matches!(error.reason, Failure::Read(ReadError::Head(_))), "{error:?}");
}

/// A request body that is fed by hand.
fn fed() -> (tokio::io::DuplexStream, impl Future<Output = (http::request::Parts, Incoming)>) {
    let (client, server) = tokio::io::duplex(1 << 16);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let handle = move |request: Request<Incoming>| {
        let sender = sender.lock().unwrap().take();
        async move {
            drop(sender.unwrap().send(request.into_parts()));
            std::future::pending().await
        }
    };
    tokio::spawn(serve(server, service(handle)));
    (client, async { receiver.await.unwrap() })
}

/// The endpoint answers before it has read the request: both go on, and the connection is used again only after both.
#[tokio::test]
async fn an_early_response_does_not_stop_the_request() {
    let (mut client, mut peer) = endpoint().await;
    let (mut feed, received) = fed();
    feed.write_all(b"POST /x HTTP/1.1\r\nHost: a\r\ncontent-length: 6\r\n\r\nabc").await.unwrap();
    let (parts, body) = received.await;
    let body = Replay::new(body);
    let origin = Bytes::new();
    let sending = client.send(&parts, &origin, body.attempt().unwrap(), None);
    let (answer, ()) = tokio::join!(sending, async {
        assert!(read_head(&mut peer).await.contains("content-length: 6\r\n"));
        peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    });
    assert_eq!(answer.unwrap().collect().await.unwrap().to_bytes(), "ok");
    assert!(!client.is_reusable(), "half a request was sent");
    feed.write_all(b"def").await.unwrap();
    let mut got = vec![0; 6];
    peer.read_exact(&mut got).await.unwrap();
    assert_eq!(got, b"abcdef");
    while !client.is_reusable() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn responses_with_unknown_codings_or_upgrades_are_errors_that_name_the_rule() {
    for (head, rule) in [
        ("200 OK\r\nTransfer-Encoding: gzip, chunked", "transfer-encoding \"gzip, chunked\""),
        (
            "200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "transfer-encoding \"chunked, chunked\"",
        ),
        ("200 OK\r\nContent-Length: 1\r\nContent-Length: 2", "more than one content-length"),
        ("200 OK\r\nbad name: x", "invalid header name"),
        ("101 Switching Protocols\r\nUpgrade: x", "101 Switching Protocols to a request without an upgrade"),
    ] {
        let (mut client, mut peer) = endpoint().await;
        peer.write_all(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes()).await.unwrap();
        assert_eq!(ask(&mut client).await.err().unwrap().to_string(), rule);
    }
}

#[tokio::test]
async fn a_cancelled_request_closes_its_connection() {
    let (mut client, mut peer) = endpoint().await;
    let given_up = tokio::time::timeout(Duration::from_millis(20), ask(&mut client)).await;
    assert!(given_up.is_err());
    read_head(&mut peer).await;
    drop(client);
    assert_eq!(peer.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn large_bodies_and_trailers_pass_whole() {
    let (mut client, mut peer) = endpoint().await;
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let served = async {
        read_head(&mut peer).await;
        peer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        for piece in data.chunks(100_000) {
            peer.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await.unwrap();
            peer.write_all(piece).await.unwrap();
            peer.write_all(b"\r\n").await.unwrap();
        }
        peer.write_all(b"0\r\nSum: 9\r\n\r\n").await.unwrap();
    };
    let read = async {
        let body = ask(&mut client).await.unwrap().into_body();
        // Through a server, to a client: the parsed message is written again.
        let (mut near, far) = tokio::io::duplex(100_000);
        let body = std::sync::Mutex::new(Some(body));
        let handle = move |_| {
            let body = body.lock().unwrap().take().unwrap();
            async { Response::new(ResponseBody::upstream(body, None, None)) }
        };
        let server = tokio::spawn(serve(far, service(handle)));
        near.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        server.await.unwrap().unwrap();
        got
    };
    let (got, ()) = tokio::join!(read, served);
    let head = got.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let (mut body, mut input) =
        (weft_core::http1::Body::new(weft_core::http1::Framing::Chunked), Bytes::from(got).slice(head..));
    let (mut decoded, mut trailers) = (Vec::new(), HeaderMap::new());
    loop {
        match body.decode(&mut input).unwrap() {
            weft_core::http1::Decoded::Data(more) => decoded.extend_from_slice(&more),
            weft_core::http1::Decoded::Trailers(found) => trailers = found,
            _ => break,
        }
    }
    assert!(decoded == data);
    assert_eq!(trailers["sum"], "9");
}

/// An idle connection costs its socket and this. A request's state is on the heap while it lasts.
#[test]
fn an_idle_connection_is_small() {
    fn size<F: Future>(_: &F) -> usize {
        size_of::<F>()
    }
    let handle = |_: Request<Incoming>| async {
        // As large as a request's path through the proxy may be.
        let space = [0u8; 10_000];
        tokio::task::yield_now().await;
        Response::new(ResponseBody::full(Bytes::copy_from_slice(&space)))
    };
    let (_, server) = tokio::io::duplex(1);
    let size = size(&serve(server, service(handle)));
    assert!(size <= 768, "{size} bytes");
}
