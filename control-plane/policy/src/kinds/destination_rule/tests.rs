use weft_proto::v1::{self, consistent_hash::Key, load_balancer::Simple};

use crate::{DestinationRule, Object, Parsed, parse};

const HEAD: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: order\nspec:\n";

fn read(spec: &str) -> Parsed {
    parse("f.yaml", &format!("{HEAD}{spec}"))
}

fn rule(spec: &str) -> DestinationRule {
    let mut parsed = read(spec);
    assert_eq!(parsed.problems, [], "{spec}");
    match parsed.documents.remove(0).object {
        Object::DestinationRule(rule) => *rule,
        other => panic!("{other:?}"),
    }
}

/// The first problem of a `trafficPolicy` written in flow style at line 8.
fn policy_problem(policy: &str) -> String {
    let parsed = read(&format!("  host: order\n  trafficPolicy:\n    {policy}\n"));
    parsed.problems.first().map(ToString::to_string).unwrap_or_default()
}

#[test]
fn a_destination_rule_with_subsets_is_decoded() {
    let rule = rule(
        "  host: order-service
  trafficPolicy:
    loadBalancer:
      consistentHash:
        httpHeaderName: user-id
    connectionPool:
      tcp:
        maxConnections: 100
      http:
        http1MaxPendingRequests: 50
        maxRequestsPerConnection: 2
  subsets:
  - name: v1
    labels:
      version: v1
  - name: v2
    labels:
      version: v2
",
    );
    assert_eq!(rule.host, "order-service");
    let settings = rule.traffic_policy.unwrap().settings;
    let pool = v1::ConnectionPool {
        max_connections: 100,
        http1_max_pending_requests: 50,
        max_requests_per_connection: 2,
        ..Default::default()
    };
    assert_eq!(settings.connection_pool, Some(pool));
    let key = settings.load_balancer.unwrap().consistent_hash.unwrap().key;
    assert_eq!(key, Some(Key::HttpHeaderName("user-id".to_owned())));
    let subsets: Vec<_> = rule.subsets.iter().map(|subset| (&*subset.name, &*subset.labels["version"])).collect();
    assert_eq!(subsets, [("v1", "v1"), ("v2", "v2")]);
}

#[test]
fn every_load_balancer_is_decoded() {
    for (name, want) in [
        ("UNSPECIFIED", Simple::LeastRequest),
        ("LEAST_REQUEST", Simple::LeastRequest),
        ("LEAST_CONN", Simple::LeastRequest),
        ("ROUND_ROBIN", Simple::RoundRobin),
        ("RANDOM", Simple::Random),
        ("PASSTHROUGH", Simple::Passthrough),
    ] {
        let rule = rule(&format!("  host: a\n  trafficPolicy: {{loadBalancer: {{simple: {name}}}}}\n"));
        assert_eq!(rule.traffic_policy.unwrap().settings.load_balancer.unwrap().simple(), want);
    }
}

#[test]
fn every_hash_key_is_decoded() {
    let cookie = v1::HttpCookie {
        name: "sid".to_owned(),
        path: "/".to_owned(),
        ttl_ms: Some(0),
        attributes: vec![v1::HeaderValue { name: "SameSite".to_owned(), value: "Lax".to_owned() }],
    };
    for (hash, key, ring, maglev) in [
        ("useSourceIp: true", Key::UseSourceIp(true), 0, 0),
        (
            "httpQueryParameterName: q, ringHash: {minimumRingSize: 2048}",
            Key::HttpQueryParameterName("q".into()),
            2048,
            0,
        ),
        ("httpHeaderName: x, maglev: {tableSize: 65537}", Key::HttpHeaderName("x".into()), 0, 65537),
        (
            "httpCookie: {name: sid, path: /, ttl: 0s, attributes: [{name: SameSite, value: Lax}]}",
            Key::HttpCookie(cookie),
            0,
            0,
        ),
    ] {
        let rule = rule(&format!("  host: a\n  trafficPolicy: {{loadBalancer: {{consistentHash: {{{hash}}}}}}}\n"));
        let got = rule.traffic_policy.unwrap().settings.load_balancer.unwrap().consistent_hash.unwrap();
        assert_eq!(got, v1::ConsistentHash { key: Some(key), minimum_ring_size: ring, maglev_table_size: maglev });
    }
    let deprecated = "{loadBalancer: {consistentHash: {useSourceIp: true, minimumRingSize: 7}}}";
    assert!(
        policy_problem(deprecated).starts_with("f.yaml:8:74: warning: `minimumRingSize` is deprecated"),
        "{}",
        policy_problem(deprecated)
    );
}

