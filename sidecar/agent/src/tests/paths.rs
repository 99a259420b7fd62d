//! Path normalisation and response formats.

use super::*;

#[tokio::test]
async fn empty_segments_are_redirected() {
    let pod = pod();
    for (path, location) in [
        ("/v1/kv//a?raw", "/v1/kv/a?raw"),
        ("//v1/agent/self", "/v1/agent/self"),
        ("/v1/agent/../agent/self", "/v1/agent/self"),
    ] {
        let moved = pod.ask("GET", path, "").await;
        assert_eq!((moved.status().as_u16(), moved.headers()["location"].to_str().unwrap()), (301, location), "{path}");
    }
    let response = pod.ask("GET", "/v1/kv/a%2F%2Fb", "").await;
    assert_eq!(response.status(), 200, "escaped slashes belong to the key");
    assert_eq!(pod.ask("PUT", "/v1/kv/a%0Ab", "x").await.status(), 400);
}

#[tokio::test]
async fn eureka_responses_have_the_requested_format() {
    let pod = pod();
    let body = include_str!("../../../registry-api/src/eureka/instance/python.json");
    let beat = "/eureka/apps/ORDER/10.0.0.1:order:8080";
    for (accept, kind) in
        [("application/json", "application/json"), ("application/xml", "application/xml"), ("", "application/xml")]
    {
        for (method, path, body, status) in [
            ("POST", "/eureka/apps/ORDER", body, 204),
            ("PUT", beat, "", 200),
            ("PUT", "/eureka//apps/ORDER/10.0.0.1:order:8080", "", 200),
            ("PUT", "/eureka/apps/ORDER/10.0.0.1:order:8080/metadata?a=b", "", 200),
            ("DELETE", beat, "", 200),
            ("PUT", beat, "", 404),
            ("POST", "/eureka/apps/ORDER", "{}", 400),
            ("POST", "/eureka/apps", "", 405),
            ("GET", "/eureka/nothing", "", 501),
        ] {
            let request = Request::builder().method(method).uri(path).header("accept", accept);
            let request = request.body(Full::new(Bytes::from(body))).unwrap();
            let answer = handle(&*pod.agent, ([127, 0, 0, 1], 1).into(), request).await;
            assert_eq!(answer.status().as_u16(), status, "{method} {path}");
            assert_eq!(answer.headers()["content-type"], kind, "{method} {path} {accept}");
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            if status >= 400 {
                let json = serde_json::from_slice::<Value>(&body).is_ok_and(|body| body["error"].is_string());
                assert!(json || body.starts_with(b"<error>"), "{method} {path}: {body:?}");
                assert_eq!(json, kind.ends_with("json"), "{method} {path}: {body:?}");
            }
        }
    }
}

#[tokio::test]
async fn host_and_metrics_endpoints_respond() {
    let pod = pod();
    assert_eq!(pod.get("/v1/agent/metrics").await["Gauges"][0]["Name"], "a");
    assert_eq!(pod.ask("GET", "/v1/agent/metrics?format=prometheus", "").await.status(), 200);
    assert!(pod.get("/v1/agent/host").await["Memory"]["total"].as_u64().unwrap() > 0);
    assert_eq!(pod.put("/v1/agent/reload", "").await, ok());
    assert_eq!(pod.ask("GET", "/v1/agent/reload", "").await.status(), 405);
}
