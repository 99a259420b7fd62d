"""Proxies set up for a scenario: one hop on loopback, or a chain over two pods. "direct": without a proxy."""
import os
import socket
import subprocess
import time

import peers
import weft
from measure import BIN, LOAD_CPU, PROXY_CPU, STEADY, WITH_US, header_args

PORT = 10001
CENTER, A, B = "10.223.0.254", "10.223.0.1", "10.223.0.2"
# The servers' answers: HTTP, gRPC.
ANSWERS = (b"x" * 128, b"0123456789abcd")


def sh(command):
    subprocess.run(command, shell=True, check=True, capture_output=True)


def pods():
    """Two network namespaces on a bridge, made once."""
    if os.path.exists("/run/netns/bench-b"):
        return
    sh("mkdir -p /run/netns")
    sh(f"ip link add br0 address 02:00:00:00:00:02 type bridge && ip addr add {CENTER}/24 dev br0 && ip link set br0 up")
    for name, address in (("a", A), ("b", B)):
        sh(f"ip netns add bench-{name} && ip netns exec bench-{name} {STEADY}")
        sh(f"ip link add eth0 netns bench-{name} type veth peer name p{name}")
        sh(f"ip link set p{name} master br0 up && ip -n bench-{name} link set lo up")
        sh(f"ip -n bench-{name} addr add {address}/24 dev eth0 && ip -n bench-{name} link set eth0 up")
        sh(f"ip -n bench-{name} route add default via {CENTER}")


def inside(name):
    return ["ip", "netns", "exec", f"bench-{name}"]


def certificates(directory):
    """A CA and one certificate that both sides show."""
    if os.path.exists(os.path.join(directory, "both.pem")):
        return
    def openssl(*args):
        subprocess.run(["openssl", *args], check=True, capture_output=True, cwd=directory)
    with open(os.path.join(directory, "ext"), "w") as file:
        file.write("subjectAltName=DNS:one.bench\n")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=bench")
    openssl("req", *curve, "-keyout", "one.key", "-out", "one.csr", "-subj", "/CN=one")
    openssl("x509", "-req", "-in", "one.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "one.pem",
            "-days", "2", "-extfile", "ext")
    with open(os.path.join(directory, "both.pem"), "w") as both:
        for name in ("one.pem", "one.key"):
            both.write(open(os.path.join(directory, name)).read())
    for name in ("one.key", "both.pem", "one.pem", "ca.pem"):
        # Throw-away keys, read by proxies that do not run as root too.
        os.chmod(os.path.join(directory, name), 0o644)


class Running:
    """Processes under test (`pids`), servers of this scenario's own (`servers`), and the addresses for the load."""

    def __init__(self, directory, proxy):
        self.directory, self.proxy = directory, proxy
        self.control, self.prefix, self.headers, self.authority = None, [], {}, {}
        self.pids, self.servers, self.processes, self.redirected = [], [], [], []
        self.log = open(os.path.join(directory, "proxy.log"), "w")
        self.ready_ms = None

    def spawn(self, command, prefix=()):
        process = subprocess.Popen([*prefix, *command], stdout=subprocess.DEVNULL, stderr=self.log)
        self.processes.append(process)
        return process.pid

    def peer(self, name, *args, prefix=(), uid=None, **more):
        user = ["--reuid", str(uid), "--regid", str(uid), "--clear-groups"] if uid else []
        command = peers.command(self.proxy, self.directory, name, *args, **more)
        return self.spawn([*WITH_US, *user, "taskset", "-c", PROXY_CPU, *command], prefix)

    def until(self, done, problem):
        """Polls often, because measured times are shorter than the start of a process."""
        end = time.monotonic() + 15
        while not done():
            if time.monotonic() > end:
                self.stop()
                raise SystemExit(f"{self.proxy}: {problem}; its log:\n{open(self.log.name).read()}")
            time.sleep(0.001)

    def redirect(self, prefix=(), uid=None):
        weft.redirect(prefix, uid)
        self.redirected.append(prefix)

    def answers(self, http2=False):
        version = ["--http2-prior-knowledge"] if http2 else []
        command = [*self.prefix, "curl", "-s", "-m", "2", *version, "-H", "user-id: 1", *header_args(self.headers), f"http://{self.to}/"]
        return subprocess.run(command, capture_output=True).stdout.endswith(ANSWERS)

    def stop(self):
        for prefix in self.redirected:
            weft.unredirect(prefix)
        # SIGTERM, not SIGKILL: a killed master leaves its workers.
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.control:
            self.control.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def accepts(host, port):
    try:
        socket.create_connection((host, port), 1).close()
        return True
    except OSError:
        return False


