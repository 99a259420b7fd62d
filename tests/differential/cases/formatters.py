"""Envoy's formatters in header operations: values that are equal for all proxies are compared, the others have the same form in both."""
import dataclasses
import re

from case import Ask, Case
from .changes import SEEN, changed, of_envoy
from envoy import route

ASK = Ask("/a?b=c", headers={"x-user": "alice", "x-answer": ["x-said: word"]}, source="127.0.0.9")


def both(text, **more):
    """In the request and in the answer."""
    return changed(f"formatter {text}", {"request": {"set": {"x-new": text}}, "response": {"set": {"x-formed": text}}}, [ASK], **more)


def of_target(text):
    """The request's authority and path, also behind a proxy that has rewritten them."""
    written = {"x-envoy-original-path": "/first?a=o", "x-envoy-original-host": "first.test"}
    asks = [Ask("/x/y?a=b%20c+d&a=d&e&%62=1"), Ask("/x?a=%ff"), Ask("/x/y?a=1", headers=written)]
    operations = {"request": {"set": {"x-new": f"<{text}>"}}, "response": {"set": {"x-formed": text}}}
    return changed(f"formatter {text} of the target", operations, asks)


def rewritten(text):
    """A request that the route rewrites: the client's values in the request, the rewritten ones in the response."""
    operations = {"request": {"set": {"x-new": text, "x-user": "bob"}}, "response": {"set": {"x-formed": text}}}
    return Case(f"headers: formatter {text} and a rewrite", same=SEEN, asks=[ASK],
                http=[{"rewrite": {"uri": "/new", "authority": "new.test"}, "headers": operations}],
                envoy=[{**route(prefix_rewrite="/new", host_rewrite_literal="new.test"), **of_envoy(operations)}])


def answer(text, **more):
    """In the response alone, which has the value."""
    return changed(f"formatter {text} of the answer", {"response": {"set": {"x-formed": text}}}, [ASK], **more)


def formed(case, pattern):
    """Values that differ, and have one form."""
    def check(*results):
        values = [value for (result,) in results for name, value in result["headers"] + result["seen"]["headers"]
                  if name in ("x-formed", "x-new")]
        return len(values) >= 2 and all(re.fullmatch(pattern, value) for value in values)
    return dataclasses.replace(case, same=("status", "flags"), check=check)


UUID = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
NAMED = {"request": {"set": {"x-new": "%ROUTE_NAME%"}}, "response": {"set": {"x-formed": "<%ROUTE_NAME%>"}}}
CASES = [
    *[both(text) for text in (
        "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", "%ENVIRONMENT(HOME)%",
        "%REQUEST_HEADER(missing?x-user):3%", "%ENVIRONMENT(HOME):3%", "%ENVIRONMENT(NO_SUCH_VARIABLE)%", "%START_TIME(plain)%", "%START_TIME(%Y)%-%PROTOCOL%")],
    *[answer(text) for text in (
        "%RESPONSE_CODE%", "%RESPONSE_CODE_DETAILS%", "%RESPONSE_FLAGS%", "%RESP(x-said)%", "%RESP(missing?x-said):2%", "%RESPONSE_HEADER(missing?x-said):2%",
        "<%RESP(missing)%>", "%RESP(missing)%", "%UPSTREAM_HOST%", "%UPSTREAM_REMOTE_ADDRESS%", "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "%UPSTREAM_REMOTE_PORT%", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%")],
    *[of_target(text) for text in (
        "%PATH%", "%PATH(NQ)%", "%PATH(NQ):3%", "%PATH(WQ:PATH)%", "%PATH(NQ:ORIG)%", "%PATH(WQ:ORIG_OR_PATH)%", "%QUERY_PARAM(a)%",
        "%QUERY_PARAM(a):1%", "%QUERY_PARAM(b)%", "%QUERY_PARAM(e)%", "%QUERY_PARAM(none)%", "%QUERY_PARAMS%", "%QUERY_PARAMS(ORIG):3%",
        "%REQUESTED_SERVER_NAME%", "%REQUESTED_SERVER_NAME(HOST_FIRST:ORIG)%")],
    # Without TLS: an application speaks to its own sidecar so.
    *[both(f"<%{name}%>") for name in (
        "REQUESTED_SERVER_NAME", "REQUESTED_SERVER_NAME(HOST_FIRST:ORIG)", "DOWNSTREAM_TLS_VERSION", "DOWNSTREAM_TLS_CIPHER", "DOWNSTREAM_TLS_GROUP",
        "DOWNSTREAM_PEER_SUBJECT", "DOWNSTREAM_PEER_URI_SAN", "DOWNSTREAM_PEER_CERT", "DOWNSTREAM_PEER_CERT_V_START")],
    formed(both("%REQUESTED_SERVER_NAME(SNI_FIRST)%"), r"c\d{3}\.test.*"),
    formed(both("%START_TIME%"), r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"),
    formed(both("%START_TIME(%s.%3f)%"), r"\d{10}\.\d{3}"),
    formed(both("%START_TIME(%Y/%m/%dT%H:%M:%S%z %6f %E2S)%"), r"\d{4}/\d\d/\d\dT\d\d:\d\d:\d\d\+0000 \d{6} \d\d\.\d\d"),
    formed(both("%UNIQUE_ID%"), UUID),
    formed(both("%STREAM_ID%"), ".+"),
    formed(both("%UPSTREAM_CLUSTER%"), r".*c\d{3}\.test.*"),
    formed(both("%DOWNSTREAM_LOCAL_PORT%"), r"1808[01]"),
    formed(both("%DOWNSTREAM_DIRECT_REMOTE_PORT%"), r"\d+"),
    *[rewritten(text) for text in (
        "%PATH%", "<%PATH(NQ:ORIG)%>", "%PATH(WQ:PATH)%", "%REQ(:path)%", "%REQ(:authority)%", "%REQ(x-user)%", "%REQ(x-envoy-original-path)%",
        "%QUERY_PARAM(a)%", "%REQUESTED_SERVER_NAME(HOST_FIRST:HOST)%", "%REQUESTED_SERVER_NAME(HOST_FIRST)%")],
    Case("headers: formatter %ROUTE_NAME%", http=[{"name": "first", "headers": NAMED}], envoy=[{"name": "first", **route(), **of_envoy(NAMED)}]),
    *[Case(f"direct: with formatters of the answer{name}", **more,
           http=[{"directResponse": {"status": 404}, "headers": {"response": {"set": {"x-formed": text}}}}],
           envoy=[{"match": {"prefix": "/"}, "direct_response": {"status": 404}, **of_envoy({"response": {"set": {"x-formed": text}}})}])
      for name, text, more in (
          ("", "%RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS%", {"same": ("status", "headers", "body", "flags")}),
          (", and its code", "%RESPONSE_CODE%", {
              "same": ("status", "flags"), "differs": "Envoy has not noted the code of an answer of its own by then, and writes 0",
              "check": lambda weft, envoy: [dict(r[0]["headers"])["x-formed"] for r in (weft, envoy)] == ["404", "0"]}))],
]
