//! How soon callers hear of a registration, and of an instance that says it is ill.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use weft_tests::{Mesh, Pod, Process, tests_dir, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    vec![("registrations_and_health_reach_callers_soon", soon)]
}

/// Seconds of the clock that `watcher.py` has too.
fn now() -> f64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// A client that asks for `seconds`; it has begun.
fn watch(pod: &Pod, vip: &str, seconds: u32) -> Result<Process> {
    let script = tests_dir().join("apps/watcher.py").to_string_lossy().into_owned();
    let (url, seconds) = (format!("http://{vip}/"), seconds.to_string());
    let process = pod.spawn(&format!("watcher-{seconds}"), "python3", &[&script, &url, "order-service", &seconds])?;
    wait_for("the client", Duration::from_secs(10), || {
        ensure!(process.output().contains("ready"), "{}", process.output());
        Ok(())
    })?;
    Ok(process)
}

/// What it has seen: when, status, by whom.
fn seen(mut process: Process) -> Result<Vec<(f64, u64, String)>> {
    process.wait(Duration::from_secs(60))?;
    let output = process.output();
    let all: Vec<Value> = serde_json::from_str(output.lines().last().context("nothing")?)?;
    let one = |v: &Value| Some((v[0].as_f64()?, v[1].as_u64()?, v[2].as_str()?.to_owned()));
    all.iter().map(|v| one(v).context("a line that makes no sense")).collect()
}

fn soon() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    // Known by name and address, and of no use yet.
    let first = mesh.pod("order0")?;
    let _sidecar = mesh.sidecar(&first, "order-service", &[])?;
    let register = |pod: &Pod, body: &str| {
        pod.curl(&["-f", "-X", "PUT", "-d", body, "http://127.0.0.1:8500/v1/agent/service/register"])
    };
    register(&first, r#"{"Name":"order-service","ID":"ill","Port":8080,"Check":{"TTL":"10m"}}"#)?;
    let pods = ["order1", "order2"].map(|name| -> Result<_> {
        let pod = mesh.pod(name)?;
        let app = pod.serve(8080, name)?;
        let sidecar = mesh.sidecar(&pod, "order-service", &[])?;
        mesh.redirect(&pod)?;
        Ok((pod, app, sidecar))
    });
    let [one, two] = pods;
    let (one, two) = (one?, two?);
    let (front, _front) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;

    let client = watch(&front, &vip, 4)?;
    let checked = r#"{"Name":"order-service","ID":"o","Port":8080,"Check":{"HTTP":"http://localhost:8080/health","Interval":"1s","Status":"passing"}}"#;
    let registered = now();
    register(&one.0, checked)?;
    let acknowledged = now();
    let answered = seen(client)?.into_iter().find(|(at, status, _)| *at > registered && *status == 200);
    let (at, ..) = answered.context("it was never called")?;
    println!(
        "registered in {:.0} ms, first request {:.0} ms after it was asked for",
        (acknowledged - registered) * 1e3,
        (at - registered) * 1e3
    );
    ensure!(at - registered < 1.5, "{} s", at - registered);

    register(&two.0, checked)?;
    mesh.wait_healthy(&two.0.ip)?;
    let client = watch(&front, &vip, 7)?;
    std::thread::sleep(Duration::from_secs(1));
    let ill = now();
    one.0.curl(&["-X", "POST", "http://127.0.0.1:8080/sick"])?;
    let all = seen(client)?;
    ensure!(all.iter().any(|(at, _, by)| *at < ill && by == "order1"), "it was called before");
    ensure!(all.iter().all(|(_, status, _)| *status == 200), "a request failed");
    let last = all.iter().filter(|(_, _, by)| by == "order1").map(|(at, ..)| *at).fold(0.0, f64::max);
    println!("last request {:.0} ms after /health began to answer 503, checked every second", (last - ill) * 1e3);
    ensure!(last - ill < 3.0 * 1.5, "{} s", last - ill);
    Ok(())
}
