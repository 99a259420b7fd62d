"""outlierDetection: the endpoints that are ejected after each request. Keys choose endpoints, by a ring that is Envoy's."""
from case import FATE, REFUSING, Ask, Case, Endpoint
from envoy import HTTP_OPTIONS, retry, route

RING = {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}}}
HASH = {"hash_policy": [{"header": {"header_name": "x-user"}}]}
PORT = ("status", "port", "flags")


def of(user, do, times=1, **more):
    return Ask(headers={"x-user": user}, do=do, times=times, **more)


def ejecting(name, detection, of_envoy, asks, count=4, **more):
    cluster = {"lb_policy": "RING_HASH", "outlier_detection": of_envoy, **more.pop("cluster", {})}
    endpoints = more.pop("endpoints", [Endpoint(7001 + n) for n in range(count)])
    return Case(name, policy={**RING, "outlierDetection": detection}, cluster=cluster, action=HASH, endpoints=endpoints, asks=asks,
                **{"same": PORT, **more})


def moves(weft, _theirs):
    """The first endpoint has not got the last request."""
    return weft[0]["port"] != weft[-1]["port"]


def stays(weft, _theirs):
    return weft[0]["port"] == weft[-1]["port"]


ALL = {"maxEjectionPercent": 100}
THREE = {"consecutive5xxErrors": 3, **ALL}
ENVOY_ALL = {"max_ejection_percent": 100}
ENVOY_THREE = {"consecutive_5xx": 3, **ENVOY_ALL}
GATEWAY = {"consecutiveGatewayErrors": 2, "consecutive5xxErrors": 0, **ALL}
ENVOY_GATEWAY = {"consecutive_gateway_failure": 2, "enforcing_consecutive_gateway_failure": 100, "enforcing_consecutive_5xx": 0, **ENVOY_ALL}
SPLIT = {"splitExternalLocalOriginErrors": True, "consecutiveLocalOriginFailures": 2, "consecutive5xxErrors": 4, **ALL}
ENVOY_SPLIT = {"split_external_local_origin_errors": True, "consecutive_local_origin_failure": 2, "consecutive_5xx": 4,
               "enforcing_consecutive_local_origin_failure": 100, "enforcing_local_origin_success_rate": 0, **ENVOY_ALL}
QUICK = {"interval": "0.1s", "baseEjectionTime": "0.3s"}
ENVOY_QUICK = {"interval": "0.1s", "base_ejection_time": "0.3s"}


def on_error(codes):
    """Envoy's configuration of errors."""
    headers = [{"http_response_headers_match": {"headers": [{"name": ":status", "string_match": {"exact": str(code)}}]}} for code in codes]
    matcher = {"or_match": {"rules": headers}} if len(headers) > 1 else headers[0]
    return {"typed_extension_protocol_options": {HTTP_OPTIONS: {
        "@type": f"type.googleapis.com/{HTTP_OPTIONS}", "explicit_http_config": {"http_protocol_options": {}},
        "outlier_detection": {"error_matcher": matcher},
    }}}


