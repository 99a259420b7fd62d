use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, OpCode};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use weft_proto::v1::{Check, Health};

mod additional;
mod network;
mod prepared;

use super::listen::{read_framed, start, write_framed};
use super::view::NodeEntry;
use super::*;
use crate::api::consul::QueryResult;
use crate::testing::instance;
use weft_world::Instance;

/// A small registry.
#[derive(Default)]
struct Fake {
    instances: Vec<Arc<Instance>>,
    nodes: Vec<NodeEntry>,
}

impl View for Fake {
    fn instances(&self, namespace: &str, service: &str) -> Vec<Arc<Instance>> {
        let of = |namespace: &str| -> Vec<_> {
            let in_service = |i: &&Arc<Instance>| i.namespace == namespace && i.service.eq_ignore_ascii_case(service);
            self.instances.iter().filter(in_service).cloned().collect()
        };
        let own = of(namespace);
        if own.is_empty() { of("default") } else { own }
    }

    fn virtual_ips(&self, namespace: &str, service: &str) -> Vec<IpAddr> {
        let known = !self.instances(namespace, service).is_empty();
        known.then_some([240, 240, 0, 7].into()).into_iter().collect()
    }

    fn node(&self, _: &str, name: &str) -> Option<NodeEntry> {
        self.nodes.iter().find(|node| node.name.eq_ignore_ascii_case(name)).cloned()
    }

    fn nodes(&self, names: &[&str]) -> Vec<Option<NodeEntry>> {
        names.iter().map(|name| self.nodes.iter().find(|node| node.name == **name).cloned()).collect()
    }

    fn nodes_at(&self, _: &str, address: IpAddr) -> Vec<String> {
        self.nodes.iter().filter(|node| node.address == address).map(|node| node.name.clone()).collect()
    }

    fn services_at(&self, _: &str, address: IpAddr) -> Vec<String> {
        self.instances.iter().filter(|i| i.address == address).map(|i| i.service.clone()).collect()
    }

    fn prepared(&self, _: &str, name: &str, others: &[&str]) -> Option<QueryResult> {
        let instances = self.instances("default", name);
        (name != "none").then(|| QueryResult {
            instances,
            service: name.to_owned(),
            datacenters: others.iter().map(|other| (*other).to_owned()).collect(),
            ttl: (name == "web").then_some(9),
        })
    }

    fn version(&self) -> u64 {
        (1 << 32) + 42
    }
}

fn check(status: &str) -> Vec<Check> {
    vec![Check { check_id: "c".into(), status: status.into(), ..Check::default() }]
}

fn fake() -> Fake {
    let instances = [
        Instance {
            tags: vec!["V1".into(), "a.b".into()],
            weight: 10,
            identity: "spiffe://cluster.local/ns/default/sa/web".into(),
            ..instance("web", "1", "10.0.0.1", 8080)
        },
        Instance { tags: vec!["v2".into()], checks: check("warning"), ..instance("web", "2", "10.0.0.2", 8081) },
        // A second port at one address.
        Instance { checks: check("passing"), ..instance("web", "3", "10.0.0.1", 9090) },
        Instance { health: Health::Unhealthy, ..instance("web", "4", "10.0.0.4", 8080) },
        Instance { draining: true, ..instance("web", "5", "10.0.0.5", 8080) },
        Instance { health: Health::Unhealthy, ..instance("sick", "6", "10.0.0.6", 80) },
        Instance { health: Health::Unknown, ..instance("lost", "7", "fd00::7", 80) },
        Instance { namespace: "team".into(), ..instance("web", "8", "10.0.0.8", 80) },
    ];
    let node = |name: &str, address: &str, passing| NodeEntry {
        name: name.into(),
        address: address.parse().unwrap(),
        passing,
        meta: BTreeMap::new(),
    };
    let nodes = vec![
        node("node-1", "10.0.0.1", true),
        // Its instance has an address of its own.
        node("node-2", "10.0.0.20", true),
        node("node-3", "10.0.0.1", true),
        node("not a name", "fd00::7", false),
        node("node-6", "10.0.0.6", true),
    ];
    let lost = Instance { node: "not a name".into(), ..instances[6].clone() };
    let instances = instances.into_iter().map(|i| Arc::new(if i.service == "lost" { lost.clone() } else { i }));
    Fake { instances: instances.collect(), nodes }
}

