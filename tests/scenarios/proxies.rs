//! Endpoints that are proxies themselves, or are behind one: what a connection to them begins with.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::{Mesh, Pod, tests_dir, wait_for};

use crate::Scenario;
use crate::certificates::Certificates;

pub(crate) fn all() -> Vec<Scenario> {
    vec![("proxies_are_told_whose_connection_it_is", proxy_protocol)]
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
fn proxy_protocol() -> Result<()> {
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
