//! The gateway: callers without a sidecar, by HTTP, TLS that ends there, TLS that is passed through, and bytes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_tests::{Kind, Mesh, Pod, Process, binary, document, tests_dir, wait_for};

use crate::Scenario;
use crate::certificates::Certificates;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![a_gateway_serves_callers_without_a_sidecar, sigterm_to_a_gateway_fails_no_request,]
}

/// A gateway with a server of each protocol, and its routes; `bytes`: its port for TCP.
fn policy(certificates: &Certificates, bytes: u16) -> String {
    let admin = certificates.path("admin");
    let mutual = json!({
        "mode": "MUTUAL",
        "serverCertificate": format!("{admin}/tls.crt"),
        "privateKey": format!("{admin}/tls.key"),
        "caCertificates": certificates.ca(),
    });
    let port = |number: u16, name: &str, protocol: &str| json!({"number": number, "name": name, "protocol": protocol});
    let gateway = json!({"selector": {"istio": "ingressgateway"}, "servers": [
        {"port": port(8080, "http", "HTTP"), "hosts": ["shop.example.com"]},
        {"port": port(8081, "old", "HTTP"), "hosts": ["*"], "tls": {"httpsRedirect": true}},
        {
            "port": port(8443, "https", "HTTPS"),
            "hosts": ["shop.example.com"],
            "tls": {"mode": "SIMPLE", "credentialName": "shop"},
        },
        {"port": port(8443, "https-admin", "HTTPS"), "hosts": ["admin.example.com"], "tls": mutual},
        {"port": port(8443, "passed", "TLS"), "hosts": ["secure.example.com"], "tls": {"mode": "PASSTHROUGH"}},
        {"port": port(bytes, "bytes", "TCP"), "hosts": ["*"]},
    ]});
    let shop = json!({
        "hosts": ["shop.example.com", "admin.example.com"],
        "gateways": ["edge"],
        "http": [
            {"match": [{"uri": {"prefix": "/moved"}}], "redirect": {"uri": "/"}},
            {"route": [{"destination": {"host": "order-service"}}]},
        ],
    });
    let to = |host: &str| json!([{"destination": {"host": host}}]);
    let connections = json!({
        "hosts": ["*"],
        "gateways": ["default/edge"],
        "tls": [{"match": [{"sniHosts": ["secure.example.com"]}], "route": to("secure")}],
        "tcp": [{"match": [{"port": bytes}], "route": to("order-service")}],
    });
    [
        document(Kind::Gateway, "edge", gateway),
        document(Kind::VirtualService, "shop", shop),
        document(Kind::VirtualService, "bytes", connections),
    ]
    .concat()
}

fn secure(mesh: &Mesh, certificates: &Certificates) -> Result<(Pod, Process, Process)> {
    let pod = mesh.pod("secure1")?;
    let script = tests_dir().join("apps/tls_server.py").to_string_lossy().into_owned();
    let (certificate, key) = (certificates.path("secure/tls.crt"), certificates.path("secure/tls.key"));
    let app = pod.spawn("tls-app", "python3", &[&script, "8443", &certificate, &key])?;
    let args = ["--service", "secure", "--port", "8443", "--protocol", "tls"];
    let sidecar = mesh.sidecar_with_redirection(&pod, "secure", &args)?;
    mesh.wait_healthy(&pod.ip)?;
    Ok((pod, app, sidecar))
}

