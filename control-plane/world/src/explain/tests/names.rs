//! The host that a name stands for, and connections that are not inspected.

use super::*;

const OUTSIDE: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: pay}
spec:
  hosts: [pay.test, x.pay.test]
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}, {number: 9000, name: raw, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 10.9.0.1}, {address: 10.9.0.2}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild}
spec:
  hosts: ['*.wild.test']
  ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}]
  resolution: NONE
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hidden, namespace: lab}
spec:
  hosts: [hidden.test]
  exportTo: ['.']
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.9.0.9}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: pay}
spec:
  hosts: [pay.test, x.pay.test]
  tls:
  - match: [{sniHosts: [x.pay.test], port: 443}]
    route: [{destination: {host: pay.test, port: {number: 9000}}}]
  - match: [{sniHosts: [pay.test], sourceLabels: {app: front}}, {sniHosts: [pay.test], destinationSubnets: [10.0.0.0/8]}]
    route: [{destination: {host: pay.test, port: {number: 80}}}]
  tcp:
  - match: [{port: 9001}]
    route: [{destination: {host: pay.test, port: {number: 80}}}]
  - route: [{destination: {host: pay.test, port: {number: 9000}}}]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: strict}
spec: {workloadSelector: {labels: {app: strict}}, outboundTrafficPolicy: {mode: REGISTRY_ONLY}}
";

const ORDER: &str = "order.default.svc.cluster.local";

#[test]
fn names_resolve_to_hosts() {
    let world = with(OUTSIDE, &orders());
    for (url, headers, query, name, because) in [
        ("order/", &[][..], "order", ORDER, "a service of the caller's namespace"),
        ("http://Order.default:8080/", &[], "order.default", ORDER, "a service's name with its namespace"),
        ("order.default.svc/", &[], "order.default.svc", ORDER, "a service's name with its namespace"),
        ("order.default.svc.cluster.local./", &[], ORDER, ORDER, "its own name"),
        ("order.service.consul/", &[], "order.service.consul", ORDER, "a name of Consul's DNS"),
        ("a.b.wild.test/", &[], "a.b.wild.test", "*.wild.test", "a wildcard that covers it"),
        ("absent.test/", &["host: order"], "order", ORDER, "a service of the caller's namespace"),
        ("order/", &["Host: absent.test"], "order", ORDER, "the host that is dialed"),
        ("10.0.0.1:8080/", &[], "10.0.0.1:8080", ORDER, "the address of one of its endpoints, which is dialed"),
        ("absent.test/", &[], "absent.test", "", "unknown host"),
        (
            "hidden.test/",
            &[],
            "hidden.test",
            "",
            "unknown host for this caller; there is `hidden.test`, which the caller does not see because of its `exportTo` or \
             the caller's Sidecar",
        ),
        (
            "order.lab/",
            &[],
            "order.lab",
            "",
            "unknown host for this caller; there is `order.default.svc.cluster.local`",
        ),
    ] {
        let explanation = get(&world, url, headers).host;
        assert_eq!(
            (&*explanation.query, &*explanation.name, &*explanation.because),
            (query, name, because),
            "{url} {headers:?}"
        );
    }
    let elsewhere = of(&world, &Client::of("lab"), &query("order", &[]));
    assert_eq!(elsewhere.host.because, "a service of namespace default: the caller's namespace has none of this name");
    assert_eq!(elsewhere.host.sources, ["3 registered instances"]);
}

#[test]
fn unknown_hosts_pass_or_are_refused() {
    let world = with(OUTSIDE, &orders());
    let strict = labelled(&[("app", "strict")]);
    let result = |client: &Client, url: &str| of(&world, client, &query(url, &[])).verdict.to_string();
    for (url, any_client, by_strict) in [
        ("absent.test/", "unknown host: passed through", "unknown host: refused (502 NR, unknown_host)"),
        ("192.0.2.1/", "unknown host: passed through", "unknown host: refused (502 NR, unknown_host)"),
        ("240.240.77.7/", "502 NR, unknown_host", "502 NR, unknown_host"),
        ("pay.test:81/", "404 NR, no_route", "404 NR, no_route"),
        ("10.9.0.2/", "forwarded to an endpoint", "forwarded to an endpoint"),
        ("a.wild.test/", "forwarded to an endpoint", "forwarded to an endpoint"),
    ] {
        assert_eq!(result(&Client::of("default"), url), any_client, "{url}");
        assert_eq!(result(&strict, url), by_strict, "{url}");
    }
    assert!(!Verdict::Unknown { passes: Some(true) }.is_good(), "an unknown host gives an error");
    let port = get(&world, "pay.test:81/", &[]);
    assert_eq!(port.notes, ["`pay.test` has no port 81: it has 80, 443, 9000"]);
    let pinned = get(&world, "10.9.0.2/", &[]);
    assert_eq!(pinned.destinations[0].endpoints.len(), 1);
    assert_eq!(pinned.destinations[0].balancer, "none: passthrough to the original destination");
}

