//! `catalog/register` and `catalog/deregister`.

use super::*;
use crate::identity::token::ApiClaims;
use weft_world::translate;

/// A caller with a token for these services.
pub(super) fn by_token(services: &[&str]) -> Caller {
    let claims = ApiClaims {
        trust_domain: "cluster.local".into(),
        namespace: "default".into(),
        services: services.iter().map(|s| (*s).to_owned()).collect(),
        read: Vec::new(),
        keys: Vec::new(),
        expires: 0,
    };
    let address = IpAddr::from([10, 9, 9, 9]);
    Caller { namespace: "default".into(), identity: String::new(), address, rights: Rights::Token(Arc::new(claims)) }
}

async fn put(fixture: &Fixture, what: &str, caller: &Caller, body: &str) -> (u16, String) {
    let uri = format!("/v1/catalog/{what}");
    let request = Request::builder().method("PUT").uri(uri).body(Bytes::from(body.to_owned())).unwrap();
    let reply = answer(&fixture.consul, caller, request).await;
    (reply.status().as_u16(), String::from_utf8_lossy(reply.body()).trim().to_owned())
}

const DONE: (u16, &str) = (200, "true");
const DB: &str = r#"{"Node":"db1","Address":"192.0.2.7","NodeMeta":{"rack":"a"},
    "Service":{"Service":"db","ID":"db-1","Port":5432,"Tags":["v1"],"Weights":{"Passing":3,"Warning":1}},
    "Check":{"CheckID":"disk","ServiceID":"db-1","Status":"passing","Output":"fine"}}"#;