fn a_gateway_serves_callers_without_a_sidecar() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let certificates = Certificates::new(&mesh.center.folder("certificates"))?;
    for name in ["shop", "admin", "secure"] {
        certificates.leaf(name, &format!("{name}.example.com"))?;
    }
    mesh.policy("edge.yaml", &policy(&certificates, 9000))?;
    // All workloads are STRICT: the gateway uses mTLS upstream.
    let strict = json!({"mtls": {"mode": "STRICT"}});
    mesh.policy("strict.yaml", &document(Kind::PeerAuthentication, "weft-system/all", strict))?;
    let _order = mesh.instance("order1", "order-service", 8000, &[])?;
    let _secure = secure(&mesh, &certificates)?;
    let edge = mesh.pod("edge")?;
    let token = mesh.token("ingress")?.to_string_lossy().into_owned();
    let (control, data) = (format!("{}:15012", mesh.center.ip), edge.folder("data").to_string_lossy().into_owned());
    let credentials = certificates.path("");
    let args = ["gateway", "--control-plane", &control, "--token-file", &token, "--data-dir", &data];
    let args = [&args[..], &["--credentials", &credentials]].concat();
    let process = edge.spawn("gateway", binary("weft-sidecar")?, &args)?;
    let outside = mesh.pod("outside")?;
    let ip = &edge.ip;

    // HTTP, by host.
    let url = format!("http://{ip}:8080/");
    let answer = wait_for("the gateway", Duration::from_secs(15), || {
        let answer = outside.curl(&["-f", "-H", "Host: shop.example.com", &url]);
        answer.map_err(|e| e.context(process.output()))
    })?;
    ensure!(answer.contains("sa/ingress"), "the gateway's own identity goes inwards: {answer}");
    let status =
        |args: &[&str]| outside.curl(&[&["-o", "/dev/null", "-w", "%{http_code} %{redirect_url}"], args].concat());
    let unknown = status(&["-H", "Host: other.example.com", &url])?;
    ensure!(unknown.starts_with("404"), "{unknown}");
    let moved = status(&["-H", "Host: shop.example.com", &format!("http://{ip}:8080/moved")])?;
    ensure!(moved == "301 http://shop.example.com/", "{moved}");
    let old = status(&["-H", "Host: shop.example.com", &format!("http://{ip}:8081/a?b=c")])?;
    ensure!(old == "301 https://shop.example.com/a?b=c", "{old}");
    let forged =
        ["-H", "Host: shop.example.com", "-H", "x-forwarded-client-cert: By=forged", "-H", "x-envoy-max-retries: 9"];
    let answer = outside.curl(&[&["-f"], &forged[..], &[&url]].concat())?;
    ensure!(!answer.contains("forged") && !answer.contains("x-envoy-max-retries"), "{answer}");
    ensure!(answer.contains(&outside.ip), "where the caller is: {answer}");

    // TLS that ends there, by server name; HTTP/2 where the caller speaks it.
    let at = |host: &str| format!("{host}.example.com:8443:{ip}");
    let ca = certificates.ca();
    let shop = at("shop");
    let tls = ["-f", "--cacert", &ca, "--resolve", &shop, "https://shop.example.com:8443/"];
    for version in ["--http1.1", "--http2"] {
        let answer = outside.curl(&[&[version], &tls[..]].concat())?;
        ensure!(answer.contains("sa/ingress") && answer.contains("https"), "{version}: {answer}");
    }
    let admin = at("admin");
    let mutual = ["-f", "--cacert", &ca, "--resolve", &admin, "https://admin.example.com:8443/"];
    ensure!(outside.curl(&mutual).is_err(), "a certificate is required");
    let (certificate, key) = (certificates.path("shop/tls.crt"), certificates.path("shop/tls.key"));
    let answer = outside.curl(&[&["--cert", &certificate, "--key", &key], &mutual[..]].concat())?;
    ensure!(answer.contains("Hash="), "a header has the client's certificate: {answer}");

    // TLS that is passed through, on the same port, and bytes.
    let answer =
        outside.curl(&["-f", "--cacert", &ca, "--resolve", &at("secure"), "https://secure.example.com:8443/"])?;
    ensure!(answer == "the application's own TLS", "{answer}");
    ensure!(outside.curl(&["-k", "--resolve", &at("unknown"), "https://unknown.example.com:8443/"]).is_err());
    let answer = outside.curl(&["-f", &format!("http://{ip}:9000/")])?;
    ensure!(answer.contains("order1"), "{answer}");

    // A changed certificate is reloaded; a removed port is closed, a new one opened.
    let shown = || outside.curl(&[&["-o", "/dev/null", "-w", "%{certs}"], &tls[..]].concat());
    let before = shown()?;
    certificates.leaf("shop", "shop.example.com")?;
    wait_for("the new certificate", Duration::from_secs(15), || {
        let now = shown()?;
        ensure!(now != before && !now.is_empty(), "still the old one");
        Ok(())
    })?;
    mesh.policy("edge.yaml", &policy(&certificates, 9001))?;
    wait_for("the ports to move", Duration::from_secs(10), || {
        outside.curl(&["-f", &format!("http://{ip}:9001/")]).context("9001")?;
        ensure!(outside.curl(&["-f", &format!("http://{ip}:9000/")]).is_err(), "9000 is still open");
        Ok(())
    })?;
    process.signal("TERM")?;
    let mut process = process;
    let code = process.wait(Duration::from_secs(10))?;
    ensure!(code == 0, "{code}: {}", process.output());
    Ok(())
}

