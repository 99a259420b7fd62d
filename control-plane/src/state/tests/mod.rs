use super::*;
use crate::store::embedded::Embedded;
use crate::store::{Op, Table};
use weft_world::InstanceKey;

const LEASE: Duration = Duration::from_secs(15);

/// A store; the thread of a recently dropped one may still hold the file.
pub(crate) async fn store(dir: &std::path::Path) -> store::Shared {
    let end = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        match Embedded::open(dir) {
            Ok(store) => return Arc::new(store),
            Err(e) if std::time::Instant::now() > end => panic!("{e:#}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

pub(super) async fn open(store: store::Shared) -> Arc<Mesh> {
    Mesh::open(store, "cluster.local", LEASE).await.unwrap()
}

pub(super) fn node(number: u8) -> Node {
    Node::of_test("default", number)
}

fn service() -> v1::Instance {
    let (service_id, service) = ("order-1".into(), "order".into());
    v1::Instance { service_id, service, port: 8080, enable_tag_override: true, ..v1::Instance::default() }
}

/// The sessions of the given number of sidecars with one instance each.
async fn sessions(mesh: &Mesh, count: u8) -> Vec<u64> {
    let mut sessions = Vec::new();
    for number in 1..=count {
        let name = format!("n{number}");
        let session = mesh.begin_session(&name, node(number)).await.unwrap();
        mesh.register(&name, session, service()).await.unwrap();
        sessions.push(session);
    }
    sessions
}

fn key(node: &str) -> InstanceKey {
    InstanceKey { namespace: "default".into(), node: node.into(), service_id: "order-1".into() }
}

fn health(mesh: &Mesh, node: &str) -> Option<v1::Health> {
    mesh.read(|world| world.instance(&key(node)).map(|i| i.health))
}

fn expire(mesh: &Mesh, nodes: &[&str]) {
    let mut state = mesh.lock();
    for node in nodes {
        state.sessions.get_mut(*node).unwrap().ends = Instant::now();
    }
}

#[tokio::test]
async fn two_pods_at_one_address_have_different_ports_and_a_successor_has_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = open(store(dir.path()).await).await;
    let loopback = Node { address: IpAddr::from([127, 0, 0, 1]), ..node(1) };
    let first = mesh.begin_session("n1", loopback.clone()).await.unwrap();
    let second = mesh.begin_session("n2", loopback.clone()).await.unwrap();
    mesh.register("n1", first, service()).await.unwrap();
    mesh.register("n1", first, service()).await.unwrap();
    let Err(Refusal::Because(why)) = mesh.register("n2", second, service()).await else {
        panic!("both are registered")
    };
    assert!(why.starts_with("127.0.0.1:8080 is registered by the node n1 (service \"order\")"), "{why}");
    mesh.register("n2", second, v1::Instance { port: 8081, ..service() }).await.unwrap();
    // Only called instances have ports: without one there is no conflict.
    mesh.register("n2", second, v1::Instance { port: 0, service_id: "none".into(), ..service() }).await.unwrap();
    // A pod that was started again, without its saved state.
    mesh.disconnected("n1", first).await;
    let third = mesh.begin_session("n3", loopback).await.unwrap();
    mesh.register("n3", third, service()).await.unwrap();
}

#[tokio::test]
async fn a_single_expired_lease_removes_its_node_and_many_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = open(store(dir.path()).await).await;
    let sessions = sessions(&mesh, 3).await;
    expire(&mesh, &["n1"]);
    mesh.reap_for_tests().await;
    assert_eq!(health(&mesh, "n1"), None);
    assert!(mesh.read_nodes(|nodes| !nodes.contains_key("n1")));
    // The removed node counts together with those of the same lease period.
    expire(&mesh, &["n2"]);
    mesh.reap_for_tests().await;
    assert_eq!(health(&mesh, "n2"), Some(v1::Health::Unknown));
    mesh.lock().removed.clear();
    expire(&mesh, &["n2", "n3"]);
    mesh.reap_for_tests().await;
    assert_eq!(health(&mesh, "n2"), Some(v1::Health::Unknown));
    assert_eq!(health(&mesh, "n3"), Some(v1::Health::Unknown));
    // A message makes a node known again: as healthy as the checks of its node are.
    let check = v1::Check { check_id: "disk".into(), status: "critical".into(), ..v1::Check::default() };
    mesh.update_check("n3", sessions[2], v1::CheckUpdate { check: Some(check), removed: false }).await.unwrap();
    assert!(mesh.renew("n2", sessions[1]).await && mesh.renew("n3", sessions[2]).await);
    assert_eq!(health(&mesh, "n2"), Some(v1::Health::Healthy));
    assert_eq!(health(&mesh, "n3"), Some(v1::Health::Unhealthy));
    assert!(!mesh.renew("n3", sessions[2] + 1).await);
}

#[tokio::test]
async fn leases_that_end_one_after_another_from_one_cause_remove_none() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = open(store(dir.path()).await).await;
    sessions(&mesh, 3).await;
    expire(&mesh, &["n1"]);
    mesh.reap_once(Instant::now()).await.unwrap();
    assert_eq!(health(&mesh, "n1"), Some(v1::Health::Healthy), "others may follow");
    expire(&mesh, &["n2", "n3"]);
    mesh.reap_for_tests().await;
    for name in ["n1", "n2", "n3"] {
        assert_eq!(health(&mesh, name), Some(v1::Health::Unknown), "{name}");
    }
}

