//! Costs of the proxy that can be counted: system calls, buffers, memory. Times belong to the benchmark.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_tests::{Kind, Mesh, Pair, Pod, Process, document, statuses, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        a_request_is_two_reads_and_two_writes,
        idle_connections_hold_no_buffers,
        memory_does_not_grow_with_connections,
        bulk_bytes_are_spliced,
    ]
}

/// System calls of a sidecar's only worker while `load` runs, by name.
fn traced(sidecar: &Process, load: impl FnOnce() -> Result<()>) -> Result<HashMap<String, u64>> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", sidecar.id()))?;
    let workers: Vec<_> = tasks
        .filter_map(|task| Some(task.ok()?.path()))
        .filter(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("worker-")))
        .collect();
    let [worker] = &workers[..] else { anyhow::bail!("not one worker: {workers:?}") };
    let worker = worker.file_name().context("no id")?.to_string_lossy().into_owned();
    let mut strace = std::process::Command::new("strace");
    let counts = tempfile::NamedTempFile::new()?;
    let strace = strace.args(["-c", "-U", "name,calls", "-p", &worker, "-o"]).arg(counts.path()).stderr(Stdio::piped());
    let mut strace = strace.spawn().context("starting strace")?;
    let mut output = BufReader::new(strace.stderr.take().context("no output")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    ensure!(line.contains("attached"), "strace: {line}");
    let result = load();
    let interrupted = weft_tests::run("kill", &["-INT", &strace.id().to_string()]);
    strace.wait()?;
    result?;
    interrupted?;
    let text = std::fs::read_to_string(counts.path())?;
    let calls = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    });
    Ok(calls.collect())
}

fn sum(calls: &HashMap<String, u64>, names: &[&str]) -> u64 {
    names.iter().filter_map(|name| calls.get(*name)).sum()
}

const READS: [&str; 4] = ["read", "readv", "recvfrom", "recvmsg"];
const WRITES: [&str; 4] = ["write", "writev", "sendto", "sendmsg"];

fn a_request_is_two_reads_and_two_writes() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order-service", 8080, &["--workers", "1"])?;
    let (front, sidecar) = mesh.client_with("frontend", &["--workers", "1"])?;
    let vip = mesh.vip("order-service")?;
    let count = 500;
    // Sequential requests on one connection, with mTLS between the sidecars: both have the same counts.
    let plan = json!({"url": format!("http://{vip}/"), "count": count, "headers": {"Host": "order-service"}});
    let load = || {
        let results = front.requests(&plan)?;
        ensure!(statuses(&results) == HashMap::from([(200, count)]), "{:?}", statuses(&results));
        Ok(())
    };
    load()?;
    for (side, process) in [("outbound", &sidecar), ("inbound", &order.sidecar)] {
        let calls = traced(process, load)?;
        let (reads, writes) = (sum(&calls, &READS), sum(&calls, &WRITES));
        let count = count as u64;
        // The connection's start and end, and wake-ups of other threads, add a few.
        for (kind, n) in [("reads", reads), ("writes", writes)] {
            let allowed = 2 * count..=2 * count + count / 20;
            ensure!(allowed.contains(&n), "{side}: {n} {kind} for {count} requests: {calls:?}");
        }
    }
    Ok(())
}

fn many(front: &Pod, mode: &str, vip: &str, count: u32) -> Result<Process> {
    front.client("many.py", &[mode, vip, "80", &count.to_string()])
}

fn idle_connections_hold_no_buffers() -> Result<()> {
    let Pair { front, vip, sidecar, order: _order, mesh: _mesh } = Pair::start()?;
    drop(many(&front, "hold", &vip, 50)?);
    let before = sidecar.resident_kb()?;
    let count = 2000;
    let _held = many(&front, "hold", &vip, count)?;
    wait_for("buffers to be given back", Duration::from_secs(10), || {
        let each = (sidecar.resident_kb()?.saturating_sub(before)) as f64 / f64::from(count);
        // The benchmark shows half of this for a release build. One read buffer alone would be 8 KB or more.
        ensure!(each < 6.0, "{each:.1} KB for each idle connection");
        Ok(())
    })
}

fn memory_does_not_grow_with_connections() -> Result<()> {
    let Pair { front, vip, sidecar, order: _order, mesh: _mesh } = Pair::start()?;
    drop(many(&front, "churn", &vip, 20_000)?);
    let before = sidecar.resident_kb()?;
    drop(many(&front, "churn", &vip, 80_000)?);
    let after = sidecar.resident_kb()?;
    // 80,000 times 32 bytes would show.
    ensure!(after < before + 2500, "memory went from {before} to {after} KB over 80,000 connections");
    Ok(())
}

/// Bytes between bare sockets do not pass through the proxy's memory.
fn bulk_bytes_are_spliced() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let server = mesh.pod("server")?;
    let _source = server.serve(8080, "source")?;
    let (front, sidecar) = mesh.client_with("frontend", &["--workers", "1"])?;
    let entry = json!({
        "hosts": ["source.test"],
        "addresses": ["240.241.0.1"],
        "ports": [{"number": 80, "name": "tcp", "protocol": "TCP"}],
        "resolution": "STATIC",
        "endpoints": [{"address": server.ip, "ports": {"tcp": 8080}}],
    });
    mesh.policy("source.yaml", &document(Kind::ServiceEntry, "source", entry))?;
    let url = "http://240.241.0.1/bytes/300000000";
    wait_for("the entry", Duration::from_secs(10), || front.curl(&["-f", "-m", "2", "http://240.241.0.1/"]))?;
    let calls = traced(&sidecar, || {
        let got = front.curl(&["-f", "-m", "60", "-o", "/dev/null", "-w", "%{size_download}", url])?;
        ensure!(got == "300000000", "{got}");
        Ok(())
    })?;
    let (splices, reads) = (sum(&calls, &["splice"]), sum(&calls, &READS));
    // A copy would read 64 KiB at most: 4,500 times.
    ensure!(splices > 500 && reads < splices / 10, "{calls:?}");
    Ok(())
}
