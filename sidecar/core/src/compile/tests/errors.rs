//! Messages that are refused, with the field and the problem.

use super::*;

#[test]
fn errors_name_the_field() {
    let cases: Vec<(v1::Service, &str, &str)> = vec![
        (v1::Service { host: String::new(), ..base() }, "host", "not a host name"),
        (v1::Service { addresses: vec!["10.0.0.1/8".into()], ..base() }, "addresses[0]", "not an IP address"),
        (
            {
                let mut m = base();
                m.ports[0].cluster = 2;
                m
            },
            "ports[0].cluster",
            "refers to cluster 2 of 2",
        ),
        (
            {
                let mut m = base();
                m.ports.push(m.ports[0].clone());
                m
            },
            "ports",
            "port 80 is defined twice",
        ),
        (
            {
                let mut m = base();
                m.ports[0].number = 65536;
                m
            },
            "ports[0].number",
            "65536 is not a port",
        ),
        (
            {
                let mut m = base();
                m.ports[0].protocol = 99;
                m
            },
            "ports[0].protocol",
            "99",
        ),
        (
            {
                let mut m = base();
                m.clusters[1].tls = 9;
                m
            },
            "clusters[1].tls",
            "9",
        ),
        (
            {
                let mut m = base();
                m.clusters[1].outlier_detection =
                    Some(v1::OutlierDetection { max_ejection_percent: 101, ..Default::default() });
                m
            },
            "clusters[1].outlier_detection.max_ejection_percent",
            "101 is above 100",
        ),
        (with_lb(hash(source_ip(), 0, 100)), "clusters[0].load_balancer.consistent_hash.maglev_table_size", "prime"),
        (
            with_lb(hash(source_ip(), 0, 5_000_011)),
            "clusters[0].load_balancer.consistent_hash.maglev_table_size",
            "prime",
        ),
        (with_lb(hash(source_ip(), 8, 7)), "clusters[0].load_balancer.consistent_hash.maglev_table_size", "together"),
        (
            with_lb(hash(source_ip(), 8_388_609, 0)),
            "clusters[0].load_balancer.consistent_hash.minimum_ring_size",
            "at most 8388608",
        ),
        (
            with_lb(hash(v1::consistent_hash::Key::HttpHeaderName("a b".into()), 0, 0)),
            "clusters[0].load_balancer.consistent_hash.http_header_name",
            "\"a b\" is not a valid header name",
        ),
        (
            with_lb(hash(
                v1::consistent_hash::Key::HttpCookie(v1::HttpCookie { name: "a;b".into(), ..Default::default() }),
                0,
                0,
            )),
            "clusters[0].load_balancer.consistent_hash.http_cookie.name",
            "not a cookie name",
        ),
        (with_route(forward_route(to(&[]))), "ports[0].routes[0].forward.destinations", "is empty"),
        (with_route(forward_route(to(&[(0, 0), (1, 0)]))), "ports[0].routes[0].forward.destinations", "weight = 0"),
        (
            with_route(forward_route(to(&[(0, 1), (7, 1)]))),
            "ports[0].routes[0].forward.destinations[1].cluster",
            "refers to cluster 7",
        ),
        (with_route(v1::HttpRoute::default()), "ports[0].routes[0].action", "must be given"),
        (
            with_route(v1::HttpRoute {
                matches: vec![v1::HttpMatch { uri: regex("a)|(b"), ..Default::default() }],
                ..forward_route(to(&[(0, 0)]))
            }),
            "ports[0].routes[0].matches[0].uri.regex",
            "unopened group",
        ),
        (
            with_route(v1::HttpRoute {
                matches: vec![v1::HttpMatch { uri: regex(&"a".repeat(1025)), ..Default::default() }],
                ..forward_route(to(&[(0, 0)]))
            }),
            "ports[0].routes[0].matches[0].uri.regex",
            "longer than 1024",
        ),
        (
            with_route(v1::HttpRoute {
                matches: vec![v1::HttpMatch {
                    headers: vec![v1::NamedMatch { name: "x".into(), value: regex("(((a{99}){99}){99})") }],
                    ..Default::default()
                }],
                ..forward_route(to(&[(0, 0)]))
            }),
            "ports[0].routes[0].matches[0].headers[0].value.regex",
            "too large",
        ),
        (
            with_route(v1::HttpRoute {
                headers: Some(v1::HeaderOperations {
                    request: Some(v1::HeaderChange { add: vec![pair("a", "%UPSTREAM_HOST%")], ..Default::default() }),
                    response: None,
                }),
                ..forward_route(to(&[(0, 0)]))
            }),
            "ports[0].routes[0].headers.request.add[0].value",
            "%UPSTREAM_HOST% can be used in `response` alone",
        ),
        (
            with_route(v1::HttpRoute {
                headers: Some(v1::HeaderOperations {
                    request: Some(v1::HeaderChange {
                        set: vec![pair("Host", "a"), pair(":authority", "b")],
                        ..Default::default()
                    }),
                    response: None,
                }),
                ..forward_route(to(&[(0, 0)]))
            }),
            "ports[0].routes[0].headers.request.set[1]",
            "the authority is set twice",
        ),
        (
            with_route(forward_route(v1::Forward {
                retry: Some(v1::RetryPolicy { attempts: 1, retry_on: vec!["503, reset".into()], ..Default::default() }),
                ..to(&[(0, 0)])
            })),
            "ports[0].routes[0].forward.retry.retry_on",
            "\" reset\" is not a valid retryOn policy",
        ),
        (
            with_route(v1::HttpRoute {
                action: Some(Act::Redirect(v1::Redirect { code: 304, ..Default::default() })),
                ..Default::default()
            }),
            "ports[0].routes[0].redirect.code",
            "304",
        ),
        (
            with_route(v1::HttpRoute {
                action: Some(Act::DirectResponse(v1::DirectResponse { status: 600, body: vec![] })),
                ..Default::default()
            }),
            "ports[0].routes[0].direct_response.status",
            "600",
        ),
    ];
    for (message, field, problem) in cases {
        let error = service(&message).unwrap_err();
        assert_eq!(error.field, field, "{error}");
        assert!(error.problem.contains(problem), "{error}");
        assert_eq!(error.to_string(), format!("{}: {}", error.field, error.problem));
    }
}
