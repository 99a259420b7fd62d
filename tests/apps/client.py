"""A stock HTTP/1.1 client that makes many requests and prints the results, one JSON array.

usage: client.py '{"url": ..., "count": N, "concurrency": N, "headers": {...}, "method": ..., "body": ...,
                   "vary": "header name", "values": [...], "seconds": S, "keep_alive": true, "fallback": ...}'

`vary`: the header gets the next of `values` in each request. `seconds`: as many requests as fit, instead of `count`.
`fallback`: a URL that replaces the first for good once that accepts no connection or has closed one after a response, as behind a
TCP load balancer.
Each result: {"status": N or 0, "error": text, "headers": {...}, "body": text, "value": ..., "ms": float}
"""
import http.client
import json
import sys
import threading
import time
import urllib.parse

plan = json.loads(sys.argv[1])
url = urllib.parse.urlsplit(plan["url"])
count = plan.get("count", 1)
values = plan.get("values") or [None]
end = time.monotonic() + plan["seconds"] if "seconds" in plan else None
results = []
lock = threading.Lock()
fallback = urllib.parse.urlsplit(plan["fallback"]) if "fallback" in plan else None
counter = iter(range(10**9 if end else count))


def connect(at):
    connection = http.client.HTTPConnection(at.hostname, at.port or 80, timeout=plan.get("timeout", 30))
    connection.connect()
    return connection


def run():
    connection = None
    at = url
    while True:
        with lock:
            number = next(counter, None)
        if number is None or (end and time.monotonic() > end):
            return
        value = values[number % len(values)]
        headers = dict(plan.get("headers", {}))
        if value is not None:
            headers[plan["vary"]] = value
        start = time.monotonic()
        result = {"status": 0, "value": value}
        try:
            if connection is None:
                try:
                    connection = connect(at)
                except ConnectionRefusedError:
                    if fallback is None:
                        raise
                    at = fallback
                    connection = connect(at)
            path = (url.path or "/") + ("?" + url.query if url.query else "")
            connection.request(plan.get("method", "GET"), path, body=plan.get("body"), headers=headers)
            response = connection.getresponse()
            body = response.read().decode("utf-8", "replace")
            result.update(status=response.status, headers={k.lower(): v for k, v in response.getheaders()}, body=body)
            result["at"] = at.hostname
            if response.will_close and fallback and plan.get("keep_alive", True):
                at = fallback
            if response.will_close or not plan.get("keep_alive", True):
                connection.close()
                connection = None
        except Exception as error:  # the error is the result
            result["error"] = f"{type(error).__name__}: {error}"
            if connection:
                connection.close()
            connection = None
        result["ms"] = (time.monotonic() - start) * 1000
        with lock:
            results.append(result)


threads = [threading.Thread(target=run) for _ in range(plan.get("concurrency", 1))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(results))
