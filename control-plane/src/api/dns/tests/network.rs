//! Listeners and recursors, over sockets.

use super::*;

/// A name server with the given number of addresses for every name, which truncates long answers over UDP.
async fn recursor(addresses: u8) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(at).await.unwrap();
    let answer = move |packet: &[u8]| {
        let mut message = Message::from_vec(packet).unwrap().into_response();
        let name = message.queries[0].name().clone();
        let record = |n| Record::from_rdata(name.clone(), 99, RData::A(Ipv4Addr::new(192, 0, 2, n).into()));
        message.add_answers((0..addresses).map(record));
        message
    };
    tokio::spawn(async move {
        let mut buffer = [0; 2000];
        loop {
            let (n, from) = udp.recv_from(&mut buffer).await.unwrap();
            let reply = answer(&buffer[..n]);
            let reply = if addresses > 20 { reply.truncate() } else { reply }.to_vec().unwrap();
            // A forged answer: its id differs.
            let mut forged = reply.clone();
            forged[0] ^= 1;
            udp.send_to(&forged, from).await.unwrap();
            udp.send_to(&reply, from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let packet = read_framed(&mut stream, 4096).await.unwrap();
            write_framed(&mut stream, &answer(&packet).to_vec().unwrap()).await.unwrap();
        }
    });
    at
}

async fn serve(view: Fake, recursors: Vec<SocketAddr>) -> SocketAddr {
    let dns = Arc::new(Dns::over(view, Settings { recursors, ..Settings::default() }));
    // A port that is free over TCP may be taken over UDP.
    loop {
        if let Ok(at) = start(&dns, "127.0.0.1:0".parse().unwrap()).await {
            return at;
        }
    }
}

/// Like a client: over UDP, and over TCP if the answer is truncated.
async fn look_up(server: SocketAddr, name: &str, kind: RecordType) -> (Transport, Message) {
    let packet = query(name, kind).to_vec().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.connect(server).await.unwrap();
    udp.send(&packet).await.unwrap();
    let mut buffer = [0; 4096];
    let n = tokio::time::timeout(Duration::from_secs(10), udp.recv(&mut buffer)).await.unwrap().unwrap();
    let reply = Message::from_vec(&buffer[..n]).unwrap();
    if !reply.metadata.truncation {
        return (Transport::Udp, reply);
    }
    let mut tcp = TcpStream::connect(server).await.unwrap();
    write_framed(&mut tcp, &packet).await.unwrap();
    let reply = read_framed(&mut tcp, usize::from(u16::MAX)).await.unwrap();
    (Transport::Tcp, Message::from_vec(&reply).unwrap())
}

#[tokio::test]
async fn both_listeners_answer() {
    let server = serve(crowd(100), Vec::new()).await;
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.send_to(b"garbage", server).await.unwrap();
    let (transport, reply) = look_up(server, "web.service.consul.", RecordType::A).await;
    assert_eq!((transport, reply.answers.len()), (Transport::Tcp, 100));
    let (transport, reply) = look_up(server, "gone.service.consul.", RecordType::A).await;
    assert_eq!((transport, reply.metadata.response_code), (Transport::Udp, ResponseCode::NXDomain));
    // Without recursors.
    let (_, reply) = look_up(server, "example.com.", RecordType::A).await;
    assert_eq!((reply.metadata.response_code, reply.metadata.recursion_available), (ResponseCode::Refused, false));
    // Several questions in one connection.
    let mut tcp = TcpStream::connect(server).await.unwrap();
    for name in ["web.service.consul.", "0a000001.addr.consul."] {
        write_framed(&mut tcp, &query(name, RecordType::A).to_vec().unwrap()).await.unwrap();
        let reply = Message::from_vec(&read_framed(&mut tcp, 65535).await.unwrap()).unwrap();
        assert!(!reply.answers.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn other_names_are_asked_of_recursors_in_turn() {
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = serve(fake(), vec![closed, recursor(1).await]).await;
    let (_, reply) = look_up(server, "example.com.", RecordType::A).await;
    assert_eq!(text(&reply.answers), ["192.0.2.0"]);
    let (_, reply) = look_up(server, "web.service.consul.", RecordType::A).await;
    assert_eq!(text(&reply.answers), ["10.0.0.1", "10.0.0.2"], "names of the mesh are answered here");
    assert!(reply.metadata.recursion_available);
    // Addresses that are not registered are forwarded.
    let (_, reply) = look_up(server, "9.9.9.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    let server = serve(fake(), vec![recursor(100).await]).await;
    let (transport, reply) = look_up(server, "example.com.", RecordType::A).await;
    assert_eq!((transport, reply.answers.len()), (Transport::Tcp, 100));
    let server = serve(fake(), vec![closed]).await;
    let (_, reply) = look_up(server, "example.com.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn a_recursor_must_not_be_the_server_itself() {
    let place = |text: &str| -> super::listen::Listen { text.parse().unwrap() };
    let takes = |at: &str, to: &str| place(at).takes(to.parse().unwrap());
    assert!(takes("10.0.0.1:53", "10.0.0.1:53") && takes("0.0.0.0:53", "127.0.0.1:53"));
    assert!(!takes("10.0.0.1:53", "10.0.0.2:53") && !takes("0.0.0.0:8600", "127.0.0.1:53"));
    assert!(!takes("off", "127.0.0.1:8600"));
    assert!("here".parse::<super::listen::Listen>().is_err());
    assert_eq!(place("10.0.0.1:53").reachable(), Some([10, 0, 0, 1].into()));
    assert_eq!(place("0.0.0.0:53").reachable(), None);
}
