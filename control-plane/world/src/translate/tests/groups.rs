//! Sidecars that join by a WorkloadGroup.

use std::collections::BTreeMap;

use super::*;

const ENTRY: &str = "{hosts: [legacy.test], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: db, \
                     protocol: TCP}], workloadSelector: {labels: {app: legacy}}}";

fn member() -> Instance {
    let mut member = instance("", "_workload-group", "10.0.0.1", 0);
    member.group = "vms".into();
    member.identity = "spiffe://cluster.local/ns/default/sa/vm".into();
    member.workload = "vm-1".into();
    member
}

fn policies(group: &str) -> String {
    doc("ServiceEntry", "legacy", "default", ENTRY) + &doc("WorkloadGroup", "vms", "default", group)
}

#[test]
fn a_group_member_is_an_endpoint_with_its_identity() {
    let group = "{template: {serviceAccount: vm, weight: 7, locality: eu/a, labels: {app: legacy}, ports: {db: 5432}}, \
                 probe: {tcpSocket: {port: 5432}}}";
    let mut world = world(&policies(group), &[member()]);
    let endpoint = endpoints(&world, "legacy.test").unwrap().endpoints.remove(0);
    assert_eq!((endpoint.address.as_str(), endpoint.port, endpoint.ports["db"]), ("10.0.0.1", 5432, 5432));
    assert_eq!((endpoint.weight, endpoint.locality.as_str(), endpoint.workload.as_str()), (7, "eu/a", "vm-1"));
    assert_eq!((endpoint.id.as_str(), endpoint.identity.as_str()), ("vms-10.0.0.1", &*member().identity));
    assert_eq!(endpoint.health(), Health::Unhealthy, "not probed yet");
    assert_eq!(world.documents().count(), 2);
    let findings: Vec<String> = warnings(&world, true).iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "{findings:?}");

    // Its sidecar receives the protocol of the port, and the probe.
    let keys = [member().key()];
    let policy = inbound(&world, "default", &BTreeMap::new(), &keys);
    let [service] = &policy.services[..] else { panic!("{policy:?}") };
    assert_eq!((service.host.as_str(), service.port, service.protocol()), ("legacy.test", 5432, Protocol::Tcp));
    let joined = policy.group.unwrap();
    assert_eq!((joined.name.as_str(), joined.refused.as_str(), joined.probe.unwrap().period_s), ("vms", "", 10));

    world.upsert(Instance { checks: vec![v1::Check::default()], ..member() }, 0);
    assert_eq!(endpoints(&world, "legacy.test").unwrap().endpoints[0].health(), Health::Healthy);
    world.set_policies(documents(&policies("{template: {labels: {app: legacy}}}")), 0);
    assert!(endpoints(&world, "legacy.test").unwrap().endpoints.is_empty(), "not its service account");
    let policy = inbound(&world, "default", &BTreeMap::new(), &keys);
    let joined = policy.group.unwrap();
    assert!(joined.refused.contains("the sidecar's is `vm`") && joined.probe.is_none(), "{joined:?}");
    assert!(policy.services.is_empty());
}

#[test]
fn an_empty_group_with_a_selecting_entry_is_not_reported() {
    let warned = |policies: &str| warnings(&world(policies, &[]), true).len();
    assert_eq!(warned(&policies("{template: {labels: {app: legacy}}}")), 0);
    assert_eq!(warned(&policies("{template: {labels: {app: other}}}")), 1);
}
