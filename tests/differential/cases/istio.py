"""Istio's documents whose translation for Envoy is not obvious: pseudo headers, missing headers, authorities set by header
operations, default ports in redirects, formatters, empty values. The translations are those of Istio's pilot."""
from case import Ask, Case, Endpoint
from cases.changes import SEEN, changed, redirected, rewritten
from cases.matching import REST, chosen, having, header, string, without
from envoy import route, weighted


def pseudo(name, kind, text):
    return header(name, kind, text)


def all_of(*matches):
    """One match with the conditions of all."""
    istio, envoy = {}, {"headers": []}
    for one, other in matches:
        for field, conditions in one.items():
            istio.setdefault(field, {}).update(conditions)
        envoy["headers"] += other["headers"]
    return istio, envoy


METHODS = [Ask(method=method) for method in ("GET", "POST", "PUT", "DELETE")]
PATHS = [Ask(path) for path in ("/", "/a", "/a?b=c", "/a?b=d", "/ab", "/b/a")]
PRESENT = lambda name: ({"headers": {name: {}}}, {"headers": [{"name": name, "present_match": True}]})

MATCHES = [
    chosen("pseudo header :method, exact", [pseudo(":method", "exact", "POST")], METHODS),
    chosen("pseudo header :method, a prefix", [pseudo(":method", "prefix", "P")], METHODS),
    chosen("pseudo header :method, a regex", [pseudo(":method", "regex", "GET|PUT")], METHODS),
    chosen("pseudo header :method, not that", [without(":method", "exact", "GET")], METHODS),
    chosen("pseudo header :path, exact with its query", [pseudo(":path", "exact", "/a?b=c")], PATHS),
    chosen("pseudo header :path, exact without query", [pseudo(":path", "exact", "/a")], PATHS),
    chosen("pseudo header :path, a prefix", [pseudo(":path", "prefix", "/a?b")], PATHS),
    chosen("pseudo header :path, a regex", [pseudo(":path", "regex", "/a.*=c")], PATHS),
    chosen("pseudo header :path, not that", [without(":path", "regex", "/a.*")], PATHS),
    chosen("pseudo header :path, normal form", [pseudo(":path", "exact", "/b")], [Ask("/a/../b"), Ask("/b"), Ask("/%62")]),
    chosen("pseudo header :scheme, http", [pseudo(":scheme", "exact", "http")], [Ask("/")]),
    chosen("pseudo header :scheme, https", [pseudo(":scheme", "exact", "https")], [Ask("/")]),
    chosen("pseudo header :scheme, not http", [without(":scheme", "exact", "http"), REST], [Ask("/")]),
    chosen("pseudo header :authority, a regex", [pseudo(":authority", "regex", "c[0-9]+.test")], [Ask("/")]),
    chosen("pseudo header :authority, another", [pseudo(":authority", "exact", "other.test"), REST], [Ask("/")]),
    chosen("pseudo header :authority, not another", [without(":authority", "exact", "other.test")], [Ask("/")]),
    chosen("host as a header is the authority", [header("host", "regex", "c[0-9]+.test")], [Ask("/")]),
    chosen("host as a header, another", [header("host", "exact", "other.test"), REST], [Ask("/")]),
    chosen("pseudo header :path, present", [PRESENT(":path")], PATHS[:1]),
    chosen("pseudo header :authority, absent", [without(":authority"), REST], PATHS[:1]),
    chosen("pseudo headers and others", [all_of(pseudo(":method", "exact", "POST"), header("x-a", "exact", "b"))],
           [Ask(method="POST"), Ask(method="POST", headers={"x-a": "b"}), Ask(headers={"x-a": "b"})]),
]
MISSING = [
    chosen("withoutHeaders, a regex that takes the empty value", [without("x-a", "regex", ".*")], having("x-a", None, "", "b")),
    chosen("withoutHeaders, a regex of optional letters", [without("x-a", "regex", "b?")], having("x-a", None, "", "b", "c", "bb")),
    chosen("withoutHeaders, a regex of some letters", [without("x-a", "regex", "b+")], having("x-a", None, "", "b", "c")),
    chosen("withoutHeaders, the empty value", [without("x-a", "exact", "")], having("x-a", None, "", "b")),
    chosen("withoutHeaders, a prefix", [without("x-a", "prefix", "b")], having("x-a", None, "", "b", "bc", "c")),
    chosen("withoutHeaders, an alternative to nothing", [without("x-a", "regex", "|b")], having("x-a", None, "", "b", "c")),
    chosen("withoutHeaders, two of them", [without("x-a", "regex", "b*"), all_of(without("x-a", "exact", "c"), without("x-b", "exact", "d")), REST],
           [Ask(), Ask(headers={"x-a": "c"}), Ask(headers={"x-b": "d"}), Ask(headers={"x-a": "e"})]),
]

TWO = [Endpoint(7001, labels={"version": "v1"}), Endpoint(7002, labels={"version": "v2"})]


def authority(name, level, of_envoy, asks=None):
    """Of the route, and of its only destination."""
    return Case(f"authority: {name}", http=[level], envoy=[route(**of_envoy)], same=SEEN, asks=asks or [Ask("/a")])


def sets(value, how="set", name=":authority"):
    return {"request": {how: {name: value}}}


