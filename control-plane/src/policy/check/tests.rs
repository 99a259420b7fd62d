use super::*;
use crate::policy::parse;

fn found(texts: &[String]) -> Vec<String> {
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
fn subsets_that_nothing_defines() {
    let rule = doc("DestinationRule", "r", "{host: a, subsets: [{name: v1}, {name: v2}]}");
    let got = found(&[rule.clone(), route_to("v3")]);
    let want = "error: the DestinationRule of `a.default.svc.cluster.local` has no subset `v3`; it has v1, v2";
    assert!(got.len() == 1 && got[0].starts_with("f.yaml:9:") && got[0].ends_with(want), "{got:?}");
    assert_eq!(found(&[rule, route_to("v1")]), Vec::<String>::new());
    let got = found(&[route_to("v1")]);
    assert!(got.len() == 1 && got[0].contains("warning: subset `v1`: no DestinationRule"), "{got:?}");
    let wild = doc("DestinationRule", "r", "{host: '*.default.svc.cluster.local', subsets: [{name: v1}]}");
    assert_eq!(found(&[wild, route_to("v1")]), Vec::<String>::new());
}

#[test]
fn one_object_and_one_owner() {
    let rule = doc("DestinationRule", "r", "{host: a}");
    assert_eq!(
        found(&[rule.clone(), rule]),
        ["f.yaml:6:1: error: DestinationRule/default/r is defined already at f.yaml:1"]
    );
    let service = |name: &str| doc("VirtualService", name, "{hosts: [a], http: [{redirect: {uri: /}}]}");
    let got = found(&[service("b"), service("a")]);
    assert_eq!(
        got,
        [
            "f.yaml:1:1: warning: VirtualService/default/a is older and owns host `a.default.svc.cluster.local`: this one has no effect on it"
        ]
    );
}

#[test]
fn rules_that_lose() {
    let rule = |name: &str| {
        doc("DestinationRule", name, "{host: a, trafficPolicy: {tls: {mode: DISABLE}}, subsets: [{name: v1}]}")
    };
    let got = found(&[rule("a"), rule("b")]);
    assert!(got.len() == 2 && got[0].contains("f.yaml:6:1: warning: subset `v1` is ignored"), "{got:?}");
    assert!(got[1].contains("warning: `trafficPolicy` is ignored: DestinationRule/default/a"), "{got:?}");
}

#[test]
fn routes_after_a_catch_all() {
    let got = found(&[doc(
        "VirtualService",
        "v",
        "\n  hosts: [a]\n  http:\n  - match: [{uri: {prefix: /}}]\n    redirect: {uri: /}\n  - redirect: {uri: /x}",
    )]);
    assert_eq!(got, ["f.yaml:9:5: warning: never reached: the route at line 7 matches every request"]);
}