/// The given number of instances at addresses of their own.
fn crowd(count: u8) -> Fake {
    let one = |n: u8| Arc::new(instance("web", &n.to_string(), &format!("10.1.0.{n}"), 8080));
    Fake { instances: (0..count).map(one).collect(), nodes: Vec::new() }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.metadata.recursion_desired = true;
    message.add_query(hickory_proto::op::Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size).set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

/// The answer's bytes; `None`: the name is outside the served zones.
fn packet_of(
    view: &Fake,
    settings: &Settings,
    query_message: &Message,
    transport: Transport,
    seed: u64,
) -> Option<Vec<u8>> {
    let Packet::Query(query) = packet::parse(&query_message.to_vec().unwrap()) else {
        panic!("no query: {query_message:?}")
    };
    let asking = Asking { view, namespace: "default", settings, transport };
    asking.answer(&query, &mut StdRng::seed_from_u64(seed)).ok().map(|reply| reply.expect("an answer"))
}

fn ask(view: &Fake, query_message: &Message, transport: Transport) -> Message {
    let bytes = packet_of(view, &Settings::default(), query_message, transport, 1).expect("not foreign");
    let reply = Message::from_vec(&bytes).unwrap();
    assert_eq!((reply.metadata.id, reply.metadata.authoritative), (7, true));
    assert_eq!(reply.queries, query_message.queries);
    reply
}

/// Records as text, sorted.
fn text(records: &[Record]) -> Vec<String> {
    let mut text: Vec<String> = records.iter().map(|record| record.data.to_string()).collect();
    text.sort();
    text
}

#[test]
fn names_and_types_have_consuls_records() {
    use RecordType::{A, AAAA, ANY, HTTPS, MX, NS, PTR, SOA, SRV, TXT};
    let srv =
        ["1 1 8081 0a000002.addr.dc1.consul.", "1 1 9090 node-3.node.dc1.consul.", "1 10 8080 node-1.node.dc1.consul."];
    let soa = "ns.consul. hostmaster.consul. 42 3600 600 86400 1";
    let cases: &[(&str, RecordType, &[&str])] = &[
        ("web.service.consul.", A, &["10.0.0.1", "10.0.0.2"]),
        ("WEB.service.DC1.consul.", A, &["10.0.0.1", "10.0.0.2"]),
        ("web.service.consul.", AAAA, &[]),
        ("web.service.consul.", SRV, &srv),
        (
            "web.service.consul.",
            ANY,
            &[
                &["1 1 8081 0a000002.addr.dc1.consul.", "1 1 9090 node-3.node.dc1.consul."][..],
                &[srv[2], "10.0.0.1", "10.0.0.2"],
            ]
            .concat(),
        ),
        ("web.service.consul.", TXT, &[]),
        ("web.service.consul.", HTTPS, &[]),
        ("web.service.consul.", MX, &[]),
        ("v1.web.service.consul.", A, &["10.0.0.1"]),
        ("a.b.web.service.consul.", A, &["10.0.0.1"]),
        ("_web._tcp.service.consul.", SRV, &srv),
        ("_web._tcp.consul.", A, &["10.0.0.1", "10.0.0.2"]),
        ("_web._v2.service.dc1.consul.", SRV, &srv[..1]),
        ("lost.service.consul.", AAAA, &["fd00::7"]),
        ("lost.service.consul.", A, &[]),
        ("lost.service.consul.", SRV, &["1 1 80 fd000000000000000000000000000007.addr.dc1.consul."]),
        ("web.connect.consul.", A, &["10.0.0.1"]),
        ("web.virtual.consul.", A, &["240.240.0.7"]),
        ("web.ingress.consul.", A, &[]),
        ("node-1.node.consul.", A, &["10.0.0.1"]),
        ("NODE-1.node.dc1.consul.", ANY, &["10.0.0.1"]),
        ("node-1.node.consul.", AAAA, &[]),
        ("node-1.node.consul.", TXT, &[]),
        ("0a000002.addr.dc1.consul.", A, &["10.0.0.2"]),
        ("fd000000000000000000000000000007.addr.consul.", AAAA, &["fd00::7"]),
        ("0a000002.addr.consul.", AAAA, &[]),
        ("1.0.0.10.in-addr.arpa.", PTR, &["node-1.node.dc1.consul.", "node-3.node.dc1.consul."]),
        ("2.0.0.10.in-addr.arpa.", PTR, &["web.service.dc1.consul."]),
        ("2.0.0.10.in-addr.arpa.", A, &[]),
        (
            "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
            PTR,
            &["lost.service.dc1.consul."],
        ),
        ("consul.", SOA, &[soa]),
        ("consul.", NS, &["ns.consul."]),
        ("consul.", ANY, &["ns.consul.", soa]),
        ("consul.", A, &[]),
        ("ns.consul.", A, &[]),
        ("service.consul.", A, &[]),
        ("dc1.consul.", NS, &[]),
    ];
    for (name, kind, expected) in cases {
        let reply = ask(&fake(), &query(name, *kind), Transport::Tcp);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name} {kind}");
        assert_eq!(text(&reply.answers), *expected, "{name} {kind}");
        assert!(reply.answers.iter().all(|r| r.ttl == 1 && r.name == *asked_name(&reply)), "{name} {kind}");
        let authorities = match kind {
            _ if expected.is_empty() => vec![soa],
            SOA => vec!["ns.consul."],
            _ => vec![],
        };
        assert_eq!(text(&reply.authorities), authorities, "{name} {kind}");
    }
    for name in [
        "gone.service.consul.",
        "sick.service.consul.",
        "v3.web.service.consul.",
        "web.service.dc2.consul.",
        "lost.connect.consul.",
        "gone.virtual.consul.",
        "gone.node.consul.",
        "zz.addr.consul.",
        "x.query.consul.",
        "web.consul.",
        "dc2.consul.",
    ] {
        let reply = ask(&fake(), &query(name, RecordType::A), Transport::Udp);
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
        assert_eq!(text(&reply.authorities), [soa], "{name}");
        assert_eq!(reply.authorities[0].name.to_string(), "consul.", "{name}");
    }
    for name in ["example.com.", "9.9.9.10.in-addr.arpa.", "web."] {
        let not_served = packet_of(&fake(), &Settings::default(), &query(name, RecordType::PTR), Transport::Udp, 1);
        assert_eq!(not_served, None, "{name}");
    }
}

