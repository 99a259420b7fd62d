use proptest::prelude::*;
use weft_proto::v1::{MtlsMode, Protocol};

use super::*;
use crate::{Object, PeerAuthentication, Resolution, TargetPort};

/// Problems of a text, one a line.
fn problems(text: &str) -> Vec<String> {
    parse("f.yaml", text).problems.iter().map(ToString::to_string).collect()
}

fn object(kind: &str, spec: &str) -> Object {
    let mut parsed = parse("f.yaml", &head(kind, spec));
    assert_eq!(parsed.problems, [], "{spec}");
    parsed.documents.remove(0).object
}

fn head(kind: &str, spec: &str) -> String {
    let known = Kind::ALL.iter().find(|known| known.name() == kind).unwrap();
    let group = match known.descriptor().group {
        "" => String::new(),
        group => format!("{group}/"),
    };
    format!("apiVersion: {group}v1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {spec}\n")
}

mod istio;

/// Each spec must be refused (or produce a warning) with the words beside it.
fn refused(kind: &str, cases: &[(&str, &str)]) {
    for (spec, want) in cases {
        let got = problems(&head(kind, spec));
        assert!(got.iter().any(|problem| problem.contains(want)), "{spec}\n got: {got:#?}\nwant: {want}");
    }
}

#[test]
fn metadata_that_kubernetes_writes_is_accepted() {
    let text = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  annotations: {a: b}
  creationTimestamp: '2026-01-31T12:00:00Z'
  generation: 3
  labels: {a: b}
  managedFields: [{manager: kubectl}]
  name: order
  namespace: shop
  resourceVersion: '77'
  uid: 1-2
spec: {host: order}
status: {whatever: 1}
---
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: p, creationTimestamp: null}
";
    let parsed = parse("f.yaml", text);
    assert_eq!(parsed.problems, []);
    let [rule, auth] = &parsed.documents[..] else { panic!() };
    assert_eq!((rule.reference(), rule.created, rule.line), ("DestinationRule/shop/order".into(), 1_769_860_800, 1));
    assert_eq!((auth.reference(), auth.created, auth.line), ("PeerAuthentication/default/p".into(), 0, 16));
    assert!(auth.yaml.starts_with("apiVersion: security"));
}

#[test]
fn kinds_and_versions() {
    let text = |version: &str, kind: &str| {
        format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{host: a}}\n")
    };
    for (version, kind, want) in [
        ("networking.istio.io/v1alpha3", "DestinationRule", ""),
        (
            "networking.istio.io/v2",
            "DestinationRule",
            "1:13: error: unknown `apiVersion: networking.istio.io/v2` of DestinationRule; known are networking.istio.io/v1, networking.istio.io/v1beta1, networking.istio.io/v1alpha3",
        ),
        ("security.istio.io/v1", "AuthorizationPolicy", "2:7: error: kind AuthorizationPolicy is not supported yet"),
        (
            "networking.istio.io/v1",
            "DestinationRules",
            "2:7: error: unknown kind `DestinationRules`, did you mean `DestinationRule`?",
        ),
        ("security.istio.io/v1", "DestinationRule", "its group is networking.istio.io"),
        (
            "gateway.networking.k8s.io/v1",
            "UDPRoute",
            "2:7: error: kind UDPRoute of Kubernetes' Gateway API (gateway.networking.k8s.io) is not supported yet",
        ),
        ("gateway.networking.k8s.io/v3", "Gateway", "known are gateway.networking.k8s.io/v1, "),
        ("gateway.networking.x-k8s.io/v1alpha1", "XBackendTrafficPolicy", "2:7: error: kind XBackendTrafficPolicy"),
        ("multicluster.x-k8s.io/v1alpha1", "ServiceImport", "2:7: error: kind ServiceImport of multicluster.x-k8s.io"),
        ("apps/v1", "Deployment", "2:7: warning: kind Deployment of apps/v1 does not concern the mesh: skipped"),
        ("v1", "ConfigMap", "2:7: warning: kind ConfigMap of v1"),
        ("serving.knative.dev/v1", "Service", "warning: kind Service of serving.knative.dev/v1"),
        ("v1", "List", "2:7: error: kind List is not supported"),
    ] {
        let got = problems(&text(version, kind));
        assert_eq!(got.len(), usize::from(!want.is_empty()), "{version} {kind}: {got:?}");
        assert!(got.iter().all(|problem| problem.contains(want)), "{got:?}\nwant: {want}");
    }
}

