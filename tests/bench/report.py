"""Medians, ratios, verdicts by the bar, and the report's rows."""
import statistics

# Figure -> its label.
FIGURES = {
    "cpu_us_per_request": "{:.1f} us CPU/request", "cpu_s_per_gb": "{:.3f} s CPU/GB", "rps": "{:,.0f}/s", "gb_per_s": "{:.2f} GB/s",
    "p50_us": "p50 {:.0f} us", "p99_us": "p99 {:.0f} us", "p50_added_us": "p50 added {:.0f} us", "p99_added_us": "p99 added {:.0f} us",
    "rss_mb": "{:.1f} MB", "rss_held_mb": "held {:.1f} MB", "rss_after_mb": "after {:.1f} MB", "kb_per_connection": "{:.1f} KB a connection",
    "ready_ms": "ready {:.0f} ms", "last_acknowledged_ms": "last acknowledged {:.0f} ms", "connect_all_s": "all connected {:.1f} s",
    "registrations_per_s": "{:,.0f} registrations/s", "bytes_at_start": "{:,.0f} bytes a sidecar at start",
    "bytes_per_change": "{:,.0f} bytes a change", "cpu_at_start_s": "{:.1f} s CPU at start", "cpu_ms_per_change": "{:.0f} ms CPU a change",
    "resumed": "resumed {:.2f}",
}

# Scenario -> figure -> most that Weft's may be, as a share of a peer's; "" means: as such.
HOP = {"envoy": 0.55, "haproxy": 1.10}
BARS = {
    "S1 HTTP/1.1 one hop": {"cpu_us_per_request": HOP},
    "S2 chain, HTTP/1.1 inside": {"cpu_us_per_request": {"envoy": 0.42, "haproxy": 1.0}},
    "S2 chain, HTTP/2 inside": {"cpu_us_per_request": {"envoy": 0.50, "haproxy": 1.05}},
    "S3 HTTP/2 to HTTP/2": {"cpu_us_per_request": {"envoy": 0.75, "haproxy": 1.0}},
    "S3 unary gRPC": {"cpu_us_per_request": {"envoy": 0.75, "haproxy": 1.0}},
    "S4 plain": {"cpu_s_per_gb": {"envoy": 0.50, "haproxy": 0.5}},
    "S4 mTLS": {"cpu_s_per_gb": {"envoy": 0.90, "haproxy": 0.5}},
    "S5 new connections, plain": {"cpu_us_per_request": {"envoy": 0.60, "haproxy": 1.05}},
    "S5 new connections, mTLS": {"cpu_us_per_request": {"envoy": 0.70, "haproxy": 0.30}},
    "S6 memory": {"rss_mb": {"envoy": 0.25}, "kb_per_connection": {"envoy": 0.6}},
    "S8": {"p50_added_us": {"envoy": 0.8, "haproxy": 1.05}, "p99_added_us": {"envoy": 0.8, "haproxy": 1.05}},
    "S9 control plane, 1,000": {"last_acknowledged_ms": {"": 150}},
    "S9 control plane, 10,000": {"last_acknowledged_max_ms": {"": 1500}, "connect_all_s": {"": 20}, "rss_mb": {"": 700}},
    "S9": {"last_acknowledged_ms": {"": 500}},
}


RING, ROUND_ROBIN = "S7 ring over 100", "S7 round robin over 100"
# Most that the ring may add to a request, in microseconds.
RING_BAR = 1.0


def bars(name):
    for prefix, found in BARS.items():
        if name.startswith(prefix):
            return found
    return {}


