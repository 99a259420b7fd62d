//! Endpoints that are proxies or behind one: the PROXY protocol, and tunnels by CONNECT and POST.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::{Mesh, Pod, tests_dir, wait_for};

use crate::Scenario;
use crate::certificates::Certificates;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![proxy_protocol_headers_have_the_clients_address, tcp_routes_go_through_tunnels_of_http_proxies,]
}

const SOON: Duration = Duration::from_secs(15);

/// Sends a line. Prints its source port and the line of the answer.
const LINE: &str = "import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
s.sendall(b'hello\\n')
print(s.getsockname()[1], s.makefile().readline().strip())";

fn line(pod: &Pod, host: &str, port: &str) -> Result<(String, String)> {
    let answer = pod.run("python3", &["-c", LINE, host, port])?;
    let (from, answer) = answer.trim().split_once(' ').with_context(|| format!("no answer: {answer:?}"))?;
    Ok((from.to_owned(), answer.to_owned()))
}

const PROXIED: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: proxied}
spec:
  hosts: [proxied.example.com]
  addresses: [10.210.0.1]
  ports:
  - {number: 80, name: http, protocol: HTTP, targetPort: PORT}
  - {number: 82, name: tcp, protocol: TCP, targetPort: PORT}
  - {number: 83, name: http-other, protocol: HTTP, targetPort: PORT}
  resolution: STATIC
  endpoints: [{address: OUTSIDE}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: proxied}
spec:
  host: proxied.example.com
  trafficPolicy:
    proxyProtocol: {VERSION}
    tls: {TLS}
    portLevelSettings: [{port: {number: 83}, connectionPool: {tcp: {connectTimeout: 2s}}}]
";

/// Every connection begins with a header of the configured version with the client's address, before TLS.
fn proxy_protocol_headers_have_the_clients_address() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let certificates = Certificates::new(&mesh.center.folder("certificates"))?;
    certificates.leaf("server", "proxied.example.com")?;
    let outside = mesh.pod("outside")?;
    let script = tests_dir().join("apps/proxied.py").to_string_lossy().into_owned();
    let (certificate, key) = (certificates.path("server/tls.crt"), certificates.path("server/tls.key"));
    let _servers = (
        outside.spawn("plain", "python3", &[&script, "8080"])?,
        outside.spawn("tls", "python3", &[&script, "8443", &certificate, &key])?,
    );
    let policy = |version: &str, port: &str, tls: &str| {
        let text = PROXIED.replace("VERSION", version).replace("PORT", port).replace("TLS", tls);
        mesh.policy("proxied.yaml", &text.replace("OUTSIDE", &outside.ip))
    };
    let (front, _sidecar) = mesh.client("frontend")?;
    let request = |from: u32| front.curl(&["--local-port", &from.to_string(), "http://proxied.example.com/"]);
    let simple = format!("mode: SIMPLE, caCertificates: {}", certificates.ca());
    for (version, port, tls, begin, first) in [
        ("", "8080", "mode: DISABLE", "v1", 30_000),
        ("version: V2", "8080", "mode: DISABLE", "v2 0x21", 31_000),
        ("version: V1", "8443", &simple, "v1", 32_000),
        ("version: V2", "8443", &simple, "v2 0x21", 33_000),
    ] {
        policy(version, port, tls)?;
        let mut from = first;
        let mut next = || {
            // A port of its own each time: the one before is not free for a while.
            from += 1;
            from
        };
        wait_for(begin, SOON, || {
            let from = next();
            let answer = request(from)?;
            ensure!(answer.starts_with(&format!("{begin} {} {from} 10.210.0.1 80 ", front.ip)), "{from}: {answer}");
            Ok(())
        })?;
        // Sequential clients, which would otherwise share a connection.
        let mut connections = Vec::new();
        for _ in 0..4 {
            let from = next();
            let answer = request(from)?;
            ensure!(answer.starts_with(&format!("{begin} {} {from} ", front.ip)), "{from}: {answer}");
            connections.extend(answer.rsplit(' ').next().map(str::to_owned));
        }
        connections.sort();
        connections.dedup();
        ensure!(connections.len() == 4, "callers shared a connection: {connections:?}");
        let (from, answer) = line(&front, "proxied.example.com", "82")?;
        ensure!(answer.starts_with(&format!("{begin} {} {from} 10.210.0.1 82 ", front.ip)), "{from}: {answer}");
    }
    policy("version: V1", "8080", "mode: DISABLE")?;
    // Port settings replace those of the host: without a header the server closes the connection.
    wait_for("a port without a header", SOON, || {
        let answer = front.curl(&["-i", "http://proxied.example.com:83/"])?;
        ensure!(answer.contains(" 503 "), "{answer}");
        Ok(())
    })
}

