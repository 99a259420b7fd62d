//! Clients that misbehave, through accident or malice: memory stays bounded, and other clients do not wait.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_tests::{Pair, Pod, statuses, tests_dir, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        slow_clients_delay_no_others,
        clients_that_read_nothing_cost_bounded_memory,
        ten_megabytes_of_headers_are_refused,
        half_closed_connections_end,
        thousands_of_new_names_delay_no_requests,
    ]
}

/// Resident memory of both sidecars, in MB: the client's and the instance's.
fn resident(pair: &Pair) -> Result<(u64, u64)> {
    Ok((pair.sidecar.resident_kb()? / 1024, pair.order.sidecar.resident_kb()? / 1024))
}

/// Runs a client that misbehaves once. Returns its output.
fn rude(pod: &Pod, behaviour: &str, vip: &str, argument: &str) -> Result<String> {
    let script = tests_dir().join("apps/rude.py");
    Ok(pod.run("python3", &[&script.to_string_lossy(), behaviour, vip, "80", argument])?.trim().to_owned())
}

/// Other clients are served meanwhile, without delay.
fn others(front: &Pod, vip: &str) -> Result<()> {
    let results = front.requests(&json!({
        "url": format!("http://{vip}/"), "count": 200, "concurrency": 2, "headers": {"Host": "order-service"},
    }))?;
    ensure!(statuses(&results) == HashMap::from([(200, 200)]), "{:?}", statuses(&results));
    let slowest = results.iter().filter_map(|r| r["ms"].as_f64()).fold(0.0, f64::max);
    ensure!(slowest < 1500.0, "a client waited {slowest} ms");
    Ok(())
}

fn slow_clients_delay_no_others() -> Result<()> {
    let pair = Pair::start()?;
    let Pair { front, vip, .. } = &pair;
    others(front, vip)?;
    let before = resident(&pair)?;
    let _slow = front.client("rude.py", &["slow", vip, "80", "500"])?;
    others(front, vip)?;
    let after = resident(&pair)?;
    ensure!(after.0 < before.0 + 30 && after.1 < before.1 + 10, "memory went from {before:?} to {after:?} MB");
    Ok(())
}

fn clients_that_read_nothing_cost_bounded_memory() -> Result<()> {
    let pair = Pair::start()?;
    let Pair { front, vip, .. } = &pair;
    others(front, vip)?;
    let before = resident(&pair)?;
    let unread = front.client("rude.py", &["unread", vip, "80", "60"])?;
    wait_active(front, "weft_outbound_active", |active| active >= 60.0)?;
    // The request was for 6 GB; the application has sent as much as buffers hold.
    std::thread::sleep(Duration::from_secs(2));
    others(front, vip)?;
    let after = resident(&pair)?;
    // Less than a megabyte a hop: read and write buffers, and TLS records between.
    ensure!(after.0 < before.0 + 60 && after.1 < before.1 + 60, "memory went from {before:?} to {after:?} MB");
    drop(unread);
    wait_active(front, "weft_outbound_active", |active| active == 0.0)
}

fn ten_megabytes_of_headers_are_refused() -> Result<()> {
    let pair = Pair::start()?;
    let Pair { front, vip, .. } = &pair;
    others(front, vip)?;
    let before = resident(&pair)?.0;
    for _ in 0..5 {
        let output = rude(front, "headers", vip, "10")?;
        ensure!(output.starts_with("HTTP/1.1 431") || output.starts_with("error"), "{output}");
    }
    let after = resident(&pair)?.0;
    ensure!(after < before + 20, "memory went from {before} to {after} MB");
    others(front, vip)?;
    // From a peer without a sidecar too.
    let outside = pair.mesh.pod("outside")?;
    let script = tests_dir().join("apps/rude.py");
    let output = outside.run("python3", &[&script.to_string_lossy(), "headers", &pair.order.pod.ip, "8080", "10"])?;
    ensure!(output.starts_with("HTTP/1.1 431") || output.starts_with("error"), "{output}");
    others(front, vip)
}

fn half_closed_connections_end() -> Result<()> {
    let pair = Pair::start()?;
    let Pair { front, vip, .. } = &pair;
    others(front, vip)?;
    // As in Envoy, a half-close before the response cancels the request.
    let output = rude(front, "half-close", vip, "/sleep/3000")?;
    ensure!(output == "closed", "{output}");
    wait_active(front, "weft_outbound_active", |active| active == 0.0)?;
    wait_active(&pair.order.pod, "weft_inbound_active", |active| active == 0.0)?;
    others(front, vip)
}

fn thousands_of_new_names_delay_no_requests() -> Result<()> {
    let pair = Pair::start()?;
    let Pair { front, vip, .. } = &pair;
    let _cart = pair.mesh.instance("cart1", "cart", 8080, &[])?;
    others(front, vip)?;
    let before = resident(&pair)?.0;
    // 12,000 queries at full speed, more than the sidecar keeps; the client reads no answer.
    let flood = "import socket,struct\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n\
        def q(n):\n n=b''.join(bytes([len(p)])+p for p in n.encode().split(b'.'))+b'\\0'\n \
        s.sendto(struct.pack('>6H',1,256,1,0,0,0)+n+struct.pack('>2H',1,1),('127.0.0.1',15053))\n\
        for i in range(12000): q(f'n{i}.default.svc.cluster.local')\n";
    front.run("python3", &["-c", flood])?;
    // An existing name that this sidecar has not looked up yet.
    wait_for("an answer", Duration::from_secs(3), || {
        let answer = front.curl(&["-f", "--max-time", "2", "http://cart:8080/"])?;
        ensure!(answer.contains("\"cart1\""), "{answer}");
        Ok(())
    })?;
    others(front, vip)?;
    let after = resident(&pair)?.0;
    ensure!(after < before + 40, "memory went from {before} to {after} MB");
    Ok(())
}

/// Waits for a gauge of a pod's sidecar.
fn wait_active(pod: &Pod, gauge: &str, is: impl Fn(f64) -> bool) -> Result<()> {
    wait_for(gauge, Duration::from_secs(10), || {
        let text = pod.curl(&["http://127.0.0.1:15020/metrics"])?;
        let line = text.lines().find(|l| l.starts_with(&format!("{gauge} "))).context("no such metric")?;
        let value: f64 = line.rsplit(' ').next().unwrap_or_default().parse()?;
        ensure!(is(value), "{line}");
        Ok(())
    })
}
