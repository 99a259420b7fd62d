//! The API as a caller sees it, over a mesh with a store of its own.

mod catalog;
mod config;
mod mesh;
mod queries;
mod txn;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use weft_proto::v1;

use super::*;
use crate::api::remote::Alone;
use crate::state::Node;
use crate::store::embedded::Embedded;

fn roots() -> connect::Roots {
    let (ca, _) = crate::identity::ca::Ca::create("cluster.local", std::time::SystemTime::now()).unwrap();
    connect::Roots::of(&ca)
}

struct Fixture {
    _dir: tempfile::TempDir,
    consul: Consul,
}

/// A sidecar in `namespace`, with its locality and labels.
fn sidecar(namespace: &str, number: u8, locality: &str) -> Node {
    Node {
        locality: locality.into(),
        labels: [("app".to_owned(), format!("w{number}"))].into(),
        ..Node::of_test(namespace, number)
    }
}

fn check(id: &str, service_id: &str, status: &str) -> v1::Check {
    let text = |text: &str| text.to_owned();
    v1::Check { check_id: text(id), service_id: text(service_id), status: text(status), ..Default::default() }
}

fn service(name: &str, id: &str, tags: &[&str], status: &str) -> v1::Instance {
    v1::Instance {
        service_id: id.into(),
        service: name.into(),
        port: 8080,
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        meta: [("team".to_owned(), "shop".to_owned())].into(),
        checks: vec![check(&format!("service:{id}"), id, status)],
        ..Default::default()
    }
}

/// Three nodes: n1 in eu/a with a passing order, n2 in eu/b with one in warning and a cart, n3 in us/a with a critical
/// one; in the namespace "shop" n4 with a cart of its own.
async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(dir.path()).unwrap());
    let mesh = Mesh::open(store, "cluster.local", Duration::from_secs(15)).await.unwrap();
    for (number, namespace, locality, services) in [
        (1, "default", "eu/a", vec![service("order", "order-1", &["v1", "Production"], "passing")]),
        (
            2,
            "default",
            "eu/b",
            vec![service("order", "order-1", &["v2"], "warning"), service("cart", "cart", &[], "passing")],
        ),
        (3, "default", "us/a", vec![service("order", "order-1", &["v1"], "critical")]),
        (4, "shop", "eu/b", vec![service("cart", "cart", &["own"], "passing")]),
    ] {
        let name = format!("n{number}");
        let session = mesh.begin_session(&name, sidecar(namespace, number, locality)).await.unwrap();
        for service in services {
            mesh.register(&name, session, service).await.unwrap();
        }
    }
    let update = v1::CheckUpdate { check: Some(check("disk", "", "passing")), removed: false };
    mesh.update_check("n1", 1, update).await.unwrap();
    Fixture {
        _dir: dir,
        consul: Consul {
            mesh,
            address: ([10, 0, 0, 9], 15012).into(),
            roots: roots(),
            federation: Alone::shared(),
            allow_external: true,
        },
    }
}

fn caller(namespace: &str, number: u8) -> Caller {
    let Node { namespace, identity, address, .. } = sidecar(namespace, number, "");
    Caller { namespace, identity, address, rights: Rights::All }
}

impl Fixture {
    async fn ask(&self, method: &str, uri: &str, caller: &Caller) -> Reply {
        let request = Request::builder().method(method).uri(uri).body(Bytes::new()).unwrap();
        answer(&self.consul, caller, request).await
    }

    async fn get_as(&self, uri: &str, caller: &Caller) -> Value {
        let reply = self.ask("GET", uri, caller).await;
        assert_eq!(reply.status(), 200, "{uri}: {:?}", reply.body());
        serde_json::from_slice(reply.body()).unwrap()
    }

    async fn get(&self, uri: &str) -> Value {
        self.get_as(uri, &caller("default", 1)).await
    }

    /// The values of the items of an answer at a path, in order.
    async fn column(&self, uri: &str, pointer: &str) -> Vec<String> {
        let items = self.get(uri).await;
        let text = |item: &Value| item.pointer(pointer).and_then(Value::as_str).unwrap_or("?").to_owned();
        items.as_array().unwrap().iter().map(text).collect()
    }

