//! The additional section, compared with that of Consul's server.

use super::*;

#[test]
fn targets_of_srv_come_with_their_addresses() {
    let reply = ask(&fake(), &query("web.service.consul.", RecordType::SRV), Transport::Udp);
    let mut additional: Vec<String> = reply.additionals.iter().map(|r| format!("{} {}", r.name, r.data)).collect();
    additional.sort();
    let expected =
        ["0a000002.addr.dc1.consul. 10.0.0.2", "node-1.node.dc1.consul. 10.0.0.1", "node-3.node.dc1.consul. 10.0.0.1"];
    assert_eq!(additional, expected);
    let settings = Settings { address: Some([192, 0, 2, 53].into()), ..Settings::default() };
    let bytes = packet_of(&fake(), &settings, &query("consul.", RecordType::NS), Transport::Udp, 1).unwrap();
    assert_eq!(text(&Message::from_vec(&bytes).unwrap().additionals), ["192.0.2.53"]);
}

/// Owner and data of the additional records, sorted.
fn additional(reply: &Message) -> Vec<String> {
    let mut all: Vec<String> = reply.additionals.iter().map(|r| format!("{} {}", r.name, r.data)).collect();
    all.sort();
    all
}

/// Three instances of one service on one node, and one at an address of its own; the node has metadata.
fn shared_node() -> Fake {
    let on = |id: &str, address: &str, port| {
        Arc::new(Instance { node: "node-1".into(), ..instance("web", id, address, port) })
    };
    let instances = vec![
        on("1", "10.0.0.1", 8081),
        on("2", "10.0.0.1", 8082),
        on("3", "10.0.0.1", 8083),
        on("4", "10.0.0.9", 8084),
    ];
    let pairs = [("zone", "eu=1`"), (" a=b", "c"), ("RFC1035-spf", "v=spf1 -all")];
    let meta = pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let address = "10.0.0.1".parse().unwrap();
    Fake { instances, nodes: vec![NodeEntry { name: "node-1".into(), address, passing: true, meta }] }
}

const TEXTS: [&str; 3] = ["` a`=b=c", "v=spf1 -all", "zone=eu=1``"];

#[test]
fn every_srv_record_comes_with_an_address_record_of_its_own() {
    let name = "node-1.node.dc1.consul.";
    let reply = ask(&shared_node(), &query("web.service.consul.", RecordType::SRV), Transport::Tcp);
    assert_eq!(reply.answers.len(), 4);
    let address = format!("{name} 10.0.0.1");
    let addresses = ["0a000009.addr.dc1.consul. 10.0.0.9".to_owned(), address.clone(), address.clone(), address];
    let texts = TEXTS.map(|text| format!("{name} {text}"));
    let mut expected = [&addresses[..], &texts].concat();
    expected.sort();
    assert_eq!(additional(&reply), expected);
    // In the order of the answers, and metadata last.
    let targets = reply.answers.iter().map(|record| match &record.data {
        RData::SRV(srv) => srv.target.clone(),
        other => panic!("{other}"),
    });
    let owners: Vec<Name> = reply.additionals.iter().take(4).map(|record| record.name.clone()).collect();
    assert_eq!(targets.collect::<Vec<_>>(), owners);
}

#[test]
fn repeated_addresses_are_left_out_before_anything_else() {
    let crowd = (0..9u16)
        .map(|n| Arc::new(Instance { node: "node-1".into(), ..instance("web", &n.to_string(), "10.0.0.1", 8000 + n) }));
    let view = Fake { instances: crowd.collect(), ..shared_node() };
    let small = ask(&view, &query("web.service.consul.", RecordType::SRV), Transport::Udp);
    assert_eq!((small.answers.len(), small.metadata.truncation), (9, false));
    assert_eq!(small.additionals.iter().filter(|r| r.record_type() == RecordType::A).count(), 1);
    let large = ask(&view, &with_edns(query("web.service.consul.", RecordType::SRV), 4096), Transport::Udp);
    assert_eq!(large.additionals.iter().filter(|r| r.record_type() == RecordType::A).count(), 9);
    // Truncated by the limit they are reduced to those that the remaining answers need.
    let settings = Settings { udp_answer_limit: 3, ..Settings::default() };
    let cut = packet_of(&view, &settings, &query("web.service.consul.", RecordType::SRV), Transport::Udp, 1).unwrap();
    let cut = Message::from_vec(&cut).unwrap();
    assert_eq!(cut.answers.len(), 3);
    assert_eq!(cut.additionals.iter().filter(|r| r.record_type() == RecordType::A).count(), 1);
}

#[test]
fn unrequested_records_are_additional() {
    let address = |name: &str| vec![format!("{name} 10.0.0.1")];
    let texts = |name: &str| TEXTS.map(|text| format!("{name} {text}")).to_vec();
    let (node, addr) = ("node-1.node.consul.", "0a000001.addr.consul.");
    let mut any = TEXTS.to_vec();
    any.insert(0, "10.0.0.1");
    let cases = [
        (node, RecordType::A, vec!["10.0.0.1"], texts(node)),
        (node, RecordType::AAAA, vec![], texts(node)),
        (node, RecordType::TXT, TEXTS.to_vec(), address(node)),
        (node, RecordType::ANY, any, vec![]),
        (addr, RecordType::A, vec!["10.0.0.1"], vec![]),
        (addr, RecordType::AAAA, vec![], address(addr)),
        (addr, RecordType::SRV, vec![], address(addr)),
        ("web.virtual.consul.", RecordType::AAAA, vec![], vec!["web.virtual.consul. 240.240.0.7".to_owned()]),
        ("web.service.consul.", RecordType::A, vec!["10.0.0.1", "10.0.0.9"], vec![]),
        ("web.service.consul.", RecordType::AAAA, vec![], vec![]),
        ("1.0.0.10.in-addr.arpa.", RecordType::PTR, vec!["node-1.node.dc1.consul."], vec![]),
    ];
    for (name, kind, answers, additionals) in cases {
        let reply = ask(&shared_node(), &query(name, kind), Transport::Tcp);
        assert_eq!(text(&reply.answers), answers, "{name} {kind}");
        assert_eq!(additional(&reply), additionals, "{name} {kind}");
    }
    let settings = Settings { address: Some([192, 0, 2, 53].into()), ..Settings::default() };
    let soa = packet_of(&fake(), &settings, &query("consul.", RecordType::SOA), Transport::Udp, 1).unwrap();
    let soa = Message::from_vec(&soa).unwrap();
    assert_eq!(
        (text(&soa.authorities), additional(&soa)),
        (vec!["ns.consul.".into()], vec!["ns.consul. 192.0.2.53".into()])
    );
}

#[test]
fn long_metadata_is_several_strings_of_one_record() {
    let mut view = shared_node();
    view.nodes[0].meta = [("k".to_owned(), "v".repeat(300))].into();
    let reply = ask(&view, &query("node-1.node.consul.", RecordType::TXT), Transport::Tcp);
    let [record] = &reply.answers[..] else { panic!("{:?}", reply.answers) };
    let RData::TXT(txt) = &record.data else { panic!("{record}") };
    assert_eq!(txt.txt_data.iter().map(|part| part.len()).collect::<Vec<_>>(), [255, 47]);
}