CASES = [
    ejecting("outliers: the third error in a row ejects", THREE, ENVOY_THREE,
             [of("u", "500", 3), of("u", "200", 3, ejected=1)], check=moves),
    ejecting("outliers: two errors of three do not eject", THREE, ENVOY_THREE, [of("u", "500", 2), of("u", "200", 3)], check=stays),
    ejecting("outliers: a good answer between starts anew", THREE, ENVOY_THREE,
             [of("u", "500", 2), of("u", "200"), of("u", "500", 2), of("u", "200", 2)], check=stays),
    ejecting("outliers: a 404 between starts anew", THREE, ENVOY_THREE,
             [of("u", "500", 2), of("u", "404"), of("u", "500", 2), of("u", "200", 2)], check=stays),
    ejecting("outliers: 4xx never eject", THREE, ENVOY_THREE, [of("u", "429", 8), of("u", "200")], check=stays),
    ejecting("outliers: each endpoint has its own count", THREE, ENVOY_THREE,
             [of("u", "500", 2), of("v", "500", 2), of("w", "500", 2), of("x", "500", 2), of("y", "500", 2)]),
    ejecting("outliers: the defaults eject none of few", {}, {}, [of("u", "500", 7), of("u", "200", 2)], check=stays),
    ejecting("outliers: five errors by default", ALL, ENVOY_ALL, [of("u", "500", 4), of("u", "503"), of("u", "200", 2, ejected=1)],
             check=moves),
    Case("outliers: ten endpoints, and a tenth may go",
         policy={"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user", "maglev": {"tableSize": 65537}}},
                 "outlierDetection": {"consecutive5xxErrors": 2}},
         cluster={"lb_policy": "MAGLEV", "outlier_detection": {"consecutive_5xx": 2}}, action=HASH,
         endpoints=[Endpoint(7001 + n) for n in range(10)], same=PORT,
         asks=[of("u", "500", 2), of("u", "200", ejected=1), of("u", "500", 3), *[of(f"u{n}", "200") for n in range(20)]]),
    ejecting("outliers: half of two may go", {"consecutive5xxErrors": 1, "maxEjectionPercent": 50},
             {"consecutive_5xx": 1, "max_ejection_percent": 50},
             [of("u", "500"), of("u", "500", ejected=1), *[of(f"u{n}", "200") for n in range(8)]], count=2),
    ejecting("outliers: less than half of two may go", {"consecutive5xxErrors": 1, "maxEjectionPercent": 49},
             {"consecutive_5xx": 1, "max_ejection_percent": 49}, [of("u", "500", 3), of("u", "200")], count=2, check=stays),
    ejecting("outliers: a third of four may go", {"consecutive5xxErrors": 1, "maxEjectionPercent": 33},
             {"consecutive_5xx": 1, "max_ejection_percent": 33},
             [of("u", "500"), of("u", "500", ejected=1), of("u", "500"), *[of(f"u{n}", "200") for n in range(8)]]),
    ejecting("outliers: all are ejected and none is left", {"consecutive5xxErrors": 1, **ALL}, {"consecutive_5xx": 1, **ENVOY_ALL},
             [of("u", "500"), of("u", "500", ejected=1), of("u", "200", 3, ejected=2)], count=2,
             same=("status", "port", "flags", "headers", "body"), check=lambda w, e: w[-1]["flags"] == "UH"),
    ejecting("outliers: minHealthPercent calls on all in a panic",
             {"consecutive5xxErrors": 1, "minHealthPercent": 60, **ALL}, {"consecutive_5xx": 1, **ENVOY_ALL},
             [of("u", "500"), of("u", "500", ejected=1), *[of(f"u{n}", "200", ejected=2) for n in range(10)]], count=3,
             cluster={"min_health_percent": 60}),
    ejecting("outliers: minHealthPercent is not reached yet",
             {"consecutive5xxErrors": 1, "minHealthPercent": 60, **ALL}, {"consecutive_5xx": 1, **ENVOY_ALL},
             [of("u", "500"), *[of(f"u{n}", "200", ejected=1) for n in range(10)]], count=3, cluster={"min_health_percent": 60}),
    ejecting("outliers: a 500 is no gateway's error", GATEWAY, ENVOY_GATEWAY, [of("u", "500", 6), of("u", "200")], check=stays),
    ejecting("outliers: 502 and 504 are a gateway's errors", GATEWAY, ENVOY_GATEWAY,
             [of("u", "502"), of("u", "504"), of("u", "200", ejected=1)], check=moves),
    ejecting("outliers: a 500 between gateway's errors starts anew", GATEWAY, ENVOY_GATEWAY,
             [of("u", "503"), of("u", "500"), of("u", "503"), of("u", "200")], check=stays),
    ejecting("outliers: gateway's errors count as errors too",
             {"consecutiveGatewayErrors": 5, "consecutive5xxErrors": 3, **ALL},
             {"consecutive_gateway_failure": 5, "enforcing_consecutive_gateway_failure": 100, "consecutive_5xx": 3, **ENVOY_ALL},
             [of("u", "503", 2), of("u", "500"), of("u", "200", ejected=1)], check=moves),
    ejecting("outliers: a reset connection is an error", THREE, ENVOY_THREE,
             [of("u", "reset", 3), of("u", "200", ejected=1)], same=("port", "status"), check=moves),
    ejecting("outliers: a timeout is an error", THREE, ENVOY_THREE, [of("u", "sleep:600", 3), of("u", "200", ejected=1)], check=moves,
             http=[{"timeout": "0.1s"}], envoy=[route(timeout="0.1s", **HASH)]),
    ejecting("outliers: a timeout is a gateway's error", GATEWAY, ENVOY_GATEWAY, [of("u", "sleep:600", 2), of("u", "200", ejected=1)],
             check=moves, http=[{"timeout": "0.1s"}], envoy=[route(timeout="0.1s", **HASH)]),
    ejecting("outliers: split, resets after a connection was made do not add up", SPLIT, ENVOY_SPLIT,
             [of("u", "reset", 4), of("u", "200")], same=("port", "status"), check=stays),
    ejecting("outliers: split, a reset is no 5xx", SPLIT, ENVOY_SPLIT,
             [of("u", "500", 3), of("u", "reset"), of("u", "200")], same=("port", "status"), check=stays),
    ejecting("outliers: split, an error does not end the row of resets", SPLIT, ENVOY_SPLIT,
             [of("u", "reset"), of("u", "500"), of("u", "reset"), of("u", "200")], same=("port", "status")),
    ejecting("outliers: split, a timeout after a connection was made does not add up", SPLIT, ENVOY_SPLIT,
             [of("u", "sleep:600", 5), of("u", "200")], check=stays, http=[{"timeout": "0.1s"}], envoy=[route(timeout="0.1s", **HASH)]),
    ejecting("outliers: split, 5xx eject as ever", SPLIT, ENVOY_SPLIT, [of("u", "500", 4), of("u", "200", ejected=1)], check=moves),
    ejecting("outliers: a refused connection is an error", {"consecutive5xxErrors": 2, **ALL}, {"consecutive_5xx": 2, **ENVOY_ALL},
             [*[of(f"u{n}", "200") for n in range(12)], *[of(f"u{n}", "200", ejected=1) for n in range(12)]],
             endpoints=[Endpoint(REFUSING), Endpoint(7001)], same=("status",), check=lambda w, e: all(r["status"] == 200 for r in w[12:]),
             http=[{"retries": {"attempts": 0}}], envoy=[{"match": {"prefix": "/"}, "route": {
                 "cluster": "@", "retry_policy": {"num_retries": 0}, **HASH}}]),
    ejecting("outliers: codes that count", {"consecutive5xxErrors": 2, "outlierDetectionHttpErrorCodes": [429, 500], **ALL},
             {"consecutive_5xx": 2, **ENVOY_ALL}, [of("u", "429", 2), of("u", "200", ejected=1)], cluster=on_error([429, 500]), check=moves),
    ejecting("outliers: codes that do not count", {"consecutive5xxErrors": 2, "outlierDetectionHttpErrorCodes": [429], **ALL},
             {"consecutive_5xx": 2, **ENVOY_ALL}, [of("u", "500", 4), of("u", "200")], cluster=on_error([429]), check=stays),
    ejecting("outliers: gRPC's status in the headers of a call", THREE, ENVOY_THREE,
             [Ask(headers={"x-user": "u", "content-type": "application/grpc", "x-answer": "grpc-status: 13"}, times=3),
              of("u", "200", ejected=1)], same=("status", "port"), check=moves),
    ejecting("outliers: gRPC's status in the headers of other responses", THREE, ENVOY_THREE,
             [Ask(headers={"x-user": "u", "x-answer": "grpc-status: 14"}, times=3), of("u", "200")], same=("status", "port")),
    ejecting("outliers: gRPC's refusals are no errors", THREE, ENVOY_THREE,
             [Ask(headers={"x-user": "u", "content-type": "application/grpc", "x-answer": "grpc-status: 7"}, times=5), of("u", "200")],
             same=("status", "port"), check=stays),
    ejecting("outliers: an ejected endpoint comes back", {"consecutive5xxErrors": 1, **ALL, **QUICK},
             {"consecutive_5xx": 1, **ENVOY_ALL, **ENVOY_QUICK}, [of("u", "500"), of("u", "200", until=200)], count=1, check=stays),
    ejecting("outliers: consecutive5xxErrors of 0 ejects none", {"consecutive5xxErrors": 0, **ALL},
             {"enforcing_consecutive_5xx": 0, **ENVOY_ALL}, [of("u", "500", 8), of("u", "200")], check=stays),
    ejecting("outliers: each attempt counts", THREE, ENVOY_THREE, [of("u", "503"), of("u", "200", ejected=1)],
             http=[{"retries": {"attempts": 2, "retryOn": "5xx"}}], envoy=[route(retry_policy=retry("5xx", 2, hashed=True), **HASH)],
             same=("status", "port", "tried", "flags")),
    Case("outliers: a subset's ejections are its own", subsets=["a", "b"], policy={**RING, "outlierDetection": THREE},
         cluster={"lb_policy": "RING_HASH", "outlier_detection": ENVOY_THREE}, endpoints=[
             Endpoint(7001, labels={"version": "a"}), Endpoint(7002, labels={"version": "b"})],
         http=[{"match": [{"uri": {"prefix": "/a"}}], "to": [("a", None, {})]}, {"match": [{"uri": {"prefix": "/b"}}], "to": [("b", None, {})]}, {}],
         envoy=[{"match": {"prefix": "/a"}, "route": {"cluster": "@a", **HASH}}, {"match": {"prefix": "/b"}, "route": {"cluster": "@b", **HASH}},
                route(**HASH)],
         asks=[Ask("/a", headers={"x-user": "u"}, do="500@7001", times=3), Ask("/b", headers={"x-user": "u"}),
               *[Ask("/c", headers={"x-user": f"u{n}"}) for n in range(6)]], same=PORT),
]
