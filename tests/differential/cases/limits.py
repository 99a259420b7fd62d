"""connectionPool and retryBudget: numbers of served, waiting and refused requests."""
from case import FATE, REFUSING, STUCK, Ask, Case, Endpoint
from envoy import retry, route


def at_once(count, do="sleep:500"):
    return Ask(times=count, at_once=count, do=do)


def in_turn(count, **more):
    """Each starts after the previous one has its connection, or waits for one: both proxies count a request as waiting until then."""
    return Ask(times=count, at_once=count, apart=0.1, **{"do": "sleep:1500", **more})


def limited(name, of_http=None, of_tcp=None, thresholds=None, asks=(), cluster=None, **more):
    """A case with a connectionPool, and its equivalent in Envoy's cluster."""
    pool = {**({"http": of_http} if of_http else {}), **({"tcp": of_tcp} if of_tcp else {})}
    return Case(name, policy={"connectionPool": pool}, cluster={"thresholds": thresholds or {}, **(cluster or {})},
                asks=list(asks), **{"same": ("outcomes",), **more})


def retried(name, policy, thresholds, asks, on="503", attempts=1):
    return Case(name, policy=policy, cluster={"thresholds": thresholds}, same=("outcomes",), asks=asks,
                http=[{"retries": {"attempts": attempts, "retryOn": on}}],
                envoy=[route(retry_policy=retry(on, attempts))])


def overflow_headers(weft, theirs):
    of = lambda results: sorted((r["headers"], r["body"]) for r in results if r["status"] == 503)
    return of(weft) == of(theirs) and ["x-envoy-overloaded", "true"] in of(weft)[0][0]


