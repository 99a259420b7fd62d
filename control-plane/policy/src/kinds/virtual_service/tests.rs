use weft_proto::v1::{self, string_match::Kind};

use super::*;
use crate::{Object, Parsed, parse};

const HEAD: &str =
    "apiVersion: networking.istio.io/v1beta1\nkind: VirtualService\nmetadata: {name: a, namespace: shop}\nspec:\n";

fn read(spec: &str) -> Parsed {
    parse("f.yaml", &format!("{HEAD}{spec}"))
}

fn routes(http: &str) -> Vec<Route> {
    let mut parsed = read(&format!("  hosts: [a]\n  gateways: [mesh]\n  http:\n{http}"));
    assert_eq!(parsed.problems, [], "{http}");
    match parsed.documents.remove(0).object {
        Object::VirtualService(service) => service.http,
        other => panic!("{other:?}"),
    }
}

fn string(kind: Kind) -> Option<v1::StringMatch> {
    Some(v1::StringMatch { kind: Some(kind) })
}

#[test]
fn every_match_is_decoded() {
    let routes = routes(
        "  - name: main
    match:
    - uri: {prefix: /api}
      ignoreUriCase: true
      method: {exact: GET}
      authority: {regex: 'a.*'}
      headers:
        x-user: {exact: jason}
        x-any: {}
        x-star: {regex: '*'}
      queryParams: {q: {prefix: z}}
    route: [{destination: {host: a}}]
",
    );
    let got = &routes[0].matches[0].http;
    assert_eq!(got.uri, string(Kind::Prefix("/api".into())));
    assert_eq!(got.method, string(Kind::Exact("GET".into())));
    assert_eq!(got.authority, string(Kind::Regex("a.*".into())));
    assert!(got.ignore_uri_case);
    let headers: Vec<_> = got.headers.iter().map(|header| (&*header.name, header.value.clone())).collect();
    let present = || string(Kind::Present(true));
    assert_eq!(headers, [("x-user", string(Kind::Exact("jason".into()))), ("x-any", present()), ("x-star", present())]);
    assert_eq!(got.query_params[0].value, string(Kind::Prefix("z".into())));
}

#[test]
fn every_action_is_decoded() {
    let routes = routes(
        "  - route:
    - destination: {host: a, subset: v1, port: {number: 80}}
      weight: 90
      headers: {response: {add: {x-b: '1'}}}
    - {destination: {host: b}, weight: 10}
    timeout: 1.5s
    rewrite: {uri: /, authority: c}
    retries: {attempts: 3, perTryTimeout: 2s, retryOn: 'gateway-error,503', backoff: 10ms}
    headers: {request: {set: {x-a: '1'}, remove: [x-c]}}
  - redirect: {uri: /new, redirectCode: 307, derivePort: FROM_REQUEST_PORT}
  - directResponse: {status: 503, body: {string: sorry}}
  - route: [{destination: {host: a}}]
    retries: {attempts: 2}
  - route: [{destination: {host: a}}]
    retries: {}
",
    );
    let Action::Forward(forward) = &routes[0].action else { panic!() };
    let destinations: Vec<_> = forward.destinations.iter().map(|d| (&*d.host, &*d.subset, d.port, d.weight)).collect();
    assert_eq!(destinations, [("a", "v1", Some(80), 90), ("b", "", None, 10)]);
    assert_eq!(forward.timeout_ms, 1500);
    assert_eq!(
        forward.rewrite,
        Some(v1::Rewrite { uri: Some("/".into()), authority: Some("c".into()), ..Default::default() })
    );
    let retry = forward.retry.clone().unwrap();
    assert_eq!((retry.attempts, retry.per_try_timeout_ms, retry.backoff_ms), (3, 2000, 10));
    assert_eq!(retry.retry_on, ["gateway-error", "503"]);
    let request = routes[0].headers.clone().unwrap().request.unwrap();
    assert_eq!((&*request.set[0].name, &*request.remove[0]), ("x-a", "x-c"));
    let Action::Redirect(redirect) = &routes[1].action else { panic!() };
    assert_eq!((redirect.code, redirect.derive_port()), (307, v1::DerivePort::FromRequestPort));
    assert_eq!(routes[2].action, Action::Respond(v1::DirectResponse { status: 503, body: b"sorry".to_vec() }));
    let retry = |route: &Route| match &route.action {
        Action::Forward(forward) => forward.retry.clone().unwrap(),
        _ => panic!(),
    };
    assert_eq!(retry(&routes[3]).retry_on.join(","), "connect-failure,refused-stream,unavailable,cancelled");
    assert_eq!(retry(&routes[4]).attempts, 0, "written and empty: retries are off, as in Istio");
}

