//! The API as a caller sees it, over a mesh with a store of its own.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};
use weft_proto::v1;

use super::*;
use crate::identity::caller::Rights;
use crate::state::Node;
use crate::store::embedded::Embedded;

struct Fixture {
    _dir: tempfile::TempDir,
    eureka: Eureka,
}

fn check(id: &str, service_id: &str, status: &str, output: &str) -> v1::Check {
    let text = |text: &str| text.to_owned();
    v1::Check {
        check_id: text(id),
        service_id: text(service_id),
        status: text(status),
        output: text(output),
        ..Default::default()
    }
}

fn maintenance(service_id: &str) -> v1::Check {
    v1::Check { r#type: "maintenance".into(), ..check("_maintenance", service_id, "critical", "") }
}

/// As registered by Consul's API or the command line.
fn service(name: &str, id: &str, checks: Vec<v1::Check>) -> v1::Instance {
    v1::Instance {
        service_id: id.into(),
        service: name.into(),
        port: 8080,
        meta: [("team".to_owned(), "shop".to_owned())].into(),
        checks,
        ..Default::default()
    }
}

/// As registered by Eureka's API.
fn leased(name: &str, id: &str, status: &str) -> v1::Instance {
    let health = if status == "UP" { "passing" } else { "critical" };
    let document = json!({
        "instanceId": id, "hostName": "pod-1", "app": name.to_uppercase(), "ipAddr": "127.0.0.1", "status": status,
        "port": { "$": 8080, "@enabled": "true" }, "vipAddress": "shop,Order", "secureVipAddress": "safe",
        "leaseInfo": { "durationInSecs": 30 }, "dataCenterInfo": { "@class": "x.Y", "name": "Amazon" },
        "lastDirtyTimestamp": "17",
    });
    let checks = vec![check(&format!("eureka:{id}"), id, health, status)];
    v1::Instance { eureka: document.to_string(), ..service(name, id, checks) }
}

impl Fixture {
    /// A node "n1" in "default", one "n2" there too, and one "n3" in "shop".
    async fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(dir.path()).unwrap());
        let mesh = Mesh::open(store, "cluster.local", Duration::from_secs(15)).await.unwrap();
        for (number, namespace) in [(1, "default"), (2, "default"), (3, "shop")] {
            let node = Node::of_test(namespace, number);
            assert_eq!(mesh.begin_session(&format!("n{number}"), node).await.unwrap(), u64::from(number));
        }
        Fixture { _dir: dir, eureka: Eureka::new(mesh) }
    }

    async fn register(&self, node: u8, instance: v1::Instance) {
        self.eureka.mesh.register(&format!("n{node}"), node.into(), instance).await.unwrap();
    }

    async fn check(&self, node: u8, check: v1::Check, removed: bool) {
        let update = v1::CheckUpdate { check: Some(check), removed };
        self.eureka.mesh.update_check(&format!("n{node}"), node.into(), update).await.unwrap();
    }

    fn ask(&self, method: &str, path: &str, accept: &str, namespace: &str) -> Reply {
        let caller = Caller {
            namespace: namespace.into(),
            identity: String::new(),
            address: IpAddr::from([10, 0, 0, 9]),
            rights: Rights::Read,
        };
        let request = Request::builder().method(method).uri(format!("/eureka/{path}")).header("accept", accept);
        self.eureka.answer(&caller, request.body(Bytes::new()).unwrap())
    }

    fn get_as(&self, path: &str, namespace: &str) -> Value {
        let reply = self.ask("GET", path, "application/json", namespace);
        assert_eq!(reply.status(), 200, "{path}: {:?}", reply.body());
        serde_json::from_slice(reply.body()).unwrap()
    }

    fn get(&self, path: &str) -> Value {
        self.get_as(path, "default")
    }

    /// Application, id and another field of the instances of an answer.
    fn listed(&self, path: &str, field: &str) -> Vec<String> {
        let answer = self.get(path);
        let apps = answer["applications"]["application"].as_array().unwrap().clone();
        let lists = apps.into_iter().flat_map(|app| {
            let name = app["name"].as_str().unwrap().to_owned();
            let instances = app["instance"].as_array().unwrap().clone();
            instances.into_iter().map(move |i| (name.clone(), i))
        });
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        lists.map(|(app, i)| format!("{app} {} {}", text(&i["instanceId"]), text(&i[field]))).collect()
    }
}