const TUNNEL: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db.example.com]
  addresses: [10.211.0.1]
  ports: [{number: 9000, name: tcp, protocol: TCP}, {number: 9001, name: tcp-b, protocol: TCP}, {number: 9002, name: tcp-c, protocol: TCP}]
  resolution: NONE
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: proxy}
spec:
  hosts: [proxy.example.com]
  ports: [{number: 3128, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: PROXY}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: proxy}
spec:
  host: proxy.example.com
  subsets:
  - {name: greet, trafficPolicy: {tunnel: {PROTOCOL, targetHost: TARGET, targetPort: 7000}}}
  - {name: count, trafficPolicy: {tunnel: {PROTOCOL, targetHost: TARGET, targetPort: 7001}}}
  - {name: refused, trafficPolicy: {tunnel: {PROTOCOL, targetHost: TARGET, targetPort: 7002}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec:
  hosts: [db.example.com]
  tcp:
  - match: [{port: 9000}]
    route: [{destination: {host: proxy.example.com, subset: greet, port: {number: 3128}}}]
  - match: [{port: 9001}]
    route: [{destination: {host: proxy.example.com, subset: count, port: {number: 3128}}}]
  - match: [{port: 9002}]
    route: [{destination: {host: proxy.example.com, subset: refused, port: {number: 3128}}}]
";

/// Protocols through the tunnel: a server that speaks first, a large transfer, a half-close.
fn tcp_routes_go_through_tunnels_of_http_proxies() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let (target, proxy) = (mesh.pod("target")?, mesh.pod("proxy")?);
    let tcp = tests_dir().join("apps/tcp.py").to_string_lossy().into_owned();
    let _targets = (
        target.spawn("greet", "python3", &[&tcp, "7000", "greet"])?,
        target.spawn("count", "python3", &[&tcp, "7001", "count"])?,
    );
    let script = tests_dir().join("apps/connect_proxy.py").to_string_lossy().into_owned();
    let client = tests_dir().join("apps/tcp_client.py").to_string_lossy().into_owned();
    let tunnels = proxy.spawn("proxy", "python3", &[&script, "3128", "7002"])?;
    let (front, sidecar) = mesh.client("frontend")?;
    for (protocol, method) in [("protocol: CONNECT", "CONNECT"), ("protocol: POST", "POST")] {
        let text = TUNNEL.replace("PROTOCOL", protocol).replace("PROXY", &proxy.ip).replace("TARGET", &target.ip);
        mesh.policy("db.yaml", &text)?;
        let want = format!("{method} {}:7000", target.ip);
        wait_for(method, SOON, || {
            front.run("python3", &[&client, "10.211.0.1", "9000", "greet"])?;
            ensure!(tunnels.output().contains(&want), "{}", tunnels.output());
            Ok(())
        })?;
        front.run("python3", &[&client, "10.211.0.1", "9001", "count"])?;
        let refused = line(&front, "10.211.0.1", "9002");
        ensure!(refused.as_ref().is_ok_and(|(_, answer)| answer.is_empty()) || refused.is_err(), "{refused:?}");
        let why = format!("no tunnel to {}:7002: the proxy answered 403 Forbidden", target.ip);
        ensure!(sidecar.output().contains(&why), "{}", sidecar.output());
        let metrics = front.curl(&["http://127.0.0.1:15020/metrics"])?;
        let failed = |line: &str| line.starts_with("istio_tcp_connections_closed_total") && line.contains("\"UF\"");
        ensure!(metrics.lines().any(failed), "{metrics}");
    }
    Ok(())
}