#[test]
fn invalid_routes_are_located() {
    let route = "route: [{destination: {host: a}}]";
    for (spec, want) in [
        ("  http: []\n".to_owned(), "`hosts` is required"),
        ("  hosts: ['*']\n".to_owned(), "5:11: error: host `*` is for gateways"),
        ("  hosts: [a.b.c, '*.b.c']\n".to_owned(), "hosts `a.b.c` and `*.b.c` overlap"),
        ("  hosts: [a]\n  gateways: [A/b]\n".to_owned(), "`A/b` is not a gateway"),
        (
            "  hosts: [a]\n  tls: [{match: [{sniHosts: [b]}], route: [{destination: {host: a}}]}]\n".to_owned(),
            "server name `b` is not among the `hosts` of this VirtualService",
        ),
        (
            "  hosts: [a]\n  tls: [{match: [{port: 443}], route: [{destination: {host: a}}]}]\n".to_owned(),
            "`match` with `sniHosts` is required",
        ),
        (
            "  hosts: [a]\n  tcp: [{match: [{destinationSubnets: [10.0.0.0/33]}], route: [{destination: {host: a}}]}]\n"
                .to_owned(),
            "`10.0.0.0/33` is neither an IP address nor a CIDR range",
        ),
        (
            "  hosts: [a]\n  gateways: [g]\n  tcp: [{match: [{sourceSubnet: 10.0.0.1}], route: [{destination: {host: a}}]}]\n"
                .to_owned(),
            "`sourceSubnet` is not supported yet for gateways",
        ),
        (
            "  hosts: [a]\n  tcp: [{match: [{gateways: [A]}], route: [{destination: {host: a}}]}]\n".to_owned(),
            "`A` is not a gateway",
        ),
        (
            "  hosts: [a]\n  gateways: [g]\n  tls: [{route: [{destination: {host: a}}]}]\n".to_owned(),
            "`match` with `sniHosts` is required",
        ),
        ("  hosts: [a]\n  tcp: []\n".to_owned(), "`http` must have at least one route"),
        ("  hosts: [a]\n".to_owned(), "`http` must have at least one route"),
        (http("{}"), "one of `route`, `redirect`, `directResponse` and `delegate` is required"),
        (http(&format!("{{{route}, redirect: {{uri: /}}}}")), "`route` and `redirect` exclude each other"),
        (http("{redirect: {uri: /}, timeout: 1s}"), "`timeout` needs a `route`"),
        (http(&format!("{{{route}, fault: {{}}}}")), "`fault` needs `delay` or `abort`"),
        (http("{redirect: {uri: /}, fault: {abort: {httpStatus: 500}}}"), "`fault` needs a `route`"),
        (
            http(&format!("{{{route}, fault: {{delay: {{exponentialDelay: 1s}}}}}}")),
            "exponentialDelay` is not supported: nor by Istio",
        ),
        (
            http(&format!("{{{route}, fault: {{delay: {{percentage: {{value: 1}}}}}}}}")),
            "fault.delay.fixedDelay` is required",
        ),
        (
            http(&format!("{{{route}, fault: {{abort: {{httpStatus: 600}}}}}}")),
            "must be a whole number from 200 to 599",
        ),
        (
            http(&format!("{{{route}, fault: {{abort: {{httpStatus: 500, grpcStatus: OK}}}}}}")),
            "`abort` needs either `httpStatus` or `grpcStatus`",
        ),
        (http(&format!("{{{route}, fault: {{abort: {{grpcStatus: UNAVAILBLE}}}}}}")), "did you mean `UNAVAILABLE`?"),
        (
            http(&format!("{{{route}, fault: {{abort: {{httpStatus: 500, percentage: {{value: 0.00001}}}}}}}}")),
            "a percentage is 0, or from 0.0001 to 100",
        ),
        (http(&format!("{{{route}, corsPolicy: {{allowHeaders: [a b]}}}}")), "`a b` is not a header name"),
        (http(&format!("{{{route}, corsPolicy: {{maxAge: 1500ms}}}}")), "`maxAge` is in whole seconds"),
        (http(&format!("{{{route}, mirror: {{}}}}")), "`http[0].mirror.host` is required"),
        (http(&format!("{{{route}, mirrors: [{{}}]}}")), "`http[0].mirrors[0].destination` is required"),
        (
            http(&format!("{{{route}, mirror: {{host: a}}, mirrors: [{{destination: {{host: a}}}}]}}")),
            "`mirror` and `mirrors` exclude each other",
        ),
        (http(&format!("{{{route}, mirrorPercent: 5}}")), "`mirrorPercent` has no effect without `mirror`"),
        (http(&format!("{{{route}, match: [{{statPrefix: a}}]}}")), "`statPrefix` has no effect"),
        (http("{redirect: {uri: /}, mirror: {host: a}}"), "`mirror` needs a `route`"),
        (
            http(&format!("{{{route}, mirror: {{host: a}}, mirrorPercentage: {{value: 101}}}}")),
            "`http[0].mirrorPercentage.value` must be a number from 0 to 100",
        ),
        (
            http(&format!("{{{route}, rewrite: {{uri: /, uriRegexRewrite: {{match: a, rewrite: b}}}}}}")),
            "`uri` and `uriRegexRewrite` exclude each other",
        ),
        (
            http(&format!("{{{route}, rewrite: {{uriRegexRewrite: {{match: a}}}}}}")),
            "uriRegexRewrite.rewrite` is required",
        ),
        (
            http(&format!("{{{route}, rewrite: {{uriRegexRewrite: {{match: '(', rewrite: a}}}}}}")),
            "`(` is not a regular expression",
        ),
        (
            http(&format!(r"{{{route}, rewrite: {{uriRegexRewrite: {{match: '(a)', rewrite: '\2'}}}}}}")),
            r"`rewrite`: \2 is no group: the regex has 1",
        ),
        (http("{redirect: {uri: /a, prefixRewrite: /}}"), "`uri` and `prefixRewrite` exclude each other"),
        (http(&format!("{{{route}, delegate: {{name: b}}}}")), "`route` and `delegate` exclude each other"),
        (http("{delegate: {}}"), "`http[0].delegate.name` is required"),
        (
            format!("  gateways: [g]\n  http:\n  - {{{route}}}\n"),
            "`gateways` needs `hosts`; without them it is a delegate",
        ),
        (http(&format!("{{{route}, match: [{{port: 65536}}]}}")), "must be a whole number from 1 to 65535"),
        (http(&format!("{{{route}, match: [{{gateways: [a/b/c]}}]}}")), "`a/b/c` is not a gateway"),
        (http(&format!("{{{route}, match: [{{withoutHeaders: {{'a b': {{}}}}}}]}}")), "`a b` is not a header name"),
        (http(&format!("{{{route}, match: [{{uri: {{exact: a, prefix: b}}}}]}}")), "give only one of"),
        (http(&format!("{{{route}, match: [{{uri: {{regex: '('}}}}]}}")), "is not a regular expression of RE2"),
        (http(&format!("{{{route}, match: [{{method: {{prefix: ''}}}}]}}")), "an empty prefix matches everything"),
        (http(&format!("{{{route}, match: [{{headers: {{'a b': {{}}}}}}]}}")), "`a b` is not a header name"),
        (
            http(&format!("{{{route}, headers: {{response: {{set: {{Host: x}}}}}}}}")),
            "`Host` can be set in requests, not removed and not changed in responses",
        ),
        (
            http(&format!("{{{route}, headers: {{request: {{remove: [':authority']}}}}}}")),
            "`:authority` can be set in requests",
        ),
        (
            http(&format!("{{{route}, headers: {{request: {{set: {{':path': /}}}}}}}}")),
            "`:path` cannot be changed; `rewrite` changes path and authority",
        ),
        (
            http(&format!("{{{route}, rewrite: {{authority: a}}, headers: {{request: {{set: {{host: x}}}}}}}}")),
            "the authority is set twice",
        ),
        (http(&format!("{{{route}, match: [{{headers: {{':status': {{}}}}}}]}}")), "`:status` is not a header name"),
        (
            http(&format!("{{{route}, retries: {{attempts: 1, retryOn: '503, reset'}}}}")),
            "unknown condition ` reset`, did you mean `reset`?",
        ),
        (
            http(&format!("{{{route}, retries: {{perTryTimeout: 1s}}}}")),
            "has no effect while `attempts` is absent or 0",
        ),
        (http("{route: [{destination: {host: a}, weight: 0}, {destination: {host: b}}]}"), "the weights add up to 0"),
        (http("{route: [{weight: 1}]}"), "`http[0].route[0].destination` is required"),
        (http("{redirect: {redirectCode: 302}}"), "`redirect` needs `uri`"),
        (http("{redirect: {uri: /, redirectCode: 304}}"), "must be 301, 302, 303, 307 or 308"),
        (http("{directResponse: {status: 199}}"), "must be a whole number from 200 to 599"),
        (http("{directResponse: {status: 200, body: {}}}"), "needs either `string` or `bytes`"),
    ] {
        let got: Vec<String> = read(&spec).problems.iter().map(ToString::to_string).collect();
        assert!(got.iter().any(|problem| problem.contains(want)), "{spec}\n got: {got:#?}\nwant: {want}");
    }
}

