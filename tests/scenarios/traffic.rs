//! Traffic: balanced, routed, encrypted, intact.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Kind, Mesh, document, served_by, statuses, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        same_user_same_instance_across_sidecars_and_restarts,
        subsets_and_weights_and_canary,
        a_policy_edit_reaches_traffic_in_a_second,
        bytes_between_pods_are_tls_and_strict_refuses_plaintext,
        requests_arrive_as_they_were_sent,
        self_calls_and_calls_to_pod_addresses,
        removing_one_of_ten_endpoints_moves_few_keys,
    ]
}

pub(crate) const ORDER_POLICY: &str = r#"
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata:
  name: order-service
spec:
  host: order-service
  trafficPolicy:
    loadBalancer:
      consistentHash:
        httpHeaderName: user-id
    connectionPool:
      tcp:
        maxConnections: 100
      http:
        http1MaxPendingRequests: 50
        maxRequestsPerConnection: 2
  subsets:
  - name: v1
    labels:
      version: v1
  - name: v2
    labels:
      version: v2
"#;

fn users(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("user-{i}")).collect()
}

/// The server of each user.
fn by_user(results: &[Value]) -> Result<HashMap<String, String>> {
    let mut map = HashMap::new();
    for (result, server) in results.iter().zip(served_by(results)) {
        ensure!(result["status"] == 200, "{result}");
        let user = result["value"].as_str().unwrap_or_default().to_owned();
        let known = map.entry(user.clone()).or_insert_with(|| server.clone());
        ensure!(*known == server, "{user} was served by {known} and by {server}");
    }
    Ok(map)
}

fn same_user_same_instance_across_sidecars_and_restarts() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("order.yaml", ORDER_POLICY)?;
    let _instances: Vec<_> =
        (1..=3).map(|i| mesh.instance(&format!("order{i}"), "order-service", 8080, &[])).collect::<Result<_>>()?;
    let (front, front_sidecar) = mesh.client("frontend")?;
    let (other, _other_sidecar) = mesh.client("other")?;
    let url = format!("http://{}/", mesh.vip("order-service")?);
    let plan = json!({
        "url": url, "count": 1000, "concurrency": 4, "headers": {"Host": "order-service"},
        "vary": "user-id", "values": users(50),
    });
    let first = by_user(&front.requests(&plan)?)?;
    let servers: BTreeSet<&String> = first.values().collect();
    ensure!(servers.len() == 3, "each of the three serves a user: {servers:?}");
    ensure!(by_user(&other.requests(&plan)?)? == first, "another sidecar decides otherwise");
    drop(front_sidecar);
    let _restarted = mesh.sidecar(&front, "frontend", &["--workload", "frontend"])?;
    ensure!(by_user(&front.requests(&plan)?)? == first, "a restarted sidecar decides otherwise");
    Ok(())
}

