"""The benchmark: Weft beside its peers, each scenario by each proxy in turn, several times, medians at the end.

One worker each. The proxy has processor 0 for itself, load generators and servers have processor 1. CPU time is that of the
proxy's processes, user and system. Only ratios within one run are meaningful, because machines differ and their load varies.

usage: bench.py [--quick] [--rounds N] [--seconds N] [--only S1,S7 | --only "part of a name"]
"""
import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time

import peers
from chart import chart
from measure import BIN, LOAD_CPU, ROOT, STEADY, WITH_US, busy_seconds
from report import bars, rows, table, text, verdicts
from scenarios import Scenarios

OUT = os.path.join(ROOT, "target/bench")
ALL = ["weft", "envoy", "haproxy", "nginx"]
MESH = ["weft", "envoy", "haproxy"]
BYTES = ["weft", "envoy", "haproxy", "haproxy-splice"]


def scenarios(quick, servers, seconds):
    """Name -> (function, proxies). The quick ones are fewer and shorter."""
    make = Scenarios(servers, seconds)
    brief = Scenarios(servers, max(1, seconds // 2))
    found = {
        "S1 HTTP/1.1 one hop": (make.one_hop(), ALL),
        "S1 redirected": (make.one_hop(redirected=True), ["weft"]),
        "S2 chain, HTTP/1.1 inside": (make.chain("http1"), MESH),
        "S2 chain, HTTP/2 inside": (make.chain("http2"), MESH),
        "S3 HTTP/2 to HTTP/2": (make.http2(), MESH),
        "S3 unary gRPC": (make.http2(grpc=True), MESH),
        "S4 plain, download, 2 connections": (brief.byte_streams(False, 2, False), BYTES),
        "S4 plain, upload, 2 connections": (brief.byte_streams(True, 2, False), BYTES),
        "S4 plain, download, 1,000 connections": (brief.byte_streams(False, 1000, False), BYTES),
        "S4 plain, upload, 1,000 connections": (brief.byte_streams(True, 1000, False), BYTES),
        "S4 mTLS chain, download, 2 connections": (brief.byte_streams(False, 2, True), MESH),
        "S4 mTLS chain, upload, 2 connections": (brief.byte_streams(True, 2, True), MESH),
        "S4 mTLS chain, download, 1,000 connections": (brief.byte_streams(False, 1000, True), MESH),
        "S5 new connections, plain": (make.new_connections(), ALL),
        "S5 new connections, mTLS, full": (make.handshakes(False), MESH),
        "S5 new connections, mTLS, resumed": (make.handshakes(True), MESH),
        "S6 memory": (make.memory(1000 if quick else 5000), ALL),
        "S7 round robin over 100": (make.one_hop(100, ring=False), ["weft", "envoy"]),
        "S7 ring over 100": (make.one_hop(100), ["weft", "envoy"]),
        "S8 latency, one hop": (make.latency(False), ["direct", *ALL]),
        "S8 latency, chain": (make.latency(True), ["direct", *MESH]),
    }
    for count in [200] if quick else [1000, 3000, 10_000]:
        found[f"S9 control plane, {count:,} services x streams"] = (make.fleet(count, count), ["weft"])
    if quick:
        left = ("S1", "S2 chain, HTTP/1.1", "S3 HTTP", "S4 plain, download, 2", "S5 new connections, mTLS, full", "S6", "S9")
        found = {name: (how, [one for one in by if one in MESH]) for name, (how, by) in found.items() if name.startswith(left)}
    return found


def network():
    """A private network, without redirection of the machine's traffic."""
    # Private names of `ip netns`.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    # A default route, because traffic by loopback is never redirected.
    way_out = "ip link add out0 type veth peer name out1 && ip addr add 10.222.255.1/16 dev out0 && ip link set out0 up && ip link set out1 up"
    subprocess.run(f"ip link set lo up && {way_out}", shell=True, check=True)
    subprocess.run(STEADY, shell=True, check=True)


def servers(directory):
    """HTTP on a hundred ports, HTTP/2, gRPC, and byte streams."""
    commands = [
        peers.server(directory, range(9000, 9100), http2=[9200]),
        [f"{BIN}/weft-load", "grpc-server", "--listen", "127.0.0.1:9201"],
        [f"{BIN}/weft-load", "bytes-server", "--source", "127.0.0.1:9301", "--sink", "127.0.0.1:9302"],
    ]
    return [subprocess.Popen([*WITH_US, "taskset", "-c", LOAD_CPU, *command]) for command in commands]


def machine():
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} processors ({model}), Linux {platform.release()}, {datetime.date.today()}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("QUICK")))
    parser.add_argument("--only", default=os.environ.get("ONLY", ""))
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ROUNDS", 0)))
    parser.add_argument("--seconds", type=int, default=int(os.environ.get("SECONDS_EACH", 0)))
    parser.add_argument("--inside", action="store_true")
    args = parser.parse_args()
    if not args.inside:
        command = ["unshare", "--net", "--mount", *(["--user", "--map-root-user"] if os.getuid() else []), sys.executable, __file__, "--inside"]
        command += ["--quick"] if args.quick else []
        os.execvp("unshare", [*command, "--rounds", str(args.rounds), "--seconds", str(args.seconds), "--only", args.only])
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    network()
    busy = busy_seconds()
    time.sleep(1)
    print(f"{machine()}; before the first scenario the machine used {busy_seconds() - busy:.2f} processors")
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as directory:
        os.chmod(directory, 0o755)
        made = measure(directory, args)
    os.makedirs(OUT, exist_ok=True)
    with open(os.path.join(OUT, "report.json"), "w") as file:
        json.dump(made, file, indent=1)
    primary = {row["scenario"]: figure for row in made for figure in bars(row["scenario"])}
    with open(os.path.join(OUT, "chart.svg"), "w") as file:
        file.write(chart(made, primary, machine()))
    with open(os.path.join(OUT, "table.md"), "w") as file:
        file.write(f"{machine()}; medians of {max((row['runs'] for row in made), default=0)} runs.\n\n{table(made)}")
    print(f"written: {os.path.relpath(OUT, ROOT)}/report.json, table.md, chart.svg")
    return 1 if any(row["errors"] for row in made) else 0


def measure(directory, args):
    running = servers(directory)
    rounds = args.rounds or (2 if args.quick else 5)
    seconds = args.seconds or (1 if args.quick else 5)
    made = []
    try:
        for name, (run, proxies) in scenarios(args.quick, [one.pid for one in running], seconds).items():
            if args.only not in name and name.split()[0] not in args.only.split(","):
                continue
            results = {proxy: [] for proxy in proxies}
            for number in range(rounds):
                for proxy in proxies:
                    print(f"\r{name}: round {number + 1} of {rounds}, {proxy}        ", end="", flush=True)
                    with tempfile.TemporaryDirectory(dir=directory, ignore_cleanup_errors=True) as place:
                        results[proxy].append(run(proxy, place))
            others = [one["others_cpu"] for runs in results.values() for one in runs if "others_cpu" in one]
            busy = f"; the rest of the machine used up to {max(others):.2f} processors" if others else ""
            print(f"\r{name}: medians of {rounds} (least-most){busy}")
            found = rows(name, results)
            made += found
            print("\n".join(map(text, found)))
            for verdict in verdicts(name, made):
                print(f"    {verdict['text']}")
            sys.stdout.flush()
    finally:
        for process in running:
            process.terminate()
    return made


if __name__ == "__main__":
    sys.exit(main())
