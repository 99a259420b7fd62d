//! TLS at the gateway: which certificate, version and suite, which callers; the mesh's own; and TLS that begins there.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Kind, Mesh, Pod, document, tests_dir, wait_for};

use crate::Scenario;
use crate::certificates::Certificates;
use crate::gateway::another;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        a_gateway_terminates_tls_by_the_settings_of_each_server,
        an_istio_mutual_gateway_accepts_workloads_of_the_mesh,
        a_gateway_originates_tls_by_a_credential,
    ]
}

/// A VirtualService of the gateway: requests to `host` go to `to`. `headers` are its header operations.
fn routed(name: &str, host: &str, to: &str, headers: &Value) -> String {
    let route = json!([{"destination": {"host": to, "port": {"number": 80}}}]);
    let spec = json!({"hosts": [host], "gateways": ["edge"], "http": [{"route": route, "headers": headers}]});
    document(Kind::VirtualService, name, spec)
}

const CONNECTION: &str = "<%REQUESTED_SERVER_NAME%|%DOWNSTREAM_TLS_VERSION%|%DOWNSTREAM_TLS_CIPHER%>";
const PEER: &str = "<%DOWNSTREAM_PEER_DNS_SAN%|%DOWNSTREAM_PEER_CERT_V_START(%Y)%|%DOWNSTREAM_PEER_FINGERPRINT_256%>";

/// The servers of the gateway `edge`.
fn gateway(servers: Value) -> String {
    document(Kind::Gateway, "edge", json!({"selector": {"istio": "ingressgateway"}, "servers": servers}))
}

