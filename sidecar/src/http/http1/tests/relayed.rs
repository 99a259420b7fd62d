//! Requests that are relayed from a downstream connection to an upstream connection.

use super::*;

/// A chain of an HTTP/1 server and client, as a sidecar is: `client`'s requests go to `peer`.
async fn chain() -> (DuplexStream, TcpStream) {
    let (client, peer) = endpoint().await;
    let client = std::sync::Arc::new(tokio::sync::Mutex::new(client));
    let (near, far) = tokio::io::duplex(1 << 16);
    let handle = move |request: Request<Incoming>| {
        let client = client.clone();
        async move {
            let (parts, mut incoming) = request.into_parts();
            let (interim, origin) = (incoming.take_interim(), std::mem::take(&mut incoming.origin));
            let body =
                if incoming.is_end_stream() { RequestBody::Empty } else { Replay::new(incoming).attempt().unwrap() };
            let sent = client.lock().await.send(&parts, &origin, body, interim.as_deref()).await.unwrap();
            sent.map(|incoming| ResponseBody::upstream(incoming, None, None))
        }
    };
    tokio::spawn(serve(far, service(handle)));
    (near, peer)
}

async fn read_until(stream: &mut DuplexStream, end: &str) -> String {
    let mut got = Vec::new();
    while !got.ends_with(end.as_bytes()) {
        got.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(got).unwrap()
}

const EXPECTING: &[u8] = b"POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn the_endpoint_decides_whether_the_body_of_an_expecting_request_is_sent() {
    // It wants the body.
    let (mut near, mut peer) = chain().await;
    near.write_all(EXPECTING).await.unwrap();
    assert!(read_head(&mut peer).await.contains("\r\nExpect: 100-continue\r\n"));
    peer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
    assert_eq!(read_until(&mut near, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    near.write_all(b"hi").await.unwrap();
    let mut body = [0; 2];
    peer.read_exact(&mut body).await.unwrap();
    peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    assert!(read_until(&mut near, "ok").await.starts_with("HTTP/1.1 200 OK\r\n"));
    // It does not.
    let (mut near, mut peer) = chain().await;
    near.write_all(EXPECTING).await.unwrap();
    read_head(&mut peer).await;
    peer.write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    let refused = read_until(&mut near, "no").await;
    assert!(refused.starts_with("HTTP/1.1 417 ") && refused.contains("connection: close\r\n"), "{refused}");
    // It does not know the word.
    let (mut near, mut peer) = chain().await;
    near.write_all(EXPECTING).await.unwrap();
    read_head(&mut peer).await;
    assert_eq!(read_until(&mut near, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    near.write_all(b"hi").await.unwrap();
    peer.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"hi");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_the_endpoint_does_not_want_is_not_sent() {
    let (mut client, mut peer) = endpoint().await;
    let (mut feed, received) = fed();
    feed.write_all(EXPECTING).await.unwrap();
    let (parts, body) = received.await;
    let (body, origin) = (Replay::new(body), Bytes::new());
    let sending = client.send(&parts, &origin, body.attempt().unwrap(), None);
    let (answer, ()) = tokio::join!(sending, async {
        read_head(&mut peer).await;
        peer.write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    });
    assert_eq!(answer.unwrap().status(), 417);
    feed.write_all(b"hi").await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!client.is_reusable(), "the next request would be read as the body");
    drop(client);
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test(start_paused = true)]
async fn interim_responses_are_passed_on_to_clients_that_know_them() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 3\r\nConnection: x\r\nX: y\r\n\r\n";
    let (mut near, mut peer) = chain().await;
    near.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_head(&mut peer).await;
    peer.write_all(hints.as_bytes()).await.unwrap();
    // Before the response, and without hop-by-hop headers.
    assert_eq!(read_until(&mut near, "\r\n\r\n").await, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    // However many there are.
    peer.write_all("HTTP/1.1 102 Processing\r\n\r\n".repeat(40).as_bytes()).await.unwrap();
    peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    let rest = read_until(&mut near, "ok").await;
    assert_eq!((rest.matches("102 Processing").count(), rest.matches("HTTP/1.1 200 OK").count()), (15, 1), "{rest}");
    // HTTP/1.0 has none.
    let (mut near, mut peer) = chain().await;
    near.write_all(b"GET /x HTTP/1.0\r\n\r\n").await.unwrap();
    read_head(&mut peer).await;
    peer.write_all(format!("{hints}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").as_bytes()).await.unwrap();
    assert!(read_until(&mut near, "ok").await.starts_with("HTTP/1.0 200 OK\r\n"));
}
