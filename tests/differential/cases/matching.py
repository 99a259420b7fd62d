"""match: the route of a request. The response names the route; without a route it is 404."""
from case import Ask, Case, Endpoint


def chosen(name, matches, asks, **more):
    """Each route answers by its number; a match is a pair of Istio's and Envoy's, and Envoy's includes the path."""
    http = [{"match": [istio], "directResponse": {"status": 200 + n}} if istio else {"directResponse": {"status": 200 + n}}
            for n, (istio, _) in enumerate(matches)]
    envoy = [{"match": {"prefix": "/", **of_envoy}, "direct_response": {"status": 200 + n}} for n, (_, of_envoy) in enumerate(matches)]
    for one in envoy:
        if {"path", "safe_regex"} & one["match"].keys():
            one["match"].pop("prefix")
    return Case(f"matching: {name}", http=http, envoy=envoy, asks=asks, same=("status", "flags"), **more)


def uri(kind, text, ignore=False):
    istio = {"uri": {kind: text}, **({"ignoreUriCase": True} if ignore else {})}
    envoy = {"exact": {"path": text}, "prefix": {"prefix": text}, "regex": {"safe_regex": {"regex": text}}}[kind]
    return istio, {**envoy, **({"case_sensitive": False} if ignore else {})}


def string(kind, text):
    return ({kind: text}, {"safe_regex": {"regex": text}} if kind == "regex" else {kind: text})


def header(name, kind, text, envoy_name=None):
    istio, envoy = string(kind, text)
    return {"headers": {name: istio}}, {"headers": [{"name": envoy_name or name, "string_match": envoy}]}


def query(name, kind, text):
    istio, envoy = string(kind, text)
    return {"queryParams": {name: istio}}, {"query_parameters": [{"name": name, "string_match": envoy}]}


def pseudo(field, of_envoy, kind, text):
    istio, envoy = string(kind, text)
    return {field: istio}, {"headers": [{"name": of_envoy, "string_match": envoy}]}


def both(*matches):
    istio, envoy = {}, {}
    for one, other in matches:
        istio.update(one)
        for key, value in other.items():
            envoy[key] = envoy.get(key, []) + value if isinstance(value, list) else value
    return istio, envoy


def paths(*paths):
    return [Ask(path) for path in paths]


def having(name, *values):
    return [Ask(headers={name: value} if value is not None else {}) for value in values]


REST = ({}, {})
PRESENT = {"headers": {"x-a": {}}}, {"headers": [{"name": "x-a", "present_match": True}]}


def without(name, kind=None, text=None):
    if kind is None:
        return {"withoutHeaders": {name: {}}}, {"headers": [{"name": name, "present_match": True, "invert_match": True}]}
    istio, envoy = string(kind, text)
    return {"withoutHeaders": {name: istio}}, {"headers": [
        {"name": name, "string_match": envoy, "invert_match": True, "treat_missing_header_as_empty": True}]}


