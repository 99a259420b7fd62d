//! A real peer at each end of a proxy that is made of both sides here.

use std::time::Duration;

use bytes::Bytes;
use futures::future::poll_fn;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use weft_core::policy::Http2Keepalive;

use super::*;
use crate::http::body::{Replay, RequestBody, ResponseBody};
use crate::http::incoming::Incoming;
use crate::net::transport::Transport;

type Sender = h2::client::SendRequest<Bytes>;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// An application that reports the end of each request to `heard`.
async fn application(socket: TcpStream, heard: mpsc::UnboundedSender<String>) {
    let mut connection = h2::server::handshake(socket).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let heard = heard.clone();
        tokio::spawn(async move {
            let (parts, mut body) = request.into_parts();
            let head = |status: u16| Response::builder().status(status).body(()).unwrap();
            match parts.uri.path() {
                "/early" => {
                    let mut stream = respond.send_response(head(413), false).unwrap();
                    stream.send_data("enough".into(), true).unwrap();
                    heard.send(format!("{:?}", poll_fn(|cx| stream.poll_reset(cx)).await)).unwrap();
                }
                // The rest of the request is not read: NO_ERROR follows the whole response (RFC 9113, 8.1).
                "/enough" => {
                    let mut stream = respond.send_response(head(413), false).unwrap();
                    stream.send_data("enough".into(), true).unwrap();
                }
                "/cut" => {
                    let head = Response::builder().header("content-length", "10").body(()).unwrap();
                    let mut stream = respond.send_response(head, false).unwrap();
                    stream.send_data("half".into(), false).unwrap();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    stream.send_reset(Reason::NO_ERROR);
                }
                "/hints" => {
                    let hints = Response::builder().status(103).header("link", "</a>").body(()).unwrap();
                    respond.send_informational(hints).unwrap();
                    respond.send_response(head(204), true).unwrap();
                }
                "/refuses" => drop(respond.send_response(head(417), true)),
                "/wants" => {
                    respond.send_informational(head(100)).unwrap();
                    let data = body.data().await.unwrap().unwrap();
                    heard.send(format!("{data:?}")).unwrap();
                    respond.send_response(head(204), true).unwrap();
                }
                "/never" => {
                    let reset = poll_fn(|cx| respond.poll_reset(cx)).await;
                    heard.send(format!("{reset:?}")).unwrap();
                }
                "/refused" => respond.send_reset(Reason::REFUSED_STREAM),
                "/half" => {
                    let mut stream = respond.send_response(head(200), false).unwrap();
                    stream.send_data("half".into(), false).unwrap();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    stream.send_reset(Reason::INTERNAL_ERROR);
                }
                _ => {
                    heard.send(format!("{} {:?}", parts.method, parts.headers.get("content-length"))).unwrap();
                    let mut stream = respond.send_response(head(200), false).unwrap();
                    while let Some(data) = body.data().await {
                        let Ok(data) = data else {
                            heard.send("broken".into()).unwrap();
                            return;
                        };
                        body.flow_control().release_capacity(data.len()).unwrap();
                        stream.send_data(data, false).unwrap();
                    }
                    let trailers = body.trailers().await.unwrap().unwrap_or_default();
                    stream.send_trailers(trailers).unwrap();
                }
            }
        });
    }
}

/// The proxy's handling of a request.
async fn forward(mut endpoint: Client, request: Request<Incoming>) -> Response<ResponseBody> {
    let (parts, mut incoming) = request.into_parts();
    if let Some(upgrade) = incoming.take_upgrade() {
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(upgrade.stream().await.unwrap());
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            write.shutdown().await.unwrap();
        });
        return Response::new(ResponseBody::empty());
    }
    let interim = incoming.take_interim();
    let body = Replay::new(incoming);
    endpoint.ready().await.unwrap();
    match endpoint.send(&parts, body.attempt().unwrap_or(RequestBody::Empty), interim.as_deref()).await {
        Ok(response) => response.map(|incoming| ResponseBody::upstream(incoming, None, None)),
        Err(e) => {
            let mut response = Response::new(ResponseBody::full(e.to_string().into()));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    }
}

/// A client, a proxy and an application, and the application's reports.
async fn proxied(drain: impl Future<Output = ()> + Send + 'static) -> (Sender, mpsc::UnboundedReceiver<String>) {
    let (to_application, from_proxy) = pair().await;
    let (say, heard) = mpsc::unbounded_channel();
    tokio::spawn(application(from_proxy, say));
    let (endpoint, driver) = open(Transport::Plain(to_application.into()), None).await.unwrap();
    tokio::spawn(driver);
    let (to_proxy, from_client) = pair().await;
    tokio::spawn(serve(from_client, drain, move |request| forward(endpoint.clone(), request)));
    let (sender, connection) = h2::client::handshake(to_proxy).await.unwrap();
    tokio::spawn(connection);
    (sender, heard)
}

