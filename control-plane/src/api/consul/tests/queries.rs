//! Prepared queries and events.

use serde_json::json;

use super::catalog::by_token;
use super::*;

async fn send(fixture: &Fixture, caller: &Caller, method: &str, uri: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    let request = Request::builder().method(method).uri(uri).body(body).unwrap();
    let reply = answer(&fixture.consul, caller, request).await;
    let parsed = serde_json::from_slice(reply.body());
    (reply.status().as_u16(), parsed.unwrap_or_else(|_| String::from_utf8_lossy(reply.body()).into()))
}

#[tokio::test]
async fn prepared_queries_are_stored_and_executed() {
    let fixture = fixture().await;
    let me = caller("default", 1);
    let query = json!({ "Name": "orders", "Service": { "Service": "order" }, "DNS": { "TTL": "10s" } });
    let (status, made) = send(&fixture, &me, "POST", "/v1/query", &query).await;
    let id = made["ID"].as_str().unwrap().to_owned();
    assert_eq!((status, id.len()), (200, 36));
    let shown = &fixture.get(&format!("/v1/query/{id}")).await[0];
    assert_eq!((&shown["Name"], &shown["Service"]["Failover"]["NearestN"]), (&json!("orders"), &json!(0)));
    assert_eq!(fixture.get("/v1/query").await.as_array().unwrap().len(), 1);
    // By its name and by its id; critical instances are not found, those in warning are.
    for name in ["orders", &id] {
        let found = fixture.get(&format!("/v1/query/{name}/execute")).await;
        let mut nodes: Vec<_> =
            found["Nodes"].as_array().unwrap().iter().map(|n| n["Node"]["Node"].as_str().unwrap()).collect();
        nodes.sort_unstable();
        assert_eq!((nodes, &found["DNS"]["TTL"], &found["Failovers"]), (vec!["n1", "n2"], &json!("10s"), &json!(0)));
        assert_eq!((&found["Service"], &found["Datacenter"]), (&json!("order"), &json!("dc1")));
    }
    assert_eq!(fixture.get("/v1/query/orders/execute?limit=1").await["Nodes"].as_array().unwrap().len(), 1);
    // The same by DNS.
    let by_name = prepared(&fixture.consul.mesh, "default", "ORDERS", &["dc2"]).unwrap();
    assert_eq!((by_name.instances.len(), by_name.ttl, by_name.datacenters.len()), (2, Some(10), 0));
    assert!(prepared(&fixture.consul.mesh, "default", "", &[]).is_none());
    let near = fixture.get("/v1/query/orders/execute?near=n2").await;
    assert_eq!(near["Nodes"][0]["Node"]["Node"], "n2");
    assert_eq!(fixture.get("/v1/query/orders/explain").await["Query"]["ID"], id);
    let of = async |service: Value| {
        let changed = json!({ "Name": "orders", "Service": service });
        assert_eq!(send(&fixture, &me, "PUT", &format!("/v1/query/{id}"), &changed).await.0, 200);
        let found = fixture.get("/v1/query/orders/execute").await;
        let mut nodes: Vec<String> =
            found["Nodes"].as_array().unwrap().iter().map(|n| n["Node"]["Node"].as_str().unwrap().into()).collect();
        nodes.sort_unstable();
        (nodes, found["Failovers"].as_u64().unwrap())
    };
    assert_eq!(of(json!({ "Service": "order", "OnlyPassing": true })).await.0, ["n1"]);
    assert_eq!(of(json!({ "Service": "order", "Tags": ["!v1"] })).await.0, ["n2"]);
    assert_eq!(of(json!({ "Service": "order", "Tags": ["V1"] })).await.0, ["n1"]);
    assert_eq!(of(json!({ "Service": "order", "NodeMeta": { "app": "w2" } })).await.0, ["n2"]);
    assert_eq!(of(json!({ "Service": "order", "ServiceMeta": { "team": "x" } })).await.0, [""; 0]);
    let ignoring = json!({ "Service": "order", "IgnoreCheckIDs": ["service:order-1"] });
    assert_eq!(of(ignoring).await.0, ["n1", "n2", "n3"]);
    // Data centres that do not exist are queried in vain, each once.
    let failover = json!({ "NearestN": 3, "Datacenters": ["dc2", "dc1", "dc3", "dc2"] });
    assert_eq!(of(json!({ "Service": "absent", "Failover": failover })).await, (vec![], 2));
    assert_eq!(send(&fixture, &me, "DELETE", &format!("/v1/query/{id}"), &Value::Null).await.0, 200);
    for uri in [format!("/v1/query/{id}"), "/v1/query/orders/execute".into()] {
        assert_eq!(send(&fixture, &me, "GET", &uri, &Value::Null).await, (404, json!("Query not found")));
    }
}

