"""Weft as a user runs it: a control plane with policy files, a sidecar that joins it, traffic redirected by nftables."""
import os
import subprocess
import time
import urllib.request

from measure import PROXY_CPU

BIN = os.environ.get("WEFT_BIN") or os.path.join(os.path.dirname(__file__), "../../target/dist")
# What we start ends when we do, however that is.
WITH_US = ["setpriv", "--pdeathsig", "KILL"]
VIP = "10.222.0.1"
HOST = "bench.test"

RULE = """apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: bench}}
spec:
  host: {host}
  trafficPolicy:
    loadBalancer: {balancer}
    connectionPool:
      tcp: {{maxConnections: 4096}}
      http: {{http1MaxPendingRequests: 4096, http2MaxRequests: 8192}}
"""


def entry(upstreams, protocol="HTTP"):
    endpoints = "\n".join(f"  - {{address: {one.rsplit(':')[0]}, ports: {{http: {one.rsplit(':')[1]}}}}}" for one in upstreams)
    return f"""apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: bench}}
spec:
  hosts: [{HOST}]
  addresses: [{VIP}]
  ports: [{{number: 80, name: http, protocol: {protocol}}}]
  resolution: STATIC
  endpoints:
{endpoints}
"""


def wait(url, seconds=10):
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                return answer.read()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.002)


class ControlPlane:
    """On its embedded store, with a policy folder."""

    def __init__(self, directory, listen="127.0.0.1:15012", prefix=()):
        self.directory, self.listen = directory, listen
        self.policies = os.path.join(directory, "policies")
        os.makedirs(self.policies, exist_ok=True)
        log = open(os.path.join(directory, "control-plane.log"), "w")
        data = os.path.join(directory, "cp")
        self.process = subprocess.Popen(
            [*prefix, *WITH_US, f"{BIN}/weft-control-plane", "--data-dir", data, "--listen", listen, "--policies", self.policies],
            stdout=subprocess.DEVNULL, stderr=log)
        self.environment = {**os.environ, "WEFT_ADMIN_SOCKET": os.path.join(data, "admin.sock")}
        while self.ctl("status").returncode != 0:
            time.sleep(0.05)

    def ctl(self, *args):
        return subprocess.run([f"{BIN}/weftctl", *args], env=self.environment, capture_output=True, text=True)

    def policy(self, name, text):
        path = os.path.join(self.policies, name)
        with open(path + ".new", "w") as file:
            file.write(text)
        os.rename(path + ".new", path)

    def token(self, account):
        path = os.path.join(self.directory, f"{account}.token")
        made = self.ctl("token", "create", "--service-account", account, "--out", path)
        assert made.returncode == 0, made.stderr
        return path

    def stop(self):
        self.process.terminate()
        self.process.wait()


def sidecar(control, account, directory, *args, prefix=(), workers=1):
    """The command of a sidecar with one worker, on the proxy's processor."""
    return [
        *prefix, "taskset", "-c", PROXY_CPU, f"{BIN}/weft-sidecar", "run", "--control-plane", control.listen,
        "--token-file", control.token(account), "--data-dir", os.path.join(directory, account), "--workload", account,
        "--workers", str(workers), *args,
    ]


def redirect(prefix=()):
    subprocess.run([*prefix, f"{BIN}/weft-sidecar", "redirect", "install"], check=True, capture_output=True)


def unredirect(prefix=()):
    subprocess.run([*prefix, f"{BIN}/weft-sidecar", "redirect", "remove"], check=True, capture_output=True)