fn http(route: &str) -> String {
    format!("  hosts: [a]\n  http:\n  - {route}\n")
}

#[test]
fn matches_of_clients_gateways_and_absent_headers() {
    let one = "{name: a, withoutHeaders: {x-a: {}, x-b: {prefix: c}}, scheme: {exact: https}, port: 443, gateways: [edge, mesh], \
               sourceLabels: {app: front}, sourceNamespace: shop}";
    let parsed =
        parse("f.yaml", &format!("{HEAD}{}", http(&format!("{{match: [{one}], directResponse: {{status: 200}}}}"))));
    assert_eq!(parsed.problems, []);
    let Object::VirtualService(service) = &parsed.documents[0].object else { panic!() };
    let found = &service.http[0].matches[0];
    let without: Vec<_> = found.http.without_headers.iter().map(|header| header.name.as_str()).collect();
    assert_eq!((without, found.http.port), (vec!["x-a", "x-b"], 443));
    assert_eq!(found.http.scheme, string(Kind::Exact("https".into())));
    assert_eq!(
        (&*found.source_namespace, &*found.source_labels["app"], &found.gateways[..]),
        ("shop", "front", &["edge".to_owned(), "mesh".to_owned()][..])
    );
    assert!(found.is_of_some());
}

fn route_of(text: &str) -> (Route, Vec<String>) {
    let parsed = parse("f.yaml", &format!("{HEAD}{}", http(text)));
    assert!(!parsed.has_errors(), "{:?}", parsed.problems);
    let problems = parsed.problems.iter().map(ToString::to_string).collect();
    let Object::VirtualService(service) = &parsed.documents[0].object else { panic!() };
    (service.http[0].clone(), problems)
}