#[test]
fn the_route_with_the_most_specific_server_name_matches() {
    let routes_of = OUTSIDE.replace("hosts: [pay.test, x.pay.test]", "hosts: [pay.test, '*.pay.test']").replace(
        "  - match: [{sniHosts: [x.pay.test], port: 443}]",
        "  - match: [{sniHosts: ['*.pay.test']}]\n    route: [{destination: {host: pay.test, port: {number: 80}}}]\n  - match: \
         [{sniHosts: [x.pay.test], port: 443}]",
    );
    let world = with(&routes_of, &[]);
    let query = Query::new("https://pay.test/", "GET", &[], Some("x.pay.test")).unwrap();
    let explanation = of(&world, &Client::of("default"), &query);
    let not = "tls[0] : another route has a more specific server name".to_owned();
    assert_eq!(routes(&explanation), ("tls[1]  match[0]".to_owned(), vec![not]));
}

#[test]
fn connections_have_routes_of_their_own() {
    let world = with(OUTSIDE, &[]);
    let at = |client: &Client, url: &str, server_name: Option<&str>| {
        of(&world, client, &Query::new(url, "GET", &[], server_name).unwrap())
    };
    let (any_client, front) = (Client::of("default"), labelled(&[("app", "front")]));
    let no_x = "tls[0] : server name \"pay.test\" is not x.pay.test";
    for (client, url, server_name, taken, not, port) in [
        (&any_client, "https://pay.test/", Some("x.pay.test"), "tls[0]  match[0]", vec![], 9000),
        (&front, "pay.test:443/", None, "tls[1]  match[0]", vec![no_x], 80),
        (&any_client, "pay.test:9000/", Some("x.pay.test"), "tcp[1] ", vec!["tcp[0] : it is for port 9001"], 9000),
    ] {
        let explanation = at(client, url, server_name);
        assert_eq!(routes(&explanation), (taken.to_owned(), not.into_iter().map(str::to_owned).collect()), "{url}");
        assert_eq!((explanation.destinations[0].port, explanation.verdict), (port, Verdict::Served), "{url}");
        assert_eq!(explanation.request.method, "");
    }
    // Its virtual IP is not in 10.0.0.0/8.
    let nowhere = at(&any_client, "https://pay.test/", None);
    assert_eq!(nowhere.verdict.to_string(), "closed, NR: no route matches this server name");
    let (_, not) = routes(&nowhere);
    assert!(
        not[1].starts_with("tls[1] : it is for callers with the labels app=front; destination 240.240."),
        "{not:?}"
    );
    // A port that is declared as HTTP is not inspected for TLS.
    let tls = at(&any_client, "pay.test:80/", Some("pay.test"));
    assert_eq!((&tls.routes, &tls.verdict), (&None, &Verdict::Served));
    assert!(tls.to_string().starts_with("TLS to server name pay.test, port 80, from a client of namespace default\n"));
    let absent = at(&any_client, "https://240.240.77.7/", Some("absent.test"));
    assert_eq!((absent.verdict.is_good(), &*absent.request.method), (false, ""));
    // For an unknown address the server name decides.
    let wild = at(&any_client, "https://192.0.2.1/", Some("a.wild.test"));
    assert_eq!((&*wild.host.name, wild.request.server_name.as_deref()), ("*.wild.test", Some("a.wild.test")));
}

#[test]
fn invalid_queries_are_refused() {
    let wrong = |url: &str, headers: &[(&str, &str)], server_name: Option<&str>| {
        let headers: Vec<(String, String)> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Query::new(url, "GET", &headers, server_name).unwrap_err()
    };
    for (url, error) in [
        ("", "\"\": it names no host: HOST[:PORT]/PATH"),
        ("/path", "\"/path\": it names no host: HOST[:PORT]/PATH"),
        ("ftp://a/", "\"ftp://a/\": the scheme is http or https, not \"ftp\""),
        ("a:0/", "\"a:0/\": \"0\" is not a port (1 to 65535)"),
        ("a:+8/", "\"a:+8/\": \"+8\" is not a port (1 to 65535)"),
        ("user@a/", "\"user@a/\": \"user@a\" is not a host name"),
        ("[::1/", "\"[::1/\": \"[\" is not a host name"),
        ("a/b c", "\"a/b c\": \"/b c\" is not a path; a space is %20"),
    ] {
        assert_eq!(wrong(url, &[], None), error);
    }
    assert_eq!(wrong("a", &[("x y", "1")], None), "-H: \"x y: 1\": that is not a header name");
    assert_eq!(wrong("a", &[("host", "b c")], None), "-H: \"host: b c\": \"b c\" is not a host name");
    assert_eq!(wrong("a", &[("host", "b"), ("Host", "c")], None), "-H: host is given twice");
    assert_eq!(wrong("a", &[], Some("b c")), "--sni: \"b c\" is not a host name");
    assert!(Query::new("a", "G T", &[], None).unwrap_err().starts_with("--method: "));
    for (url, shown, port) in [
        ("a", "http://a/", 80),
        ("a:80/b/../c?d#e", "http://a/c?d", 80),
        ("a?b", "http://a/?b", 80),
        ("https://A:8443/x", "https://A:8443/x", 8443),
        ("[::1]:81/x", "http://[::1]:81/x", 81),
    ] {
        let explanation = get(&with("", &[]), url, &[]).request;
        assert_eq!((&*explanation.url, explanation.port), (shown, port), "{url}");
    }
}
