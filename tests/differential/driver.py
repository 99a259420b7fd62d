"""Sends the same requests to Weft and Envoy, case by case, and prints differences.

usage: driver.py write FOLDER POLICIES ENVOY_PORT ADMIN_PORT WEFT_TLS_PORT ENVOY_TLS_PORT
           Envoy's configuration and the policies, a file for each case
       driver.py run FOLDER WEFT_PORT ENVOY_PORT ADMIN_PORT CONTROL_PORT WEFT_TLS_PORT ENVOY_TLS_PORT WEFT_LOG [PART_OF_A_NAME]
"""
import collections
import concurrent.futures
import http.client
import json
import pathlib
import socket
import ssl
import sys
import threading
import time
import uuid

import envoy
from case import POLICY
from cases import CASES
from client import NONE, Connection

# Headers that name the proxy, or that differ from request to request.
OURS = {"x-request-id", "x-forwarded-proto", "x-envoy-expected-rq-timeout-ms", "x-envoy-attempt-count", "connection",
        "x-envoy-internal"}
THEIRS = {"date", "server", "x-envoy-upstream-service-time", "x-weft-reason", "connection", "keep-alive"}
BATCH = 50


class Log:
    """An access log that grows."""

    def __init__(self, path):
        self.path, self.at, self.found, self.lock = path, 0, {}, threading.Lock()

    def flags(self, ident):
        """The entry of a request, which may be written a little later."""
        end = time.time() + 10
        while time.time() < end:
            with self.lock:
                self.read()
                if ident in self.found:
                    return self.found[ident]
            time.sleep(0.01)
        return "no line in the log"

    def read(self):
        with self.path.open("rb") as file:
            file.seek(self.at)
            text = file.read()
        whole = text[:text.rfind(b"\n") + 1]
        self.at += len(whole)
        for line in whole.splitlines():
            if line.startswith(b"{"):
                found = json.loads(line)
                # Envoy writes flags in the order of their occurrence, Weft in a fixed order.
                self.found[found["request_id"]] = ",".join(sorted(found["response_flags"].split(",")))


def fetched(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path)
    return connection.getresponse().read()


