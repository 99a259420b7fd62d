"""The benchmark: Weft beside its peers, each scenario by each proxy in turn, several times, medians at the end.

One worker each. The proxy has processor 0 for itself, load generators and servers have processor 1. CPU time is that of the
proxy's processes, user and system. Only ratios within one run mean something: machines differ, and so do their hours.

usage: bench.py [--quick] [--only S1,S7]
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import peers
import weft
from chain import chain
from measure import LOAD_CPU, PROXY_CPU, descendants, h2load, resident_mb, window, wrk

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
OUT = os.path.join(ROOT, "target/bench")
ENVOY = os.path.join(OUT, "venv/bin/envoy")
PROXIES = ["weft", "envoy", "haproxy", "nginx"]


class Run:
    """One proxy under test, and the servers behind it."""

    def __init__(self, proxy, directory, upstreams, ring, http2=False):
        self.authority, self.http2 = {}, http2
        self.proxy, self.control, self.pids, self.processes = proxy, None, [], []
        self.log = open(os.path.join(directory, "proxy.log"), "w")
        if proxy == "weft":
            self.start_weft(directory, upstreams, ring, http2)
        else:
            port = {"envoy": 10001, "haproxy": 10002, "nginx": 10003}[proxy]
            make = getattr(peers, proxy)
            binary = [ENVOY] if proxy == "envoy" else []
            more = [True] if http2 else []
            command = make(directory, *binary, port, upstreams, ring, *more)
            self.url, self.headers = f"http://127.0.0.1:{port}/", {}
            self.spawn(["taskset", "-c", PROXY_CPU, *command])
        start = time.monotonic()
        while not self.answers():
            if time.monotonic() - start > 15:
                self.stop()
                with open(self.log.name) as log:
                    raise SystemExit(f"{proxy} does not answer:\n{log.read()}")
            time.sleep(0.01)

    def start_weft(self, directory, upstreams, ring, http2):
        self.control = weft.ControlPlane(directory)
        balancer = "{consistentHash: {httpHeaderName: user-id}}" if ring else "{simple: ROUND_ROBIN}"
        self.control.policy("bench.yaml", weft.entry(upstreams, "HTTP2" if http2 else "HTTP") + "---\n" + weft.RULE.format(host=weft.HOST, balancer=balancer))
        self.spawn(weft.sidecar(self.control, "front", directory))
        weft.wait("http://127.0.0.1:15021/healthz/ready")
        weft.redirect()
        self.url, self.headers, self.authority = f"http://{weft.VIP}/", {"Host": weft.HOST}, {":authority": weft.HOST}

    def spawn(self, command):
        process = subprocess.Popen([*weft.WITH_US, *command], stdout=subprocess.DEVNULL, stderr=self.log)
        self.processes.append(process)
        self.pids.append(process.pid)

    def answers(self):
        headers = [part for name, value in self.headers.items() for part in ("-H", f"{name}: {value}")]
        version = ["--http2-prior-knowledge"] if self.http2 else []
        command = ["curl", "-s", "-m", "2", *version, "-H", "user-id: 1", *headers, self.url]
        return subprocess.run(command, capture_output=True).stdout == b"x" * 128

    def stop(self):
        if self.control:
            weft.unredirect()
        for process in self.processes:
            # Asked, not killed: a killed master leaves its workers.
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.control:
            self.control.stop()


def one_hop(seconds, endpoints, ring=True):
    """HTTP/1.1, 64 connections, 128-byte answers, over so many endpoints."""
    def run(proxy, directory):
        upstreams = [f"127.0.0.1:{9000 + i}" for i in range(endpoints)]
        running = Run(proxy, directory, upstreams, ring)
        try:
            load = lambda s: wrk(running.url, s, 64, {**running.headers, "user-id": "17"})
            load(1)
            return window(running.pids, lambda: load(seconds))
        finally:
            running.stop()
    return run


def http2(seconds):
    """HTTP/2 to HTTP/2, 10 connections by 20 streams."""
    def run(proxy, directory):
        running = Run(proxy, directory, ["127.0.0.1:9200"], True, http2=True)
        try:
            # The authority is what Weft knows the service by; its address is what is dialed.
            load = lambda s: h2load(running.url, s, 10, 20, {"user-id": "17", **running.authority})
            load(1)
            return window(running.pids, lambda: load(seconds))
        finally:
            running.stop()
    return run


def new_connections(seconds):
    """A new connection for each request, plain."""
    def run(proxy, directory):
        running = Run(proxy, directory, ["127.0.0.1:9000"], True)
        try:
            load = lambda s: wrk(running.url, s, 16, {**running.headers, "user-id": "17", "Connection": "close"})
            load(1)
            return window(running.pids, lambda: load(seconds))
        finally:
            running.stop()
    return run


def memory(connections):
    """Resident memory: idle, with idle connections, and after they have left."""
    def run(proxy, directory):
        running = Run(proxy, directory, ["127.0.0.1:9000"], True)
        try:
            time.sleep(1)
            pids = [one for pid in running.pids for one in descendants(pid)]
            idle = resident_mb(pids)
            hold = subprocess.Popen(
                [sys.executable, os.path.join(os.path.dirname(__file__), "hold.py"), running.url, str(connections), json.dumps(running.headers)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert hold.stdout.readline().strip() == "ready"
            held = resident_mb(pids)
            hold.stdin.close()
            hold.wait()
            time.sleep(3)
            after = resident_mb(pids)
            return {"rss_mb": idle, "rss_held_mb": held, "rss_after_mb": after,
                    "kb_per_connection": (held - idle) * 1024 / connections, "errors": 0}
        finally:
            running.stop()
    return run


def scenarios(quick):
    seconds = 2 if quick else 5
    return {
        "S1 HTTP/1.1 one hop": (one_hop(seconds, 1), PROXIES),
        "S2 chain, HTTP/1.1 inside": (chain(seconds, False, ENVOY), ["weft", "envoy", "haproxy"]),
        "S2 chain, HTTP/2 inside": (chain(seconds, True, ENVOY), ["weft", "envoy", "haproxy"]),
        "S3 HTTP/2 to HTTP/2": (http2(seconds), ["weft", "envoy", "haproxy"]),
        "S5 new connections, plain": (new_connections(seconds), PROXIES),
        "S7 ring over 3": (one_hop(seconds, 3), ["weft", "envoy"]),
        "S7 ring over 100": (one_hop(seconds, 100), ["weft", "envoy"]),
        "S6 memory": (memory(1000 if quick else 5000), PROXIES),
    }


def median(rows, key):
    values = [row[key] for row in rows if key in row]
    return (statistics.median(values), min(values), max(values)) if values else None


def report(name, results):
    """A line for each proxy: medians, with the least and the most, and against Weft."""
    rows = []
    base = None
    for proxy, runs in results.items():
        row = {"scenario": name, "proxy": proxy, "runs": len(runs), "errors": sum(run["errors"] for run in runs)}
        texts = []
        for key in ("cpu_us_per_request", "rps", "p50_us", "p99_us", "rss_mb", "rss_held_mb", "rss_after_mb", "kb_per_connection"):
            found = median(runs, key)
            if found:
                row[key] = round(found[0], 2)
                texts.append(f"{key} {found[0]:.1f} ({found[1]:.1f}-{found[2]:.1f})")
        first = "cpu_us_per_request" if "cpu_us_per_request" in row else "rss_mb"
        base = base or (row[first], *median(runs, first)[1:])
        spread = median(runs, first)
        ratio = base[0] / row[first] if row[first] else 0
        noise = "" if proxy == "weft" or base[2] < spread[1] or base[1] > spread[2] else ", within noise"
        print(f"  {proxy:8} {'; '.join(texts)}; errors {row['errors']}; weft/{proxy} {ratio:.2f}{noise}", flush=True)
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("QUICK")))
    parser.add_argument("--only", default=os.environ.get("ONLY", ""))
    parser.add_argument("--inside", action="store_true")
    args = parser.parse_args()
    if not args.inside:
        # A network of our own: nothing of the machine is redirected.
        command = ["unshare", "--net", "--mount", *(["--user", "--map-root-user"] if os.getuid() else []), sys.executable, __file__, "--inside"]
        command += ["--quick"] if args.quick else []
        os.execvp("unshare", [*command, "--only", args.only])
    # Where `ip netns` keeps its names: ours alone.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    # A way out, as any machine has: what leaves by loopback is never redirected.
    way_out = "ip link add out0 type veth peer name out1 && ip addr add 10.222.255.1/16 dev out0 && ip link set out0 up && ip link set out1 up"
    subprocess.run(f"ip link set lo up && {way_out}", shell=True, check=True)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    resource_limit()
    directory = tempfile.mkdtemp(prefix="weft-bench-")
    upstream = subprocess.Popen([*weft.WITH_US, "taskset", "-c", LOAD_CPU, *peers.upstream(directory, range(9000, 9100), http2=[9200])])
    rows, rounds = [], 2 if args.quick else 5
    try:
        for name, (run, proxies) in scenarios(args.quick).items():
            if args.only and name.split()[0] not in args.only.split(","):
                continue
            results = {proxy: [] for proxy in proxies}
            for round_number in range(rounds):
                for proxy in proxies:
                    print(f"\r{name}: round {round_number + 1} of {rounds}, {proxy}        ", end="", flush=True)
                    place = tempfile.mkdtemp(dir=directory)
                    results[proxy].append(run(proxy, place))
            others = [r["machine_cpu"] - r["proxy_cpu"] for runs in results.values() for r in runs if "machine_cpu" in r]
            busy = f", load, servers and the rest of the machine used {statistics.median(others):.2f} processors" if others else ""
            print(f"\r{name}: medians of {rounds} (least-most){busy}")
            rows += report(name, results)
    finally:
        upstream.terminate()
    os.makedirs(OUT, exist_ok=True)
    with open(os.path.join(OUT, "report.json"), "w") as file:
        json.dump(rows, file, indent=1)
    print(f"written: {os.path.relpath(os.path.join(OUT, 'report.json'), ROOT)}")
    return 1 if any(row["errors"] for row in rows) else 0


def resource_limit():
    import resource
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