#[tokio::test]
async fn the_last_of_many_that_come_back_is_not_removed_for_being_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = open(store(dir.path()).await).await;
    let sessions = sessions(&mesh, 3).await;
    expire(&mesh, &["n1", "n2", "n3"]);
    mesh.reap_for_tests().await;
    assert!(mesh.renew("n1", sessions[0]).await && mesh.renew("n2", sessions[1]).await);
    mesh.reap_for_tests().await;
    assert_eq!(health(&mesh, "n3"), Some(v1::Health::Unknown), "it has the time of a lease");
    let later = Instant::now() + 2 * LEASE;
    for name in ["n1", "n2"] {
        mesh.lock().sessions.get_mut(name).unwrap().ends = later + LEASE;
    }
    for _ in 0..2 {
        mesh.reap_once(later).await.unwrap();
    }
    assert_eq!((health(&mesh, "n3"), health(&mesh, "n1")), (None, Some(v1::Health::Healthy)));
}

/// A hello changes nothing before it has passed every check.
#[tokio::test]
async fn a_node_name_belongs_to_its_identity_and_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = open(store(dir.path()).await).await;
    sessions(&mesh, 3).await;
    let of_another = Node {
        namespace: "shop".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/mallory".into(),
        address: IpAddr::from([10, 0, 0, 9]),
        ..node(9)
    };
    let taken = async || {
        let refused = mesh.begin_session("n1", of_another.clone()).await.unwrap_err().to_string();
        assert!(refused.contains("the node name n1 is in use by spiffe://cluster.local/ns/default/sa/w1"), "{refused}");
    };
    taken().await;
    assert_eq!(health(&mesh, "n1"), Some(v1::Health::Healthy));
    // Nor is it free while its lease may have expired by a fault of the control plane.
    expire(&mesh, &["n1", "n2"]);
    mesh.reap_for_tests().await;
    taken().await;
    assert_eq!(health(&mesh, "n1"), Some(v1::Health::Unknown));
    // Once it is dead another may have the name, and nothing of the first is left.
    expire(&mesh, &["n3"]);
    mesh.end_silent_sessions(Instant::now()).await.unwrap();
    let of_another = Node { address: IpAddr::from([10, 0, 0, 8]), ..of_another };
    mesh.begin_session("n3", of_another).await.unwrap();
    assert_eq!(health(&mesh, "n3"), None);
    assert!(mesh.read_nodes(|nodes| nodes["n3"].namespace == "shop"));
}

