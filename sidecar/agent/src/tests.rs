//! The agent as its clients see it, with a control plane that is made up.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::BoxFuture;
use http_body_util::Full;
use serde_json::Value;
use weft_proto::v1::{self, Block, CatalogInstance, Instance, ServiceTags};

use super::catalog::{Answer, Question, Source};
use super::*;
use crate::checks::tests::Plain;
use crate::upstream::Upstream;

struct World(Arc<AtomicBool>);

fn instance(node: &str, status: &str) -> CatalogInstance {
    let check = v1::Check {
        check_id: "service:order-1".into(),
        status: status.into(),
        service_id: "order-1".into(),
        ..Default::default()
    };
    CatalogInstance {
        instance: Some(Instance {
            service_id: "order-1".into(),
            service: "order-service".into(),
            address: "10.0.0.7".into(),
            port: 8080,
            tags: vec!["v1".into(), "Production".into()],
            checks: vec![check],
            ..Default::default()
        }),
        node: node.into(),
        node_address: "10.0.0.7".into(),
        ..Default::default()
    }
}

impl Source for World {
    fn ask(&self, question: Question, _: Option<Block>) -> BoxFuture<'_, Result<Answer, tonic::Status>> {
        let answer = match question {
            _ if !self.0.load(Ordering::Relaxed) => Err(tonic::Status::unavailable("away")),
            Question::Instances(name) if name == "order-service" => Ok(Answer {
                index: 42,
                instances: vec![instance("a", "passing"), instance("b", "warning"), instance("c", "critical")],
                ..Default::default()
            }),
            Question::Instances(_) => Ok(Answer { index: 0, ..Default::default() }),
            Question::Services => Ok(Answer {
                index: 43,
                services: vec![ServiceTags { name: "order-service".into(), tags: vec!["v1".into()] }],
                ..Default::default()
            }),
        };
        Box::pin(std::future::ready(answer))
    }

    fn leader(&self) -> String {
        "10.0.0.1:15012".into()
    }
}

struct Pod {
    agent: Arc<Agent>,
    up: Arc<AtomicBool>,
}

fn pod() -> Pod {
    pod_with(None)
}

/// A registry that takes everything, as a session does while the control plane is away; but one service it never takes.
struct Accepting;

impl Upstream for Accepting {
    fn register(&self, _: Instance) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn deregister<'a>(&'a self, _: &'a str, _: Duration) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    fn check(&self, _: v1::Check, _: bool) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn refused(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn may_register(&self, service: &str) -> Result<(), String> {
        if service == "payment" { Err(format!("this may not register the service {service:?}")) } else { Ok(()) }
    }
}

fn pod_with(file: Option<PathBuf>) -> Pod {
    let up = Arc::new(AtomicBool::new(true));
    let agent = Arc::new(Agent {
        local: Local::new(Arc::new(Accepting), Arc::new(Plain), file),
        catalog: Catalog::new(World(up.clone())),
        node: "pod-1234".into(),
        towards: ([127, 0, 0, 1], 1).into(),
    });
    Pod { agent, up }
}

impl Pod {
    async fn ask(&self, method: &str, uri: &str, body: &str) -> Answered {
        let request = Request::builder().method(method).uri(uri).body(Full::new(Bytes::from(body.to_owned())));
        self.agent.handle(request.unwrap()).await
    }

