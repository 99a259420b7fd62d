//! Two data centres: control planes that federate, a gateway between them, and the loss of the link.
//!
//! They share no network but the link between their control planes' machines, which carries only packets addressed to
//! the other's control plane or east-west gateway. Pods of one cannot reach pods of the other.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weft_tests::{Instance, Mesh, Pod, Process, binary, run, tests_dir, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![two_data_centres_fail_over_to_each_other,]
}

const LINE: [&str; 2] = ["10.98.0.1", "10.98.0.2"];
/// Seconds for which the local data centre must be healthy before traffic fails back.
const FAILBACK: u64 = 3;
/// The exports of dc2, the listener of its gateway, and STRICT mTLS there.
const POLICY: &str = "
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceExport
metadata: {name: order-service}
---
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceExport
metadata: {name: billing}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: east-west}
spec:
  selector: {istio: eastwestgateway}
  servers:
  - port: {number: 15443, name: tls, protocol: TLS}
    hosts: ['*.local']
    tls: {mode: AUTO_PASSTHROUGH}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: all, namespace: weft-system}
spec: {mtls: {mode: STRICT}}
";

/// A data centre without a peer.
fn centre(name: &str) -> Result<Mesh> {
    let domain = format!("{name}.example");
    Mesh::start(&["--datacenter", name, "--trust-domain", &domain, "--failback", &FAILBACK.to_string()])
}

/// The link between the machines of two control planes, with a route to the other's `gateway`.
fn connect(one: &Mesh, two: &Mesh, gateway: &str) -> Result<()> {
    let [near, far] = [one.center.netns(), two.center.netns()];
    run("ip", &["link", "add", "line", "netns", near, "type", "veth", "peer", "name", "line", "netns", far])?;
    for (mesh, address) in [(one, LINE[0]), (two, LINE[1])] {
        mesh.center.run("ip", &["addr", "add", &format!("{address}/24"), "dev", "line"])?;
        mesh.center.run("ip", &["link", "set", "line", "up"])?;
        mesh.center.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
    }
    // The other end sees the address of the caller's machine.
    let rules = "add table ip line; add chain ip line out { type nat hook postrouting priority srcnat; }; \
                 add rule ip line out oifname \"line\" masquerade";
    one.center.run("nft", &[rules])?;
    route(one, gateway)
}

fn route(one: &Mesh, gateway: &str) -> Result<()> {
    one.center.run("ip", &["route", "replace", &format!("{gateway}/32"), "via", LINE[1]]).map(drop)
}

/// Starts a control plane anew, with the other as its peer.
fn with_peer(mesh: &mut Mesh, own: &str, peer: &str, address: &str, root: &Path) -> Result<()> {
    let mut old = mesh.control_plane.take().ok_or_else(|| anyhow::anyhow!("no control plane"))?;
    old.signal("TERM")?;
    old.wait(Duration::from_secs(10))?;
    let peer = format!("{peer}={address}:15022,{}", root.display());
    let listen = format!("{own}:15022");
    mesh.control_plane_args.extend(["--peer".into(), peer, "--federation-listen".into(), listen]);
    mesh.start_control_plane()
}

/// An instance whose health check requests /health of its application.
fn instance(mesh: &Mesh, name: &str, service: &str) -> Result<Instance> {
    mesh.instance(name, service, 8080, &["--health-path", "/health", "--health-interval", "1"])
}

fn gateway(mesh: &Mesh, pod: &Pod) -> Result<Process> {
    let token = mesh.token("east-west")?.to_string_lossy().into_owned();
    let (control, data) = (format!("{}:15012", mesh.center.ip), pod.folder("data").to_string_lossy().into_owned());
    let label = "istio=eastwestgateway";
    let args = ["gateway", "--control-plane", &control, "--token-file", &token, "--data-dir", &data, "--label", label];
    let process = pod.spawn("gateway", binary("weft-sidecar")?, &args)?;
    mesh.wait_ready(pod)?;
    Ok(process)
}

/// The bodies of `count` responses, which name the server and the caller.
fn answers(front: &Pod, host: &str, count: usize) -> Result<Vec<String>> {
    (0..count).map(|_| front.curl(&["-f", &format!("http://{host}/")])).collect()
}

fn from_dc2(answer: &str) -> bool {
    answer.contains("\"far")
}

/// Whether the gateway passes a TLS connection with the server name `host` through to a server.
fn is_passed_on(from: &Pod, gateway: &str, host: &str) -> bool {
    let script = tests_dir().join("apps/mesh_hello.py");
    from.run("python3", &[&script.to_string_lossy(), gateway, "15443", host]).is_ok()
}

