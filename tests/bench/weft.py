"""Weft as a user runs it: a control plane with policy files, sidecars that join it, traffic redirected by nftables."""
import os
import subprocess
import time

from measure import BIN, PROXY_CPU, WITH_US

VIP = "10.222.0.1"
HOST = "bench.test"
# The user of proxies that do not run as root; the redirection exempts it.
PROXY_UID = 1337

RULE = """apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: bench}}
spec:
  host: {host}
  trafficPolicy:
    loadBalancer: {balancer}
    connectionPool:
      tcp: {{maxConnections: 4096}}
      http: {{{upgrade}http1MaxPendingRequests: 4096, http2MaxRequests: 8192}}
"""


def rule(host, ring=True, http2=False):
    balancer = "{consistentHash: {httpHeaderName: user-id}}" if ring else "{simple: ROUND_ROBIN}"
    return RULE.format(host=host, balancer=balancer, upgrade="h2UpgradePolicy: UPGRADE, " if http2 else "")


def entry(upstreams, kind):
    protocol = {"http1": "HTTP", "http2": "HTTP2", "tcp": "TCP"}[kind]
    endpoints = "\n".join(f"  - {{address: {one.rsplit(':')[0]}, ports: {{main: {one.rsplit(':')[1]}}}}}" for one in upstreams)
    return f"""apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: bench}}
spec:
  hosts: [{HOST}]
  addresses: [{VIP}]
  ports: [{{number: 80, name: main, protocol: {protocol}}}]
  resolution: STATIC
  endpoints:
{endpoints}
"""


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
        end = time.monotonic() + 10
        while self.ctl("status").returncode != 0:
            assert time.monotonic() < end, open(log.name).read()
            time.sleep(0.05)

    def ctl(self, *args):
        return subprocess.run([f"{BIN}/weftctl", *args], env=self.environment, capture_output=True, text=True)

    def policy(self, name, text):
        path = os.path.join(self.policies, name)
        with open(path + ".new", "w") as file:
            file.write(text)
        os.rename(path + ".new", path)

    def token(self, account, services=()):
        path = os.path.join(self.directory, f"{account}.token")
        named = [part for service in services for part in ("--service", service)]
        made = self.ctl("token", "create", "--service-account", account, "--out", path, *named)
        assert made.returncode == 0, made.stderr
        return path

    def virtual_ip(self, service):
        """The address that the control plane gave to a service, once it has one."""
        end = time.monotonic() + 15
        while time.monotonic() < end:
            for line in self.ctl("status", "--service", service, "-o", "wide").stdout.splitlines():
                if line.startswith(f"service {service}.") and "240.240" in line:
                    return line.split()[2]
            time.sleep(0.02)
        raise SystemExit(self.ctl("status").stdout)

    def stop(self):
        self.process.terminate()
        self.process.wait()


def sidecar(control, account, directory, *args, uid=None, workers=1):
    """The command of a sidecar with one worker, on the proxy's processor."""
    token, data = control.token(account), os.path.join(directory, account)
    user = []
    if uid:
        os.makedirs(data)
        for path in (token, data):
            os.chown(path, uid, uid)
        user = ["--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
    return [
        *WITH_US, *user, "taskset", "-c", PROXY_CPU, f"{BIN}/weft-sidecar", "run", "--control-plane", control.listen,
        "--token-file", token, "--data-dir", data, "--workload", account, "--workers", str(workers), *args,
    ]


def redirect(prefix=(), uid=None):
    user = ["--proxy-uid", str(uid)] if uid else []
    done = subprocess.run([*prefix, f"{BIN}/weft-sidecar", "redirect", "install", *user], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"redirect install: {done.stdout}{done.stderr}")


def unredirect(prefix=()):
    subprocess.run([*prefix, f"{BIN}/weft-sidecar", "redirect", "remove"], check=True, capture_output=True)