fn subsets_and_weights_and_canary() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("order.yaml", ORDER_POLICY)?;
    mesh.policy(
        "routes.yaml",
        r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: order-service
spec:
  hosts: [order-service]
  http:
  - match:
    - headers:
        x-canary:
          exact: "true"
    route:
    - destination: {host: order-service, subset: v2}
  - match:
    - uri: {prefix: /old/}
    rewrite: {uri: /new/}
    route:
    - destination: {host: order-service, subset: v1}
      headers:
        request: {set: {x-team: orders}}
        response: {add: {x-routed: "yes"}}
  - match:
    - uri: {exact: /moved}
    redirect: {uri: /here, redirectCode: 302}
  - match:
    - uri: {exact: /teapot}
    directResponse: {status: 418, body: {string: "short and stout"}}
  - match:
    - uri: {prefix: /slow}
    rewrite: {uri: /sleep/2000}
    timeout: 200ms
    route:
    - destination: {host: order-service, subset: v1}
  - route:
    - destination: {host: order-service, subset: v1}
      weight: 90
    - destination: {host: order-service, subset: v2}
      weight: 10
"#,
    )?;
    let v1 = ["--label", "version=v1"];
    let _a = mesh.instance("order1", "order-service", 8080, &v1)?;
    let _b = mesh.instance("order2", "order-service", 8080, &v1)?;
    let _c = mesh.instance("order3", "order-service", 8080, &["--label", "version=v2"])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let url = format!("http://{vip}/");
    let canary = front.requests(&json!({
        "url": url, "count": 200, "headers": {"Host": "order-service", "x-canary": "true"},
        "vary": "user-id", "values": users(50),
    }))?;
    ensure!(served_by(&canary).iter().all(|s| s == "order3"), "x-canary: true goes to v2 alone");
    let split = front.requests(&json!({
        "url": url, "count": 1000, "concurrency": 4, "headers": {"Host": "order-service"},
        "vary": "user-id", "values": users(50),
    }))?;
    ensure!(statuses(&split) == HashMap::from([(200, 1000)]), "{:?}", statuses(&split));
    let v2 = served_by(&split).iter().filter(|s| *s == "order3").count();
    // Five standard deviations around 100.
    ensure!((53..=147).contains(&v2), "10 % of 1000 go to v2, these did: {v2}");

    let host = ["-H", "Host: order-service"];
    let get = |path: &str, more: &[&str]| {
        let url = format!("http://{vip}{path}");
        front.curl(&[&host[..], more, &[url.as_str()]].concat())
    };
    let rewritten = get("/old/x?y=1", &["-i"])?;
    ensure!(rewritten.contains("\"path\": \"/new/x?y=1\""), "{rewritten}");
    ensure!(rewritten.contains("\"x-team\", \"orders\""), "{rewritten}");
    ensure!(rewritten.to_lowercase().contains("x-routed: yes"), "{rewritten}");
    let moved = get("/moved", &["-i"])?;
    ensure!(
        moved.starts_with("HTTP/1.1 302") && moved.to_lowercase().contains("location: http://order-service/here"),
        "{moved}"
    );
    let teapot = get("/teapot", &["-i"])?;
    ensure!(teapot.starts_with("HTTP/1.1 418") && teapot.ends_with("short and stout"), "{teapot}");
    let slow = get("/slow", &["-i"])?;
    ensure!(slow.starts_with("HTTP/1.1 504") && slow.contains("upstream request timeout"), "{slow}");
    ensure!(slow.contains("x-weft-reason: timeout"), "{slow}");
    Ok(())
}

fn a_policy_edit_reaches_traffic_in_a_second() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("order.yaml", ORDER_POLICY)?;
    let to = |subset: &str| {
        let destination = json!({"host": "order-service", "subset": subset});
        let spec = json!({"hosts": ["order-service"], "http": [{"route": [{"destination": destination}]}]});
        document(Kind::VirtualService, "order", spec)
    };
    mesh.policy("routes.yaml", &to("v1"))?;
    let _a = mesh.instance("order1", "order-service", 8080, &["--label", "version=v1"])?;
    let _b = mesh.instance("order2", "order-service", 8080, &["--label", "version=v2"])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let url = format!("http://{}/", mesh.vip("order-service")?);
    let server = || front.curl(&["-o", "/dev/null", "-D", "-", "-H", "Host: order-service", &url]);
    ensure!(server()?.contains("order1"));
    let mut times = Vec::new();
    for round in 0..5 {
        let (subset, name) = if round % 2 == 0 { ("v2", "order2") } else { ("v1", "order1") };
        let start = Instant::now();
        mesh.policy("routes.yaml", &to(subset))?;
        wait_for("the edit", Duration::from_secs(10), || {
            ensure!(server()?.contains(name));
            Ok(())
        })?;
        times.push(start.elapsed());
    }
    times.sort();
    println!("policy edits took {times:?}");
    // The requirement is a second; a test on shared cores may take three times that.
    ensure!(times[2] < Duration::from_secs(3), "median {:?}", times[2]);
    Ok(())
}

