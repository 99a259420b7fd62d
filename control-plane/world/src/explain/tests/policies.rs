//! Decisions among destinations and endpoints.

use super::*;

fn rule(policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: order}}\nspec: {{host: order, \
         trafficPolicy: {{{policy}}}}}\n---\n"
    )
}

fn to(subset: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: order}}\nspec: {{hosts: [order], http: \
         [{{route: [{{destination: {{host: order, subset: {subset}}}}}]}}]}}\n---\n"
    )
}

#[test]
fn reasons_for_requests_that_reach_no_endpoint() {
    let ill = |health: Health| {
        let mut orders = orders();
        orders.iter_mut().for_each(|order| order.health = health);
        orders
    };
    let absent = to("absent");
    let subset = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: order}\nspec: {host: order, \
                  subsets: [{name: absent, labels: {version: v9}}]}\n";
    for (policies, instances, result) in [
        (absent.clone(), orders(), "503 NC, cluster_undefined"),
        (absent + subset, orders(), "503 UH, no_healthy_upstream"),
        (String::new(), ill(Health::Unhealthy), "503 UH, no_healthy_upstream"),
        (
            rule("outlierDetection: {}"),
            ill(Health::Draining),
            "503 UH, no_healthy_upstream; policy=DestinationRule/default/order",
        ),
        (String::new(), ill(Health::Unknown), "forwarded to an endpoint"),
        (
            rule("tls: {mode: ISTIO_MUTUAL}"),
            orders(),
            "503 UF, peer_without_identity; policy=DestinationRule/default/order",
        ),
        (rule("loadBalancer: {simple: PASSTHROUGH}"), Vec::new(), "unknown host: passed through"),
        (rule("loadBalancer: {simple: PASSTHROUGH}"), orders(), "forwarded to an endpoint"),
    ] {
        assert_eq!(get(&with(&policies, &instances), "order/", &[]).verdict.to_string(), result, "{policies}");
    }
    // One destination with a share of the requests is enough.
    let mut some = orders();
    some.retain(|order| order.labels["version"] == "v1");
    let explanation = get(&with(SHOP, &some), "order/api", &[]);
    assert_eq!(explanation.verdict.to_string(), "503 UH, no_healthy_upstream; policy=DestinationRule/default/order");
    assert_eq!(explanation.destinations[0].verdict, Verdict::Served);
}

#[test]
fn hosts_that_requests_name() {
    let partners = |tls: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: partners}}\nspec: {{hosts: \
             ['*.example.com'], resolution: DYNAMIC_DNS, ports: [{{number: 80, name: http}}]}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: partners}}\nspec: {{host: \
             '*.example.com', trafficPolicy: {{tls: {{mode: {tls}}}}}}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: order}}\nspec: {{hosts: [order], \
             http: [{{match: [{{uri: {{prefix: /b}}}}], rewrite: {{authority: b.example.com}}, route: [{{destination: {{host: \
             b.example.com}}}}]}}, {{route: [{{destination: {{host: b.example.com}}}}]}}]}}\n"
        )
    };
    let world = with(&partners("SIMPLE"), &orders());
    let explanation = get(&world, "a.example.com/", &[]);
    assert_eq!(explanation.verdict, Verdict::Served);
    assert_eq!(explanation.destinations[0].balancer, "none: the host in the request is resolved and dialed");
    assert_eq!(explanation.destinations[0].tls, "SIMPLE: to the server name of the request");
    // Through a route of another host, which has to give it a name.
    assert_eq!(get(&world, "order/b", &[]).verdict, Verdict::Served);
    assert_eq!(get(&world, "order/", &[]).verdict.to_string(), "502 NR, unknown_host");
    let world = with(&partners("ISTIO_MUTUAL"), &orders());
    let because = "503 UF, peer_without_identity; policy=DestinationRule/default/partners";
    assert_eq!(get(&world, "a.example.com/", &[]).verdict.to_string(), because);
}