#[test]
fn pool_outlier_detection_and_tls_are_decoded() {
    let rule = rule(
        "  host: a
  trafficPolicy:
    connectionPool:
      tcp: {connectTimeout: 1.5s, idleTimeout: 1h, maxConnectionDuration: 1m30s, tcpKeepalive: {probes: 3, time: 2h, interval: 75s}}
      http: {http2MaxRequests: 7, maxRetries: 3, maxConcurrentStreams: 9, h2UpgradePolicy: UPGRADE, http2KeepAlive: {interval: 10s, timeout: 2s}}
    outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 3, interval: 100ms, baseEjectionTime: 1s, maxEjectionPercent: 100, minHealthPercent: 1}
    tls: {mode: ISTIO_MUTUAL}
    portLevelSettings:
    - port: {number: 8080}
      outlierDetection: {}
",
    );
    let policy = rule.traffic_policy.unwrap();
    let pool = policy.settings.connection_pool.unwrap();
    assert_eq!((pool.connect_timeout_ms, pool.tcp_idle_timeout_ms), (1500, Some(3_600_000)));
    assert_eq!(pool.http_idle_timeout_ms, 3_600_000, "falls back to tcp.idleTimeout");
    assert_eq!(pool.tcp_keepalive, Some(v1::TcpKeepalive { probes: 3, time_s: 7200, interval_s: 75 }));
    let keepalive = v1::Http2Keepalive { interval_ms: 10_000, timeout_ms: 2000 };
    assert_eq!(pool.http2_keepalive, Some(keepalive));
    assert_eq!((pool.max_connection_duration_ms, pool.h2_upgrade()), (90_000, v1::H2Upgrade::Upgrade));
    let ejection = policy.settings.outlier_detection.unwrap();
    assert_eq!((ejection.consecutive_5xx_errors, ejection.consecutive_gateway_errors), (Some(0), Some(3)));
    assert_eq!((ejection.interval_ms, ejection.base_ejection_time_ms), (100, 1000));
    assert_eq!(policy.settings.tls.unwrap().mode, v1::Tls::IstioMutual);
    assert_eq!(
        policy.ports[&8080].outlier_detection,
        Some(v1::OutlierDetection::default()),
        "an empty block turns it on"
    );
}

#[test]
fn invalid_traffic_policies_are_located() {
    for (policy, want) in [
        (
            "loadBalancer: {consistentHash: {httpHeadername: x}}",
            "8:37: error: unknown field `httpHeadername`, did you mean `httpHeaderName`?",
        ),
        (
            "loadBalancer: {zoneAwareLbSetting: {enabled: true}}",
            "8:20: error: `trafficPolicy.loadBalancer.zoneAwareLbSetting` is not supported: `localityLbSetting`",
        ),
        (
            "loadBalancer: {simple: ROUNDROBIN}",
            "8:28: error: `trafficPolicy.loadBalancer.simple`: unknown value `ROUNDROBIN`, did you mean `ROUND_ROBIN`?",
        ),
        (
            "loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}",
            "8:52: error: give either `simple` or `consistentHash`, not both",
        ),
        (
            "loadBalancer: {consistentHash: {httpHeaderName: x, maglev: {}}}",
            "error: `trafficPolicy.loadBalancer.consistentHash.maglev.tableSize` is required",
        ),
        ("loadBalancer: {consistentHash: {httpHeaderName: x, maglev: {tableSize: 65536}}}", "must be a prime number"),
        ("loadBalancer: {consistentHash: {ringHash: {}}}", "needs exactly one of httpHeaderName, httpCookie"),
        ("connectionPool: {}", "8:21: error: `trafficPolicy.connectionPool` must have `tcp` or `http`"),
        (
            "connectionPool: {tcp: {maxConnections: -1}}",
            "8:44: error: `trafficPolicy.connectionPool.tcp.maxConnections` must be a whole number from 0 to 2147483647",
        ),
        (
            "connectionPool: {tcp: {maxConnections: '100'}}",
            "8:44: error: `trafficPolicy.connectionPool.tcp.maxConnections` must be a whole number",
        ),
        (
            "connectionPool: {tcp: {connectTimeout: 30}}",
            "8:44: error: `trafficPolicy.connectionPool.tcp.connectTimeout` must be a string: put it in quotes",
        ),
        ("connectionPool: {tcp: {connectTimeout: 1d}}", "\"1d\" is not a duration such as 1s, 1.5h or 100ms"),
        ("connectionPool: {tcp: {connectTimeout: 0s}}", "\"0s\" must be at least 1ms"),
        ("connectionPool: {http: {h2UpgradePolicy: UPGRADE, useClientProtocol: true}}", "exclude each other"),
        ("connectionPool: {http: {http2KeepAlive: {interval: 1s}}}", "http2KeepAlive.timeout` is required"),
        ("outlierDetection: {consecutiveErrors: 5}", "warning: `consecutiveErrors` has no effect"),
        ("outlierDetection: {consecutiveLocalOriginFailures: 5}", "needs `splitExternalLocalOriginErrors: true`"),
        ("outlierDetection: {maxEjectionPercent: 101}", "must be a whole number from 0 to 100"),
        (
            "tls: {mode: SIMPEL}",
            "8:17: error: `trafficPolicy.tls.mode`: unknown value `SIMPEL`, did you mean `SIMPLE`?",
        ),
        ("tls: {mode: DISABLE, caCrl: x}", "warning: `caCrl` has no effect: the mode is DISABLE"),
        ("portLevelSettings: [{port: {number: 70000}}]", "must be a whole number from 1 to 65535"),
        ("loadBalancer: [1]", "8:19: error: `trafficPolicy.loadBalancer` must be a map, not a list"),
    ] {
        let got = policy_problem(policy);
        assert!(got.contains(want), "{policy}\n got: {got}\nwant: {want}");
    }
}

