use std::collections::BTreeMap;

use super::*;
use crate::world::InstanceKey;

const LEASE: Duration = Duration::from_secs(15);

fn open(dir: &std::path::Path) -> Arc<Mesh> {
    // The thread of a store that was dropped just now may still hold the file.
    let end = Instant::now() + Duration::from_secs(5);
    let store = loop {
        match Store::open(dir) {
            Ok(store) => break store,
            Err(e) if Instant::now() > end => panic!("{e:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    Mesh::open(store, "cluster.local", LEASE).unwrap()
}

fn node(number: u8) -> Node {
    Node {
        namespace: "default".into(),
        identity: format!("spiffe://cluster.local/ns/default/sa/w{number}"),
        address: IpAddr::from([10, 0, 0, number]),
        workload: format!("w{number}"),
        locality: String::new(),
        labels: BTreeMap::new(),
        checks: BTreeMap::new(),
        session: 0,
        lease_ends: Instant::now(),
        unknown: false,
    }
}

fn service() -> v1::Instance {
    let (service_id, service) = ("order-1".into(), "order".into());
    v1::Instance { service_id, service, port: 8080, enable_tag_override: true, ..v1::Instance::default() }
}

/// The sessions of so many sidecars with one instance each.
async fn sessions(mesh: &Mesh, count: u8) -> Vec<u64> {
    let mut sessions = Vec::new();
    for number in 1..=count {
        let name = format!("n{number}");
        let session = mesh.begin_session(&name, node(number)).unwrap();
        mesh.register(&name, session, service()).await.unwrap();
        sessions.push(session);
    }
    sessions
}

fn health(mesh: &Mesh, node: &str) -> Option<v1::Health> {
    let key = InstanceKey { namespace: "default".into(), node: node.into(), service_id: "order-1".into() };
    mesh.read(|world| world.instance(&key).map(|i| i.health))
}

fn expire(mesh: &Mesh, nodes: &[&str]) {
    let mut state = mesh.lock();
    for node in nodes {
        state.nodes.get_mut(*node).unwrap().lease_ends = Instant::now();
    }
}

#[tokio::test]
async fn one_lease_that_ends_removes_and_many_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = open(dir.path());
    let sessions = sessions(&mesh, 3).await;
    expire(&mesh, &["n1"]);
    mesh.reap_once(Instant::now()).await.unwrap();
    assert_eq!(health(&mesh, "n1"), None);
    expire(&mesh, &["n2", "n3"]);
    mesh.reap_once(Instant::now()).await.unwrap();
    assert_eq!(health(&mesh, "n2"), Some(v1::Health::Unknown));
    assert_eq!(health(&mesh, "n3"), Some(v1::Health::Unknown));
    // A sign of life makes one known again: as healthy as the checks of its node say.
    let check = v1::Check { check_id: "disk".into(), status: "critical".into(), ..v1::Check::default() };
    mesh.lock().nodes.get_mut("n3").unwrap().checks.insert("disk".into(), check);
    mesh.renew("n2", sessions[1]);
    mesh.renew("n3", sessions[2]);
    assert_eq!(health(&mesh, "n2"), Some(v1::Health::Healthy));
    assert_eq!(health(&mesh, "n3"), Some(v1::Health::Unhealthy));
}

#[tokio::test]
async fn what_was_registered_and_applied_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let text = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: order}\n";
    let documents = |text: &str| crate::policy::parse("a.yaml", text).documents;
    let (created, address);
    {
        let mesh = open(dir.path());
        sessions(&mesh, 1).await;
        mesh.change_policies(documents(text), &[]).await.unwrap();
        created = mesh.policies().1[0].created;
        assert!(created > 0, "its age counts from now");
        address = mesh.read(|world| world.virtual_ips().of("order.default.svc.cluster.local"));
        assert!(address.is_some());
    }
    let mesh = open(dir.path());
    mesh.change_policies(documents(&format!("{text}# changed\n")), &[]).await.unwrap();
    assert_eq!(mesh.policies().1[0].created, created, "a change makes it no younger");
    assert_eq!(mesh.read(|world| world.virtual_ips().of("order.default.svc.cluster.local")), address);
    let key = InstanceKey { namespace: "default".into(), node: "n1".into(), service_id: "order-1".into() };
    assert!(mesh.read(|world| world.instance(&key).unwrap().enable_tag_override));
}
