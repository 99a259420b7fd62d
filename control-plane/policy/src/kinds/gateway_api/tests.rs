use super::gateway::AllowedNamespaces;
use super::gateway_class::CONTROLLER;
use super::{GROUP, ObjectRef};
use crate::{Object, parse};

fn problems(kind: &str, spec: &str) -> Vec<String> {
    let text = format!("apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {spec}\n");
    parse("f.yaml", &text).problems.iter().map(|problem| problem.text.clone()).collect()
}

#[test]
fn mistakes_are_reported() {
    let rule = |rule: &str| format!("{{parentRefs: [{{group: '', kind: Service, name: a}}], rules: [{rule}]}}");
    let filter = |filter: &str| rule(&format!("{{filters: [{filter}]}}"));
    for (kind, spec, want) in [
        ("HTTPRoute", rule("{matches: [{path: {value: a}}]}"), "`a` must begin with `/`"),
        ("HTTPRoute", rule("{matches: [{path: {value: /a//b}}]}"), "without `//`"),
        ("HTTPRoute", rule("{matches: [{path: {type: RegularExpression, value: '('}}]}"), "is not a regular expression"),
        ("HTTPRoute", rule("{matches: [{path: {type: Prefix, value: /}}]}"), "unknown value `Prefix`"),
        ("HTTPRoute", rule("{matches: [{headers: [{name: 'a b', value: c}]}]}"), "is not a header name"),
        ("HTTPRoute", rule("{matches: [{headers: [{name: a}]}]}"), "value` is required"),
        ("HTTPRoute", rule("{matches: [{method: get}]}"), "did you mean `GET`"),
        ("HTTPRoute", rule("{backendRefs: [{name: a}]}"), "port` is required"),
        ("HTTPRoute", rule("{backendRefs: [{name: a, port: 80, weight: -1}]}"), "must be a whole number"),
        ("HTTPRoute", rule("{backendRef: [{name: a, port: 80}]}"), "did you mean `backendRefs`"),
        ("HTTPRoute", rule("{timeouts: {request: 1.5s}}"), "is not a duration such as"),
        ("HTTPRoute", rule("{timeouts: {request: 123456s}}"), "is not a duration such as"),
        ("HTTPRoute", rule("{timeouts: {request: 1s, backendRequest: 2s}}"), "cannot be longer than `request`"),
        ("HTTPRoute", rule("{sessionPersistence: {}}"), "is not supported yet"),
        ("HTTPRoute", filter("{type: Nothing}"), "unknown value `Nothing`"),
        ("HTTPRoute", filter("{type: URLRewrite}"), "urlRewrite` is required"),
        ("HTTPRoute", filter("{type: ExternalAuth, externalAuth: {protocol: HTTP}}"), "externalAuth` is not supported yet"),
        (
            "HTTPRoute",
            filter("{type: CORS, cors: {allowOrigins: [a.example]}}"),
            "is not an origin: `*`, or a scheme",
        ),
        (
            "HTTPRoute",
            filter("{type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, urlRewrite: {hostname: a.b}}"),
            "exclude each other",
        ),
        (
            "HTTPRoute",
            filter("{type: RequestRedirect, requestRedirect: {}}, {type: RequestRedirect, requestRedirect: {}}"),
            "is there twice",
        ),
        ("HTTPRoute", filter("{type: RequestRedirect, requestRedirect: {statusCode: 304}}"), "is 301, 302, 303, 307 or 308"),
        (
            "HTTPRoute",
            rule(
                "{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: \
                 ReplacePrefixMatch, replacePrefixMatch: /b}}}]}",
            ),
            "needs matches of type PathPrefix alone",
        ),
        (
            "HTTPRoute",
            rule("{filters: [{type: RequestRedirect, requestRedirect: {}}], backendRefs: [{name: a, port: 80}]}"),
            "has no effect beside a filter of type RequestRedirect",
        ),
        (
            "HTTPRoute",
            rule(
                "{backendRefs: [{name: a, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}}]}]}",
            ),
            "urlRewrite` is not supported yet",
        ),
        (
            "HTTPRoute",
            filter("{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80}, percent: 5, fraction: {numerator: 1}}}"),
            "`percent` and `fraction` exclude each other",
        ),
        ("HTTPRoute", "{parentRefs: [{kind: Service, name: a}]}".to_owned(), "the group of a Service is written"),
        ("HTTPRoute", "{hostnames: ['a.*.b']}".to_owned(), "is not a host name or *.suffix"),
        ("HTTPRoute", "{hostnames: [10.0.0.1]}".to_owned(), "is not a host name or *.suffix"),
        ("GRPCRoute", rule("{matches: [{method: {}}]}"), "needs `service` or `method`"),
        ("GRPCRoute", rule("{matches: [{method: {service: a/b}}]}"), "must not contain `/`"),
        ("GRPCRoute", rule("{matches: [{path: {value: /}}]}"), "unknown field `path`"),
        ("Gateway", "{gatewayClassName: weft}".to_owned(), "`listeners` is required"),
        (
            "Gateway",
            "{gatewayClassName: weft, listeners: [{name: a, port: 80, protocol: HTTP}, {name: a, port: 81, protocol: HTTP}]}"
                .to_owned(),
            "listener `a` is there twice",
        ),
        (
            "Gateway",
            "{gatewayClassName: weft, addresses: [{value: 10.0.0.1}], listeners: [{name: a, port: 80, protocol: HTTP}]}"
                .to_owned(),
            "`addresses` is not supported yet",
        ),
        ("TCPRoute", "{parentRefs: [{name: a}]}".to_owned(), "`rules` is required"),
        (
            "TLSRoute",
            "{rules: [{backendRefs: [{name: a, port: 1}]}, {backendRefs: [{name: b, port: 1}]}]}".to_owned(),
            "`rules` has one rule",
        ),
        (
            "TLSRoute",
            "{rules: [{backendRefs: [{name: a, port: 1, filters: []}]}]}".to_owned(),
            "unknown field `filters`",
        ),
        (
            "BackendTLSPolicy",
            "{targetRefs: [{name: a}], validation: {hostname: a.b}}".to_owned(),
            "one of `caCertificateRefs` and `wellKnownCACertificates: System` is required",
        ),
        ("ReferenceGrant", "{from: [{group: '', kind: Service}], to: [{kind: Service}]}".to_owned(), "namespace` is required"),
        ("GatewayClass", "{controllerName: a/b, parametersRef: {}}".to_owned(), "`parametersRef` is not supported yet"),
    ] {
        let found = problems(kind, &spec);
        assert!(found.len() == 1 && found[0].contains(want), "{kind} {spec}: {found:?}\nwant: {want}");
    }
}

