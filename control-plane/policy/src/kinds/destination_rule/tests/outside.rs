//! Settings of connections that leave the mesh: TLS, tunnels, PROXY protocol headers.

use super::*;

#[test]
fn headers_of_the_proxy_protocol() {
    let of = |text: &str| {
        let rule = rule(&format!("  host: order\n  trafficPolicy:\n    proxyProtocol: {text}\n"));
        rule.traffic_policy.unwrap().settings.proxy_protocol
    };
    use v1::ProxyProtocol::{V1, V2};
    assert_eq!([of("{}"), of("{version: V1}"), of("{version: V2}")], [Some(V1), Some(V1), Some(V2)]);
    for (text, want) in [
        ("proxyProtocol: {version: V3}", "unknown value `V3`; allowed are V1, V2"),
        ("{proxyProtocol: {}, tls: {mode: ISTIO_MUTUAL}}", "warning: sidecars read no PROXY header"),
        ("portLevelSettings: [{port: {number: 80}, proxyProtocol: {}}]", "unknown field `proxyProtocol`"),
    ] {
        assert!(policy_problem(text).contains(want), "{text}: {}", policy_problem(text));
    }
}

#[test]
fn tunnels() {
    let of = |text: &str| {
        let rule = rule(&format!("  host: proxy\n  trafficPolicy:\n    tunnel: {text}\n"));
        rule.traffic_policy.unwrap().settings.tunnel.unwrap()
    };
    let want = |post, host: &str, port| v1::Tunnel { post, host: host.into(), port };
    assert_eq!(of("{targetHost: db.example, targetPort: 5432}"), want(false, "db.example", 5432));
    assert_eq!(of("{protocol: CONNECT, targetHost: 10.0.0.1, targetPort: 1}"), want(false, "10.0.0.1", 1));
    assert_eq!(of("{protocol: POST, targetHost: '2001:db8::1', targetPort: 1}"), want(true, "2001:db8::1", 1));
    for (text, want) in [
        ("tunnel: {targetPort: 1}", "error: `trafficPolicy.tunnel.targetHost` is required"),
        ("tunnel: {targetHost: a}", "error: `trafficPolicy.tunnel.targetPort` is required"),
        ("tunnel: {targetHost: 'a b', targetPort: 1}", "`a b` is neither a host name nor an IP address"),
        ("tunnel: {targetHost: a, targetPort: 0}", "targetPort` is required and must not be empty"),
        ("tunnel: {targetHost: a, targetPort: 65536}", "must be a whole number from 1 to 65535"),
        ("tunnel: {protocol: GET, targetHost: a, targetPort: 1}", "unknown value `GET`; allowed are CONNECT, POST"),
        (
            "{proxyProtocol: {}, tunnel: {targetHost: a, targetPort: 1}}",
            "`tunnel` and `proxyProtocol` exclude each other",
        ),
        ("portLevelSettings: [{port: {number: 80}, tunnel: {}}]", "unknown field `tunnel`"),
    ] {
        assert!(policy_problem(text).contains(want), "{text}: {}", policy_problem(text));
    }
}

#[test]
fn tls_to_services_outside() {
    let tls = |text: &str| {
        let rule = rule(&format!("  host: api.example\n  trafficPolicy:\n    tls: {text}\n"));
        rule.traffic_policy.unwrap().settings.tls.unwrap()
    };
    let simple = tls("{mode: SIMPLE, caCertificates: system}");
    assert_eq!((simple.mode, simple.origination), (v1::Tls::Originate, Some(v1::TlsOrigination::default())));
    let mutual = tls(
        "{mode: MUTUAL, clientCertificate: /a.pem, privateKey: /a.key, sni: b.example, subjectAltNames: [c.example], caCertificates: /ca.pem}",
    );
    let mutual = mutual.origination.unwrap();
    assert_eq!((&*mutual.client_certificate, &*mutual.private_key, &*mutual.sni), ("/a.pem", "/a.key", "b.example"));
    assert_eq!((&*mutual.ca_certificates, &mutual.subject_alt_names[..]), ("/ca.pem", &["c.example".to_owned()][..]));
    assert!(tls("{mode: SIMPLE, insecureSkipVerify: true}").origination.unwrap().insecure_skip_verify);
    assert_eq!(tls("{mode: SIMPLE, caCrl: /a.crl}").origination.unwrap().ca_crl, "/a.crl");
    let credential = |mode: &str| {
        let rule = rule(&format!(
            "  host: api.example\n  workloadSelector: {{matchLabels: {{app: a}}}}\n  trafficPolicy:\n    tls: {{mode: {mode}, credentialName: shop}}\n"
        ));
        rule.traffic_policy.unwrap().settings.tls.unwrap().origination.unwrap()
    };
    assert_eq!(credential("SIMPLE"), v1::TlsOrigination { credential_name: "shop".into(), ..Default::default() });
    assert_eq!(credential("MUTUAL"), v1::TlsOrigination { show_credential: true, ..credential("SIMPLE") });
    assert_eq!(tls("{}").mode, v1::Tls::Disable);
    for (text, want) in [
        ("{mode: MUTUAL}", "error: `trafficPolicy.tls.clientCertificate` is required"),
        ("{mode: MUTUAL, clientCertificate: /a}", "error: `trafficPolicy.tls.privateKey` is required"),
        ("{mode: ISTIO_MUTUAL, privateKey: /a}", "error: `privateKey` excludes ISTIO_MUTUAL"),
        ("{mode: SIMPLE, clientCertificate: /a}", "warning: `clientCertificate` has no effect: SIMPLE"),
        ("{mode: DISABLE, sni: a}", "warning: `sni` has no effect: the mode is DISABLE"),
        ("{mode: SIMPLE, insecureSkipVerify: true, caCertificates: /a}", "warning: `caCertificates` has no effect"),
        ("{mode: SIMPLE, sni: 'a b'}", "error: `a b` is not a host name"),
        ("{mode: SIMPLE, insecureSkipVerify: true, caCrl: /a}", "warning: `caCrl` has no effect"),
        ("{mode: ISTIO_MUTUAL, caCrl: /a}", "error: `caCrl` excludes ISTIO_MUTUAL"),
        ("{mode: ISTIO_MUTUAL, credentialName: a}", "error: `credentialName` excludes ISTIO_MUTUAL"),
        ("{mode: SIMPLE, credentialName: a}", "error: `credentialName` needs a `workloadSelector` in the rule"),
        ("{mode: SIMPLE, credentialName: ..}", "`credentialName` is the name of a folder"),
        ("{mode: SIMPLE, credentialName: ../a}", "`credentialName` is the name of a folder"),
        ("{mode: MUTUAL, privateKey: /a, credentialName: a}", "`privateKey` and `credentialName` exclude each other"),
        ("{mode: SIMPLE, caCrl: /a, credentialName: a}", "`caCrl` and `credentialName` exclude each other"),
    ] {
        assert!(
            policy_problem(&format!("tls: {text}")).contains(want),
            "{text}: {}",
            policy_problem(&format!("tls: {text}"))
        );
    }
}