fn request(method: Method, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://a{path}")).body(()).unwrap()
}

async fn post(sender: &Sender, path: &str) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
    sender.clone().ready().await.unwrap().send_request(request(Method::POST, path), false).unwrap()
}

async fn all(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, body.trailers().await?))
}

/// Sends as the windows allow.
async fn send_all(stream: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
        stream.send_data(data.split_to(room.min(data.len())), false).unwrap();
    }
}

#[tokio::test]
async fn a_reset_with_no_error_after_a_whole_response_is_its_end() {
    let (sender, _heard) = proxied(std::future::pending()).await;
    let (answer, mut upload) = post(&sender, "/enough").await;
    upload.send_data(vec![b'x'; 1000].into(), false).unwrap();
    let response = answer.await.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(all(response.into_body()).await.unwrap().0, b"enough");
    // The downstream gets the same reset: the rest is not wanted.
    assert_eq!(poll_fn(|cx| upload.poll_reset(cx)).await.unwrap(), Reason::NO_ERROR);
    // A response that was cut off is an error.
    let (answer, _upload) = post(&sender, "/cut").await;
    assert!(all(answer.await.unwrap().into_body()).await.is_err());
}

#[tokio::test]
async fn interim_responses_are_passed_on_over_http2() {
    let (sender, _heard) = proxied(std::future::pending()).await;
    let (mut answer, _) =
        sender.clone().ready().await.unwrap().send_request(request(Method::GET, "/hints"), true).unwrap();
    let hints = poll_fn(|cx| answer.poll_informational(cx)).await.unwrap().unwrap();
    assert_eq!((hints.status().as_u16(), &hints.headers()["link"]), (103, &http::HeaderValue::from_static("</a>")));
    assert_eq!(answer.await.unwrap().status(), 204);
}

#[tokio::test]
async fn the_endpoint_decides_over_http2_whether_the_body_of_an_expecting_request_is_sent() {
    let (sender, mut heard) = proxied(std::future::pending()).await;
    let expecting = |path: &str| {
        let mut request = request(Method::POST, path);
        request.headers_mut().insert("expect", http::HeaderValue::from_static("100-continue"));
        request
    };
    let (answer, _upload) = sender.clone().ready().await.unwrap().send_request(expecting("/refuses"), false).unwrap();
    assert_eq!(answer.await.unwrap().status(), 417);
    let (answer, mut upload) = sender.clone().ready().await.unwrap().send_request(expecting("/wants"), false).unwrap();
    upload.send_data("body".into(), true).unwrap();
    assert_eq!(heard.recv().await.unwrap(), "b\"body\"");
    assert_eq!(answer.await.unwrap().status(), 204);
}

#[tokio::test]
async fn bodies_and_trailers_pass_both_ways() {
    let (sender, mut heard) = proxied(std::future::pending()).await;
    let (answer, mut stream) = post(&sender, "/echo").await;
    let data: Bytes = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let reading = tokio::spawn(async move {
        let answer = answer.await.unwrap();
        assert!(answer.headers().contains_key("date"));
        all(answer.into_body()).await.unwrap()
    });
    send_all(&mut stream, data.clone()).await;
    let trailers: HeaderMap = [("sum".parse().unwrap(), "1".parse().unwrap())].into_iter().collect();
    stream.send_trailers(trailers.clone()).unwrap();
    assert!(reading.await.unwrap() == (data.to_vec(), Some(trailers)));
    assert_eq!(heard.recv().await.unwrap(), "POST None");
    // None at all.
    let sent = sender.clone().ready().await.unwrap().send_request(request(Method::GET, "/echo"), true).unwrap();
    assert!(all(sent.0.await.unwrap().into_body()).await.unwrap().0.is_empty());
    assert_eq!(heard.recv().await.unwrap(), "GET None");
}

#[tokio::test]
async fn a_response_may_come_before_the_request_was_sent() {
    let (sender, mut heard) = proxied(std::future::pending()).await;
    let (answer, mut stream) = post(&sender, "/early").await;
    stream.send_data(vec![0; 10_000].into(), false).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 413);
    assert_eq!(all(answer.into_body()).await.unwrap().0, b"enough");
    // The rest is not sent for ever.
    assert!(heard.recv().await.unwrap().contains("CANCEL"));
}

