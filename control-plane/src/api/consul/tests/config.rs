//! Config entries, and the policies that they become.

use serde_json::json;

use super::catalog::by_token;
use super::*;
use weft_world::Scope;
use weft_world::translate;

async fn put(fixture: &Fixture, entry: &Value) -> (u16, String) {
    send(fixture, &by_token(&["web", "api"]), "PUT", "/v1/config", entry).await
}

async fn send(fixture: &Fixture, caller: &Caller, method: &str, uri: &str, body: &Value) -> (u16, String) {
    let request = Request::builder().method(method).uri(uri).body(Bytes::from(body.to_string())).unwrap();
    let reply = answer(&fixture.consul, caller, request).await;
    (reply.status().as_u16(), String::from_utf8_lossy(reply.body()).into_owned())
}

/// The text of the one policy of a kind.
fn policy(fixture: &Fixture, kind: &str) -> Option<Value> {
    let api = fixture.consul.mesh.policies().api;
    let found = api.iter().find(|document| document.kind().name() == kind)?;
    Some(serde_json::from_str(&found.yaml).unwrap())
}

fn resolver(more: Value) -> Value {
    let mut entry = json!({
        "Kind": "service-resolver",
        "Name": "web",
        "Subsets": { "v1": { "Filter": "Service.Meta.version == v1" }, "v2": { "Filter": "Service.Meta.version == \"v2\"" } },
    });
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

#[tokio::test]
async fn entries_become_a_virtual_service_and_a_destination_rule() {
    let fixture = fixture().await;
    let done = (200, "true".to_owned());
    let settings = json!({ "ConnectTimeout": "5s", "LoadBalancer": { "Policy": "ring_hash", "HashPolicies": [
        { "Field": "header", "FieldValue": "user-id" }] } });
    assert_eq!(put(&fixture, &resolver(settings)).await, done);
    let rule = policy(&fixture, "DestinationRule").unwrap();
    assert_eq!(rule["metadata"], json!({ "name": "consul-web", "namespace": "default" }));
    assert_eq!(rule["spec"]["subsets"][1], json!({ "name": "v2", "labels": { "version": "v2" } }));
    assert_eq!(rule["spec"]["trafficPolicy"]["connectionPool"]["tcp"]["connectTimeout"], "5s");
    assert_eq!(rule["spec"]["trafficPolicy"]["loadBalancer"]["consistentHash"], json!({ "httpHeaderName": "user-id" }));
    assert_eq!(policy(&fixture, "VirtualService"), None);
    let splitter = json!({ "Kind": "service-splitter", "Name": "web", "Splits": [
        { "Weight": 99.5, "ServiceSubset": "v1" }, { "Weight": 0.5, "ServiceSubset": "v2" }] });
    assert_eq!(put(&fixture, &splitter).await, done);
    let router = json!({ "Kind": "service-router", "Name": "web", "Routes": [
        {
            "Match": { "HTTP": { "PathPrefix": "/admin", "Methods": ["GET", "PUT"],
                "Header": [{ "Name": "X-Debug", "Exact": "1" }, { "Name": "x-old", "Present": true, "Invert": true }],
                "QueryParam": [{ "Name": "q", "Regex": "a.*" }] } },
            "Destination": { "Service": "admin", "PrefixRewrite": "/", "RequestTimeout": "3s", "NumRetries": 4,
                "RetryOnConnectFailure": true, "RetryOnStatusCodes": [503],
                "RequestHeaders": { "Set": { "x-from": "web" } } },
        },
        { "Match": { "HTTP": { "PathExact": "/new" } }, "Destination": { "ServiceSubset": "v2" } },
    ] });
    assert_eq!(put(&fixture, &router).await, done);
    let http = policy(&fixture, "VirtualService").unwrap()["spec"]["http"].clone();
    let expected = json!({
        "match": [{
            "uri": { "prefix": "/admin" },
            "method": { "regex": "GET|PUT" },
            "headers": { "x-debug": { "exact": "1" } },
            "withoutHeaders": { "x-old": {} },
            "queryParams": { "q": { "regex": "a.*" } },
        }],
        "rewrite": { "uri": "/" },
        "timeout": "3s",
        "retries": { "attempts": 4, "retryOn": "connect-failure,503" },
        "headers": { "request": { "add": {}, "set": { "x-from": "web" }, "remove": [] } },
        "route": [{ "destination": { "host": "admin" } }],
    });
    assert_eq!(http[0], expected);
    assert_eq!(http[1]["route"], json!([{ "destination": { "host": "web", "subset": "v2" } }]));
    let split = json!([{ "destination": { "host": "web", "subset": "v1" }, "weight": 9950 },
        { "destination": { "host": "web", "subset": "v2" }, "weight": 50 }]);
    assert_eq!(http[2], json!({ "route": split }));
    // Sidecars receive it.
    fixture.register("n1", 1, service("web", "web-1", &["v1"], "passing")).await;
    let routes = fixture.consul.mesh.read(|world| {
        let service = translate::service(world, &Scope::of("default"), "web.default.svc.cluster.local").unwrap();
        service.ports[0].routes.len()
    });
    assert_eq!(routes, 3);
    // They are returned as written, and are removed with their policies.
    let shown = fixture.get("/v1/config/service-splitter/web").await;
    assert_eq!((&shown["Kind"], &shown["Splits"][0]["Weight"]), (&json!("service-splitter"), &json!(99.5)));
    assert_eq!(fixture.get("/v1/config/service-router").await.as_array().unwrap().len(), 1);
    let web = by_token(&["web"]);
    for kind in ["service-router", "service-splitter"] {
        let gone = send(&fixture, &web, "DELETE", &format!("/v1/config/{kind}/web"), &Value::Null).await;
        assert_eq!(gone, (200, "{}".into()), "{kind}");
    }
    assert!(policy(&fixture, "VirtualService").is_none() && policy(&fixture, "DestinationRule").is_some());
    assert_eq!(put(&fixture, &resolver(json!({ "DefaultSubset": "v2", "RequestTimeout": "9s" }))).await, done);
    let http = policy(&fixture, "VirtualService").unwrap()["spec"]["http"].clone();
    assert_eq!(http, json!([{ "timeout": "9s", "route": [{ "destination": { "host": "web", "subset": "v2" } }] }]));
    assert_eq!(send(&fixture, &web, "DELETE", "/v1/config/service-resolver/web", &Value::Null).await.0, 200);
    assert!(fixture.consul.mesh.policies().api.is_empty());
}

#[tokio::test]
async fn unsupported_fields_of_config_entries_are_refused() {
    let fixture = fixture().await;
    let api = json!({ "Kind": "service-splitter", "Name": "api", "Splits": [{ "Weight": 100, "Service": "other" }] });
    assert_eq!(put(&fixture, &api).await.0, 200);
    let route = |destination: Value| json!({ "Kind": "service-router", "Name": "web", "Routes": [{ "Destination": destination }] });
    let split = |more: Value| json!({ "Kind": "service-splitter", "Name": "web", "Splits": more });
    for (entry, status, words) in [
        (json!({ "Kind": "service-defaults", "Name": "web" }), 501, "Kind: \"service-defaults\""),
        (json!({ "Kind": "service-intentions", "Name": "web" }), 501, "authorization policies"),
        (json!({ "Kind": "service-router" }), 400, "Name is required"),
        (json!({ "Kind": "service-router", "Name": "other" }), 403, "service:write"),
        (
            resolver(json!({ "Failover": { "*": { "Datacenters": ["dc2"] } } })),
            400,
            "Failover: the mesh fails over by itself",
        ),
        (resolver(json!({ "Redirect": { "Datacenter": "dc2" } })), 400, "Redirect.Datacenter:"),
        (resolver(json!({ "Subsets": { "a": { "Filter": "Service.Port > 1" } } })), 400, "Subsets.a.Filter"),
        (resolver(json!({ "Subsets": { "a": { "OnlyPassing": true } } })), 400, "Subsets.a.OnlyPassing"),
        (resolver(json!({ "LoadBalancer": { "Policy": "best" } })), 400, "LoadBalancer.Policy"),
        (resolver(json!({ "LoadBalancer": { "Policy": "maglev" } })), 400, "HashPolicies"),
        (split(json!([{ "Weight": 50 }])), 400, "the sum of all split weights must be 100, not 50"),
        (split(json!([{ "Weight": 100, "Namespace": "x" }])), 400, "Splits[0].Namespace"),
        (split(json!([{ "Weight": 100, "ServiceSubset": "v9" }])), 400, "v9"),
        (route(json!({ "Shadow": true })), 400, "Routes[0].Destination.Shadow: this field is not supported here"),
        (resolver(json!({ "Nonsense": 1 })), 400, "Nonsense: this field is not supported here"),
        (route(json!({ "IdleTimeout": "1s" })), 400, "Routes[0].Destination.IdleTimeout"),
        (route(json!({ "Service": "api" })), 400, "a VirtualService is evaluated once"),
        (json!([1]), 400, "an object"),
    ] {
        let (got, text) = put(&fixture, &entry).await;
        assert!(got == status && text.contains(words), "{entry}: {got} {text}");
    }
    assert_eq!(put(&fixture, &route(json!({ "Service": "cart" }))).await.0, 200);
    // In either order.
    let back = json!({ "Kind": "service-splitter", "Name": "api", "Splits": [{ "Weight": 100, "Service": "web" }] });
    assert!(put(&fixture, &back).await.1.contains("is evaluated once"));
    // Only the written entries exist, and a token is required to write one.
    assert_eq!(fixture.consul.mesh.policies().api.len(), 2);
    let (status, text) = send(&fixture, &caller("default", 1), "PUT", "/v1/config", &api).await;
    assert!(status == 403 && text.contains("without a token"), "{text}");
    for (cas, done) in [("1", "false"), ("0", "false")] {
        let uri = format!("/v1/config?cas={cas}");
        assert_eq!(send(&fixture, &by_token(&["api"]), "PUT", &uri, &api).await, (200, done.into()), "{cas}");
    }
}

#[tokio::test]
async fn config_entries_for_a_host_with_a_policy_are_refused() {
    let fixture = fixture().await;
    let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: {hosts: [web], http: \
                [{route: [{destination: {host: cart}}]}]}\n";
    let documents = weft_world::parse_policies("a.yaml", text).documents;
    fixture.consul.mesh.change_policies(documents, &[]).await.unwrap();
    let (status, text) = put(&fixture, &resolver(json!({ "DefaultSubset": "v1" }))).await;
    assert!(status == 409 && text.contains("VirtualService/default/a already routes"), "{status} {text}");
}