class Proxy:
    def __init__(self, port, control, tls, log, admin=0):
        self.port, self.control, self.tls, self.log, self.admin = port, control, tls, Log(log), admin

    def results(self, case):
        results, kept = [], None
        for ask in case.asks:
            if ask.ejected >= 0 and self.admin:
                self.wait_until_ejected(case, ask.ejected)
            if ask.server_name:
                results.append(self.by_name(case, ask))
            elif ask.bulk:
                results += self.bulk(case, ask)
            elif ask.at_once > 1:
                with concurrent.futures.ThreadPoolExecutor(ask.at_once) as pool:
                    results += list(pool.map(lambda n: self.ask(case, ask, n), range(ask.times)))
            elif ask.until:
                results.append(self.until(case, ask))
            elif case.kept:
                kept = kept or Connection(self.port, ask.source)
                results += [self.ask(case, ask, number, kept) for number in range(ask.times)]
            else:
                results += [self.ask(case, ask, number) for number in range(ask.times)]
        if case.copies and not any(case.copies):
            # Unexpected copies would have arrived by now.
            for result in results:
                if late := json.loads(fetched(self.control, f"/log/{result['id']}")):
                    raise ValueError(f"a copy came: {late}")
        if {"flags", "outcomes"} & set(case.same):
            for result in results:
                result["flags"] = self.log.flags(result["id"])
        return results

    def by_name(self, case, ask):
        """The endpoint for a TLS connection with a server name."""
        context = ssl.create_default_context()
        sent = ssl.MemoryBIO()
        begun = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=ask.server_name.replace("@", case.host))
        try:
            begun.do_handshake()
        except ssl.SSLWantReadError:
            pass
        with self.tls_connection() as connection:
            connection.sendall(sent.read())
            try:
                answer = connection.makefile("rb").read()
            except ConnectionError:
                answer = b""
        port = int(answer or 0)
        return {"id": "", "status": port, "port": port}

    def tls_connection(self):
        """A gateway listens as soon as it has its servers."""
        end = time.time() + 10
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.tls), 20)
            except ConnectionRefusedError:
                if time.time() > end:
                    raise
                time.sleep(0.05)

    def until(self, case, ask):
        end = time.time() + 20
        while True:
            result = self.ask(case, ask)
            if result["status"] == ask.until or time.time() > end:
                return result
            time.sleep(0.05)

    def wait_until_ejected(self, case, count):
        """Envoy ejects on another thread than the one that serves."""
        end = time.time() + 10
        name = f"cluster.{case.host}.outlier_detection.ejections_active"
        while time.time() < end:
            stats = json.loads(fetched(self.admin, f"/stats?format=json&filter=^{name}$"))["stats"]
            if any(stat.get("value") == count for stat in stats):
                return
            time.sleep(0.01)
        raise ValueError(f"Envoy has not ejected {count}")

    def head(self, case, ask, number, ident):
        fill = lambda text: text.replace("{i}", str(number))
        headers = {"Host": case.host, "x-request-id": ident, "x-do": ask.do, **ask.headers}
        if headers["Host"] is not None:
            headers["Host"] = headers["Host"].replace("@", case.host)
        if ask.body:
            headers.setdefault("content-length", str(len(ask.body)))
        lines = [f"{ask.method} {fill(ask.path)} HTTP/1.1"]
        for name, value in headers.items():
            for one in value if isinstance(value, list) else [value]:
                if one is not None:
                    lines.append(f"{name}: {fill(one)}")
        return ("\r\n".join(lines) + "\r\n\r\n" + ask.body).encode("latin-1")

    def ask(self, case, ask, number=0, kept=None):
        ident = str(uuid.uuid4())
        time.sleep(number * ask.apart)
        connection = kept or Connection(self.port, ask.source.replace("{i}", str(number)))
        start = time.monotonic()
        if ask.raw:
            connection.send(ask.raw.replace(b"HOST", case.host.encode()).replace(b"ID", ident.encode()))
        else:
            connection.send(self.head(case, ask, number, ident))
        answer = connection.answer(ask.method)
        took = time.monotonic() - start
        further = [connection.answer().status for _ in range(ask.answers - 1)]
        ends = connection.ends() if "ends" in case.same else None
        if not kept:
            connection.close()
        if self.admin and "outlier_detection" in case.cluster:
            # Envoy ejects on the thread that answers this.
            fetched(self.admin, "/ready")
        attempts = self.attempts(ident, case.copies)
        if case.copies:
            # The endpoint that answered is the one of subset a.
            attempts = [one for one in attempts if one["port"] == case.endpoints[0].port]
        seen = attempts[-1] if attempts else {}
        return {
            "id": ident,
            "status": answer.status,
            "port": seen.get("port"),
            "seen": seen and {
                "method": seen["method"], "path": seen["path"], "body": seen["body"], "trailers": seen["trailers"],
                "headers": sorted([n.lower(), v] for n, v in seen["headers"] if n.lower() not in OURS),
            },
            "headers": sorted([n.lower(), v] for n, v in answer.headers if n.lower() not in THEIRS),
            "body": answer.body.decode("latin-1"),
            "trailers": answer.trailers,
            "interim": answer.interim,
            "cut": answer.cut,
            "further": further,
            "ends": ends,
            "closing": "close" in [value.lower() for value in answer.values("connection")],
            "attempts": len(attempts),
            "tried": [one["port"] for one in attempts],
            "connection": (seen.get("port"), seen.get("connection")),
            "took": took,
        }

    def attempts(self, ident, copies):
        """The result of a request, with its copies, which may arrive later."""
        found, end = [], time.time() + 5
        while True:
            found += json.loads(fetched(self.control, f"/log/{ident}"))
            # A copy that must not arrive cannot be waited for.
            if not copies or not any(copies) or len(found) > max(copies):
                return found
            if time.time() > end:
                raise ValueError(f"a copy did not come: {found}")
            time.sleep(0.01)

    def bulk(self, case, ask):
        """Sequential requests on one connection, some of them pipelined."""
        results = []
        connection = Connection(self.port, ask.source)
        for start in range(0, ask.times, BATCH):
            numbers = range(start, min(start + BATCH, ask.times))
            ask.headers["x-unlogged"] = "1"
            connection.send(b"".join(self.head(case, ask, number, f"bulk-{number}") for number in numbers))
            for _ in numbers:
                answer = connection.answer(ask.method)
                if answer is NONE:
                    raise ValueError(f"only {len(results)} answers of {ask.times}")
                results.append({"id": "", "status": answer.status, "port": (answer.values("x-port") or [None])[0]})
        connection.close()
        return results


# A random share of the requests.
TOLERANCE = 0.08


