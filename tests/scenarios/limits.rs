//! Limits: exact, and reported with the reason.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Kind, Mesh, document, statuses, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        one_connection_and_one_pending_request,
        max_requests_per_connection_closes_connections,
        connections_never_exceed_the_limit,
        retry_budget_limits_concurrent_retries,
        a_failing_instance_is_ejected_and_comes_back,
    ]
}

fn limit(connections: u32, pending: u32, per_connection: u32) -> String {
    let pool = json!({
        "tcp": {"maxConnections": connections},
        "http": {"http1MaxPendingRequests": pending, "maxRequestsPerConnection": per_connection},
    });
    let spec = json!({"host": "order-service", "trafficPolicy": {"connectionPool": pool}});
    document(Kind::DestinationRule, "order", spec)
}

fn one_connection_and_one_pending_request() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("order.yaml", &limit(1, 1, 0))?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let _second = mesh.instance("order2", "order-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let plan = |concurrency: u32, count: u32| {
        json!({
            "url": format!("http://{vip}/sleep/20"), "count": count, "concurrency": concurrency,
            "headers": {"Host": "order-service"},
        })
    };
    // A single sequential client never gets a 503, from any endpoint.
    let alone = front.requests(&plan(1, 100))?;
    ensure!(statuses(&alone) == HashMap::from([(200, 100)]), "one client: {:?}", statuses(&alone));
    let three = front.requests(&plan(3, 150))?;
    let counts = statuses(&three);
    ensure!(counts.get(&503).is_some_and(|n| *n > 0), "three clients see 503s: {counts:?}");
    ensure!(counts.get(&200).is_some_and(|n| *n > 0), "and answers: {counts:?}");
    ensure!(counts.len() == 2, "{counts:?}");
    let refused = three.iter().find(|r| r["status"] == 503).context("none")?;
    ensure!(refused["headers"]["x-envoy-overloaded"] == "true", "{refused}");
    let why = "overflow; policy=DestinationRule/default/order; limit=http1MaxPendingRequests=1";
    ensure!(refused["headers"]["x-weft-reason"] == why, "{refused}");
    ensure!(refused["body"].as_str().is_some_and(|b| b.ends_with("reset reason: overflow")), "{refused}");
    let metrics = front.curl(&["http://127.0.0.1:15020/metrics"])?;
    ensure!(metrics.contains("response_flags=\"UO\""), "no UO in the metrics");
    Ok(())
}

/// One request at a time: 50 % of the active requests allows no retry, 50 % of the interval's requests one for each.
fn retry_budget_limits_concurrent_retries() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let policy = |budget: Value| {
        let route = json!([{"destination": {"host": "order-service"}}]);
        let routes = json!({
            "hosts": ["order-service"],
            "http": [{"route": route, "retries": {"attempts": 1, "retryOn": "503"}}],
        });
        let rule = json!({"host": "order-service", "trafficPolicy": {"retryBudget": budget}});
        let routes = document(Kind::VirtualService, "order", routes);
        mesh.policy("order.yaml", &(routes + &document(Kind::DestinationRule, "order", rule)))
    };
    // How often the application was requests: its own sidecar counts.
    let requests = || -> Result<u64> {
        let text = order.pod.curl(&["http://127.0.0.1:15020/metrics"])?;
        let ours =
            text.lines().filter(|line| line.starts_with("istio_requests_total{") && line.contains("\"destination\""));
        let of_code = ours.filter(|line| line.contains("response_code=\"503\""));
        Ok(of_code.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    };
    let plan = json!({
        "url": format!("http://{vip}/status/503"), "count": 5, "headers": {"Host": "order-service"},
    });
    let expect = |case: &str, expected: u64| {
        wait_for(case, Duration::from_secs(15), || {
            let before = requests()?;
            ensure!(statuses(&front.requests(&plan)?) == HashMap::from([(503, 5)]));
            let attempts = requests()? - before;
            ensure!(attempts == expected, "{attempts} attempts");
            Ok(())
        })
    };
    policy(json!({"percent": 50, "minRetryConcurrency": 0}))?;
    expect("no retry", 5)?;
    policy(json!({"percent": 50, "minRetryConcurrency": 0, "budgetInterval": "60s"}))?;
    expect("a retry for each", 10)?;
    policy(json!({"percent": 50, "minRetryConcurrency": 0}))?;
    expect("no retry again", 5)
}