#[tokio::test]
async fn catalog_registrations_are_visible_in_catalog_and_mesh() {
    let fixture = fixture().await;
    let db = by_token(&["db"]);
    let write = async |what: &str, body: &str| put(&fixture, what, &db, body).await;
    let done = (DONE.0, DONE.1.to_owned());
    assert_eq!(write("register", DB).await, done);
    let item = &fixture.get("/v1/health/service/db").await[0];
    assert_eq!((&item["Node"]["Node"], &item["Node"]["Meta"]["rack"]), (&"db1".into(), &"a".into()));
    assert_eq!((&item["Service"]["Address"], &item["Service"]["Port"]), (&"192.0.2.7".into(), &5432.into()));
    assert_eq!(fixture.column("/v1/health/checks/db", "/Output").await, ["fine"]);
    let endpoint = || {
        let found = fixture.consul.mesh.read(|world| {
            let host = world.host("db.default.svc.cluster.local");
            host.map(|host| translate::endpoints(world, host))
        });
        found.unwrap().endpoints.remove(0)
    };
    assert_eq!((endpoint().identity.as_str(), endpoint().weight, endpoint().health()), ("", 3, v1::Health::Healthy));
    // Repeating it changes nothing; a service that is written again keeps its checks.
    let index_of = async || index(&fixture.ask("GET", "/v1/catalog/service/db", &caller("default", 1)).await);
    let before = index_of().await;
    assert_eq!(write("register", DB).await, done);
    let moved = r#"{"node":"db1","address":"192.0.2.7","service":{"service":"db","id":"db-1","port":5433,"address":"192.0.2.8"}}"#;
    assert_eq!(write("register", moved).await, done);
    assert!(index_of().await > before);
    assert_eq!((endpoint().address.as_str(), endpoint().port), ("192.0.2.8", 5433));
    assert_eq!(fixture.column("/v1/health/checks/db", "/Output").await, ["fine"]);
    // A single check, also of the node; none of them is probed.
    let check = |service: &str, status: &str| {
        format!(
            r#"{{"Node":"db1","SkipNodeUpdate":true,"Check":{{"Name":"ping","ServiceID":"{service}","Status":"{status}"}}}}"#
        )
    };
    assert_eq!(write("register", &check("db-1", "critical")).await, done);
    assert_eq!(endpoint().health(), v1::Health::Unhealthy);
    assert_eq!(write("deregister", r#"{"Node":"db1","CheckID":"ping"}"#).await, done);
    assert_eq!(endpoint().health(), v1::Health::Healthy);
    assert_eq!(write("register", &check("", "critical")).await, done);
    assert_eq!(endpoint().health(), v1::Health::Unhealthy, "a check of the node counts for all on it");
    assert_eq!(write("deregister", r#"{"Node":"db1","CheckID":"ping"}"#).await, done);
    // Catalog nodes have no lease.
    fixture.consul.mesh.reap_for_tests().await;
    assert_eq!(fixture.column("/v1/catalog/nodes", "/Node").await, ["db1", "n1", "n2", "n3"]);
    assert_eq!(write("deregister", r#"{"Node":"db1","ServiceID":"db-1"}"#).await, done);
    assert_eq!(fixture.get("/v1/catalog/service/db").await, serde_json::json!([]));
    assert_eq!(write("register", DB).await, done);
    assert_eq!(write("deregister", r#"{"Node":"db1"}"#).await, done);
    assert_eq!(fixture.column("/v1/catalog/nodes", "/Node").await, ["n1", "n2", "n3"]);
    assert_eq!(write("deregister", r#"{"Node":"db1"}"#).await, done, "removing a missing object is not an error");
}

#[tokio::test]
async fn writes_to_nodes_of_others_are_refused() {
    let fixture = fixture().await;
    let (db, cache) = (by_token(&["db"]), by_token(&["cache"]));
    assert_eq!(put(&fixture, "register", &db, DB).await.0, 200);
    let node = |rest: &str| format!(r#"{{"Node":"db1","Address":"192.0.2.7",{rest}}}"#);
    let of = |node: &str, address: &str| {
        format!(r#"{{"Node":"{node}","Address":"{address}","Service":{{"Service":"db","Port":1}}}}"#)
    };
    let cases = [
        (&cache, "register", DB.to_owned(), 403, "lacks permission 'service:write' on \"db\""),
        (&cache, "register", node(r#""Check":{"Name":"a","ServiceID":"db-1"}"#), 403, "service:write"),
        (&cache, "register", node(r#""Check":{"Name":"a"}"#), 403, "service:write"),
        (&cache, "register", node(r#""NodeMeta":{"rack":"b"}"#), 403, "service:write"),
        (&cache, "register", node(r#""Service":{"Service":"cache","ID":"db-1","Port":1}"#), 403, "\"db\""),
        (&cache, "register", node(r#""Service":{"Service":"cache","Port":1}"#), 200, "true"),
        (&db, "deregister", r#"{"Node":"db1"}"#.to_owned(), 403, "\"cache\""),
        (&cache, "deregister", r#"{"Node":"db1","ServiceID":"db-1"}"#.to_owned(), 403, "\"db\""),
        (&cache, "deregister", r#"{"Node":"db1","CheckID":"disk"}"#.to_owned(), 403, "\"db\""),
        (&db, "register", of("n1", "192.0.2.9"), 500, "the node n1 has an agent of its own"),
        (&db, "deregister", r#"{"Node":"n1"}"#.to_owned(), 500, "the node n1 has an agent of its own"),
        (&db, "register", of("db2", "10.0.0.1"), 500, "belongs to spiffe://cluster.local/ns/default/sa/w1"),
        (&db, "register", of("db2", "127.0.0.1"), 400, "no address by which others reach it"),
        (&db, "register", of("db2", "169.254.169.254"), 400, "no address by which others reach it"),
        (&db, "register", of("db2", "255.255.255.255"), 400, "no address by which others reach it"),
        (&db, "register", of("db2", "host"), 400, "is not an IP address"),
        (&db, "register", of("ext-192-0-2-7", "192.0.2.9"), 400, "is reserved for programs that register"),
        (&db, "register", of("a b", "192.0.2.9"), 400, "Must provide node"),
        (&db, "register", r#"{"Node":"db2"}"#.to_owned(), 400, "Must provide address"),
        (&db, "register", node(r#""Check":{"Name":"a","Status":"ok"}"#), 400, "Status for checks must"),
        (&db, "register", node(r#""Check":{"Name":"a","ServiceID":"none"}"#), 500, "no service \"none\""),
        (&db, "register", node(r#""Datacenter":"dc9""#), 501, "the catalog of another datacenter is read-only here"),
        (&db, "register", "[1]".to_owned(), 400, "an object"),
    ];
    for (caller, what, body, status, words) in cases {
        let (got, text) = put(&fixture, what, caller, &body).await;
        assert!(got == status && text.contains(words), "{what} {body}: {got} {text}");
    }
    // Writes without a token, or to another namespace's node, are refused.
    let (status, text) = put(&fixture, "register", &caller("default", 1), DB).await;
    assert!(status == 403 && text.contains("without a token"), "{text}");
    let shop = Caller { namespace: "shop".into(), ..db.clone() };
    assert!(put(&fixture, "register", &shop, DB).await.1.contains("in use in another namespace"));
    let closed = Consul { allow_external: false, ..fixture.consul };
    let request = Request::builder().method("PUT").uri("/v1/catalog/register").body(Bytes::from(DB)).unwrap();
    let reply = answer(&closed, &db, request).await;
    assert!(reply.status() == 403 && reply.body().starts_with(b"Permission denied: this control plane accepts no"));
}

#[tokio::test]
async fn a_sidecar_takes_its_address_from_the_catalog() {
    let fixture = fixture().await;
    let db = by_token(&["db"]);
    let at = |node: &str, address: &str| {
        format!(r#"{{"Node":"{node}","Address":"{address}","Service":{{"Service":"db","Port":5432}}}}"#)
    };
    for body in [at("db1", "10.0.0.8"), at("db2", "10.0.0.9")] {
        assert_eq!(put(&fixture, "register", &db, &body).await.0, 200);
    }
    fixture.consul.mesh.begin_session("n8", sidecar("default", 8, "")).await.unwrap();
    assert_eq!(fixture.column("/v1/catalog/service/db", "/Address").await, ["10.0.0.9"]);
    // It has no identity: callers do not use mutual TLS.
    for connect in ["health/connect/db", "catalog/connect/db"] {
        assert_eq!(fixture.get(&format!("/v1/{connect}")).await, serde_json::json!([]), "{connect}");
    }
    assert_eq!(fixture.column("/v1/health/connect/cart", "/Node/Node").await, ["n2"]);
    let (status, text) = put(&fixture, "register", &db, &at("db1", "10.0.0.8")).await;
    assert!(status == 500 && text.contains("belongs to"), "{status} {text}");
}

#[tokio::test]
async fn catalog_registrations_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = None;
    for _ in 0..2 {
        let store = crate::state::tests_store(dir.path()).await;
        let mesh = Mesh::open(store, "cluster.local", Duration::from_secs(15)).await.unwrap();
        let federation = Alone::shared();
        let address = ([10, 0, 0, 9], 15012).into();
        let consul = Consul { mesh, address, roots: roots(), federation, allow_external: true };
        let fixture = Fixture { _dir: tempfile::tempdir().unwrap(), consul };
        if before.is_none() {
            assert_eq!(put(&fixture, "register", &by_token(&["db"]), DB).await.0, 200);
        }
        fixture.consul.mesh.reap_for_tests().await;
        let found = fixture.get("/v1/health/service/db").await;
        assert_eq!(found.as_array().unwrap().len(), 1);
        assert_eq!(*before.get_or_insert_with(|| found.clone()), found);
    }
}

#[tokio::test]
async fn a_service_without_a_port_is_found_by_name() {
    let fixture = fixture().await;
    let portless = v1::Instance { service_id: "t".into(), service: "t".into(), ..v1::Instance::default() };
    crate::registry::fits(&portless).unwrap();
    fixture.register("n1", 1, portless.clone()).await;
    let service = &fixture.get("/v1/health/service/t").await[0]["Service"];
    assert_eq!((&service["Address"], &service["Port"]), (&"10.0.0.1".into(), &0.into()));
    assert_eq!(fixture.get("/v1/catalog/service/t").await[0]["ServicePort"], 0);
    assert_eq!(fixture.get("/v1/catalog/services").await["t"], serde_json::json!([]));
    let error = crate::registry::fits(&v1::Instance { port: 65536, ..portless }).unwrap_err();
    assert!(error.contains("Port 65536 is out of range"), "{error}");
}

#[tokio::test]
async fn contradictory_consistency_flags_are_refused() {
    let fixture = fixture().await;
    for path in ["health/service/order", "catalog/nodes", "kv/a", "session/list", "status/leader", "connect/ca/roots"] {
        let uri = format!("/v1/{path}?stale&consistent");
        let reply = fixture.ask("GET", &uri, &caller("default", 1)).await;
        assert_eq!(reply.status(), 400, "{uri}");
        assert!(reply.body().starts_with(b"Cannot specify ?stale with ?consistent"), "{uri}");
    }
    assert_eq!(fixture.ask("PUT", "/v1/kv/a?stale&consistent", &caller("default", 1)).await.status(), 200);
}