def split(name, shares, of_envoy, **level):
    """Several destinations, all but one without a share, so that the choice is certain."""
    return Case(f"authority: {name}", http=[{"to": shares, **level}], envoy=[route(**of_envoy)], same=SEEN, asks=[Ask("/a")],
                endpoints=TWO, subsets=["v1", "v2"])


LITERAL = {"host_rewrite_literal": "other.test"}
AUTHORITIES = [
    authority("set", {"headers": sets("other.test")}, LITERAL),
    authority("set with a port", {"headers": sets("other.test:8080")}, {"host_rewrite_literal": "other.test:8080"}),
    authority("set as Host", {"headers": sets("other.test", name="Host")}, LITERAL),
    authority("set as host", {"headers": sets("other.test", name="host")}, LITERAL),
    authority("added", {"headers": sets("other.test", "add")}, LITERAL),
    authority("added as host", {"headers": sets("other.test", "add", "host")}, LITERAL),
    authority("set by the only destination", {"to": [("", None, {"headers": sets("other.test")})]}, LITERAL),
    authority("set by the route before its only destination",
              {"headers": sets("other.test"), "to": [("", None, {"headers": sets("third.test")})]}, LITERAL),
    authority("rewritten, whatever the only destination sets",
              {"rewrite": {"authority": "other.test"}, "to": [("", None, {"headers": sets("third.test")})]}, LITERAL),
    authority("set beside a rewritten path", {"headers": sets("other.test"), "match": [{"uri": {"prefix": "/a"}}], "rewrite": {"uri": "/b"}},
              {"match": {"prefix": "/a"}, "prefix_rewrite": "/b", **LITERAL}),
    split("set by the destination that is taken", [("v1", 0, {}), ("v2", 100, {"headers": sets("other.test")})],
          weighted(("v1", 0, {}), ("v2", 100, LITERAL))),
    split("set by the destination that is not taken", [("v1", 0, {"headers": sets("other.test")}), ("v2", 100, {})],
          weighted(("v1", 0, LITERAL), ("v2", 100, {}))),
    # Envoy writes the destination's authority, which is not the client's, as x-envoy-original-host.
    Case("authority: set by the route and by a destination", endpoints=TWO, subsets=["v1", "v2"], same=("status", "body", "flags"),
         asks=[Ask("/a")], http=[{"headers": sets("other.test"), "to": [("v1", 0, {}), ("v2", 100, {"headers": sets("third.test")})]}],
         envoy=[route(**weighted(("v1", 0, {}), ("v2", 100, {"host_rewrite_literal": "third.test"})), **LITERAL)],
         check=lambda weft, envoy: dict(weft[0]["seen"]["headers"])["host"] == dict(envoy[0]["seen"]["headers"])["host"] == "other.test"),
]

# Pilot leaves out a port that is the scheme's own.
REDIRECTS = [
    redirected("to the port of http", {"uri": "/x", "port": 80}, {"path_redirect": "/x"}),
    redirected("to another authority at the port of http", {"authority": "other.test", "port": 80}, {"host_redirect": "other.test"}),
    redirected("to https at its port", {"scheme": "https", "port": 443}, {"scheme_redirect": "https"}),
    redirected("to https at the port of http", {"scheme": "https", "port": 80}, {"scheme_redirect": "https", "port_redirect": 80}),
    redirected("to http at the port of https", {"scheme": "http", "port": 443}, {"scheme_redirect": "http", "port_redirect": 443}),
    redirected("to http at its port", {"scheme": "http", "port": 80, "uri": "/x"}, {"scheme_redirect": "http", "path_redirect": "/x"}),
    redirected("to https at the requested port", {"scheme": "https", "derivePort": "FROM_REQUEST_PORT"},
               {"scheme_redirect": "https", "port_redirect": 80}),
    redirected("to another authority at the requested port", {"authority": "other.test", "derivePort": "FROM_REQUEST_PORT"},
               {"host_redirect": "other.test"}),
    redirected("with empty fields", {"uri": "", "prefixRewrite": "", "scheme": "", "redirectCode": 0, "authority": "other.test"},
               {"host_redirect": "other.test"}),
]

WORDS = {"x-user": "alice", "x-empty": ""}
FORMATS = [
    changed(f"formatter {text}", {"request": {"set": {"x-new": text}}, "response": {"set": {"x-answer": text}}}, [Ask("/a?b=c", headers=WORDS)])
    for text in ("%REQ(missing?x-user)%", "%REQ(x-user?missing)%", "%REQ(x-user):3%", "%REQ(missing?x-user):2%", "%REQ(:path):2%",
                 "%REQ(x-user?:path)%", "<%REQ(missing?gone)%>", "<%REQ(missing)%>", "%HOSTNAME%", "at %HOSTNAME%", "%REQ(missing?gone)%", "%REQ(:method)%-%REQ(:path)%", "%REQ(x-user):100%")
]
EMPTY = [
    rewritten("with an empty path", None, {"uri": "", "authority": "other.test"}, {"prefix": "/"}, LITERAL, [Ask("/a")]),
    Case("matching: empty fields of a match", http=[{"match": [{"port": 0, "sourceNamespace": "", "sourceLabels": {}, "headers": {}}],
                                                     "directResponse": {"status": 201}}],
         envoy=[{"match": {"prefix": "/"}, "direct_response": {"status": 201}}], same=("status", "flags")),
]
CASES = MATCHES + MISSING + AUTHORITIES + REDIRECTS + FORMATS + EMPTY
