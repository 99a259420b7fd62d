//! Services outside the mesh.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Kind, Mesh, Pod, Process, document, tests_dir, wait_for};

use crate::Scenario;
use crate::certificates::Certificates;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        tls_begins_at_the_sidecar,
        tls_by_credential_and_revocation_lists,
        every_address_of_a_name_is_an_endpoint,
        a_request_names_the_host_that_is_dialed,
        mirrors_go_to_the_original_destination,
    ]
}

/// A name server, and the file with its records.
pub(crate) fn name_server(pod: &Pod, known: &serde_json::Value) -> Result<(PathBuf, Process)> {
    let file = pod.folder("names.json");
    std::fs::write(&file, known.to_string())?;
    let script = tests_dir().join("apps/name_server.py").to_string_lossy().into_owned();
    let server = pod.spawn("names", "python3", &[&script, &file.to_string_lossy()])?;
    wait_for("the name server", Duration::from_secs(10), || {
        ensure!(server.output().contains("listening"), "{}", server.output());
        Ok(())
    })?;
    Ok((file, server))
}

/// The application speaks plaintext, the sidecar TLS.
fn tls_begins_at_the_sidecar() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let certificates = Certificates::new(&mesh.center.folder("certificates"))?;
    certificates.leaf("server", "api.example.com")?;
    certificates.leaf("client", "a shop")?;
    let outside = mesh.pod("outside")?;
    let script = tests_dir().join("apps/tls_server.py").to_string_lossy().into_owned();
    let (certificate, key) = (certificates.path("server/tls.crt"), certificates.path("server/tls.key"));
    let _open = outside.spawn("open", "python3", &[&script, "8443", &certificate, &key])?;
    let _closed = outside.spawn("closed", "python3", &[&script, "9443", &certificate, &key, &certificates.ca()])?;
    let policy = |tls: Value| {
        let entry = json!({
            "hosts": ["api.example.com"],
            "ports": [
                {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8443},
                {"number": 81, "name": "http-closed", "protocol": "HTTP", "targetPort": 9443},
                {"number": 82, "name": "tcp", "protocol": "TCP", "targetPort": 8443},
            ],
            "resolution": "STATIC",
            "endpoints": [{"address": outside.ip}],
        });
        let rule = json!({"host": "api.example.com", "trafficPolicy": {"tls": tls}});
        let entry = document(Kind::ServiceEntry, "api", entry);
        mesh.policy("api.yaml", &(entry + &document(Kind::DestinationRule, "api", rule)))
    };
    let (front, _sidecar) = mesh.client("frontend")?;
    let expect = |case: &str, url: &str, expected: &str| {
        wait_for(case, Duration::from_secs(15), || {
            let answer = front.curl(&["-i", url])?;
            ensure!(answer.contains(expected), "{url}: {answer}");
            Ok(())
        })
    };
    let ca = certificates.ca();
    policy(json!({"mode": "SIMPLE", "caCertificates": ca}))?;
    expect("TLS", "http://api.example.com/", "the application's own TLS")?;
    // TCP as well: the sidecar does not parse it.
    expect("TLS for bytes", "http://api.example.com:82/", "the application's own TLS")?;
    expect("no certificate to show", "http://api.example.com:81/", " 503 ")?;
    let (certificate, key) = (certificates.path("client/tls.crt"), certificates.path("client/tls.key"));
    let mutual = json!({"mode": "MUTUAL", "caCertificates": ca, "clientCertificate": certificate, "privateKey": key});
    policy(mutual)?;
    expect("mutual TLS", "http://api.example.com:81/", "the application's own TLS to a shop")?;
    policy(json!({"mode": "SIMPLE", "caCertificates": ca, "sni": "other.example.com"}))?;
    expect("another name is refused", "http://api.example.com/", " 503 ")?;
    let names = json!(["api.example.com"]);
    policy(json!({"mode": "SIMPLE", "caCertificates": ca, "sni": "other.example.com", "subjectAltNames": names}))?;
    expect("the expected name", "http://api.example.com/", "the application's own TLS")?;
    // The CA is not among the system's.
    policy(json!({"mode": "SIMPLE"}))?;
    expect("the system's authorities", "http://api.example.com/", " 503 ")?;
    policy(json!({"mode": "SIMPLE", "insecureSkipVerify": true}))?;
    expect("any certificate", "http://api.example.com/", "the application's own TLS")
}

