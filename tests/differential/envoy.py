"""Envoy's configuration for the cases, as Istio's pilot would make it: its defaults, and the case's own configuration.

In a case's routes a cluster is written `@` or `@SUBSET` and becomes that of the case.
"""
import copy

UNLIMITED = 4294967295
DEFAULT_RETRY = {
    "retry_on": "connect-failure,refused-stream,unavailable,cancelled",
    "num_retries": 2,
    "retry_host_predicate": [{
        "name": "envoy.retry_host_predicates.previous_hosts",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
        },
    }],
    "host_selection_retry_max_attempts": 5,
}
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def retry(on, attempts, hashed=False, **more):
    """A policy as Istio's pilot writes it; with a hash it does not exclude hosts of earlier attempts."""
    names = [part for part in on.split(",") if not part.isdigit()]
    codes = [int(part) for part in on.split(",") if part.isdigit()]
    policy = {**DEFAULT_RETRY, "retry_on": ",".join(names + ["retriable-status-codes"] * bool(codes)), "num_retries": attempts}
    if codes:
        policy["retriable_status_codes"] = codes
    if hashed:
        policy = {key: value for key, value in policy.items() if "host" not in key}
    return {**policy, **more}


def route(match=None, **action):
    """A route to the case's cluster."""
    to = {} if "weighted_clusters" in action else {"cluster": "@"}
    return {"match": match or {"prefix": "/"}, "route": {**to, **action}}


def weighted(*shares):
    """An action: (subset, weight, further configuration of Envoy)."""
    return {"weighted_clusters": {"clusters": [{"name": f"@{subset}", "weight": weight, **more} for subset, weight, more in shares]}}


def filled(case, route):
    """A case's route with names and defaults."""
    route = copy.deepcopy(route)
    name = lambda text: case.host + (f"|{text[1:]}" if text[1:] else "")
    action = route.get("route")
    if action is not None:
        if "cluster" in action:
            action["cluster"] = name(action["cluster"])
        for one in action.get("weighted_clusters", {}).get("clusters", []):
            one["name"] = name(one["name"])
        for mirror in action.get("request_mirror_policies", []):
            mirror["cluster"] = name(mirror["cluster"])
        action.setdefault("timeout", "0s")
        action.setdefault("max_grpc_timeout", action["timeout"])
        hashed = "hash_policy" in action and "weighted_clusters" not in action
        default = {k: v for k, v in DEFAULT_RETRY.items() if not hashed or "host" not in k}
        action.setdefault("retry_policy", default)
    return route


def locality(text):
    return dict(zip(("region", "zone", "sub_zone"), text.split("/"))) if text else {}


def groups(endpoints, weights):
    """Endpoints by priority and locality."""
    found = {}
    for e in endpoints:
        address = {"socket_address": {"address": e.address, "port_value": e.port}}
        found.setdefault((e.priority, e.locality), []).append(
            {"endpoint": {"address": address}, "load_balancing_weight": e.weight})
    return [{"priority": priority, "locality": locality(where), "lb_endpoints": members,
             **({"load_balancing_weight": weights[where]} if where in weights else {})}
            for (priority, where), members in sorted(found.items(), key=lambda item: item[0][0])]


def cluster(case, name, endpoints, more):
    made = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [{
            "max_connections": UNLIMITED, "max_pending_requests": UNLIMITED, "max_requests": UNLIMITED,
            "max_retries": UNLIMITED,
        }]},
    }
    more = copy.deepcopy(more)
    made["load_assignment"] = {"cluster_name": name, "endpoints": groups(endpoints, more.pop("locality_weights", {}))}
    thresholds = more.pop("thresholds", {})
    made["circuit_breakers"]["thresholds"][0].update(thresholds)
    per_connection = more.pop("max_requests_per_connection", None)
    if per_connection:
        made["typed_extension_protocol_options"] = {HTTP_OPTIONS: {
            "@type": f"type.googleapis.com/{HTTP_OPTIONS}",
            "common_http_protocol_options": {"max_requests_per_connection": per_connection},
            "explicit_http_config": {"http_protocol_options": {}},
        }}
    if "outlier_detection" in more:
        # Istio's defaults: no panic, no other detector.
        # Changes take effect at once, not up to a second later together with the next.
        panic = {"healthy_panic_threshold": {"value": more.pop("min_health_percent", 0)}, "update_merge_window": "0s"}
        more["common_lb_config"] = {**panic, **more.get("common_lb_config", {})}
        more["outlier_detection"] = {
            "enforcing_success_rate": 0, "enforcing_consecutive_gateway_failure": 0, "enforcing_consecutive_5xx": 100,
            **more["outlier_detection"],
        }
    return {**made, **more}


def passed_on(cases, port):
    """The listener of server names, and its clusters."""
    kind = "type.googleapis.com/envoy.extensions.filters"
    chains, clusters = [], []
    for case in cases:
        for name, endpoint in case.named():
            cluster = f"{case.host}|{name}"
            proxy = {"@type": f"{kind}.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "tls", "cluster": cluster}
            chains.append({"filter_chain_match": {"server_names": [name]}, "filters": [{"name": "tcp", "typed_config": proxy}]})
            address = {"socket_address": {"address": "127.0.0.1", "port_value": endpoint}}
            assignment = {"cluster_name": cluster, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
            clusters.append({"name": cluster, "type": "STATIC", "connect_timeout": "10s", "load_assignment": assignment})
    inspector = {"name": "tls", "typed_config": {"@type": f"{kind}.listener.tls_inspector.v3.TlsInspector"}}
    listener = {"name": "tls", "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "listener_filters": [inspector], "filter_chains": chains}
    return listener, clusters


def config(cases, port, tls, admin, log):
    """The bootstrap for all cases."""
    hosts, clusters = [], []
    for case in cases:
        routes = case.envoy or [{"match": {"prefix": "/"}, "route": {"cluster": "@", **case.action}}]
        host = {"name": case.host, "domains": [case.host, f"{case.host}:*"], "include_request_attempt_count": True,
                **case.host_more, "routes": [filled(case, route) for route in routes]}
        hosts.append(host)
        hosts += [{"name": name, "domains": [domain], "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": status}}]}
                  for name, domain, status in case.further()]
        clusters.append(cluster(case, case.host, case.endpoints, case.cluster))
        for subset in case.subsets:
            members = [e for e in case.endpoints if e.labels.get("version") == subset]
            more = case.subset_clusters.get(subset, case.cluster)
            clusters.append(cluster(case, f"{case.host}|{subset}", members, more))
    typed = lambda name, kind: {"name": name, "typed_config": {"@type": f"type.googleapis.com/{kind}"}}
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "normalize_path": True,
        "preserve_external_request_id": True,
        # Headers x-envoy-... count for internal requests: x-forwarded-for marks a request as internal.
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]},
        "route_config": {"name": "all", "virtual_hosts": hosts},
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": [
            typed("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors"),
            typed("envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault"),
            typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router"),
        ],
        "access_log": [{"name": "file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": log,
            "log_format": {"json_format": {
                "request_id": "%REQ(X-REQUEST-ID)%", "response_flags": "%RESPONSE_FLAGS%",
            }},
        }}],
    }
    listener = {
        "name": "in",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    by_name, endpoints = passed_on(cases, tls)
    return {
        "node": {"id": "differential", "cluster": "differential", "locality": locality("r1/z1/s1")},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
        "static_resources": {"listeners": [listener, by_name], "clusters": clusters + endpoints},
    }
