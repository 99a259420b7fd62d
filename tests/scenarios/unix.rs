//! Unix sockets as upstream endpoints, and as the application's socket behind a sidecar.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Kind, Mesh, Pod, Process, document, python_of, tests_dir, wait_for};

use crate::Scenario;
use crate::certificates::Certificates;
use crate::operations::SOON;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        unix_sockets_are_endpoints_of_a_service_entry,
        tls_is_originated_to_a_unix_socket,
        a_sidecar_delivers_to_the_unix_socket_of_its_default_endpoint,
    ]
}

/// A server at a Unix socket.
fn serve(pod: &Pod, script: &str, python: &str, args: &[&str]) -> Result<Process> {
    let script = tests_dir().join("apps").join(script).to_string_lossy().into_owned();
    // Each has a log of its own, so that the output of one is not mistaken for another's.
    let name = args.last().context("a server has arguments")?.rsplit(['/', '@']).next().unwrap_or_default();
    let server = pod.spawn(&format!("server-{name}"), python, &[&[&*script], args].concat())?;
    wait_for("the server", SOON, || {
        ensure!(server.output().contains("listening"), "{}", server.output());
        Ok(())
    })?;
    Ok(server)
}

/// A ServiceEntry with one port and Unix sockets behind it.
fn entry(host: &str, address: &str, port: &Value, sockets: &[&str]) -> String {
    let endpoints: Vec<Value> = sockets.iter().map(|socket| json!({"address": format!("unix://{socket}")})).collect();
    let spec = json!({
        "hosts": [format!("{host}.example.com")],
        "addresses": [address],
        "location": "MESH_EXTERNAL",
        "ports": [port],
        "resolution": "STATIC",
        "endpoints": endpoints,
    });
    document(Kind::ServiceEntry, host, spec)
}

const EJECTING: &str = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: both}
spec:
  host: both.example.com
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}
";

fn unix_sockets_are_endpoints_of_a_service_entry() -> Result<()> {
    let python = python_of("grpc")?;
    let mesh = Mesh::start(&[])?;
    let front = mesh.pod("frontend")?;
    let folder = front.folder("sockets");
    std::fs::create_dir_all(&folder)?;
    let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let (one, two, grpc) = (at("one.sock"), at("two.sock"), at("grpc.sock"));
    let abstracted = "@weft-test-socket";
    let first = serve(&front, "server.py", "python3", &[&one, "one"])?;
    let _second = serve(&front, "server.py", "python3", &[&two, "two"])?;
    let _abstract = serve(&front, "server.py", "python3", &[abstracted, "abstract"])?;
    // The server prints "listening" after the socket exists.
    let _grpc = serve(&front, "grpc_echo.py", &python, &["server", &grpc])?;
    let http = json!({"number": 80, "name": "http", "protocol": "HTTP"});
    let tcp = json!({"number": 7000, "name": "tcp", "protocol": "TCP"});
    let policies = [
        entry("both", "192.0.2.70", &http, &[&one, &two]),
        entry("bytes", "192.0.2.71", &tcp, &[&two]),
        entry("echo", "192.0.2.72", &json!({"number": 9090, "name": "grpc", "protocol": "GRPC"}), &[&grpc]),
        entry("name", "192.0.2.73", &http, &[abstracted]),
        EJECTING.to_owned(),
    ];
    mesh.policy("sockets.yaml", &policies.concat())?;
    let sidecar =
        mesh.sidecar_with_redirection(&front, "frontend", &["--workload", "frontend", "--access-log", "-"])?;
    let served = |host: &str, url: &str, by: &str| {
        wait_for(by, SOON, || {
            let answer = front.curl(&["-i", "-H", &format!("Host: {host}"), url])?;
            ensure!(answer.contains(&format!("\"name\": \"{by}\"")), "{url}: {answer}");
            Ok(answer)
        })
    };
    for by in ["one", "two"] {
        served("both.example.com", "http://192.0.2.70/", by)?;
    }
    served("name.example.com", "http://192.0.2.73/", "abstract")?;
    // TCP: not parsed as HTTP.
    served("other.example.com", "http://192.0.2.71:7000/", "two")?;
    let size = front.curl(&["-o", "/dev/null", "-w", "%{size_download}", "http://192.0.2.71:7000/bytes/3000000"])?;
    ensure!(size == "3000000", "{size}");
    let script = tests_dir().join("apps/grpc_echo.py").to_string_lossy().into_owned();
    front.run(&python, &[&script, "client", "192.0.2.72:9090"])?;
    wait_for("the access log", SOON, || {
        let log = sidecar.output();
        for path in [&one, &two, &grpc] {
            ensure!(log.contains(&format!("\"upstream_host\":\"{path}\"")), "{path}: {log}");
        }
        Ok(())
    })?;
    let metrics = front.curl(&["http://127.0.0.1:15020/metrics"])?;
    let counts = |line: &&str| {
        line.starts_with("istio_requests_total") && line.contains("\"both.example.com\"") && line.contains("\"200\"")
    };
    ensure!(metrics.lines().any(|line| counts(&line)), "{metrics}");
    let explanation = mesh.weftctl(&["route", "--from", "frontend", "http://both.example.com/"])?;
    ensure!(explanation.contains(&one) && explanation.contains(&two), "{explanation}");
    // A missing socket fails no request, and is ejected.
    drop(first);
    let plan = json!({
        "url": "http://192.0.2.70/", "count": 30, "concurrency": 1, "headers": {"Host": "both.example.com"}
    });
    let statuses = weft_tests::statuses(&front.requests(&plan)?);
    ensure!(statuses.get(&200) == Some(&30), "{statuses:?}");
    wait_for("the ejection", Duration::from_secs(5), || {
        let log = sidecar.output();
        ensure!(log.lines().any(|line| line.contains("endpoint ejected") && line.contains(&one)), "{log}");
        Ok(())
    })
}

