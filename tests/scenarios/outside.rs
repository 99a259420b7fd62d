//! Services outside the mesh.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_tests::{Mesh, tests_dir, wait_for};

use crate::Scenario;
use crate::certificates::Certificates;

pub(crate) fn all() -> Vec<Scenario> {
    vec![
        ("tls_begins_at_the_sidecar", tls),
        ("tls_by_credential_and_what_was_revoked", credential),
        ("every_address_of_a_name_is_an_endpoint", names),
    ]
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

/// A server whose certificate is revoked gets no further connection, and a credential is read from the sidecar's disk.
fn credential() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let folder = mesh.center.folder("certificates");
    let certificates = Certificates::new(&folder)?;
    certificates.leaf("server", "api.example.com")?;
    certificates.leaf("shop", "a shop")?;
    certificates.revoke("ca.crl", &["another"])?;
    let outside = mesh.pod("outside")?;
    let script = tests_dir().join("apps/tls_server.py").to_string_lossy().into_owned();
    let (certificate, key) = (certificates.path("server/tls.crt"), certificates.path("server/tls.key"));
    let _server = outside.spawn("closed", "python3", &[&script, "9443", &certificate, &key, &certificates.ca()])?;
    // A flow of bytes has a connection of its own each time.
    let policy = |tls: &str| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: api}}
spec:
  hosts: [api.example.com]
  ports: [{{number: 82, name: tcp, protocol: TCP, targetPort: 9443}}]
  resolution: STATIC
  endpoints: [{{address: {}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: api}}
spec:
  host: api.example.com
  workloadSelector: {{matchLabels: {{app: shop}}}}
  trafficPolicy:
    tls: {{{tls}}}
",
            outside.ip
        )
    };
    let front = mesh.pod("frontend")?;
    let credentials = folder.to_string_lossy().into_owned();
    let args = ["--workload", "frontend", "--label", "app=shop", "--credentials", &credentials];
    let sidecar = mesh.sidecar(&front, "frontend", &args)?;
    mesh.redirect(&front)?;
    let served = |what: &str, yes: bool| {
        wait_for(what, Duration::from_secs(15), || {
            let answer = front.curl(&["http://api.example.com:82/"]);
            let is_served = answer.as_ref().is_ok_and(|answer| answer == "the application's own TLS to a shop");
            ensure!(is_served == yes, "{answer:?}");
            Ok(())
        })
    };
    let (ca, crl) = (certificates.ca(), certificates.path("ca.crl"));
    let (certificate, key) = (certificates.path("shop/tls.crt"), certificates.path("shop/tls.key"));
    let files = format!("clientCertificate: {certificate}, privateKey: {key}, caCertificates: {ca}, caCrl: {crl}");
    mesh.policy("api.yaml", &policy(&format!("mode: MUTUAL, {files}")))?;
    served("another was revoked", true)?;
    certificates.revoke("ca.crl", &["another", "server"])?;
    served("it was revoked", false)?;
    ensure!(sidecar.output().contains("invalid peer certificate: Revoked"), "{}", sidecar.output());

    std::fs::copy(folder.join("ca.crt"), folder.join("shop/ca.crt"))?;
    mesh.policy("api.yaml", &policy("mode: MUTUAL, credentialName: shop"))?;
    served("a credential without a list", true)?;
    certificates.revoke("shop/ca.crl", &["server"])?;
    served("a credential with one", false)
}

/// A name of the outside is asked for again when its records have lived, and each of its addresses is an endpoint.
fn names() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let (one, two) = (mesh.pod("one")?, mesh.pod("two")?);
    let _apps = (one.serve(8080, "one")?, two.serve(8080, "two")?);
    let names = mesh.pod("names")?;
    let file = names.folder("names.json");
    let known = |addresses: &[&str]| {
        let temporary = file.with_extension("new");
        std::fs::write(&temporary, serde_json::json!({"db.example.com": addresses}).to_string())?;
        Ok::<_, anyhow::Error>(std::fs::rename(&temporary, &file)?)
    };
    known(&[&one.ip, &two.ip])?;
    let script = tests_dir().join("apps/name_server.py").to_string_lossy().into_owned();
    let server = names.spawn("names", "python3", &[&script, &file.to_string_lossy()])?;
    wait_for("the name server", Duration::from_secs(10), || {
        ensure!(server.output().contains("listening"), "{}", server.output());
        Ok(())
    })?;
    let entry = |resolution: &str| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: db}}
spec:
  hosts: [db.example.com]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}]
  resolution: {resolution}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: db}}
spec:
  host: db.example.com
  trafficPolicy: {{loadBalancer: {{simple: ROUND_ROBIN}}}}
"
        )
    };
    mesh.policy("db.yaml", &entry("DNS"))?;
    let front = mesh.pod("frontend")?;
    front.resolv_conf(&format!("nameserver {}\n", names.ip))?;
    let _sidecar = mesh.sidecar(&front, "frontend", &["--workload", "frontend"])?;
    mesh.redirect(&front)?;
    let served = |count: usize| -> Result<std::collections::BTreeSet<String>> {
        let plan = serde_json::json!({"url": "http://db.example.com/", "count": count});
        Ok(weft_tests::served_by(&front.requests(&plan)?).into_iter().collect())
    };
    let served_by = |what: &str, wanted: &[&str]| {
        wait_for(what, Duration::from_secs(15), || {
            let served = served(8)?;
            ensure!(served.iter().map(String::as_str).eq(wanted.iter().copied()), "{served:?}");
            Ok(())
        })
    };
    served_by("both addresses in turn", &["one", "two"])?;
    known(&[&two.ip])?;
    served_by("the one that is left", &["two"])?;
    // It has no address any more, and the name server is gone: the last answer stays.
    known(&[])?;
    drop(server);
    ensure!(served(8)?.iter().eq(["two"]), "it stays");
    Ok(())
}
