//! Services outside the mesh.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_tests::{Mesh, tests_dir, wait_for};

use crate::Scenario;
use crate::certificates::Certificates;

pub(crate) fn all() -> Vec<Scenario> {
    vec![("tls_begins_at_the_sidecar", tls)]
}

/// The application speaks plaintext, the sidecar TLS.
fn tls() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let certificates = Certificates::new(&mesh.center.folder("certificates"))?;
    certificates.leaf("server", "api.example.com")?;
    certificates.leaf("client", "a shop")?;
    let outside = mesh.pod("outside")?;
    let script = tests_dir().join("apps/tls_server.py").to_string_lossy().into_owned();
    let (certificate, key) = (certificates.path("server/tls.crt"), certificates.path("server/tls.key"));
    let _open = outside.spawn("open", "python3", &[&script, "8443", &certificate, &key])?;
    let _closed = outside.spawn("closed", "python3", &[&script, "9443", &certificate, &key, &certificates.ca()])?;
    let policy = |tls: &str| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: api}}
spec:
  hosts: [api.example.com]
  ports:
  - {{number: 80, name: http, protocol: HTTP, targetPort: 8443}}
  - {{number: 81, name: http-closed, protocol: HTTP, targetPort: 9443}}
  - {{number: 82, name: tcp, protocol: TCP, targetPort: 8443}}
  resolution: STATIC
  endpoints: [{{address: {}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: api}}
spec:
  host: api.example.com
  trafficPolicy:
    tls: {{{tls}}}
",
            outside.ip
        )
    };
    let (front, _sidecar) = mesh.client("frontend")?;
    let expect = |what: &str, url: &str, wanted: &str| {
        wait_for(what, Duration::from_secs(15), || {
            let answer = front.curl(&["-i", url])?;
            ensure!(answer.contains(wanted), "{url}: {answer}");
            Ok(())
        })
    };
    let ca = certificates.ca();
    mesh.policy("api.yaml", &policy(&format!("mode: SIMPLE, caCertificates: {ca}")))?;
    expect("TLS", "http://api.example.com/", "the application's own TLS")?;
    // Bytes as well: the sidecar does not look into them.
    expect("TLS for bytes", "http://api.example.com:82/", "the application's own TLS")?;
    expect("no certificate to show", "http://api.example.com:81/", " 503 ")?;
    let (certificate, key) = (certificates.path("client/tls.crt"), certificates.path("client/tls.key"));
    let mutual = format!("mode: MUTUAL, caCertificates: {ca}, clientCertificate: {certificate}, privateKey: {key}");
    mesh.policy("api.yaml", &policy(&mutual))?;
    expect("mutual TLS", "http://api.example.com:81/", "the application's own TLS to a shop")?;
    mesh.policy("api.yaml", &policy(&format!("mode: SIMPLE, caCertificates: {ca}, sni: other.example.com")))?;
    expect("another name is refused", "http://api.example.com/", " 503 ")?;
    let named =
        format!("mode: SIMPLE, caCertificates: {ca}, sni: other.example.com, subjectAltNames: [api.example.com]");
    mesh.policy("api.yaml", &policy(&named))?;
    expect("the name that is wanted", "http://api.example.com/", "the application's own TLS")?;
    // Nobody whom this system trusts has signed it.
    mesh.policy("api.yaml", &policy("mode: SIMPLE"))?;
    expect("the system's authorities", "http://api.example.com/", " 503 ")?;
    mesh.policy("api.yaml", &policy("mode: SIMPLE, insecureSkipVerify: true"))?;
    expect("anybody", "http://api.example.com/", "the application's own TLS")
}