fn a_gateway_terminates_tls_by_the_settings_of_each_server() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let certificates = Certificates::new(&mesh.center.folder("certificates"))?;
    certificates.rsa_leaf("rsa", "shop.example.com")?;
    certificates.leaf("ecdsa", "shop.example.com")?;
    certificates.leaf("client", "client.example.com")?;
    certificates.leaf("stranger", "stranger.example.com")?;
    certificates.own_ca("own", "client.example.com")?;
    certificates.own_ca("like-own", "client.example.com")?;
    certificates.revoke("ca.crl", &["another"])?;
    let _order = mesh.instance("order1", "order-service", 8000, &[])?;
    let (edge, process) = another(&mesh, "edge", &["--credentials", &certificates.path("")])?;
    let (ip, ca) = (&edge.ip, certificates.ca());
    let files = |name: &str| {
        let path = certificates.path(name);
        json!({"serverCertificate": format!("{path}/tls.crt"), "privateKey": format!("{path}/tls.key")})
    };
    let http = |number: u16, name: &str| json!({"number": number, "name": name, "protocol": "HTTP"});
    let https = |number: u16, name: &str, tls: Value| {
        let port = json!({"number": number, "name": name, "protocol": "HTTPS"});
        json!({"port": port, "hosts": ["shop.example.com"], "tls": tls})
    };
    let old = json!({
        "mode": "SIMPLE", "credentialName": "rsa", "maxProtocolVersion": "TLSV1_2",
        "cipherSuites": ["ECDHE-RSA-AES256-GCM-SHA384"],
    });
    let known = json!({
        "mode": "MUTUAL", "tlsCertificates": [files("rsa"), files("ecdsa")], "caCertificates": ca,
        "caCrl": certificates.path("ca.crl"), "subjectAltNames": ["client.example.com"],
    });
    let by_credential = |ca: &str| json!({"mode": "MUTUAL", "credentialName": "ecdsa", "caCertCredentialName": ca});
    let gateway = gateway(json!([
        {"port": http(8081, "one"), "bind": ip, "hosts": ["*"]},
        {"port": http(8082, "inside"), "bind": "127.0.0.1", "hosts": ["*"]},
        https(8443, "both", json!({"mode": "SIMPLE", "credentialNames": ["rsa", "ecdsa"]})),
        https(8444, "old", old),
        https(8445, "known", known),
        https(8446, "other-ca", by_credential("callers")),
        https(8447, "own-ca", by_credential("own")),
    ]));
    std::fs::create_dir(certificates.path("callers"))?;
    std::fs::copy(&ca, certificates.path("callers/ca.crt"))?;
    let headers = json!({"response": {"set": {"x-connection": CONNECTION, "x-peer": PEER}}});
    mesh.policy("edge.yaml", &(gateway + &routed("shop", "*", "order-service", &headers)))?;
    let outside = mesh.pod("outside")?;

    // An address of its own.
    wait_for("the gateway", Duration::from_secs(15), || {
        let answer = outside.curl(&["-f", &format!("http://{ip}:8081/")]);
        answer.map_err(|e| e.context(process.output()))
    })?;
    ensure!(edge.curl(&["-f", "http://127.0.0.1:8081/"]).is_err(), "bound to another address");
    edge.curl(&["-f", "http://127.0.0.1:8082/"])?;
    ensure!(outside.curl(&["-f", &format!("http://{ip}:8082/")]).is_err(), "bound to the loopback interface");

    // The certificate that the client can use.
    let call = |port: u16, args: &[&str]| {
        let (at, url) = (format!("shop.example.com:{port}:{ip}"), format!("https://shop.example.com:{port}/"));
        let all = ["-f", "-o", "/dev/null", "-w", "%{http_code} %{certs}", "--cacert", &ca, "--resolve", &at, &url];
        outside.curl(&[args, &all].concat())
    };
    let by_ecdsa = call(8443, &[])?;
    ensure!(by_ecdsa.contains("id-ecPublicKey"), "{by_ecdsa}");
    let only_rsa = ["--tls-max", "1.2", "--ciphers", "ECDHE-RSA-AES128-GCM-SHA256"];
    let by_rsa = call(8443, &only_rsa)?;
    ensure!(by_rsa.contains("rsaEncryption"), "{by_rsa}");

    // Versions and suites.
    call(8444, &[])?;
    ensure!(call(8444, &["--tlsv1.3"]).is_err(), "TLS 1.2 at most");
    ensure!(call(8444, &only_rsa).is_err(), "a suite that is not in the list");

    // Clients by their SANs, except those with revoked certificates.
    let shown = |folder: &str| {
        let (certificate, key) = (format!("{folder}/tls.crt"), format!("{folder}/tls.key"));
        ["--cert".to_owned(), certificates.path(&certificate), "--key".to_owned(), certificates.path(&key)]
    };
    let as_caller = |port: u16, folder: &str| {
        let args = shown(folder);
        call(port, &args.each_ref().map(String::as_str))
    };
    as_caller(8445, "client")?;
    ensure!(call(8445, &[]).is_err(), "a certificate is required");
    ensure!(as_caller(8445, "stranger").is_err(), "its name is another");
    as_caller(8446, "stranger")?;
    tls_formatters(&outside, &certificates, ip)?;
    // A self-signed certificate is trusted by its bytes, not by its name.
    as_caller(8447, "own")?;
    for other in ["like-own", "client"] {
        ensure!(as_caller(8447, other).is_err(), "{other} is another certificate");
    }
    certificates.revoke("ca.crl", &["another", "client"])?;
    wait_for("the revocation list", Duration::from_secs(15), || {
        ensure!(as_caller(8445, "client").is_err(), "it was revoked");
        Ok(())
    })?;
    // The revocation list of a credential applies as soon as the file exists.
    certificates.revoke("callers/ca.crl", &["stranger"])?;
    wait_for("the credential's list", Duration::from_secs(15), || {
        ensure!(as_caller(8446, "stranger").is_err(), "it was revoked");
        Ok(())
    })?;
    as_caller(8446, "client").map(drop)
}

/// The parameters of the terminated TLS and the client's certificate, in headers; empty without TLS.
fn tls_formatters(outside: &Pod, certificates: &Certificates, ip: &str) -> Result<()> {
    let ca = certificates.ca();
    let call = |url: &str, args: &[&str]| {
        let host = url.split('/').nth(2).unwrap_or_default();
        let at = format!("{host}:{ip}");
        outside.curl(&[args, &["-s", "-i", "--cacert", &ca, "--resolve", &at, url]].concat())
    };
    let (certificate, key) = (certificates.path("client/tls.crt"), certificates.path("client/tls.key"));
    let shown = ["--cert", &certificate, "--key", &key, "--http1.1"];
    let mutual = call("https://shop.example.com:8445/", &shown)?.to_lowercase();
    ensure!(mutual.contains("x-connection: <shop.example.com|tlsv1.3|tls_"), "{mutual}");
    // The gateway's own header for the application has the same hash.
    let hash = mutual.split("hash=").nth(1).and_then(|rest| rest.get(..64)).unwrap_or("none");
    ensure!(mutual.contains("x-peer: <client.example.com|") && mutual.contains(&format!("|{hash}>")), "{mutual}");
    let simple = call("https://shop.example.com:8444/", &["--http1.1"])?.to_lowercase();
    ensure!(simple.contains("x-connection: <shop.example.com|tlsv1.2|ecdhe-rsa-aes256-gcm-sha384>"), "{simple}");
    ensure!(simple.contains("x-peer: <||>"), "{simple}");
    let plain = call("http://shop.example.com:8081/", &[])?.to_lowercase();
    ensure!(plain.contains("x-connection: <||>") && plain.contains("x-peer: <||>"), "{plain}");
    Ok(())
}