    async fn register(&self, node: &str, session: u64, service: v1::Instance) {
        self.consul.mesh.register(node, session, service).await.unwrap();
    }
}

fn index(reply: &Reply) -> u64 {
    reply.headers()["x-consul-index"].to_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn health_and_catalog_have_consuls_shape() {
    let fixture = fixture().await;
    let item = &fixture.get("/v1/health/service/order").await[0];
    assert_eq!((&item["Node"]["Address"], &item["Node"]["Meta"]["app"]), (&"10.0.0.1".into(), &"w1".into()));
    assert_eq!(item["Node"]["ID"].as_str().unwrap().len(), 36);
    assert_eq!(item["Service"]["Tags"], serde_json::json!(["v1", "Production"]));
    assert_eq!(item["Service"]["Weights"], serde_json::json!({ "Passing": 1, "Warning": 1 }));
    assert_eq!(
        item["Service"]["TaggedAddresses"]["lan_ipv4"],
        serde_json::json!({"Address": "10.0.0.1", "Port": 8080})
    );
    let ids: Vec<_> =
        item["Checks"].as_array().unwrap().iter().map(|check| check["CheckID"].as_str().unwrap()).collect();
    assert_eq!(ids, ["serfHealth", "disk", "service:order-1"]);
    assert_eq!(item["Checks"][2]["ServiceName"], "order");
    let item = &fixture.get("/v1/catalog/service/order").await[2];
    assert_eq!((&item["ServicePort"], &item["Node"], &item["Datacenter"]), (&8080.into(), &"n3".into(), &"dc1".into()));
    assert_eq!(fixture.column("/v1/health/checks/order", "/Status").await, ["passing", "warning", "critical"]);
    assert_eq!(
        fixture.get("/v1/catalog/services").await,
        serde_json::json!({ "order": ["Production", "v1", "v2"], "cart": [] })
    );
    assert_eq!(fixture.column("/v1/catalog/nodes", "/Node").await, ["n1", "n2", "n3"]);
    let node = fixture.get("/v1/catalog/node/n2").await;
    assert_eq!((&node["Node"]["Node"], &node["Services"]["cart"]["Service"]), (&"n2".into(), &"cart".into()));
    assert_eq!(node["Services"].as_object().unwrap().len(), 2);
    assert_eq!(fixture.column("/v1/health/node/n1", "/CheckID").await, ["serfHealth", "disk", "service:order-1"]);
    for (state, count) in [("any", 8), ("passing", 6), ("warning", 1), ("critical", 1), ("unknown", 0)] {
        let items = fixture.get(&format!("/v1/health/state/{state}")).await;
        assert_eq!(items.as_array().unwrap().len(), count, "{state}: {items:#}");
    }
    assert_eq!(fixture.get("/v1/catalog/datacenters").await, serde_json::json!(["dc1"]));
    assert_eq!(fixture.get("/v1/status/leader").await, "10.0.0.9:15012");
    assert_eq!(fixture.get("/v1/status/peers").await, serde_json::json!(["10.0.0.9:15012"]));
    assert_eq!(fixture.get("/v1/query").await, serde_json::json!([]));
    // Missing objects give empty answers.
    for (uri, body) in [
        ("/v1/health/service/absent", "[]"),
        ("/v1/health/node/absent", "[]"),
        ("/v1/catalog/service/absent", "[]"),
        ("/v1/catalog/node/absent", "null"),
    ] {
        let reply = fixture.ask("GET", uri, &caller("default", 1)).await;
        assert_eq!((reply.status().as_u16(), &reply.body()[..]), (200, body.as_bytes()), "{uri}");
        assert!(index(&reply) >= 1);
    }
}

#[tokio::test]
async fn registered_fields_are_returned() {
    let fixture = fixture().await;
    let public = v1::TaggedAddress { address: "shop.example".into(), port: 443 };
    let instance = v1::Instance {
        tagged_addresses: [("wan".to_owned(), public)].into(),
        weight: 10,
        warning_weight: Some(0),
        ..service("order", "order-1", &[], "passing")
    };
    fixture.register("n1", 1, instance).await;
    let shown = &fixture.get("/v1/health/service/order").await[0]["Service"];
    assert_eq!(shown["Weights"], serde_json::json!({ "Passing": 10, "Warning": 0 }));
    assert_eq!(shown["TaggedAddresses"]["wan"], serde_json::json!({ "Address": "shop.example", "Port": 443 }));
    assert_eq!(shown["TaggedAddresses"]["wan_ipv4"]["Address"], "10.0.0.1");
    let item = &fixture.get("/v1/catalog/service/order").await[0];
    assert_eq!(
        (&item["ServiceTaggedAddresses"], &item["ServiceWeights"]),
        (&shown["TaggedAddresses"], &shown["Weights"])
    );
}

#[tokio::test]
async fn parameters_pick_and_sort() {
    let fixture = fixture().await;
    for (query, nodes) in [
        ("", &["n1", "n2", "n3"][..]),
        ("passing", &["n1"]),
        ("passing=False", &["n1", "n2", "n3"]),
        ("tag=production&tag=V1", &["n1"]),
        ("tag=v1", &["n1", "n3"]),
        ("tag=v1&tag=v2", &[]),
        ("node-meta=app:w2", &["n2"]),
        ("node-meta=app", &[]),
        ("dc=dc1&ns=default&stale=false&cached", &["n1", "n2", "n3"]),
        ("filter=Service.Meta.team+==+shop+and+Node.Node+!=+n1", &["n2", "n3"]),
        ("near=n3", &["n3", "n1", "n2"]),
        ("near=n2", &["n2", "n1", "n3"]),
        ("near=_agent", &["n1", "n2", "n3"]),
        ("near=absent", &["n1", "n2", "n3"]),
    ] {
        let uri = format!("/v1/health/service/order?{query}");
        assert_eq!(fixture.column(&uri, "/Node/Node").await, nodes, "{query}");
    }
    for (uri, pointer, found) in [
        ("/v1/catalog/nodes?near=n3", "/Node", &["n3", "n1", "n2"][..]),
        ("/v1/catalog/nodes?filter=Meta.app+==+w2", "/Node", &["n2"]),
        ("/v1/catalog/nodes?node-meta=app:w3", "/Node", &["n3"]),
        ("/v1/health/node/n1?filter=CheckID+matches+%22^d%22", "/CheckID", &["disk"]),
        ("/v1/health/state/any?filter=ServiceName+==+cart", "/Node", &["n2"]),
        ("/v1/catalog/service/order?near=n3&tag=v1", "/Node", &["n3", "n1"]),
    ] {
        assert_eq!(fixture.column(uri, pointer).await, found, "{uri}");
    }
    let near = fixture.get_as("/v1/catalog/service/order?near=_agent", &caller("default", 3)).await;
    assert_eq!(near[0]["Node"], "n3");
    // A filter selects instances before their tags are joined.
    for (query, services) in [
        ("filter=ServiceTags+contains+v2", serde_json::json!({ "order": ["v2"] })),
        ("filter=ServiceName+==+cart", serde_json::json!({ "cart": [] })),
        ("node-meta=app:w1", serde_json::json!({ "order": ["Production", "v1"] })),
    ] {
        assert_eq!(fixture.get(&format!("/v1/catalog/services?{query}")).await, services, "{query}");
    }
    let services = fixture.get("/v1/catalog/node/n2?filter=Service+==+order").await["Services"].clone();
    assert_eq!(services.as_object().unwrap().keys().collect::<Vec<_>>(), ["order-1"]);
}

#[tokio::test]
async fn names_are_looked_up_in_the_callers_namespace_and_then_in_default() {
    let fixture = fixture().await;
    let nodes = async |uri: &str, namespace: &str, number: u8| {
        let items = fixture.get_as(uri, &caller(namespace, number)).await;
        items.as_array().unwrap().iter().map(|item| item["Node"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(nodes("/v1/catalog/service/cart", "shop", 4).await, ["n4"]);
    assert_eq!(nodes("/v1/catalog/service/cart", "default", 1).await, ["n2"]);
    assert_eq!(nodes("/v1/catalog/service/cart", "other", 7).await, ["n2"]);
    assert_eq!(nodes("/v1/catalog/service/order", "shop", 4).await, ["n1", "n2", "n3"]);
    assert_eq!(nodes("/v1/catalog/nodes", "shop", 4).await, ["n1", "n2", "n3", "n4"]);
    assert_eq!(nodes("/v1/health/node/n4", "default", 1).await, [""; 0]);
    assert_eq!(fixture.get("/v1/catalog/node/n4").await, Value::Null);
    assert_eq!(nodes("/v1/catalog/service/order?near=n4", "default", 1).await, ["n1", "n2", "n3"], "not to be seen");
}

#[tokio::test]
async fn errors_are_consuls_and_have_an_index() {
    let fixture = fixture().await;
    for (method, uri, status, text) in [
        ("GET", "/v1/health/service/a?index=x", 400, "Invalid index"),
        ("GET", "/v1/health/service/a?wait=x", 400, "Invalid wait time"),
        ("GET", "/v1/health/service/a?passing=x", 400, "Invalid value for ?passing"),
        ("GET", "/v1/health/service/a?filter=x", 400, "an operator is missing after \"x\""),
        ("GET", "/v1/catalog/services?filter=Nonsense==b", 400, "Selector \"Nonsense\" is not valid"),
        ("GET", "/v1/health/service/a?dc=dc2", 500, "No path to datacenter"),
        ("GET", "/v1/catalog/nodes?dc=dc2", 500, "No path to datacenter"),
        ("GET", "/v1/health/service/a?ns=shop", 400, "the token decides"),
        ("GET", "/v1/health/service/a?peer=b", 400, "\"peer\" is not supported yet"),
        ("GET", "/v1/health/state/ill", 400, "Invalid check state: \"ill\""),
        ("GET", "/v1/health/service/", 400, "Missing service name"),
        ("GET", "/v1/acl/tokens", 501, "not supported"),
        ("PUT", "/v1/catalog/register", 400, "Must provide node"),
        ("GET", "/v1/catalog/register", 405, "method GET not allowed"),
        ("POST", "/v1/catalog/services", 405, "method POST not allowed"),
    ] {
        let reply = fixture.ask(method, uri, &caller("default", 1)).await;
        assert_eq!(reply.status(), status, "{uri}");
        let body = String::from_utf8_lossy(reply.body()).into_owned();
        assert!(body.contains(text), "{uri}: {body}");
        assert!(method != "GET" || status == 405 || index(&reply) == 1, "{uri}");
        assert!(status != 405 || method == "GET" || reply.headers()["allow"] == "OPTIONS,GET");
    }
    let options = fixture.ask("OPTIONS", "/v1/catalog/nodes", &caller("default", 1)).await;
    assert_eq!((options.status().as_u16(), &options.headers()["allow"]), (200, &"OPTIONS,GET".parse().unwrap()));
    let reply = fixture.ask("GET", "/v1/health/service/order?stale&pretty", &caller("default", 1)).await;
    let header = |name: &str| reply.headers()[name].to_str().unwrap().to_owned();
    assert_eq!((header("x-consul-knownleader"), header("x-consul-lastcontact")), ("true".into(), "0".into()));
    assert_eq!(header("x-consul-effective-consistency"), "stale");
    assert_eq!(header("content-type"), "application/json");
    assert!(reply.body().starts_with(b"[\n"), "pretty");
}

#[tokio::test]
async fn a_blocking_query_wakes_for_its_service_only() {
    let fixture = Arc::new(fixture().await);
    let seen = index(&fixture.ask("GET", "/v1/health/service/order", &caller("default", 1)).await);
    // From here on only the wait takes time.
    tokio::time::pause();
    let start = Instant::now();
    let wait = |index: u64, wait: &str| {
        let (fixture, uri) = (fixture.clone(), format!("/v1/health/service/order?index={index}&wait={wait}"));
        tokio::spawn(async move { fixture.ask("GET", &uri, &caller("default", 1)).await })
    };
    let reply = wait(seen, "10s").await.unwrap();
    assert_eq!((index(&reply), start.elapsed().as_secs()), (seen, 10));
    assert_eq!(index(&wait(seen - 1, "10s").await.unwrap()), seen);
    assert_eq!(start.elapsed().as_secs(), 10, "an index from before a restart is answered at once");

    // The store writes on a thread of its own, which the paused clock would not wait for.
    tokio::time::resume();
    let waiting = wait(seen, "60s");
    fixture.register("n2", 2, service("cart", "cart", &["changed"], "passing")).await;
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished(), "another service");
    fixture.register("n3", 3, service("order", "order-1", &["v1"], "passing")).await;
    let reply = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert!(index(&reply) > seen);

    // A removed service keeps its index.
    let before = index(&reply);
    for (node, session) in [("n1", 1), ("n2", 2), ("n3", 3)] {
        fixture.consul.mesh.deregister(node, session, "order-1").await.unwrap();
    }
    let gone = fixture.ask("GET", "/v1/health/service/order", &caller("default", 1)).await;
    assert!(index(&gone) > before && &gone.body()[..] == b"[]");
}

#[tokio::test]
async fn pairs_and_locks_as_clients_use_them() {
    let fixture = fixture().await;
    let own = caller("default", 1);
    let ask = |method: &'static str, uri: &'static str, body: &'static str| {
        let request = Request::builder().method(method).uri(uri).body(Bytes::from(body)).unwrap();
        let (fixture, own) = (&fixture, &own);
        async move {
            let reply = answer(&fixture.consul, own, request).await;
            let status = reply.status().as_u16();
            (status, String::from_utf8(reply.into_body().to_vec()).unwrap())
        }
    };
    let missing = fixture.ask("GET", "/v1/kv/app/a", &own).await;
    assert_eq!((missing.status().as_u16(), missing.body().len()), (404, 0));
    assert!(index(&missing) > 0);
    assert_eq!(ask("PUT", "/v1/kv/app/a?flags=42", "hello").await, (200, "true".into()));
    assert_eq!(ask("PUT", "/v1/kv/app/a?cas=0", "x").await, (200, "false".into()));
    assert_eq!(ask("PUT", "/v1/kv/app/b/c", "").await, (200, "true".into()));
    let pair = fixture.get("/v1/kv/app/a").await;
    assert_eq!(
        (&pair[0]["Key"], &pair[0]["Value"], &pair[0]["Flags"]),
        (&"app/a".into(), &"aGVsbG8=".into(), &42.into())
    );
    assert!(pair[0].get("Session").is_none());
    assert_eq!(ask("GET", "/v1/kv/app/a?raw", "").await, (200, "hello".into()));
    let keys = fixture.get("/v1/kv/app/?keys&separator=/").await;
    assert_eq!(keys, serde_json::json!(["app/a", "app/b/"]));
    assert_eq!(fixture.get("/v1/kv/?recurse").await.as_array().unwrap().len(), 2);
    assert_eq!(ask("GET", "/v1/kv/?keys", "").await.0, 200);
    assert_eq!(ask("GET", "/v1/kv/none?keys", "").await.0, 404);
    assert_eq!(ask("GET", "/v1/kv/", "").await, (400, "Missing key name".into()));
    assert_eq!(ask("PUT", "/v1/kv/app/a?cas=1&acquire=x", "").await.0, 400);
    assert_eq!(ask("PUT", "/v1/kv/app/a?acquire=absent", "").await, (500, "invalid session \"absent\"".into()));

    let (status, made) = ask("PUT", "/v1/session/create", r#"{"Name":"job"}"#).await;
    let made: Value = serde_json::from_str(&made).unwrap();
    let id = made["ID"].as_str().unwrap();
    assert_eq!(status, 200);
    let info = fixture.get(&format!("/v1/session/info/{id}")).await;
    assert_eq!((&info[0]["Name"], &info[0]["Node"]), (&"job".into(), &"n1".into()));
    assert_eq!((&info[0]["LockDelay"], &info[0]["Behavior"]), (&15_000_000_000_u64.into(), &"release".into()));
    assert_eq!(fixture.get("/v1/session/node/n1").await.as_array().unwrap().len(), 1);
    assert_eq!(fixture.get("/v1/session/list").await[0]["ID"], id);
    let lock = format!("/v1/kv/lock?acquire={id}");
    assert_eq!(fixture.ask("PUT", &lock, &own).await.body(), "true");
    assert_eq!(fixture.get("/v1/kv/lock").await[0]["Session"], id);
    assert_eq!(fixture.ask("PUT", &format!("/v1/session/renew/{id}"), &own).await.status(), 200);
    assert_eq!(fixture.ask("PUT", &format!("/v1/session/destroy/{id}"), &own).await.body(), "true");
    assert_eq!(fixture.ask("PUT", &format!("/v1/session/renew/{id}"), &own).await.status(), 404);
    assert!(fixture.get("/v1/kv/lock").await[0].get("Session").is_none());
    assert_eq!(fixture.get_as("/v1/kv/?keys", &caller("shop", 4)).await, serde_json::json!([]), "another's namespace");
    assert_eq!(ask("DELETE", "/v1/kv/app?recurse", "").await, (200, "true".into()));
    assert_eq!(fixture.get("/v1/kv/?keys").await, serde_json::json!(["lock"]));
}

/// Ten thousand waiters for one service are not touched when another changes, and wake when theirs does.
#[tokio::test]
async fn ten_thousand_waiters_are_not_woken_by_another_service() {
    let fixture = Arc::new(fixture().await);
    let seen = index(&fixture.ask("GET", "/v1/health/service/order", &caller("default", 1)).await);
    let looked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let waiting: Vec<_> = (0..10_000)
        .map(|_| {
            let (fixture, looked) = (fixture.clone(), looked.clone());
            tokio::spawn(async move {
                let own = caller("default", 1);
                let uri = format!("/v1/health/service/order?index={seen}&wait=10m");
                let mut ask = Box::pin(fixture.ask("GET", &uri, &own));
                std::future::poll_fn(|cx| {
                    looked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    ask.as_mut().poll(cx)
                })
                .await
            })
        })
        .collect();
    let count = || looked.load(std::sync::atomic::Ordering::Relaxed);
    while count() < 10_000 {
        tokio::task::yield_now().await;
    }
    for n in 0..100 {
        let tag = format!("t{n}");
        fixture.register("n2", 2, service("cart", "cart", &[&tag], "passing")).await;
    }
    assert_eq!(count(), 10_000, "no waiter was woken");
    assert!(waiting.iter().all(|one| !one.is_finished()));
    fixture.register("n3", 3, service("order", "order-1", &["v9"], "passing")).await;
    for one in waiting {
        let reply = tokio::time::timeout(Duration::from_secs(60), one).await.unwrap().unwrap();
        assert!(index(&reply) > seen);
    }
}

#[tokio::test]
async fn writes_above_a_bound_are_413_and_counted() {
    let fixture = fixture().await;
    let long = "x".repeat(20_000);
    for (number, (method, uri, body)) in [
        ("PUT", "/v1/session/create", format!(r#"{{"Name": "{long}"}}"#)),
        ("POST", "/v1/query", format!(r#"{{"Service": {{"Service": "order", "NodeMeta": {{"k": "{long}"}}}}}}"#)),
        ("PUT", "/v1/kv/large", "x".repeat((512 << 10) + 1)),
        ("PUT", &*format!("/v1/kv/{}", &long[..1100]), String::new()),
    ]
    .into_iter()
    .enumerate()
    {
        let request = Request::builder().method(method).uri(uri).body(Bytes::from(body)).unwrap();
        let reply = answer(&fixture.consul, &caller("default", 1), request).await;
        assert_eq!(reply.status(), 413, "{method} {uri:.40}: {:?}", reply.body());
        assert_eq!(fixture.consul.mesh.out_of_bounds.load(Ordering::Relaxed), number as u64 + 1);
    }
}
