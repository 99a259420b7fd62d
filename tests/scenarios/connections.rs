//! Routes of TCP and passed-through TLS connections.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_tests::{Mesh, tests_dir, wait_for};

use crate::Scenario;
use crate::certificates::Certificates;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![connections_by_address_and_client, connections_by_server_name,]
}

const TCP: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db.example.com]
  addresses: [10.200.0.0/16]
  ports: [{number: 9000, name: tcp, protocol: TCP, targetPort: 8080}]
  resolution: STATIC
  endpoints: [{address: FIRST, labels: {version: v1}}, {address: SECOND, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db}
spec:
  host: db.example.com
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec:
  hosts: [db.example.com]
  tcp:
  - match: [{destinationSubnets: [10.200.1.0/24]}, {sourceLabels: {app: reports}}]
    route: [{destination: {host: db.example.com, subset: v2}}]
  - match: [{port: 9000, destinationSubnets: [10.200.2.0/24]}]
    route:
    - {destination: {host: db.example.com, subset: v1}, weight: 75}
    - {destination: {host: db.example.com, subset: v2}, weight: 25}
  - match: [{port: 9000, destinationSubnets: [10.200.3.0/24]}]
    route: [{destination: {host: db.example.com, subset: v1}}]
";

fn connections_by_address_and_client() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let (one, two) = (mesh.pod("one")?, mesh.pod("two")?);
    let _apps = (one.serve(8080, "one")?, two.serve(8080, "two")?);
    mesh.policy("db.yaml", &TCP.replace("FIRST", &one.ip).replace("SECOND", &two.ip))?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let (reports, _reports) = mesh.client_with("reports", &["--label", "app=reports"])?;
    let from = |pod: &weft_tests::Pod, address: &str, count: usize| -> Result<Vec<String>> {
        let url = format!("http://{address}:9000/");
        // A new connection for each request.
        let plan = serde_json::json!({"url": url, "count": count, "keep_alive": false});
        Ok(weft_tests::served_by(&pod.requests(&plan)?))
    };
    wait_for("the routes", Duration::from_secs(10), || {
        let all = from(&front, "10.200.1.1", 8)?;
        ensure!(all.iter().all(|name| name == "two"), "{all:?}");
        Ok(())
    })?;
    let all = from(&front, "10.200.3.1", 8)?;
    ensure!(all.iter().all(|name| name == "one"), "{all:?}");
    let all = from(&front, "10.200.2.1", 200)?;
    let ones = all.iter().filter(|name| *name == "one").count();
    ensure!((125..175).contains(&ones), "{ones} of 200 by weight");
    // No route matches: the connection goes to the service itself.
    let all = from(&front, "10.200.4.1", 40)?;
    ensure!(all.contains(&"one".to_owned()) && all.contains(&"two".to_owned()), "{all:?}");
    let all = from(&reports, "10.200.3.1", 8)?;
    ensure!(all.iter().all(|name| name == "two"), "of the other client: {all:?}");
    Ok(())
}

const TLS: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild}
spec:
  hosts: ['*.example.com']
  ports: [{number: 443, name: tls, protocol: TLS}]
  resolution: NONE
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: own}
spec:
  hosts: [own.test]
  addresses: [10.201.0.1]
  ports: [{number: 443, name: tls, protocol: TLS}, {number: 8443, name: undeclared, targetPort: 443}]
  resolution: STATIC
  endpoints: [{address: FIRST}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: other}
spec:
  hosts: [other.test]
  ports: [{number: 443, name: tls, protocol: TLS}]
  resolution: STATIC
  endpoints: [{address: SECOND}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: own}
spec:
  hosts: [own.test, a.own.test]
  tls:
  - match: [{sniHosts: [own.test], port: 443}]
    route: [{destination: {host: own.test}}]
  - match: [{sniHosts: [a.own.test]}]
    route: [{destination: {host: other.test}}]
";

/// A client that is silent for longer than the sidecar waits for a server that speaks first; then it verifies the certificate.
const LATE: &str = "
import socket, ssl, sys, time
address, port, name, ca = sys.argv[1:]
plain = socket.create_connection((address, int(port)), timeout=10)
time.sleep(0.3)
with ssl.create_default_context(cafile=ca).wrap_socket(plain, server_hostname=name) as tls:
    tls.sendall(b'GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n')
    assert tls.recv(100).startswith(b'HTTP/1.'), 'no answer'
";

/// The application speaks TLS itself: only the server reads it, and its server name decides its destination.
fn connections_by_server_name() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let certificates = Certificates::new(&mesh.center.folder("certificates"))?;
    for name in ["a.example.com", "b.example.net", "own.test", "a.own.test"] {
        certificates.leaf(name, name)?;
    }
    let script = tests_dir().join("apps/tls_server.py").to_string_lossy().into_owned();
    let serve = |pod: &weft_tests::Pod, name: &str| {
        let (certificate, key) =
            (certificates.path(&format!("{name}/tls.crt")), certificates.path(&format!("{name}/tls.key")));
        pod.spawn(name, "python3", &[&script, "443", &certificate, &key])
    };
    let pods = [mesh.pod("one")?, mesh.pod("two")?, mesh.pod("three")?, mesh.pod("four")?];
    let _servers = (
        serve(&pods[0], "own.test")?,
        serve(&pods[1], "a.own.test")?,
        serve(&pods[2], "a.example.com")?,
        serve(&pods[3], "b.example.net")?,
    );
    mesh.policy("tls.yaml", &TLS.replace("FIRST", &pods[0].ip).replace("SECOND", &pods[1].ip))?;
    let (front, _sidecar) =
        mesh.client_with("frontend", &["--workload", "frontend", "--outbound-traffic", "registry-only"])?;
    let ca = certificates.ca();
    let ask = |name: &str, address: &str| {
        let to = format!("{name}:443:{address}");
        front.curl(&["--cacert", &ca, "--resolve", &to, &format!("https://{name}/")])
    };
    let served = |case: &str, name: &str, address: &str| {
        wait_for(case, Duration::from_secs(10), || {
            let answer = ask(name, address)?;
            ensure!(answer == "the application's own TLS", "{answer}");
            Ok(())
        })
    };
    // The certificate identifies the server.
    served("its own route", "own.test", "10.201.0.1")?;
    served("another host's endpoint by server name", "a.own.test", "10.201.0.1")?;
    let refused = ask("b.own.test", "10.201.0.1");
    ensure!(refused.is_err(), "no route is for this server name: {refused:?}");
    // Unknown addresses with known server names.
    served("a host of a wildcard, as addressed", "a.example.com", &pods[2].ip)?;
    let refused = ask("b.example.net", &pods[3].ip);
    ensure!(refused.is_err(), "an unknown name passes under REGISTRY_ONLY: {refused:?}");
    served("an endpoint without a declared address", "a.own.test", &pods[1].ip)?;
    // A slow client is routed by its server name too, on a port without a declared protocol.
    front.run("python3", &["-c", LATE, "10.201.0.1", "8443", "a.own.test", &ca])?;
    Ok(())
}
