"""retries, timeout and fault: the attempts of a request, and its result."""
from case import FATE, REFUSING, Ask, Case, Endpoint
from envoy import retry, route

TRIED = (*FATE, "body")


def retried(name, on, do, attempts=2, asks=None, of_envoy=None, **more):
    """A policy of `attempts` on `on`, for requests whose attempts end by the words of `do`."""
    asks = asks or [Ask(do=one) for one in (do if isinstance(do, list) else [do])]
    retries = {"attempts": attempts, "retryOn": on, **more.pop("retries", {})}
    return Case(f"retries: {name}", http=[{"retries": retries}], envoy=[route(retry_policy=of_envoy or retry(on, attempts))],
                asks=asks, **{"same": TRIED, **more})


def timed(name, istio, of_envoy, asks, **more):
    return Case(f"timeouts: {name}", http=[istio], envoy=[route(**of_envoy)], asks=asks, **{"same": TRIED, **more})


def faulty(name, fault, of_envoy, asks=None, istio=None, more_envoy=None, **more):
    filters = {"typed_per_filter_config": {"envoy.filters.http.fault": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault", **of_envoy}}}
    return Case(f"faults: {name}", http=[{"fault": fault, **(istio or {})}], envoy=[{**route(**(more_envoy or {})), **filters}],
                asks=asks or [Ask()], **{"same": TRIED, **more})


def percent(value):
    return {"percentage": {"value": value}}, {"percentage": {"numerator": int(value * 10_000), "denominator": "MILLION"}}


ALWAYS, OF_ENVOY = percent(100)
NEVER, NEVER_ENVOY = percent(0)
GRPC = {"content-type": "application/grpc"}
# Envoy reads these headers of internal requests alone.
INSIDE = {"x-forwarded-for": "10.0.0.1"}
TWO = [Endpoint(7001), Endpoint(7002)]


def at_least(seconds):
    return lambda weft, theirs: all(result["took"] > 0.95 * seconds for result in weft + theirs)


CASES = [
    Case("retries: the default does not repeat 5xx", asks=[Ask(do="500,200"), Ask(do="503,200"), Ask(do="502,200")], same=TRIED),
    Case("retries: the default repeats on the gRPC statuses UNAVAILABLE and CANCELLED", same=("status", "attempts", "headers"),
         asks=[Ask(headers={**GRPC, "x-answer": f"grpc-status: {code}"}) for code in (0, 1, 2, 4, 13, 14)]),
    Case("retries: none where attempts is 0", http=[{"retries": {"attempts": 0}}],
         envoy=[route(retry_policy={"num_retries": 0})], asks=[Ask(do="503,200")], same=TRIED),
    retried("5xx repeats every server's error", "5xx", ["500,200", "502,200", "503,200", "504,200", "599,200", "404,200"]),
    retried("5xx repeats a reset connection", "5xx", "reset,200", asks=[Ask(method="POST", body="x", do="reset,200")]),
    retried("gateway-error repeats 502, 503 and 504", "gateway-error", ["500,200", "502,200", "503,200", "504,200"]),
    retried("retriable-4xx repeats 409 alone", "retriable-4xx", ["409,200", "404,200", "429,200", "503,200"]),
    retried("statuses by number", "503,418", ["503,200", "418,200", "500,200", "502,200"]),
    retried("a status by number is the server's, not the proxy's", "503", "200", endpoints=[Endpoint(REFUSING)], same=FATE),
    retried("reset repeats a connection that ends without an answer", "reset", "",
            asks=[Ask(method="POST", body="x", do="reset,200"), Ask(do="503,200")]),
    retried("connect-failure repeats where no process listens", "connect-failure", "200", endpoints=[Endpoint(REFUSING)], same=FATE),
    retried("connect-failure does not repeat an answer", "connect-failure", ["503,200", "500,200"]),
    retried("refused-stream is of HTTP/2", "refused-stream", ["503,200"]),
    retried("several conditions", "gateway-error,retriable-4xx,418", ["418,409,200", "502,418,200", "500,200"]),
    retried("as often as configured", "5xx", ["503,503,503,200", "503,503,200", "503"], attempts=2),
    retried("many attempts", "5xx", ["503,503,503,503,503,200"], attempts=5),
    retried("one attempt more", "5xx", ["503,503,200", "503,200"], attempts=1),
    retried("an answer that is not retried ends them", "503", ["503,500,200"]),
    retried("the body is sent again", "5xx", "", asks=[Ask(method="POST", body="b" * 5000, do="503,503,200")],
            same=("status", "attempts", "seen", "flags")),
    retried("another endpoint is tried", "5xx", "", asks=[Ask(do="503,200", times=12)], endpoints=TWO, same=FATE,
            # Six picks at random may all be the one that was tried.
            check=lambda w, e: all(sum(len(set(r["tried"])) == 2 for r in results) >= 9 for results in (w, e))),
    retried("they wait longer each time", "5xx", "", asks=[Ask(do="503", times=4, at_once=4)], attempts=4, same=FATE,
            retries={"backoff": "0.4s"}, of_envoy=retry("5xx", 4, retry_back_off={"base_interval": "0.4s"}),
            # Each wait is drawn from nothing to 0.4, 0.8, 1.6 and 3.2 s.
            check=lambda w, e: all(0.4 < max(r["took"] for r in results) < 7 for results in (w, e))),
    retried("the same endpoint may be tried", "5xx", "", asks=[Ask(do="503", times=30)], endpoints=TWO, same=FATE, attempts=1,
            retries={"retryIgnorePreviousHosts": False},
            of_envoy={key: value for key, value in retry("5xx", 1).items() if "host" not in key},
            check=lambda w, e: all(0 < sum(len(set(r["tried"])) == 1 for r in results) < 30 for results in (w, e))),
    retried("cancelled, deadline-exceeded, internal, resource-exhausted, unavailable are gRPC's",
            "cancelled,deadline-exceeded,internal,resource-exhausted,unavailable", "", same=("status", "attempts"),
            asks=[Ask(headers={**GRPC, "x-answer": f"grpc-status: {code}"}) for code in (0, 1, 2, 3, 4, 5, 8, 12, 13, 14, 16)]),
    Case("retries: a client asks for them", asks=[
        Ask(headers={**INSIDE, "x-envoy-retry-on": "5xx"}, do="503,200"), Ask(headers={**INSIDE, "x-envoy-retry-on": "5xx", "x-envoy-max-retries": "1"}, do="503,503,200"),
        Ask(headers={**INSIDE, "x-envoy-retry-on": "gateway-error", "x-envoy-max-retries": "3"}, do="502,503,504,200"),
        Ask(headers={**INSIDE, "x-envoy-retry-on": "nonsense"}, do="503,200"), Ask(headers={**INSIDE, "x-envoy-max-retries": "4"}, do="503,200"),
        Ask(headers={**INSIDE, "x-envoy-retry-grpc-on": "internal", **GRPC, "x-answer": "grpc-status: 13"})], same=("status", "attempts", "flags")),
    Case("retries: a client asks for statuses",
         asks=[Ask(headers={**INSIDE, "x-envoy-retry-on": "retriable-status-codes", "x-envoy-retriable-status-codes": "418,500"}, do=do)
               for do in ("418,200", "500,200", "503,200")], same=("status", "attempts", "flags")),
    timed("a request that takes too long", {"timeout": "0.2s"}, {"timeout": "0.2s"}, [Ask(do="sleep:900"), Ask(do="sleep:20")]),
    timed("it covers all attempts", {"timeout": "0.5s", "retries": {"attempts": 3, "retryOn": "5xx"}},
          {"timeout": "0.5s", "retry_policy": retry("5xx", 3)}, [Ask(do="503,sleep:1500")]),
    timed("none by default", {}, {}, [Ask(do="sleep:400")]),
    timed("the client's wish is shorter", {"timeout": "3s"}, {"timeout": "3s"},
          [Ask(headers={**INSIDE, "x-envoy-upstream-rq-timeout-ms": "200"}, do="sleep:900")]),
    timed("the client's wish is longer", {"timeout": "0.2s"}, {"timeout": "0.2s"},
          [Ask(headers={**INSIDE, "x-envoy-upstream-rq-timeout-ms": "3000"}, do="sleep:500")]),
    timed("a gRPC call's own, up to the route's", {"timeout": "0.5s"}, {"timeout": "0.5s", "max_grpc_timeout": "0.5s"},
          [Ask(headers={**GRPC, "grpc-timeout": "200m"}, do="sleep:1200"), Ask(headers={**GRPC, "grpc-timeout": "5S"}, do="sleep:1200")],
          same=("status", "attempts", "flags", "headers")),
    timed("of an attempt", {"retries": {"attempts": 1, "retryOn": "5xx", "perTryTimeout": "0.2s"}},
          {"retry_policy": retry("5xx", 1, per_try_timeout="0.2s")}, [Ask(do="sleep:900,200"), Ask(do="sleep:900")]),
    timed("of an attempt, and no retry asks for it", {"retries": {"attempts": 2, "retryOn": "connect-failure", "perTryTimeout": "0.2s"}},
          {"retry_policy": retry("connect-failure", 2, per_try_timeout="0.2s")}, [Ask(do="sleep:900,200")]),
    timed("of an attempt, not shorter than the route's", {"timeout": "0.3s", "retries": {"attempts": 2, "retryOn": "5xx", "perTryTimeout": "1s"}},
          {"timeout": "0.3s", "retry_policy": retry("5xx", 2, per_try_timeout="1s")}, [Ask(do="sleep:2000")]),
    timed("the client's wish for an attempt", {"retries": {"attempts": 1, "retryOn": "5xx"}}, {"retry_policy": retry("5xx", 1)},
          [Ask(headers={**INSIDE, "x-envoy-upstream-rq-per-try-timeout-ms": "200"}, do="sleep:900,200")]),
    timed("a gRPC call ends with a gRPC status", {"timeout": "0.2s"}, {"timeout": "0.2s"}, [Ask(headers=GRPC, do="sleep:900")],
          same=("status", "flags", "attempts")),
    faulty("a status", {"abort": {"httpStatus": 418, **ALWAYS}}, {"abort": {"http_status": 418, **OF_ENVOY}}),
    faulty("gRPC's status for a call", {"abort": {"grpcStatus": "NOT_FOUND", **ALWAYS}}, {"abort": {"grpc_status": 5, **OF_ENVOY}},
           [Ask(headers=GRPC)], same=("status", "headers", "attempts", "flags")),
    faulty("gRPC's status for other requests", {"abort": {"grpcStatus": "UNAVAILABLE", **ALWAYS}}, {"abort": {"grpc_status": 14, **OF_ENVOY}},
           same=("attempts", "flags", "body"), check=lambda w, e: (w[0]["status"], e[0]["status"]) == (503, 200),
           differs="a request that is not a gRPC call gets the HTTP status for gRPC's, from Envoy 200"),
    faulty("never by a share of 0", {"abort": {"httpStatus": 500, **NEVER}}, {"abort": {"http_status": 500, **NEVER_ENVOY}}, [Ask(times=10)]),
    faulty("half of the requests", {"abort": {"httpStatus": 500, **percent(50)[0]}}, {"abort": {"http_status": 500, **percent(50)[1]}},
           [Ask(times=200)], same=(), check=lambda w, e: all(60 < sum(r["status"] == 500 for r in results) < 140 for results in (w, e))),
    faulty("a delay", {"delay": {"fixedDelay": "0.3s", **ALWAYS}}, {"delay": {"fixed_delay": "0.3s", **OF_ENVOY}}, check=at_least(0.3)),
    faulty("a delay and then an abort", {"delay": {"fixedDelay": "0.2s", **ALWAYS}, "abort": {"httpStatus": 503, **ALWAYS}},
           {"delay": {"fixed_delay": "0.2s", **OF_ENVOY}, "abort": {"http_status": 503, **OF_ENVOY}}, check=at_least(0.2)),
    faulty("an abort is not retried", {"abort": {"httpStatus": 503, **ALWAYS}}, {"abort": {"http_status": 503, **OF_ENVOY}},
           istio={"retries": {"attempts": 3, "retryOn": "5xx"}}, more_envoy={"retry_policy": retry("5xx", 3)}),
    faulty("a delay is no part of the timeout", {"delay": {"fixedDelay": "0.4s", **ALWAYS}}, {"delay": {"fixed_delay": "0.4s", **OF_ENVOY}},
           istio={"timeout": "0.2s"}, more_envoy={"timeout": "0.2s"}),
]
