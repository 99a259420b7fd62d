"""The two-proxy chain: client -> proxy A -> mTLS -> proxy B -> server. Both proxies have processor 0 together.

Weft's two sidecars are in pods of their own, as they must be; the peers' two proxies meet on loopback, which costs them less.
"""
import json
import os
import subprocess
import time

import peers
import weft
from measure import LOAD_CPU, PROXY_CPU, descendants, window, wrk

CENTER, A, B = "10.223.0.254", "10.223.0.1", "10.223.0.2"


def sh(command):
    subprocess.run(command, shell=True, check=True, capture_output=True)


def pods():
    """Two network namespaces on a bridge, made once."""
    if os.path.exists("/run/netns/bench-b"):
        return
    sh("mkdir -p /run/netns")
    sh(f"ip link add br0 address 02:00:00:00:00:02 type bridge && ip addr add {CENTER}/24 dev br0 && ip link set br0 up")
    for name, address in (("a", A), ("b", B)):
        sh(f"ip netns add bench-{name} && ip link add eth0 netns bench-{name} type veth peer name p{name}")
        sh(f"ip link set p{name} master br0 up && ip -n bench-{name} link set lo up")
        sh(f"ip -n bench-{name} addr add {address}/24 dev eth0 && ip -n bench-{name} link set eth0 up")
        sh(f"ip -n bench-{name} route add default via {CENTER}")


class WeftChain:
    """Two sidecars, a control plane, and the server in the second pod."""

    def __init__(self, directory, http2):
        pods()
        inside = lambda name: ["ip", "netns", "exec", f"bench-{name}"]
        self.prefix = inside("a")
        self.control = weft.ControlPlane(directory, f"{CENTER}:15012")
        upgrade = "h2UpgradePolicy: UPGRADE, " if http2 else ""
        rule = weft.RULE.format(host="order", balancer="{consistentHash: {httpHeaderName: user-id}}")
        self.control.policy("order.yaml", rule.replace("http: {", "http: {" + upgrade))
        self.log = open(os.path.join(directory, "chain.log"), "w")
        self.processes = []
        self.spawn([*inside("b"), "taskset", "-c", LOAD_CPU, *peers.upstream(directory, [8080], "0.0.0.0")])
        server = weft.sidecar(self.control, "order", directory, "--service", "order", "--port", "8080", "--protocol", "http", prefix=inside("b"))
        client = weft.sidecar(self.control, "front", directory, prefix=inside("a"))
        self.pids = [self.spawn(server), self.spawn(client)]
        for name in "ab":
            ready = [*inside(name), "curl", "-sf", "-m", "1", "http://127.0.0.1:15021/healthz/ready"]
            end = time.monotonic() + 15
            while subprocess.run(ready, capture_output=True).returncode != 0:
                assert time.monotonic() < end, open(self.log.name).read()
                time.sleep(0.02)
            weft.redirect(inside(name))
        self.url, self.headers = "", {"Host": "order"}
        while not self.url:
            for line in self.control.ctl("status").stdout.splitlines():
                if line.startswith("service order.") and "240.240" in line:
                    self.url = f"http://{line.split()[2]}/"

    def spawn(self, command):
        process = subprocess.Popen([*weft.WITH_US, *command], stdout=subprocess.DEVNULL, stderr=self.log)
        self.processes.append(process)
        return process.pid

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()
        for name in "ab":
            weft.unredirect(["ip", "netns", "exec", f"bench-{name}"])
        self.control.stop()


def certificates(directory):
    """A CA and one certificate that both sides show."""
    def openssl(*args):
        subprocess.run(["openssl", *args], check=True, capture_output=True, cwd=directory)
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=bench")
    openssl("req", *curve, "-keyout", "one.key", "-out", "one.csr", "-subj", "/CN=one")
    openssl("x509", "-req", "-in", "one.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "one.pem", "-days", "2")
    with open(os.path.join(directory, "both.pem"), "w") as both:
        for name in ("one.pem", "one.key"):
            both.write(open(os.path.join(directory, name)).read())


class EnvoyChain:
    """Two Envoys: plain in, mTLS between, plain out."""

    def __init__(self, directory, http2, binary):
        certificates(directory)
        first = peers.envoy_config(10011, ["127.0.0.1:10012"], tls_out=directory, http2_out=http2)
        second = peers.envoy_config(10012, ["127.0.0.1:9000"], tls_in=directory)
        self.processes, self.prefix, self.headers, self.url = [], [], {}, "http://127.0.0.1:10011/"
        for name, config in (("first", first), ("second", second)):
            path = os.path.join(directory, f"{name}.json")
            with open(path, "w") as file:
                json.dump(config, file)
            command = [*weft.WITH_US, "taskset", "-c", PROXY_CPU, binary, "-c", path, *peers.ENVOY_ARGS]
            log = open(os.path.join(directory, f"{name}.log"), "w")
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        self.pids = [process.pid for process in self.processes]

    def stop(self):
        for process in self.processes:
            process.terminate()
            process.wait()


class HaproxyChain:
    """One HAProxy process that is both proxies: the same work, one thread."""

    def __init__(self, directory, http2):
        certificates(directory)
        path = os.path.join(directory, "chain.cfg")
        with open(path, "w") as file:
            file.write(peers.haproxy_chain(directory, http2))
        self.prefix, self.headers, self.url = [], {}, "http://127.0.0.1:10021/"
        log = open(os.path.join(directory, "haproxy.log"), "w")
        command = [*weft.WITH_US, "taskset", "-c", PROXY_CPU, "haproxy", "-f", path, "-db"]
        self.processes = [subprocess.Popen(command, stdout=log, stderr=log)]
        self.pids = [self.processes[0].pid]

    stop = EnvoyChain.stop


def chain(seconds, http2, envoy):
    """HTTP/1.1 clients, 64 connections, 128-byte answers, with HTTP/1.1 or HTTP/2 inside."""
    def run(proxy, directory):
        make = {
            "weft": lambda: WeftChain(directory, http2),
            "envoy": lambda: EnvoyChain(directory, http2, envoy),
            "haproxy": lambda: HaproxyChain(directory, http2),
        }
        running = make[proxy]()
        try:
            headers = {**running.headers, "user-id": "17"}
            check = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
            end = time.monotonic() + 15
            while subprocess.run([*running.prefix, "curl", "-s", "-m", "2", *check, running.url], capture_output=True).stdout != b"x" * 128:
                assert time.monotonic() < end, f"{proxy} does not answer; see {directory}"
                time.sleep(0.02)
            load = lambda s: wrk(running.url, s, 64, headers, running.prefix)
            load(1)
            return window(running.pids, lambda: load(seconds))
        finally:
            running.stop()
    return run
