"""The same endpoint as Envoy for each key."""
import collections
import re

from case import Ask, Case, Endpoint
from envoy import route, weighted

KEYS = 10_000


def endpoints(count, weights=(1,)):
    return [Endpoint(7001 + n, weight=weights[n % len(weights)]) for n in range(count)]


def hashed(name, by, policy, asks, members, algorithm="ring", size=None, **more):
    """`by`: Istio's key; `policy`: Envoy's. Compared request by request."""
    istio = {**by}
    if algorithm == "maglev":
        istio["maglev"] = {"tableSize": size or 65537}
        cluster = {"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": size or 65537}}
    else:
        if size:
            istio["ringHash"] = {"minimumRingSize": size}
        cluster = {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": size or 1024}}
    cluster.update(more.pop("cluster", {}))
    balancer = {"loadBalancer": {"consistentHash": istio}, **more.pop("policy_more", {})}
    return Case(name, policy=balancer, cluster=cluster, action={"hash_policy": [policy]}, endpoints=members,
                asks=asks if isinstance(asks, list) else [asks], **{"same": ("status", "port"), **more})


HEADER = {"httpHeaderName": "x-user"}, {"header": {"header_name": "x-user"}}
QUERY = {"httpQueryParameterName": "user"}, {"query_parameter": {"name": "user"}}
SOURCE = {"useSourceIp": True}, {"connection_properties": {"source_ip": True}}


def cookie(ttl=None, path="", attributes=()):
    istio, envoy = {"name": "session"}, {"name": "session"}
    if ttl is not None:
        istio["ttl"] = envoy["ttl"] = ttl
    if path:
        istio["path"] = envoy["path"] = path
    if attributes:
        istio["attributes"] = envoy["attributes"] = [{"name": name, "value": value} for name, value in attributes]
    return {"httpCookie": istio}, {"cookie": envoy}


USERS = Ask(headers={"x-user": "user-{i}"}, times=KEYS, bulk=True)
SOME = Ask(headers={"x-user": "user-{i}"}, times=1000, bulk=True)


def same_shape(weft, theirs):
    """The cookie's value depends on the client's port: all but it is the same."""
    shapes = [[re.sub('"[0-9a-f]{16}"', "VALUE", value) for name, value in result["headers"] if name == "set-cookie"]
              for results in (weft, theirs) for result in results]
    return len(shapes[0]) == 1 and "VALUE" in shapes[0][0] and all(shape == shapes[0] for shape in shapes)


def each_has_some(weft, theirs):
    """Endpoints are the same share of the ring with both, and some keys are where Envoy has them."""
    shares = [collections.Counter(result["port"] for result in results) for results in (weft, theirs)]
    return all(len(share) == 20 and min(share.values()) > KEYS / 20 / 2 for share in shares)


def one_endpoint_each(weft, theirs):
    return all(len({result["port"] for result in results}) == 1 for results in (weft, theirs))


def same_in_subset(weft, theirs):
    """The subset is random; within it the key decides."""
    version = lambda result: int(result["port"]) > 7003
    pairs = [(ours, other) for ours, other in zip(weft, theirs) if version(ours) == version(other)]
    return len(pairs) > len(weft) / 3 and all(ours["port"] == other["port"] for ours, other in pairs)


def two_subsets(name, algorithm):
    versions = [Endpoint(7001 + n, labels={"version": "a" if n < 3 else "b"}) for n in range(6)]
    by, policy = HEADER
    case = hashed(name, by, policy, Ask(headers={"x-user": "user-{i}"}, times=3000, bulk=True), versions, algorithm,
                  subsets=["a", "b"], same=("status", "spread"), check=same_in_subset,
                  http=[{"to": [("a", 70, {}), ("b", 30, {})]}])
    # Each destination's policy is appended to the route, so that it is there twice.
    case.same = ("status",)
    case.envoy = [route(**weighted(("a", 70, {}), ("b", 30, {})), hash_policy=[policy, policy])]
    return case


CASES = [
    hashed("ring: 10,000 keys by header", *HEADER, USERS, endpoints(5)),
    hashed("ring: 10,000 keys by header with one endpoint less", *HEADER, USERS, endpoints(4)),
    hashed("ring: 10,000 keys by header over 20 endpoints", *HEADER, USERS, endpoints(20), same=("status",), check=each_has_some,
           differs="a ring of more than eight keeps the number of entries of each, so that few keys move when one leaves"),
    hashed("ring: 10,000 keys by weight", *HEADER, USERS, endpoints(5, (1, 2, 5))),
    hashed("maglev: 10,000 keys by header", *HEADER, USERS, endpoints(5), "maglev"),
    hashed("maglev: 10,000 keys by header with one endpoint less", *HEADER, USERS, endpoints(4), "maglev"),
    hashed("maglev: 10,000 keys by weight", *HEADER, USERS, endpoints(5, (1, 2, 5)), "maglev"),
    hashed("maglev: keys in a small table", *HEADER, SOME, endpoints(5), "maglev", 307),
    hashed("maglev: keys over 20 endpoints", *HEADER, SOME, endpoints(20), "maglev"),
    hashed("ring: keys on a small ring", *HEADER, SOME, endpoints(3), size=16),
    hashed("ring: keys on a large ring", *HEADER, SOME, endpoints(7), size=8192),
    hashed("ring: extreme weights", *HEADER, SOME, endpoints(4, (1, 100)), size=64),
    Case("ring: the deprecated place of its size", endpoints=endpoints(3), asks=[SOME], same=("status", "port"),
         policy={"loadBalancer": {"consistentHash": {**HEADER[0], "minimumRingSize": 48}}},
         cluster={"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 48}},
         action={"hash_policy": [HEADER[1]]}),
    hashed("ring: 10,000 keys by cookie", *cookie(), Ask(headers={"cookie": "session=s-{i}"}, times=KEYS, bulk=True), endpoints(5)),
    hashed("maglev: keys by cookie among others", *cookie(),
           Ask(headers={"cookie": "a=b; session=s-{i}; sessions=3"}, times=1000, bulk=True), endpoints(5), "maglev"),
    hashed("ring: cookies quoted, twice and in several headers", *cookie("5s"), [
        Ask(headers={"cookie": 'session="s-{i}"'}, times=200, bulk=True),
        Ask(headers={"cookie": "session=s-{i}; session=other"}, times=200, bulk=True),
        Ask(headers={"cookie": ["a=1", "session=s-{i}"]}, times=200, bulk=True),
        Ask(headers={"cookie": " session=s-{i} "}, times=200, bulk=True),
        Ask(headers={"cookie": "session=a=b-{i}"}, times=200, bulk=True),
    ], endpoints(5)),
    hashed("ring: 10,000 keys by query parameter", *QUERY, Ask("/a?b=c&user=u-{i}", times=KEYS, bulk=True), endpoints(5)),
    hashed("ring: query parameters encoded, twice, with plus and percent", *QUERY, [
        Ask("/?user=a%20b-{i}", times=200, bulk=True),
        Ask("/?user=a+b-{i}&x", times=200, bulk=True),
        Ask("/?user=x-{i}&user=y-{i}", times=200, bulk=True),
        Ask("/?USER=q&user=x-{i}", times=200, bulk=True),
        Ask("/?user=x={i}", times=200, bulk=True),
        Ask("/p;user=1?user=x-{i}%26a", times=200, bulk=True),
    ], endpoints(5)),
    hashed("ring: an empty query parameter", *QUERY, [Ask("/?user=", times=5), Ask("/?a=b&user=&c", times=5)], endpoints(5)),
    hashed("ring: keys by the client's address", *SOURCE, Ask(source="127.0.0.{i}", times=60), endpoints(5)),
    hashed("maglev: keys by the client's address", *SOURCE, Ask(source="127.0.1.{i}", times=60), endpoints(5), "maglev"),
    hashed("ring: several values of one header", *HEADER, [
        Ask(headers={"x-user": ["a-{i}", "b"]}, times=300, bulk=True),
        Ask(headers={"x-user": ["b", "a-{i}"]}, times=300, bulk=True),
        Ask(headers={"x-user": ["c-{i}", "a", "b-{i}"]}, times=300, bulk=True),
        Ask(headers={"x-user": "a-{i},b"}, times=300, bulk=True),
    ], endpoints(5)),
    hashed("ring: a header's case counts in its value and not in its name", *HEADER, [
        Ask(headers={"X-User": "User-{i}"}, times=200, bulk=True), Ask(headers={"x-USER": "user-{i}"}, times=200, bulk=True),
    ], endpoints(5)),
    hashed("ring: an empty header", *HEADER, Ask(headers={"x-user": ""}, times=5), endpoints(5)),
    hashed("ring: a missing header means any endpoint", *HEADER, Ask(times=3000, bulk=True), endpoints(4), same=("spread",)),
    hashed("maglev: a missing header means any endpoint", *HEADER, Ask(times=3000, bulk=True), endpoints(4, (3, 1)), "maglev",
           same=("spread",)),
    hashed("ring: a missing cookie without a ttl means any endpoint", *cookie(), Ask(times=3000, bulk=True), endpoints(4),
           same=("spread",)),
    hashed("ring: a generated cookie", *cookie("60s", "/shop"), Ask(times=5), endpoints(4), check=same_shape, same=("status",)),
    hashed("ring: a generated cookie of a session", *cookie("0s"), Ask(times=5), endpoints(4), check=same_shape, same=("status",)),
    hashed("ring: a generated cookie's attributes", *cookie("5s", "/", [("SameSite", "Strict"), ("Secure", "")]), Ask(), endpoints(4),
           check=same_shape, same=("status",)),
    hashed("ring: a connection keeps the endpoint of its generated cookie", *cookie("60s", "/"), Ask(times=10), endpoints(8),
           kept=True, check=lambda w, e: same_shape(w, e) and one_endpoint_each(w, e), same=("status",)),
    two_subsets("ring: in weighted subsets the key decides within each", "ring"),
    two_subsets("maglev: in weighted subsets the key decides within each", "maglev"),
    hashed("ring: an ejected endpoint's keys move as Envoy's do", *HEADER, [
        Ask(headers={"x-user": "user-1"}, do="500", times=2), Ask(headers={"x-user": "user-{i}"}, times=1000, bulk=True, ejected=1),
    ], endpoints(5), cluster={"outlier_detection": {"consecutive_5xx": 2, "max_ejection_percent": 100}},
        policy_more={"outlierDetection": {"consecutive5xxErrors": 2, "maxEjectionPercent": 100}}),
    hashed("maglev: an ejected endpoint's keys move as Envoy's do", *HEADER, [
        Ask(headers={"x-user": "user-1"}, do="500", times=2), Ask(headers={"x-user": "user-{i}"}, times=1000, bulk=True, ejected=1),
    ], endpoints(5), "maglev", cluster={"outlier_detection": {"consecutive_5xx": 2, "max_ejection_percent": 100}},
        policy_more={"outlierDetection": {"consecutive5xxErrors": 2, "maxEjectionPercent": 100}}),
]
