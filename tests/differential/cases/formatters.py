"""Envoy's formatters in header operations: what does not differ from proxy to proxy is compared, the rest has one form in both."""
import dataclasses
import re

from case import Ask, Case
from .changes import changed, of_envoy
from envoy import route

ASK = Ask("/a?b=c", headers={"x-user": "alice", "x-answer": ["x-said: word"]}, source="127.0.0.9")


def both(text, **more):
    """In the request and in the answer."""
    return changed(f"formatter {text}", {"request": {"set": {"x-new": text}}, "response": {"set": {"x-formed": text}}}, [ASK], **more)


def answer(text, **more):
    """In the answer, where alone it is known."""
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
        "%ENVIRONMENT(HOME):3%", "%ENVIRONMENT(NO_SUCH_VARIABLE)%", "%START_TIME(plain)%", "%START_TIME(%Y)%-%PROTOCOL%")],
    *[answer(text) for text in (
        "%RESPONSE_CODE%", "%RESPONSE_CODE_DETAILS%", "%RESPONSE_FLAGS%", "%RESP(x-said)%", "%RESP(missing?x-said):2%",
        "<%RESP(missing)%>", "%RESP(missing)%", "%UPSTREAM_HOST%", "%UPSTREAM_REMOTE_ADDRESS%", "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "%UPSTREAM_REMOTE_PORT%", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%")],
    formed(both("%START_TIME%"), r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"),
    formed(both("%START_TIME(%s.%3f)%"), r"\d{10}\.\d{3}"),
    formed(both("%START_TIME(%Y/%m/%dT%H:%M:%S%z %6f %E2S)%"), r"\d{4}/\d\d/\d\dT\d\d:\d\d:\d\d\+0000 \d{6} \d\d\.\d\d"),
    formed(both("%UNIQUE_ID%"), UUID),
    formed(both("%STREAM_ID%"), ".+"),
    formed(both("%UPSTREAM_CLUSTER%"), r".*c\d{3}\.test.*"),
    formed(both("%DOWNSTREAM_LOCAL_PORT%"), r"1808[01]"),
    formed(both("%DOWNSTREAM_DIRECT_REMOTE_PORT%"), r"\d+"),
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