    async fn put(&self, uri: &str, body: &str) -> (u16, String) {
        let answer = self.ask("PUT", uri, body).await;
        let status = answer.status().as_u16();
        (status, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    async fn get(&self, uri: &str) -> Value {
        let answer = self.ask("GET", uri, "").await;
        assert_eq!(answer.status(), 200, "{uri}");
        serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    async fn status_of(&self, check: &str) -> String {
        self.get("/v1/agent/checks").await[check]["Status"].as_str().unwrap_or("gone").to_owned()
    }
}

fn ok() -> (u16, String) {
    (200, String::new())
}

#[tokio::test]
async fn a_service_is_registered_and_taken_back() {
    let pod = pod();
    let body = r#"{"name":"order-service","id":"order/1","port":8080,"tags":null,"check":{"ttl":"10s"}}"#;
    assert_eq!(pod.put("/v1/agent/service/register", body).await, ok());
    let service = &pod.get("/v1/agent/services").await["order/1"];
    assert_eq!((&service["Service"], &service["Tags"]), (&json!("order-service"), &json!([])));
    assert_eq!(pod.get("/v1/agent/service/order%2F1").await["Port"], 8080);
    let check = &pod.get("/v1/agent/checks").await["service:order/1"];
    assert_eq!((&check["Status"], &check["ServiceName"]), (&json!("critical"), &json!("order-service")));
    assert_eq!(pod.put("/v1/agent/check/pass/service:order/1?note=all+well", "").await, ok());
    assert_eq!(pod.get("/v1/agent/checks").await["service:order/1"]["Output"], "all well");

    // Registered again it stays as healthy as it was.
    assert_eq!(pod.put("/v1/agent/service/register", body).await, ok());
    assert_eq!(pod.status_of("service:order/1").await, "passing");
    let other = r#"{"name":"order-service","id":"order/1","port":8080}"#;
    assert_eq!(pod.put("/v1/agent/service/register", other).await, ok());
    assert_eq!(pod.status_of("service:order/1").await, "passing", "checks stay");
    assert_eq!(pod.put("/v1/agent/service/register?replace-existing-checks", other).await, ok());
    assert_eq!(pod.status_of("service:order/1").await, "gone");

    assert_eq!(pod.put("/v1/agent/service/deregister/order%2F1", "").await, ok());
    let (status, text) = pod.put("/v1/agent/service/deregister/order%2F1", "").await;
    assert_eq!(status, 404);
    assert!(text.starts_with("Unknown service ID \"order/1\""), "{text}");
    assert_eq!(pod.agent.local.services().len(), 0);
}

#[tokio::test]
async fn checks_and_maintenance() {
    let pod = pod();
    let (status, _) = pod.put("/v1/agent/check/register", r#"{"name":"db","ttl":"15s","serviceid":"a"}"#).await;
    assert_eq!(status, 404, "no such service");
    assert_eq!(pod.put("/v1/agent/service/register", r#"{"Name":"a","Port":1}"#).await, ok());
    assert_eq!(pod.put("/v1/agent/check/register", r#"{"name":"db","ttl":"15s","serviceid":"a"}"#).await, ok());
    assert_eq!(pod.put("/v1/agent/check/warn/db", "").await, ok());
    assert_eq!(pod.status_of("db").await, "warning");
    let update = r#"{"Status":"passing","Output":"fine"}"#;
    assert_eq!(pod.put("/v1/agent/check/update/db", update).await, ok());
    assert_eq!(pod.status_of("db").await, "passing");
    assert_eq!(pod.put("/v1/agent/check/update/db", r#"{"Status":"ok"}"#).await.0, 400);
    assert_eq!(pod.put("/v1/agent/check/fail/other", "").await.0, 404);

    assert_eq!(pod.put("/v1/agent/service/maintenance/a", "").await.0, 400);
    assert_eq!(pod.put("/v1/agent/service/maintenance/b?enable=true", "").await.0, 404);
    assert_eq!(pod.put("/v1/agent/service/maintenance/a?enable=True&reason=new+disk", "").await, ok());
    let check = &pod.get("/v1/agent/checks").await["_service_maintenance:a"];
    assert_eq!(check["Name"], "Service Maintenance Mode");
    assert_eq!((&check["Status"], &check["Notes"]), (&json!("critical"), &json!("new disk")));
    assert_eq!(pod.put("/v1/agent/service/maintenance/a?enable=false", "").await, ok());
    assert_eq!(pod.status_of("_service_maintenance:a").await, "gone");
    assert_eq!(pod.put("/v1/agent/check/deregister/db", "").await, ok());
    assert_eq!(pod.put("/v1/agent/check/deregister/db", "").await.0, 404);
}

#[tokio::test]
async fn the_agent_tells_how_a_service_fares() {
    let pod = pod();
    let body = r#"{"Name":"a","Port":1,"checks":[{"ttl":"15s","checkid":"one"},{"ttl":"15s","checkid":"two"}]}"#;
    assert_eq!(pod.put("/v1/agent/service/register", body).await, ok());
    let health = async || {
        let answer = pod.ask("GET", "/v1/agent/health/service/id/a?format=text", "").await;
        let status = answer.status().as_u16();
        (status, answer.into_body().collect().await.unwrap().to_bytes())
    };
    assert_eq!(health().await, (503, "critical".into()));
    assert_eq!(pod.put("/v1/agent/check/pass/one", "").await, ok());
    assert_eq!(pod.put("/v1/agent/check/warn/two", "").await, ok());
    assert_eq!(health().await, (429, "warning".into()));
    assert_eq!(pod.put("/v1/agent/check/pass/two", "").await, ok());
    let of_name = pod.get("/v1/agent/health/service/name/a").await;
    assert_eq!(of_name[0]["AggregatedStatus"], "passing");
    assert_eq!(of_name[0]["Checks"].as_array().unwrap().len(), 2);
    assert_eq!(pod.ask("GET", "/v1/agent/health/service/name/b", "").await.status(), 404);
    assert_eq!(pod.ask("GET", "/v1/agent/health/service/id/b", "").await.status(), 404);

    // All of the agent's at once.
    assert_eq!(pod.put("/v1/agent/maintenance?enable=true&reason=moving", "").await, ok());
    assert_eq!(health().await, (503, "maintenance".into()));
    assert_eq!(pod.get("/v1/agent/checks").await["_node_maintenance"]["Name"], "Node Maintenance Mode");
    assert_eq!(pod.put("/v1/agent/maintenance?enable=false", "").await, ok());
    assert_eq!(health().await, (200, "passing".into()));
}

#[tokio::test]
async fn an_alias_follows_the_worst_of_its_service() {
    let pod = pod();
    let body = r#"{"Name":"b","Port":2,"check":{"AliasService":"a","CheckID":"as-a"}}"#;
    assert_eq!(pod.put("/v1/agent/service/register", body).await, ok());
    let until = async |status: &str, output: &str| {
        let mut check = Value::Null;
        for _ in 0..200 {
            check = pod.get("/v1/agent/checks").await["as-a"].clone();
            if check["Status"] == status && check["Output"] == output {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{check}, not {status}: {output}");
    };
    until("critical", "Service a could not be found").await;
    let body = r#"{"Name":"a","Port":1,"check":{"ttl":"15s","checkid":"one","status":"passing"}}"#;
    assert_eq!(pod.put("/v1/agent/service/register", body).await, ok());
    until("passing", "All checks passing.").await;
    assert_eq!(pod.put("/v1/agent/check/warn/one?note=slow", "").await, ok());
    until("warning", "Aliased check \"Service 'a' check\" failing: slow").await;
    assert_eq!(pod.put("/v1/agent/service/deregister/a", "").await, ok());
    until("critical", "Service a could not be found").await;
}

#[tokio::test]
async fn reads_of_the_mesh_have_consuls_shape_and_headers() {
    let pod = pod();
    let all = pod.get("/v1/health/service/order-service").await;
    assert_eq!(all.as_array().unwrap().len(), 3);
    let item = &all[0];
    assert_eq!(item["Node"]["Address"], "10.0.0.7");
    assert_eq!(item["Node"]["ID"].as_str().unwrap().len(), 36);
    assert_eq!(item["Service"]["Tags"], json!(["v1", "Production"]));
    assert_eq!(item["Service"]["Weights"], json!({ "Passing": 1, "Warning": 1 }));
    assert_eq!(item["Checks"][0]["CheckID"], "serfHealth");
    assert_eq!(item["Checks"][1]["ServiceName"], "order-service");
    for (query, count) in [
        ("passing", 1),
        ("passing=False", 3),
        ("tag=production&tag=V1", 3),
        ("tag=v1&tag=v2", 0),
        ("node-meta=a:b", 0),
        ("dc=dc1&ns=default", 3),
    ] {
        let items = pod.get(&format!("/v1/health/service/order-service?{query}")).await;
        assert_eq!(items.as_array().unwrap().len(), count, "{query}");
    }
    assert_eq!(pod.get("/v1/catalog/service/order-service").await[0]["ServicePort"], 8080);
    assert_eq!(pod.get("/v1/health/checks/order-service").await[2]["Status"], "critical");
    assert_eq!(pod.get("/v1/catalog/services").await, json!({ "order-service": ["v1"] }));
    assert_eq!(pod.get("/v1/catalog/nodes").await.as_array().unwrap().len(), 4);
    assert_eq!(pod.get("/v1/catalog/datacenters").await, json!(["dc1"]));
    assert_eq!(pod.get("/v1/status/leader").await, "10.0.0.1:15012");
    assert_eq!(pod.get("/v1/agent/self").await["Config"]["Datacenter"], "dc1");
    assert_eq!(pod.get("/v1/agent/members").await[0]["Name"], "pod-1234");

    let answer = pod.ask("GET", "/v1/health/service/nobody?stale=false", "").await;
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("x-consul-index"), "1");
    assert_eq!(header("x-consul-knownleader"), "true");
    assert_eq!(header("x-consul-lastcontact"), "0");
    assert_eq!(header("x-consul-effective-consistency"), "stale");
    assert_eq!(answer.headers()["content-type"], "application/json");

    pod.up.store(false, Ordering::Relaxed);
    let kept = pod.ask("GET", "/v1/health/service/order-service", "").await;
    assert_eq!((kept.status().as_u16(), &kept.headers()["x-cache"]), (200, &HeaderValue::from_static("HIT")));
    assert_eq!(
        (&kept.headers()["age"], &kept.headers()["x-consul-index"]),
        (&"0".parse().unwrap(), &"42".parse().unwrap())
    );
    let unknown = pod.ask("GET", "/v1/health/service/other", "").await;
    assert_eq!(unknown.status(), 500);
}

#[tokio::test]
async fn what_is_not_there_says_so() {
    let pod = pod();
    for (method, uri, status, text) in [
        ("GET", "/v1/kv/a", 501, "/v1/kv/a of Consul's API is not supported"),
        ("GET", "/ui/", 404, "no such page"),
        ("POST", "/v1/agent/service/register", 405, "method POST not allowed"),
        ("GET", "/v1/health/service/a?index=x", 400, "Invalid index"),
        ("GET", "/v1/health/service/a?wait=x", 400, "Invalid wait time"),
        ("GET", "/v1/health/service/a?passing=x", 400, "Invalid value for ?passing"),
        ("GET", "/v1/health/service/a?filter=x", 400, "an operator is missing after \"x\""),
        ("GET", "/v1/catalog/services?filter=a==b", 400, "not supported for catalog/services"),
        ("GET", "/v1/health/service/a?dc=dc2", 500, "No path to datacenter"),
        ("GET", "/v1/agent/service/a", 404, "Unknown service ID"),
        ("PUT", "/v1/agent/service/register", 400, "Missing service name"),
    ] {
        let answer = pod.ask(method, uri, "").await;
        assert_eq!(answer.status(), status, "{uri}");
        assert!(answer.status() != 405 || answer.headers()["allow"] == "OPTIONS,PUT");
        assert!(method != "GET" || status == 501 || uri == "/ui/" || answer.headers().contains_key("x-consul-index"));
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(body.contains(text), "{uri}: {body}");
    }
    assert_eq!(pod.ask("OPTIONS", "/v1/agent/services", "").await.headers()["allow"], "OPTIONS,GET");
    let (status, text) = pod.put("/v1/agent/service/register", r#"{"name":"payment"}"#).await;
    assert_eq!((status, text.as_str()), (403, "this may not register the service \"payment\""));
    let (status, text) = pod.put("/v1/agent/service/register", &" ".repeat(MAX_BODY + 1)).await;
    assert_eq!(status, 413);
    assert!(text.contains("524288"), "{text}");
}

#[tokio::test]
async fn the_command_line_and_the_api_are_one_endpoint() {
    let pod = pod();
    let service = || entry::command_line_service("order-service", 8080, Some("http"));
    let check =
        definitions::health_path("order-service-8080", "order-service", 8080, "/health", Duration::from_secs(5));
    pod.agent.local.register_command_line(service(), Some(check.unwrap())).await.unwrap();
    assert_eq!(pod.status_of("service:order-service-8080").await, "critical");
    let body = r#"{"name":"order-service","id":"order-1","port":8080,"tags":["v1"]}"#;
    assert_eq!(pod.put("/v1/agent/service/register", body).await, ok());
    let services = pod.get("/v1/agent/services").await;
    assert_eq!(services.as_object().unwrap().len(), 1);
    assert_eq!(services["order-1"]["Meta"], json!({ "protocol": "http" }));
    for (filter, found) in [("v1+in+Tags", 1), ("Meta.protocol+!=+http", 0)] {
        let services = pod.get(&format!("/v1/agent/services?filter={filter}")).await;
        assert_eq!(services.as_object().unwrap().len(), found, "{filter}");
    }
    let checks = pod.get("/v1/agent/checks").await;
    assert_eq!(checks.as_object().unwrap().keys().collect::<Vec<_>>(), ["service:order-1"]);

    // The application was faster.
    pod.agent.local.register_command_line(service(), None).await.unwrap();
    assert_eq!(pod.agent.local.services().len(), 1);
    pod.agent.local.close().await;
    assert_eq!(pod.put("/v1/agent/service/register", body).await.0, 503);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_critical_too_long_is_taken_back() {
    let pod = pod();
    tokio::spawn(pod.agent.local.clone().report());
    let body =
        r#"{"name":"a","port":1,"check":{"ttl":"10s","status":"passing","deregister_critical_service_after":"1m"}}"#;
    assert_eq!(pod.put("/v1/agent/service/register", body).await, ok());
    tokio::time::sleep(Duration::from_secs(11)).await;
    let check = &pod.get("/v1/agent/checks").await["service:a"];
    assert_eq!(check["Status"], "critical");
    assert_eq!(check["Output"], "TTL expired (last output before timeout follows): ");
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(pod.agent.local.services().len(), 0);
}

#[tokio::test]
async fn a_restart_brings_back_what_was_registered_and_not_what_was_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.json");
    let restarted = async || {
        let pod = pod_with(Some(file.clone()));
        pod.agent.local.restore(Some("own-8080")).await;
        pod
    };
    let pod = restarted().await;
    for (id, check) in [("a-1", r#"{"ttl":"10s"}"#), ("a-2", r#"{"tcp":"127.0.0.1:1","interval":"1h"}"#)] {
        let body = format!(r#"{{"name":"a","id":"{id}","port":1,"tags":["v1"],"check":{check}}}"#);
        assert_eq!(pod.put("/v1/agent/service/register", &body).await, ok());
    }
    assert_eq!(pod.put("/v1/agent/check/register", r#"{"name":"disk","ttl":"1h"}"#).await, ok());
    assert_eq!(pod.put("/v1/agent/check/pass/service:a-1?note=all+well", "").await, ok());
    assert_eq!(pod.put("/v1/agent/service/maintenance/a-2?enable=true&reason=new+disk", "").await, ok());
    for (service, port) in [("own", 8080), ("own", 9090)] {
        let service = entry::command_line_service(service, port, None);
        pod.agent.local.register_command_line(service, None).await.unwrap();
    }
    pod.agent.local.close().await;

    let pod = restarted().await;
    let services = pod.get("/v1/agent/services").await;
    let ids: Vec<_> = services.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(ids, ["a-1", "a-2", "own-8080"], "another command line's service is not ours");
    assert_eq!(services["a-1"]["Tags"], json!(["v1"]));
    let checks = pod.get("/v1/agent/checks").await;
    assert_eq!(
        (&checks["service:a-1"]["Status"], &checks["service:a-1"]["Output"]),
        (&json!("passing"), &json!("all well"))
    );
    assert_eq!(checks["service:a-2"]["Status"], "critical");
    assert_eq!(checks["_service_maintenance:a-2"]["Notes"], "new disk");
    assert_eq!(checks["disk"]["ServiceID"], "");
    assert_eq!(pod.put("/v1/agent/check/pass/disk", "").await, ok());
    assert_eq!(pod.put("/v1/agent/service/deregister/a-1", "").await, ok());
    assert_eq!(pod.put("/v1/agent/check/deregister/disk", "").await, ok());

    let pod = restarted().await;
    assert_eq!(pod.get("/v1/agent/services").await.as_object().unwrap().len(), 2);
    assert_eq!(pod.status_of("disk").await, "gone");
    assert_eq!(pod.status_of("service:a-1").await, "gone");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    // What cannot be read is set aside.
    std::fs::write(&file, "{\"services\": 7}").unwrap();
    let pod = restarted().await;
    assert_eq!(pod.get("/v1/agent/services").await, json!({}));
    assert_eq!(std::fs::read_to_string(dir.path().join("agent.damaged")).unwrap(), "{\"services\": 7}");
}