/// A server whose certificate is revoked gets no further connection, and a credential is read from the sidecar's disk.
fn tls_by_credential_and_revocation_lists() -> Result<()> {
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
    // TCP has a new upstream connection each time.
    let policy = |tls: Value| {
        let entry = json!({
            "hosts": ["api.example.com"],
            "ports": [{"number": 82, "name": "tcp", "protocol": "TCP", "targetPort": 9443}],
            "resolution": "STATIC",
            "endpoints": [{"address": outside.ip}],
        });
        let rule = json!({
            "host": "api.example.com",
            "workloadSelector": {"matchLabels": {"app": "shop"}},
            "trafficPolicy": {"tls": tls},
        });
        let entry = document(Kind::ServiceEntry, "api", entry);
        mesh.policy("api.yaml", &(entry + &document(Kind::DestinationRule, "api", rule)))
    };
    let front = mesh.pod("frontend")?;
    let credentials = folder.to_string_lossy().into_owned();
    let args = ["--workload", "frontend", "--label", "app=shop", "--credentials", &credentials];
    let sidecar = mesh.sidecar_with_redirection(&front, "frontend", &args)?;
    let served = |case: &str, yes: bool| {
        wait_for(case, Duration::from_secs(15), || {
            let answer = front.curl(&["http://api.example.com:82/"]);
            let is_served = answer.as_ref().is_ok_and(|answer| answer == "the application's own TLS to a shop");
            ensure!(is_served == yes, "{answer:?}");
            Ok(())
        })
    };
    let (ca, crl) = (certificates.ca(), certificates.path("ca.crl"));
    let (certificate, key) = (certificates.path("shop/tls.crt"), certificates.path("shop/tls.key"));
    policy(json!({
        "mode": "MUTUAL", "clientCertificate": certificate, "privateKey": key, "caCertificates": ca, "caCrl": crl,
    }))?;
    served("another was revoked", true)?;
    certificates.revoke("ca.crl", &["another", "server"])?;
    served("it was revoked", false)?;
    ensure!(sidecar.output().contains("invalid peer certificate: Revoked"), "{}", sidecar.output());

    std::fs::copy(folder.join("ca.crt"), folder.join("shop/ca.crt"))?;
    policy(json!({"mode": "MUTUAL", "credentialName": "shop"}))?;
    served("a credential without a list", true)?;
    certificates.revoke("shop/ca.crl", &["server"])?;
    served("a credential with one", false)
}

/// An external name is looked up again after its TTL, and each of its addresses is an endpoint.
fn every_address_of_a_name_is_an_endpoint() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let (one, two) = (mesh.pod("one")?, mesh.pod("two")?);
    let _apps = (one.serve(8080, "one")?, two.serve(8080, "two")?);
    let names = mesh.pod("names")?;
    let (file, server) = name_server(&names, &json!({"db.example.com": [one.ip, two.ip]}))?;
    let known = |addresses: &[&str]| {
        let temporary = file.with_extension("new");
        std::fs::write(&temporary, json!({"db.example.com": addresses}).to_string())?;
        Ok::<_, anyhow::Error>(std::fs::rename(&temporary, &file)?)
    };
    let policy = |resolution: &str| {
        let entry = json!({
            "hosts": ["db.example.com"],
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}],
            "resolution": resolution,
        });
        let balancer = json!({"simple": "ROUND_ROBIN"});
        let rule = json!({"host": "db.example.com", "trafficPolicy": {"loadBalancer": balancer}});
        let entry = document(Kind::ServiceEntry, "db", entry);
        mesh.policy("db.yaml", &(entry + &document(Kind::DestinationRule, "db", rule)))
    };
    policy("DNS")?;
    let front = mesh.pod("frontend")?;
    front.resolv_conf(&format!("nameserver {}\n", names.ip))?;
    let _sidecar = mesh.sidecar_with_redirection(&front, "frontend", &["--workload", "frontend"])?;
    let served = |count: usize| -> Result<std::collections::BTreeSet<String>> {
        let plan = json!({"url": "http://db.example.com/", "count": count});
        Ok(weft_tests::served_by(&front.requests(&plan)?).into_iter().collect())
    };
    let served_by = |case: &str, expected: &[&str]| {
        wait_for(case, Duration::from_secs(15), || {
            let served = served(8)?;
            ensure!(served.iter().map(String::as_str).eq(expected.iter().copied()), "{served:?}");
            Ok(())
        })
    };
    served_by("both addresses in turn", &["one", "two"])?;
    known(&[&two.ip])?;
    served_by("the remaining address", &["two"])?;
    // It has no address any more, and the name server is gone: the last answer stays.
    known(&[])?;
    drop(server);
    ensure!(served(8)?.iter().eq(["two"]), "it stays");
    Ok(())
}

