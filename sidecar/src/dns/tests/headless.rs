//! Headless Services and aliases, and where the ports of services are.

use super::*;

/// Adds a headless service and an alias of a host outside the mesh.
fn know(writer: &mut Writer) {
    let headless =
        v1::Cluster { name: "db".into(), host: "db.test".into(), port: 80, headless: true, ..Default::default() };
    let service = v1::Service {
        host: "db.test".into(),
        names: vec!["db.test".into(), "db".into()],
        ports: vec![v1::Port { number: 80, name: "http".into(), ..Default::default() }],
        clusters: vec![headless],
        ..Default::default()
    };
    let alias = v1::Service {
        host: "alias.default.svc.cluster.local".into(),
        external_name: "api.example.net".into(),
        ..Default::default()
    };
    let endpoint = |address: &str, name: &str, health: v1::Health| v1::Endpoint {
        address: address.into(),
        port: 8080,
        hostnames: vec!["vm".into(), name.into()],
        health: health.into(),
        ..Default::default()
    };
    let endpoints = v1::Endpoints {
        host: "db.test".into(),
        endpoints: vec![
            endpoint("10.0.0.1", "db-0", v1::Health::Healthy),
            endpoint("10.0.0.2", "db-1", v1::Health::Healthy),
            endpoint("10.0.0.3", "db-2", v1::Health::Unhealthy),
            endpoint("fd00::1", "db-0", v1::Health::Healthy),
        ],
        ..Default::default()
    };
    let resource = |kind: &str, name: &str, aliases: &[&str], value: Vec<u8>| Resource {
        name: name.into(),
        aliases: aliases.iter().map(|alias| (*alias).into()).collect(),
        version: "2".into(),
        resource: Some(Any { type_url: kind.into(), value: value.into() }),
    };
    let names = ["db-0.db", "db-2.db", "db"];
    let resources = vec![
        resource(SERVICE_TYPE, "db.test", &names, service.encode_to_vec()),
        resource(SERVICE_TYPE, "alias.default.svc.cluster.local", &[], alias.encode_to_vec()),
    ];
    let refused =
        writer.apply(DeltaDiscoveryResponse { type_url: SERVICE_TYPE.into(), resources, ..Default::default() });
    assert_eq!(refused.1, None);
    let resources = vec![resource(ENDPOINTS_TYPE, "db.test", &[], endpoints.encode_to_vec())];
    writer.apply(DeltaDiscoveryResponse { type_url: ENDPOINTS_TYPE.into(), resources, ..Default::default() });
}

#[tokio::test]
async fn a_headless_service_has_the_addresses_of_its_ready_endpoints() {
    let World { dns, mut writer, .. } = world(&[]);
    know(&mut writer);
    let sorted = |(code, mut records, ttl): (ResponseCode, Vec<String>, u32)| {
        records.sort();
        (code, records, ttl)
    };
    let both = vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()];
    assert_eq!(sorted(ask(&dns, "db.", RecordType::A).await), (ResponseCode::NoError, both, TTL_HEADLESS));
    assert_eq!(ask(&dns, "db.", RecordType::AAAA).await.1, ["fd00::1"]);
    assert_eq!(ask(&dns, "db-0.db.", RecordType::A).await.1, ["10.0.0.1"]);
    assert_eq!(ask(&dns, "DB-0.db.", RecordType::AAAA).await.1, ["fd00::1"]);
    assert_eq!(ask(&dns, "db-2.db.", RecordType::A).await, (ResponseCode::NoError, vec![], 0), "it is not ready");
}

#[tokio::test]
async fn an_alias_of_a_host_outside_is_answered_as_that_host() {
    let (server, forwards) = name_server().await;
    let World { dns, mut writer, .. } = world(&[server]);
    know(&mut writer);
    let (code, records, ttl) = ask(&dns, "alias.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!((code, ttl), (ResponseCode::NoError, 99));
    assert_eq!(records, ["api.example.net.", "192.0.2.1"]);
    let forwards: Vec<String> = forwards.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(forwards, ["api.example.net."], "no name of the mesh leaves it");
}

/// The records of an answer about the location of a port, sorted: answers, and additional records.
async fn places_of(dns: &Dns, name: &str, transport: Transport) -> (ResponseCode, Vec<String>, Vec<String>) {
    let reply = dns.handle(&query(name, RecordType::SRV), transport).await.expect("an answer");
    let reply = Message::from_vec(&reply).unwrap();
    let sorted = |records: &[Record]| {
        let mut text: Vec<String> = records.iter().map(|r| format!("{} {} {}", r.name, r.ttl, r.data)).collect();
        text.sort();
        text
    };
    (reply.metadata.response_code, sorted(&reply.answers), sorted(&reply.additionals))
}

#[tokio::test]
async fn srv_records_of_a_headless_service_name_its_ready_endpoints() {
    let (server, forwards) = name_server().await;
    let World { dns, mut writer, .. } = world(&[server]);
    know(&mut writer);
    let (code, answers, more) = places_of(&dns, "_http._tcp.db.", Transport::Udp).await;
    assert_eq!(code, ResponseCode::NoError);
    let places = ["_http._tcp.db. 5 0 50 8080 db-0.db.", "_http._tcp.db. 5 0 50 8080 db-1.db."];
    assert_eq!(answers, places);
    assert_eq!(more, ["db-0.db. 5 10.0.0.1", "db-0.db. 5 fd00::1", "db-1.db. 5 10.0.0.2"]);
    assert_eq!(places_of(&dns, "_HTTP._tcp.DB.", Transport::Tcp).await.1.len(), 2);
    // Other servers may have names that the mesh does not have.
    for name in ["_none._tcp.db.", "_http._udp.db.", "_http._tcp.db-0.db.", "_http._tcp.example.com."] {
        let before = forwards.lock().unwrap().len();
        places_of(&dns, name, Transport::Udp).await;
        assert_eq!(forwards.lock().unwrap().len(), before + 1, "{name}");
    }
}

#[test]
fn truncated_srv_answers_drop_addresses_first() {
    let Packet::Query(query) = answer::parse(&query("_a._tcp.db.", RecordType::SRV)) else { panic!("a query") };
    let places = |count: u8| {
        let place = |n: u8| answer::Place {
            target: format!("db-{n}.db"),
            port: 80,
            addresses: vec![IpAddr::from([10, 0, 0, n])],
        };
        Say::Places((0..count).map(place).collect(), 5)
    };
    for (count, transport, answers, addresses, truncated) in [
        (5, Transport::Udp, 5, 5, false),
        (12, Transport::Udp, 12, 0, false),
        (100, Transport::Udp, 0, 0, true),
        (100, Transport::Tcp, 100, 100, false),
    ] {
        let message = Message::from_vec(&query.reply(&places(count), transport).unwrap()).unwrap();
        assert_eq!((message.answers.len(), message.additionals.len()), (answers, addresses), "{count}");
        assert_eq!(message.metadata.truncation, truncated, "{count}");
    }
}
