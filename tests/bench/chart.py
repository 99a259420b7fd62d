"""The README's chart: Weft's CPU, memory and latency beside each peer's, as a share of Envoy's. One bar a proxy."""
import html

COLOURS = {"weft": "#c2410c", "envoy": "#9ca3af", "haproxy": "#64748b", "nginx": "#cbd5e1"}
WHAT = {"cpu_us_per_request": "CPU a request", "cpu_s_per_gb": "CPU a GB", "rss_mb": "memory", "p99_added_us": "p99 added",
        "p50_added_us": "p50 added", "kb_per_connection": "memory a connection"}
WIDTH, LEFT, BAR, GAP = 860, 300, 11, 14


def chart(rows, primary, footer):
    """`primary`: scenario -> figure. Only scenarios with figures of Envoy."""
    groups = []
    for scenario, figure in primary.items():
        found = {row["proxy"]: row[figure] for row in rows if row["scenario"] == scenario and figure in row}
        if found.get("envoy") and found.get("weft"):
            groups.append((scenario, figure, [(proxy, found[proxy]) for proxy in COLOURS if proxy in found]))
    height = sum(len(bars) * BAR + GAP for *_, bars in groups) + 70
    scale = (WIDTH - LEFT - 90) / 1.3
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="11">',
           f'<rect width="{WIDTH}" height="{height}" fill="white"/>']
    x = LEFT
    for proxy, colour in COLOURS.items():
        out.append(f'<rect x="{x}" y="12" width="10" height="10" fill="{colour}"/><text x="{x + 14}" y="21">{proxy}</text>')
        x += 80
    out.append(f'<text x="{x}" y="21" fill="#6b7280">Envoy = 1, less is better</text>')
    y = 36
    for scenario, figure, bars in groups:
        middle = y + len(bars) * BAR / 2 + 4
        label = html.escape(f"{scenario}: {WHAT.get(figure, figure)}")
        out.append(f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end">{label}</text>')
        envoy = dict(bars)["envoy"]
        for proxy, value in bars:
            share = max(0.0, value / envoy)
            width = min(share, 1.3) * scale
            out.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS[proxy]}"/>')
            more = " →" if share > 1.3 else ""
            out.append(f'<text x="{LEFT + width + 4:.1f}" y="{y + BAR - 3}" font-size="9">{share:.2f}{more}</text>')
            y += BAR
        y += GAP
    out.append(f'<line x1="{LEFT + scale:.1f}" y1="30" x2="{LEFT + scale:.1f}" y2="{y - GAP}" stroke="#9ca3af" stroke-dasharray="2 3"/>')
    out.append(f'<text x="8" y="{height - 10}" fill="#6b7280" font-size="10">{html.escape(footer)}</text></svg>')
    return "\n".join(out) + "\n"