#[test]
fn faults_and_origins() {
    let to = "route: [{destination: {host: a}}]";
    let fault = |text: &str| {
        let (route, problems) = route_of(&format!("{{{to}, fault: {text}}}"));
        let Action::Forward(forward) = route.action else { panic!() };
        (forward.fault.unwrap(), problems)
    };
    let both = "{delay: {fixedDelay: 2s, percentage: {value: 12.5}}, abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}";
    let (both, problems) = fault(both);
    assert_eq!((both.delay_ms, both.delay_percent, both.abort_percent, problems.len()), (2000, 12.5, 100.0, 0));
    assert_eq!(both.abort, Some(v1::fault::Abort::GrpcStatus(14)));
    let (old, problems) = fault("{delay: {fixedDelay: 1s, percent: 50}}");
    assert_eq!(old.delay_percent, 50.0);
    assert!(problems[0].contains("`percent` is deprecated"), "{problems:?}");
    let (never, problems) = fault("{abort: {httpStatus: 503}}");
    assert_eq!(never.abort_percent, 0.0);
    assert!(problems[0].contains("this never happens"), "{problems:?}");
    let cors = "{allowOrigins: [{regex: 'https://.*'}], allowMethods: [GET, PUT], allowHeaders: ['*'], exposeHeaders: [x-a], \
                maxAge: 1h, allowCredentials: true, unmatchedPreflights: IGNORE}";
    let cors = route_of(&format!("{{{to}, corsPolicy: {cors}}}")).0.cors.unwrap();
    assert_eq!((cors.allow_origins.len(), cors.allow_methods.len(), cors.max_age_s), (1, 2, Some(3600)));
    assert!(cors.allow_credentials && cors.ignore_unmatched_preflights);
    let (old, problems) = route_of(&format!("{{{to}, corsPolicy: {{allowOrigin: ['*']}}}}"));
    assert_eq!(old.cors.unwrap().allow_origins[0].kind, Some(Kind::Exact("*".into())));
    assert!(problems[0].contains("`allowOrigin` is deprecated"), "{problems:?}");
}

