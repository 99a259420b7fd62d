//! The agent's Eureka API, verified through Consul's API.

use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::time::Duration;

use crate::tests::{Pod, pod, pod_with};

/// A registration of py_eureka_client.
const PYTHON: &str = include_str!("../../../registry-api/src/eureka/instance/python.json");
const ID: &str = "10.0.0.1:order:8080";
/// The service id of the instance, and the check of its lease.
const SERVICE: &str = "order:10.0.0.1:order:8080";
const CHECK: &str = "eureka:order:10.0.0.1:order:8080";

impl Pod {
    async fn eureka(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let answer = self.ask(method, &format!("/eureka/{path}"), body).await;
        let status = answer.status().as_u16();
        (status, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    async fn registered(&self) -> &Pod {
        assert_eq!(self.eureka("POST", "apps/ORDER", PYTHON).await, (204, String::new()));
        self
    }

    async fn expect_success(&self, method: &str, path: &str) {
        assert_eq!(self.eureka(method, path, "").await, (200, String::new()), "{method} {path}");
    }

    /// The document stored with the registration.
    fn document(&self) -> Value {
        serde_json::from_str(&self.agent.local.service(SERVICE).unwrap().eureka).unwrap()
    }
}

#[tokio::test]
async fn a_registration_creates_a_service_with_a_lease() {
    let pod = pod();
    pod.registered().await;
    let service = &pod.get("/v1/agent/services").await[SERVICE];
    assert_eq!(
        (&service["Service"], &service["Port"], &service["Address"]),
        (&json!("order"), &json!(8080), &json!("")),
        "its loopback address is the pod's"
    );
    assert_eq!(service["Meta"], json!({ "management.port": "8080", "version": "v1" }));
    let check = &pod.get("/v1/agent/checks").await[CHECK];
    assert_eq!((&check["Status"], &check["Output"], &check["Type"]), (&json!("passing"), &json!("UP"), &json!("ttl")));
    let document = pod.document();
    assert_eq!((&document["vipAddress"], &document["metadata"]), (&json!("order"), &json!({})));
    assert_ne!(document["leaseInfo"]["registrationTimestamp"], 0);
    // Maintenance mode, then deregistered, by either API.
    assert_eq!(pod.put(&format!("/v1/agent/service/deregister/{SERVICE}"), "").await.0, 200);
    assert_eq!(pod.eureka("PUT", &format!("apps/ORDER/{ID}"), "").await.0, 404);
}

#[tokio::test]
async fn heartbeats_of_unknown_or_changed_instances_get_404() {
    let pod = pod();
    let beat = |query: &str| format!("apps/order/10.0.0.1%3Aorder%3A8080{query}");
    assert_eq!(pod.eureka("PUT", &beat(""), "").await.0, 404);
    pod.registered().await;
    for query in
        ["", "?status=UP&lastDirtyTimestamp=1700000000001", "?lastDirtyTimestamp=1", "?lastDirtyTimestamp=null"]
    {
        pod.expect_success("PUT", &beat(query)).await;
    }
    assert_eq!(pod.eureka("PUT", &beat("?lastDirtyTimestamp=1700000000002"), "").await.0, 404);
    assert_eq!(pod.eureka("PUT", &beat("?lastDirtyTimestamp=x"), "").await.0, 400);
    assert_eq!(pod.eureka("PUT", &format!("apps/CART/{ID}"), "").await.0, 404, "of another application");
    // After a registration by Consul's API there is no lease.
    let body = format!(r#"{{"name":"order","id":"{SERVICE}","port":8080}}"#);
    assert_eq!(pod.put("/v1/agent/service/register", &body).await.0, 200);
    assert_eq!(pod.eureka("PUT", &beat(""), "").await.0, 404);
    pod.registered().await;
    assert_eq!(pod.put(&format!("/v1/agent/check/deregister/{CHECK}"), "").await.0, 200);
    assert_eq!(pod.eureka("PUT", &beat(""), "").await.0, 404);

    pod.expect_success("DELETE", &beat("")).await;
    assert_eq!(pod.eureka("DELETE", &beat(""), "").await.0, 404);
    assert_eq!(pod.get("/v1/agent/services").await, json!({}));
}

#[tokio::test(start_paused = true)]
async fn a_lease_expires_recovers_and_ends() {
    let pod = pod();
    tokio::spawn(pod.agent.local.clone().report());
    pod.registered().await;
    let beat = format!("apps/ORDER/{ID}");
    tokio::time::sleep(Duration::from_secs(29)).await;
    pod.expect_success("PUT", &beat).await;
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(pod.status_of(CHECK).await, "passing");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(pod.status_of(CHECK).await, "critical");
    pod.expect_success("PUT", &beat).await;
    assert_eq!(pod.status_of(CHECK).await, "passing");

    // STARTING for any time, it stays while it sends heartbeats.
    let starting = PYTHON.replace(r#""status":"UP""#, r#""status":"STARTING""#);
    assert_eq!(pod.eureka("POST", "apps/ORDER", &starting).await.0, 204);
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(20)).await;
        pod.expect_success("PUT", &beat).await;
        let check = &pod.get("/v1/agent/checks").await[CHECK];
        assert_eq!((&check["Status"], &check["Output"]), (&json!("critical"), &json!("STARTING")));
    }
    // Three times 30 s after the last heartbeat it is removed, at the next look.
    tokio::time::sleep(Duration::from_secs(85)).await;
    assert_eq!(pod.status_of(CHECK).await, "critical");
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(pod.get("/v1/agent/services").await, json!({}));
}

#[tokio::test]
async fn status_overrides_survive_registrations() {
    let pod = pod();
    pod.registered().await;
    let at = format!("apps/ORDER/{ID}/status");
    let maintenance = format!("_service_maintenance:{SERVICE}");
    pod.expect_success("PUT", &format!("{at}?value=OUT_OF_SERVICE&lastDirtyTimestamp=1")).await;
    assert_eq!(pod.status_of(&maintenance).await, "critical");
    pod.registered().await;
    assert_eq!(pod.status_of(&maintenance).await, "critical");
    pod.expect_success("PUT", &format!("{at}?value=UP")).await;
    assert_eq!(pod.status_of(&maintenance).await, "gone");
    pod.expect_success("PUT", &format!("{at}?value=OUT_OF_SERVICE")).await;
    pod.expect_success("DELETE", &format!("{at}?value=UP")).await;
    assert_eq!(pod.status_of(&maintenance).await, "gone");

    pod.expect_success("PUT", &format!("{at}?value=DOWN")).await;
    assert_eq!(
        (pod.status_of(CHECK).await.as_str(), &pod.document()["overriddenstatus"]),
        ("critical", &json!("DOWN"))
    );
    pod.registered().await;
    pod.expect_success("PUT", &format!("apps/ORDER/{ID}")).await;
    assert_eq!(pod.status_of(CHECK).await, "critical", "heartbeats do not end it");
    pod.expect_success("DELETE", &at).await;
    assert_eq!(pod.status_of(CHECK).await, "passing");
    assert_eq!(pod.eureka("PUT", &format!("{at}?value=BORED"), "").await.0, 400);
    assert_eq!(pod.eureka("PUT", "apps/ORDER/other/status?value=UP", "").await.0, 404);

    let taken_out = PYTHON.replace(r#""overriddenstatus":"UNKNOWN""#, r#""overriddenstatus":"OUT_OF_SERVICE""#);
    assert_eq!(pod.eureka("POST", "apps/ORDER", &taken_out).await.0, 204);
    assert_eq!(pod.status_of(&maintenance).await, "critical");

    // An instance of Consul's API supports two statuses.
    let body = r#"{"name":"cart","id":"cart-1","port":8081}"#;
    assert_eq!(pod.put("/v1/agent/service/register", body).await.0, 200);
    pod.expect_success("PUT", "apps/CART/cart-1/status?value=OUT_OF_SERVICE").await;
    assert_eq!(pod.status_of("_service_maintenance:cart-1").await, "critical");
    pod.expect_success("PUT", "apps/CART/cart-1/status?value=UP").await;
    assert_eq!(pod.status_of("_service_maintenance:cart-1").await, "gone");
    let (status, text) = pod.eureka("PUT", "apps/CART/cart-1/status?value=DOWN", "").await;
    assert_eq!(status, 400);
    assert!(text.contains("its checks decide the others"), "{text}");
}

#[tokio::test]
async fn metadata_updates_change_the_service() {
    let pod = pod();
    pod.registered().await;
    pod.expect_success("PUT", &format!("apps/ORDER/{ID}/metadata?version=v2&team=shop")).await;
    let service = &pod.get("/v1/agent/services").await[SERVICE];
    assert_eq!(service["Meta"], json!({ "management.port": "8080", "version": "v2", "team": "shop" }));
    assert_eq!(pod.document()["vipAddress"], "order");
    assert_eq!(pod.eureka("PUT", "apps/ORDER/other/metadata?a=b", "").await.0, 404);
}

#[tokio::test]
async fn invalid_registrations_are_refused() {
    let pod = pod();
    for (app, body, status, words) in [
        ("ORDER", "{}".to_owned(), 400, "the body must be"),
        (
            "ORDER",
            r#"{"instance":{"hostName":"a","ipAddr":"::1","app":"ORDER"}}"#.into(),
            400,
            "Missing dataCenterInfo",
        ),
        ("CART", PYTHON.into(), 400, "Mismatched appName, expecting CART but was ORDER"),
        ("ORDER", PYTHON.replace("127.0.0.1", "192.0.2.1"), 400, "192.0.2.1 is not an address of this pod"),
        ("ORDER", PYTHON.replace("http://pod-1", &"x".repeat(17_000)), 400, "too large"),
        ("PAYMENT", PYTHON.replace("ORDER", "PAYMENT"), 403, "may not register the service \"payment\""),
    ] {
        let (code, text) = pod.eureka("POST", &format!("apps/{app}"), &body).await;
        assert_eq!(code, status, "{text}");
        assert!(text.replace("&quot;", "\"").contains(words), "{text}");
    }
    assert_eq!(pod.get("/v1/agent/services").await, json!({}));
    // A host name stands for the pod.
    assert_eq!(pod.eureka("POST", "v2/apps/order/", &PYTHON.replace("127.0.0.1", "pod-1")).await.0, 204);
    assert_eq!(pod.eureka("GET", "apps/delta/", "").await, (200, "GET /eureka/apps/delta/?".into()), "passed on");
    assert_eq!(pod.eureka("POST", "apps", "").await.0, 405);
    assert_eq!(pod.eureka("GET", "lastn", "").await.0, 501);
}

#[tokio::test]
async fn the_document_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.json");
    let pod = pod_with(Some(file.clone()));
    pod.registered().await;
    let before = pod.document();
    pod.agent.local.close().await;
    let pod = pod_with(Some(file));
    pod.agent.local.restore(None).await;
    assert_eq!(pod.document(), before);
    assert_eq!(pod.status_of(CHECK).await, "passing");
    pod.expect_success("PUT", &format!("apps/ORDER/{ID}?lastDirtyTimestamp=1700000000001")).await;
}

/// Netflix's client uses the machine's name as the instance's id, so that all applications of a machine have the same
/// one.
#[tokio::test]
async fn instance_ids_are_unique_per_application_only() {
    let pod = pod();
    let body = |app: &str, port: u16| {
        json!({ "instance": {
            "instanceId": "host-1", "hostName": "host-1", "app": app, "ipAddr": "127.0.0.1", "status": "UP",
            "port": { "$": port, "@enabled": "true" }, "vipAddress": app, "leaseInfo": { "durationInSecs": 60 },
            "dataCenterInfo": { "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn" },
        } })
        .to_string()
    };
    pod.put("/v1/agent/service/register", r#"{"Name": "web", "ID": "host-1", "Port": 7000}"#).await;
    for (app, port) in [("ALPHA", 9001), ("BETA", 9002)] {
        assert_eq!(pod.eureka("POST", &format!("apps/{app}"), &body(app, port)).await.0, 204);
    }
    let registered = || async {
        let services = pod.get("/v1/agent/services").await;
        services.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(registered().await, ["alpha:host-1", "beta:host-1", "host-1"]);
    pod.expect_success("PUT", "apps/ALPHA/host-1").await;
    pod.expect_success("PUT", "apps/BETA/host-1/status?value=OUT_OF_SERVICE").await;
    let checks = pod.get("/v1/agent/checks").await;
    assert_eq!(checks["eureka:alpha:host-1"]["Status"], "passing");
    let taken_out: Vec<_> =
        checks.as_object().unwrap().keys().filter(|id| id.starts_with("_service_maintenance")).collect();
    assert_eq!(taken_out, ["_service_maintenance:beta:host-1"]);
    pod.expect_success("DELETE", "apps/ALPHA/host-1").await;
    assert_eq!(registered().await, ["beta:host-1", "host-1"]);
}