ONE_EACH = {"http1MaxPendingRequests": 1}, {"maxConnections": 1}, {"max_connections": 1, "max_pending_requests": 1}
CASES = [
    limited("limits: one connection, one waits, the third is refused", *ONE_EACH, asks=[in_turn(3)]),
    limited("limits: one connection, one waits, eight at once", *ONE_EACH, asks=[in_turn(8)]),
    limited("limits: one connection and one request after the other", *ONE_EACH, asks=[Ask(times=10)]),
    limited("limits: two connections and two that wait", {"http1MaxPendingRequests": 2}, {"maxConnections": 2},
            {"max_connections": 2, "max_pending_requests": 2}, [in_turn(6)]),
    limited("limits: one connection and all wait", None, {"maxConnections": 1}, {"max_connections": 1}, [at_once(4, "sleep:50")]),
    limited("limits: the number of requests", {"http2MaxRequests": 2}, None, {"max_requests": 2}, [at_once(5)]),
    limited("limits: refused requests are not retried", {"http2MaxRequests": 1}, None, {"max_requests": 1}, [at_once(3)],
            http=[{"retries": {"attempts": 3, "retryOn": "5xx,reset"}}], envoy=[route(retry_policy=retry("5xx,reset", 3))]),
    limited("limits: a refused request's headers and body", {"http2MaxRequests": 1}, None, {"max_requests": 1}, [at_once(2)],
            check=overflow_headers),
    limited("limits: a refused request with a body", *ONE_EACH,
            asks=[in_turn(4, method="POST", body="x" * 3000)]),
    limited("limits: zero is no limit", {"http2MaxRequests": 0, "http1MaxPendingRequests": 0}, {"maxConnections": 0}, {},
            [at_once(8, "sleep:50")]),
    limited("limits: a new connection for each request", {"maxRequestsPerConnection": 1}, None, {}, [Ask(times=5)],
            {"max_requests_per_connection": 1}, kept=True, same=(*FATE, "connections")),
    limited("limits: a new connection after three requests", {"maxRequestsPerConnection": 3}, None, {}, [Ask(times=7)],
            {"max_requests_per_connection": 3}, kept=True, same=(*FATE, "connections")),
    limited("limits: one connection for all without a limit", {"maxRequestsPerConnection": 0}, None, {}, [Ask(times=7)],
            kept=True, same=(*FATE, "connections"), check=lambda w, e: len({r["connection"] for r in w}) == 1),
    limited("limits: one connection used once at a time", {"maxRequestsPerConnection": 1}, {"maxConnections": 1},
            {"max_connections": 1}, [at_once(4, "sleep:30")], {"max_requests_per_connection": 1}),
    Case("limits: of a subset alone", subsets=["a", "b"], endpoints=[Endpoint(7001, labels={"version": "a"}),
                                                                     Endpoint(7002, labels={"version": "b"})],
         subset_policies={"a": {"connectionPool": {"http": {"http2MaxRequests": 1}}}},
         subset_clusters={"a": {"thresholds": {"max_requests": 1}}},
         http=[{"match": [{"uri": {"prefix": "/a"}}], "to": [("a", None, {})]}, {"to": [("b", None, {})]}],
         envoy=[{**route({"prefix": "/a"}), "route": {"cluster": "@a"}}, {**route(), "route": {"cluster": "@b"}}],
         asks=[Ask("/a", times=3, at_once=3, do="sleep:400"), Ask("/b", times=3, at_once=3, do="sleep:50")], same=("outcomes",)),
    Case("limits: a subset's policy takes the place of the service's", subsets=["a"], endpoints=[Endpoint(7001, labels={"version": "a"})],
         policy={"connectionPool": {"http": {"http2MaxRequests": 1}}},
         subset_policies={"a": {"connectionPool": {"http": {"http2MaxRequests": 3}}}},
         cluster={"thresholds": {"max_requests": 1}}, subset_clusters={"a": {"thresholds": {"max_requests": 3}}},
         http=[{"match": [{"uri": {"prefix": "/a"}}], "to": [("a", None, {})]}, {}],
         envoy=[{**route({"prefix": "/a"}), "route": {"cluster": "@a"}}, route()],
         asks=[Ask("/a", times=5, at_once=5, do="sleep:400"), Ask("/b", times=3, at_once=3, do="sleep:400")], same=("outcomes",)),
    limited("limits: of all endpoints together", *ONE_EACH, endpoints=[Endpoint(7001), Endpoint(7002)], asks=[in_turn(6)],
            same=(), differs="a limit holds over all endpoints, Envoy exceeds it by a connection for each",
            check=lambda w, e: sum(r["status"] == 200 for r in w) == 2 <= sum(r["status"] == 200 for r in e)),
    retried("limits: one retry at a time", {"connectionPool": {"http": {"maxRetries": 1}}}, {"max_retries": 1},
            [at_once(3, "503,sleep:600")]),
    retried("limits: two retries at a time", {"connectionPool": {"http": {"maxRetries": 2}}}, {"max_retries": 2},
            [at_once(5, "503,sleep:600")]),
    retried("limits: retries one after the other are not too many", {"connectionPool": {"http": {"maxRetries": 1}}},
            {"max_retries": 1}, [Ask(do="503,503,200", times=4)], attempts=3),
    retried("limits: a budget's least number of retries", {"retryBudget": {"percent": 10, "minRetryConcurrency": 2}},
            {"retry_budget": {"budget_percent": {"value": 10}, "min_retry_concurrency": 2}}, [at_once(6, "503,sleep:800")]),
    retried("limits: a budget's share of the requests", {"retryBudget": {"percent": 50, "minRetryConcurrency": 1}},
            {"retry_budget": {"budget_percent": {"value": 50}, "min_retry_concurrency": 1}}, [at_once(8, "sleep:300|503,sleep:900")]),
    Case("limits: a connection that is refused", endpoints=[Endpoint(REFUSING)], same=FATE),
    Case("limits: refused, and answered by the other endpoint", endpoints=[Endpoint(REFUSING), Endpoint(7001)],
         asks=[Ask(times=20)], same=("status",), check=lambda w, e: all(r["status"] == 200 for r in w)),
    limited("limits: connectTimeout", None, {"connectTimeout": "0.2s"}, {}, [Ask()], {"connect_timeout": "0.2s"},
            endpoints=[Endpoint(STUCK)], same=FATE),
    limited("limits: connectTimeout, and answered by the other endpoint", None, {"connectTimeout": "0.1s"}, {}, [Ask(times=8)],
            {"connect_timeout": "0.1s"}, endpoints=[Endpoint(STUCK), Endpoint(7001)], same=("status",)),
]