/// Under a wildcard the sidecar resolves the request's own host, and refuses addresses of the pod or the mesh.
fn a_request_names_the_host_that_is_dialed() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let certificates = Certificates::new(&mesh.center.folder("certificates"))?;
    certificates.leaf("server", "a.example.com")?;
    let (one, two, front) = (mesh.pod("one")?, mesh.pod("two")?, mesh.pod("frontend")?);
    let _apps = (one.serve(8080, "one")?, two.serve(8080, "two")?);
    let script = tests_dir().join("apps/tls_server.py").to_string_lossy().into_owned();
    let (certificate, key) = (certificates.path("server/tls.crt"), certificates.path("server/tls.key"));
    let _tls = one.spawn("tls", "python3", &[&script, "8443", &certificate, &key])?;
    let known = json!({
        "a.example.com": [one.ip], "b.example.com": [two.ip], "c.example.com": [one.ip],
        "here.example.com": ["127.0.0.1"], "metadata.example.com": ["169.254.169.254"], "own.example.com": [front.ip],
    });
    let names = mesh.pod("names")?;
    let _server = name_server(&names, &known)?;
    let ca = certificates.ca();
    let entry = json!({
        "hosts": ["*.example.com"],
        "ports": [
            {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080},
            {"number": 81, "name": "http-tls", "protocol": "HTTP", "targetPort": 8443},
            {"number": 443, "name": "tls", "protocol": "TLS", "targetPort": 8443},
        ],
        "resolution": "DYNAMIC_DNS",
    });
    let tls = json!({"port": {"number": 81}, "tls": {"mode": "SIMPLE", "caCertificates": ca}});
    let rule = json!({"host": "*.example.com", "trafficPolicy": {"portLevelSettings": [tls]}});
    let entry = document(Kind::ServiceEntry, "partners", entry);
    mesh.policy("partners.yaml", &(entry + &document(Kind::DestinationRule, "partners", rule)))?;
    front.resolv_conf(&format!("nameserver {}\n", names.ip))?;
    let _own = front.serve(8080, "the caller's own")?;
    let _sidecar = mesh.sidecar_with_redirection(&front, "frontend", &["--workload", "frontend"])?;
    let expect = |url: &str, more: &[&str], expected: &str| {
        wait_for(url, Duration::from_secs(15), || {
            let answer = front.curl(&[&["-i"], more, &[url]].concat())?;
            ensure!(answer.contains(expected), "{url}: {answer}");
            Ok(answer)
        })
    };
    expect("http://a.example.com/", &[], "\"name\": \"one\"")?;
    expect("http://b.example.com/", &[], "\"name\": \"two\"")?;
    // The address that the client dials does not matter.
    let elsewhere = |host: &str, port: u16| ["--resolve".to_owned(), format!("{host}:{port}:{}", two.ip)];
    let believing = |host: &str, scheme: &str, port: u16, expected: &str| {
        let [resolve, to] = elsewhere(host, port);
        expect(&format!("{scheme}://{host}:{port}/"), &[&resolve, &to, "--cacert", &ca], expected)
    };
    believing("a.example.com", "http", 80, "\"name\": \"one\"")?;
    // The caller's own TLS, by its server name.
    believing("a.example.com", "https", 443, "the application's own TLS")?;
    // TLS by the sidecar: the certificate must have the requested name.
    expect("http://a.example.com:81/", &[], "the application's own TLS")?;
    expect("http://c.example.com:81/", &[], " 503 ")?;
    // Addresses to which an external name must not lead.
    for host in ["here.example.com", "metadata.example.com", "own.example.com", "nowhere.example.com"] {
        let answer = believing(host, "http", 80, " 503 ")?;
        ensure!(answer.contains("x-weft-reason: connect_failure"), "{answer}");
    }
    Ok(())
}

const MIRROR: &str = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: old}
spec:
  hosts: [old.example.com]
  http:
  - route: [{destination: {host: new.example.com}}]
    mirror: {host: old.example.com}
";

/// The application's requests go to a new service, and copies to the assumed address of the old one.
fn mirrors_go_to_the_original_destination() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let (new, old) = (mesh.pod("new")?, mesh.pod("old")?);
    let _apps = (new.serve(8080, "new")?, old.serve(8080, "old")?);
    let ports = json!([{"number": 8080, "name": "http", "protocol": "HTTP"}]);
    let of_old = json!({"hosts": ["old.example.com"], "addresses": [old.ip], "ports": ports, "resolution": "NONE"});
    let endpoints = json!([{"address": new.ip}]);
    let of_new = json!({"hosts": ["new.example.com"], "ports": ports, "resolution": "STATIC", "endpoints": endpoints});
    let policies =
        [document(Kind::ServiceEntry, "old", of_old), document(Kind::ServiceEntry, "new", of_new), MIRROR.to_owned()];
    mesh.policy("old.yaml", &policies.concat())?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let url = format!("http://{}:8080/copied", old.ip);
    wait_for("the new service's answer", Duration::from_secs(10), || {
        let answer = front.curl(&["-i", "-H", "Host: old.example.com", &url])?;
        ensure!(answer.contains("X-Served-By: new"), "{answer}");
        Ok(())
    })?;
    wait_for("the copy", Duration::from_secs(10), || {
        let seen = old.curl(&["http://127.0.0.1:8080/seen"])?;
        ensure!(seen.contains("/copied"), "{seen}");
        Ok(())
    })
}
