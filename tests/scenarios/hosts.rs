//! The definition of a host that a client sees, and the hosts of a wildcard.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use weft_tests::{Kind, Mesh, Pod, document, tests_dir, wait_for};

use crate::Scenario;
use crate::certificates::Certificates;
use crate::outside::name_server;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        namespaces_have_service_entries_of_one_host_of_their_own,
        a_route_to_a_wildcard_goes_to_the_requested_host,
    ]
}

/// Two namespaces define one host, each for itself; a third namespace sees neither definition.
fn namespaces_have_service_entries_of_one_host_of_their_own() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let databases = [mesh.pod("database-one")?, mesh.pod("database-two")?];
    let _apps = [databases[0].serve(8080, "database-one")?, databases[1].serve(8080, "database-two")?];
    let entry = |namespace: &str, address: &str, export: &str| {
        let spec = json!({
            "hosts": ["database.example.com"],
            "exportTo": [export],
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}],
            "resolution": "STATIC",
            "endpoints": [{"address": address}],
        });
        document(Kind::ServiceEntry, &format!("{namespace}/database"), spec)
    };
    mesh.policy("one.yaml", &entry("one", &databases[0].ip, "."))?;
    mesh.policy("two.yaml", &entry("two", &databases[1].ip, "."))?;
    let mut clients = Vec::new();
    for namespace in ["one", "two", "three"] {
        let pod = mesh.pod(&format!("client-{namespace}"))?;
        let token = pod.folder("token").to_string_lossy().into_owned();
        mesh.weftctl(&["token", "create", "--service-account", "client", "--namespace", namespace, "--out", &token])?;
        let sidecar =
            mesh.sidecar_with_redirection(&pod, "client", &["--workload", "client", "--token-file", &token])?;
        clients.push((namespace, pod, sidecar));
    }
    let expect = |want: [Option<&str>; 3]| {
        for ((namespace, pod, _), want) in clients.iter().zip(want) {
            wait_for(namespace, Duration::from_secs(15), || {
                let answer = pod.curl(&["-i", "http://database.example.com/"]).unwrap_or_else(|e| e.to_string());
                let from = format!("{namespace}/client");
                let explanation = mesh.weftctl(&["route", "http://database.example.com/", "--from", &from]);
                let endpoint = want.and_then(|want| databases.iter().find(|pod| pod.name == want));
                match (want, endpoint) {
                    (Some(want), Some(endpoint)) => {
                        ensure!(answer.contains(&format!("X-Served-By: {want}")), "{namespace}: {answer}");
                        let explanation = explanation?;
                        ensure!(explanation.contains(&endpoint.ip), "{namespace}: {explanation}");
                    }
                    _ => ensure!(!answer.contains("X-Served-By"), "{namespace}: {answer}"),
                }
                Ok(())
            })?;
        }
        Ok(())
    };
    expect([Some("database-one"), Some("database-two"), None])?;
    // An exported definition serves namespaces without one of their own.
    mesh.policy("two.yaml", &entry("two", &databases[1].ip, "*"))?;
    expect([Some("database-one"), Some("database-two"), Some("database-two")])?;
    std::fs::remove_file(mesh.policies.join("one.yaml"))?;
    expect([Some("database-two"); 3])
}

