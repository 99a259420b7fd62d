//! Names of prepared queries.

use super::*;

#[test]
fn answers_of_prepared_queries_have_their_ttl() {
    let view = crowd(3);
    let reply = ask(&view, &query("web.query.consul.", RecordType::A), Transport::Udp);
    assert_eq!(text(&reply.answers), ["10.1.0.0", "10.1.0.1", "10.1.0.2"]);
    assert!(reply.answers.iter().all(|record| record.ttl == 9));
    let srv = ask(&view, &query("web.query.dc1.consul.", RecordType::SRV), Transport::Tcp);
    assert_eq!((srv.answers.len(), srv.additionals.len()), (3, 3));
    for name in ["none.query.consul.", "absent.query.consul.", "web.query.dc2.consul."] {
        let reply = ask(&view, &query(name, RecordType::A), Transport::Udp);
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
}

#[test]
fn the_answer_of_another_data_centre_is_adopted() {
    let message = query("Orders.query.consul.", RecordType::SRV);
    let Packet::Query(own) = packet::parse(&message.to_vec().unwrap()) else { panic!("a query") };
    let there = own.of_service("web", "dc2").unwrap();
    let there = Message::from_vec(&there).unwrap();
    assert_eq!(there.queries[0].name().to_string(), "web.service.dc2.consul.");
    let settings = Settings { datacenter: "dc2".into(), ..Settings::default() };
    let reply = packet_of(&crowd(2), &settings, &there, Transport::Udp, 1).unwrap();
    let adopted = Message::from_vec(&own.adopt(&reply, Transport::Udp, Some(7)).unwrap()).unwrap();
    assert_eq!((adopted.metadata.id, &adopted.queries), (7, &message.queries));
    assert!(adopted.answers.iter().all(|record| record.name.eq_case(asked_name(&message)) && record.ttl == 7));
    assert_eq!((adopted.answers.len(), adopted.additionals.len()), (2, 2));
    let none = packet_of(&Fake::default(), &settings, &there, Transport::Udp, 1).unwrap();
    assert_eq!(own.adopt(&none, Transport::Udp, None), None);
    assert_eq!(own.adopt(b"nonsense", Transport::Udp, None), None);
}