fn bytes_between_pods_are_tls_and_strict_refuses_plaintext() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let outside = mesh.pod("outside")?;
    let url = format!("http://{}:8080/", order.pod.ip);

    // On the wire, captured at the bridge: no byte of the secret.
    let capture = mesh.center.spawn("tcpdump", "tcpdump", &["-i", "br0", "-U", "-s0", "-w", "/run/capture", "tcp"])?;
    wait_for("tcpdump", Duration::from_secs(10), || {
        ensure!(capture.output().contains("listening on"), "{}", capture.output());
        Ok(())
    })?;
    let vip_url = format!("http://{}/a-secret-path", mesh.vip("order-service")?);
    let answer = front.curl(&["-H", "Host: order-service", "-H", "x-secret: swordfish", &vip_url])?;
    ensure!(answer.contains("swordfish") && answer.contains("a-secret-path"), "{answer}");
    let client = "URI=spiffe://cluster.local/ns/default/sa/frontend";
    ensure!(answer.contains(client), "the application sees the caller's identity: {answer}");
    let plain = outside.curl(&["-H", "x-plain: herring", &url])?;
    ensure!(plain.contains("herring"), "PERMISSIVE takes plaintext: {plain}");
    ensure!(!plain.contains("spiffe://"), "and claims no identity for it: {plain}");
    let forged =
        outside.curl(&["-H", "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/default/sa/admin", &url])?;
    ensure!(!forged.contains("sa/admin"), "a claim without a certificate is removed: {forged}");
    let bytes = wait_for("the capture", Duration::from_secs(10), || {
        let bytes = std::fs::read("/run/capture")?;
        ensure!(bytes.windows(7).any(|w| w == b"herring"), "the plaintext call is not in it yet");
        Ok(bytes)
    })?;
    ensure!(!bytes.windows(9).any(|w| w == b"swordfish"), "the secret went over the wire in clear");
    drop(capture);

    // A plaintext connection is closed when STRICT takes effect.
    let script = weft_tests::tests_dir().join("apps/tcp.py").to_string_lossy().into_owned();
    let _echo = order.pod.spawn("echo", "python3", &[&script, "9100", "echo"])?;
    // So are a TCP connection and a silent one.
    let bytes = format!(
        "import socket,time\nd=None\nwhile d is None:\n try: d=socket.create_connection(('{0}',9100),timeout=10)\n \
         except OSError: time.sleep(.02)\ns=socket.create_connection(('{0}',8080),timeout=10)\nprint('open',flush=True)\n\
         try:\n while True:\n  d.sendall(b'\\0x')\n  if not d.recv(10): break\n  time.sleep(.05)\n\
         except ConnectionError: pass\nprint('bytes ended',flush=True)\ns.sendall(b'\\0'*20)\n\
         try: print('silent ended' if not s.recv(10) else 'silent lives')\nexcept ConnectionError: print('silent ended')\n",
        order.pod.ip
    );
    let bytes = outside.spawn("bytes", "python3", &["-c", &bytes])?;
    wait_for("both connections", Duration::from_secs(10), || {
        ensure!(bytes.output().contains("open"), "{}", bytes.output());
        Ok(())
    })?;
    let plaintext = outside.requests_meanwhile(&json!({"url": url, "seconds": 5}))?;
    std::thread::sleep(Duration::from_secs(1));
    mesh.strict()?;
    wait_for("STRICT", Duration::from_secs(10), || {
        let refused = outside.curl(&["-i", &url])?;
        ensure!(refused.starts_with("HTTP/1.1 403"), "{refused}");
        ensure!(
            refused.contains("x-weft-reason: plaintext_refused; policy=PeerAuthentication/default/default"),
            "{refused}"
        );
        Ok(())
    })?;
    wait_for("the end of plaintext bytes", Duration::from_secs(10), || {
        let output = bytes.output();
        ensure!(output.contains("bytes ended") && output.contains("silent ended"), "{output}");
        Ok(())
    })?;
    let plaintext = plaintext.results()?;
    ensure!(plaintext.first().is_some_and(|r| r["status"] == 200), "{:?}", plaintext.first());
    ensure!(plaintext.last().is_some_and(|r| r["status"] == 403), "{:?}", plaintext.last());
    let answer = front.curl(&["-H", "Host: order-service", &vip_url])?;
    ensure!(answer.contains(client), "mesh calls go on: {answer}");
    // Probes of the application and the sidecar's admin endpoints still work.
    order.pod.curl(&["-f", "http://127.0.0.1:8080/health"])?;
    Ok(())
}