#[test]
fn texts_that_are_not_documents_are_refused() {
    for (text, want) in [
        ("just text\n", "f.yaml:1:1: error: a document must be a map"),
        ("kind: Service\n", "f.yaml:1:1: error: `apiVersion` is required"),
        ("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nspec: {host: a}\n", "`metadata.name` is required"),
        ("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\n", "`spec` is required"),
        (
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, nmaespace: b}\nspec: {host: a}\n",
            "f.yaml:3:21: error: unknown field `nmaespace`, did you mean `namespace`?",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: A_b}\nspec: {host: a}\n",
            "`A_b` is not a name",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspecs: {host: a}\n",
            "unknown field `specs`, did you mean `spec`?",
        ),
        ("a: [1\nb: 2\n", "error: not YAML"),
    ] {
        let got = problems(text);
        assert!(got.iter().any(|problem| problem.contains(want)), "{text}\n got: {got:#?}\nwant: {want}");
    }
    assert_eq!(parse("f.yaml", "").problems, []);
    assert_eq!(parse("f.yaml", "---\n---\n# nothing\n").problems, []);
}

#[test]
fn service_entries() {
    let Object::ServiceEntry(entry) = object(
        "ServiceEntry",
        "{hosts: [API.example.com.], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 443, name: https}, {number: 80, name: x, protocol: grpc}], endpoints: [{address: '::1', weight: 2}]}",
    ) else {
        panic!()
    };
    assert_eq!(
        (entry.hosts, entry.external, entry.resolution),
        (vec!["api.example.com".to_owned()], false, Resolution::Static)
    );
    let ports: Vec<_> = entry.ports.iter().map(|port| (port.number, port.protocol)).collect();
    assert_eq!(ports, [(80, Protocol::Grpc), (443, Protocol::Tls)]);
    let ports = "ports: [{number: 80, name: http}]";
    let unix = "endpoints: [{address: 'unix:///run/a.sock'}, {address: 'unix://@b'}]";
    let read = object("ServiceEntry", &format!("{{hosts: [a.test], resolution: STATIC, {ports}, {unix}}}"));
    assert!(matches!(read, Object::ServiceEntry(entry) if entry.endpoints.iter().all(|one| one.is_unix())));
    for (what, text) in [
        (format!("resolution: DNS, {ports}, {unix}"), "`unix:///run/a.sock` needs `resolution: STATIC`"),
        (
            format!("resolution: STATIC, ports: [{{number: 80, name: a}}, {{number: 81, name: b}}], {unix}"),
            "needs exactly one port",
        ),
        (
            format!("resolution: STATIC, {ports}, endpoints: [{{address: 'unix://run/a.sock'}}]"),
            "must be the absolute path",
        ),
        (format!("resolution: STATIC, {ports}, endpoints: [{{address: 'unix:///run/'}}]"), "must be the absolute path"),
        (format!("resolution: STATIC, {ports}, endpoints: [{{address: 'unix://@'}}]"), "needs a name after `@`"),
        (
            format!("resolution: STATIC, {ports}, endpoints: [{{address: 'unix:///{}'}}]", "a".repeat(107)),
            "107 bytes at most",
        ),
        (
            format!("resolution: STATIC, {ports}, endpoints: [{{address: 'unix:///a', ports: {{http: 1}}}}]"),
            "has no ports",
        ),
    ] {
        refused("ServiceEntry", &[(&format!("{{hosts: [a.test], {what}}}"), text)]);
    }
    refused(
        "ServiceEntry",
        &[
            ("{ports: []}", "`hosts` is required"),
            ("{hosts: [a]}", "`ports` must name at least one port"),
            (&format!("{{hosts: ['*'], {ports}}}"), "`*` is not a host name"),
            (
                &format!("{{hosts: [a], resolution: DYNAMIC_DNS, {ports}}}"),
                "`resolution: DYNAMIC_DNS` is for wildcards such as `*.a`: for `a` use DNS",
            ),
            (
                &format!("{{hosts: ['*.a.com'], resolution: DYNAMIC_DNS, endpoints: [{{address: b.c}}], {ports}}}"),
                "`resolution: DYNAMIC_DNS` has no endpoints: each request names its own",
            ),
            (
                &format!(
                    "{{hosts: ['*.a.com'], resolution: DYNAMIC_DNS, workloadSelector: {{labels: {{a: b}}}}, {ports}}}"
                ),
                "`resolution: DYNAMIC_DNS` has no endpoints: each request names its own",
            ),
            (
                &format!("{{hosts: ['*.a.com'], addresses: [10.0.0.0/8], resolution: DYNAMIC_DNS, {ports}}}"),
                "a CIDR range needs",
            ),
            (&format!("{{hosts: ['*.a.com'], resolution: DNS, {ports}}}"), "cannot be resolved"),
            (
                &format!(
                    "{{hosts: [a], resolution: DNS_ROUND_ROBIN, endpoints: [{{address: a.b}}, {{address: a.c}}], {ports}}}"
                ),
                "`resolution: DNS_ROUND_ROBIN` has one endpoint at most",
            ),
            (&format!("{{hosts: [a], addresses: [10.0.0.0/33], {ports}}}"), "neither an IP address nor a CIDR range"),
            (&format!("{{hosts: [a], addresses: [10.0.0.0/8], resolution: DNS, {ports}}}"), "a CIDR range needs"),
            (
                &format!("{{hosts: [a], endpoints: [{{address: 1.1.1.1}}], {ports}}}"),
                "`endpoints` need `resolution` STATIC or DNS",
            ),
            (
                &format!("{{hosts: [a], resolution: STATIC, endpoints: [{{address: b}}], {ports}}}"),
                "must be an IP address",
            ),
            (&format!("{{hosts: [a], resolution: STATIC, {ports}}}"), "needs `endpoints` or a `workloadSelector`"),
            (
                &format!(
                    "{{hosts: [a], resolution: STATIC, endpoints: [{{address: 1.1.1.1, ports: {{htp: 1}}}}], {ports}}}"
                ),
                "did you mean `http`?",
            ),
            (
                &format!(
                    "{{hosts: [a], resolution: STATIC, workloadSelector: {{labels: {{a: b}}}}, endpoints: [{{address: 1.1.1.1}}], {ports}}}"
                ),
                "exclude each other",
            ),
            ("{hosts: [a], ports: [{number: 80, name: a}, {number: 80, name: a}]}", "port 80 is given twice"),
            ("{hosts: [a], ports: [{number: 80, name: a, protocol: HTPP}]}", "did you mean `HTTP`?"),
        ],
    );
    refused(
        "WorkloadEntry",
        &[("{}", "`address` is required"), ("{address: a, network: b}", "`network` is not supported: other networks")],
    );
}

