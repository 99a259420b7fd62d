//! Endpoints that are proxies themselves, or are behind one: what a connection to them begins with.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::{Mesh, Pod, tests_dir, wait_for};

use crate::Scenario;
use crate::certificates::Certificates;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![proxies_are_told_whose_connection_it_is, proxies_are_asked_for_a_tunnel,]
}

const SOON: Duration = Duration::from_secs(15);

/// Sends a line, and prints the port that it came from and the line that it was answered with.
const LINE: &str = "import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
s.sendall(b'hello\\n')
print(s.getsockname()[1], s.makefile().readline().strip())";

fn line(pod: &Pod, host: &str, port: &str) -> Result<(String, String)> {
    let answer = pod.run("python3", &["-c", LINE, host, port])?;
    let (from, told) = answer.trim().split_once(' ').with_context(|| format!("no answer: {answer:?}"))?;
    Ok((from.to_owned(), told.to_owned()))
}

const TOLD: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: told}
spec:
  hosts: [told.example.com]
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
metadata: {name: told}
spec:
  host: told.example.com
  trafficPolicy:
    proxyProtocol: {VERSION}
    tls: {TLS}
    portLevelSettings: [{port: {number: 83}, connectionPool: {tcp: {connectTimeout: 2s}}}]
";

/// Every request and every flow of bytes is told of truly, by either version, before TLS.
fn proxies_are_told_whose_connection_it_is() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let certificates = Certificates::new(&mesh.center.folder("certificates"))?;
    certificates.leaf("server", "told.example.com")?;
    let outside = mesh.pod("outside")?;
    let script = tests_dir().join("apps/proxied.py").to_string_lossy().into_owned();
    let (certificate, key) = (certificates.path("server/tls.crt"), certificates.path("server/tls.key"));
    let _servers = (
        outside.spawn("plain", "python3", &[&script, "8080"])?,
        outside.spawn("tls", "python3", &[&script, "8443", &certificate, &key])?,
    );
    let policy = |version: &str, port: &str, tls: &str| {
        let text = TOLD.replace("VERSION", version).replace("PORT", port).replace("TLS", tls);
        mesh.policy("told.yaml", &text.replace("OUTSIDE", &outside.ip))
    };
    let (front, _sidecar) = mesh.client("frontend")?;
    let told = |from: u32| front.curl(&["--local-port", &from.to_string(), "http://told.example.com/"]);
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
            let answer = told(from)?;
            ensure!(answer.starts_with(&format!("{begin} {} {from} 10.210.0.1 80 ", front.ip)), "{from}: {answer}");
            Ok(())
        })?;
        // One caller after the other, who would share a connection else; and one caller twice.
        let mut connections = Vec::new();
        for _ in 0..4 {
            let from = next();
            let answer = told(from)?;
            ensure!(answer.starts_with(&format!("{begin} {} {from} ", front.ip)), "{from}: {answer}");
            connections.extend(answer.rsplit(' ').next().map(str::to_owned));
        }
        connections.sort();
        connections.dedup();
        ensure!(connections.len() == 4, "callers shared a connection: {connections:?}");
        let (from, answer) = line(&front, "told.example.com", "82")?;
        ensure!(answer.starts_with(&format!("{begin} {} {from} 10.210.0.1 82 ", front.ip)), "{from}: {answer}");
    }
    policy("version: V1", "8080", "mode: DISABLE")?;
    // The port's own settings are all that it has: a server that waits for a header closes.
    wait_for("a port without a header", SOON, || {
        let answer = front.curl(&["-i", "http://told.example.com:83/"])?;
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

/// Bytes that no route could take there directly: greetings of servers, much at a time, the end of one direction.
fn proxies_are_asked_for_a_tunnel() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let (target, proxy) = (mesh.pod("target")?, mesh.pod("proxy")?);
    let tcp = tests_dir().join("apps/tcp.py").to_string_lossy().into_owned();
    let _targets = (
        target.spawn("greet", "python3", &[&tcp, "7000", "greet"])?,
        target.spawn("count", "python3", &[&tcp, "7001", "count"])?,
    );
    let script = tests_dir().join("apps/connect_proxy.py").to_string_lossy().into_owned();
    let client = tests_dir().join("apps/tcp_client.py").to_string_lossy().into_owned();
    let asked = proxy.spawn("proxy", "python3", &[&script, "3128", "7002"])?;
    let (front, sidecar) = mesh.client("frontend")?;
    for (protocol, method) in [("protocol: CONNECT", "CONNECT"), ("protocol: POST", "POST")] {
        let text = TUNNEL.replace("PROTOCOL", protocol).replace("PROXY", &proxy.ip).replace("TARGET", &target.ip);
        mesh.policy("db.yaml", &text)?;
        let want = format!("{method} {}:7000", target.ip);
        wait_for(method, SOON, || {
            front.run("python3", &[&client, "10.211.0.1", "9000", "greet"])?;
            ensure!(asked.output().contains(&want), "{}", asked.output());
            Ok(())
        })?;
        front.run("python3", &[&client, "10.211.0.1", "9001", "count"])?;
        let refused = line(&front, "10.211.0.1", "9002");
        ensure!(refused.as_ref().is_ok_and(|(_, told)| told.is_empty()) || refused.is_err(), "{refused:?}");
        let why = format!("no tunnel to {}:7002: the proxy answered 403 Forbidden", target.ip);
        ensure!(sidecar.output().contains(&why), "{}", sidecar.output());
        let metrics = front.curl(&["http://127.0.0.1:15020/metrics"])?;
        let failed = |line: &str| line.starts_with("istio_tcp_connections_closed_total") && line.contains("\"UF\"");
        ensure!(metrics.lines().any(failed), "{metrics}");
    }
    Ok(())
}
