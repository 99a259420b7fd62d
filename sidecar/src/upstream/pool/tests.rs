use std::net::SocketAddr;

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use weft_core::policy::Cluster;
use weft_core::proxy_protocol::{ConnectionAddresses, Version};

use super::*;
use crate::net::connect::MARK_UPSTREAM;
use crate::tls::identity::Identity;
use crate::upstream::endpoints;

/// A server that reads a PROXY header, if one is expected, and reports the source of each connection. It speaks HTTP/2 if asked.
async fn server(header: bool, http2: bool) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heard, hears) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let mut socket = listener.accept().await.unwrap().0;
            let heard = heard.clone();
            tokio::spawn(async move {
                let mut line = String::new();
                while header && !line.ends_with('\n') {
                    line.push(socket.read_u8().await.unwrap().into());
                }
                heard.send(line).unwrap();
                if http2 {
                    let mut connection = h2::server::handshake(socket).await.unwrap();
                    while connection.accept().await.is_some() {}
                } else {
                    let _ = socket.read_u8().await;
                }
            });
        }
    });
    (address, hears)
}

/// The sources of the connections that were opened for four requests of two clients, two at a time.
async fn opened(proxy_protocol: Option<Version>, multiplex: bool) -> Vec<String> {
    let (address, mut hears) = server(proxy_protocol.is_some(), multiplex).await;
    let mut cluster = Cluster::original_destination("a", "a", ConnectionPool::default());
    cluster.proxy_protocol = proxy_protocol;
    if proxy_protocol.is_some() {
        // As it is compiled.
        cluster.pool.max_concurrent_streams = 1;
    }
    let (endpoint, identity, pool) =
        (endpoints::passthrough(address), Identity::default(), ClusterPool::new(&cluster.pool));
    let ends = |port| ConnectionAddresses {
        source: ([192, 0, 2, 1], port).into(),
        destination: ([198, 51, 100, 7], 80).into(),
    };
    let clients = [ends(1), ends(2)];
    let dialer = |ends| {
        let (cluster, endpoint, identity) = (&cluster, &*endpoint, &identity);
        Dialer {
            cluster,
            endpoint,
            identity,
            ends: Some(ends),
            multiplex,
            mark: MARK_UPSTREAM,
            patience: None,
            generation: 0,
        }
    };
    let [one, two] = [dialer(&clients[0]), dialer(&clients[1])];
    for _ in 0..2 {
        let (first, second) = tokio::join!(pool.checkout(0, &one), pool.checkout(0, &two));
        first.unwrap().finish(0);
        second.unwrap().finish(0);
    }
    let mut opened = Vec::new();
    // Until no report comes for a while.
    while let Ok(Some(line)) = tokio::time::timeout(Duration::from_millis(200), hears.recv()).await {
        opened.push(line.split(' ').nth(4).unwrap_or_default().to_owned());
    }
    opened.sort();
    opened
}

#[tokio::test]
async fn connections_with_a_proxy_header_are_not_shared() {
    for multiplex in [false, true] {
        assert_eq!(opened(Some(Version::V1), multiplex).await, ["1", "1", "2", "2"], "HTTP/2: {multiplex}");
    }
    assert_eq!(opened(None, false).await.len(), 2, "kept");
    assert_eq!(opened(None, true).await.len(), 1, "shared");
}

/// A request that began under older settings has its connection for itself, and older connections are not reused.
#[tokio::test]
async fn connections_opened_under_an_older_policy_are_not_reused() {
    for multiplex in [false, true] {
        let (address, mut hears) = server(false, multiplex).await;
        let cluster = Cluster::original_destination("a", "a", ConnectionPool::default());
        let (endpoint, identity) = (endpoints::passthrough(address), Identity::default());
        let pool = ClusterPool::new(&cluster.pool);
        let mut opened = Vec::new();
        for (renewed, generation) in [(0, 0), (0, 0), (1, 0), (1, 1), (1, 1)] {
            if pool.generation() < renewed {
                pool.renew();
            }
            let (cluster, endpoint, identity) = (&cluster, &*endpoint, &identity);
            let dialer = Dialer {
                cluster,
                endpoint,
                identity,
                ends: None,
                multiplex,
                mark: MARK_UPSTREAM,
                patience: None,
                generation,
            };
            pool.checkout(0, &dialer).await.unwrap().finish(0);
            let mut count = 0;
            while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(200), hears.recv()).await {
                count += 1;
            }
            opened.push(count);
        }
        assert_eq!(opened, [1, 0, 1, 1, 0], "HTTP/2: {multiplex}");
    }
}