#[test]
fn ranks_follow_the_precedence_of_matches() {
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a}\nspec: {rules: [{matches: [\
                {path: {type: Exact, value: /a}}, {path: {value: /long/prefix/}}, {path: {value: /short}, method: GET}, \
                {path: {value: /short}, headers: [{name: a, value: b}, {name: A, value: c}]}, \
                {path: {value: /short}, queryParams: [{name: a, value: b}]}, {path: {type: RegularExpression, value: '/.*'}}, \
                {method: GET}, {path: {value: /}}]}]}\n";
    let parsed = parse("f.yaml", text);
    assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
    let Object::HTTPRoute(route) = &parsed.documents[0].object else { panic!() };
    let ranks: Vec<[usize; 5]> = route.rules[0].matches.iter().map(|one| one.rank).collect();
    assert!(ranks.is_sorted_by(|a, b| a > b), "{ranks:?}");
    assert_eq!(route.rules[0].matches[3].http.headers.len(), 1, "the first of two equal names counts");
}

#[test]
fn gateways_and_grants_are_read() {
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: a, namespace: edge}\nspec: {\
                gatewayClassName: weft, listeners: [{name: https, hostname: '*.Example.com', port: 443, protocol: HTTPS, \
                tls: {mode: Terminate, certificateRefs: [{group: '', kind: Secret, namespace: certs, name: shop}]}, \
                allowedRoutes: {kinds: [{group: gateway.networking.k8s.io, kind: HTTPRoute}], namespaces: {from: Selector, \
                selector: {matchLabels: {team: shop}, matchExpressions: [{key: tier, operator: In, values: [a, b]}, \
                {key: old, operator: DoesNotExist}, {key: c, operator: NotIn, values: [d]}, {key: team, operator: Exists}]}}}}]}\n\
                ---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: a, namespace: certs}\n\
                spec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: edge}], to: [{group: '', kind: Secret, name: shop}]}\n\
                ---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: weft}\n\
                spec: {controllerName: weft.dev/gateway-controller, description: a}\n";
    let parsed = parse("f.yaml", text);
    assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
    let [gateway, grant, class] = &parsed.documents[..] else { panic!() };
    let Object::KubernetesGateway(gateway) = &gateway.object else { panic!() };
    let listener = &gateway.listeners[0];
    assert_eq!(
        (gateway.class.as_str(), listener.hostname.as_str(), listener.passthrough),
        ("weft", "*.example.com", false)
    );
    let AllowedNamespaces::Selector(selector) = &listener.namespaces else { panic!() };
    for (labels, selects) in [
        (&[("team", "shop"), ("tier", "a")][..], true),
        (&[("team", "shop"), ("tier", "c")], false),
        (&[("team", "shop"), ("tier", "b"), ("old", "")], false),
        (&[("team", "shop"), ("tier", "b"), ("c", "d")], false),
        (&[("tier", "b")], false),
    ] {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(selector.selects(&labels), selects, "{labels:?}");
    }
    let Object::ReferenceGrant(grant) = &grant.object else { panic!() };
    let secret = &listener.certificates[0];
    assert!(grant.permits(GROUP, "Gateway", "edge", secret) && !grant.permits(GROUP, "Gateway", "shop", secret));
    assert!(!grant.permits(GROUP, "Gateway", "edge", &ObjectRef { name: "other".into(), ..secret.clone() }));
    assert_eq!(
        class.object,
        Object::GatewayClass(super::gateway_class::GatewayClass { controller: CONTROLLER.into() })
    );
}
