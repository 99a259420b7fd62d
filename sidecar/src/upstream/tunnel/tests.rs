//! A proxy of each kind at the other end of a socket.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use weft_core::endpoint::Target;

use super::*;
use crate::net::connect::MARK_UPSTREAM;
use crate::tls::identity::Identity;
use crate::upstream::endpoints;

fn cluster(post: bool, protocol: Protocol) -> Cluster {
    let mut cluster = Cluster::original_destination("a", "a", Default::default());
    cluster.pool.connect_timeout = Duration::from_secs(1);
    cluster.protocol = protocol;
    cluster.tunnel = Some(Tunnel { post, authority: "db.example:5432".into() });
    cluster
}

async fn opened(cluster: &Cluster, to: SocketAddr) -> Result<Far, DialError> {
    let endpoint = endpoints::passthrough(to);
    assert!(matches!(endpoint.target, Target::Socket(_)));
    let identity = Identity::default();
    let dialer = Dialer {
        patience: None,
        cluster,
        endpoint: &endpoint,
        identity: &identity,
        ends: None,
        multiplex: false,
        mark: MARK_UPSTREAM,
        generation: 0,
    };
    open(&dialer).await
}

/// A proxy that responds with `answer` to one request's head, and then returns all later bytes.
async fn proxy(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"\r\n\r\n") {
            assert!(socket.read_buf(&mut heard).await.unwrap() > 0);
        }
        socket.write_all(answer.as_bytes()).await.unwrap();
        // A reset ends the bytes that came before it.
        let _ = socket.read_to_end(&mut heard).await;
        String::from_utf8(heard).unwrap()
    });
    (address, heard)
}

#[tokio::test]
async fn bytes_after_the_connect_response_belong_to_the_tunnel() {
    let (address, heard) = proxy("HTTP/1.1 200 Connection established\r\n\r\n220 ready").await;
    let mut far = opened(&cluster(false, Protocol::Http), address).await.unwrap();
    let mut greeting = [0; 9];
    far.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready");
    assert!(far.socket().is_some(), "nothing is between the sockets any more");
    far.write_all(b"hello").await.unwrap();
    far.shutdown().await.unwrap();
    let heard = heard.await.unwrap();
    assert_eq!(heard, "CONNECT db.example:5432 HTTP/1.1\r\nhost: db.example:5432\r\n\r\nhello");
}

#[tokio::test]
async fn a_post_tunnel_sends_chunks() {
    let (address, heard) = proxy("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
    let mut far = opened(&cluster(true, Protocol::Http), address).await.unwrap();
    let mut text = String::new();
    far.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    far.write_all(b"hey").await.unwrap();
    far.shutdown().await.unwrap();
    drop(far);
    assert!(heard.await.unwrap().ends_with("\r\n\r\n3\r\nhey\r\n0\r\n\r\n"));
}

#[tokio::test]
async fn a_refused_tunnel_names_its_proxy() {
    let said = |outcome: &Outcome| match outcome {
        Outcome::Response { status, .. } => status.as_u16(),
        _ => 0,
    };
    for (answer, status, want) in [
        (
            "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
            403,
            "no tunnel to db.example:5432: the proxy answered 403",
        ),
        ("HTTP/1.1 502 X\r\n\r\n", 502, "the proxy answered 502"),
        ("SSH-2.0-OpenSSH\r\n", 0, "the proxy's response is invalid"),
        ("HTTP/1.1 100 Continue\r\n\r\n", 0, "no tunnel to db.example:5432 within 1s"),
    ] {
        let (address, _heard) = proxy(answer).await;
        let error = opened(&cluster(false, Protocol::Http), address).await.err().unwrap();
        assert!(error.detail.contains(want), "{answer:?}: {}", error.detail);
        assert_eq!(said(&error.outcome), status, "{answer:?}");
    }
    // Heads without an end, each of which is small.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        while socket.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await.is_ok() {}
    });
    let error = opened(&cluster(false, Protocol::Http), address).await.err().unwrap();
    assert!(error.detail.contains("its answer is too long"), "{}", error.detail);
}

#[tokio::test]
async fn an_http2_tunnel_is_a_stream() {
    for post in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = tokio::spawn(async move {
            let socket = listener.accept().await.unwrap().0;
            let mut connection = h2::server::handshake(socket).await.unwrap();
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            let request_line = format!("{} {}", request.method(), request.uri());
            let mut send = respond.send_response(http::Response::new(()), false).unwrap();
            let echo = tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(data) = body.data().await {
                    send.send_data(data.unwrap(), false).unwrap();
                }
                send.send_data(Bytes::new(), true).unwrap();
            });
            // Until the client has gone.
            assert!(connection.accept().await.is_none());
            echo.await.unwrap();
            request_line
        });
        let mut far = opened(&cluster(post, Protocol::Http2), address).await.unwrap();
        far.write_all(b"hello").await.unwrap();
        far.shutdown().await.unwrap();
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        drop(far);
        let request_line =
            tokio::time::timeout(Duration::from_secs(10), proxy).await.expect("the connection ends").unwrap();
        assert_eq!(request_line, if post { "POST http://db.example:5432/" } else { "CONNECT db.example:5432" });
    }
}