#[test]
fn invalid_rules_are_located() {
    for (spec, want) in [
        ("  hst: a\n", "f.yaml:6:3: error: unknown field `hst`, did you mean `host`?"),
        ("  trafficPolicy: {}\n", "error: `host` is required"),
        ("  host: a\n  trafficPolicy: {}\n", "7:18: error: `trafficPolicy` must have at least one field"),
        ("  host: a\n  exportTo: [., .]\n", "`.` is there twice"),
        ("  host: a\n  exportTo: ['*', b]\n", "`*` stands alone in `exportTo`"),
        ("  host: a\n  exportTo: [A/B]\n", "`A/B` is not a namespace, nor one of `.`, `*` and `~`"),
        (
            "  host: a\n  exportTo: [., b]\n  workloadSelector: {matchLabels: {a: b}}\n",
            "with a `workloadSelector` only `exportTo: [.]` is allowed",
        ),
        ("  host: a\n  workloadSelector: {labels: {}}\n", "unknown field `labels`"),
        ("  host: a\n  subsets: [{name: v1}, {name: v1}]\n", "7:32: error: subset `v1` is defined twice"),
        ("  host: a\n  subsets: [{name: V1}]\n", "must be lower-case"),
        (
            "  host: a\n  subsets: [{name: v1, labels: {version: 1}}]\n",
            "`subsets[0].labels.version` must be a string: put it in quotes",
        ),
        ("  host: a b\n", "`a b` is not a host name"),
        ("  host: a\n  host: b\n", "7:3: error: `host` is given twice"),
    ] {
        let parsed = read(spec);
        let got: Vec<String> = parsed.problems.iter().map(ToString::to_string).collect();
        assert!(got.iter().any(|problem| problem.contains(want)), "{spec}\n got: {got:?}\nwant: {want}");
        assert!(parsed.has_errors());
    }
    assert!(!read("  host: a\n  exportTo: ['*']\n").has_errors());
}

fn balancer(spec: &str) -> v1::LoadBalancer {
    let policy = format!("  host: order\n  trafficPolicy:\n    outlierDetection: {{}}\n    loadBalancer: {spec}\n");
    rule(&policy).traffic_policy.unwrap().settings.load_balancer.unwrap()
}