fn asked_name(message: &Message) -> &Name {
    message.queries[0].name()
}

#[test]
fn dns_settings_are_applied() {
    let of = |settings: Settings, kind| {
        let bytes = packet_of(&fake(), &settings, &query("web.service.consul.", kind), Transport::Udp, 1).unwrap();
        Message::from_vec(&bytes).unwrap()
    };
    let passing = of(Settings { only_passing: true, ..Settings::default() }, RecordType::A);
    assert_eq!(text(&passing.answers), ["10.0.0.1"], "one warns");
    let ttl = of(Settings { service_ttl: 9, negative_ttl: 5, ..Settings::default() }, RecordType::A);
    assert!(ttl.answers.iter().all(|record| record.ttl == 9));
    let none = of(Settings { service_ttl: 9, negative_ttl: 5, ..Settings::default() }, RecordType::MX);
    assert_eq!(none.authorities[0].ttl, 5);
    assert!(matches!(&none.authorities[0].data, RData::SOA(soa) if soa.minimum == 5));
    let other = of(Settings { datacenter: "east".into(), ..Settings::default() }, RecordType::SRV);
    assert!(text(&other.answers)[2].ends_with(" node-1.node.east.consul."));
    let few = of(Settings { udp_answer_limit: 1, ..Settings::default() }, RecordType::SRV);
    assert!(few.metadata.truncation, "truncation is marked");
    assert_eq!((few.answers.len(), few.additionals.len()), (1, 1));
    // A node whose own check fails hides its instances.
    let mut view = fake();
    view.nodes[0].passing = false;
    let settings = Settings { only_passing: true, ..Settings::default() };
    let srv = packet_of(&view, &settings, &query("web.service.consul.", RecordType::SRV), Transport::Udp, 1).unwrap();
    assert_eq!(text(&Message::from_vec(&srv).unwrap().answers), ["1 1 9090 node-3.node.dc1.consul."]);
}

