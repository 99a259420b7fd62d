//! A peer that vanishes: its packets are dropped, as behind a cut cable or on a frozen host.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use weft_tests::{Mesh, statuses};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![requests_go_on_elsewhere_when_a_peer_vanishes,]
}

const HOLE: &str = "table inet hole { \
    chain in { type filter hook input priority -400; iif lo accept; drop; }; \
    chain out { type filter hook output priority -400; oif lo accept; drop; }; }";

const HTTP2: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: order}
spec: {host: order-service, trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}}
";

fn requests_go_on_elsewhere_when_a_peer_vanishes() -> Result<()> {
    ["HTTP/1", "HTTP/2"].into_iter().try_for_each(by)
}

fn by(protocol: &str) -> Result<()> {
    let mesh = Mesh::start(&[])?;
    if protocol == "HTTP/2" {
        mesh.policy("http2.yaml", HTTP2)?;
    }
    let order1 = mesh.instance("order1", "order-service", 8080, &[])?;
    let order2 = mesh.instance("order2", "order-service", 8080, &[])?;
    mesh.wait_healthy(&order1.pod.ip)?;
    mesh.wait_healthy(&order2.pod.ip)?;
    let (front, _sidecar) = mesh.client_with("frontend", &["--workload", "frontend", "--tcp-user-timeout", "2"])?;
    let url = |path: &str| format!("http://order-service{path}");
    // Connections to both are open and idle.
    let before = front.requests(&json!({"url": url("/sleep/20"), "count": 40, "concurrency": 8}))?;
    ensure!(statuses(&before) == [(200, 40)].into(), "{:?}", statuses(&before));
    let load = front.requests_meanwhile(&json!({"url": url("/sleep/20"), "seconds": 8, "concurrency": 8}))?;
    // A request that must not be repeated is in progress at the vanishing peer.
    let direct = format!("http://{}:8080/sleep/8000", order2.pod.ip);
    let unsafe_one = front.requests_meanwhile(&json!({"url": direct, "method": "POST", "body": "x".repeat(64)}))?;
    std::thread::sleep(Duration::from_secs(1));
    order2.pod.run("nft", &[HOLE])?;
    let results = load.results()?;
    let slowest = results.iter().filter_map(|r| r["ms"].as_f64()).fold(0.0, f64::max);
    println!("{protocol}: {} requests, the slowest took {slowest:.0} ms: {:?}", results.len(), statuses(&results));
    let failed: Vec<_> = results.iter().filter(|r| r["status"] != 200).take(3).collect();
    ensure!(failed.is_empty() && results.len() > 100, "{failed:?}");
    // 2 s until the idle connection ends, 3 s for a new one, plus timers and back-off.
    ensure!(slowest < 8000.0, "{slowest} ms");
    let results = unsafe_one.results()?;
    let (status, ms) = (&results[0]["status"], results[0]["ms"].as_f64().unwrap_or_default());
    println!("{protocol}: the unsafe request: {status} after {ms:.0} ms");
    let body = results[0]["body"].as_str().unwrap_or_default();
    ensure!(*status == 503 && body.contains("connection termination"), "{results:?}");
    ensure!(ms < 7000.0, "{ms} ms");
    Ok(())
}
