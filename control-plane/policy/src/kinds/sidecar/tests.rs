use super::*;
use crate::{Object, Parsed, parse};

fn read_all(spec: &str) -> Parsed {
    let head = "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: shop}\nspec:\n";
    parse("f.yaml", &format!("{head}{spec}"))
}

fn sidecar(spec: &str) -> Sidecar {
    let parsed = read_all(spec);
    assert_eq!(parsed.problems, [], "{spec}");
    let Object::Sidecar(sidecar) = &parsed.documents[0].object else { panic!() };
    (**sidecar).clone()
}

#[test]
fn every_field_is_decoded() {
    let parsed = sidecar(
        "  workloadSelector: {labels: {app: a}}
  egress:
  - {port: {number: 80, protocol: HTTP, name: http}, hosts: ['./*'], captureMode: IPTABLES}
  - {hosts: ['*/*.example.com', '~other/*']}
  ingress:
  - port: {number: 9080, protocol: HTTP, name: http}
    defaultEndpoint: 127.0.0.1:8080
    connectionPool: {tcp: {maxConnections: 3}}
  inboundConnectionPool: {http: {http2MaxRequests: 7}}
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
",
    );
    assert_eq!(parsed.selector["app"], "a");
    assert_eq!(parsed.egress[0].port, Some(80));
    let excluded = Import { excluded: true, namespace: Some("other".into()), host: "*".into() };
    assert_eq!(parsed.egress[1].hosts[1], excluded);
    let ingress = &parsed.ingress[0];
    assert_eq!((ingress.port, ingress.protocol), (9080, v1::Protocol::Http));
    assert_eq!((ingress.to.as_deref(), ingress.pool.unwrap().max_connections), (Some("127.0.0.1:8080"), 3));
    assert_eq!(parsed.inbound_pool.unwrap().http2_max_requests, 7);
    assert_eq!(parsed.outbound, v1::OutboundPolicy::RegistryOnly);
    assert_eq!(sidecar("  egress: [{hosts: ['*/*']}]\n").outbound, v1::OutboundPolicy::OutboundUnset);
}

#[test]
fn imports_follow_the_egress_hosts() {
    for (egress, namespace, host, port, imported) in [
        ("[]", "other", "a.other.svc.cluster.local", None, true),
        ("[{hosts: ['./*']}]", "shop", "a.shop.svc.cluster.local", None, true),
        ("[{hosts: ['./*']}]", "other", "a.other.svc.cluster.local", None, false),
        ("[{hosts: ['other/*']}]", "other", "a.other.svc.cluster.local", None, true),
        ("[{hosts: ['*/*.example.com']}]", "other", "a.example.com", None, true),
        ("[{hosts: ['*/*.example.com']}]", "other", "example.com", None, false),
        ("[{hosts: ['~/*']}]", "shop", "a.shop.svc.cluster.local", None, false),
        ("[{hosts: ['*/*', '~other/*']}]", "other", "a.other.svc.cluster.local", None, false),
        ("[{hosts: ['*/*', '~other/*']}]", "more", "a.more.svc.cluster.local", None, true),
        ("[{port: {number: 80}, hosts: ['./*']}, {hosts: ['other/*']}]", "shop", "a", Some(80), true),
        ("[{port: {number: 80}, hosts: ['./*']}, {hosts: ['other/*']}]", "shop", "a", Some(81), false),
        ("[{port: {number: 80}, hosts: ['./*']}, {hosts: ['other/*']}]", "other", "a", Some(80), false),
        ("[{port: {number: 80}, hosts: ['./*']}, {hosts: ['other/*']}]", "other", "a", Some(81), true),
        ("[{port: {number: 80}, hosts: ['./*']}, {hosts: ['other/*']}]", "other", "a", None, true),
    ] {
        let found = sidecar(&format!("  egress: {egress}\n  inboundConnectionPool: {{tcp: {{maxConnections: 1}}}}\n"));
        assert_eq!(found.imports("shop", namespace, host, port), imported, "{egress} {namespace}/{host} {port:?}");
    }
}

#[test]
fn invalid_sidecars_are_located() {
    for (spec, want) in [
        ("  egress: [{hosts: [a]}]\n", "5:21: error: `a` must be <namespace>/<host>"),
        ("  egress: [{hosts: ['A/*']}]\n", "`A` is not a namespace"),
        ("  egress: [{hosts: ['./a b']}]\n", "`a b` is not a host name"),
        ("  egress: [{}]\n", "`egress[0].hosts` is required"),
        ("  egress: [{hosts: []}]\n", "hosts` is required and must not be empty"),
        ("  egress: [{hosts: ['*/*']}, {hosts: ['*/*']}]\n", "only the last entry of `egress` may be without `port`"),
        (
            "  egress: [{hosts: ['*/*'], captureMode: NONE}]\n",
            "`captureMode: NONE` is not supported: connections are redirected",
        ),
        (
            "  egress: [{hosts: ['*/*'], bind: 127.0.0.1}]\n",
            "`egress[0].bind` is not supported: connections are redirected",
        ),
        ("  ingress: [{port: {number: 80, protocol: HTTP}}]\n", "`ingress[0].port.name` is required"),
        (
            "  ingress: [{port: {number: 80, protocol: HTTP, name: a}, defaultEndpoint: 10.0.0.1:80}]\n",
            "`10.0.0.1:80` must be 127.0.0.1:PORT",
        ),
        (
            "  ingress: [{port: {number: 80, protocol: HTPT, name: a}}]\n",
            "unknown protocol `HTPT`, did you mean `http`?",
        ),
        (
            "  egress: [{hosts: ['*/*'], port: {number: 80, targetPort: 81}}]\n",
            "warning: `targetPort` has no effect here, as in Istio",
        ),
        (
            "  ingress: [{port: {number: 80, protocol: HTTP, name: a}, tls: {mode: SIMPLE}}]\n",
            "`ingress[0].tls` is not supported: callers without a sidecar use a Gateway",
        ),
        ("  outboundTrafficPolicy: {}\n", "warning: without a `mode` this is REGISTRY_ONLY"),
        ("  outboundTrafficPolicy: {mode: ANY}\n", "unknown value `ANY`"),
        (
            "  outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: a}}\n",
            "egressProxy` is not supported: write a ServiceEntry",
        ),
    ] {
        let got: Vec<String> = read_all(spec).problems.iter().map(ToString::to_string).collect();
        assert!(got.iter().any(|problem| problem.contains(want)), "{spec}\n got: {got:#?}\nwant: {want}");
    }
}