fn requests_arrive_as_they_were_sent() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let url = format!("http://{vip}/");
    let host = ["-H", "Host: order-service"];
    let curl = |more: &[&str]| front.curl(&[&host[..], more].concat());
    let answer = curl(&["-H", "X-CamelCase: 1", &url])?;
    ensure!(answer.contains("X-CamelCase"), "header case is kept: {answer}");
    ensure!(curl(&["-0", "-i", &url])?.contains("200"), "HTTP/1.0 is served");
    let posted = curl(&["--data-binary", "@/proc/self/exe", "-o", "-", &url])?;
    let posted: Value = serde_json::from_str(&posted)?;
    let curl_path = front.run("sh", &["-c", "readlink -f $(command -v curl)"])?;
    let expected = weft_tests::run("sha256sum", &[curl_path.trim()])?;
    ensure!(expected.starts_with(posted["body_sha256"].as_str().context("no hash")?), "{posted}");
    let chunked = curl(&["-H", "Transfer-Encoding: chunked", "--data-binary", "@/etc/passwd", &url])?;
    let length = std::fs::metadata("/etc/passwd")?.len();
    ensure!(chunked.contains(&format!("\"body_length\": {length}")), "{chunked}");
    let expecting = curl(&["-H", "Expect: 100-continue", "--data-binary", "@/etc/passwd", &url])?;
    ensure!(expecting.contains(&format!("\"body_length\": {length}")), "{expecting}");
    let head = curl(&["-I", &format!("http://{vip}/bytes/1000")])?;
    ensure!(head.to_lowercase().contains("content-length: 1000"), "{head}");
    let big = curl(&["-o", "/dev/null", "-w", "%{size_download}", &format!("http://{vip}/bytes/50000000")])?;
    ensure!(big == "50000000", "{big}");
    let large_head = format!("x-large: {}", "a".repeat(100_000));
    let refused = curl(&["-o", "/dev/null", "-w", "%{http_code}", "-H", &large_head, &url])?;
    ensure!(refused == "431", "a head of 100 KB is refused: {refused}");
    ensure!(curl(&["-f", &url]).is_ok(), "and the proxy goes on");
    let metrics = front.curl(&["http://127.0.0.1:15020/metrics"])?;
    let line = metrics
        .lines()
        .find(|l| l.starts_with("istio_requests_total") && l.contains("response_code=\"200\""))
        .context("no istio_requests_total")?;
    for label in [
        "reporter=\"source\"",
        "source_workload=\"frontend\"",
        "destination_service=\"order-service.default.svc.cluster.local\"",
        "destination_principal=\"spiffe://cluster.local/ns/default/sa/order-service\"",
    ] {
        ensure!(line.contains(label), "{label} is missing: {line}");
    }
    Ok(())
}