fn tls_is_originated_to_a_unix_socket() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let front = mesh.pod("frontend")?;
    let certificates = Certificates::new(&mesh.center.folder("certificates"))?;
    certificates.leaf("known", "tls.example.com")?;
    certificates.leaf("other", "other.example.com")?;
    let folder = front.folder("sockets");
    std::fs::create_dir_all(&folder)?;
    let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let (known, other) = (at("known.sock"), at("other.sock"));
    let _known = serve(&front, "server.py", "python3", &[&known, "known", &certificates.path("known")])?;
    let _other = serve(&front, "server.py", "python3", &[&other, "other", &certificates.path("other")])?;
    let http = json!({"number": 80, "name": "http", "protocol": "HTTP"});
    let tls = json!({"mode": "SIMPLE", "sni": "tls.example.com", "caCertificates": certificates.ca()});
    let rule = |host: &str| {
        let spec = json!({"host": format!("{host}.example.com"), "trafficPolicy": {"tls": tls}});
        document(Kind::DestinationRule, host, spec)
    };
    let entries = entry("tls", "192.0.2.70", &http, &[&known]) + &entry("wrong", "192.0.2.71", &http, &[&other]);
    mesh.policy("tls.yaml", &(entries + &rule("tls") + &rule("wrong")))?;
    let _sidecar = mesh.sidecar_with_redirection(&front, "frontend", &["--workload", "frontend"])?;
    wait_for("the answer over TLS", SOON, || {
        let answer = front.curl(&["-H", "Host: tls.example.com", "http://192.0.2.70/"])?;
        ensure!(answer.contains("\"name\": \"known\""), "{answer}");
        Ok(())
    })?;
    // A server at a socket must prove its name too.
    let answer = front.curl(&["-i", "-H", "Host: wrong.example.com", "http://192.0.2.71/"])?;
    ensure!(answer.contains(" 503 ") && !answer.contains("\"name\": \"other\""), "{answer}");
    Ok(())
}

const INGRESS: &str = "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: order}
spec:
  workloadSelector: {labels: {app: order}}
  ingress:
  - {port: {number: 9080, protocol: PROTOCOL, name: a}, defaultEndpoint: 'unix://SOCKET'}
";

fn a_sidecar_delivers_to_the_unix_socket_of_its_default_endpoint() -> Result<()> {
    let python = python_of("grpc")?;
    let mesh = Mesh::start(&[])?;
    let order = mesh.pod("order")?;
    let folder = order.folder("sockets");
    std::fs::create_dir_all(&folder)?;
    let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let (http, grpc) = (at("http.sock"), at("grpc.sock"));
    let ingress = |socket: &str, protocol: &str| INGRESS.replace("SOCKET", socket).replace("PROTOCOL", protocol);
    mesh.policy("order.yaml", &ingress(&http, "HTTP"))?;
    let server = serve(&order, "server.py", "python3", &[&http, "order"])?;
    let _grpc = serve(&order, "grpc_echo.py", &python, &["server", &grpc])?;
    let args = ["--service", "order-service", "--port", "9080", "--label", "app=order", "--access-log", "-"];
    let sidecar = mesh.sidecar_with_redirection(&order, "order-service", &args)?;
    mesh.wait_healthy(&order.ip)?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let url = format!("http://{vip}/");
    wait_for("a request", SOON, || {
        let answer = front.curl(&["-H", "Host: order-service", &url])?;
        ensure!(answer.contains("\"name\": \"order\"") && answer.contains("/sa/frontend"), "{answer}");
        Ok(())
    })?;
    wait_for("the access log", SOON, || {
        let log = sidecar.output();
        ensure!(log.contains(&format!("\"upstream_host\":\"{http}\"")), "{log}");
        Ok(())
    })?;
    // TCP: a request without added headers.
    mesh.policy("order.yaml", &ingress(&http, "TCP"))?;
    let outside = mesh.pod("outside")?;
    wait_for("bytes", SOON, || {
        let answer = outside.curl(&[&format!("http://{}:9080/", order.ip)])?;
        ensure!(answer.contains("\"name\": \"order\"") && !answer.contains("x-request-id"), "{answer}");
        Ok(())
    })?;
    // HTTP/2.
    mesh.policy("order.yaml", &ingress(&grpc, "GRPC"))?;
    let script = tests_dir().join("apps/grpc_echo.py").to_string_lossy().into_owned();
    wait_for("gRPC", SOON, || front.run(&python, &[&script, "client", &format!("{vip}:80")]).map(drop))?;
    // Without a server the 503 names the socket.
    mesh.policy("order.yaml", &ingress(&http, "HTTP"))?;
    drop(server);
    std::fs::remove_file(&http)?;
    wait_for("the refusal", SOON, || {
        let answer = front.curl(&["-i", "-H", "Host: order-service", &url])?;
        ensure!(answer.contains(" 503 "), "{answer}");
        Ok(())
    })
}
