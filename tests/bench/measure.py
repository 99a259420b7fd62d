"""Figures: CPU and memory of processes from /proc, requests and latencies from the load generators."""
import os
import re
import subprocess
import time

TICK = os.sysconf("SC_CLK_TCK")
PROXY_CPU, LOAD_CPU = "0", "1"


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


def wrk(url, seconds, connections, headers, prefix=()):
    """One run of wrk: requests, requests a second, latencies in microseconds, and what went wrong."""
    command = [*prefix, "taskset", "-c", LOAD_CPU, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    out = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    total = re.search(r"(\d+) requests in ([\d.]+)(m?s)", out)
    requests = int(total.group(1))
    percentile = {p: milliseconds(t) * 1000 for p, t in re.findall(r"^\s+(\d+)%\s+(\S+)$", out, re.M)}
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    errors = int(other.group(1)) if other else 0
    errors += sum(int(group) for group in sockets.groups()) if sockets else 0
    rps = float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1))
    return {"requests": requests, "rps": rps, "p50_us": percentile["50"], "p99_us": percentile["99"], "errors": errors}


def h2load(url, seconds, connections, streams, headers):
    """One run of h2load. Its latencies are means, which say little: left out."""
    command = ["taskset", "-c", LOAD_CPU, "h2load", "-t1", f"-c{connections}", f"-m{streams}", f"-D{seconds}"]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    out = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    done = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", out)
    rps = float(re.search(r"finished in [\d.]+m?s, ([\d.]+) req/s", out).group(1))
    codes = re.search(r"status codes: (\d+) 2xx", out)
    requests = int(done.group(1))
    errors = sum(int(done.group(i)) for i in (3, 4, 5)) + max(0, int(done.group(2)) - int(codes.group(1)))
    return {"requests": requests, "rps": rps, "errors": errors}


def window(pids, load):
    """Runs `load`; its figures with what the processes used meanwhile, and what everything else on the machine did."""
    pids = [one for pid in pids for one in descendants(pid)]
    cpu, busy, start = cpu_seconds(pids), busy_seconds(), time.monotonic()
    figures = load()
    cpu, busy, took = cpu_seconds(pids) - cpu, busy_seconds() - busy, time.monotonic() - start
    figures["cpu_us_per_request"] = cpu * 1e6 / max(figures["requests"], 1)
    figures["rss_mb"] = resident_mb(pids)
    figures["proxy_cpu"] = cpu / took
    figures["machine_cpu"] = busy / took
    return figures
