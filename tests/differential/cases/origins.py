"""corsPolicy: allowed origins, and responses to preflights."""
from case import Ask, Case

SAME = ("status", "headers", "attempts", "flags")
FILTER = "envoy.filters.http.cors"


def crossing(name, policy, of_envoy, asks):
    config = {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy", "forward_not_matching_preflights": True, **of_envoy}
    return Case(f"cors: {name}", http=[{"corsPolicy": policy}], asks=asks, same=SAME,
                envoy=[{"match": {"prefix": "/"}, "route": {"cluster": "@"}, "typed_per_filter_config": {FILTER: config}}])


def preflight(origin, method="PUT", **more):
    return Ask(method="OPTIONS", headers={"Origin": origin, "Access-Control-Request-Method": method, **more})


def actual(origin, **more):
    return Ask(headers={"Origin": origin}, **more)


A = "https://a.example"
EXACT = {"allowOrigins": [{"exact": A}]}, {"allow_origin_string_match": [{"exact": A}]}
ORIGINS = [A, "https://b.example", "https://a.example.evil", "null", ""]


def with_policy(istio, envoy):
    return {**EXACT[0], **istio}, {**EXACT[1], **envoy}


CASES = [
    crossing("an origin by its name", *EXACT, [preflight(origin) for origin in ORIGINS] + [actual(origin) for origin in ORIGINS]),
    crossing("an origin by its beginning", {"allowOrigins": [{"prefix": "https://a."}]}, {"allow_origin_string_match": [{"prefix": "https://a."}]},
             [preflight(origin) for origin in ORIGINS] + [actual(origin) for origin in ORIGINS]),
    crossing("an origin by regex", {"allowOrigins": [{"regex": "https://[ab]\\.example"}]},
             {"allow_origin_string_match": [{"safe_regex": {"regex": "https://[ab]\\.example"}}]},
             [preflight(origin) for origin in ORIGINS] + [actual(origin) for origin in ORIGINS]),
    crossing("every origin", {"allowOrigins": [{"exact": "*"}]}, {"allow_origin_string_match": [{"exact": "*"}]},
             [preflight(A), actual(A), actual("null")]),
    crossing("an origin as it was written once", {"allowOrigin": [A]}, EXACT[1], [preflight(origin) for origin in ORIGINS]),
    crossing("methods", *with_policy({"allowMethods": ["GET", "PUT"]}, {"allow_methods": "GET,PUT"}), [preflight(A), preflight(A, "DELETE"), actual(A)]),
    crossing("headers", *with_policy({"allowHeaders": ["x-a", "x-b"]}, {"allow_headers": "x-a,x-b"}),
             [preflight(A, **{"Access-Control-Request-Headers": "x-a"}), preflight(A, **{"Access-Control-Request-Headers": "x-z"})]),
    crossing("exposed headers", *with_policy({"exposeHeaders": ["x-c"]}, {"expose_headers": "x-c"}), [preflight(A), actual(A)]),
    crossing("for how long", *with_policy({"maxAge": "24h"}, {"max_age": "86400"}), [preflight(A), actual(A)]),
    crossing("credentials", *with_policy({"allowCredentials": True}, {"allow_credentials": True}), [preflight(A), actual(A)]),
    crossing("all of it", *with_policy(
        {"allowMethods": ["POST"], "allowHeaders": ["x-a"], "exposeHeaders": ["x-b"], "maxAge": "60s", "allowCredentials": True},
        {"allow_methods": "POST", "allow_headers": "x-a", "expose_headers": "x-b", "max_age": "60", "allow_credentials": True}),
        [preflight(A), actual(A), preflight("https://b.example"), actual("https://b.example")]),
    crossing("OPTIONS that is no preflight", *EXACT, [Ask(method="OPTIONS"), Ask(method="OPTIONS", headers={"Origin": A})]),
    crossing("preflights of other origins are not passed on", *with_policy({"unmatchedPreflights": "IGNORE"}, {"forward_not_matching_preflights": False}),
             [preflight("https://b.example"), preflight(A), actual("https://b.example")]),
    crossing("the application's own answer", *EXACT, [actual(A, do="404"),
             Ask(headers={"Origin": A, "x-answer": "access-control-allow-origin: https://other.example"})]),
]
