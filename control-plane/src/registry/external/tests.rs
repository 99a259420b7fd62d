//! External programs as they see the control plane, with a mesh of its own.

use std::path::Path;

use weft_agent::upstream::Upstream;
use weft_proto::v1;

use super::*;
use crate::clock::unix_now;
use crate::identity::caller::Rights;
use crate::identity::token::ApiClaims;
use crate::store::embedded::Embedded;
use crate::store::{self, Condition, Op, Record, Store, Table, Watch};

const LEASE: Duration = Duration::from_secs(15);

struct Fixture {
    mesh: Arc<Mesh>,
    externals: Arc<Externals>,
}

async fn mesh(dir: &Path) -> Arc<Mesh> {
    let store = Arc::new(Embedded::open(&dir.join("store")).unwrap());
    Mesh::open(store, "cluster.local", LEASE).await.unwrap()
}

async fn externals(mesh: &Arc<Mesh>, dir: &Path) -> Fixture {
    let discovery = Discovery::new(mesh.clone(), 0);
    let externals = Externals::open(mesh.clone(), discovery, Some(dir.join("external"))).await.unwrap();
    Fixture { mesh: mesh.clone(), externals }
}

fn caller(address: [u8; 4], namespace: &str, services: &[&str], read: &[&str]) -> Caller {
    let list = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
    let claims = ApiClaims {
        trust_domain: "cluster.local".into(),
        namespace: namespace.into(),
        services: list(services),
        read: list(read),
        keys: Vec::new(),
        expires: unix_now() + 60,
    };
    let rights = Rights::Token(Arc::new(claims));
    Caller { namespace: namespace.into(), identity: String::new(), address: address.into(), rights }
}

fn registration(service: &str, id: &str, more: &str) -> String {
    format!(r#"{{"name":"{service}","id":"{id}","port":8080{more}}}"#)
}

impl Fixture {
    async fn ask(&self, caller: &Caller, method: &str, uri: &str, body: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri(format!("/v1/agent/{uri}")).body(()).unwrap();
        let body = Bytes::from(body.to_owned());
        let reply = self.externals.answer(caller, &request.into_parts().0, body).await;
        (reply.status().as_u16(), String::from_utf8(reply.body().to_vec()).unwrap())
    }

    async fn done(&self, caller: &Caller, uri: &str, body: &str) {
        assert_eq!(self.ask(caller, "PUT", uri, body).await, (200, String::new()), "{uri} {body}");
    }

    /// Node, address, identity and the worst status of each instance of a service, as the mesh has them.
    fn instances(&self, namespace: &str, service: &str) -> Vec<String> {
        let mut found: Vec<String> = self.mesh.read(|world| {
            let shown = |i: &Arc<weft_world::Instance>| {
                let statuses: Vec<&str> = i.checks.iter().map(|check| check.status.as_str()).collect();
                format!("{} {} {:?} {}", i.node, i.address, i.identity, statuses.join(","))
            };
            world.service_instances(namespace, service).map(shown).collect()
        });
        found.sort();
        found
    }
}

#[test]
fn names_of_nodes_are_read_back() {
    for (address, namespace, name) in [
        ("10.0.0.7", "default", "ext-10-0-0-7"),
        ("10.0.0.7", "shop", "ext-10-0-0-7.shop"),
        ("fd00::1", "default", "ext-fd00--1"),
        ("1:2:3:4:5:6:7:8", "a.b", "ext-1-2-3-4-5-6-7-8.a.b"),
    ] {
        let address: IpAddr = address.parse().unwrap();
        assert_eq!(node_name(address, namespace), name);
        assert_eq!(of_node_name(name), Some((address, namespace)));
    }
    assert_eq!(node_name("::ffff:10.0.0.7".parse().unwrap(), "default"), "ext-10-0-0-7");
    for name in ["ext-", "ext-1-2-3", "ext-a.b", "n1", "ext-1-2-3-4-5"] {
        assert_eq!(of_node_name(name), None, "{name}");
    }
}

#[tokio::test]
async fn two_hosts_with_one_service_id_are_separate_instances() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = mesh(dir.path()).await;
    let all = externals(&mesh, dir.path()).await;
    let (one, two) =
        (caller([10, 0, 0, 7], "default", &["order"], &[]), caller([10, 0, 0, 8], "default", &["order"], &[]));
    let shop = caller([10, 0, 0, 7], "shop", &["order"], &[]);
    let ttl = r#","check":{"ttl":"15s"}"#;
    for caller in [&one, &two, &shop] {
        all.done(caller, "service/register", &registration("order", "order-1", ttl)).await;
    }
    all.done(&two, "check/pass/service:order-1", "").await;
    let (seven, eight) = ("ext-10-0-0-7 10.0.0.7 \"\" critical", "ext-10-0-0-8 10.0.0.8 \"\" passing");
    assert_eq!(all.instances("default", "order"), [seven, eight]);
    assert_eq!(all.instances("shop", "order"), ["ext-10-0-0-7.shop 10.0.0.7 \"\" critical"]);
    all.done(&two, "service/maintenance/order-1?enable=true", "").await;
    all.done(&one, "service/deregister/order-1", "").await;
    assert_eq!(all.instances("default", "order"), ["ext-10-0-0-8 10.0.0.8 \"\" passing,critical"]);
    assert_eq!(all.ask(&one, "GET", "services", "").await, (200, "{}".into()));
    assert!(all.ask(&two, "GET", "services", "").await.1.contains("order-1"));
    assert_eq!(all.instances("shop", "order").len(), 1);
}

