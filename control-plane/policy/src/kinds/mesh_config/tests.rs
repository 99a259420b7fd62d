use super::*;
use crate::{Kind, Parsed, check, parse};

const HEAD: &str = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\n";

fn config(text: &str) -> Parsed {
    parse("f.yaml", &format!("{HEAD}spec: {{meshConfig: {text}}}\n"))
}

fn problem_lines(parsed: &Parsed) -> Vec<String> {
    parsed.problems.iter().map(ToString::to_string).collect()
}

fn decoded(text: &str) -> MeshConfig {
    let parsed = config(text);
    assert_eq!(problem_lines(&parsed), Vec::<String>::new(), "{text}");
    of(&parsed.documents[0]).unwrap().clone()
}

#[test]
fn traffic_settings_of_a_mesh_config_are_decoded() {
    let config = decoded(
        "{defaultTrafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}, outlierDetection: {interval: 2s}}, \
         outboundTrafficPolicy: {mode: REGISTRY_ONLY}, localityLbSetting: {enabled: false}, connectTimeout: 3s, \
         tcpKeepalive: {time: 60s}, h2UpgradePolicy: UPGRADE, defaultHttpRetryPolicy: {attempts: 5, retryOn: 5xx}, \
         defaultServiceExportTo: [.], defaultVirtualServiceExportTo: ['*'], defaultDestinationRuleExportTo: [a, b], \
         enableAutoMtls: false, trustDomain: cluster.local, rootNamespace: weft-system, \
         pathNormalization: {normalization: BASE}, inboundTrafficPolicy: {mode: PASSTHROUGH}, defaultConfig: {}}",
    );
    assert_eq!(config.connection_pool.unwrap().max_connections, 7);
    assert_eq!(config.outlier_detection.unwrap().interval_ms, 2000);
    assert_eq!((config.connect_timeout_ms, config.tcp_keepalive.unwrap().time_s), (3000, 60));
    assert_eq!((config.outbound, config.h2_upgrade), (v1::OutboundPolicy::RegistryOnly, v1::H2Upgrade::Upgrade));
    assert!(config.locality.unwrap().disabled && config.no_auto_mtls);
    assert_eq!(config.retry.unwrap().attempts, 5);
    assert!(config.service_export.is_private() && config.virtual_service_export.is_public());
    assert!(config.virtual_service_export.is_written());
    assert_eq!(config.destination_rule_export.namespaces().unwrap().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(config.trust_domain.as_deref(), Some("cluster.local"));
    assert_eq!(decoded("{}"), MeshConfig::default());
    assert_eq!(decoded("{h2UpgradePolicy: DO_NOT_UPGRADE, enableAutoMtls: true}"), MeshConfig::default());
}

#[test]
fn unsupported_mesh_config_is_refused() {
    for (text, want) in [
        ("{connectTimeoutt: 1s}", "error: unknown field `connectTimeoutt`, did you mean `connectTimeout`?"),
        ("{accesLogFile: /dev/stdout}", "error: unknown field `accesLogFile`, did you mean `accessLogFile`?"),
        ("{meshMTLS: {}}", "error: `meshConfig.meshMTLS` is not supported yet"),
        ("{proxyListenPort: 15001}", "error: `meshConfig.proxyListenPort` is not supported: it is set on the command"),
        (
            "{defaultConfig: {terminationDrainDuration: soon}}",
            "`meshConfig.defaultConfig.terminationDrainDuration`: \"soon\" ",
        ),
        ("{defaultConfig: {gatewayTopology: {}}}", "`meshConfig.defaultConfig.gatewayTopology` is not supported yet"),
        (
            "{rootNamespace: istio-config}",
            "error: `rootNamespace` is weft-system here, or istio-system, not `istio-config`",
        ),
        ("{outboundTrafficPolicy: {}}", "error: `meshConfig.outboundTrafficPolicy.mode` is required"),
        ("{outboundTrafficPolicy: {mode: ALLOW}}", "unknown value `ALLOW`"),
        ("{h2UpgradePolicy: DEFAULT}", "`meshConfig.h2UpgradePolicy`: unknown value `DEFAULT`"),
        ("{connectTimeout: 0s}", "must be at least 1ms"),
        ("{defaultTrafficPolicy: {}}", "`meshConfig.defaultTrafficPolicy` must have at least one field"),
        (
            "{defaultTrafficPolicy: {tls: {mode: DISABLE}}}",
            "`meshConfig.defaultTrafficPolicy.tls` is not supported: a default policy",
        ),
        ("{defaultTrafficPolicy: {connectionPool: {tcp: {maxConnection: 1}}}}", "did you mean `maxConnections`?"),
        ("{defaultHttpRetryPolicy: {attempts: 1, retryOn: 6xx}}", "unknown condition `6xx`"),
        ("{defaultServiceExportTo: ['*', a]}", "`*` stands alone in `defaultServiceExportTo`"),
        ("{pathNormalization: {normalization: MERGE_SLASHES}}", "MERGE_SLASHES` is not supported yet: it is BASE here"),
        ("{inboundTrafficPolicy: {mode: LOCALHOST}}", "LOCALHOST` is not supported yet: it is PASSTHROUGH here"),
        ("{localityLbSetting: {distribute: [{from: a, to: {b: 99}}]}}", "the weights must add up to 100"),
    ] {
        let parsed = config(text);
        assert!(parsed.has_errors() && parsed.documents.is_empty(), "{text}");
        assert!(
            problem_lines(&parsed).iter().any(|problem| problem.contains(want)),
            "{text}\n{:#?}\n{want}",
            problem_lines(&parsed)
        );
    }
}

#[test]
fn installation_fields_are_skipped() {
    let text = "spec:
  profile: default
  hub: docker.io/istio
  components: {pilot: {k8s: {replicaCount: 2}}}
  values: {global: {proxy: {privileged: true}}}
  meshConfig:
    accessLogFile: /dev/stdout
    defaultConfig: {holdApplicationUntilProxyStarts: true}
    connectTimeout: 1s
";
    let parsed = parse("f.yaml", &format!("{HEAD}{text}"));
    let skipped = |line: u32, column: u32, path: &str| {
        format!("f.yaml:{line}:{column}: warning: `{path}` does not concern the traffic: skipped")
    };
    let want = [
        skipped(4, 3, "profile"),
        skipped(5, 3, "hub"),
        skipped(6, 3, "components"),
        skipped(7, 11, "values"),
        skipped(9, 5, "meshConfig.accessLogFile"),
        skipped(10, 21, "meshConfig.defaultConfig.holdApplicationUntilProxyStarts"),
    ];
    assert_eq!(problem_lines(&parsed), want);
    assert_eq!(of(&parsed.documents[0]).unwrap().connect_timeout_ms, 1000);
    let hidden = parse("f.yaml", &format!("{HEAD}spec: {{values: {{meshConfig: {{connectTimeout: 1s}}}}}}\n"));
    assert_eq!(problem_lines(&hidden), ["f.yaml:3:17: error: write `values.meshConfig` as `meshConfig` of `spec`"]);
    // Without settings of the mesh, a document does not compete with one that has some.
    for spec in ["", "spec: {}\n", "spec: {profile: demo}\n"] {
        let parsed = parse("f.yaml", &format!("{HEAD}{spec}"));
        assert!(!parsed.has_errors() && of(&parsed.documents[0]).is_none(), "{spec}");
    }
}

#[test]
fn mesh_config_belongs_to_the_root_namespace() {
    for (metadata, reference, counts) in [
        ("", "IstioOperator/weft-system/mesh", true),
        ("metadata: {name: a}\n", "IstioOperator/weft-system/a", true),
        ("metadata: {namespace: istio-system}\n", "IstioOperator/istio-system/mesh", true),
        ("metadata: {namespace: weft-system, name: a}\n", "IstioOperator/weft-system/a", true),
        ("metadata: {namespace: shop, name: a}\n", "IstioOperator/shop/a", false),
    ] {
        let parsed = parse("f.yaml", &format!("{HEAD}{metadata}spec: {{meshConfig: {{connectTimeout: 1s}}}}\n"));
        let [document] = &parsed.documents[..] else { panic!("{:?}", problem_lines(&parsed)) };
        assert_eq!((&*document.reference(), of(document).is_some()), (reference, counts));
        assert_eq!(problem_lines(&parsed).iter().any(|problem| problem.contains("no effect on the mesh")), !counts);
    }
}

#[test]
fn the_oldest_mesh_config_applies_and_others_are_reported() {
    let one = |name: &str, created: &str, timeout: u32| {
        format!(
            "{HEAD}metadata: {{name: {name}, namespace: istio-system, creationTimestamp: '{created}'}}\n\
             spec: {{meshConfig: {{connectTimeout: {timeout}s}}}}\n---\n"
        )
    };
    let gateways = format!("{HEAD}metadata: {{name: 0}}\nspec: {{}}\n---\n");
    let parsed =
        parse("f.yaml", &(gateways + &one("a", "2026-02-01T00:00:00Z", 1) + &one("b", "2026-01-01T00:00:00Z", 2)));
    let (document, config) = in_force(parsed.documents.iter()).unwrap();
    assert_eq!((&*document.name, config.connect_timeout_ms), ("b", 2000));
    let problems: Vec<String> =
        check(&parsed.documents.iter().collect::<Vec<_>>()).iter().map(ToString::to_string).collect();
    let text = "f.yaml:9:20: warning: IstioOperator/istio-system/b is older and has the settings of the mesh: this one is \
                ignored";
    assert_eq!(problems, [text]);
}

#[test]
fn a_trust_domain_other_than_the_meshs_is_an_error() {
    assert_eq!(problem_lines(&config("{trustDomain: a.example}").of_mesh("a.example")), Vec::<String>::new());
    let parsed = config("{trustDomain: a.example}").of_mesh("b.example");
    assert!(parsed.has_errors());
    assert_eq!(
        problem_lines(&parsed),
        ["f.yaml:3:34: error: `trustDomain` is b.example here, not `a.example`: leave it out"]
    );
}

#[test]
fn documents_without_export_to_get_the_meshs() {
    let policy = |kind: &str, name: &str, spec: &str| {
        format!("---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n")
    };
    let service = |name: &str, annotations: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {annotations}}}\n\
             spec: {{ports: [{{port: 80}}]}}\n"
        )
    };
    let mesh = "spec: {meshConfig: {defaultServiceExportTo: [a], defaultVirtualServiceExportTo: [b], \
                defaultDestinationRuleExportTo: [c]}}\n";
    let text = format!("{HEAD}{mesh}")
        + &policy("DestinationRule", "rule", "{host: x}")
        + &policy("DestinationRule", "open", "{host: x, exportTo: ['*']}")
        + &policy("VirtualService", "route", "{hosts: [x], http: [{route: [{destination: {host: x}}]}]}")
        + &policy("ServiceEntry", "entry", "{hosts: [x.test], ports: [{number: 80, name: http}]}")
        + &service("kube", "{}")
        + &service("shown", "{networking.istio.io/exportTo: 'd, e'}");
    let parsed = parse("f.yaml", &text);
    assert_eq!(problem_lines(&parsed), Vec::<String>::new());
    let found = exported(&parsed.documents.iter().collect::<Vec<_>>());
    let of = |name: &str| {
        let document = found.iter().find(|document| document.name == name && document.kind() != Kind::IstioOperator);
        let export = document.unwrap().object.export().unwrap();
        export.namespaces().map(|namespaces| namespaces.collect::<Vec<_>>().join(" ")).unwrap_or("*".to_owned())
    };
    for (name, want) in [("rule", "c"), ("open", "*"), ("route", "b"), ("entry", "a"), ("kube", "a"), ("shown", "d e")]
    {
        assert_eq!(of(name), want, "{name}");
    }
}
