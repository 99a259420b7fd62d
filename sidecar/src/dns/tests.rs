use std::sync::atomic::Ordering;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;
use prost::Message as _;
use weft_proto::envoy::{Any, DeltaDiscoveryResponse, Resource};
use weft_proto::{ENDPOINTS_TYPE, SERVICE_TYPE, v1};

use super::consul::tests::Fake;
use super::*;
use crate::control::directory::{self, Writer};

mod headless;

/// Services of the mesh: host, aliases, virtual IPs, whether it is external.
const SERVICES: &[(&str, &[&str], &[&str], bool)] = &[
    (
        "order-service.default.svc.cluster.local",
        &["order-service", "order-service.default", "order-service.service.consul", "240.240.0.7"],
        &["240.240.0.7"],
        false,
    ),
    ("dual.default.svc.cluster.local", &["dual"], &["240.240.0.8", "fd00::8"], false),
    ("api.example.com", &[], &["240.240.0.9"], true),
    ("policy-only.example.com", &[], &[], true),
];
/// Names of [`know`].
const LATER: &[&str] = &["db.test", "db", "db-0.db", "db-2.db", "alias.default.svc.cluster.local"];
const ABSENT: &[&str] = &[
    "example.com",
    "order-service.example.com",
    "gone.default.svc.cluster.local",
    "gone.service.consul",
    "240.240.0.8",
];

struct World {
    dns: Dns,
    /// The same for clients of Consul.
    consul_dns: Dns,
    control_plane: Arc<Fake>,
    writer: Writer,
}

fn world(servers: &[SocketAddr]) -> World {
    let names = SERVICES.iter().flat_map(|(host, aliases, ..)| aliases.iter().chain([host])).chain(ABSENT).chain(LATER);
    let names: Vec<String> = names.map(|name| (*name).to_owned()).collect();
    let (directory, mut writer) = directory::new(Default::default(), None, &names);
    writer.set_connected(true);
    let resources = SERVICES.iter().map(|(host, aliases, addresses, external)| {
        let service = v1::Service {
            host: (*host).into(),
            namespace: "default".into(),
            addresses: addresses.iter().map(|a| (*a).into()).collect(),
            external: *external,
            ..Default::default()
        };
        Resource {
            name: (*host).into(),
            aliases: aliases.iter().map(|a| (*a).into()).collect(),
            version: "1".into(),
            resource: Some(Any { type_url: SERVICE_TYPE.into(), value: service.encode_to_vec().into() }),
        }
    });
    let (_, refused) = writer.apply(DeltaDiscoveryResponse {
        type_url: SERVICE_TYPE.into(),
        resources: resources.collect(),
        removed_resources: ABSENT.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    });
    assert_eq!(refused, None);
    writer.apply(DeltaDiscoveryResponse { type_url: ENDPOINTS_TYPE.into(), ..Default::default() });
    let control_plane = Arc::new(Fake::default());
    control_plane.away.store(true, Ordering::Relaxed);
    let consul = Consul::new(control_plane.clone());
    let dns = |serves| {
        let outside = vec!["weft.infra.svc.cluster.local".into()];
        Dns::new(serves, directory.clone(), consul.clone(), Forwarder::to(servers), outside, Default::default())
    };
    World { dns: dns(Serves::Captured), consul_dns: dns(Serves::ConsulClients), control_plane, writer }
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.metadata.recursion_desired = true;
    message.add_query(hickory_proto::op::Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

async fn ask(dns: &Dns, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>, u32) {
    let reply = dns.handle(&query(name, kind), Transport::Udp).await.expect("an answer");
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.id, 7);
    let text = reply.answers.iter().map(|record| record.data.to_string()).collect();
    (reply.metadata.response_code, text, reply.answers.first().map_or(0, |r| r.ttl))
}

/// A name server that has 192.0.2.1 for every name, and the queries that it got.
async fn name_server() -> (SocketAddr, Arc<std::sync::Mutex<Vec<(String, u16)>>>) {
    // A port that is free for both.
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    let forwards: Arc<std::sync::Mutex<Vec<(String, u16)>>> = Arc::default();
    let answer = {
        let forwards = forwards.clone();
        move |packet: &[u8], from: SocketAddr| {
            let mut message = Message::from_vec(packet).unwrap().into_response();
            let name = message.queries[0].name().clone();
            forwards.lock().unwrap().push((name.to_string(), from.port()));
            message.add_answer(Record::from_rdata(name, 99, RData::A(Ipv4Addr::new(192, 0, 2, 1).into())));
            message.to_vec().unwrap()
        }
    };
    let over_tcp = answer.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 2000];
        loop {
            let (n, from) = udp.recv_from(&mut buffer).await.unwrap();
            let reply = answer(&buffer[..n], from);
            // A forged answer: another id.
            let mut forged = reply.clone();
            forged[0] ^= 1;
            udp.send_to(&forged, from).await.unwrap();
            udp.send_to(&reply, from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, from) = tcp.accept().await.unwrap();
            let packet = read_framed(&mut stream, 4096).await.unwrap();
            write_framed(&mut stream, &over_tcp(&packet, from)).await.unwrap();
        }
    });
    (address, forwards)
}