fn two_data_centres_fail_over_to_each_other() -> Result<()> {
    let (mut one, mut two) = (centre("dc1")?, centre("dc2")?);
    two.policy("east-west.yaml", POLICY)?;
    let edge = two.pod("edge")?;
    connect(&one, &two, &edge.ip)?;
    let (root_of_one, root_of_two) = (one.data_dir().join("root.pem"), two.data_dir().join("root.pem"));
    with_peer(&mut two, LINE[1], "dc1", LINE[0], &root_of_one)?;
    with_peer(&mut one, LINE[0], "dc2", LINE[1], &root_of_two)?;
    let _gateway = gateway(&two, &edge)?;
    let near = instance(&one, "near1", "order-service")?;
    let _far: Vec<Instance> =
        ["far1", "far2"].map(|name| instance(&two, name, "order-service")).into_iter().collect::<Result<_>>()?;
    let _billing = instance(&two, "far-billing", "billing")?;
    let _secret = instance(&two, "far-secret", "secret")?;
    let (front, _sidecar) = one.client("frontend")?;
    wait_for("dc1 to know of dc2", Duration::from_secs(15), || {
        let status = one.status();
        ensure!(status.contains("in dc2: 2 of 2 healthy, 0 % of the requests go there"), "{status}");
        Ok(())
    })?;

    // Requests stay local while the local instance is healthy.
    let all = wait_for("the first answers", Duration::from_secs(10), || answers(&front, "order-service", 20))?;
    ensure!(!all.iter().any(|answer| from_dc2(answer)), "{all:?}");
    // A service of the other data centre alone: by its usual name, a local virtual IP and the caller's own identity.
    let answer = wait_for("billing", Duration::from_secs(10), || front.curl(&["-f", "http://billing/"]))?;
    ensure!(answer.contains("far-billing"), "{answer}");
    ensure!(answer.contains("spiffe://dc1.example/ns/default/sa/frontend"), "the identity is end to end: {answer}");
    // Only exported services are reachable through the gateway, and only by the sidecars' protocol.
    for (host, passed) in [("order-service", true), ("secret", false), ("unknown", false)] {
        let name = format!("outbound_.0_._.{host}.default.svc.cluster.local");
        ensure!(is_passed_on(&front, &edge.ip, &name) == passed, "{host}: passed on is not {passed}");
    }
    ensure!(front.curl(&["-f", "http://secret/"]).is_err(), "a service that is not exported is unknown here");

    failover(&one, &near, &front)?;
    questions(&front, &two)?;
    prepared_query(&front)?;
    split(&one, &two, &near, &front, &edge.ip)
}

/// A prepared query of a service that is in dc2 alone finds it there, by the API and by DNS.
fn prepared_query(front: &Pod) -> Result<()> {
    let body = r#"{"Name":"bills","Service":{"Service":"billing","Failover":{"Datacenters":["dc9","dc2"]}},"DNS":{"TTL":"7s"}}"#;
    front.curl(&["-f", "-X", "POST", "-d", body, "http://127.0.0.1:8500/v1/query"])?;
    let found = front.curl(&["-f", "http://127.0.0.1:8500/v1/query/bills/execute"])?;
    let found: serde_json::Value = serde_json::from_str(&found)?;
    ensure!(found["Datacenter"] == "dc2" && found["Failovers"] == 2, "{found}");
    let address = found["Nodes"][0]["Service"]["Address"].as_str().unwrap_or_default();
    let answer = front.run("dig", &["@127.0.0.1", "-p", "8600", "+noall", "+answer", "bills.query.consul"])?;
    let words: Vec<&str> = answer.split_ascii_whitespace().collect();
    ensure!(words.first() == Some(&"bills.query.consul.") && words.last() == Some(&address), "{answer}");
    ensure!(words.get(1).and_then(|ttl| ttl.parse::<u32>().ok()).is_some_and(|ttl| (1..=7).contains(&ttl)), "{answer}");
    Ok(())
}

/// The local instance becomes unhealthy, and traffic fails over to dc2; after recovery it fails back.
fn failover(one: &Mesh, near: &Instance, front: &Pod) -> Result<()> {
    let started = Instant::now();
    near.pod.curl(&["-f", "-X", "POST", "http://127.0.0.1:8080/sick"])?;
    wait_for("dc2 to stand in", Duration::from_secs(15), || {
        let answers = answers(front, "order-service", 10)?;
        ensure!(answers.iter().all(|answer| from_dc2(answer)), "some are answered at home");
        Ok(())
    })?;
    println!("from /health 503 at home to all requests in the other data centre: {} ms", started.elapsed().as_millis());
    let status = one.status();
    ensure!(status.contains("in dc2: 2 of 2 healthy, 100 % of the requests go there"), "{status}");
    let explained = one.weftctl(&["route", "http://order-service/"])?;
    ensure!(explained.contains("100 % to data centre dc2 through its gateway "), "{explained}");
    ensure!(
        explained.contains(": 0 of 1 endpoints here are available") && explained.contains("used for fail-over"),
        "{explained}"
    );
    // The gateway balances connections, not requests: concurrent requests use several.
    let slow = ["http://order-service/sleep/300"; 6];
    let together = front.curl(&[&["-f", "-Z", "--parallel-immediate"], &slow[..]].concat())?;
    ensure!(together.contains("\"far1\"") && together.contains("\"far2\""), "only one has requests: {together}");
    near.pod.curl(&["-f", "-X", "POST", "http://127.0.0.1:8080/well"])?;
    one.wait_healthy(&near.pod.ip)?;
    let well = Instant::now();
    wait_for("requests to return", Duration::from_secs(20), || {
        let answers = answers(front, "order-service", 10)?;
        ensure!(!answers.iter().any(|answer| from_dc2(answer)), "some still go to dc2");
        Ok(())
    })?;
    let returned = well.elapsed();
    ensure!(returned + Duration::from_secs(1) > Duration::from_secs(FAILBACK), "too soon: {returned:?}");
    println!("and from well again to all requests at home: {} ms (--failback {FAILBACK})", returned.as_millis());
    Ok(())
}