fn an_istio_mutual_gateway_accepts_workloads_of_the_mesh() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let _order = mesh.instance("order1", "order-service", 8000, &[])?;
    let (edge, process) = another(&mesh, "edge", &[])?;
    let frontend = "spiffe://cluster.local/ns/default/sa/frontend";
    let gateway = gateway(json!([{
        "port": {"number": 9443, "name": "mesh", "protocol": "HTTPS"},
        "hosts": ["shop.example.com"],
        "tls": {"mode": "ISTIO_MUTUAL", "subjectAltNames": [frontend]},
    }]));
    let labels = json!({"security.istio.io/tlsMode": "istio"});
    let entry = json!({
        "hosts": ["shop.example.com"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 9443}],
        "location": "MESH_INTERNAL",
        "resolution": "STATIC",
        "endpoints": [{"address": edge.ip, "labels": labels, "serviceAccount": "ingress"}],
    });
    let route = routed("shop", "shop.example.com", "order-service", &json!({}));
    mesh.policy("edge.yaml", &[gateway, route, document(Kind::ServiceEntry, "shop", entry)].concat())?;
    let (front, sidecar) = mesh.client("frontend")?;
    let (stranger, _sidecar) = mesh.client("stranger")?;
    let url = "http://shop.example.com/";
    let answer = wait_for("a workload with an accepted identity", Duration::from_secs(15), || {
        let answer = front.curl(&["-f", url]);
        answer.map_err(|e| e.context(format!("{}\n{}", process.output(), sidecar.output())))
    })?;
    let both = answer.contains("sa/frontend") && answer.contains("sa/ingress");
    ensure!(both, "headers name the workload and the gateway: {answer}");
    let status = stranger.curl(&["-o", "/dev/null", "-w", "%{http_code}", url])?;
    ensure!(status == "503", "a workload with another identity: {status}");
    let outside = mesh.pod("outside")?;
    let at = format!("shop.example.com:9443:{}", edge.ip);
    let without = outside.curl(&["-k", "--resolve", &at, "https://shop.example.com:9443/"]);
    ensure!(without.is_err(), "a caller without a certificate of the mesh: {without:?}");
    Ok(())
}

/// A service outside the mesh requires a client certificate, which the gateway has.
fn a_gateway_originates_tls_by_a_credential() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let certificates = Certificates::new(&mesh.center.folder("certificates"))?;
    certificates.leaf("server", "partner.example.com")?;
    certificates.leaf("shop", "a shop")?;
    std::fs::copy(certificates.ca(), certificates.path("shop/ca.crt"))?;
    let partner = mesh.pod("partner")?;
    let script = tests_dir().join("apps/tls_server.py").to_string_lossy().into_owned();
    let (certificate, key) = (certificates.path("server/tls.crt"), certificates.path("server/tls.key"));
    let _server = partner.spawn("closed", "python3", &[&script, "9443", &certificate, &key, &certificates.ca()])?;
    let gateway = gateway(json!([{"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}]));
    let entry = json!({
        "hosts": ["partner.example.com"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 9443}],
        "resolution": "STATIC",
        "endpoints": [{"address": partner.ip}],
    });
    let rule = json!({
        "host": "partner.example.com",
        "workloadSelector": {"matchLabels": {"istio": "ingressgateway"}},
        "trafficPolicy": {"tls": {"mode": "MUTUAL", "credentialName": "shop"}},
    });
    let policies = [
        gateway,
        routed("partner", "*", "partner.example.com", &json!({})),
        document(Kind::ServiceEntry, "partner", entry),
        document(Kind::DestinationRule, "partner", rule),
    ];
    mesh.policy("edge.yaml", &policies.concat())?;
    let (edge, process) = another(&mesh, "edge", &["--credentials", &certificates.path("")])?;
    let caller = mesh.pod("caller")?;
    let answer = wait_for("the partner", Duration::from_secs(15), || {
        let answer = caller.curl(&["-f", &format!("http://{}:8080/", edge.ip)]);
        answer.map_err(|e| e.context(process.output()))
    })?;
    ensure!(answer == "the application's own TLS to a shop", "{answer}");
    Ok(())
}
