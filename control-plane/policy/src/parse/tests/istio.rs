//! Documents that Istio's validation refuses, and documents that it accepts though they look wrong. Each of the second
//! kind must mean the same as the text beside it.

use super::*;

#[test]
fn refused_as_by_istio() {
    let http = |route: &str| format!("{{hosts: [a], http: [{route}]}}");
    let to_a = "route: [{destination: {host: a}}]";
    for (kind, spec, want) in [
        (
            "VirtualService",
            http("{match: [{uri: {exact: /foo}}], redirect: {prefixRewrite: /bar}}"),
            "`redirect.prefixRewrite` needs a `uri.prefix` to replace, which `match[0]` has not",
        ),
        (
            "VirtualService",
            http("{match: [{uri: {prefix: /}}, {method: {exact: GET}}], redirect: {prefixRewrite: /bar}}"),
            "which `match[1]` has not",
        ),
        ("VirtualService", "{http: [{delegate: {name: x}}]}".into(), "a delegate does not delegate itself"),
        ("VirtualService", http(&format!("{{match: [{{uri: {{regex: ''}}}}], {to_a}}}")), "an empty regex"),
        ("VirtualService", http(&format!("{{match: [{{withoutHeaders: {{a: {{regex: ''}}}}}}], {to_a}}}")), "an empty regex"),
        ("VirtualService", http(&format!("{{match: [{{headers: {{x-a: null}}}}], {to_a}}}")), "`http[0].match[0].headers.x-a` must be a map, not null"),
        ("VirtualService", http(&format!("{{match: [{{queryParams: {{a: null}}}}], {to_a}}}")), "must be a map, not null"),
        ("VirtualService", http("{route: [null]}"), "`http[0].route[0]` must be a map, not null"),
        ("VirtualService", http(&format!("{{corsPolicy: {{allowMethods: [GET, PUTT]}}, {to_a}}}")), "`PUTT` is not a method that browsers ask for, did you mean `PUT`?"),
        ("VirtualService", http(&format!("{{corsPolicy: {{allowOrigins: [{{}}]}}, {to_a}}}")), "needs a non-empty `exact`"),
        ("VirtualService", http(&format!("{{corsPolicy: {{allowOrigins: [{{exact: ''}}]}}, {to_a}}}")), "needs a non-empty `exact`"),
        ("VirtualService", http(&format!("{{retries: {{attempts: 0, retryRemoteLocalities: false}}, {to_a}}}")), "`retryRemoteLocalities` has no effect"),
        ("VirtualService", http("{route: [{destination: {host: a, subset: V1}}]}"), "subset name `V1` must be lower-case"),
        ("VirtualService", http(&format!("{{match: [{{sourceNamespace: A}}], {to_a}}}")), "namespace `A` must be lower-case"),
        ("VirtualService", http(&format!("{{match: [{{sourceLabels: {{a@: b}}}}], {to_a}}}")), "`a@` is not a label's name"),
        ("VirtualService", http("{redirect: {uri: \"\", redirectCode: 302}}"), "`redirect` needs"),
        ("VirtualService", http(&format!("{{rewrite: {{uri: \"\"}}, {to_a}}}")), "`rewrite` needs"),
        ("ServiceEntry", "{hosts: ['*.a.example'], ports: [{number: 5432, name: tcp, protocol: TCP}], resolution: DYNAMIC_DNS}".into(), "port 5432 is TCP"),
        ("ServiceEntry", "{hosts: ['*.a.example'], addresses: [10.0.0.1], ports: [{number: 80, name: http}], resolution: DYNAMIC_DNS}".into(), "DYNAMIC_DNS` has no addresses"),
        ("ServiceEntry", "{hosts: [a.example], ports: [{number: 80, name: 'a@b'}], resolution: DNS}".into(), "port name `a@b` must be"),
        ("ServiceEntry", format!("{{hosts: [a.example], ports: [{{number: 80, name: {}}}], resolution: DNS}}", "a".repeat(64)), "at most 63"),
        ("ServiceEntry", "{hosts: [a.b], ports: [{number: 80, name: http}], workloadSelector: {labels: {'a b': c}}}".into(), "is not a label's name"),
        ("WorkloadEntry", "{address: 10.0.0.1, ports: {HTTP: 80}}".into(), "port name `HTTP` must be"),
        ("WorkloadEntry", "{address: 10.0.0.1, labels: {a: '-'}}".into(), "`labels.a` must be letters"),
        ("WorkloadGroup", "{template: {}, probe: {httpGet: {port: 1, httpHeaders: [{name: '**'}]}}}".into(), "`**` is not a header name"),
        ("DestinationRule", "{host: a, exportTo: [., default]}".into(), "`.` and `default` are the same namespace"),
        ("DestinationRule", "{host: a, subsets: [{name: v1, labels: {'a/b/c': d}}]}".into(), "is not a label's name"),
        ("DestinationRule", "{host: a, workloadSelector: {matchLabels: {a: 'b c'}}}".into(), "`workloadSelector.matchLabels.a` must be"),
        ("Sidecar", "{}".into(), "a Sidecar needs at least one of `egress`"),
        ("Sidecar", "{workloadSelector: {labels: {a: b}}}".into(), "a Sidecar needs at least one of `egress`"),
        ("Sidecar", "{egress: [{hosts: [./foo]}]}".into(), "is a short name, which is not allowed"),
        ("Sidecar", "{egress: [{hosts: ['./*-foo.example']}]}".into(), "`*-foo.example` stands for a part of a label"),
        ("Gateway", "{servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: ['*foo.example']}]}".into(), "`*foo.example` stands for a part of a label"),
        ("DestinationRule", "{host: 'f*.example'}".into(), "`f*.example` is not a host name"),
        ("DestinationRule", "{host: '**.example'}".into(), "`**.example` is not a host name"),
        ("DestinationRule", "{host: 'a.*.example'}".into(), "`a.*.example` is not a host name"),
        ("VirtualService", http("{route: [{destination: {host: '*'}}]}"), "`*` is not a host name to send requests to"),
        ("PeerAuthentication", "{selector: {matchLabels: {a: b}}, portLevelMtls: {}}".into(), "must have at least one port"),
        ("PeerAuthentication", "{selector: {matchLabels: {'*': b}}}".into(), "is not a label's name"),
        ("Gateway", "{servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: [foo]}]}".into(), "is a short name, which is not allowed"),
        ("Gateway", "{servers: [{port: {number: 80, protocol: HTTP}, hosts: [a.b]}]}".into(), "`servers[0].port.name` is required"),
        ("Gateway", "{servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: [a.b]}, {port: {number: 81, name: a, protocol: HTTP}, hosts: [a.b]}]}".into(), "port name `a` is given twice"),
        ("Gateway", "{servers: [{port: {number: 80, name: a, protocol: HTTPS}, hosts: [a.b], tls: {mode: SIMPLE, credentialName: c, serverCertificate: a, privateKey: b}}]}".into(), "`serverCertificate` and `credentialName` exclude each other"),
    ] {
        refused(kind, &[(&spec, want)]);
    }
    let dotted = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a.b}\nspec: {servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: [a.b]}]}\n";
    assert!(problems(dotted)[0].contains("the name of a Gateway must be"), "{:?}", problems(dotted));
}