/// Like a copied machine: the same data folder, and so the same name and certificate.
#[tokio::test]
async fn a_second_sidecar_of_a_name_is_refused_while_the_first_is_alive() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = open(store(dir.path()).await).await;
    let first = sessions(&mesh, 1).await[0];
    let copy = Node { address: IpAddr::from([10, 0, 0, 7]), ..node(1) };
    let refused = mesh.begin_session("n1", copy.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("connected from 10.0.0.1, and this sidecar comes from 10.0.0.7"), "{refused}");
    assert!(mesh.renew("n1", first).await, "the first has its session");
    // A sidecar that returns after a crash does not wait for its own lease.
    let again = mesh.begin_session("n1", node(1)).await.unwrap();
    assert!(!mesh.renew("n1", first).await && mesh.renew("n1", again).await);
    // Nor does one that moved: the end of its stream was seen.
    mesh.disconnected("n1", again).await;
    mesh.begin_session("n1", copy).await.unwrap();
}

#[tokio::test]
async fn sidecars_that_leave_in_order_do_not_trigger_self_preservation() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = open(store(dir.path()).await).await;
    let sessions = sessions(&mesh, 4).await;
    for (name, session) in ["n1", "n2"].iter().zip(&sessions) {
        mesh.deregister(name, *session, "").await.unwrap();
    }
    expire(&mesh, &["n1", "n2", "n3"]);
    mesh.reap_for_tests().await;
    assert_eq!((health(&mesh, "n3"), health(&mesh, "n4")), (None, Some(v1::Health::Healthy)));
    assert_eq!(mesh.read_nodes(|nodes| nodes.len()), 1);
}

#[tokio::test]
async fn registrations_and_policies_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let text = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: order}\n";
    let documents = |text: &str| weft_world::parse_policies("a.yaml", text).documents;
    let (created, address, index);
    {
        let mesh = open(store(dir.path()).await).await;
        sessions(&mesh, 1).await;
        mesh.change_policies(documents(text), &[]).await.unwrap();
        created = mesh.policies().api[0].created;
        assert!(created > 0, "its age counts from now");
        address = mesh.read(|world| world.virtual_ips().of("order.default.svc.cluster.local"));
        assert!(address.is_some());
        index = mesh.read(|world| world.service_index("default", "order"));
    }
    let mesh = open(store(dir.path()).await).await;
    mesh.change_policies(documents(&format!("{text}# changed\n")), &[]).await.unwrap();
    assert_eq!(mesh.policies().api[0].created, created, "a change makes it no younger");
    assert_eq!(mesh.read(|world| world.virtual_ips().of("order.default.svc.cluster.local")), address);
    assert!(mesh.read(|world| world.instance(&key("n1")).unwrap().enable_tag_override));
    assert!(mesh.read(|world| world.service_index("default", "order")) >= index, "no index decreases");
    mesh.change_policies(Vec::new(), &documents(text)).await.unwrap();
    assert!(mesh.policies().api.is_empty());
}

#[tokio::test]
async fn registering_the_same_again_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = open(store(dir.path()).await).await;
    let session = sessions(&mesh, 1).await[0];
    let index = mesh.read(|world| world.service_index("default", "order"));
    mesh.register("n1", session, service()).await.unwrap();
    assert_eq!(mesh.read(|world| world.service_index("default", "order")), index);
    mesh.register("n1", session, v1::Instance { port: 81, ..service() }).await.unwrap();
    assert!(mesh.read(|world| world.service_index("default", "order")) > index);
}

