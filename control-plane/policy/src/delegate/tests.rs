use super::*;
use crate::parse;

fn documents(text: &str) -> Vec<Document> {
    let parsed = parse("f.yaml", text);
    assert_eq!(parsed.problems, [], "{text}");
    parsed.documents
}

fn root(http: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: shop, namespace: front}}\n\
         spec:\n  hosts: [shop.example.com]\n  http:\n  - {http}\n---\n"
    )
}

fn delegate(more: &str, http: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: orders, namespace: back}}\n\
         spec:\n  {more}\n  http:\n  - {http}\n"
    )
}

fn joined(root_http: &str, delegate_http: &str) -> (Vec<Route>, Vec<String>) {
    let documents = documents(&(root(root_http) + &delegate("", delegate_http)));
    let problems = check(&documents.iter().collect::<Vec<_>>()).iter().map(ToString::to_string).collect();
    let joined = join(documents.into_iter().map(Arc::new).collect());
    let Object::VirtualService(service) = &joined[0].object else { panic!() };
    (service.http.clone(), problems)
}

const TO_ORDERS: &str = "delegate: {name: orders, namespace: back}";
const ROUTE: &str = "route: [{destination: {host: order-service}}]";

#[test]
fn delegated_routes_inherit_settings_of_the_delegating_route() {
    let root = format!(
        "{{name: o, match: [{{uri: {{prefix: /orders}}, headers: {{x-a: {{exact: b}}}}}}], {TO_ORDERS}, timeout: 3s, \
         headers: {{request: {{set: {{x-c: d}}}}}}, retries: {{attempts: 7}}}}"
    );
    let own = format!(
        "{{name: v1, match: [{{uri: {{exact: /orders/1}}, method: {{exact: GET}}}}], {ROUTE}, timeout: 1s}}\n  - {{{ROUTE}}}"
    );
    let (routes, problems) = joined(&root, &own);
    assert_eq!((problems, routes.len()), (vec![], 2));
    let http = &routes[0].matches[0].http;
    let exact = |text: &str| Some(v1::StringMatch { kind: Some(Text::Exact(text.into())) });
    assert_eq!((&http.uri, &http.method, &http.headers[0].value), (&exact("/orders/1"), &exact("GET"), &exact("b")));
    assert_eq!(routes[0].name, "o-v1");
    assert!(routes.iter().all(|route| route.headers.is_some()));
    assert_eq!(routes[1].matches[0].http.uri.as_ref().unwrap().kind, Some(Text::Prefix("/orders".into())));
    let forward = |route: &Route| match &route.action {
        Action::Forward(forward) => forward.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((forward(&routes[0]).timeout_ms, forward(&routes[1]).timeout_ms), (1000, 3000));
    assert!(routes.iter().all(|route| forward(route).retry.unwrap().attempts == 7));
    // A short name is one of the delegate's namespace.
    assert_eq!(forward(&routes[0]).destinations[0].host, "order-service.back.svc.cluster.local");
}

#[test]
fn a_delegates_match_is_within_the_delegating_match() {
    for (outer, inner, beyond) in [
        ("uri: {prefix: /a}", "uri: {prefix: /a/b}", ""),
        ("uri: {prefix: /a}", "uri: {exact: /ab}", ""),
        ("uri: {prefix: /a/b}", "uri: {prefix: /a}", "uri"),
        ("uri: {exact: /a}", "uri: {prefix: /a}", "uri"),
        ("uri: {prefix: /a}", "uri: {regex: '/a.*'}", "uri"),
        ("uri: {regex: '/a.*'}", "method: {exact: GET}", ""),
        ("uri: {prefix: /a}", "uri: {prefix: /A}, ignoreUriCase: true", "ignoreUriCase"),
        ("method: {exact: GET}", "method: {exact: PUT}", "method"),
        ("headers: {x-a: {prefix: b}}", "headers: {X-A: {exact: bc}}", ""),
        ("headers: {x-a: {exact: b}}", "headers: {x-a: {}}", "headers"),
        ("withoutHeaders: {x-a: {}}", "withoutHeaders: {x-a: {exact: b}}", ""),
        ("queryParams: {q: {exact: b}}", "queryParams: {q: {exact: c}}", "queryParams"),
        ("port: 80", "port: 81", "port"),
        ("sourceLabels: {a: b}", "sourceLabels: {c: d}", ""),
        ("sourceLabels: {a: b}", "sourceLabels: {a: d}", "sourceLabels"),
        ("sourceNamespace: a", "sourceNamespace: b", "sourceNamespace"),
        ("gateways: [mesh, front/g]", "gateways: [front/g]", ""),
        ("gateways: [g]", "gateways: [g]", "gateways"),
    ] {
        let (routes, problems) =
            joined(&format!("{{match: [{{{outer}}}], {TO_ORDERS}}}"), &format!("{{match: [{{{inner}}}], {ROUTE}}}"));
        assert_eq!(routes.is_empty(), !beyond.is_empty(), "{outer} {inner}: {problems:?}");
        if !beyond.is_empty() {
            assert!(
                problems[0].contains("is left out") && problems[0].ends_with(&format!("by {beyond}")),
                "{problems:?}"
            );
        }
    }
}

#[test]
fn matches_of_delegate_and_root_are_combined() {
    let (routes, _) = joined(
        &format!("{{match: [{{uri: {{prefix: /a}}}}, {{uri: {{prefix: /b}}}}], {TO_ORDERS}}}"),
        &format!("{{match: [{{uri: {{exact: /a1}}}}, {{uri: {{exact: /b1}}}}, {{method: {{exact: GET}}}}], {ROUTE}}}"),
    );
    let uris: Vec<_> = routes[0].matches.iter().map(|one| one.http.uri.clone().unwrap().kind.unwrap()).collect();
    let (exact, prefix) = (|text: &str| Text::Exact(text.into()), |text: &str| Text::Prefix(text.into()));
    assert_eq!(uris, [exact("/a1"), exact("/b1"), prefix("/a"), prefix("/b")]);
}

#[test]
fn invalid_delegates_are_reported() {
    let problems = |text: &str| -> Vec<String> {
        check(&documents(text).iter().collect::<Vec<_>>()).iter().map(ToString::to_string).collect()
    };
    let root = root(&format!("{{{TO_ORDERS}}}"));
    let missing = problems(&root);
    assert!(missing[0].contains("VirtualService/back/orders, to which this delegates, does not exist"), "{missing:?}");
    let private = problems(&(root.clone() + &delegate("exportTo: ['.']", &format!("{{{ROUTE}}}"))));
    assert!(private[0].contains("not exported here"), "{private:?}");
    let twice = crate::parse("f.yaml", &(root + &delegate("", &format!("{{{TO_ORDERS}}}"))));
    assert!(twice.problems[0].to_string().contains("a delegate does not delegate itself"), "{twice:?}");
    let alone = problems(&delegate("", &format!("{{{ROUTE}}}")));
    assert!(alone[0].contains("it has no `hosts`, and no VirtualService here delegates to it"), "{alone:?}");
}