#[test]
fn kubernetes_services() {
    let Object::Service(service) = object(
        "Service",
        "{type: ClusterIP, clusterIP: 10.0.0.1, selector: {app: a}, ports: [{name: http, port: 80, targetPort: web}, {name: db, port: 3306, targetPort: 1}, {name: x, port: 5, appProtocol: kubernetes.io/h2c}]}",
    ) else {
        panic!()
    };
    let ports: Vec<_> = service.ports.iter().map(|port| (port.number, port.protocol, port.target.clone())).collect();
    let want = [
        (5, Protocol::Http2, TargetPort::Number(5)),
        (80, Protocol::Http, TargetPort::Name("web".to_owned())),
        (3306, Protocol::Tcp, TargetPort::Number(1)),
    ];
    assert_eq!(ports, want);
    refused(
        "Service",
        &[
            ("{type: ExternalName, ports: [{port: 1}]}", "`externalName` is required"),
            ("{ports: [{port: 1}, {port: 2}]}", "port 1 needs a `name`: only a Service's single port"),
            ("{ports: [{port: 53, protocol: UDP}]}", "warning: port 53 is left out"),
            (
                "{ports: [{port: 80, targetPort: 65536}]}",
                "`ports[0].targetPort` must be a whole number from 1 to 65535",
            ),
            ("{ports: []}", "`ports` must name at least one port"),
        ],
    );
}

#[test]
fn peer_authentications() {
    let spec = "{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}";
    let want = PeerAuthentication {
        selector: [("app".to_owned(), "a".to_owned())].into(),
        mode: Some(MtlsMode::Strict),
        ports: [(8080, Some(MtlsMode::MtlsDisable))].into(),
    };
    assert_eq!(object("PeerAuthentication", spec), Object::PeerAuthentication(want));
    refused(
        "PeerAuthentication",
        &[
            ("{mtls: {mode: strict}}", "unknown value `strict`, did you mean `STRICT`?"),
            ("{portLevelMtls: {80: {mode: STRICT}}}", "`portLevelMtls` needs a `selector`"),
            ("{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: STRICT}}}", "`http` is not a port number"),
        ],
    );
}

#[test]
fn a_mesh_config_in_a_config_map_is_reported() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    a: b\n";
    let got = problems(text);
    assert!(got.len() == 1 && got[0].contains("2:7: warning: the settings in `mesh` are not read"), "{got:?}");
}

/// A valid document to damage.
const WHOLE: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n  http:\n  - match: [{uri: {regex: a.*}, headers: {x: {exact: '1'}}}]\n    route: [{destination: {host: a, port: {number: 80}}, weight: 3}]\n    timeout: 1.5s\n    retries: {attempts: 3, retryOn: '5xx,503'}\n";

proptest! {
    #[test]
    fn no_damage_panics(at in 0..WHOLE.len(), length in 0usize..20, instead in "\\PC{0,6}|[-:{}\\[\\]\n, 0-9.a-z*]{0,6}") {
        let end = (at + length).min(WHOLE.len());
        let text = format!("{}{instead}{}", &WHOLE[..at], &WHOLE[end..]);
        parse("f.yaml", &text);
        for kind in ["DestinationRule", "ServiceEntry", "WorkloadEntry"] {
            parse("f.yaml", &text.replace("VirtualService", kind));
        }
    }
}
