use super::*;
use crate::parse;

mod analysis;

fn check_texts(texts: &[String]) -> Vec<String> {
    let parsed = parse("f.yaml", &texts.join("---\n"));
    assert!(!parsed.has_errors(), "{:#?}", parsed.problems);
    check(&parsed.documents.iter().collect::<Vec<_>>()).iter().map(ToString::to_string).collect()
}

fn doc(kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn route_to(subset: &str) -> String {
    doc(
        "VirtualService",
        "v",
        &format!("{{hosts: [a], http: [{{route: [{{destination: {{host: a, subset: {subset}}}}}]}}]}}"),
    )
}

#[test]
fn undefined_subsets_are_reported() {
    let rule = doc("DestinationRule", "r", "{host: a, subsets: [{name: v1}, {name: v2}]}");
    let got = check_texts(&[rule.clone(), route_to("v3")]);
    let want = "error: the DestinationRule of `a.default.svc.cluster.local` has no subset `v3`; it has v1, v2";
    assert!(got.len() == 1 && got[0].starts_with("f.yaml:9:") && got[0].ends_with(want), "{got:?}");
    assert_eq!(check_texts(&[rule, route_to("v1")]), Vec::<String>::new());
    let got = check_texts(&[route_to("v1")]);
    assert!(got.len() == 1 && got[0].contains("warning: subset `v1`: no DestinationRule"), "{got:?}");
    let wild = doc("DestinationRule", "r", "{host: '*.default.svc.cluster.local', subsets: [{name: v1}]}");
    assert_eq!(check_texts(&[wild, route_to("v1")]), Vec::<String>::new());
}

#[test]
fn duplicate_objects_and_younger_owners_are_reported() {
    let rule = doc("DestinationRule", "r", "{host: a}");
    assert_eq!(
        check_texts(&[rule.clone(), rule]),
        ["f.yaml:6:1: error: DestinationRule/default/r is defined already at f.yaml:1"]
    );
    let service = |name: &str| doc("VirtualService", name, "{hosts: [a], http: [{redirect: {uri: /}}]}");
    let got = check_texts(&[service("b"), service("a")]);
    assert_eq!(
        got,
        [
            "f.yaml:4:16: warning: VirtualService/default/a is older and owns host `a.default.svc.cluster.local`: this one has no effect on it"
        ]
    );
}

#[test]
fn ignored_parts_of_rules_are_reported() {
    let rule = |name: &str| {
        doc("DestinationRule", name, "{host: a, trafficPolicy: {tls: {mode: DISABLE}}, subsets: [{name: v1}]}")
    };
    let got = check_texts(&[rule("a"), rule("b")]);
    assert!(got.len() == 2 && got[1].contains("f.yaml:9:73: warning: subset `v1` is ignored"), "{got:?}");
    assert!(got[0].contains("f.yaml:9:32: warning: `trafficPolicy` is ignored: DestinationRule/default/a"), "{got:?}");
    let selecting = |name: &str| {
        let spec = format!(
            "{{host: a, workloadSelector: {{matchLabels: {{app: {name}}}}}, trafficPolicy: {{tls: {{mode: DISABLE}}}}}}"
        );
        doc("DestinationRule", name, &spec)
    };
    assert_eq!(check_texts(&[selecting("a"), selecting("b"), rule("c")]), [""; 0], "each is for other callers");
}

#[test]
fn subsets_of_more_specific_rules() {
    let wide = doc("DestinationRule", "w", "{host: '*.default.svc.cluster.local', subsets: [{name: v1}]}");
    let narrow = doc("DestinationRule", "n", "{host: a}");
    let got = check_texts(&[wide.clone(), narrow, route_to("v1")]);
    assert!(got.len() == 1 && got[0].contains("error: the DestinationRule of `a.default.svc"), "{got:?}");
    let elsewhere = doc("DestinationRule", "n, namespace: other", "{host: a.default.svc.cluster.local}");
    assert_eq!(
        check_texts(&[wide, elsewhere, route_to("v1")]),
        [""; 0],
        "callers of the namespace default have the wide one"
    );
    let bytes = doc(
        "VirtualService",
        "t",
        "{hosts: [x.y], gateways: [g], tcp: [{route: [{destination: {host: a, subset: v9}}]}]}",
    );
    let rule = doc("DestinationRule", "r", "{host: a, subsets: [{name: v1}]}");
    let got = check_texts(&[rule, bytes]);
    assert!(
        got.len() == 1 && got[0].starts_with("f.yaml:9:84: error: ") && got[0].ends_with("no subset `v9`; it has v1"),
        "{got:?}"
    );
}

#[test]
fn undeclared_ports_are_reported() {
    let entry =
        doc("ServiceEntry", "e", "{hosts: [e.x, '*.e.x'], ports: [{number: 443, name: tls}], resolution: NONE}");
    let service = doc("Service", "a", "{ports: [{port: 80}]}").replace("networking.istio.io/", "");
    let to = |host: &str, port: u32| {
        doc(
            "VirtualService",
            "v",
            &format!(
                "{{hosts: [v], http: [{{route: [{{destination: {{host: {host}, port: {{number: {port}}}}}}}]}}]}}"
            ),
        )
    };
    let all = [entry, service];
    for (host, port, wrong) in [
        ("a", 80, None),
        ("a", 81, Some("error: Service/default/a has no port 81; it has 80")),
        ("www.e.x", 443, None),
        ("e.x", 80, Some("error: ServiceEntry/default/e has no port 80; it has 443")),
        ("registered", 9, None),
    ] {
        let got = check_texts(&[&all[..], &[to(host, port)]].concat());
        assert_eq!(got.len(), usize::from(wrong.is_some()), "{got:?}");
        assert!(wrong.is_none_or(|wrong| got[0].ends_with(wrong)), "{got:?}");
    }
    let rule = doc(
        "DestinationRule",
        "r",
        "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 8080}, tls: {mode: DISABLE}}]}}",
    );
    let got = check_texts(&[&all[..], &[rule]].concat());
    assert!(got.len() == 1 && got[0].contains("warning: Service/default/a has no port 8080"), "{got:?}");
}

#[test]
fn owners_are_compared_per_audience() {
    let service = |name: &str, export: &str| {
        doc(
            "VirtualService",
            name,
            &format!("{{hosts: [a.b], exportTo: [{export}], http: [{{redirect: {{uri: /}}}}]}}"),
        )
    };
    for (one, other, wrong) in [
        ("'*'", "'*'", Some("no effect on it")),
        ("'*'", "x", None),
        ("'.'", "'*'", None),
        ("'.'", "'.'", Some("no effect on it")),
        ("x", "y", None),
        ("'~'", "'~'", None),
        ("x", "y, x", Some("no effect on it for clients of namespace `x`")),
        ("x, y", "x, y", Some("no effect on it")),
    ] {
        let got = check_texts(&[service("a", one), service("b", other)]);
        assert_eq!(got.len(), usize::from(wrong.is_some()), "{one} {other} {got:?}");
        assert!(wrong.is_none_or(|wrong| got[0].ends_with(wrong)), "{one} {other} {got:?}");
    }
}

#[test]
fn ignored_service_entries_and_authentications_are_reported() {
    let entry =
        |name: &str| doc("ServiceEntry", name, "{hosts: [e.x], ports: [{number: 80, name: http}], resolution: DNS}");
    let older = "f.yaml:9:16: warning: ServiceEntry/default/a is older and defines host `e.x`: ";
    let other = |was: &str, is: &str| check_texts(&[entry("a"), entry("b").replace(was, is)]);
    assert_eq!(other("", ""), [""; 0], "its endpoints are added");
    assert_eq!(other("name: http", "name: web"), [older.to_owned() + "port 80 of this one is ignored"]);
    assert_eq!(
        other("resolution: DNS", "resolution: NONE"),
        [older.to_owned() + "this one, with another `resolution` or `location`, does not"]
    );
    let elsewhere = other("metadata: {name: b", "metadata: {namespace: x, name: b");
    let text = "f.yaml:9:16: warning: ServiceEntry/default/a is older and defines host `e.x` too: of the clients that see both \
                only those in namespace `x` have this one";
    assert_eq!(elsewhere, [text]);
    let hidden = |text: String| text.replace("resolution: DNS", "exportTo: [.], resolution: DNS");
    let own = entry("b").replace("metadata: {name: b", "metadata: {namespace: x, name: b");
    assert_eq!(check_texts(&[entry("a"), hidden(own.clone())]), [""; 0], "it is for its own namespace alone");
    assert_eq!(check_texts(&[hidden(entry("a")), own]), [""; 0]);
    let policy = |name: &str, spec: &str| doc("PeerAuthentication", name, spec).replace("networking", "security");
    let strict = policy("a", "{mtls: {mode: STRICT}}");
    let got = check_texts(&[strict.clone(), policy("b", "{mtls: {mode: DISABLE}}")]);
    assert_eq!(
        got,
        ["f.yaml:6:1: warning: PeerAuthentication/default/a is older and for the same workloads: this one is ignored"]
    );
    let plain = doc("DestinationRule", "r", "{host: a, trafficPolicy: {tls: {mode: DISABLE}}}");
    let got = check_texts(&[strict.clone(), plain.clone()]);
    assert!(got.len() == 1 && got[0].starts_with("f.yaml:9:45: warning: callers of `a.default.svc"), "{got:?}");
    let some = policy("b", "{selector: {matchLabels: {app: a}}, mtls: {mode: DISABLE}}");
    assert_eq!(check_texts(&[strict, plain, some]), [""; 0], "whose mode another may be");
}

#[test]
fn unreachable_routes_are_reported() {
    // The second of two matches, and whether the first takes all of its requests.
    for (first, second, never) in [
        ("uri: {prefix: /a}", "uri: {prefix: /a}", true),
        ("uri: {prefix: /a}", "uri: {prefix: /a/b}, method: {exact: GET}", true),
        ("uri: {prefix: /a/b}", "uri: {prefix: /a}", false),
        ("uri: {prefix: /a}", "uri: {exact: /ab}", true),
        ("uri: {prefix: /a}, method: {exact: GET}", "uri: {prefix: /a}", false),
        ("uri: {prefix: /a}, method: {exact: GET}", "uri: {prefix: /a/}, method: {exact: GET}", true),
        ("uri: {exact: /a}", "uri: {prefix: /a}", false),
        ("uri: {prefix: /a}", "uri: {prefix: /A}", false),
        ("uri: {prefix: /a}, ignoreUriCase: true", "uri: {prefix: /A}", true),
        ("uri: {prefix: /a}", "uri: {prefix: /a}, ignoreUriCase: true", false),
        ("uri: {regex: /a.*}", "uri: {regex: /a.*}", true),
        ("uri: {regex: /a.*}", "uri: {prefix: /ab}", false),
        ("headers: {x: {}}", "headers: {X: {exact: '1'}}", true),
        ("headers: {x: {exact: '1'}}", "headers: {x: {}}", false),
        ("headers: {x: {prefix: a}}", "headers: {x: {prefix: ab}, y: {exact: b}}, uri: {exact: /}", true),
        ("withoutHeaders: {x: {exact: a}}", "withoutHeaders: {x: {}}", true),
        ("withoutHeaders: {x: {}}", "withoutHeaders: {x: {exact: a}}", false),
        ("queryParams: {q: {exact: a}}", "queryParams: {q: {exact: a}}, port: 80", true),
        ("port: 80", "uri: {prefix: /a}", false),
        ("sourceLabels: {a: b}", "sourceLabels: {a: b, c: d}", true),
        ("sourceLabels: {a: b, c: d}", "sourceLabels: {a: b}", false),
        ("sourceNamespace: x", "sourceNamespace: y", false),
        ("gateways: [mesh]", "uri: {prefix: /a}", true),
    ] {
        let text = format!(
            "{{hosts: [a], http: [{{match: [{{{first}}}], redirect: {{uri: /}}}}, \n{{match: [{{{second}}}], redirect: {{uri: /}}}}]}}"
        );
        let got = check_texts(&[doc("VirtualService", "v", &text)]);
        let want = "f.yaml:5:1: warning: never reached: the route at line 4 matches all that this does";
        assert_eq!(got, if never { vec![want] } else { vec![] }, "{first} and then {second}");
    }
    let some = "{hosts: [a], http: [{match: [{uri: {prefix: /a}}], redirect: {uri: /}}, {match: [{uri: {exact: /b}}, \n{uri: {exact: /a}}], redirect: {uri: /}}]}";
    let got = check_texts(&[doc("VirtualService", "v", some)]);
    assert_eq!(got, ["f.yaml:5:1: warning: without effect: the route at line 4 matches all that this does"]);
    let of_gateway = "{hosts: [a.b], gateways: [g], http: [{redirect: {uri: /}}, {match: [{uri: {exact: /b}}], redirect: {uri: /}}]}";
    assert_eq!(
        check_texts(&[doc("VirtualService", "v", of_gateway)]),
        [""; 0],
        "gateways move catch-all routes to the end"
    );
    let delegating = "{hosts: [a.b], http: [{delegate: {name: d}}, {match: [{uri: {exact: /b}}], redirect: {uri: /}}]}";
    let leaf = doc("VirtualService", "d", "{http: [{match: [{uri: {exact: /c}}], redirect: {uri: /}}]}");
    assert_eq!(
        check_texts(&[doc("VirtualService", "v", delegating), leaf]),
        [""; 0],
        "requests that the delegate does not take"
    );
}

#[test]
fn routes_after_a_catch_all_are_unreachable() {
    let got = check_texts(&[doc(
        "VirtualService",
        "v",
        "\n  hosts: [a]\n  http:\n  - match: [{uri: {prefix: /}}]\n    redirect: {uri: /}\n  - redirect: {uri: /x}",
    )]);
    assert_eq!(got, ["f.yaml:9:5: warning: never reached: the route at line 7 matches every request"]);
}
