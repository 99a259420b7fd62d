//! Endpoints about the mesh: nodes and their services, coordinates, authorization.

use serde_json::json;

use super::*;

#[tokio::test]
async fn node_services_are_a_list() {
    let fixture = fixture().await;
    let node = fixture.get("/v1/catalog/node-services/n2").await;
    assert_eq!(node["Node"]["Node"], "n2");
    let names: Vec<_> = node["Services"].as_array().unwrap().iter().map(|s| s["Service"].as_str().unwrap()).collect();
    assert_eq!(names, ["cart", "order"]);
    assert_eq!(
        fixture.get("/v1/catalog/node-services/n2?filter=Service+==+cart").await["Services"].as_array().unwrap().len(),
        1
    );
    assert_eq!(fixture.get("/v1/catalog/node-services/absent").await, json!({ "Node": null, "Services": [] }));
    assert_eq!(fixture.get("/v1/catalog/node-services/n4").await["Services"], json!([]), "of another namespace");
}

#[tokio::test]
async fn coordinates_are_fixed() {
    let fixture = fixture().await;
    assert_eq!(fixture.column("/v1/coordinate/nodes", "/Node").await, ["n1", "n2", "n3"]);
    let one = fixture.get("/v1/coordinate/node/n1").await;
    assert_eq!((one[0]["Coord"]["Vec"].as_array().unwrap().len(), &one[0]["Coord"]["Error"]), (8, &json!(1.5)));
    assert_eq!(fixture.ask("GET", "/v1/coordinate/node/absent", &caller("default", 1)).await.status(), 404);
    let datacenters = fixture.get("/v1/coordinate/datacenters").await;
    assert_eq!((&datacenters[0]["Datacenter"], &datacenters[0]["AreaID"]), (&json!("dc1"), &json!("wan")));
}

#[tokio::test]
async fn members_of_the_mesh_are_authorized() {
    let fixture = fixture().await;
    let ask = async |body: &str| {
        let request = Request::post("/v1/agent/connect/authorize").body(Bytes::from(body.to_owned())).unwrap();
        let reply = answer(&fixture.consul, &caller("default", 1), request).await;
        (reply.status().as_u16(), String::from_utf8_lossy(reply.body()).into_owned())
    };
    for (body, status, words) in [
        (
            r#"{"Target":"order","ClientCertURI":"spiffe://cluster.local/ns/default/sa/web"}"#,
            200,
            r#""Authorized":true"#,
        ),
        (r#"{"Target":"order","ClientCertURI":"spiffe://other/ns/default/sa/web"}"#, 200, "external trust domain"),
        (r#"{"ClientCertURI":"spiffe://cluster.local/ns/default/sa/web"}"#, 400, "Target service must be specified"),
        (r#"{"Target":"order","ClientCertURI":"web"}"#, 400, "ClientCertURI not a valid Connect identifier"),
    ] {
        let (got, text) = ask(body).await;
        assert!(got == status && text.contains(words), "{body}: {got} {text}");
    }
    assert_eq!(fixture.get("/v1/connect/intentions").await, json!([]));
    let matching = fixture.get("/v1/connect/intentions/match?by=destination&name=order&name=cart").await;
    assert_eq!(matching, json!({ "order": [], "cart": [] }));
    assert_eq!(fixture.get("/v1/connect/intentions/check?source=a&destination=b").await, json!({ "Allowed": true }));
    assert_eq!(fixture.get("/v1/config/service-router").await, json!([]));
    for (uri, status) in [
        ("/v1/connect/intentions/match?by=x&name=a", 400),
        ("/v1/connect/intentions/match?by=source", 400),
        ("/v1/connect/intentions/check?source=a", 400),
        ("/v1/connect/intentions/exact?source=a&destination=b", 404),
        ("/v1/config/service-router/web", 404),
    ] {
        assert_eq!(fixture.ask("GET", uri, &caller("default", 1)).await.status(), status, "{uri}");
    }
}