fn max_requests_per_connection_closes_connections() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    // First without the policy, to prove that connections are reused.
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let plan = json!({"url": format!("http://{vip}/"), "count": 20, "headers": {"Host": "order-service"}});
    let most = |results: &[Value]| -> Result<u64> {
        let bodies: Vec<Value> = results
            .iter()
            .map(|r| serde_json::from_str(r["body"].as_str().unwrap_or_default()))
            .collect::<Result<_, _>>()?;
        bodies.iter().filter_map(|b| b["request"].as_u64()).max().context("no answers")
    };
    ensure!(most(&front.requests(&plan)?)? == 20, "connections are reused");
    mesh.policy("order.yaml", &limit(0, 0, 2))?;
    weft_tests::wait_for("the policy", std::time::Duration::from_secs(10), || {
        let most = most(&front.requests(&plan)?)?;
        ensure!(most == 2, "{most} requests on one connection");
        Ok(())
    })?;
    drop(order);
    Ok(())
}

fn connections_never_exceed_the_limit() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("order.yaml", &limit(3, 0, 0))?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let results = front.requests(&json!({
        "url": format!("http://{vip}/sleep/5"), "count": 600, "concurrency": 24, "headers": {"Host": "order-service"},
    }))?;
    ensure!(statuses(&results) == HashMap::from([(200, 600)]), "{:?}", statuses(&results));
    let last: Value = serde_json::from_str(results.last().context("none")?["body"].as_str().unwrap_or_default())?;
    // Observed at the application: its sidecar has one upstream connection for each downstream connection.
    ensure!(last["most_connections"].as_u64().is_some_and(|n| n <= 3), "{}", last["most_connections"]);
    Ok(())
}

fn a_failing_instance_is_ejected_and_comes_back() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy(
        "order.yaml",
        r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: order}
spec:
  host: order-service
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutive5xxErrors: 3, interval: 500ms, baseEjectionTime: 2s, maxEjectionPercent: 50}
"#,
    )?;
    let good = mesh.instance("order1", "order-service", 8080, &[])?;
    let bad = mesh.instance("order2", "order-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    bad.pod.curl(&["-X", "POST", "http://127.0.0.1:8080/sick"])?;
    let plan = json!({"url": format!("http://{vip}/health"), "count": 40, "headers": {"Host": "order-service"}});
    let counts = statuses(&front.requests(&plan)?);
    ensure!(counts.get(&503) == Some(&3), "three errors eject it, and no more come: {counts:?}");
    // It stays ejected as long as it fails; the next heartbeat reports the ejecting callers.
    weft_tests::wait_for("weftctl status to show it", std::time::Duration::from_secs(20), || {
        front.requests(&plan)?;
        let status = mesh.status();
        let line = status.lines().find(|line| line.contains(&bad.pod.ip)).unwrap_or_default();
        ensure!(line.contains("ejected by 1 caller"), "{status}");
        Ok(())
    })?;
    bad.pod.curl(&["-X", "POST", "http://127.0.0.1:8080/well"])?;
    weft_tests::wait_for("the ejected instance", std::time::Duration::from_secs(10), || {
        let results = front.requests(&json!({
            "url": format!("http://{vip}/"), "count": 4, "headers": {"Host": "order-service"},
        }))?;
        ensure!(weft_tests::served_by(&results).iter().any(|s| s == "order2"), "not back yet");
        Ok(())
    })?;
    drop(good);
    Ok(())
}
