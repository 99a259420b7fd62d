use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hickory_proto::op::{Edns, OpCode};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, Record};

use super::super::answer::{Packet, parse};
use super::*;

/// Answers every name under `service.consul` with two addresses for nine seconds, others with "no such name", while it is up.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) away: AtomicBool,
    pub(crate) hangs: AtomicBool,
    pub(crate) queries: AtomicUsize,
}

impl Source for Arc<Fake> {
    fn ask(&self, packet: Vec<u8>, tcp: bool) -> BoxFuture<'_, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            self.queries.fetch_add(1, Ordering::Relaxed);
            if self.hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            if self.away.load(Ordering::Relaxed) {
                return Err(Status::unavailable("away"));
            }
            let query = Message::from_vec(&packet).unwrap();
            let mut message = Message::response(query.metadata.id, OpCode::Query);
            message.metadata.authoritative = true;
            message.queries = query.queries.clone();
            let size = query.edns.as_ref().unwrap().max_payload();
            message.set_edns(Edns::new().set_max_payload(4096).clone());
            let name = query.queries[0].name().clone();
            let soa = || {
                let root = Name::root();
                let data = RData::SOA(SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, 3));
                Record::from_rdata(root, 60, data)
            };
            match name.to_string().as_str() {
                text if text.ends_with(".arpa.") => message.metadata.response_code = ResponseCode::Refused,
                text if !text.ends_with("service.consul.") => {
                    message.metadata.response_code = ResponseCode::NXDomain;
                    message.add_authority(soa());
                }
                // Up to the size that the query allows.
                text if text.ends_with("many.service.consul.") => {
                    let fit = if tcp { 1000 } else { (size - 60) / 16 };
                    message.metadata.truncation = !tcp;
                    let one = |n: u16| RData::A(A::new(10, 1, n.to_be_bytes()[0], n.to_be_bytes()[1]));
                    message.add_answers((0..fit).map(|n| Record::from_rdata(name.clone(), 9, one(n))));
                }
                _ => {
                    let one = |n| Record::from_rdata(name.clone(), 9, RData::A(A::new(10, 0, 0, n)));
                    message.add_answers([one(1), one(2)]);
                }
            }
            Ok(message.to_vec().unwrap())
        })
    }
}

fn consul() -> (Arc<Consul>, Arc<Fake>) {
    let fake = Arc::new(Fake::default());
    (Consul::new(fake.clone()), fake)
}