#[tokio::test]
async fn names_of_the_mesh_resolve_to_virtual_ips() {
    use RecordType::{A, AAAA, HTTPS, MX};
    crate::net::connect::probe_marks();
    let (server, forwards) = name_server().await;
    let World { dns, mut writer, .. } = world(&[server]);
    let mesh = [
        ("order-service.", A, &["240.240.0.7"][..]),
        ("Order-Service.Default.", A, &["240.240.0.7"]),
        ("order-service.default.svc.cluster.local.", A, &["240.240.0.7"]),
        ("order-service.service.consul.", A, &["240.240.0.7"]),
        ("order-service.", AAAA, &[]),
        ("order-service.", HTTPS, &[]),
        ("order-service.", MX, &[]),
        ("dual.", A, &["240.240.0.8"]),
        ("dual.", AAAA, &["fd00::8"]),
        ("api.example.com.", A, &["240.240.0.9"]),
        ("api.example.com.", AAAA, &[]),
    ];
    for (name, kind, expected) in mesh {
        let (code, addresses, ttl) = ask(&dns, name, kind).await;
        assert_eq!(
            (code, addresses),
            (ResponseCode::NoError, expected.iter().map(|a| (*a).to_owned()).collect()),
            "{name}"
        );
        assert_eq!(ttl, if expected.is_empty() { 0 } else { 30 }, "{name}");
    }
    for (name, kind) in [
        ("gone.default.svc.cluster.local.", A),
        ("gone.service.consul.", A),
        // No service is called so.
        ("_http._tcp.order-service.default.svc.cluster.local.", RecordType::SRV),
        ("*.default.svc.cluster.local.", A),
        // With a search domain of the resolver's.
        ("order-service.default.svc.cluster.local.corp.example.", A),
        ("order-service.service.consul.corp.example.", A),
        ("svc.cluster.local.", A),
    ] {
        let code = ask(&dns, name, kind).await.0;
        assert!(matches!(code, ResponseCode::NXDomain | ResponseCode::ServFail), "{name}: {code}");
    }
    assert_eq!(*forwards.lock().unwrap(), [], "names of the mesh stay in it");

    writer.set_connected(false);
    assert_eq!(ask(&dns, "order-service.", A).await.2, 5);
    assert_eq!(ask(&dns, "never-asked.default.svc.cluster.local.", A).await.0, ResponseCode::ServFail);
}

#[tokio::test]
async fn other_names_are_forwarded_to_the_name_server() {
    use RecordType::{A, MX, PTR};
    crate::net::connect::probe_marks();
    let (server, forwards) = name_server().await;
    let World { dns, mut writer, .. } = world(&[server]);
    let foreign = [
        ("example.com.", A),
        ("order-service.example.com.", A),
        ("policy-only.example.com.", A),
        ("api.example.com.", MX),
        ("7.0.2.192.in-addr.arpa.", PTR),
        ("under_score.example.com.", A),
        // Ours are found by asking, not in ourselves.
        ("weft.infra.svc.cluster.local.", A),
        ("weft.infra.svc.cluster.local.default.svc.cluster.local.", A),
    ];
    writer.set_connected(false);
    for (name, kind) in foreign {
        assert_eq!(ask(&dns, name, kind).await, (ResponseCode::NoError, vec!["192.0.2.1".into()], 99), "{name}");
    }
    let reply = dns.handle(&query("example.com.", A), Transport::Tcp).await.unwrap();
    assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), 1);
    let forwards = forwards.lock().unwrap();
    assert_eq!(forwards.len(), foreign.len() + 1);
    let range = crate::resolve::forward::source_ports();
    assert!(forwards[..foreign.len()].iter().all(|(_, port)| range.contains(port)), "{forwards:?} {range:?}");
}