#[tokio::test]
async fn a_reset_of_the_downstream_resets_the_upstream() {
    let (sender, mut heard) = proxied(std::future::pending()).await;
    let (answer, mut stream) = post(&sender, "/never").await;
    stream.send_data("begun".into(), false).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    stream.send_reset(Reason::CANCEL);
    drop(answer);
    assert!(heard.recv().await.unwrap().contains("CANCEL"));
    // In the middle of the answer, too; half a request is not the whole one.
    let (answer, mut stream) = post(&sender, "/echo").await;
    stream.send_data("begun".into(), false).unwrap();
    answer.await.unwrap();
    stream.send_reset(Reason::CANCEL);
    assert_eq!(heard.recv().await.unwrap(), "POST None");
    assert_eq!(heard.recv().await.unwrap(), "broken");
}

#[tokio::test]
async fn an_invalid_request_is_not_reported_as_unsent() {
    // It would be tried for ever.
    let (to_application, from_proxy) = pair().await;
    tokio::spawn(application(from_proxy, mpsc::unbounded_channel().0));
    let (mut endpoint, driver) = open(Transport::Plain(to_application.into()), None).await.unwrap();
    tokio::spawn(driver);
    let refused = Request::builder().uri("http://a/").header("connection", "close").body(()).unwrap();
    let Err(error) = endpoint.send(&refused.into_parts().0, RequestBody::Empty, None).await else {
        panic!("it was sent")
    };
    assert!(!error.unsent && !endpoint.is_closed(), "{error}");
}

#[tokio::test]
async fn an_upstream_that_breaks_off_resets_the_downstream() {
    let (sender, _heard) = proxied(std::future::pending()).await;
    let (answer, _stream) = post(&sender, "/half").await;
    let error = all(answer.await.unwrap().into_body()).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    let (answer, _stream) = post(&sender, "/refused").await;
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    assert!(String::from_utf8(all(answer.into_body()).await.unwrap().0).unwrap().contains("refused"));
}

#[tokio::test]
async fn a_downstream_that_reads_nothing_stops_the_upstream() {
    let (sender, _heard) = proxied(std::future::pending()).await;
    let (answer, mut stream) = post(&sender, "/echo").await;
    let unread = answer.await.unwrap();
    let endless = async { send_all(&mut stream, vec![0; 100 << 20].into()).await };
    assert!(tokio::time::timeout(Duration::from_secs(1), endless).await.is_err(), "100 MiB are held somewhere");
    drop(unread);
    // Others go on.
    let (answer, mut stream) = post(&sender, "/echo").await;
    stream.send_data("more".into(), true).unwrap();
    assert_eq!(all(answer.await.unwrap().into_body()).await.unwrap().0, b"more");
}

#[tokio::test]
async fn a_tunnel_passes_bytes_both_ways() {
    let (sender, _heard) = proxied(std::future::pending()).await;
    let connect = Request::builder().method(Method::CONNECT).uri("a:80").body(()).unwrap();
    let (answer, mut stream) = sender.clone().ready().await.unwrap().send_request(connect, false).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    let data: Bytes = vec![7; 300_000].into();
    let reading = tokio::spawn(all(answer.into_body()));
    send_all(&mut stream, data.clone()).await;
    stream.send_data(Bytes::new(), true).unwrap();
    assert!(reading.await.unwrap().unwrap().0 == data);
}

#[tokio::test]
async fn a_drain_ends_the_connection_after_its_requests() {
    let (drain, drained) = tokio::sync::oneshot::channel::<()>();
    let (sender, _heard) = proxied(async { drained.await.unwrap() }).await;
    let (answer, mut stream) = post(&sender, "/echo").await;
    let answer = answer.await.unwrap();
    drain.send(()).unwrap();
    // Known once the client refuses to begin another.
    tokio::time::timeout(Duration::from_secs(5), async {
        while sender.clone().ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    stream.send_data("to the end".into(), true).unwrap();
    assert_eq!(all(answer.into_body()).await.unwrap().0, b"to the end");
}

/// `http2KeepAlive: {interval, timeout}`
#[tokio::test]
async fn a_peer_that_answers_no_ping_is_disconnected() {
    let (to_application, from_proxy) = pair().await;
    let (to_other, from_other) = pair().await;
    // One answers its pings, the other answered once.
    tokio::spawn(async move {
        let mut connection = h2::server::handshake(from_proxy).await.unwrap();
        while connection.accept().await.is_some() {}
    });
    let silent = tokio::spawn(async move { h2::server::handshake(from_other).await.unwrap() });
    let keepalive = Http2Keepalive { interval: Duration::from_millis(50), timeout: Duration::from_millis(200) };
    let (_kept, lives) = open(Transport::Plain(to_application.into()), Some(keepalive)).await.unwrap();
    let (_lost, dies) = open(Transport::Plain(to_other.into()), Some(keepalive)).await.unwrap();
    let lives = tokio::spawn(lives);
    let dead = tokio::time::timeout(Duration::from_secs(20), dies).await.unwrap();
    assert!(dead.is_err());
    // The other had as many pings.
    assert!(!lives.is_finished());
    drop(silent);
}