#[test]
fn mirrors_and_regex_rewrites() {
    let to = "route: [{destination: {host: a}}]";
    let forward = |text: &str| {
        let (route, problems) = route_of(&format!("{{{to}, {text}}}"));
        let Action::Forward(forward) = route.action else { panic!() };
        (forward, problems)
    };
    let mirrors = |text: &str| -> Vec<(String, String, f64)> {
        let found = forward(text).0.mirrors.into_iter();
        found.map(|mirror| (mirror.destination.host, mirror.destination.subset, mirror.percent)).collect()
    };
    let mirror = |host: &str, subset: &str, percent| (host.to_owned(), subset.to_owned(), percent);
    assert_eq!(mirrors("mirror: {host: b, subset: v2}"), [mirror("b", "v2", 100.0)]);
    assert_eq!(mirrors("mirror: {host: b}, mirrorPercentage: {value: 0.5}"), [mirror("b", "", 0.5)]);
    assert_eq!(
        mirrors("mirrors: [{destination: {host: b}}, {destination: {host: c}, percentage: {value: 10}}]"),
        [mirror("b", "", 100.0), mirror("c", "", 10.0)]
    );
    for name in ["mirrorPercent", "mirror_percent"] {
        let text = format!("mirror: {{host: b}}, {name}: 20");
        assert_eq!(mirrors(&text), [mirror("b", "", 20.0)]);
        assert!(forward(&text).1[0].contains("is deprecated: write `mirrorPercentage.value`"));
    }
    let rewrite = forward(r"rewrite: {uriRegexRewrite: {match: '^/a/(.*)', rewrite: '/\1'}}").0.rewrite.unwrap();
    let regex = v1::RegexRewrite { pattern: "^/a/(.*)".into(), substitution: r"/\1".into() };
    assert_eq!((rewrite.uri, rewrite.uri_regex), (None, Some(regex)));
    assert!(forward("retries: {attempts: 3, retryRemoteLocalities: true}").0.retry.unwrap().other_localities);
    let (route, _) = route_of("{redirect: {prefixRewrite: /b}}");
    let Action::Redirect(redirect) = route.action else { panic!() };
    assert_eq!(redirect.prefix_rewrite.as_deref(), Some("/b"));
}

#[test]
fn routes_of_connections() {
    let to = "route: [{destination: {host: a, subset: v1}, weight: 90}, {destination: {host: b}, weight: 10}]";
    let parsed = read(&format!(
        "  hosts: [a.example.com]\n  tls:\n  - match: [{{sniHosts: [A.example.com], port: 443, destinationSubnets: [10.0.0.0/8]}}]\n    \
         {to}\n  tcp:\n  - match: [{{port: 9000, sourceSubnet: 10.1.0.0/16, sourceLabels: {{app: x}}, sourceNamespace: n, \
         gateways: [mesh]}}]\n    {to}\n  - {to}\n"
    ));
    assert_eq!(parsed.problems, []);
    let Object::VirtualService(service) = &parsed.documents[0].object else { panic!() };
    let want = ConnectionMatch {
        server_names: vec!["a.example.com".into()],
        port: Some(443),
        destinations: vec!["10.0.0.0/8".into()],
        ..Default::default()
    };
    assert_eq!(service.tls[0].matches, [want]);
    let want = ConnectionMatch {
        port: Some(9000),
        source: "10.1.0.0/16".into(),
        source_labels: [("app".to_owned(), "x".to_owned())].into(),
        source_namespace: "n".into(),
        gateways: vec!["mesh".into()],
        ..Default::default()
    };
    assert_eq!((&service.tcp[0].matches[..], service.tcp[1].matches.len()), (&[want][..], 0));
    let destinations: Vec<_> = service.tcp[1].destinations.iter().map(|d| (&*d.host, &*d.subset, d.weight)).collect();
    assert_eq!(destinations, [("a", "v1", 90), ("b", "", 10)]);
}
