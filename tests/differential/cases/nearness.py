"""localityLbSetting, for a proxy at r1/z1/s1: shares and failover. And mirrors."""
from case import REFUSING, Ask, Case, Endpoint
from envoy import retry, route

OUTLIERS = {"consecutive5xxErrors": 1, "maxEjectionPercent": 100, "baseEjectionTime": "120s"}
OF_ENVOY = {"consecutive_5xx": 1, "max_ejection_percent": 100, "base_ejection_time": "120s"}


def placed(*places):
    """Endpoints by (locality, Envoy's priority)."""
    return [Endpoint(7001 + n, locality=where, priority=priority) for n, (where, priority) in enumerate(places)]


def ill(*ports):
    """Each of these fails until it is ejected; the others answer."""
    return [Ask(do="|".join(f"500@{port}" for port in ports), times=1, until=0) for _ in range(24)] if ports else []


def near(name, places, setting=None, ejected=(), weights=None, labels=None):
    policy = {"outlierDetection": OUTLIERS, "loadBalancer": {"simple": "ROUND_ROBIN", **({"localityLbSetting": setting} if setting else {})}}
    cluster = {"lb_policy": "ROUND_ROBIN", "outlier_detection": OF_ENVOY}
    if weights:
        cluster["locality_weights"] = weights
        cluster["common_lb_config"] = {"locality_weighted_lb_config": {}}
    members = placed(*places)
    share = lambda results: [result["port"] for result in results[len(ill(*ejected)):]]

    def alike(weft, theirs):
        ours, other = share(weft), share(theirs)
        return all(abs(ours.count(e.port) - other.count(e.port)) < 0.1 * len(ours) for e in members)

    return Case(f"locality: {name}", policy=policy, cluster=cluster, endpoints=members, same=(), check=alike,
                asks=[*ill(*ejected), Ask(times=300)])


HERE, ZONE, REGION, FAR = "r1/z1/s1", "r1/z1/s2", "r1/z2/s1", "r2/z1/s1"
TWO = [Endpoint(7001, labels={"version": "a"}), Endpoint(7002, labels={"version": "b"})]


def elsewhere(name, istio, envoy):
    """Both endpoints here fail and the one far away does not; no endpoint is ever ejected."""
    policy = {"outlierDetection": {**OUTLIERS, "consecutive5xxErrors": 1000}}
    return Case(f"locality: {name}", policy=policy, cluster={"outlier_detection": {**OF_ENVOY, "consecutive_5xx": 1000}},
                endpoints=placed((HERE, 0), (HERE, 0), (FAR, 1)), asks=[Ask(do="503@7001+7002", times=10)],
                http=[{"retries": {"attempts": 3, "retryOn": "5xx", **istio}}], envoy=[route(retry_policy=retry("5xx", 3, **envoy))],
                same=("status", "attempts", "flags"))


def copied(name, istio, policies, asks, copies, **more):
    """The service's subset a serves and b gets copies, which its endpoint counts."""
    return Case(f"mirrors: {name}", subsets=["a", "b"], endpoints=TWO, http=[{"to": [("a", None, {})], **istio}], asks=asks,
                envoy=[{"match": {"prefix": "/"}, "route": {"cluster": "@a", "request_mirror_policies": policies}}],
                same=("status", "flags", "body"), copies=copies, **more)


PREVIOUS = {"retry_priority": {"name": "envoy.retry_priorities.previous_priorities", "typed_config": {
    "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", "update_frequency": 2}}}
ALL = [{"cluster": "@b", "disable_shadow_host_suffix_append": True}]
CASES = [
    near("the nearest alone", [(HERE, 0), (ZONE, 1), (REGION, 2), (FAR, 3)]),
    near("no one here, the zone", [(ZONE, 0), (REGION, 1), (FAR, 2)]),
    near("the nearest is unhealthy, failover to the next", [(HERE, 0), (ZONE, 1), (FAR, 2)], ejected=(7001,)),
    near("half of the near are ill", [(HERE, 0), (HERE, 0), (ZONE, 1)], ejected=(7001,)),
    near("a third of the near is unhealthy", [(HERE, 0), (HERE, 0), (HERE, 0), (FAR, 1)], ejected=(7001,)),
    near("a fifth of the near is unhealthy", [*[(HERE, 0)] * 5, (FAR, 1)], ejected=(7001,)),
    near("two levels are ill", [(HERE, 0), (ZONE, 1), (REGION, 2)], ejected=(7001, 7002)),
    near("a region by name", [(HERE, 0), (FAR, 1), ("r3/z1/s1", 2)], {"failover": [{"from": "r1", "to": "r2"}]}, ejected=(7001,)),
    near("shares", [(HERE, 0), (REGION, 0), (FAR, 0)], {"distribute": [{"from": "r1/z1/*", "to": {"r1/z1/*": 70, "r1/z2/*": 20, "r2/*": 10}}]},
         weights={HERE: 70, REGION: 20, FAR: 10}),
    near("switched off", [(HERE, 0), (FAR, 0)], {"enabled": False}),
    elsewhere("retries stay", {}, {}),
    elsewhere("retries go elsewhere", {"retryRemoteLocalities": True}, PREVIOUS),
    copied("of every request", {"mirror": "b"}, ALL, [Ask("/m1"), Ask("/m2", method="POST", body="hello")], [1, 1]),
    copied("of none", {"mirror": "b", "mirrorPercentage": {"value": 0}},
           [{**ALL[0], "runtime_fraction": {"default_value": {"numerator": 0}}}], [Ask("/m3", times=5)], [0] * 5),
    copied("their answers count for nothing", {"mirror": "b"}, ALL, [Ask("/m4", do="500@7002"), Ask("/m5", do="reset@7002")], [1, 1]),
    copied("they delay no request", {"mirror": "b"}, ALL, [Ask("/m6", do="sleep:1500@7002")], [1],
           check=lambda w, e: all(result["took"] < 1.2 for result in w + e)),
]