#[tokio::test]
async fn two_control_planes_with_one_store_have_the_same_state() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let (one, two) = (open(store.clone()).await, open(store).await);
    let session = one.begin_session("n1", node(1)).await.unwrap();
    one.register("n1", session, service()).await.unwrap();
    let mut seen = two.seen.subscribe();
    let revision = *one.seen.borrow();
    seen.wait_for(|seen| *seen >= revision).await.unwrap();
    assert_eq!(health(&two, "n1"), Some(v1::Health::Healthy));
    // The sidecar moves: its old session is superseded, and silence there has no effect.
    let moved = two.begin_session("n1", node(1)).await.unwrap();
    let mut seen = one.seen.subscribe();
    seen.wait_for(|seen| *seen >= *two.seen.borrow()).await.unwrap();
    let refused = one.register("n1", session, v1::Instance { port: 81, ..service() }).await.unwrap_err();
    assert_eq!(refused, Refusal::SessionOver);
    one.reap_once(Instant::now() + 2 * LEASE).await.unwrap();
    assert_eq!(health(&one, "n1"), Some(v1::Health::Healthy));
    two.register("n1", moved, v1::Instance { port: 81, ..service() }).await.unwrap();
    // A sidecar that is connected to the first control plane may not be superseded at the second.
    let impostor = Node { address: IpAddr::from([10, 0, 0, 9]), ..node(9) };
    assert!(one.begin_session("n1", impostor).await.unwrap_err().to_string().contains("in use by"));
}

/// A control plane that was cut off from the store finds its sidecars removed: they begin anew, and register everything
/// again.
#[tokio::test]
async fn a_session_whose_node_was_removed_elsewhere_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let (one, two) = (open(store.clone()).await, open(store.clone()).await);
    let session = one.begin_session("n1", node(1)).await.unwrap();
    one.register("n1", session, service()).await.unwrap();
    store.txn(vec![], vec![Op::delete(Table::Alive, "n1")]).await.unwrap();
    let mut seen = two.seen.subscribe();
    seen.wait_for(|_| two.read_nodes(|nodes| nodes.get("n1").is_some_and(|n| n.alive.is_none()))).await.unwrap();
    two.reap_for_tests().await;
    let mut seen = one.seen.subscribe();
    seen.wait_for(|_| health(&one, "n1").is_none()).await.unwrap();
    assert!(!one.renew("n1", session).await);
    assert_eq!(one.register("n1", session, service()).await, Err(Refusal::SessionOver));
    let again = one.begin_session("n1", node(1)).await.unwrap();
    one.register("n1", again, service()).await.unwrap();
    assert_eq!(health(&one, "n1"), Some(v1::Health::Healthy));
}

#[tokio::test]
async fn missed_changes_are_applied_when_the_store_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let mesh = open(store.clone()).await;
    sessions(&mesh, 2).await;
    let watch = store.watch().await.unwrap();
    let gone = |record: &(Table, store::Record)| record.1.key == "default/n1/order-1" || record.1.key == "n1";
    let records = watch.records.into_iter().filter(|record| !gone(record)).collect();
    drop(mesh.take_up(store::Watch { records, revision: watch.revision + 1, changes: watch.changes }));
    assert_eq!((health(&mesh, "n1"), health(&mesh, "n2")), (None, Some(v1::Health::Healthy)));
    assert!(mesh.read_nodes(|nodes| !nodes.contains_key("n1") && nodes.contains_key("n2")));
}

#[tokio::test]
async fn a_damaged_record_is_left_out_and_the_others_serve() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let mesh = open(store.clone()).await;
    store.txn(vec![], vec![Op::put(Table::Registrations, "default/x/y", [0xff])]).await.unwrap();
    sessions(&mesh, 1).await;
    assert_eq!(health(&mesh, "n1"), Some(v1::Health::Healthy));
}