#[tokio::test]
async fn a_query_template_matches_names_by_prefix() {
    let fixture = fixture().await;
    let me = caller("default", 1);
    let template = json!({ "Type": "name_prefix_match" });
    for (name, service, template) in [
        ("", "${name.full}", &template),
        ("tagged-", "${name.suffix}", &template),
        ("tagged-exact", "cart", &Value::Null),
    ] {
        let body = json!({ "Name": name, "Template": template, "Service": { "Service": service } });
        assert_eq!(send(&fixture, &me, "POST", "/v1/query", &body).await.0, 200, "{name}");
    }
    for (name, service) in [("order", "order"), ("tagged-order", "order"), ("tagged-exact", "cart"), ("x", "x")] {
        let found = fixture.get(&format!("/v1/query/{name}/execute")).await;
        assert_eq!(found["Service"], service, "{name}");
    }
    let explained = fixture.get("/v1/query/tagged-cart/explain").await;
    assert_eq!(explained["Query"]["Service"]["Service"], "cart");
    assert_eq!(explained["Query"]["Template"]["Type"], "name_prefix_match");
}

#[tokio::test]
async fn unsupported_fields_of_a_prepared_query_are_refused() {
    let fixture = fixture().await;
    let (me, db) = (caller("default", 1), by_token(&["db"]));
    for (caller, body, status, words) in [
        (&me, json!({}), 400, "Must provide a Service name"),
        (&me, json!({ "Service": {} }), 400, "Must provide a Service name"),
        (&me, json!({ "Service": { "Service": "a" }, "Template": { "Type": "suffix" } }), 400, "Bad Template.Type"),
        (
            &me,
            json!({ "Service": { "Service": "${x}" }, "Template": { "Type": "name_prefix_match" } }),
            400,
            "there is no ${x}",
        ),
        (&me, json!({ "Service": { "Service": "a" }, "Session": "x" }), 400, "Session:"),
        (&me, json!({ "Service": { "Service": "a" }, "DNS": { "TTL": "soon" } }), 400, "Bad DNS TTL"),
        (&me, json!({ "Service": { "Service": "a", "Failover": { "Targets": [{}] } } }), 400, "Targets"),
        (&db, json!({ "Service": { "Service": "order" } }), 403, "query:write"),
        (&db, json!({ "Name": "mine", "Service": { "Service": "db" } }), 200, "ID"),
        (&me, json!({ "Name": "mine", "Service": { "Service": "order" } }), 500, "aliases an existing query name"),
    ] {
        let (got, text) = send(&fixture, caller, "POST", "/v1/query", &body).await;
        assert!(got == status && text.to_string().contains(words), "{body}: {got} {text}");
    }
}

#[tokio::test]
async fn events_are_filtered_by_node_and_service() {
    let fixture = fixture().await;
    let (one, two) = (caller("default", 1), caller("default", 2));
    let fire = async |uri: &str, payload: &str| {
        let request = Request::put(uri).body(Bytes::from(payload.to_owned())).unwrap();
        let reply = answer(&fixture.consul, &one, request).await;
        (reply.status().as_u16(), String::from_utf8_lossy(reply.body()).into_owned())
    };
    assert_eq!(fixture.get("/v1/event/list").await, json!([]));
    let (status, fired) = fire("/v1/event/fire/deploy", "x").await;
    assert!(status == 200 && fired.contains(r#""Payload":"eA==""#), "{fired}");
    assert_eq!(fire("/v1/event/fire/restart?node=n2&service=^cart$", "").await.0, 200);
    let names = async |caller: &Caller, uri: &str| {
        let events = fixture.get_as(uri, caller).await;
        events.as_array().unwrap().iter().map(|e| e["Name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&one, "/v1/event/list").await, ["deploy"]);
    assert_eq!(names(&two, "/v1/event/list").await, ["deploy", "restart"]);
    assert_eq!(names(&two, "/v1/event/list?name=restart").await, ["restart"]);
    assert_eq!(names(&caller("shop", 4), "/v1/event/list").await, [""; 0]);
    // A blocking read waits for the next.
    let reply = fixture.ask("GET", "/v1/event/list", &one).await;
    let uri = format!("/v1/event/list?index={}&wait=10s", index(&reply));
    let mut waiting = std::pin::pin!(fixture.ask("GET", &uri, &one));
    assert!(
        tokio::time::timeout(Duration::from_millis(50), &mut waiting).await.is_err(),
        "there is no other event yet"
    );
    fire("/v1/event/fire/again", "").await;
    assert_ne!(index(&waiting.await), index(&reply));
    for (uri, payload, status, words) in [
        ("/v1/event/fire/a?node=(", "", 400, "Invalid node filter"),
        ("/v1/event/fire/a?tag=x", "", 400, "without service filter"),
        ("/v1/event/fire/a", &*"x".repeat(513), 413, "limit of 512 bytes"),
    ] {
        let (got, text) = fire(uri, payload).await;
        assert!(got == status && text.contains(words), "{uri}: {got} {text}");
    }
    // The number of stored events is bounded.
    for n in 0..260 {
        fire(&format!("/v1/event/fire/e{n}"), "").await;
    }
    let all = names(&one, "/v1/event/list").await;
    assert_eq!((all.len(), all.last().unwrap().as_str()), (256, "e259"));
}