#[test]
fn the_callers_namespace_comes_first() {
    for (namespace, expected) in [("team", "10.0.0.8"), ("default", "10.0.0.1"), ("other", "10.0.0.1")] {
        let query_message = query("web.service.consul.", RecordType::A).to_vec().unwrap();
        let Packet::Query(query) = packet::parse(&query_message) else { panic!("a query") };
        let (view, settings) = (fake(), Settings::default());
        let asking = Asking { view: &view, namespace, settings: &settings, transport: Transport::Udp };
        let reply = asking.answer(&query, &mut StdRng::seed_from_u64(1)).unwrap().unwrap();
        assert_eq!(text(&Message::from_vec(&reply).unwrap().answers)[0], expected, "{namespace}");
    }
}

#[test]
fn the_question_is_repeated_in_its_case() {
    let query_message = query("wEb.SeRvIcE.cOnSuL.", RecordType::A);
    let bytes = packet_of(&fake(), &Settings::default(), &query_message, Transport::Udp, 1).unwrap();
    let reply = Message::from_vec(&bytes).unwrap();
    assert!(asked_name(&reply).eq_case(asked_name(&query_message)));
    assert!(reply.answers.iter().all(|record| record.name.eq_case(asked_name(&query_message))));
}

#[test]
fn the_order_of_answers_is_random() {
    let order = |seed| {
        let query_message = query("web.service.consul.", RecordType::A);
        let bytes = packet_of(&crowd(8), &Settings::default(), &query_message, Transport::Udp, seed).unwrap();
        Message::from_vec(&bytes).unwrap().answers.iter().map(|r| r.data.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    let first: std::collections::BTreeSet<String> = (0..100).map(|seed| order(seed)[0].clone()).collect();
    assert_eq!(first.len(), 8, "each record is first at times");
}

#[test]
fn answers_that_do_not_fit_are_truncated() {
    let query_message = query("web.service.consul.", RecordType::A);
    // 512 bytes hold header, question and 29 addresses.
    let fits = ask(&crowd(29), &query_message, Transport::Udp);
    assert_eq!((fits.answers.len(), fits.metadata.truncation), (29, false));
    let cut = ask(&crowd(30), &query_message, Transport::Udp);
    assert_eq!((cut.answers.len(), cut.metadata.truncation), (29, true));
    for (size, count, truncated) in [(0, 29, true), (1232, 74, true), (4096, 150, false), (65535, 150, false)] {
        let query_message = with_edns(query_message.clone(), size);
        let bytes = packet_of(&crowd(150), &Settings::default(), &query_message, Transport::Udp, 1).unwrap();
        assert!(bytes.len() <= usize::from(size.clamp(512, 4096)), "{size}: {}", bytes.len());
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!((reply.answers.len(), reply.metadata.truncation), (count, truncated), "{size}");
        let edns = reply.edns.unwrap();
        assert_eq!((edns.max_payload(), edns.flags().dnssec_ok), (4096, true));
    }
    let tcp = ask(&crowd(200), &query_message, Transport::Tcp);
    assert_eq!((tcp.answers.len(), tcp.metadata.truncation), (200, false));
    // Additional records are left out first, without a mark: they were not requested.
    let srv = ask(&crowd(9), &query("web.service.consul.", RecordType::SRV), Transport::Udp);
    assert_eq!((srv.answers.len(), srv.metadata.truncation), (9, false));
    assert!((1..9).contains(&srv.additionals.len()), "{}", srv.additionals.len());
    // More than TCP carries.
    let many = (0..3000u16).map(|n| {
        let [high, low] = n.to_be_bytes();
        Arc::new(Instance { port: n + 1, ..instance("web", &n.to_string(), &format!("10.2.{high}.{low}"), 1) })
    });
    let many = Fake { instances: many.collect(), nodes: Vec::new() };
    let bytes =
        packet_of(&many, &Settings::default(), &query("web.service.consul.", RecordType::SRV), Transport::Tcp, 1);
    let reply = Message::from_vec(&bytes.unwrap()).unwrap();
    assert!(reply.answers.len() > 1000 && reply.metadata.truncation, "{}", reply.answers.len());
}

#[test]
fn options_of_edns() {
    let mut query_message = with_edns(query("web.service.consul.", RecordType::A), 1232);
    let subnet = EdnsOption::Subnet(ClientSubnet::new([192, 0, 2, 0].into(), 24, 0));
    query_message.edns.as_mut().unwrap().options_mut().insert(subnet.clone());
    let reply = ask(&fake(), &query_message, Transport::Udp);
    assert_eq!(reply.edns.unwrap().option(EdnsCode::Subnet), Some(&subnet));
    query_message.edns.as_mut().unwrap().set_version(1);
    let Packet::Refused(reply) = packet::parse(&query_message.to_vec().unwrap()) else { panic!("refused") };
    // Its number is also that of BADSIG, as which it is read.
    let code = Message::from_vec(&reply).unwrap().metadata.response_code;
    assert_eq!(u16::from(code), u16::from(ResponseCode::BADVERS));
}

#[test]
fn invalid_queries_are_refused_or_dropped() {
    let fine = query("a.consul.", RecordType::A);
    let bytes = fine.to_vec().unwrap();
    let with = |at: usize, byte: u8| {
        let mut packet = bytes.clone();
        packet[at] = byte;
        packet
    };
    let of = |kind, class| {
        let mut message = query("a.consul.", kind);
        message.queries[0].set_query_class(class);
        message.to_vec().unwrap()
    };
    let code = |packet: &[u8]| match packet::parse(packet) {
        Packet::Nothing => None,
        Packet::Refused(reply) => Some(Message::from_vec(&reply).unwrap().metadata.response_code),
        Packet::Query(_) => Some(ResponseCode::NoError),
    };
    assert_eq!(code(&bytes), Some(ResponseCode::NoError));
    assert_eq!(code(&bytes[..11]), None, "no header");
    assert_eq!(code(&with(2, 0x80)), None, "an answer");
    assert_eq!(code(&with(2, u8::from(OpCode::Update) << 3)), Some(ResponseCode::NotImp));
    assert_eq!(code(&with(5, 2)), Some(ResponseCode::FormErr), "two questions");
    assert_eq!(code(&with(5, 0)), Some(ResponseCode::FormErr), "no question");
    assert_eq!(code(&bytes[..14]), Some(ResponseCode::FormErr), "cut off");
    assert_eq!(code(&of(RecordType::A, DNSClass::CH)), Some(ResponseCode::Refused));
    assert_eq!(code(&of(RecordType::AXFR, DNSClass::IN)), Some(ResponseCode::Refused));
}

proptest! {
    #[test]
    fn any_packet_is_parsed_without_a_panic(
        mut packet in proptest::collection::vec(any::<u8>(), 0..200),
        like_a_query in any::<bool>(),
        at in 0usize..100,
        byte in any::<u8>(),
    ) {
        if like_a_query {
            packet = query("v1.web.service.dc1.consul.", RecordType::SRV).to_vec().unwrap();
            let at = at % packet.len();
            packet[at] = byte;
        }
        let dns = Dns::over(fake(), Settings::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for transport in [Transport::Udp, Transport::Tcp] {
            if let Some(reply) = runtime.block_on(dns.handle(&packet, transport, "default", true)) {
                // A valid answer to exactly this query.
                prop_assert_eq!(&reply[..2], &packet[..2]);
                prop_assert!(Message::from_vec(&reply).is_ok());
            }
        }
    }
}