CASES = [
    chosen("an exact path", [uri("exact", "/a")], paths("/a", "/a/", "/ab", "/", "/a?b=c", "/A")),
    chosen("an exact path without case", [uri("exact", "/a/Bc", True)], paths("/A/bC", "/a/bc", "/a/b")),
    chosen("a prefix is one of the text", [uri("prefix", "/foo")], paths("/foo", "/foobar", "/foo/bar", "/fo", "/FOO", "/foo?x")),
    chosen("a prefix without case", [uri("prefix", "/Foo", True)], paths("/fOOd", "/f")),
    chosen("a regex matches the whole path", [uri("regex", "/a[0-9]+")], paths("/a1", "/a12", "/a1b", "/xa1", "/a", "/a1?b=c")),
    chosen("a regex of alternatives", [uri("regex", "/a|/b")], paths("/a", "/b", "/ab", "/c")),
    chosen("a regex does not see the query", [uri("regex", "/a.*b")], paths("/a?b", "/ab", "/axb?c")),
    chosen("the first that matches", [uri("prefix", "/a/b"), uri("prefix", "/a"), REST], paths("/a/b/c", "/a/c", "/a", "/c")),
    chosen("the first though a later is more exact", [uri("prefix", "/"), uri("exact", "/a")], paths("/a", "/b")),
    chosen("no route", [uri("exact", "/a"), uri("exact", "/b")], paths("/c", "/", "/a")),
    chosen("odd paths", [uri("prefix", "/a/b"), uri("prefix", "/c")],
           paths("/a/./b", "/c/../a/b", "/a//b", "/a%2Fb", "/%61/b", "/a/b%20c", "/c/..", "/c;a=b", "//c", "/a/%2e%2e/c", "/c\\d")),
    chosen("the method", [pseudo("method", ":method", "exact", "POST"), pseudo("method", ":method", "regex", "P.*")],
           [Ask(method=method) for method in ("POST", "PUT", "GET", "PATCH")]),
    chosen("the authority", [pseudo("authority", ":authority", "prefix", "c")], [Ask()]),
    chosen("the scheme", [pseudo("scheme", ":scheme", "exact", "https"), pseudo("scheme", ":scheme", "exact", "http")], [Ask()]),
    chosen("a header, exactly", [header("x-a", "exact", "b")], having("x-a", "b", "B", "bc", "", None, " b ")),
    chosen("a header's name has no case", [header("X-A", "exact", "b", "x-a")], having("x-A", "b")),
    chosen("a header's beginning", [header("x-a", "prefix", "b")], having("x-a", "b", "bc", "cb", None)),
    chosen("a header by regex, as a whole", [header("x-a", "regex", "b+")], having("x-a", "b", "bbb", "bc", "cb", None)),
    chosen("a header that is there", [PRESENT], having("x-a", "b", "", None)),
    chosen("a regex's classes are ASCII", [header("x-a", "regex", r"\w+"), header("x-a", "regex", r"\d\s?\d")],
           having("x-a", "b_1", "\xe9", "\xd9\xa1\xd9\xa2", "1 2", "1\xc2\xa02")),
    chosen("a header of several values", [header("x-a", "exact", "b,c"), header("x-a", "regex", "b.*")],
           [Ask(headers={"x-a": ["b", "c"]}), Ask(headers={"x-a": ["b", "d"]}), Ask(headers={"x-a": ["d", "b"]})]),
    chosen("several headers, all of them", [({"headers": {"x-a": {"exact": "1"}, "x-b": {"prefix": "2"}}},
                                             {"headers": [{"name": "x-a", "string_match": {"exact": "1"}}, {"name": "x-b", "string_match": {"prefix": "2"}}]})],
           [Ask(headers={"x-a": "1", "x-b": "22"}), Ask(headers={"x-a": "1"}), Ask(headers={"x-b": "2"})]),
    chosen("a header that is not there", [without("x-a")], having("x-a", None, "b", "")),
    chosen("a header that is not so", [without("x-a", "exact", "b")], having("x-a", None, "b", "c")),
    chosen("a header that does not begin so", [without("x-a", "prefix", "b")], having("x-a", None, "bc", "c")),
    chosen("a query's parameter", [query("q", "exact", "a")], paths("/?q=a", "/?q=b", "/?x=1&q=a", "/?q=a&q=b", "/?q=b&q=a", "/?q", "/", "/?q=A", "/?q=%61")),
    chosen("a query's parameter by regex", [query("q", "regex", "[0-9]+")], paths("/?q=12", "/?q=1a", "/?q=", "/?p=12")),
    chosen("path, method and header together",
           [both(uri("prefix", "/a"), pseudo("method", ":method", "exact", "GET"), header("x-a", "exact", "1")), uri("prefix", "/a")],
           [Ask("/a", headers={"x-a": "1"}), Ask("/a", method="PUT", headers={"x-a": "1"}), Ask("/a"), Ask("/b", headers={"x-a": "1"})]),
    Case("matching: any of several matches", http=[{"match": [{"uri": {"prefix": "/a"}}, {"headers": {"x-a": {"exact": "1"}}}],
                                                    "directResponse": {"status": 201}}],
         envoy=[{"match": {"prefix": "/a"}, "direct_response": {"status": 201}},
                {"match": {"prefix": "/", "headers": [{"name": "x-a", "string_match": {"exact": "1"}}]}, "direct_response": {"status": 201}}],
         asks=[Ask("/a"), Ask("/b", headers={"x-a": "1"}), Ask("/b")], same=("status", "flags")),
    Case("matching: a subset without endpoints", subsets=["a", "b"], endpoints=[Endpoint(7001, labels={"version": "a"})],
         http=[{"match": [{"uri": {"prefix": "/b"}}], "to": [("b", None, {})]}, {"to": [("a", None, {})]}],
         envoy=[{"match": {"prefix": "/b"}, "route": {"cluster": "@b"}}, {"match": {"prefix": "/"}, "route": {"cluster": "@a"}}],
         asks=[Ask("/b"), Ask("/a")], same=("status", "flags", "body")),
]