#[tokio::test]
async fn the_name_server_is_queried_after_the_control_plane_answered() {
    crate::net::connect::probe_marks();
    let (server, forwards) = name_server().await;
    let World { dns, mut writer, .. } = world(&[server]);
    let dns = Arc::new(dns);
    let asking = |name: &'static str| {
        let dns = dns.clone();
        tokio::spawn(async move { ask(&dns, name, RecordType::A).await })
    };
    let answer = |resources, removed: &[&str]| DeltaDiscoveryResponse {
        type_url: SERVICE_TYPE.into(),
        resources,
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    // It is the mesh's: no other server sees it.
    let reply = asking("new-service.");
    writer.next_interest().await.unwrap();
    let host = "new-service.default.svc.cluster.local";
    let service = v1::Service { host: host.into(), addresses: vec!["240.240.0.9".into()], ..Default::default() };
    let resource = Resource {
        name: host.into(),
        aliases: vec!["new-service".into()],
        version: "1".into(),
        resource: Some(Any { type_url: SERVICE_TYPE.into(), value: service.encode_to_vec().into() }),
    };
    writer.apply(answer(vec![resource], &[]));
    assert_eq!(reply.await.unwrap().1, ["240.240.0.9"]);
    assert_eq!(*forwards.lock().unwrap(), []);
    // It is not: the name server is queried then.
    let reply = asking("elsewhere.example.");
    while writer.next_interest().await.unwrap().subscribe != ["elsewhere.example"] {}
    assert_eq!(*forwards.lock().unwrap(), []);
    writer.apply(answer(Vec::new(), &["elsewhere.example"]));
    assert_eq!(reply.await.unwrap().1, ["192.0.2.1"]);
    assert_eq!(forwards.lock().unwrap().len(), 1);
    // The control plane does not answer.
    let began = std::time::Instant::now();
    assert_eq!(asking("unknown.example.").await.unwrap().1, ["192.0.2.1"]);
    assert!(began.elapsed() >= SILENCE, "{:?}", began.elapsed());
    // A name that only the mesh can know is not sent to other servers, however long it takes.
    let reply = asking("slow.default.svc.cluster.local.");
    assert_eq!(reply.await.unwrap().0, ResponseCode::ServFail);
    assert_eq!(forwards.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn consuls_names_are_resolved_by_the_control_plane() {
    use RecordType::{A, PTR, SRV};
    crate::net::connect::probe_marks();
    let (server, forwards) = name_server().await;
    let World { dns, consul_dns, control_plane, writer: _writer } = world(&[server]);
    control_plane.away.store(false, Ordering::Relaxed);
    let real = ["10.0.0.1", "10.0.0.2"];
    let sorted = async |dns: &Dns, name: &str, kind| {
        let (code, mut addresses, _) = ask(dns, name, kind).await;
        addresses.sort();
        (code, addresses)
    };
    for (name, kind) in [("v1.order-service.service.consul.", A), ("order-service.service.consul.", SRV)] {
        assert_eq!(sorted(&dns, name, kind).await, (ResponseCode::NoError, real.map(str::to_owned).into()), "{name}");
    }
    assert_eq!(ask(&dns, "order-service.service.consul.", A).await.1, ["240.240.0.7"], "as before");
    assert_eq!(ask(&dns, "x.node.consul.", A).await.0, ResponseCode::NXDomain);
    // Clients of Consul get the addresses of the instances.
    let name = "order-service.service.consul.";
    assert_eq!(sorted(&consul_dns, name, A).await, (ResponseCode::NoError, real.map(str::to_owned).into()));
    assert_eq!(*forwards.lock().unwrap(), [], "names of Consul stay in the mesh");
    let mesh_name = "order-service.default.svc.cluster.local.";
    assert_eq!(ask(&consul_dns, mesh_name, A).await.1, ["240.240.0.7"]);
    assert_eq!(*forwards.lock().unwrap(), [], "names of the mesh stay in it");
    for (name, kind) in [("example.com.", A), ("9.9.9.10.in-addr.arpa.", PTR), ("api.example.com.", A)] {
        assert_eq!(ask(&consul_dns, name, kind).await.1, ["192.0.2.1"], "{name}");
    }
    control_plane.away.store(true, Ordering::Relaxed);
    assert_eq!(ask(&consul_dns, "never.service.consul.", A).await.0, ResponseCode::ServFail);
    assert_eq!(ask(&dns, "never.node.consul.", A).await.0, ResponseCode::ServFail);
}

#[tokio::test]
async fn negative_answers_carry_a_soa() {
    use RecordType::{A, AAAA, PTR};
    let World { dns, writer: _writer, .. } = world(&[]);
    for (name, kind, code, zone, ttl) in [
        ("order-service.default.svc.cluster.local.", AAAA, ResponseCode::NoError, "svc.cluster.local.", 30),
        ("api.example.com.", AAAA, ResponseCode::NoError, "api.example.com.", 30),
        ("gone.default.svc.cluster.local.", A, ResponseCode::NXDomain, "svc.cluster.local.", 5),
        ("gone.service.consul.", A, ResponseCode::NXDomain, "consul.", 5),
        ("8.0.240.240.in-addr.arpa.", PTR, ResponseCode::NXDomain, "240.240.in-addr.arpa.", 5),
    ] {
        let reply = Message::from_vec(&dns.handle(&query(name, kind), Transport::Udp).await.unwrap()).unwrap();
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (code, 0), "{name}");
        let [soa] = &reply.authorities[..] else { panic!("{name}: {:?}", reply.authorities) };
        let RData::SOA(data) = &soa.data else { panic!("{name}: {soa:?}") };
        assert_eq!((soa.name.to_string().as_str(), soa.ttl, data.minimum), (zone, ttl, ttl), "{name}");
    }
    let reply = dns.handle(&query("order-service.", A), Transport::Udp).await.unwrap();
    assert!(Message::from_vec(&reply).unwrap().authorities.is_empty(), "only where there is nothing");
    let reply = dns.handle(&query("elsewhere.example.", A), Transport::Udp).await.unwrap();
    assert!(Message::from_vec(&reply).unwrap().authorities.is_empty(), "a failure has no SOA");
}

#[tokio::test]
async fn reverse_queries_of_virtual_ips_name_their_services() {
    let (server, forwards) = name_server().await;
    let World { dns, consul_dns, writer: _writer, .. } = world(&[server]);
    for dns in [&dns, &consul_dns] {
        let (code, names, ttl) = ask(dns, "7.0.240.240.in-addr.arpa.", RecordType::PTR).await;
        let host = "order-service.default.svc.cluster.local.".to_owned();
        assert_eq!((code, names, ttl), (ResponseCode::NoError, vec![host], 30));
    }
    assert_eq!(*forwards.lock().unwrap(), [], "no other server knows them");
}

#[test]
fn hosts_with_a_virtual_ip() {
    for name in ["a.service.consul", "a-b_c.service.dc1.consul"] {
        assert!(is_service(name, "dc1"), "{name}");
    }
    for name in [
        "service.consul",
        ".service.consul",
        "v1.a.service.consul",
        "a.service.dc2.consul",
        "v1.a.service.dc1.consul",
        "a.node.consul",
        "a.service.consul.example",
    ] {
        assert!(!is_service(name, "dc1"), "{name}");
    }
}

#[tokio::test]
async fn servfail_without_a_name_server() {
    crate::net::connect::probe_marks();
    let World { dns, .. } = world(&[]);
    assert_eq!(ask(&dns, "example.com.", RecordType::A).await.0, ResponseCode::ServFail);
    // One that is down makes room for the next at once.
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (server, _) = name_server().await;
    let World { dns, .. } = world(&[closed, server]);
    assert_eq!(ask(&dns, "example.com.", RecordType::A).await.1, ["192.0.2.1"]);
}

#[tokio::test]
async fn short_names_and_full_names_are_one_service() {
    let (directory, mut writer) = directory::new(Default::default(), None, &["short".to_owned()]);
    writer.set_connected(true);
    let host = "short.default.svc.cluster.local";
    let service = v1::Service { host: host.into(), addresses: vec!["240.240.0.1".into()], ..Default::default() };
    let resource = Resource {
        name: host.into(),
        aliases: vec!["short".into()],
        version: "1".into(),
        resource: Some(Any { type_url: SERVICE_TYPE.into(), value: service.encode_to_vec().into() }),
    };
    let resources = vec![resource];
    writer.apply(DeltaDiscoveryResponse { type_url: SERVICE_TYPE.into(), resources, ..Default::default() });
    // The control plane has sent it, and does not send it again.
    let (found, interest) = tokio::join!(directory.lookup(host), writer.next_interest());
    assert!(matches!(found, Lookup::Service(_)));
    assert_eq!(interest.unwrap().subscribe, [host]);
}

#[tokio::test]
async fn both_listeners_answer() {
    crate::net::connect::probe_marks();
    let (server, _) = name_server().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let World { dns, writer: _writer, .. } = world(&[server]);
    listen(dns, free).unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.send_to(b"garbage", free).await.unwrap();
    udp.send_to(&query("order-service.", RecordType::A), free).await.unwrap();
    let mut buffer = [0; 512];
    let (n, _) = udp.recv_from(&mut buffer).await.unwrap();
    assert_eq!(Message::from_vec(&buffer[..n]).unwrap().answers.len(), 1);
    let mut tcp = TcpStream::connect(free).await.unwrap();
    for name in ["order-service.", "example.com."] {
        write_framed(&mut tcp, &query(name, RecordType::A)).await.unwrap();
        let reply = Message::from_vec(&read_framed(&mut tcp, 4096).await.unwrap()).unwrap();
        assert_eq!(reply.answers.len(), 1, "{name}");
    }
}

#[test]
fn invalid_queries_are_refused_or_dropped() {
    let fine = query("a.", RecordType::A);
    let with = |at: usize, byte: u8| {
        let mut packet = fine.clone();
        packet[at] = byte;
        packet
    };
    let code = |packet: &[u8]| match answer::parse(packet) {
        Packet::Nothing => None,
        Packet::Refused(reply) => Some(Message::from_vec(&reply).unwrap().metadata.response_code),
        Packet::Query(_) => Some(ResponseCode::NoError),
    };
    assert_eq!(code(&fine), Some(ResponseCode::NoError));
    assert_eq!(code(&fine[..11]), None, "no header");
    assert_eq!(code(&with(2, 0x80)), None, "an answer");
    assert_eq!(code(&with(2, u8::from(OpCode::Update) << 3)), Some(ResponseCode::NotImp));
    assert_eq!(code(&with(5, 2)), Some(ResponseCode::FormErr), "two questions");
    assert_eq!(code(&with(5, 0)), Some(ResponseCode::FormErr), "no question");
    assert_eq!(code(&fine[..14]), Some(ResponseCode::FormErr), "cut off");
}

#[test]
fn large_answers_set_tc() {
    let Packet::Query(query) = answer::parse(&query("a.", RecordType::A)) else { panic!("a query") };
    let many = Say::Addresses((0..100).map(|n| IpAddr::from([240, 240, 0, n])).collect(), 30);
    let udp = Message::from_vec(&query.reply(&many, Transport::Udp).unwrap()).unwrap();
    assert!(udp.metadata.truncation && udp.answers.is_empty());
    let tcp = Message::from_vec(&query.reply(&many, Transport::Tcp).unwrap()).unwrap();
    assert!(!tcp.metadata.truncation && tcp.answers.len() == 100);
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_panic(mut packet in proptest::collection::vec(any::<u8>(), 0..200), like_a_query in any::<bool>()) {
        if like_a_query && packet.len() > 12 {
            packet[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let World { dns, writer: _writer, .. } = runtime.block_on(async { world(&[]) });
        for transport in [Transport::Udp, Transport::Tcp] {
            if let Some(reply) = runtime.block_on(dns.handle(&packet, transport)) {
                // An answer to this very query, that can be read.
                prop_assert_eq!(&reply[..2], &packet[..2]);
                prop_assert!(Message::from_vec(&reply).is_ok());
            }
        }
    }

    #[test]
    fn any_mutation_of_a_query_is_parsed_without_panic(at in 0usize..100, byte in any::<u8>(), cut in 0usize..100) {
        let mut packet = query("order-service.default.svc.cluster.local.", RecordType::A);
        let at = at % packet.len();
        packet[at] = byte;
        packet.truncate(packet.len() - cut % packet.len());
        if let Packet::Query(query) = answer::parse(&packet) {
            let say = Say::Addresses(vec![IpAddr::from([240, 240, 0, 1])], 30);
            prop_assert!(query.reply(&say, Transport::Udp).is_some());
        }
    }
}
