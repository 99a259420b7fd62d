"""The scenarios: each takes a proxy's name and a folder, and gives the figures of one run."""
import json
import os
import subprocess
import sys
import time

import weft
from measure import BIN, LOAD_CPU, WITH_US, cpu_seconds, descendants, h2load, resident_mb, weft_load, window, wrk
from running import chain, one_hop

HTTP, HTTP2, GRPC = "127.0.0.1:9000", "127.0.0.1:9200", "127.0.0.1:9201"
SOURCE, SINK = "127.0.0.1:9301", "127.0.0.1:9302"
USER = {"user-id": "17"}


class Scenarios:
    """`servers`: processes that all scenarios share."""

    def __init__(self, servers, seconds):
        self.servers, self.seconds = servers, seconds

    def measured(self, run, load):
        """A second to warm up, then the window."""
        load(1)
        return window(run.pids, [*self.servers, *run.servers], lambda _: load(self.seconds))

    def one_hop(self, endpoints=1, ring=True, redirected=False):
        """HTTP/1.1, 64 connections, 128-byte answers, over so many endpoints; over several, from a thousand users."""
        def scenario(proxy, directory):
            with one_hop(proxy, directory, [f"127.0.0.1:{9000 + i}" for i in range(endpoints)], ring=ring, redirected=redirected) as run:
                headers = {**run.headers, **USER}
                return self.measured(run, lambda s: wrk(f"http://{run.to}/", s, 64, headers, many_users=endpoints > 1))
        return scenario

    def chain(self, kind):
        """HTTP/1.1 clients, 64 connections, 128-byte answers, through two proxies with mTLS between."""
        def scenario(proxy, directory):
            with chain(proxy, directory, kind) as run:
                return self.measured(run, lambda s: wrk(f"http://{run.to}/", s, 64, {**run.headers, **USER}, run.prefix))
        return scenario

    def http2(self, grpc=False):
        """HTTP/2 to HTTP/2, 10 connections by 20 streams: small answers, or unary gRPC."""
        def scenario(proxy, directory):
            headers, body = dict(USER), None
            if grpc:
                headers |= {"content-type": "application/grpc", "te": "trailers"}
                body = os.path.join(directory, "message")
                with open(body, "wb") as file:
                    file.write(b"\0\0\0\0\x10\x0a\x0e0123456789abcd")
            with one_hop(proxy, directory, [GRPC if grpc else HTTP2], "http2") as run:
                # Weft finds the service by its authority; the client dials its address.
                return self.measured(run, lambda s: h2load(f"http://{run.to}/", s, 10, 20, {**headers, **run.authority}, body))
        return scenario

    def byte_streams(self, upload, connections, mtls):
        """TCP in one direction, as a user other than root: over one proxy, or with mTLS between two."""
        def scenario(proxy, directory):
            # Peers must be able to read their configurations as that user.
            os.chmod(directory, 0o755)
            if mtls:
                running = chain(proxy, directory, "tcp", 9302 if upload else 9301, uid=weft.PROXY_UID)
            else:
                running = one_hop(proxy, directory, [SINK if upload else SOURCE], "tcp", uid=weft.PROXY_UID, redirected=True)
            flags = ["--upload"] if upload else []
            with running as run:
                load = lambda s, ready: weft_load("bytes", run.to, "--connections", connections, "--seconds", s, *flags,
                                                  prefix=run.prefix, ready=ready)
                load(1, None)
                return window(run.pids, [*self.servers, *run.servers], lambda ready: load(self.seconds, ready))
        return scenario

    def new_connections(self):
        """A new connection for each request, plain."""
        def scenario(proxy, directory):
            with one_hop(proxy, directory, [HTTP]) as run:
                return self.measured(run, lambda s: wrk(f"http://{run.to}/", s, 16, {**run.headers, **USER, "Connection": "close"}))
        return scenario

    def handshakes(self, resume):
        """A new mTLS connection to the second proxy for each request."""
        def scenario(proxy, directory):
            with chain(proxy, directory, only_second=True) as run:
                if proxy == "weft":
                    identity = ["--token-file", run.control.token("client"), "--control-plane", run.control.listen]
                else:
                    identity = ["--certificates", directory]
                flags = [*identity, *(["--resume"] if resume else [])]
                host = run.headers.get("Host", "bench")
                load = lambda s: weft_load("handshakes", run.to, "--host", host, "--seconds", s, *flags, prefix=run.prefix)
                return self.measured(run, load)
        return scenario

    def latency(self, over_chain):
        """2,000 requests a second, open loop, 32 connections."""
        def scenario(proxy, directory):
            with (chain(proxy, directory) if over_chain else one_hop(proxy, directory, [HTTP])) as run:
                host = run.headers.get("Host", "bench")
                load = lambda s: weft_load("open-loop", run.to, "--host", host, "--seconds", s, prefix=run.prefix)
                return self.measured(run, load)
        return scenario

    def memory(self, connections):
        """Resident memory: idle, with idle connections that have had one answer each, and after they have left."""
        def scenario(proxy, directory):
            with one_hop(proxy, directory, [HTTP]) as run:
                time.sleep(1)
                pids = [one for pid in run.pids for one in descendants(pid)]
                idle = resident_mb(pids)
                script = os.path.join(os.path.dirname(__file__), "hold.py")
                command = [sys.executable, script, f"http://{run.to}/", str(connections), json.dumps(run.headers)]
                hold = subprocess.Popen([*WITH_US, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                assert hold.stdout.readline().strip() == "ready"
                time.sleep(2)
                held = resident_mb(pids)
                hold.stdin.close()
                hold.wait()
                time.sleep(3)
                return {"rss_mb": idle, "rss_held_mb": held, "rss_after_mb": resident_mb(pids), "ready_ms": run.ready_ms,
                        "kb_per_connection": (held - idle) * 1024 / connections, "errors": 0}
        return scenario

    def fleet(self, services, streams):
        """The control plane: services, sidecars' streams that subscribe to 20 each, and an endpoint that comes and goes."""
        def scenario(_, directory):
            control = weft.ControlPlane(directory, prefix=["taskset", "-c", "0"])
            pids = [control.process.pid]
            try:
                token = control.token("registrar", [f"s{i}" for i in range(services)])
                command = [f"{BIN}/weft-load", "fleet", "--control-plane", control.listen, "--token-file", token,
                           "--services", str(services), "--streams", str(streams)]
                load = subprocess.Popen([*WITH_US, "taskset", "-c", LOAD_CPU, *command],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                assert "ready" in load.stdout.readline()
                rss, cpu = resident_mb(pids), cpu_seconds(pids)
                figures = json.loads(load.communicate("go\n")[0].splitlines()[-1])
                return {**figures, "rss_mb": rss, "cpu_at_start_s": cpu, "cpu_ms_per_change": (cpu_seconds(pids) - cpu) * 1000 / figures["changes"]}
            finally:
                control.stop()
        return scenario
