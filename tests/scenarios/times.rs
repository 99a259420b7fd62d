//! Delays until callers see a registration and a reported failure, and until the end of an instance
//! that vanished.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use weft_tests::{Mesh, Pod, Process, tests_dir, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![registrations_and_health_reach_callers_soon,]
}

/// Scenarios that mostly wait; they run beside the others.
pub(crate) fn waiting() -> Vec<Scenario> {
    scenarios![long_timers_in_real_time,]
}

/// Seconds of the clock that `watcher.py` has too.
fn now() -> f64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Starts a client that sends requests for `seconds`.
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

/// Its results: time, status and server of each response.
fn seen(mut process: Process) -> Result<Vec<(f64, u64, String)>> {
    process.wait(Duration::from_secs(60))?;
    let output = process.output();
    let all: Vec<Value> = serde_json::from_str(output.lines().last().context("nothing")?)?;
    let one = |v: &Value| Some((v[0].as_f64()?, v[1].as_u64()?, v[2].as_str()?.to_owned()));
    all.iter().map(|v| one(v).context("a line that makes no sense")).collect()
}

fn registrations_and_health_reach_callers_soon() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    // It has a name and an address, and no healthy instance yet.
    let first = mesh.pod("order0")?;
    let _sidecar = mesh.sidecar(&first, "order-service", &[])?;
    let register = |pod: &Pod, body: &str| {
        pod.curl(&["-f", "-X", "PUT", "-d", body, "http://127.0.0.1:8500/v1/agent/service/register"])
    };
    register(&first, r#"{"Name":"order-service","ID":"ill","Port":8080,"Check":{"TTL":"10m"}}"#)?;
    let pods = ["order1", "order2"].map(|name| -> Result<_> {
        let pod = mesh.pod(name)?;
        let app = pod.serve(8080, name)?;
        let sidecar = mesh.sidecar_with_redirection(&pod, "order-service", &[])?;
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
        "registered in {:.0} ms, first request {:.0} ms after its start",
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

/// Eureka's API of the pod's sidecar: the status and the answer.
fn eureka(pod: &Pod, method: &str, path: &str, body: &Value) -> Result<(String, Value)> {
    let url = format!("http://127.0.0.1:8761/eureka/{path}");
    let (kind, json, body) = ("content-type: application/json", "accept: application/json", body.to_string());
    let mut args = vec!["-X", method, "-H", kind, "-H", json, "-w", "\n%{http_code}", &url];
    if method == "POST" {
        args.extend(["-d", &body]);
    }
    let text = pod.curl(&args)?;
    let (body, status) = text.rsplit_once('\n').context("no status")?;
    Ok((status.to_owned(), serde_json::from_str(body).unwrap_or_default()))
}

/// The state in the mesh of an instance of Eureka's API.
fn eureka_status(pod: &Pod, id: &str) -> Result<String> {
    let (status, found) = eureka(pod, "GET", &format!("apps/WEB/{id}"), &Value::Null)?;
    let shown = found["instance"]["status"].as_str().unwrap_or("?");
    Ok(if status == "404" { "gone" } else { shown }.to_owned())
}

/// The state in the mesh of an instance of Consul's API.
fn consul_status(pod: &Pod, id: &str) -> Result<String> {
    let checks = pod.curl(&["-f", "http://127.0.0.1:8500/v1/health/checks/order-service"])?;
    let checks: Value = serde_json::from_str(&checks)?;
    let of_id = checks.as_array().context("no list")?.iter().find(|check| check["ServiceID"] == id);
    Ok(of_id.map_or("gone", |check| check["Status"].as_str().unwrap_or("?")).to_owned())
}

/// The timers that other tests have with a paused clock: Consul's minute until a critical service is deregistered,
/// Eureka's 90 s of a lease.
fn long_timers_in_real_time() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let (order, web) = (mesh.pod("order1")?, mesh.pod("web1")?);
    let _apps = [order.serve(8080, "ill")?, order.serve(8081, "well")?];
    let _sidecars = [mesh.sidecar(&order, "order-service", &[])?, mesh.sidecar(&web, "web", &[])?];
    for (id, port) in [("ill", 8080), ("well", 8081)] {
        let body = json!({ "Name": "order-service", "ID": id, "Port": port, "Check": {
            "HTTP": format!("http://localhost:{port}/health"), "Interval": "1s", "Status": "passing",
            "DeregisterCriticalServiceAfter": "1m",
        }});
        let url = "http://127.0.0.1:8500/v1/agent/service/register";
        order.curl(&["-f", "-X", "PUT", "-d", &body.to_string(), url])?;
    }
    // An instance with the default lease; one with a shorter lease, which ends three times that after its last heartbeat; and one
    // that sends heartbeats.
    for (id, port, lease) in [("usual", 8080, None), ("short", 8081, Some(30)), ("alive", 8082, None)] {
        let mut instance = json!({
            "instanceId": id, "hostName": "web1", "app": "WEB", "ipAddr": web.ip, "status": "UP", "vipAddress": "web",
            "port": { "$": port, "@enabled": "true" },
            "dataCenterInfo": { "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn" },
        });
        if let Some(seconds) = lease {
            instance["leaseInfo"] = json!({ "durationInSecs": seconds, "renewalIntervalInSecs": 10 });
        }
        let (status, _) = eureka(&web, "POST", "apps/WEB", &json!({ "instance": instance }))?;
        ensure!(status == "204", "{id}: {status}");
    }
    let beat = |id: &str| -> Result<()> {
        let (status, _) = eureka(&web, "PUT", &format!("apps/WEB/{id}"), &Value::Null)?;
        ensure!(status == "200", "a heartbeat of {id}: {status}");
        Ok(())
    };
    for id in ["usual", "short"] {
        beat(id)?;
    }
    order.curl(&["-X", "POST", "http://127.0.0.1:8080/sick"])?;

    // Each state of each, and when it was first seen.
    let (begin, mut seen) = (Instant::now(), BTreeMap::new());
    let last = ["ill gone", "short gone", "usual DOWN"];
    let all = |seen: &BTreeMap<String, f64>| last.iter().all(|state| seen.contains_key(*state));
    while !all(&seen) && begin.elapsed() < Duration::from_secs(115) {
        beat("alive")?;
        let consul = ["ill", "well"].map(|id| Ok((id, consul_status(&order, id)?)));
        let eureka = ["usual", "short", "alive"].map(|id| Ok((id, eureka_status(&web, id)?)));
        for state in consul.into_iter().chain(eureka) {
            let (id, status) = state.map_err(|e: anyhow::Error| e)?;
            seen.entry(format!("{id} {status}")).or_insert_with(|| begin.elapsed().as_secs_f64());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    println!("seconds until each state was seen: {seen:.0?}");
    for (state, from, to) in [
        ("ill critical", 0.0, 5.0),
        ("ill gone", 60.0, 100.0),
        ("short DOWN", 29.0, 35.0),
        // The agent checks every 15 s.
        ("short gone", 89.0, 110.0),
        ("usual DOWN", 89.0, 97.0),
    ] {
        let at = seen.get(state).with_context(|| format!("never {state:?}: {seen:?}"))?;
        ensure!((from..to).contains(at), "{state:?} after {at:.1} s: {seen:?}");
    }
    let expected = ["alive UP", "ill critical", "ill gone", "ill passing", "short DOWN", "short UP", "short gone"];
    let expected: Vec<&str> = expected.into_iter().chain(["usual DOWN", "usual UP", "well passing"]).collect();
    ensure!(seen.keys().eq(expected), "{seen:?}");
    Ok(())
}