def one_hop(proxy, directory, upstreams, kind="http1", ring=True, uid=None, redirected=False):
    """A proxy on loopback, to whose listener the traffic is sent; Weft's may be redirected to it instead."""
    run = Running(directory, proxy)
    start = time.monotonic()
    if proxy == "direct":
        run.to = upstreams[0]
    elif proxy == "weft":
        run.control = weft.ControlPlane(directory)
        run.control.policy("bench.yaml", weft.entry(upstreams, kind) + "---\n" + weft.rule(weft.HOST, ring))
        listen = f"127.0.0.1:{PORT}"
        command = weft.sidecar(run.control, "front", directory, "--http-proxy", listen, uid=uid)
        start = time.monotonic()
        run.pids.append(run.spawn(command))
        run.until(lambda: ready("127.0.0.1"), "not ready")
        run.ready_ms = (time.monotonic() - start) * 1000
        run.to, run.headers, run.authority = listen, {"Host": weft.HOST}, {":authority": weft.HOST}
        if redirected:
            run.redirect(uid=uid)
            run.to = f"{weft.VIP}:80"
    else:
        run.to = f"127.0.0.1:{PORT}"
        run.pids.append(run.peer("one", run.to, upstreams, kind, ring, uid=uid))
        run.until(lambda: accepts("127.0.0.1", PORT), "does not listen")
        run.ready_ms = (time.monotonic() - start) * 1000
    if kind == "tcp":
        host, port = run.to.split(":")
        run.until(lambda: accepts(host, int(port)), "does not accept")
    else:
        run.until(lambda: run.answers(kind == "http2"), "does not answer")
    return run


def ready(host):
    """Whether a sidecar's readiness port answers 200."""
    try:
        with socket.create_connection((host, 15021), 1) as stream:
            stream.sendall(b"GET /healthz/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return stream.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def ready_inside(name):
    probe = [*inside(name), "curl", "-sf", "-m", "1", "http://127.0.0.1:15021/healthz/ready"]
    return subprocess.run(probe, capture_output=True).returncode == 0


def chain(proxy, directory, kind="http1", port=8080, only_second=False, uid=None):
    """client -> proxy A -> mTLS -> proxy B -> server on `port`, A and the client in one pod, B and the server in another.

    Both proxies have one processor together. `only_second`: B alone, for clients that speak mTLS themselves.
    """
    pods()
    run = Running(directory, proxy)
    run.prefix = inside("a")
    if kind == "tcp":
        run.servers.append(run.spawn([*WITH_US, "taskset", "-c", LOAD_CPU, f"{BIN}/weft-load", "bytes-server",
                                      "--source", "0.0.0.0:9301", "--sink", "0.0.0.0:9302"], inside("b")))
    else:
        run.servers.append(run.spawn([*WITH_US, "taskset", "-c", LOAD_CPU, *peers.server(directory, [port], "0.0.0.0")], inside("b")))
    if proxy == "direct":
        run.to = f"{B}:{port}"
    elif proxy == "weft":
        run.control = weft.ControlPlane(directory, f"{CENTER}:15012")
        run.control.policy("order.yaml", weft.rule("order", http2=kind == "http2"))
        protocol = "tcp" if kind == "tcp" else "http"
        server = weft.sidecar(run.control, "order", directory, "--service", "order", "--port", str(port), "--protocol", protocol, uid=uid)
        run.pids.append(run.spawn(server, inside("b")))
        run.until(lambda: ready_inside("b"), "not ready")
        run.redirect(inside("b"), uid)
        run.to, run.headers = f"{B}:{port}", {"Host": "order"}
        if not only_second:
            client = weft.sidecar(run.control, "front", directory, uid=uid)
            run.pids.append(run.spawn(client, inside("a")))
            run.until(lambda: ready_inside("a"), "not ready")
            run.redirect(inside("a"), uid)
            run.to = f"{run.control.virtual_ip('order')}:80"
    else:
        certificates(directory)
        second = "tcp" if kind == "tcp" else "http1"
        run.pids.append(run.peer("second", f"{B}:10012", [f"127.0.0.1:{port}"], second, tls_in=directory, prefix=inside("b"), uid=uid))
        run.to = f"{B}:10012"
        if not only_second:
            run.pids.append(run.peer("first", f"{A}:10011", [f"{B}:10012"], kind, tls_out=directory, prefix=inside("a"), uid=uid))
            run.to = f"{A}:10011"
    if only_second or kind == "tcp":
        run.until(lambda: accepts_inside(run), "does not accept")
    else:
        run.until(run.answers, "does not answer")
    return run


def accepts_inside(run):
    probe = ["python3", "-c", "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)", *run.to.split(":")]
    return subprocess.run([*run.prefix, *probe], capture_output=True).returncode == 0