fn asking(name: &str, edns: Option<Edns>) -> Query {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.add_query(hickory_proto::op::Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.edns = edns;
    let Packet::Query(query) = parse(&message.to_vec().unwrap()) else { panic!("no query") };
    *query
}

async fn ask(consul: &Consul, name: &str) -> Option<Message> {
    let reply = consul.answer(&asking(name, None), Transport::Udp).await?;
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!((reply.metadata.id, reply.queries[0].name().to_string().as_str()), (7, name));
    Some(reply)
}

async fn ttl(consul: &Consul, name: &str) -> Option<u32> {
    Some(ask(consul, name).await?.answers.first()?.ttl)
}

fn edns(size: u16) -> Edns {
    Edns::new().set_max_payload(size).clone()
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_cached_for_its_ttl() {
    let (consul, fake) = consul();
    let queries = || fake.queries.load(Ordering::Relaxed);
    assert_eq!(ttl(&consul, "web.service.consul.").await, Some(9));
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!((ttl(&consul, "web.service.consul.").await, queries()), (Some(5), 1));
    // The answer has the client's case, whichever case is cached.
    let reply = ask(&consul, "wEB.Service.consul.").await.unwrap();
    assert_eq!(queries(), 1);
    assert!(reply.answers.iter().all(|r| r.name.eq_case(reply.queries[0].name())));
    assert!(!reply.metadata.authoritative && reply.metadata.recursion_available);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!((ttl(&consul, "web.service.consul.").await, queries()), (Some(9), 2));
    // The absence of a name is cached as long as the SOA says.
    for (wait, expected) in [(0, 3), (2, 3), (1, 4)] {
        tokio::time::advance(Duration::from_secs(wait)).await;
        let reply = ask(&consul, "x.node.consul.").await.unwrap();
        assert_eq!((reply.metadata.response_code, queries()), (ResponseCode::NXDomain, expected));
    }
    // Order is no property of the remembered answer.
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..100 {
        first.insert(ask(&consul, "web.service.consul.").await.unwrap().answers[0].data.to_string());
    }
    assert_eq!(first.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn stale_answers_serve_for_an_hour_while_the_control_plane_is_away() {
    let (consul, fake) = consul();
    assert_eq!(ttl(&consul, "web.service.consul.").await, Some(9));
    fake.hangs.store(true, Ordering::Relaxed);
    tokio::time::advance(Duration::from_secs(20)).await;
    let start = Instant::now();
    assert_eq!(ttl(&consul, "web.service.consul.").await, Some(STALE_TTL));
    assert_eq!(start.elapsed(), PATIENCE);
    // Known to be away, it is not waited for.
    assert_eq!(ttl(&consul, "web.service.consul.").await, Some(STALE_TTL));
    assert_eq!((start.elapsed(), fake.queries.load(Ordering::Relaxed)), (PATIENCE, 2));
    assert!(ask(&consul, "never.service.consul.").await.is_none());
    tokio::time::advance(STALE - Duration::from_secs(30)).await;
    assert_eq!(ttl(&consul, "web.service.consul.").await, Some(STALE_TTL));
    tokio::time::advance(Duration::from_secs(30)).await;
    assert!(ask(&consul, "web.service.consul.").await.is_none());
    // It is back.
    fake.hangs.store(false, Ordering::Relaxed);
    assert_eq!(ttl(&consul, "web.service.consul.").await, Some(9));
    // A refusal counts as absence; the next query after a short while finds the control plane again.
    fake.away.store(true, Ordering::Relaxed);
    tokio::time::advance(Duration::from_secs(20)).await;
    assert_eq!(ttl(&consul, "web.service.consul.").await, Some(STALE_TTL));
    fake.away.store(false, Ordering::Relaxed);
    tokio::time::advance(RECHECK).await;
    assert_eq!(ttl(&consul, "web.service.consul.").await, Some(9));
}

#[tokio::test(start_paused = true)]
async fn answers_are_as_large_as_the_client_takes() {
    let (consul, fake) = consul();
    let count = async |size: Option<u16>, transport| {
        let query = asking("many.service.consul.", size.map(edns));
        let reply = consul.answer(&query, transport).await.unwrap();
        let limit = if transport == Transport::Tcp { 65535 } else { size.unwrap_or(512).max(512) };
        assert!(reply.len() <= usize::from(limit), "{size:?}: {}", reply.len());
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(reply.edns.is_some(), size.is_some());
        (reply.answers.len(), reply.metadata.truncation)
    };
    assert_eq!(count(None, Transport::Udp).await, (28, true));
    assert_eq!(count(Some(0), Transport::Udp).await, (28, true));
    assert_eq!(count(Some(1231), Transport::Udp).await, (28, true));
    assert_eq!(count(Some(1232), Transport::Udp).await, (73, true));
    assert_eq!(count(Some(1400), Transport::Udp).await, (73, true));
    assert_eq!(fake.queries.load(Ordering::Relaxed), 2);
    assert_eq!(count(None, Transport::Tcp).await, (1000, false));
    // The client's options are applied here.
    let mut with_subnet = edns(1232);
    let subnet = EdnsOption::Subnet(ClientSubnet::new([192, 0, 2, 0].into(), 24, 0));
    with_subnet.options_mut().insert(subnet.clone());
    let query = asking("web.service.consul.", Some(with_subnet));
    let reply = Message::from_vec(&consul.answer(&query, Transport::Udp).await.unwrap()).unwrap();
    assert_eq!(reply.edns.unwrap().option(EdnsCode::Subnet), Some(&subnet));
}

#[tokio::test]
async fn the_cache_is_bounded_and_evicts_absent_names_first() {
    let (consul, _) = consul();
    ask(&consul, "web.service.consul.").await.unwrap();
    for n in 0..2 * ANSWERS {
        ask(&consul, &format!("x{n}.node.consul.")).await.unwrap();
    }
    let sizes = || {
        let memory = lock(&consul.memory);
        (memory.answers.len(), memory.bytes, memory.answers.values().map(|kept| kept.packet.len()).sum::<usize>())
    };
    let (count, bytes, counted) = sizes();
    assert_eq!((count, bytes), (ANSWERS, counted));
    let kept = |name: &str| lock(&consul.memory).answers.keys().any(|key| key.name == name);
    assert!(kept("web.service.consul"));
    for n in 0..200 {
        let many = asking(&format!("x{n}.many.service.consul."), None);
        consul.answer(&many, Transport::Tcp).await.unwrap();
    }
    let (count, bytes, counted) = sizes();
    assert!(count < ANSWERS && bytes == counted && bytes <= BYTES, "{count} {bytes} {counted}");
}

#[tokio::test]
async fn failures_are_not_cached() {
    let (consul, fake) = consul();
    for _ in 0..2 {
        let reply = ask(&consul, "9.9.9.10.in-addr.arpa.").await.unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    }
    assert_eq!(fake.queries.load(Ordering::Relaxed), 2);
}
