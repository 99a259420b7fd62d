//! `catalog/register` and `catalog/deregister` for the agent's own node and for others.

use super::*;

const REGISTER: &str = "/v1/catalog/register";
const DEREGISTER: &str = "/v1/catalog/deregister";

fn done() -> (u16, String) {
    (200, "true".into())
}

#[tokio::test]
async fn writes_for_the_own_node_are_idempotent_upserts() {
    let pod = pod();
    for body in [
        r#"{"Node":"pod-1234","Address":"127.0.0.1"}"#,
        r#"{"node":"POD-1234","SkipNodeUpdate":true}"#,
        r#"{"Node":"pod-1234","Datacenter":"dc1","Check":{"CheckID":"serfHealth","Status":"passing"}}"#,
    ] {
        assert_eq!(pod.put(REGISTER, body).await, done(), "{body}");
    }
    assert_eq!(pod.get("/v1/agent/services").await, json!({}));
    let service = r#"{"Node":"pod-1234","Service":{"Service":"web","ID":"web-1","Port":80,"Tags":["v1"]},
        "Checks":[{"Name":"disk","Status":"passing","Output":"fine","ServiceID":"web-1"},{"Name":"node","Status":"warning"}]}"#;
    for _ in 0..2 {
        assert_eq!(pod.put(REGISTER, service).await, done());
        assert_eq!(pod.get("/v1/agent/services").await["web-1"]["Port"], 80);
        let checks = pod.get("/v1/agent/checks").await;
        assert_eq!((&checks["disk"]["Status"], &checks["disk"]["Output"]), (&json!("passing"), &json!("fine")));
        assert_eq!((&checks["node"]["Status"], &checks["node"]["ServiceID"]), (&json!("warning"), &json!("")));
    }
    assert_eq!(pod.put(REGISTER, &service.replace("80", "81").replace("passing", "critical")).await, done());
    assert_eq!(pod.get("/v1/agent/services").await["web-1"]["Port"], 81);
    assert_eq!(pod.status_of("disk").await, "critical");
    for body in [r#"{"Node":"pod-1234","CheckID":"node"}"#, r#"{"Node":"pod-1234","ServiceID":"web-1"}"#] {
        assert_eq!((pod.put(DEREGISTER, body).await, pod.put(DEREGISTER, body).await), (done(), done()), "{body}");
    }
    assert_eq!((pod.get("/v1/agent/services").await, pod.get("/v1/agent/checks").await), (json!({}), json!({})));
}

#[tokio::test]
async fn a_probed_check_keeps_its_probes_result() {
    let pod = pod();
    let body = r#"{"Name":"a","Port":1,"Check":{"TCP":"127.0.0.1:1","Interval":"1h"}}"#;
    assert_eq!(pod.put("/v1/agent/service/register", body).await, ok());
    let written = r#"{"Node":"pod-1234","Check":{"CheckID":"service:a","ServiceID":"a","Status":"passing"}}"#;
    assert_eq!(pod.put(REGISTER, written).await, done());
    assert_eq!(pod.status_of("service:a").await, "critical");
}

#[tokio::test]
async fn invalid_writes_for_the_own_node_are_refused_by_field() {
    let pod = pod();
    for (what, body, status, words) in [
        (REGISTER, r#"{"Node":"pod-1234","Address":"192.0.2.1"}"#, 400, "Invalid address: 192.0.2.1"),
        (REGISTER, r#"{"Node":"pod-1234","NodeMeta":{"a":"b"}}"#, 400, "NodeMeta"),
        (REGISTER, r#"{"Node":"pod-1234","Service":{"ID":"x"}}"#, 400, "Must provide service name"),
        (REGISTER, r#"{"Node":"pod-1234","Service":{"Service":"payment","Port":1}}"#, 403, "may not register"),
        (REGISTER, r#"{"Node":"pod-1234","Check":{"Name":"x","Status":"ok"}}"#, 400, "Status for checks must"),
        (REGISTER, r#"{"Node":"pod-1234","Check":{"Status":"passing"}}"#, 400, "CheckID or Name"),
        (REGISTER, r#"{"Node":"pod-1234","Check":{"Name":"x","ServiceID":"gone"}}"#, 404, "does not exist"),
        (DEREGISTER, r#"{"Node":"pod-1234"}"#, 400, "is alive"),
    ] {
        let (got, text) = pod.put(what, body).await;
        assert!(got == status && text.contains(words), "{body}: {got} {text}");
    }
    // Writes for other nodes and data centers are forwarded to the control plane.
    for body in [r#"{"Node":"other","Address":"192.0.2.1"}"#, r#"{"Node":"pod-1234","Datacenter":"dc9"}"#, "[1]"] {
        assert_eq!(pod.put(REGISTER, body).await.1, "PUT /v1/catalog/register?", "{body}");
    }
}