#[test]
fn locality_and_warmup_settings() {
    let shares =
        balancer("{localityLbSetting: {distribute: [{from: eu/a/*, to: {'eu/a/*': 80, us: 20}}]}}").locality.unwrap();
    assert_eq!((&*shares.distribute[0].from, shares.distribute[0].to["us"]), ("eu/a/*", 20));
    let regions =
        balancer("{localityLbSetting: {failover: [{from: eu, to: us}, {from: us, to: eu}]}}").locality.unwrap();
    assert_eq!((regions.failover["eu"].as_str(), regions.failover.len()), ("us", 2));
    let labels = balancer("{localityLbSetting: {failoverPriority: [topology.istio.io/network, version=v1]}}");
    assert_eq!(labels.locality.unwrap().failover_priority, ["topology.istio.io/network", "version=v1"]);
    let both = balancer("{localityLbSetting: {failover: [{from: eu, to: us}], failoverPriority: [version]}}");
    assert_eq!(both.locality.map(|both| (both.failover.len(), both.failover_priority.len())), Some((1, 1)));
    assert!(balancer("{localityLbSetting: {enabled: false}}").locality.unwrap().disabled);
    let warmup =
        balancer("{simple: ROUND_ROBIN, warmup: {duration: 30s, minimumPercent: 12.5, aggression: 2}}").warmup.unwrap();
    assert_eq!((warmup.duration_ms, warmup.minimum_percent, warmup.aggression), (30_000, 12.5, 2.0));
    let simple = balancer("{warmup: {duration: 1m}}").warmup.unwrap();
    assert_eq!((simple.duration_ms, simple.minimum_percent, simple.aggression), (60_000, 10.0, 1.0));
    for (policy, want) in [
        ("{distribute: [{from: eu, to: {us: 90}}]}", "the weights must add up to 100, and add up to 90"),
        ("{distribute: [{from: 'e*', to: {us: 100}}]}", "is not a locality"),
        ("{distribute: [{from: eu, to: {us: 50, us/a: 50}}]}", "`us/a` overlaps"),
        ("{distribute: [{from: eu, to: {us: 100}}, {from: eu/a, to: {us: 100}}]}", "overlaps with one above"),
        ("{distribute: [{from: eu, to: {us: 0, asia: 100}}]}", "must be a whole number from 1 to 100"),
        ("{distribute: [{from: eu, to: {us: 100}}], failover: [{from: a, to: b}]}", "exclude each other"),
        (
            "{failover: [{from: eu, to: us}], failoverPriority: [version, topology.kubernetes.io/zone]}",
            "`topology.kubernetes.io/zone` excludes `failover`",
        ),
        ("{failover: [{from: eu/a, to: us}]}", "`eu/a` is not a region"),
        ("{failover: [{from: eu, to: eu}]}", "is the region itself"),
        ("{failover: [{from: eu, to: us}, {from: eu, to: asia}]}", "has a failover already"),
        ("{failoverPriority: ['a=']}", "`a=` is neither a label nor label=value"),
        ("{failover: [{from: eu, to: us}]}", "warning: the failover has no effect without an `outlierDetection`"),
    ] {
        let spec = format!("  host: order\n  trafficPolicy:\n    loadBalancer: {{localityLbSetting: {policy}}}\n");
        let problems = read(&spec).problems;
        assert!(problems.iter().any(|problem| problem.to_string().contains(want)), "{policy}: {problems:?}");
    }
    for (policy, want) in [
        ("{warmup: {}}", "`trafficPolicy.loadBalancer.warmup.duration` is required"),
        ("{warmup: {duration: 0s}}", "must be at least 1ms"),
        ("{warmup: {duration: 1s, minimumPercent: 101}}", "must be a number from 0 to 100"),
        ("{warmup: {duration: 1s, aggression: 0.5}}", "must be a number, at least 1"),
        ("{simple: RANDOM, warmup: {duration: 1s}}", "warning: `warmup` has no effect"),
        ("{warmupDurationSecs: 1s}", "warning: `warmupDurationSecs` is deprecated"),
    ] {
        let problem = policy_problem(&format!("loadBalancer: {policy}"));
        assert!(problem.contains(want), "{policy}: {problem}");
    }
}

#[test]
fn retry_budgets_and_error_statuses() {
    let policy =
        |text: &str| rule(&format!("  host: order\n  trafficPolicy:\n    {text}\n")).traffic_policy.unwrap().settings;
    let budget = policy("retryBudget: {}").retry_budget.unwrap();
    assert_eq!((budget.percent, budget.min_retry_concurrency), (20.0, 3));
    let budget = policy("retryBudget: {percent: 12.5, minRetryConcurrency: 10}").retry_budget.unwrap();
    assert_eq!((budget.percent, budget.min_retry_concurrency), (12.5, 10));
    let interval = |text: &str| policy(&format!("retryBudget: {{{text}}}")).retry_budget.unwrap().budget_interval_ms;
    assert_eq!(
        (interval("percent: 1"), interval("budgetInterval: 0s"), interval("budgetInterval: 10s")),
        (0, 0, 10_000)
    );
    let outlier = policy("outlierDetection: {outlierDetectionHttpErrorCodes: [429, 503]}").outlier_detection.unwrap();
    assert_eq!(outlier.http_error_codes, [429, 503]);
    for (text, want) in [
        ("retryBudget: {percent: 101}", "must be a number from 0 to 100"),
        ("retryBudget: {budgetInterval: 1}", "`trafficPolicy.retryBudget.budgetInterval` must be a string"),
        ("retryBudget: {budgetInterval: 1x}", "`trafficPolicy.retryBudget.budgetInterval`: \"1x\""),
        ("outlierDetection: {outlierDetectionHttpErrorCodes: [99]}", "must be a whole number from 100 to 599"),
    ] {
        assert!(policy_problem(text).contains(want), "{text}: {}", policy_problem(text));
    }
}

mod outside;