#[tokio::test]
async fn invalid_registrations_are_refused_by_field() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = mesh(dir.path()).await;
    let all = externals(&mesh, dir.path()).await;
    let order = caller([10, 0, 0, 7], "default", &["order"], &["x"]);
    let payment = caller([10, 0, 0, 7], "default", &["payment"], &["x"]);
    let tokenless = Caller { rights: Rights::Read, ..order.clone() };
    let local = Caller { address: [127, 0, 0, 1].into(), ..order.clone() };
    let ttl = r#","check":{"ttl":"15s"}"#;
    all.done(&order, "service/register", &registration("order", "order-1", ttl)).await;
    let denied = "Permission denied: this token lacks permission 'service:write' on \"order\"";
    let check = |target: &str| registration("order", "o", &format!(r#","check":{{{target},"interval":"1s"}}"#));
    let elsewhere = "is not an address of";
    let node_check = r#"{"name":"disk","ttl":"1m"}"#;
    let other_check = r#"{"name":"x","id":"service:order-1","ttl":"1m","serviceid":"payment-1"}"#;
    all.done(&payment, "service/register", &registration("payment", "payment-1", "")).await;
    for (who, uri, body, status, words) in [
        (&payment, "service/register", registration("order", "o", ""), 403, denied),
        (&payment, "service/register", registration("payment", "order-1", ""), 403, denied),
        (&payment, "service/deregister/order-1", String::new(), 403, denied),
        (&payment, "service/maintenance/order-1?enable=true", String::new(), 403, denied),
        (&payment, "check/pass/service:order-1", String::new(), 403, denied),
        (&payment, "check/deregister/service:order-1", String::new(), 403, denied),
        (&payment, "check/register", other_check.to_owned(), 403, denied),
        (&tokenless, "service/register", registration("order", "o", ""), 403, "a request without a token"),
        (&local, "service/register", registration("order", "o", ""), 400, "from loopback"),
        (&order, "maintenance?enable=true", String::new(), 400, "name a service"),
        (&order, "check/register", node_check.to_owned(), 400, "name a service"),
        (&order, "service/register", registration("order", "o", r#","address":"10.0.0.8""#), 400, elsewhere),
        (&order, "service/register", registration("order", "o", r#","address":"web""#), 400, "is not an IP address of"),
        (&order, "service/register", check(r#""http":"http://169.254.169.254/""#), 400, elsewhere),
        (&order, "service/register", check(r#""tcp":"10.0.0.8:80""#), 400, elsewhere),
        (&order, "service/register", check(r#""grpc":"cp.example:80""#), 400, elsewhere),
        (&order, "service/register", r#"{"name":"order","port":65536}"#.to_owned(), 400, "Port 65536 is out of range"),
    ] {
        let (got, text) = all.ask(who, "PUT", uri, &body).await;
        assert!(got == status && text.contains(words), "{uri} {body}: {got} {text}");
    }
    assert_eq!(all.instances("default", "order"), ["ext-10-0-0-7 10.0.0.7 \"\" critical"]);
    // Services that a caller may not read are hidden.
    assert!(!all.ask(&payment, "GET", "services", "").await.1.contains("order"));
    assert!(!all.ask(&payment, "GET", "checks", "").await.1.contains("order"));
    assert_eq!(all.ask(&payment, "GET", "service/order-1", "").await.0, 403);
    assert_eq!(all.ask(&payment, "GET", "health/service/name/order", "").await.0, 403);
    assert_eq!(all.ask(&order, "GET", "service/order-1", "").await.0, 200);

    // An address with a sidecar belongs to the sidecar.
    let sidecar = |number| crate::state::Node::of_test("default", number);
    mesh.begin_session("n9", sidecar(9)).await.unwrap();
    let ninth = caller([10, 0, 0, 9], "default", &["order"], &[]);
    let (status, text) = all.ask(&ninth, "PUT", "service/register", &registration("order", "o", "")).await;
    assert!(status == 400 && text.contains("belongs to spiffe://"), "{status} {text}");
    // A sidecar that arrives later is accepted, and earlier registrations are removed.
    mesh.begin_session("n7", sidecar(7)).await.unwrap();
    all.externals.keep_once().await;
    assert!(all.instances("default", "order").is_empty());
    assert!(!dir.path().join("external/ext-10-0-0-7.json").exists());

    let none = Externals::open(mesh.clone(), Discovery::new(mesh, 0), None).await.unwrap();
    let off = Fixture { mesh: all.mesh.clone(), externals: none };
    let (status, text) = off.ask(&order, "PUT", "service/register", &registration("order", "o", "")).await;
    assert!(status == 403 && text.contains("--allow-external"), "{status} {text}");
}

#[tokio::test]
async fn catalog_writes_to_the_callers_own_node_register_services() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = mesh(dir.path()).await;
    let all = externals(&mesh, dir.path()).await;
    let order = caller([10, 0, 0, 7], "default", &["order"], &[]);
    let payment = caller([10, 0, 0, 7], "default", &["payment"], &[]);
    let write = async |caller: &Caller, what: &str, rest: &str| {
        let uri = format!("/v1/catalog/{what}");
        let body = Bytes::from(format!(r#"{{"Node":"ext-10-0-0-7"{rest}}}"#));
        let (head, ()) = Request::put(uri).body(()).unwrap().into_parts();
        let reply = all.externals.catalog(caller, &head, &body).await?;
        Some((reply.status().as_u16(), String::from_utf8_lossy(reply.body()).into_owned()))
    };
    let service = r#","Service":{"Service":"order","Port":80}"#;
    let check = r#","Check":{"Name":"c","ServiceID":"order","Status":"passing"}"#;
    for (what, rest) in [("register", service), ("register", service), ("register", check)] {
        assert_eq!(write(&order, what, rest).await.unwrap(), (200, "true".into()), "{rest}");
    }
    assert_eq!(all.instances("default", "order"), ["ext-10-0-0-7 10.0.0.7 \"\" passing"]);
    for (caller, what, rest, status, words) in [
        (&payment, "register", service, 403, "service:write"),
        (&payment, "register", check, 403, "service:write"),
        (&payment, "deregister", r#","ServiceID":"order""#, 403, "service:write"),
        (&payment, "deregister", r#","CheckID":"c""#, 403, "service:write"),
        (&order, "register", r#","Check":{"Name":"c"}"#, 400, "ServiceID"),
        (&order, "register", r#","Address":"10.0.0.8""#, 400, "Invalid address: 10.0.0.8"),
        (&order, "deregister", r#","ServiceID":"order""#, 200, "true"),
    ] {
        let (got, text) = write(caller, what, rest).await.unwrap();
        assert!(got == status && text.contains(words), "{what} {rest}: {got} {text}");
    }
    assert!(all.instances("default", "order").is_empty());
    let elsewhere = caller([10, 0, 0, 8], "default", &["order"], &[]);
    assert_eq!(write(&elsewhere, "register", service).await, None, "another's node");
}

#[tokio::test]
async fn a_restart_restores_registrations_and_removes_stray_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = mesh(dir.path()).await;
    let all = externals(&mesh, dir.path()).await;
    let order = caller([10, 0, 0, 7], "default", &["order", "cart"], &[]);
    let ttl = r#","check":{"ttl":"1h"}"#;
    all.done(&order, "service/register", &registration("order", "order-1", ttl)).await;
    all.done(&order, "check/warn/service:order-1", "").await;
    all.done(&order, "service/register", &registration("cart", "cart-1", "")).await;
    let file = dir.path().join("external/ext-10-0-0-7.json");
    let node = all.externals.lock().values().next().unwrap().clone();
    node.agent.local.close().await;
    let saved = std::fs::read(&file).unwrap();
    // As if it had ended between the writes to the file and to the mesh.
    let stray = v1::Instance { service_id: "x".into(), service: "stray".into(), port: 1, ..Default::default() };
    node.direct.register(stray).await.unwrap();
    assert_eq!(all.instances("default", "stray").len(), 1);
    drop((node, all));
    assert_eq!(std::fs::read(&file).unwrap(), saved);

    let again = externals(&mesh, dir.path()).await;
    assert_eq!(again.instances("default", "order"), ["ext-10-0-0-7 10.0.0.7 \"\" warning"]);
    assert_eq!(again.instances("default", "cart").len(), 1);
    assert!(again.instances("default", "stray").is_empty());
    again.done(&order, "check/pass/service:order-1", "").await;
    for id in ["order-1", "cart-1"] {
        again.done(&order, &format!("service/deregister/{id}"), "").await;
    }
    again.externals.keep_once().await;
    assert!(again.externals.lock().is_empty() && !file.exists(), "a node without registrations is removed");
    // It registers again.
    again.done(&order, "service/register", &registration("order", "order-1", "")).await;
    assert_eq!(again.instances("default", "order").len(), 1);
}

/// A store that refuses everything while it is unavailable.
struct Faulty {
    store: Embedded,
    away: std::sync::atomic::AtomicBool,
}

#[tonic::async_trait]
impl Store for Faulty {
    async fn get(&self, table: Table, key: &str) -> Result<Option<Record>, store::Error> {
        self.store.get(table, key).await
    }

    async fn txn(&self, conditions: Vec<Condition>, ops: Vec<Op>) -> Result<Option<u64>, store::Error> {
        if self.away.load(Ordering::Relaxed) {
            return Err(store::Error::Unavailable("it is away".into()));
        }
        self.store.txn(conditions, ops).await
    }

    async fn grant(&self, ttl: Duration) -> Result<u64, store::Error> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: u64) -> Result<bool, store::Error> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: u64) -> Result<(), store::Error> {
        self.store.revoke(lease).await
    }

    async fn watch(&self) -> Result<Watch, store::Error> {
        self.store.watch().await
    }

    fn limits(&self) -> store::batch::Limits {
        self.store.limits()
    }

    fn health(&self) -> Arc<store::health::Health> {
        self.store.health()
    }
}

#[tokio::test]
async fn registrations_are_repeated_after_an_outage_of_the_store_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store")).unwrap();
    let store = Arc::new(Faulty { store, away: false.into() });
    let mesh = Mesh::open(store.clone(), "cluster.local", LEASE).await.unwrap();
    let all = externals(&mesh, dir.path()).await;
    let order = caller([10, 0, 0, 7], "default", &["order"], &[]);
    for id in ["a", "b"] {
        let ttl = format!(r#","check":{{"ttl":"1h","checkid":"{id}"}}"#);
        all.done(&order, "service/register", &registration("order", id, &ttl)).await;
    }
    store.away.store(true, Ordering::Relaxed);
    let (status, text) = all.ask(&order, "PUT", "service/register", &registration("order", "c", "")).await;
    assert!(status == 500 && text.contains("it is away"), "{status} {text}");
    assert!(
        !all.ask(&order, "GET", "services", "").await.1.contains("\"c\""),
        "the program got an error, so it is not registered"
    );
    all.done(&order, "check/pass/a", "").await;
    all.done(&order, "service/deregister/b", "").await;
    assert_eq!(all.instances("default", "order").len(), 2);
    // Registrations of before the end of the control plane are restored, too.
    drop(all);
    let again = externals(&mesh, dir.path()).await;
    assert!(again.ask(&order, "GET", "services", "").await.1.contains("\"a\""));
    store.away.store(false, Ordering::Relaxed);
    again.externals.keep_once().await;
    assert_eq!(again.instances("default", "order"), ["ext-10-0-0-7 10.0.0.7 \"\" passing"]);
}

#[tokio::test]
async fn eurekas_clients_register_with_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = mesh(dir.path()).await;
    let fixture = externals(&mesh, dir.path()).await;
    let order = caller([10, 0, 0, 7], "default", &["order"], &[]);
    let cart = caller([10, 0, 0, 7], "default", &["cart"], &[]);
    let ask = async |caller: &Caller, method: &str, path: &str, body: &str| {
        let uri = format!("/eureka/apps/{path}");
        let request = Request::builder().method(method).uri(&uri).header("content-type", "application/json");
        let head = request.body(()).unwrap().into_parts().0;
        let Ok(weft_registry_api::eureka::route::Endpoint::Write(write)) =
            weft_registry_api::eureka::route::route(&head.method, &uri.replace("?value=UP", ""))
        else {
            panic!("{uri}")
        };
        let reply = fixture.externals.eureka(caller, &write, &head, Bytes::from(body.to_owned())).await;
        (reply.status().as_u16(), String::from_utf8_lossy(reply.body()).into_owned())
    };
    let document = |app: &str, id: &str, ip: &str| {
        format!(
            r#"{{"instance":{{"instanceId":"{id}","hostName":"h","app":"{app}","ipAddr":"{ip}","status":"UP",
            "port":{{"$":8080,"@enabled":"true"}},"dataCenterInfo":{{"@class":"a","name":"MyOwn"}}}}}}"#
        )
    };
    assert_eq!(ask(&order, "PUT", "ORDER/h:order:1", "").await.0, 404, "it is to register first");
    let done = ask(&order, "POST", "ORDER", &document("ORDER", "h:order:1", "10.0.0.7")).await;
    assert_eq!(done, (204, String::new()));
    let known = fixture.instances("default", "order");
    assert_eq!(known, ["ext-10-0-0-7 10.0.0.7 \"\" passing"]);
    assert_eq!(ask(&order, "PUT", "ORDER/h:order:1", "").await.0, 200);
    fixture.done(&order, "service/register", &registration("order", "cart:taken", "")).await;
    for (caller, method, path, body, status, words) in [
        (
            &cart,
            "POST",
            "ORDER",
            document("ORDER", "b", "10.0.0.7"),
            403,
            "lacks permission 'service:write' on \"order\"",
        ),
        // The service id of this instance is in use by Consul's API, for another service.
        (&cart, "POST", "CART", document("CART", "taken", "10.0.0.7"), 403, "on \"order\""),
        // Another application's instance of the same id is a different one.
        (&cart, "POST", "CART", document("CART", "h:order:1", "10.0.0.7"), 204, ""),
        (&cart, "PUT", "ORDER/h:order:1", String::new(), 403, "on \"order\""),
        (&cart, "DELETE", "CART/h:order:1", String::new(), 200, ""),
        (&cart, "DELETE", "CART/h:order:1", String::new(), 404, "no instance"),
        (&order, "POST", "ORDER", document("CART", "b", "10.0.0.7"), 400, "app"),
        (&order, "POST", "ORDER", document("ORDER", "b", "10.0.0.8"), 400, "is not an address of"),
        (&order, "POST", "ORDER", "nonsense".into(), 400, ""),
    ] {
        let (got, text) = ask(caller, method, path, &body).await;
        assert!(got == status && text.contains(words), "{method} {path} {body}: {got} {text}");
    }
    fixture.done(&order, "service/deregister/cart:taken", "").await;
    assert_eq!(fixture.instances("default", "order"), known);
    let near = Caller { address: [127, 0, 0, 1].into(), ..order.clone() };
    assert_eq!(ask(&near, "POST", "ORDER", &document("ORDER", "b", "127.0.0.1")).await.0, 400);
    assert_eq!(ask(&order, "DELETE", "ORDER/h:order:1", "").await.0, 200);
    assert_eq!(fixture.instances("default", "order"), [""; 0]);
}

#[tokio::test]
async fn simultaneous_overdue_reports_do_not_change_checks() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = mesh(dir.path()).await;
    let fixture = externals(&mesh, dir.path()).await;
    let callers: Vec<Caller> = (1..=4).map(|n| caller([10, 0, 0, n], "default", &["order"], &[])).collect();
    let ttl = r#","check":{"CheckID":"alive","TTL":"1s","Status":"passing"}"#;
    for caller in &callers {
        fixture.done(caller, "service/register", &registration("order", "order-1", ttl)).await;
    }
    let critical = || fixture.instances("default", "order").iter().filter(|shown| shown.ends_with("critical")).count();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(critical() <= 1, "one that was first is a death; the others are late together");
    // Reporting programs are healthy, and a single silent one is removed as usual.
    for caller in &callers {
        fixture.done(caller, "check/pass/alive", "").await;
    }
    for _ in 0..100 {
        if critical() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{:?}", fixture.instances("default", "order"));
}
