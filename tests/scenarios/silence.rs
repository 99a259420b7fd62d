//! Connections that occupy a listener: thousands of silent ones, and thousands of blocking queries.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_tests::{Mesh, Pod, tests_dir, wait_for};

use crate::Scenario;
use crate::certificates::Certificates;
use crate::gateway::another;
use crate::operations::{SOON, put};

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![silent_connections_shut_no_listener, blocking_queries_of_one_client_leave_room_for_writes_and_health,]
}

/// More silent connections than any listener allows one address.
const SILENT: usize = 2500;

const EDGE: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}
  - port: {number: 8443, name: https, protocol: HTTPS}
    hosts: ['*']
    tls: {mode: SIMPLE, credentialName: shop}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: ['*']
  gateways: [edge]
  http:
  - route: [{destination: {host: order-service}}]
";

/// Holds silent connections from `pod` while `probe` runs.
fn meanwhile(pod: &Pod, address: &str, port: u16, listener: &str, probe: impl Fn() -> Result<String>) -> Result<()> {
    probe().with_context(|| format!("{listener}, before"))?;
    let script = tests_dir().join("apps/silent.py").to_string_lossy().into_owned();
    let (port, count, name) = (port.to_string(), SILENT.to_string(), listener.replace([' ', ',', '\''], "-"));
    let (process, _input) = pod.spawn_with_input(&name, "python3", &[&script, address, &port, &count])?;
    wait_for(listener, Duration::from_secs(30), || {
        let output = process.output();
        ensure!(output.contains("open"), "{output}");
        Ok(())
    })?;
    let began = Instant::now();
    probe().with_context(|| format!("{listener}, beside {SILENT} silent connections"))?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(2), "{listener}: {took:?} beside {SILENT} silent connections");
    process.signal("KILL")
}

fn silent_connections_shut_no_listener() -> Result<()> {
    let mut mesh = Mesh::network(&[])?;
    let api = format!("{}:8502", mesh.center.ip);
    mesh.control_plane_args = ["--http-listen", "127.0.0.1:8501", "--http-listen", &api].map(str::to_owned).to_vec();
    mesh.start_control_plane()?;
    let certificates = Certificates::new(&mesh.center.folder("certificates"))?;
    certificates.leaf("shop", "shop.example.com")?;
    mesh.policy("edge.yaml", EDGE)?;
    let order = mesh.instance("order1", "order-service", 8000, &[])?;
    let (edge, _gateway) = another(&mesh, "edge", &["--credentials", &certificates.path("")])?;
    let outside = mesh.pod("outside")?;
    let get = |pod: &Pod, url: &str| pod.curl(&["-fk", "--max-time", "5", url]);
    let at = |pod: &Pod, port: u16| format!("{}:{port}", pod.ip);
    wait_for("the gateway", SOON, || get(&outside, &format!("http://{}/", at(&edge, 8080))))?;

    // From one address, whose own requests are served too.
    for (listener, pod, port, url) in [
        ("sidecar, inbound", &order.pod, 8000, format!("http://{}/", at(&order.pod, 8000))),
        ("gateway, HTTP", &edge, 8080, format!("http://{}/", at(&edge, 8080))),
        ("gateway, HTTPS", &edge, 8443, format!("https://{}/", at(&edge, 8443))),
        ("readiness", &order.pod, 15021, format!("http://{}/healthz/ready", at(&order.pod, 15021))),
        ("metrics", &order.pod, 15020, format!("http://{}/metrics", at(&order.pod, 15020))),
        ("Consul's API, TLS", &mesh.center, 8502, format!("https://{api}/v1/status/leader")),
    ] {
        meanwhile(&outside, &pod.ip, port, listener, || get(&outside, &url))?;
    }
    // On loopback.
    for (listener, pod, port, path) in [
        ("agent API", &order.pod, 8500, "v1/agent/self"),
        ("Eureka's API", &order.pod, 8761, "eureka/apps"),
        ("admin", &order.pod, 15000, "config"),
        ("Consul's API", &mesh.center, 8501, "v1/status/leader"),
        ("control plane's readiness", &mesh.center, 8501, "healthz/ready"),
    ] {
        meanwhile(pod, "127.0.0.1", port, listener, || get(pod, &format!("http://127.0.0.1:{port}/{path}")))?;
    }
    for (listener, pod) in [("DNS of a sidecar", &order.pod), ("DNS of the control plane", &mesh.center)] {
        let name = "order-service.service.consul";
        let query = ["@127.0.0.1", "-p", "8600", "+tcp", "+tries=1", "+time=5", "+short", name];
        meanwhile(pod, "127.0.0.1", 8600, listener, || pod.run("dig", &query))?;
    }
    // Sidecars join meanwhile.
    let joins = std::sync::atomic::AtomicU32::new(0);
    meanwhile(&outside, &mesh.center.ip, 15012, "sidecars", || {
        let number = joins.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let _joined = mesh.client(&format!("client{number}"))?;
        Ok(String::new())
    })
}

fn blocking_queries_of_one_client_leave_room_for_writes_and_health() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let pod = mesh.pod("order1")?;
    let _sidecar = mesh.sidecar(&pod, "order-service", &[])?;
    let service = json!({"name": "order-service", "id": "a", "port": 8080, "check": {"ttl": "60s"}});
    ensure!(put(&pod, "service/register", &service)? == "200", "it is registered");
    let index = pod.curl(&["-sS", "-D", "-", "-o", "/dev/null", "http://127.0.0.1:8500/v1/kv/none"])?;
    let index = index.to_lowercase();
    let index = index.split("x-consul-index: ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let path = format!("/v1/kv/none?index={}&wait=60s", index.context("no index")?);
    let script = tests_dir().join("apps/silent.py").to_string_lossy().into_owned();
    let (questions, _input) =
        pod.spawn_with_input("questions", "python3", &[&script, "127.0.0.1", "8500", "3000", &path])?;
    let output = wait_for("3000 blocking queries", Duration::from_secs(30), || {
        let output = questions.output();
        ensure!(output.contains("open"), "{output}");
        Ok(output)
    })?;
    let refused: usize = output.trim().trim_start_matches("open ").parse()?;
    // Some connections of a burst may have been closed before they were read.
    ensure!((2000..=2900).contains(&refused), "{refused} of 3000 were answered with 429");
    // Writes and non-blocking reads are served meanwhile.
    let began = Instant::now();
    ensure!(put(&pod, "check/pass/service:a", &serde_json::Value::Null)? == "200", "its health is taken");
    let other = json!({"name": "order-service", "id": "b", "port": 8081});
    ensure!(put(&pod, "service/register", &other)? == "200", "another is registered");
    let read = pod.curl(&["-f", "--max-time", "5", "http://127.0.0.1:8500/v1/health/service/order-service?passing"])?;
    ensure!(read.contains("\"a\""), "{read}");
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(2), "{took:?}");
    let more = pod.curl(&[
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %header{retry-after}",
        "-sS",
        &format!("http://127.0.0.1:8500{path}"),
    ])?;
    ensure!(more == "429 1", "{more}");
    questions.signal("KILL")?;
    // After the client's end its share is free again.
    wait_for("room", SOON, || {
        let short = path.replace("wait=60s", "wait=1s");
        let url = format!("http://127.0.0.1:8500{short}");
        let status = pod.curl(&["-sS", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", &url])?;
        ensure!(status == "404", "{status}");
        Ok(())
    })
}