#[test]
fn the_nearest_are_first_and_ejected_endpoints_left_out() {
    let mut instances = orders();
    for (one, locality) in instances.iter_mut().zip(["eu/a", "eu/b", "us/a"]) {
        one.locality = locality.to_owned();
    }
    let world = with(&rule("outlierDetection: {}"), &instances);
    let client = |locality: &str, ejected: &[&str]| Client {
        location: Location { locality: locality.into(), ..Location::default() },
        ejected: ejected.iter().map(|at| ("order.default.svc.cluster.local".to_owned(), (*at).to_owned())).collect(),
        ..Client::of("default")
    };
    let levels = |client: &Client| -> Vec<(Option<usize>, bool)> {
        let explanation = of(&world, client, &query("order", &[]));
        explanation.destinations[0].endpoints.iter().map(|endpoint| (endpoint.level, endpoint.ejected)).collect()
    };
    assert_eq!(levels(&client("eu/a", &[])), [(Some(0), false), (Some(1), false), (Some(2), false)]);
    assert_eq!(levels(&client("", &[])), [(Some(0), false); 3]);
    assert_eq!(levels(&client("eu/a", &["10.0.0.1:8080"])), [(None, true), (Some(1), false), (Some(2), false)]);
    let explanation = of(&world, &client("eu/a", &["10.0.0.1:8080"]), &query("order", &[]));
    let percent: Vec<(usize, u64)> =
        explanation.destinations[0].levels.iter().map(|one| (one.number, one.percent)).collect();
    assert_eq!(percent, [(1, 100), (2, 0)]);
    // Without an outlier detection nothing is ejected.
    let world = with("", &instances);
    let explanation = of(&world, &client("eu/a", &["10.0.0.1:8080"]), &query("order", &[]));
    assert!(
        explanation.destinations[0].endpoints.iter().all(|endpoint| endpoint.level == Some(0) && !endpoint.ejected)
    );
}

#[test]
fn keys_of_every_kind() {
    let known = Client { address: Some("10.7.0.1".parse().unwrap()), ..Client::of("default") };
    let any_client = Client::of("default");
    let generated = "the cookie is missing: the response sets one, which later requests are hashed by";
    let nothing = "the request has no hash key: any endpoint";
    for (hash, client, url, headers, because) in [
        ("httpQueryParameterName: u", &any_client, "order/?u=7", &[][..], ""),
        ("httpQueryParameterName: u", &any_client, "order/", &[], nothing),
        ("httpCookie: {name: s, ttl: 0s}", &any_client, "order/", &["cookie: a=b; s=1"], ""),
        ("httpCookie: {name: s, ttl: 0s}", &any_client, "order/", &["cookie: a=b"], generated),
        ("useSourceIp: true", &known, "order/", &[], ""),
        ("useSourceIp: true", &any_client, "order/", &[], "the caller's address is unknown here"),
        ("httpHeaderName: u, maglev: {tableSize: 101}", &any_client, "order/", &["u: 7"], ""),
    ] {
        let world = with(&rule(&format!("loadBalancer: {{consistentHash: {{{hash}}}}}")), &orders());
        let (_, endpoint, explanation) = keyed(&of(&world, client, &query(url, headers)).destinations[0]);
        assert_eq!((endpoint.is_some(), &*explanation), (because.is_empty(), because), "{hash} {headers:?}");
    }
}

#[test]
fn the_number_of_printed_endpoints_is_bounded() {
    let many: Vec<Instance> = (0..120).map(|n| version(&n.to_string(), &format!("10.1.0.{n}"), "v1")).collect();
    let world = with(&rule("loadBalancer: {consistentHash: {httpHeaderName: u}}"), &many);
    for user in 0..20 {
        let explanation = get(&world, "order", &[&format!("u: {user}")]);
        let text = explanation.to_string();
        assert!(explanation.destinations[0].endpoints.len() == 120 && text.contains("120 endpoints in all"), "{text}");
        assert_eq!(text.matches("       -> ").count(), 1, "{text}");
        assert!((50..=51).contains(&text.matches("weight 1").count()));
    }
}