#[tokio::test]
async fn instances_of_both_apis_are_listed() {
    let fixture = Fixture::new().await;
    fixture.register(1, leased("order", "pod-1:order", "UP")).await;
    fixture.register(2, service("order", "order-1", vec![check("c", "order-1", "warning", "")])).await;
    let app = fixture.get("apps/Order")["application"].clone();
    assert_eq!((&app["name"], app["instance"].as_array().unwrap().len()), (&json!("ORDER"), 2));
    let (eureka, consul) = (&app["instance"][0], &app["instance"][1]);
    for (pointer, from_eureka, from_consul) in [
        ("/instanceId", json!("pod-1:order"), json!("n2:order-1")),
        ("/hostName", json!("pod-1"), json!("10.0.0.2")),
        ("/ipAddr", json!("10.0.0.1"), json!("10.0.0.2")),
        ("/status", json!("UP"), json!("UP")),
        ("/port/$", json!(8080), json!(8080)),
        ("/vipAddress", json!("shop,Order"), json!("order")),
        ("/leaseInfo/durationInSecs", json!(30), json!(90)),
        ("/dataCenterInfo/@class", json!("x.Y"), json!("com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo")),
        ("/metadata/team", json!("shop"), json!("shop")),
        ("/lastDirtyTimestamp", json!("17"), json!("0")),
    ] {
        assert_eq!(
            (eureka.pointer(pointer), consul.pointer(pointer)),
            (Some(&from_eureka), Some(&from_consul)),
            "{pointer}"
        );
    }
    assert_eq!(fixture.get("apps/ORDER/pod-1%3Aorder")["instance"], *eureka);
    assert_eq!(fixture.get("v2/instances/n2:order-1/")["instance"], *consul);
    assert_eq!(fixture.listed("vips/order", "status"), ["ORDER pod-1:order UP", "ORDER n2:order-1 UP"]);
    assert_eq!(fixture.listed("svips/SAFE", "status"), ["ORDER pod-1:order UP"]);
    assert_eq!(fixture.listed("apps/", "actionType").len(), 2);
    let xml = fixture.ask("GET", "apps", "*/*", "default");
    assert_eq!(xml.headers()["content-type"], "application/xml");
    assert!(xml.body().starts_with(b"<applications><application><instance><actionType>ADDED<"), "{:?}", xml.body());
    for (method, path, status) in [
        ("GET", "apps/CART", 404),
        ("GET", "apps/CART/pod-1%3Aorder", 404),
        ("GET", "instances/order-1", 404),
        ("GET", "vips/safe", 404),
        ("POST", "apps/ORDER", 501),
        ("DELETE", "apps/ORDER/pod-1%3Aorder", 501),
        ("PUT", "apps", 405),
        ("GET", "lastn", 501),
    ] {
        assert_eq!(fixture.ask(method, path, "", "default").status(), status, "{method} {path}");
    }
}

#[tokio::test]
async fn misleading_host_names_are_replaced_by_addresses() {
    let fixture = Fixture::new().await;
    for (given, shown) in
        [("localhost", "10.0.0.1"), ("127.0.0.1", "10.0.0.1"), ("10.0.0.1", "10.0.0.1"), ("a.b", "a.b")]
    {
        let mut instance = leased("order", "o", "UP");
        instance.eureka = instance.eureka.replace("pod-1", given);
        fixture.register(1, instance).await;
        assert_eq!(fixture.listed("apps", "hostName"), [format!("ORDER o {shown}")], "{given}");
    }
}

