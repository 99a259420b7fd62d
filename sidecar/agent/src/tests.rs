//! The agent from the view of its clients, with a simulated mesh.

mod catalog;
mod paths;

use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;
use http::Response;
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use weft_listen::server::{MAX_BODY, handle};
use weft_proto::v1::{self, Answer, Instance, Question};

use super::forward::Source;
use super::*;
use crate::checks::tests::Plain;
use crate::upstream::Upstream;

/// A control plane that returns the request.
struct World;

impl Source for World {
    fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answer, tonic::Status>> {
        let body = format!("{} {}?{}", question.method, question.path, question.query);
        let headers = [("x-consul-index".to_owned(), "42".to_owned())].into();
        Box::pin(std::future::ready(Ok(Answer { status: 200, headers, body: body.into() })))
    }
}

pub(crate) struct Pod {
    pub(crate) agent: Arc<Agent>,
}

pub(crate) fn pod() -> Pod {
    pod_with(None)
}

/// A registry that accepts everything, like a session during an outage of the control plane, except one service.
struct Accepting;

impl Upstream for Accepting {
    fn register(&self, _: Instance) -> BoxFuture<'_, Result<(), ApiError>> {
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

pub(crate) fn pod_with(file: Option<PathBuf>) -> Pod {
    let agent = Arc::new(Agent {
        datacenter: Default::default(),
        local: Local::new(Arc::new(Accepting), Arc::new(Plain), file),
        mesh: Forwarder::new(World),
        node: "pod-1234".into(),
        leaves: None,
        metrics: Some(Arc::new(|| "# TYPE a gauge\na 1\n".to_owned())),
        eureka: Default::default(),
        towards: ([127, 0, 0, 1], 1).into(),
        address: None,
        names: Default::default(),
    });
    Pod { agent }
}

impl Pod {
    pub(crate) async fn ask(&self, method: &str, uri: &str, body: &str) -> Response<Full<Bytes>> {
        let request = Request::builder().method(method).uri(uri).body(Full::new(Bytes::from(body.to_owned())));
        handle(&*self.agent, ([127, 0, 0, 1], 1).into(), request.unwrap()).await
    }

    pub(crate) async fn put(&self, uri: &str, body: &str) -> (u16, String) {
        let answer = self.ask("PUT", uri, body).await;
        let status = answer.status().as_u16();
        (status, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    pub(crate) async fn get(&self, uri: &str) -> Value {
        let answer = self.ask("GET", uri, "").await;
        assert_eq!(answer.status(), 200, "{uri}");
        serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    pub(crate) async fn status_of(&self, check: &str) -> String {
        self.get("/v1/agent/checks").await[check]["Status"].as_str().unwrap_or("gone").to_owned()
    }
}

fn ok() -> (u16, String) {
    (200, String::new())
}

#[tokio::test]
async fn services_are_registered_and_deregistered() {
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

    // A repeated registration keeps the health.
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
async fn checks_and_maintenance_mode_change_the_status() {
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
async fn agent_health_endpoints_report_the_status() {
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

    // Maintenance mode of all services of the agent.
    assert_eq!(pod.put("/v1/agent/maintenance?enable=true&reason=moving", "").await, ok());
    assert_eq!(health().await, (503, "maintenance".into()));
    assert_eq!(pod.get("/v1/agent/checks").await["_node_maintenance"]["Name"], "Node Maintenance Mode");
    assert_eq!(pod.put("/v1/agent/maintenance?enable=false", "").await, ok());
    assert_eq!(health().await, (200, "passing".into()));
}

#[tokio::test]
async fn an_alias_check_follows_the_worst_check_of_its_service() {
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
async fn other_endpoints_are_forwarded() {
    let pod = pod();
    for (method, uri) in [
        ("GET", "/v1/health/service/a%2Fb?passing&dc=dc1"),
        ("PUT", "/v1/kv/a?cas=1"),
        ("OPTIONS", "/v1/catalog/services?"),
    ] {
        let answer = pod.ask(method, uri, "").await;
        assert_eq!((answer.status().as_u16(), &answer.headers()["x-consul-index"]), (200, &"42".parse().unwrap()));
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let expected = if uri.contains('?') { format!("{method} {uri}") } else { format!("{method} {uri}?") };
        assert_eq!(String::from_utf8_lossy(&body), expected);
    }
    assert_eq!(pod.get("/v1/agent/self").await["Config"]["Datacenter"], "dc1");
    assert_eq!(pod.get("/v1/agent/members").await[0]["Name"], "pod-1234");
    assert!(pod.get("/v1/agent/version").await["HumanVersion"].as_str().unwrap().ends_with("+weft"));
}

#[tokio::test]
async fn unknown_endpoints_and_invalid_requests_are_refused() {
    let pod = pod();
    for (method, uri, status, text) in [
        ("GET", "/v1/agent/monitor", 501, "/v1/agent/monitor of Consul's API is not supported"),
        ("GET", "/ui/", 404, "no such page"),
        ("POST", "/v1/agent/service/register", 405, "method POST not allowed"),
        ("GET", "/v1/health/service/a?index=x", 400, "Invalid index"),
        ("GET", "/v1/health/service/a?wait=x", 400, "Invalid wait time"),
        ("GET", "/v1/agent/services?filter=x", 400, "an operator is missing after \"x\""),
        ("GET", "/v1/agent/service/a", 404, "Unknown service ID"),
        ("PUT", "/v1/agent/service/register", 400, "Missing service name"),
    ] {
        let answer = pod.ask(method, uri, "").await;
        assert_eq!(answer.status(), status, "{uri}");
        assert!(answer.status() != 405 || answer.headers()["allow"] == "OPTIONS,PUT");
        assert!(method != "GET" || answer.headers().contains_key("x-consul-index"));
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
async fn a_registration_replaces_the_command_lines_service_on_the_same_port() {
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
    for (filter, count) in [("v1+in+Tags", 1), ("Meta.protocol+!=+http", 0)] {
        let services = pod.get(&format!("/v1/agent/services?filter={filter}")).await;
        assert_eq!(services.as_object().unwrap().len(), count, "{filter}");
    }
    let checks = pod.get("/v1/agent/checks").await;
    assert_eq!(checks.as_object().unwrap().keys().collect::<Vec<_>>(), ["service:order-1"]);

    // The application has registered itself already.
    pod.agent.local.register_command_line(service(), None).await.unwrap();
    assert_eq!(pod.agent.local.services().len(), 1);
    pod.agent.local.close().await;
    assert_eq!(pod.put("/v1/agent/service/register", body).await.0, 503);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_critical_too_long_is_deregistered() {
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
async fn a_restart_restores_registered_services_only() {
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
    assert_eq!(ids, ["a-1", "a-2", "own-8080"], "the service of another command line is not restored");
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

    // An unreadable file is renamed.
    std::fs::write(&file, "{\"services\": 7}").unwrap();
    let pod = restarted().await;
    assert_eq!(pod.get("/v1/agent/services").await, json!({}));
    assert_eq!(std::fs::read_to_string(dir.path().join("agent.damaged")).unwrap(), "{\"services\": 7}");
}
