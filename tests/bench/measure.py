"""Figures: CPU and memory of processes from /proc, requests and latencies from the load generators."""
import json
import os
import re
import resource
import subprocess
import time

TICK = os.sysconf("SC_CLK_TCK")
PROXY_CPU, LOAD_CPU = "0", "1"
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
BIN = os.environ.get("WEFT_BIN") or os.path.join(ROOT, "target/dist")
# Some machines have BBR, whose timers would be counted as the proxy's time. A private network namespace can use Reno.
STEADY = "sysctl -q -w net.ipv4.tcp_congestion_control=reno"
# Processes end with this one, whatever its end.
WITH_US = ["setpriv", "--pdeathsig", "KILL"]


def descendants(pid):
    """A process and all below it."""
    found, queue = [], [pid]
    while queue:
        one = queue.pop()
        found.append(one)
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children") as children:
                    queue.extend(int(child) for child in children.read().split())
        except FileNotFoundError:
            pass
    return found


def cpu_seconds(pids):
    """User and system time of processes so far."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        except FileNotFoundError:
            pass
    return total / TICK


def children_seconds():
    """User and system time of ended children: the load generators."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resident_mb(pids):
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/status") as status:
                match = re.search(r"VmRSS:\s+(\d+)", status.read())
                total += int(match.group(1)) if match else 0
        except FileNotFoundError:
            pass
    return total / 1024


def busy_seconds():
    """Time that all processors together were not idle."""
    with open("/proc/stat") as stat:
        fields = [int(field) for field in stat.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICK


def milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def on_load_cpu(command, prefix=(), **more):
    done = subprocess.run([*prefix, "taskset", "-c", LOAD_CPU, *command], capture_output=True, text=True, **more)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def header_args(headers):
    return [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]


def wrk(url, seconds, connections, headers, prefix=(), many_users=False):
    """One run of wrk: requests, requests a second, latencies in microseconds, and errors."""
    script = ["-s", os.path.join(os.path.dirname(__file__), "users.lua")] if many_users else []
    out = on_load_cpu(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *script, *header_args(headers), url], prefix)
    requests = int(re.search(r"(\d+) requests in ([\d.]+)(m?s)", out).group(1))
    percentile = {p: milliseconds(t) * 1000 for p, t in re.findall(r"^\s+(\d+)%\s+(\S+)$", out, re.M)}
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    errors = int(other.group(1)) if other else 0
    errors += sum(int(group) for group in sockets.groups()) if sockets else 0
    rps = float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1))
    return {"requests": requests, "rps": rps, "p50_us": percentile["50"], "p99_us": percentile["99"], "errors": errors}


def h2load(url, seconds, connections, streams, headers, body=None):
    """One run of h2load. Its latencies are means, and left out."""
    data = ["-d", body] if body else []
    out = on_load_cpu(["h2load", "-t1", f"-c{connections}", f"-m{streams}", f"-D{seconds}", *data, *header_args(headers), url])
    done = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", out)
    rps = float(re.search(r"finished in [\d.]+m?s, ([\d.]+) req/s", out).group(1))
    codes = re.search(r"status codes: (\d+) 2xx", out)
    requests = int(done.group(1))
    errors = sum(int(done.group(i)) for i in (3, 4, 5)) + max(0, int(done.group(2)) - int(codes.group(1)))
    return {"requests": requests, "rps": rps, "errors": errors}


def weft_load(*args, prefix=(), ready=None):
    """One run of `weft-load`. `ready`: called once it reports that it is ready, if it does."""
    command = [*prefix, "taskset", "-c", LOAD_CPU, f"{BIN}/weft-load", *map(str, args)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
        lines = []
        for line in load.stdout:
            lines.append(line)
            if line.strip() == "ready" and ready:
                ready()
    if load.returncode:
        raise SystemExit(f"{' '.join(command)}: {''.join(lines)}")
    return json.loads(lines[-1])


def window(pids, servers, load):
    """Runs `load`: its figures, the resources of the processes, and the load of the rest of the machine. The argument of `load` is
    a function that starts the window anew."""
    pids = [one for pid in pids for one in descendants(pid)]
    servers = [one for pid in servers for one in descendants(pid)]
    known = lambda: cpu_seconds(pids + servers) + children_seconds()
    seen = lambda: (cpu_seconds(pids), known(), busy_seconds(), time.monotonic())
    before = [seen()]
    figures = load(lambda: before.append(seen()))
    cpu, ours, busy, took = (now - then for now, then in zip(seen(), before[-1]))
    if "gb" in figures:
        figures["cpu_s_per_gb"] = cpu / max(figures["gb"], 1e-9)
        figures["gb_per_s"] = figures["gb"] / took
    else:
        figures["cpu_us_per_request"] = cpu * 1e6 / max(figures["requests"], 1)
    figures["rss_mb"] = resident_mb(pids)
    figures["proxy_cpu"] = cpu / took
    figures["others_cpu"] = max(0.0, busy - ours) / took
    return figures