const WILDCARDS: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: partners}
spec:
  hosts: ['*-partner.example.com']
  ports:
  - {number: 80, name: http, protocol: HTTP, targetPort: 8080}
  - {number: 443, name: tls, protocol: TLS, targetPort: 8443}
  resolution: DYNAMIC_DNS
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: old}
spec:
  hosts: ['*.old.example.com']
  ports: [{number: 8080, name: http, protocol: HTTP}, {number: 8443, name: tls, protocol: TLS}, {number: 9000, name: tcp, protocol: TCP}]
  resolution: NONE
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: new}
spec:
  hosts: [new.example.com]
  ports: [{number: 8443, name: tls, protocol: TLS}, {number: 9000, name: tcp, protocol: TCP}]
  addresses: [ADDRESS]
  resolution: NONE
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example.net]
  http:
  - match: [{uri: {prefix: /b}}]
    rewrite: {authority: b-partner.example.com}
    route: [{destination: {host: '*-partner.example.com', port: {number: 80}}}]
  - match: [{uri: {prefix: /nowhere}}]
    route: [{destination: {host: '*.nowhere.example.com', port: {number: 80}}}]
  - route: [{destination: {host: '*.old.example.com', port: {number: 8080}}, headers: {response: {set: {x-by: old}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: new}
spec:
  hosts: [new.example.com, '*-partner.example.com']
  tls:
  - match: [{sniHosts: ['*-partner.example.com']}]
    route: [{destination: {host: '*-partner.example.com', port: {number: 443}}}]
  - match: [{sniHosts: [new.example.com]}]
    route: [{destination: {host: '*.old.example.com', port: {number: 8443}}}]
  tcp:
  - match: [{port: 9000}]
    route: [{destination: {host: '*.old.example.com', port: {number: 9000}}}]
";

/// Routes of HTTP, TLS and TCP to ServiceEntries with wildcards, one of which replaces a part of a label.
fn a_route_to_a_wildcard_goes_to_the_requested_host() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let certificates = Certificates::new(&mesh.center.folder("certificates"))?;
    certificates.leaf("server", "a-partner.example.com")?;
    let (one, two, front) = (mesh.pod("one")?, mesh.pod("two")?, mesh.pod("frontend")?);
    let _apps = (one.serve(8080, "one")?, two.serve(8080, "two")?, two.serve(9000, "bytes")?);
    let script = tests_dir().join("apps/tls_server.py").to_string_lossy().into_owned();
    let (certificate, key) = (certificates.path("server/tls.crt"), certificates.path("server/tls.key"));
    let _tls = one.spawn("tls", "python3", &[&script, "8443", &certificate, &key])?;
    let _other = two.spawn("tls", "python3", &[&script, "8443", &certificate, &key])?;
    let names = mesh.pod("names")?;
    let known = json!({"a-partner.example.com": [one.ip], "b-partner.example.com": [two.ip]});
    let _server = name_server(&names, &known)?;
    mesh.policy("wildcards.yaml", &WILDCARDS.replace("ADDRESS", &two.ip))?;
    front.resolv_conf(&format!("nameserver {}\n", names.ip))?;
    let _sidecar = mesh.sidecar_with_redirection(&front, "frontend", &["--workload", "frontend"])?;
    let expect = |url: &str, more: &[&str], wanted: &[&str]| {
        wait_for(url, Duration::from_secs(15), || {
            let answer = front.curl(&[&["-i", "-k"], more, &[url]].concat())?;
            ensure!(wanted.iter().all(|wanted| answer.contains(wanted)), "{url}: {answer}");
            Ok(())
        })
    };
    expect("http://a-partner.example.com/", &[], &["X-Served-By: one"])?;
    // The route's host decides, not the address that the client dials.
    let at = |host: &str, port: u16, pod: &Pod| format!("{host}:{port}:{}", pod.ip);
    let shop = at("shop.example.net", 80, &one);
    expect("http://shop.example.net/b", &["--resolve", &shop], &["X-Served-By: two"])?;
    let refused = ["503", "x-weft-reason: cluster_undefined"];
    expect("http://shop.example.net/nowhere", &["--resolve", &shop], &refused)?;
    let second = at("shop.example.net", 80, &two);
    let _port = two.serve(80, "two at its own port")?;
    expect("http://shop.example.net/", &["--resolve", &second], &["two at its own port", "x-by: old"])?;
    // By server name, and by original destination.
    let wrong = at("a-partner.example.com", 443, &names);
    expect("https://a-partner.example.com/", &["--resolve", &wrong], &["the application's own TLS"])?;
    let new = at("new.example.com", 8443, &two);
    expect("https://new.example.com:8443/", &["--resolve", &new], &["the application's own TLS"])?;
    expect(&format!("http://{}:9000/", two.ip), &[], &["X-Served-By: bytes"])
}