#[tokio::test]
async fn health_is_status() {
    let fixture = Fixture::new().await;
    let status = || fixture.listed("apps", "status").concat();
    for (instance, expected) in [
        (leased("order", "o", "STARTING"), "STARTING"),
        (leased("order", "o", "UNKNOWN"), "UNKNOWN"),
        (leased("order", "o", "UP"), "UP"),
    ] {
        fixture.register(1, instance).await;
        assert_eq!(status(), format!("ORDER o {expected}"));
    }
    let lapsed = "TTL expired (last output before timeout follows): UP";
    fixture.check(1, check("eureka:o", "o", "critical", lapsed), false).await;
    assert_eq!(status(), "ORDER o DOWN");
    fixture.check(1, maintenance("o"), false).await;
    assert_eq!(status(), "ORDER o OUT_OF_SERVICE");
    assert_eq!(fixture.listed("apps", "overriddenstatus"), ["ORDER o OUT_OF_SERVICE"]);
    fixture.check(1, maintenance("o"), true).await;
    fixture.check(1, check("eureka:o", "o", "passing", "UP"), false).await;
    assert_eq!(status(), "ORDER o UP");
    fixture.check(1, check("other", "o", "critical", "full disk"), false).await;
    assert_eq!(status(), "ORDER o DOWN");
    fixture.check(1, maintenance(""), false).await;
    assert_eq!(status(), "ORDER o OUT_OF_SERVICE", "all of the node is");
    assert_eq!(fixture.get("apps")["applications"]["apps__hashcode"], "OUT_OF_SERVICE_1_");
    assert_eq!(fixture.listed("apps", "hostName"), ["ORDER o pod-1"], "the document stays");
}

#[tokio::test]
async fn a_namespace_sees_its_own_first() {
    let fixture = Fixture::new().await;
    fixture.register(1, service("order", "o", Vec::new())).await;
    fixture.register(1, service("cart", "c", Vec::new())).await;
    fixture.register(3, service("Order", "own", Vec::new())).await;
    assert_eq!(fixture.listed("apps", "status"), ["CART n1:c UP", "ORDER n1:o UP"]);
    let seen = fixture.get_as("apps", "shop")["applications"].clone();
    assert_eq!(
        (&seen["application"][1]["instance"][0]["instanceId"], &seen["apps__hashcode"]),
        (&json!("n3:own"), &json!("UP_2_"))
    );
    assert_eq!(fixture.get_as("apps/delta", "shop")["applications"]["application"], seen["application"]);
    assert_eq!(fixture.ask("GET", "instances/n1:o", "", "shop").status(), 404);
}

#[tokio::test]
async fn the_delta_has_the_changes_and_the_hash_of_the_registry() {
    let fixture = Fixture::new().await;
    fixture.register(1, service("order", "o", Vec::new())).await;
    let version = |path: &str| fixture.get(path)["applications"]["versions__delta"].clone();
    assert_eq!(version("apps"), version("apps/delta"), "nothing has changed since");
    assert_eq!(fixture.listed("apps/delta", "actionType"), ["ORDER n1:o ADDED"]);
    let first = version("apps");
    fixture.register(2, service("cart", "c", Vec::new())).await;
    fixture.check(1, check("x", "o", "critical", ""), false).await;
    assert_eq!(fixture.listed("apps/delta", "actionType"), ["CART n2:c ADDED", "ORDER n1:o MODIFIED"]);
    assert_eq!(fixture.get("apps/delta")["applications"]["apps__hashcode"], "DOWN_1_UP_1_");
    assert_ne!(version("apps/delta"), first);
    fixture.eureka.mesh.deregister("n2", 2, "c").await.unwrap();
    assert_eq!(fixture.listed("apps/delta", "actionType"), ["CART n2:c DELETED", "ORDER n1:o MODIFIED"]);
    assert_eq!(fixture.get("apps/delta")["applications"]["apps__hashcode"], "DOWN_1_");
    assert_eq!(fixture.listed("apps", "status"), ["ORDER n1:o DOWN"]);
    fixture.register(2, service("cart", "c", Vec::new())).await;
    assert_eq!(fixture.listed("apps/delta", "actionType"), ["CART n2:c MODIFIED", "ORDER n1:o MODIFIED"]);
    // After three minutes it is not reported any more, whether there are other changes or not.
    let (rows, stamp) = fixture.eureka.rows();
    let later = Instant::now() + Duration::from_secs(180);
    fixture.eureka.recent().follow(&rows, stamp, later);
    assert_eq!(fixture.eureka.recent().changes().count(), 0);
    assert_eq!(fixture.get("apps/delta")["applications"]["application"], json!([]));
}
