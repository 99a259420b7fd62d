"""headers, rewrite, redirect, directResponse, mirror: the effects at the other side."""
from case import ALL, Ask, Case, Endpoint
from envoy import route, weighted

SEEN = ("status", "seen", "headers", "body", "flags")


def added(changes, append=None):
    """Istio's `set` and `add` in Envoy's words."""
    found = [{"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
             for key, value in changes.get("set", {}).items()]
    return found + [{"header": {"key": key, "value": value}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}
                    for key, value in changes.get("add", {}).items()]


def of_envoy(headers):
    found = {}
    for side in ("request", "response"):
        changes = headers.get(side, {})
        if added(changes):
            found[f"{side}_headers_to_add"] = added(changes)
        if changes.get("remove"):
            found[f"{side}_headers_to_remove"] = changes["remove"]
    return found


def merged(*levels):
    """A single destination's changes are combined with the route's."""
    found = {}
    for level in levels:
        for side, changes in level.items():
            own = found.setdefault(side, {"set": {}, "add": {}, "remove": []})
            own["set"].update(changes.get("set", {}))
            own["add"].update(changes.get("add", {}))
            own["remove"] += changes.get("remove", [])
    return found


def changed(name, headers, asks, destination=None, same=SEEN):
    more = {"headers": destination} if destination else {}
    return Case(f"headers: {name}", http=[{"headers": headers, "to": [("", None, more)]}], same=same, asks=asks,
                envoy=[{**route(), **of_envoy(merged(headers, destination or {}))}])


def rewritten(name, match, rewrite, envoy_match, envoy_action, asks):
    return Case(f"rewrites: {name}", http=[{**({"match": [match]} if match else {}), "rewrite": rewrite}], same=SEEN, asks=asks,
                envoy=[route(envoy_match, **envoy_action)])


def redirected(name, redirect, of_envoy, asks=None, match=None, envoy_match=None):
    return Case(f"redirects: {name}", http=[{**({"match": [match]} if match else {}), "redirect": redirect}], asks=asks or [Ask("/a/b?c=d")],
                envoy=[{"match": envoy_match or {"prefix": "/"}, "redirect": of_envoy}], same=("status", "headers", "body", "flags"))


def regex(pattern, substitution):
    return ({"uriRegexRewrite": {"match": pattern, "rewrite": substitution}},
            {"regex_rewrite": {"pattern": {"regex": pattern}, "substitution": substitution}})


REQUEST = {"x-a": "0", "x-b": "1", "x-c": "2", "x-user": "me"}
SUBSETS = {"subsets": ["a", "b"], "endpoints": [Endpoint(7001, labels={"version": "a"}), Endpoint(7002, labels={"version": "b"})]}
MIRRORED = {"subsets": ["a", "b"], "endpoints": SUBSETS["endpoints"]}


def both_levels():
    """Of several destinations each has its own level, before the route's."""
    own = {"request": {"set": {"x-a": "destination", "x-d": "destination"}, "add": {"x-b": "destination"}},
           "response": {"set": {"x-r": "destination"}}}
    outer = {"request": {"set": {"x-a": "route"}, "add": {"x-b": "route"}}, "response": {"add": {"x-r": "route"}}}
    return Case("headers: of the route after those of one of several destinations", **SUBSETS, asks=[Ask(headers=REQUEST)], same=SEEN,
                http=[{"headers": outer, "to": [("a", 100, {"headers": own}), ("b", 0, {})]}],
                envoy=[{**route(**weighted(("a", 100, of_envoy(own)), ("b", 0, {}))), **of_envoy(outer)}])


FORMATTERS = {"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%": "ip", "%PROTOCOL%": "protocol", "%REQ(x-user)%": "header", "%REQ(:METHOD)%": "method",
              "%REQ(:PATH)%": "path", "%REQ(:AUTHORITY)%": "authority", "%REQ(x-missing)%": "missing", "100%%": "percent",
              "a %REQ(x-user)% b": "among"}
CASES = [
    changed("set, added and removed", {"request": {"set": {"x-a": "1"}, "add": {"x-b": "2"}, "remove": ["x-c"]}}, [Ask(headers=REQUEST)]),
    changed("of the answer", {"response": {"set": {"x-port": "none", "x-new": "1"}, "add": {"x-s": "2"}, "remove": ["x-gone"]}},
            [Ask(headers={"x-answer": ["x-s: 1", "x-gone: 1"]})]),
    changed("removed and set", {"request": {"set": {"x-a": "1"}, "remove": ["x-a"]}}, [Ask(headers=REQUEST)]),
    changed("set and added", {"request": {"set": {"x-a": "1"}, "add": {"x-a": "2"}}}, [Ask(headers=REQUEST), Ask()]),
    changed("of a header with several values", {"request": {"set": {"x-a": "1"}, "add": {"x-b": "3"}, "remove": ["x-c"]}},
            [Ask(headers={"x-a": ["1", "2"], "x-b": ["1", "2"], "x-c": ["1", "2"]})]),
    changed("of the route and of its only destination", {"request": {"set": {"x-a": "route"}, "add": {"x-b": "route"}}},
            [Ask(headers=REQUEST)], {"request": {"set": {"x-a": "destination"}, "remove": ["x-c"]}}),
    both_levels(),
    changed("a body's length and type stay", {"request": {"set": {"x-a": "1"}}}, [Ask(method="POST", body="hello", headers={"content-type": "text/x"})]),
    *[changed(f"formatter, {name}", {"request": {"set": {"x-formed": text}}}, [Ask("/p?q=r", headers=REQUEST, source="127.0.0.9")])
      for text, name in FORMATTERS.items()],
    changed("a formatter in the answer", {"response": {"set": {"x-formed": "%REQ(x-user)%"}}}, [Ask(headers=REQUEST)]),
    rewritten("of a prefix", {"uri": {"prefix": "/a"}}, {"uri": "/z"}, {"prefix": "/a"}, {"prefix_rewrite": "/z"},
              [Ask("/a"), Ask("/ab?c=d"), Ask("/a/b/c")]),
    rewritten("of a prefix to the root", {"uri": {"prefix": "/a/"}}, {"uri": "/"}, {"prefix": "/a/"}, {"prefix_rewrite": "/"},
              [Ask("/a/"), Ask("/a/b?c")]),
    rewritten("of a prefix, with slashes as they are written", {"uri": {"prefix": "/a"}}, {"uri": "/"}, {"prefix": "/a"}, {"prefix_rewrite": "/"},
              [Ask("/a/b"), Ask("/a")]),
    rewritten("of an exact path", {"uri": {"exact": "/a"}}, {"uri": "/z/y"}, {"path": "/a"}, {"prefix_rewrite": "/z/y"}, [Ask("/a?b=c")]),
    rewritten("of every path", None, {"uri": "/z"}, {"prefix": "/"}, {"prefix_rewrite": "/z"}, [Ask("/"), Ask("/a")]),
    rewritten("by a regex", None, regex("^/service/([^/]+)(/.*)$", r"\2/instance/\1")[0], {"prefix": "/"},
              regex("^/service/([^/]+)(/.*)$", r"\2/instance/\1")[1], [Ask("/service/foo/v1/api?x=/service/a/b"), Ask("/other")]),
    rewritten("by a regex, everywhere", None, regex("one", "two")[0], {"prefix": "/"}, regex("one", "two")[1], [Ask("/one/one?one")]),
    rewritten("by a regex, without case", None, regex("(?i)/XX/", "/y/")[0], {"prefix": "/"}, regex("(?i)/XX/", "/y/")[1], [Ask("/a/xX/b")]),
    rewritten("of the authority", None, {"authority": "other.test"}, {"prefix": "/"}, {"host_rewrite_literal": "other.test"}, [Ask("/a")]),
    rewritten("of both", {"uri": {"prefix": "/a"}}, {"uri": "/b", "authority": "other.test"}, {"prefix": "/a"},
              {"prefix_rewrite": "/b", "host_rewrite_literal": "other.test"}, [Ask("/a/c")]),
    redirected("of the path", {"uri": "/new"}, {"path_redirect": "/new"}),
    redirected("of the path with a query of its own", {"uri": "/new?x=y"}, {"path_redirect": "/new?x=y"}),
    redirected("of a prefix", {"prefixRewrite": "/new"}, {"prefix_rewrite": "/new"}, match={"uri": {"prefix": "/a"}}, envoy_match={"prefix": "/a"}),
    redirected("of the authority", {"authority": "other.test"}, {"host_redirect": "other.test"}),
    redirected("of the scheme", {"scheme": "https"}, {"scheme_redirect": "https"}),
    redirected("of the port", {"port": 8443}, {"port_redirect": 8443}),
    redirected("of the scheme and its own port", {"scheme": "https", "derivePort": "FROM_PROTOCOL_DEFAULT"}, {"scheme_redirect": "https"}),
    redirected("of the path at the request's port", {"uri": "/x", "derivePort": "FROM_REQUEST_PORT"}, {"path_redirect": "/x"}),
    redirected("of scheme, authority, port and path", {"scheme": "https", "authority": "other.test", "port": 8443, "uri": "/x"},
               {"scheme_redirect": "https", "host_redirect": "other.test", "port_redirect": 8443, "path_redirect": "/x"}),
    *[redirected(f"by {code}", {"uri": "/x", "redirectCode": code}, {"path_redirect": "/x", "response_code": word})
      for code, word in ((302, "FOUND"), (303, "SEE_OTHER"), (307, "TEMPORARY_REDIRECT"), (308, "PERMANENT_REDIRECT"))],
    redirected("of a POST", {"uri": "/x"}, {"path_redirect": "/x"}, [Ask(method="POST", body="hello")]),
    Case("direct: a status and a text", http=[{"directResponse": {"status": 503, "body": {"string": "sorry"}}}],
         envoy=[{"match": {"prefix": "/"}, "direct_response": {"status": 503, "body": {"inline_string": "sorry"}}}],
         asks=[Ask(), Ask(method="POST", body="x"), Ask(method="HEAD")], same=("status", "headers", "body", "flags")),
    Case("direct: bytes", http=[{"directResponse": {"status": 200, "body": {"bytes": "AP8B"}}}],
         envoy=[{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_bytes": "AP8B"}}}],
         same=("status", "headers", "body", "flags")),
    Case("direct: a status alone", http=[{"directResponse": {"status": 204}}],
         envoy=[{"match": {"prefix": "/"}, "direct_response": {"status": 204}}], same=("status", "headers", "body", "flags")),
    Case("direct: with headers", http=[{"directResponse": {"status": 200}, "headers": {"response": {"set": {"x-a": "b"}}}}],
         envoy=[{"match": {"prefix": "/"}, "direct_response": {"status": 200}, **of_envoy({"response": {"set": {"x-a": "b"}}})}],
         same=("status", "headers", "body", "flags")),
    Case("weights: nine and one of ten", **SUBSETS, http=[{"to": [("a", 90, {}), ("b", 10, {})]}], same=("spread",),
         envoy=[route(**weighted(("a", 90, {}), ("b", 10, {})))], asks=[Ask(times=1500, bulk=True)]),
    Case("weights: they need not be a hundred", **SUBSETS, http=[{"to": [("a", 1, {}), ("b", 3, {})]}], same=("spread",),
         envoy=[route(**weighted(("a", 1, {}), ("b", 3, {})))], asks=[Ask(times=1500, bulk=True)]),
    Case("weights: none", **SUBSETS, http=[{"to": [("a", 0, {}), ("b", 1, {})]}], same=("spread",),
         envoy=[route(**weighted(("a", 0, {}), ("b", 1, {})))], asks=[Ask(times=200, bulk=True)]),
]
