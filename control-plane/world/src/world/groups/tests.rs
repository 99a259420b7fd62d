use super::*;
use crate::world::tests::{documents, instance};

const ENTRY: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: legacy}
spec:
  hosts: [legacy.test]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http}]
  workloadSelector: {labels: {app: legacy}}
---
";

fn group(spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: vms}}\nspec: {spec}\n")
}

const VMS: &str =
    "{template: {serviceAccount: vm, labels: {app: legacy, tier: template}, locality: eu, ports: {http: 8080}}}";

fn member(account: &str) -> Instance {
    let identity = format!("spiffe://cluster.local/ns/default/sa/{account}");
    Instance { service: String::new(), group: "vms".into(), identity, ..instance("", "_workload-group", "10.0.0.1", 0) }
}

fn world(policies: &str, member: &Instance) -> World {
    let mut world = World::new("cluster.local", 1);
    world.set_policies(documents(policies), 0);
    world.upsert(member.clone(), 0);
    world
}

fn joined(world: &World, member: &Instance) -> Result<WorkloadEntry, String> {
    world.group_member(&member.key()).unwrap().joined.clone().map(|joined| joined.entry)
}

/// Names of the endpoints of the ServiceEntry.
fn endpoints(world: &World) -> Vec<String> {
    let document = world.document(Kind::ServiceEntry, "default", "legacy").unwrap();
    let Object::ServiceEntry(entry) = &document.object else { panic!() };
    world.workloads("default", entry).map(|workload| workload.name.to_owned()).collect()
}

#[test]
fn a_member_is_the_template_at_its_own_address() {
    let mut own = member("vm");
    own.labels = [("tier".to_owned(), "own".to_owned())].into();
    let world = world(&format!("{ENTRY}{}", group(VMS)), &own);
    let entry = joined(&world, &own).unwrap();
    assert_eq!((entry.address.as_str(), entry.locality.as_str(), entry.ports["http"]), ("10.0.0.1", "eu", 8080));
    assert_eq!((entry.labels["app"].as_str(), entry.labels["tier"].as_str()), ("legacy", "own"));
    assert_eq!(world.labels_of(&own), &entry.labels);
    assert_eq!(endpoints(&world), ["vms-10.0.0.1"]);
    assert_eq!(world.hosts_of(&own), ["legacy.test"]);
    assert_eq!(world.owner(own.address), own.identity);
    assert_eq!(
        world.host_of_endpoint(&super::super::Scope::of("default"), own.address, 8080).map(|host| host.name.as_str()),
        Some("legacy.test")
    );
    // It is not an instance of a service.
    assert_eq!((world.instances().count(), world.registered().count(), world.hosts().count()), (0, 1, 1));
    assert!(world.service_indexes.is_empty());
    let near = Instance { locality: "us/b".into(), ..own };
    let mut world = world;
    world.upsert(near.clone(), 0);
    assert_eq!(joined(&world, &near).unwrap().locality, "us/b", "its own comes first");
}

#[test]
fn only_the_service_account_of_the_template_joins() {
    for (spec, account, refused) in [
        (VMS, "vm", None),
        (VMS, "other", Some("for the service account `vm` (template.serviceAccount), and the sidecar's is `other`")),
        ("{template: {labels: {app: legacy}}}", "default", None),
        ("{template: {labels: {app: legacy}}}", "vm", Some("for the service account `default`")),
    ] {
        let own = member(account);
        let world = world(&format!("{ENTRY}{}", group(spec)), &own);
        let found = joined(&world, &own).err();
        assert_eq!(found.is_some(), refused.is_some(), "{account}: {found:?}");
        assert!(found.unwrap_or_default().contains(refused.unwrap_or_default()), "{account}");
        assert_eq!(endpoints(&world).is_empty(), refused.is_some());
        assert_eq!(world.owner(own.address).is_empty(), refused.is_some());
    }
    let absent = Instance { identity: String::new(), ..member("") };
    assert!(joined(&world(&group(VMS), &absent), &absent).is_err());
    // A group of this name in another namespace is a different one.
    let elsewhere = Instance { namespace: "other".into(), ..member("vm") };
    let refused = joined(&world(&group(VMS), &elsewhere), &elsewhere).unwrap_err();
    assert_eq!(refused, "there is no WorkloadGroup other/vms yet");
}

#[test]
fn groups_are_added_changed_and_removed() {
    let own = member("vm");
    let mut world = world(ENTRY, &own);
    assert_eq!(joined(&world, &own).unwrap_err(), "there is no WorkloadGroup default/vms yet");
    let host = "workload-group:default:vms";
    let mut set = |spec: &str| {
        let policies = if spec.is_empty() { ENTRY.to_owned() } else { format!("{ENTRY}{}", group(spec)) };
        let changed = world.set_policies(documents(&policies), 0);
        (changed.hosts.contains("legacy.test"), changed.hosts.contains(host), endpoints(&world).len())
    };
    assert_eq!(set(VMS), (true, true, 1));
    assert_eq!(set(VMS), (false, false, 1));
    let probed = format!("{}, probe: {{tcpSocket: {{port: 1}}}}}}", &VMS[..VMS.len() - 1]);
    assert_eq!(set(&probed), (true, true, 1));
    assert_eq!(set(&VMS.replace("app: legacy", "app: other")), (true, true, 0));
    assert_eq!(set(VMS), (true, true, 1));
    assert_eq!(set(""), (true, true, 0));
    assert_eq!(set(VMS), (true, true, 1));

    let changed = world.remove(&own.key(), 0);
    assert!(changed.hosts.contains("legacy.test") && changed.addresses.contains(&own.address));
    assert!(endpoints(&world).is_empty() && world.group_members().next().is_none());
    assert!(world.owner(own.address).is_empty());
}

#[test]
fn a_workload_with_a_probe_is_unhealthy_until_the_probe_succeeds() {
    let probed = format!("{}, probe: {{tcpSocket: {{port: 1}}}}}}", &VMS[..VMS.len() - 1]);
    let own = member("vm");
    let mut world = world(&format!("{ENTRY}{}", group(&probed)), &own);
    let health = |world: &World| world.group_members().next().unwrap().health();
    assert_eq!(health(&world), v1::Health::Unhealthy);
    world.upsert(Instance { checks: vec![v1::Check::default()], ..own.clone() }, 0);
    assert_eq!(health(&world), v1::Health::Healthy);
    world.upsert(Instance { health: v1::Health::Unknown, checks: vec![v1::Check::default()], ..own }, 0);
    assert_eq!(health(&world), v1::Health::Unknown);
}