pub(crate) const PLAIN: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}
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

/// A gateway in a pod of its own.
pub(crate) fn another(mesh: &Mesh, name: &str, args: &[&str]) -> Result<(Pod, Process)> {
    let pod = mesh.pod(name)?;
    let token = mesh.token("ingress")?.to_string_lossy().into_owned();
    let (control, data) = (format!("{}:15012", mesh.center.ip), pod.folder("data").to_string_lossy().into_owned());
    let all = ["gateway", "--control-plane", &control, "--token-file", &token, "--data-dir", &data];
    let process = pod.spawn("gateway", binary("weft-sidecar")?, &[&all[..], args].concat())?;
    Ok((pod, process))
}

/// Clients behind a TCP load balancer with two gateways, of which the first stops.
fn sigterm_to_a_gateway_fails_no_request() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("edge.yaml", PLAIN)?;
    let _order = mesh.instance("order1", "order-service", 8000, &[])?;
    let (first, mut ending) = another(&mesh, "edge1", &["--drain-limit", "3"])?;
    let (second, _stays) = another(&mesh, "edge2", &[])?;
    let outside = mesh.pod("outside")?;
    let url = |gateway: &Pod, path: &str| format!("http://{}:8080{path}", gateway.ip);
    for gateway in [&first, &second] {
        wait_for("a gateway", Duration::from_secs(15), || outside.curl(&["-f", &url(gateway, "/")]))?;
    }
    let load = |keep_alive: bool, concurrency: u32| {
        outside.requests_meanwhile(&json!({
            "url": url(&first, "/sleep/3"), "fallback": url(&second, "/sleep/3"), "seconds": 8, "concurrency": concurrency,
            "keep_alive": keep_alive, "method": "POST", "body": "not idempotent",
        }))
    };
    // Kept connections, and new ones until the listener is closed, so many that some are in
    // the kernel's queue at any moment.
    let (reused, always_new) = (load(true, 4)?, load(false, 48)?);
    let slow = outside.requests_meanwhile(&json!({ "url": url(&first, "/sleep/3500") }))?;
    std::thread::sleep(Duration::from_secs(2));
    ending.signal("TERM")?;
    let code = ending.wait(Duration::from_secs(10))?;
    ensure!(code == 0, "{code}: {}", ending.output());
    for (connections, load) in [("reused", reused), ("always new", always_new), ("slow", slow)] {
        let results = load.results()?;
        let failed: Vec<_> = results.iter().filter(|r| r["status"] != 200).take(3).collect();
        ensure!(failed.is_empty(), "{connections}: of {} requests some failed: {failed:?}", results.len());
        let at = |gateway: &Pod| results.iter().filter(|r| r["at"] == gateway.ip).count();
        // However slow the machine is.
        let both = at(&first) > 20 && at(&second) > 20;
        ensure!(both || connections == "slow", "{connections}: {} and {}", at(&first), at(&second));
    }
    Ok(())
}