def rows(name, results):
    """A row for each proxy: its medians, and under "spread" the least and the most."""
    made = []
    for proxy, runs in results.items():
        row = {"scenario": name, "proxy": proxy, "runs": len(runs), "errors": sum(run["errors"] for run in runs), "spread": {}}
        for figure in FIGURES:
            values = [run[figure] for run in runs if figure in run]
            if values:
                row[figure] = round(statistics.median(values), 4)
                row["spread"][figure] = [round(min(values), 4), round(max(values), 4)]
        made.append(row)
    direct = next((row for row in made if row["proxy"] == "direct"), None)
    for row in made:
        for figure in ("p50", "p99") if direct and row is not direct else ():
            base = direct[f"{figure}_us"]
            row[f"{figure}_added_us"] = round(row[f"{figure}_us"] - base, 1)
            row["spread"][f"{figure}_added_us"] = [round(end - base, 1) for end in row["spread"][f"{figure}_us"]]
    return made


def text(row):
    parts = []
    for figure, shape in FIGURES.items():
        if figure in row:
            least, most = row["spread"][figure]
            number = shape[shape.index("{"):shape.index("}") + 1]
            parts.append(f"{shape.format(row[figure])} ({number.format(least)}-{number.format(most)})")
    return f"  {row['proxy']:15} {'; '.join(parts)}; errors {row['errors']}"


def ring_added(made):
    """The latency that the ring adds to Weft's requests; `None`: one of the two was not measured."""
    found = {row["scenario"]: row["cpu_us_per_request"] for row in made if row["proxy"] == "weft" and row["scenario"] in (RING, ROUND_ROBIN)}
    return found[RING] - found[ROUND_ROBIN] if len(found) == 2 else None


def table(made):
    """The report as a table for people: medians, and Weft's share of each peer's."""
    lines = ["| scenario | figure | Weft | Envoy | HAProxy | of Envoy's | of HAProxy's |", "|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["scenario"] for row in made):
        found = {row["proxy"]: row for row in made if row["scenario"] == name}
        for figure in bars(name) or ("cpu_us_per_request",):
            if "weft" not in found or figure not in found["weft"]:
                continue
            unit = FIGURES[figure].split("}", 1)[1].strip() or figure.split("_")[0]
            number = FIGURES[figure][FIGURES[figure].index("{"):FIGURES[figure].index("}") + 1]
            cells = [number.format(found[one][figure]) if one in found else "" for one in ("weft", "envoy", "haproxy")]
            shares = [f"{found['weft'][figure] / found[one][figure]:.2f}" if one in found else "" for one in ("envoy", "haproxy")]
            label = figure.split("_us")[0].replace("_", " ") + " us" if "added" in figure else unit
            lines.append("| " + " | ".join([name, label, *cells, *shares]) + " |")
    return "\n".join(lines) + "\n"


def verdicts(name, made):
    """Weft's figures beside each peer's: the ratio, its significance, and the verdict by the bar."""
    added = ring_added(made)
    if name == RING and added is not None:
        return [{"text": f"the ring adds {added:.1f} us, bar {RING_BAR}: {'met' if added <= RING_BAR else 'MISSED'}"}]
    made = [row for row in made if row["scenario"] == name]
    weft = next((row for row in made if row["proxy"] == "weft"), None)
    found = []
    for figure, bar in bars(name).items():
        for row in made if weft and "" not in bar else ():
            if row is weft or figure not in row or row["proxy"] == "direct" or not row[figure]:
                continue
            ratio = weft[figure] / row[figure]
            (least, most), (theirs_least, theirs_most) = weft["spread"][figure], row["spread"][figure]
            noise = "" if most < theirs_least or least > theirs_most else ", within noise"
            said = ""
            if row["proxy"] in bar:
                said = f", bar {bar[row['proxy']]:.2f}: {'met' if ratio <= bar[row['proxy']] else 'MISSED'}"
            found.append({"figure": figure, "proxy": row["proxy"], "ratio": round(ratio, 3), "text": f"{figure}: weft/{row['proxy']} {ratio:.2f}{said}{noise}"})
        if weft and "" in bar:
            met = "met" if weft[figure] <= bar[""] else "MISSED"
            found.append({"figure": figure, "proxy": "", "ratio": weft[figure], "text": f"{figure}: {weft[figure]:.0f}, bar {bar['']}: {met}"})
    return found