fn self_calls_and_calls_to_pod_addresses() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.strict()?;
    let order = mesh.instance("order1", "order-service", 8080, &["--app-probe", "8080/health"])?;
    let outside = mesh.pod("outside")?;
    let probe = |path: &str| outside.curl(&["-f", &format!("http://{}:15020/app-health/{path}", order.pod.ip)]);
    ensure!(probe("8080/health")?.contains("200"), "a declared probe is answered under STRICT");
    ensure!(probe("8080/other").is_err(), "no other path is");
    order.pod.curl(&["-X", "POST", "http://127.0.0.1:8080/sick"])?;
    ensure!(probe("8080/health").is_err(), "the application's 503 is passed on");
    order.pod.curl(&["-X", "POST", "http://127.0.0.1:8080/well"])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let by_ip = front.curl(&[&format!("http://{}:8080/", order.pod.ip)])?;
    ensure!(by_ip.contains("sa/frontend"), "a call to the pod's address is mTLS too: {by_ip}");
    let own = order.pod.curl(&[&format!("http://{}:8080/", order.pod.ip)])?;
    ensure!(own.contains("sa/order-service"), "a call to oneself is mTLS like any other: {own}");
    let vip = mesh.vip("order-service")?;
    let own = order.pod.curl(&["-H", "Host: order-service", &format!("http://{vip}/")])?;
    ensure!(own.contains("sa/order-service"), "{own}");
    // The proxy's own ports do not loop.
    for port in [15001, 15006] {
        for pod in [&front, &order.pod] {
            // Closed by the proxy, or a 503 of the caller's proxy.
            let answer = pod.curl(&["-f", "--max-time", "5", &format!("http://{}:{port}/", order.pod.ip)]);
            let refused = answer.as_ref().is_err_and(|e| !e.to_string().contains("timed out"));
            ensure!(refused, "port {port}: {answer:?}");
        }
    }
    let answer = order.pod.curl(&[&format!("http://{}:8080/", order.pod.ip)])?;
    ensure!(answer.contains("order1"), "still serving: {answer}");
    Ok(())
}

fn removing_one_of_ten_endpoints_moves_few_keys() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let pod = mesh.pod("ten")?;
    let servers: Vec<_> = (0..10).map(|i| pod.serve(8000 + i, &format!("s{i}"))).collect::<Result<_>>()?;
    let policy = |hash: &Value, endpoints: u16| {
        let endpoint = |i| json!({"address": pod.ip, "ports": {"http": 8000 + i}});
        let entry = json!({
            "hosts": ["ten.test"],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
            "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
        });
        let rule = json!({"host": "ten.test", "trafficPolicy": {"loadBalancer": {"consistentHash": hash}}});
        document(Kind::ServiceEntry, "ten", entry) + &document(Kind::DestinationRule, "ten", rule)
    };
    let (front, _sidecar) = mesh.client("frontend")?;
    let ring = json!({"httpHeaderName": "user-id"});
    let maglev = json!({"httpHeaderName": "user-id", "maglev": {"tableSize": 65537}});
    for (name, hash) in [("ring", ring), ("maglev", maglev)] {
        mesh.policy("ten.yaml", &policy(&hash, 10))?;
        let users = users(10_000);
        let map = |endpoints: usize| -> Result<Vec<String>> {
            wait_for("the endpoints", Duration::from_secs(15), || {
                let some = front.served_by_header("http://ten.test/", "user-id", &users[..300])?;
                let seen: BTreeSet<&String> = some.iter().collect();
                ensure!(seen.len() == endpoints, "{name}: {seen:?}");
                Ok(())
            })?;
            let start = Instant::now();
            let all = front.served_by_header("http://ten.test/", "user-id", &users)?;
            println!("{name}: {} requests in {:?}", users.len(), start.elapsed());
            Ok(all)
        };
        let before = map(10)?;
        mesh.policy("ten.yaml", &policy(&hash, 9))?;
        let after = map(9)?;
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        println!("{name}: {moved} of {} keys moved", before.len());
        ensure!(moved <= 1500, "{name}: {moved} of {} keys moved", before.len());
    }
    drop(servers);
    Ok(())
}