def problem(aspect, weft, theirs):
    """The difference of an aspect, or an empty text."""
    if aspect == "spread":
        shares = [collections.Counter(result["port"] for result in results) for results in (weft, theirs)]
        ours, other = ({port: count / len(weft) for port, count in share.items()} for share in shares)
        same = all(abs(ours.get(port, 0) - other.get(port, 0)) < TOLERANCE for port in ours.keys() | other.keys())
        same = same and ours.keys() == other.keys()
        return None if same else f"spread: weft {ours}, envoy {other}"
    if aspect == "outcomes":
        ours, other = (collections.Counter((r["status"], r["flags"]) for r in results) for results in (weft, theirs))
        return None if ours == other else f"outcomes: weft {dict(ours)}, envoy {dict(other)}"
    if aspect == "connections":
        ours, other = (len({r["connection"] for r in results}) for results in (weft, theirs))
        return None if ours == other else f"connections: weft {ours}, envoy {other}"
    pairs = [(ours[aspect], other[aspect]) for ours, other in zip(weft, theirs)]
    differing = [number for number, (ours, other) in enumerate(pairs) if ours != other]
    if len(weft) != len(theirs) or differing:
        number = differing[0]
        return f"{aspect}, {len(differing)} of {len(pairs)}, first {number}: weft {pairs[number][0]}, envoy {pairs[number][1]}"
    return None


def compare(case, weft, theirs):
    """Problems of a case."""
    problems = [found for aspect in case.same if (found := problem(aspect, weft, theirs))]
    if case.check and not case.check(weft, theirs):
        short = [[{k: v for k, v in result.items() if k not in ("id", "seen", "headers")} for result in results[:8]]
                 for results in (weft, theirs)]
        problems.append(f"is not as it is meant to be: weft {short[0]}, envoy {short[1]}")
    return problems


def summary(results):
    """A summary of the results of requests."""
    counts = collections.Counter(f"{result['status']} {result.get('flags') or ''}".strip() for result in results)
    return ", ".join(f"{count}x {result}" for result, count in counts.items())


def judge(case, weft, theirs):
    """Runs a case on both at the same time. Returns the differences and a summary of the results."""
    try:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            ours, other = (pool.submit(proxy.results, case) for proxy in (weft, theirs))
            return compare(case, ours.result(), other.result()), summary(other.result())
    except (OSError, http.client.HTTPException, KeyError, ValueError) as error:
        return [repr(error)], ""


def main():
    folder = pathlib.Path(sys.argv[2])
    for number, case in enumerate(CASES):
        case.host = f"c{number:03}.test"
    names = collections.Counter(case.name for case in CASES)
    if twice := [name for name, count in names.items() if count > 1]:
        print(f"FAILED: cases of the same name: {twice}")
        return 1
    if sys.argv[1] == "write":
        for case in CASES:
            (pathlib.Path(sys.argv[3]) / f"{case.host}.yaml").write_text("\n---\n".join(map(json.dumps, case.yaml())))
        envoy_port, admin, weft_tls, envoy_tls = map(int, sys.argv[4:8])
        (pathlib.Path(sys.argv[3]) / "gateway.yaml").write_text(json.dumps({
            "apiVersion": POLICY, "kind": "Gateway", "metadata": {"name": "names"},
            "spec": {"servers": [{"port": {"number": weft_tls, "name": "tls", "protocol": "TLS"}, "hosts": ["*"],
                                  "tls": {"mode": "PASSTHROUGH"}}]},
        }))
        config = envoy.config(CASES, envoy_port, envoy_tls, admin, str(folder / "envoy-access.log"))
        (folder / "envoy.json").write_text(json.dumps(config))
        return 0
    weft_port, envoy_port, admin, control, weft_tls, envoy_tls = map(int, sys.argv[3:9])
    weft = Proxy(weft_port, control, weft_tls, pathlib.Path(sys.argv[9]))
    theirs = Proxy(envoy_port, control, envoy_tls, folder / "envoy-access.log", admin)
    wanted = sys.argv[10] if len(sys.argv) > 10 else ""
    failed, start = 0, time.monotonic()
    chosen = [case for case in CASES if wanted in case.name]
    for case in chosen:
        problems, became = judge(case, weft, theirs)
        if problems:
            failed += 1
            print(f"FAILED: {case.name} ({case.host})")
            for one in problems:
                print(f"    {one[:1500]}", flush=True)
        else:
            print(f"ok: {case.name}: {became}" + (f" (differs: {case.differs})" if case.differs else ""), flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} cases as they are meant to be, {time.monotonic() - start:.0f} s")
    return 1 if failed or not chosen else 0


sys.exit(main())