#[test]
fn only_settings_other_than_the_defaults_are_reported() {
    let explanation = get(&with("", &orders()), "order", &[]).destinations.remove(0);
    assert!(
        explanation.limits.is_empty() && explanation.outlier_detection.is_empty() && explanation.policy.is_empty(),
        "{explanation:?}"
    );
    assert_eq!((&*explanation.balancer, &*explanation.locality, explanation.percent), ("LEAST_REQUEST", "", 100.0));
    let policy = rule(
        "connectionPool: {tcp: {maxConnections: 1, connectTimeout: 2s, tcpKeepalive: {time: 60s, probes: 4}}, http: \
         {http1MaxPendingRequests: 2, h2UpgradePolicy: UPGRADE, idleTimeout: 90s, http2KeepAlive: {interval: 5s, timeout: 2s}}}, tls: {mode: SIMPLE, sni: a.test}, outlierDetection: \
         {consecutiveGatewayErrors: 3, minHealthPercent: 4}",
    );
    let explanation = get(&with(&policy, &orders()), "order", &[]).destinations.remove(0);
    let limits: Vec<String> = explanation.limits.iter().map(|one| format!("{}={}", one.field, one.value)).collect();
    let want = [
        "maxConnections=1",
        "http1MaxPendingRequests=2",
        "connectTimeout=2s",
        "http.idleTimeout=90s",
        "h2UpgradePolicy=UPGRADE",
        "tcpKeepalive=after 60s, 4 probes",
        "http2KeepAlive=every 5s, 2s for an answer",
    ];
    assert_eq!(limits, want);
    assert_eq!(explanation.tls, "SIMPLE: to server name a.test");
    assert!(explanation.endpoints.iter().all(|endpoint| endpoint.transport == "TLS"));
    assert!(explanation.outlier_detection.contains(&Setting::new("minHealthPercent", 4)));
}

#[test]
fn delegates_are_included() {
    let root = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: root}\nspec: {hosts: [order], http: \
                [{name: r, match: [{uri: {prefix: /a}}], delegate: {name: leaf}}, {delegate: {name: gone}}]}\n---\n";
    let leaf = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: leaf}\nspec: {http: \
                [{name: x, match: [{uri: {prefix: /a/x}}], directResponse: {status: 200}}, {name: y, directResponse: {status: 201}}]}\n";
    let world = with(&(root.to_owned() + leaf), &orders());
    let explanation = get(&world, "order/a/y", &[]);
    let not = "http[0] r-x: path \"/a/y\" is not prefix \"/a/x\"".to_owned();
    assert_eq!(routes(&explanation), ("http[1] r-y match[0]".to_owned(), vec![not]));
    assert!(
        explanation.routes.unwrap().delegates
            && explanation.verdict == Verdict::Answered { status: 201, by: "directResponse".into() }
    );
    let nowhere = get(&world, "order/b", &[]);
    assert_eq!(nowhere.verdict.to_string(), "404 NR, no_route");
}

/// If all routes are for other callers, the host itself remains.
#[test]
fn routes_for_other_callers_are_ignored() {
    let routes_of = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: order}\nspec: {hosts: [order], \
                     http: [{match: [{sourceNamespace: lab}], directResponse: {status: 500}}]}\n";
    let explanation = get(&with(routes_of, &orders()), "order/", &[]);
    assert_eq!(routes(&explanation), (String::new(), vec!["http[0] : it is for callers of namespace lab".to_owned()]));
    assert_eq!((explanation.destinations.len(), explanation.verdict), (1, Verdict::Served));
}

#[test]
fn the_mtls_mode_of_endpoints_is_reported() {
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {mtls: {mode: STRICT}}\n";
    let mut owned = version("a", "10.0.0.1", "v1");
    owned.identity = "spiffe://cluster.local/ns/default/sa/order".to_owned();
    let accepts = |policies: &str, instance: &Instance| {
        let world = with(policies, std::slice::from_ref(instance));
        let query = Query::new("order/", "GET", &[], None).unwrap();
        let explanation = explain(&world, &Client::of("default"), &query, true, Instant::now()).unwrap();
        explanation.destinations[0].endpoints[0].accepts.clone()
    };
    assert_eq!(accepts(strict, &owned), "STRICT (PeerAuthentication/default/p)");
    assert_eq!(accepts("", &owned), "PERMISSIVE");
    assert_eq!(accepts(strict, &version("a", "10.0.0.1", "v1")), "", "it has no sidecar");
}