#[tokio::test]
async fn group_members_have_the_life_of_instances() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = open(store(dir.path()).await).await;
    let session = mesh.begin_session("n1", node(1)).await.unwrap();
    let member = weft_registry_api::registration::group_member("vms");
    let elsewhere = v1::Instance { address: "10.0.0.9".into(), ..member.clone() };
    assert!(
        mesh.register("n1", session, elsewhere).await.unwrap_err().to_string().contains("10.0.0.9 is not an address")
    );
    mesh.register("n1", session, member.clone()).await.unwrap();
    let joined = |mesh: &Mesh| mesh.read(|world| world.group_members().map(|m| m.instance.clone()).next());
    let held = joined(&mesh).unwrap();
    assert_eq!(
        (held.group.as_str(), held.address, held.identity.as_str()),
        ("vms", node(1).address, &*node(1).identity)
    );

    // The result of its probe is kept if its sidecar returns without one.
    let (check_id, service_id) = ("probe".into(), member.service_id.clone());
    let check = v1::Check { check_id, service_id, status: "critical".into(), ..v1::Check::default() };
    let update = v1::CheckUpdate { check: Some(check), removed: false };
    mesh.update_check("n1", session, update).await.unwrap();
    let again = mesh.begin_session("n1", node(1)).await.unwrap();
    mesh.register("n1", again, member.clone()).await.unwrap();
    assert_eq!(joined(&mesh).map(|i| (i.health, i.checks.len())), Some((v1::Health::Unhealthy, 1)));
    mesh.keep_only("n1", again, std::slice::from_ref(&member.service_id)).await.unwrap();
    assert!(joined(&mesh).is_some());

    mesh.deregister("n1", again, "").await.unwrap();
    assert!(joined(&mesh).is_none());
    mesh.register("n1", again, member).await.unwrap();
    expire(&mesh, &["n1"]);
    mesh.reap_for_tests().await;
    assert!(joined(&mesh).is_none(), "its lease has ended");
}

#[tokio::test]
async fn a_disconnected_data_centre_gets_only_requests_without_a_local_endpoint() {
    use weft_core::failover::Delays;
    let dir = tempfile::tempdir().unwrap();
    let mesh = open(store(dir.path()).await).await;
    let peer =
        |name: &str| weft_world::Peering { datacenter: name.into(), trust_domain: name.into(), root_der: Vec::new() };
    mesh.set_peers("dc1", vec![peer("dc2"), peer("dc3")]);
    let there = v1::SubsetSummary { healthy: 1, total: 1, identities: vec!["x".into()], ..Default::default() };
    let services = vec![v1::ServiceSummary { namespace: "default".into(), name: "order".into(), subsets: vec![there] }];
    let gateways = vec![v1::PeerGateway { address: "10.9.0.1".into(), port: 15443 }];
    let summaries = v1::Summaries { services, gateways, ..Default::default() };
    mesh.keep_remote("dc2", summaries.clone()).await.unwrap();
    let sessions = sessions(&mesh, 3).await;
    let mut shares = remotes::Shares::new();
    let mut share = || {
        let at_once = Delays { away: Duration::ZERO, back: Duration::ZERO };
        mesh.fail_over(&mut shares, None, std::time::Instant::now(), at_once);
        let host = "order.default.svc.cluster.local";
        let remotes = mesh.read(|world| weft_world::translate::endpoints(world, world.host(host).unwrap())).remotes;
        remotes.iter().map(|remote| (remote.datacenter.clone(), remote.subsets[""].share)).collect::<Vec<_>>()
    };
    let dc = |name: &str, share: u32| vec![(name.to_owned(), share)];
    assert_eq!(share(), dc("dc2", 0));
    let fall_ill = async |node: usize| {
        let (check_id, service_id) = ("c".into(), "order-1".into());
        let check = v1::Check { check_id, service_id, status: "critical".into(), ..v1::Check::default() };
        let update = v1::CheckUpdate { check: Some(check), removed: false };
        mesh.update_check(&format!("n{node}"), sessions[node - 1], update).await.unwrap();
    };
    fall_ill(1).await;
    fall_ill(2).await;
    assert_eq!(share(), dc("dc2", 54));
    mesh.set_connected("dc2", false);
    assert_eq!(share(), dc("dc2", 0));
    // A connected data centre is better than a preferred one that is disconnected.
    mesh.keep_remote("dc3", summaries).await.unwrap();
    assert_eq!(share(), dc("dc3", 54));
    mesh.forget_remote("dc3").await.unwrap();
    fall_ill(3).await;
    assert_eq!(share(), dc("dc2", 100), "its last summary is better than nothing");
    mesh.set_connected("dc2", true);
    assert_eq!(share(), dc("dc2", 100));
}