/// Consul's API and DNS about the other data centre.
fn questions(front: &Pod, two: &Mesh) -> Result<()> {
    let get = |path: &str| front.curl(&["-f", &format!("http://127.0.0.1:8500/v1/{path}")]);
    let list = get("health/service/order-service?dc=dc2&passing=1")?;
    let items: serde_json::Value = serde_json::from_str(&list)?;
    let items = items.as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(items.len() == 2 && items.iter().all(|item| item["Node"]["Datacenter"] == "dc2"), "{list}");
    ensure!(get("catalog/datacenters")? == "[\"dc1\",\"dc2\"]", "{}", get("catalog/datacenters")?);
    let services = get("catalog/services?dc=dc2")?;
    ensure!(services.contains("billing") && !services.contains("secret"), "{services}");
    ensure!(get("agent/self")?.contains("\"Datacenter\":\"dc1\""), "an agent reports its data centre");
    let dig = |name: &str| front.run("dig", &["+short", "@127.0.0.1", "-p", "8600", name, "A"]);
    let found = dig("order-service.service.dc2.consul")?;
    let mut addresses: Vec<&str> = found.lines().collect();
    addresses.sort_unstable();
    ensure!(addresses.len() == 2 && addresses.iter().all(|a| a.starts_with(prefix(two))), "{found}");
    ensure!(dig("secret.service.dc2.consul")?.is_empty(), "a service that is not exported has no name");
    let here = dig("order-service.service.dc1.consul")?;
    ensure!(here.lines().count() == 1 && !here.starts_with(prefix(two)), "{here}");
    Ok(())
}

/// `10.99.2.` of 10.99.2.1.
fn prefix(mesh: &Mesh) -> &str {
    mesh.center.ip.trim_end_matches('1')
}

/// The link is cut, and each data centre works alone; the link is restored.
fn split(one: &Mesh, two: &Mesh, near: &Instance, front: &Pod, gateway: &str) -> Result<()> {
    one.center.run("ip", &["link", "set", "line", "down"])?;
    for (mesh, other) in [(one, "dc2"), (two, "dc1")] {
        wait_for("the split to be noticed", Duration::from_secs(40), || {
            let status = mesh.status();
            let line = status.lines().find(|line| line.starts_with(&format!("datacenter {other} ")));
            let line = line.ok_or_else(|| anyhow::anyhow!("{status}"))?;
            ensure!(line.contains("NOT CONNECTED, last message "), "{line}");
            Ok(())
        })?;
    }
    // Its last answer is still served, with its age; local queries do not wait.
    let status = one.status();
    ensure!(status.contains("in dc2: 2 of 2 healthy"), "{status}");
    let started = Instant::now();
    near.pod.curl(&["-f", "-X", "PUT", "-d", "1", "http://127.0.0.1:8500/v1/kv/a"])?;
    let took = started.elapsed();
    ensure!(took < Duration::from_secs(3), "a local write took {took:?}");
    let _new = instance(one, "near2", "order-service")?;
    let all = answers(front, "order-service", 20)?;
    ensure!(!all.iter().any(|answer| from_dc2(answer)), "{all:?}");
    let url = "http://127.0.0.1:8500/v1/health/service/order-service?dc=dc2";
    let answer = front.curl(&["-w", " %{http_code}", url])?;
    ensure!(answer == "No path to datacenter 500", "{answer}");
    let none = front.run("dig", &["@127.0.0.1", "-p", "8600", "order-service.service.dc2.consul", "A"])?;
    ensure!(none.contains("NXDOMAIN"), "{none}");

    one.center.run("ip", &["link", "set", "line", "up"])?;
    route(one, gateway)?;
    wait_for("both to find each other", Duration::from_secs(40), || {
        for (mesh, other) in [(one, "dc2"), (two, "dc1")] {
            let status = mesh.status();
            let line = status.lines().find(|line| line.starts_with(&format!("datacenter {other} ")));
            ensure!(line.is_some_and(|line| line.contains(" connected, ")), "{status}");
        }
        Ok(())
    })?;
    ensure!(front.curl(&["-f", "http://billing/"])?.contains("far-billing"));
    Ok(())
}