#[test]
fn wildcards_within_a_label() {
    for host in ["*foo.example", "*-foo.example", "*foo", "*-foo.a.example"] {
        let routes = "http: [{route: [{destination: {host: a.example}}]}]";
        let names = format!("[{{match: [{{sniHosts: ['{host}']}}], route: [{{destination: {{host: a.example}}}}]}}]");
        for (kind, spec) in [
            ("DestinationRule", format!("{{host: '{host}'}}")),
            ("VirtualService", format!("{{hosts: ['{host}'], {routes}}}")),
            ("VirtualService", format!("{{hosts: ['{host}'], gateways: [g], {routes}}}")),
            ("VirtualService", format!("{{hosts: ['{host}'], tls: {names}}}")),
            (
                "VirtualService",
                format!("{{hosts: [a.example], http: [{{route: [{{destination: {{host: '{host}'}}}}]}}]}}"),
            ),
            ("ServiceEntry", format!("{{hosts: ['{host}'], ports: [{{number: 80, name: http}}]}}")),
        ] {
            object(kind, &spec);
        }
    }
    refused(
        "VirtualService",
        &[("{hosts: ['*-foo.example', a-foo.example], http: [{directResponse: {status: 200}}]}", "overlap")],
    );
}

#[test]
fn an_empty_value_equals_an_absent_one() {
    let redirect = |fields: &str| format!("{{hosts: [a], http: [{{redirect: {{{fields}}}}}]}}");
    let entry =
        |port: &str| format!("{{hosts: [a.example], ports: [{{number: 90, name: auto{port}}}], resolution: DNS}}");
    let rule = |fields: &str| format!("{{host: a{fields}}}");
    for (kind, written, plain) in [
        ("VirtualService", redirect("uri: '', redirectCode: 0, authority: b, prefixRewrite: ''"), redirect("authority: b")),
        ("VirtualService", "{hosts: [a], gateways: [], exportTo: [], tls: [], tcp: [], http: [{name: '', timeout: null, match: [], route: [{destination: {host: a, subset: ''}, weight: 0}]}]}".into(), "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}".into()),
        ("VirtualService", "{hosts: [a], http: [{match: [{port: 0, sourceNamespace: '', sourceLabels: {}}], route: [{destination: {host: a}}]}]}".into(), "{hosts: [a], http: [{match: [{}], route: [{destination: {host: a}}]}]}".into()),
        ("ServiceEntry", entry(", protocol: '', targetPort: 0"), entry("")),
        ("DestinationRule", rule(", exportTo: [], subsets: []"), rule("")),
        ("DestinationRule", rule(", trafficPolicy: {connectionPool: {tcp: {maxConnections: 0}}, portLevelSettings: []}"), rule(", trafficPolicy: {connectionPool: {tcp: {}}}")),
        ("DestinationRule", rule(", trafficPolicy: {tls: {mode: SIMPLE, clientCertificate: '', credentialName: '', subjectAltNames: []}}"), rule(", trafficPolicy: {tls: {mode: SIMPLE}}")),
        ("Service", "{clusterIP: '', selector: {}, ports: [{port: 80, name: '', targetPort: 0, appProtocol: '', protocol: ''}]}".into(), "{ports: [{port: 80}]}".into()),
    ] {
        // Places apart, which differ.
        let shown = |spec: &str| {
            let text = format!("{:?}", object(kind, spec));
            let mut plain = String::new();
            let mut rest = text.as_str();
            while let Some((before, after)) = rest.split_once("place: Place {") {
                plain.push_str(before);
                rest = after.split_once('}').unwrap().1;
            }
            plain + rest
        };
        assert_eq!(shown(&written), shown(&plain), "{written}");
    }
    // If Istio's field has presence, zero is a value.
    let detection = "{host: a, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 0}}}";
    let Object::DestinationRule(rule) = object("DestinationRule", detection) else { panic!() };
    let detection = rule.traffic_policy.unwrap().settings.outlier_detection.unwrap();
    assert_eq!(detection.consecutive_5xx_errors, Some(0));
}

#[test]
fn names_of_objects_up_to_253_characters() {
    let document = |name: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}}}\nspec: {{host: a}}\n"
        )
    };
    assert_eq!(problems(&document(&"a".repeat(253))), [""; 0]);
    assert!(problems(&document(&"a".repeat(254)))[0].contains("is not a name"));
    assert!(problems(&document("a..b"))[0].contains("is not a name"));
}
