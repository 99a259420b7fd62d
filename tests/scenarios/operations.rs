//! Operations on a sidecar, and accidents, while its application keeps running.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Mesh, Pod, Process, binary, served_by, statuses, tests_dir, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![registrations_survive_a_restart_of_the_sidecar, sockets_kept_by_systemd_outlive_the_sidecar,]
}

/// Limit of a wait.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// Consul's API of the pod's sidecar.
pub(crate) fn put(pod: &Pod, path: &str, body: &Value) -> Result<String> {
    let url = format!("http://127.0.0.1:8500/v1/agent/{path}");
    let body = body.to_string();
    pod.curl(&["-w", "%{http_code}", "-X", "PUT", "--data-binary", &body, &url])
}

fn get(pod: &Pod, path: &str) -> Result<Value> {
    Ok(serde_json::from_str(&pod.curl(&["-f", &format!("http://127.0.0.1:8500/v1/agent/{path}")])?)?)
}

fn ids(pod: &Pod) -> Result<Vec<String>> {
    let services = get(pod, "services")?;
    Ok(services.as_object().context("no object")?.keys().cloned().collect())
}

fn registrations_survive_a_restart_of_the_sidecar() -> Result<()> {
    let mut mesh = Mesh::start(&[])?;
    let pod = mesh.pod("order1")?;
    let _app = pod.serve(8080, "order1")?;
    let data = format!("/run/survive-{}", pod.name);
    let start = |mesh: &Mesh| mesh.sidecar(&pod, "order-service", &["--data-dir", &data]);
    let sidecar = start(&mesh)?;
    let service = |id: &str, port: u32, check: Value| json!({"name": "order-service", "id": id, "port": port, "tags": ["v1"], "check": check});
    let http = json!({"http": "http://localhost:8080/health", "interval": "1s"});
    ensure!(put(&pod, "service/register", &service("by-http", 8080, http))? == "200");
    ensure!(put(&pod, "service/register", &service("by-ttl", 8081, json!({"ttl": "60s"})))? == "200");
    ensure!(put(&pod, "service/register", &service("gone", 8082, json!({"ttl": "60s"})))? == "200");
    ensure!(put(&pod, "check/pass/service:by-ttl", &Value::Null)? == "200");
    ensure!(put(&pod, "service/deregister/gone", &Value::Null)? == "200");
    let healthy = |mesh: &Mesh| {
        wait_for("both instances", SOON, || {
            let status = mesh.status();
            let found = |id: &str| status.lines().any(|l| l.contains(" healthy ") && l.contains(&format!(" {id} on ")));
            ensure!(found("by-http") && found("by-ttl") && !status.contains(" gone on "), "{status}");
            Ok(())
        })
    };
    healthy(&mesh)?;
    // The state of checks is saved within a second.
    let file = Path::new(&data).join("agent.json");
    wait_for("the file", SOON, || {
        let text = std::fs::read_to_string(&file)?;
        ensure!(text.matches("\"passing\"").count() >= 2 && !text.contains("\"gone\""), "{text}");
        Ok(())
    })?;

    // Killed: the application does not register again, and its TTL report still counts.
    sidecar.signal("KILL")?;
    drop(sidecar);
    let sidecar = start(&mesh)?;
    ensure!(ids(&pod)? == ["by-http", "by-ttl"], "{:?}", ids(&pod)?);
    ensure!(get(&pod, "checks")?["service:by-ttl"]["Status"] == "passing");
    healthy(&mesh)?;
    // The checks run again.
    pod.curl(&["-X", "POST", "http://127.0.0.1:8080/sick"])?;
    wait_for("the check", SOON, || {
        let status = mesh.status();
        ensure!(status.lines().any(|l| l.contains(" by-http on ") && l.contains("unhealthy")), "{status}");
        Ok(())
    })?;
    pod.curl(&["-X", "POST", "http://127.0.0.1:8080/well"])?;
    healthy(&mesh)?;

    // Killed with the control plane: both have the registrations of the outage when they are back.
    mesh.control_plane.take().map_or(Ok(()), |c| c.signal("KILL"))?;
    sidecar.signal("KILL")?;
    drop(sidecar);
    let sidecar = start(&mesh)?;
    let never = json!({"ttl": "60s", "status": "passing"});
    wait_for("the loss to be noticed", SOON, || {
        ensure!(put(&pod, "service/register", &service("meanwhile", 8083, never.clone()))? == "200");
        Ok(())
    })?;
    let refused = put(&pod, "service/register", &json!({"name": "billing", "port": 1}))?;
    ensure!(refused.ends_with("403") && refused.contains("its token names order-service"), "{refused}");
    // A port out of range is refused by the control plane alone.
    ensure!(put(&pod, "service/register", &service("wrong", 65536, Value::Null))? == "200");
    sidecar.signal("KILL")?;
    drop(sidecar);
    let mut sidecar = start(&mesh)?;
    mesh.start_control_plane()?;
    healthy(&mesh)?;
    wait_for("the registrations of the outage", SOON, || {
        let status = mesh.status();
        ensure!(status.contains(" meanwhile on "), "{status}");
        Ok(())
    })?;
    wait_for("the refusal to be shown", SOON, || {
        let check = get(&pod, "checks")?["_registration:wrong"].clone();
        let output = check["Output"].as_str().unwrap_or_default();
        ensure!(check["Status"] == "critical" && output.contains("Port 65536 is out of range"), "{check}");
        Ok(())
    })?;
    ensure!(put(&pod, "service/deregister/wrong", &Value::Null)? == "200");
    ensure!(get(&pod, "checks")?["_registration:wrong"].is_null());

    // Stopped in order: gone from the mesh, and back with the sidecar.
    sidecar.signal("TERM")?;
    let code = sidecar.wait(Duration::from_secs(20))?;
    ensure!(code == 0, "exit code {code}");
    let status = mesh.status();
    ensure!(!status.contains(" by-http on "), "{status}");
    let sidecar = start(&mesh)?;
    healthy(&mesh)?;
    let mode = weft_tests::run("stat", &["-c", "%a", &file.to_string_lossy()])?;
    ensure!(mode.trim() == "600", "{mode}");

    // Damaged: reported and renamed, and the sidecar goes on.
    sidecar.signal("KILL")?;
    drop(sidecar);
    std::fs::write(&file, "{\"services\": [{\"regis")?;
    let sidecar = start(&mesh)?;
    let log = sidecar.output();
    ensure!(log.contains(&*file.to_string_lossy()) && log.contains("must register again"), "{log}");
    ensure!(file.with_extension("damaged").exists());
    ensure!(ids(&pod)?.is_empty(), "{:?}", ids(&pod)?);
    let again = service("by-ttl", 8081, json!({"ttl": "60s", "status": "passing"}));
    ensure!(put(&pod, "service/register", &again)? == "200");
    mesh.wait_healthy(&pod.ip)
}

/// A sidecar with socket activation, as by systemd.
struct Activated(Process);

impl Activated {
    fn start(mesh: &Mesh, pod: &Pod, account: &str, args: &[&str]) -> Result<Activated> {
        let token = mesh.token(account)?.to_string_lossy().into_owned();
        let (control, data) = (format!("{}:15012", mesh.center.ip), format!("/run/activated-{}", pod.name));
        let (activator, sidecar) = (tests_dir().join("apps/activator.py"), binary("weft-sidecar")?);
        let (activator, sidecar) = (activator.to_string_lossy(), sidecar.to_string_lossy());
        // The sockets of deploy/systemd/weft-sidecar@.socket, and an unused one.
        let unit = std::fs::read_to_string(tests_dir().join("../deploy/systemd/weft-sidecar@.socket"))?;
        let mut sockets: Vec<String> = Vec::new();
        for (key, address) in unit.lines().filter_map(|l| l.split_once('=')) {
            let address = address.replace(['[', ']'], "");
            match key {
                "ListenStream" => sockets.push(format!("tcp:{address}")),
                "ListenDatagram" => sockets.push(format!("udp:{address}")),
                _ => {}
            }
        }
        sockets.push("tcp:127.0.0.1:9999".into());
        let sockets: Vec<&str> = sockets.iter().map(String::as_str).collect();
        // The sidecar ends with the activator, which is killed when a scenario ends.
        let run = ["--", "setpriv", "--pdeathsig", "KILL", &*sidecar, "run", "--control-plane", &control];
        let more = ["--token-file", &token, "--data-dir", &data, "--workers", "2", "--drain-min", "0"];
        let all = [&[&*activator, "1"], &sockets[..], &run, &more, args].concat();
        let process = pod.spawn("activator", "python3", &all)?;
        wait_for("the sidecar", SOON, || {
            let ready = pod.curl(&["-f", "http://127.0.0.1:15021/healthz/ready"]);
            ready.map_err(|e| e.context(process.output()))
        })?;
        Ok(Activated(process))
    }

    /// Sends the sidecar a signal. Returns its output up to then.
    fn signal(&self, signal: &str) -> Result<String> {
        let before = self.0.output();
        let pid = before.lines().rev().find_map(|l| l.strip_prefix("started ")).context("never started")?;
        weft_tests::run("kill", &[&format!("-{signal}"), pid])?;
        Ok(before)
    }

    /// Sends SIGHUP, and waits until the successor serves.
    fn reload(&self) -> Result<()> {
        self.signal("HUP")?;
        wait_for("the successor", SOON, || {
            ensure!(self.0.output().contains("took over from the predecessor"), "{}", self.0.output());
            Ok(())
        })
    }

    /// Sends the sidecar a signal and waits for its end.
    fn end(&self, signal: &str) -> Result<()> {
        let before = self.signal(signal)?;
        let ends = |log: &str| log.lines().filter(|l| l.starts_with("ended ")).count();
        wait_for("the end of the sidecar", Duration::from_secs(20), || {
            ensure!(ends(&self.0.output()) > ends(&before), "{}", self.0.output());
            Ok(())
        })
    }
}

fn sockets_kept_by_systemd_outlive_the_sidecar() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let (order, front, outside) = (mesh.pod("order1")?, mesh.pod("frontend")?, mesh.pod("outside")?);
    let _app = order.serve(8080, "order1")?;
    let args = ["--service", "order-service", "--port", "8080", "--health-path", "/health", "--health-interval", "1"];
    let order_sidecar = Activated::start(&mesh, &order, "order-service", &args)?;
    let front_sidecar = Activated::start(&mesh, &front, "frontend", &["--workload", "frontend"])?;
    mesh.redirect(&order)?;
    mesh.redirect(&front)?;
    mesh.wait_healthy(&order.ip)?;
    let log = order_sidecar.0.output();
    ensure!(log.contains("the socket 127.0.0.1:9999 (s") && log.contains("is not used"), "{log}");
    let url = format!("http://{}/", mesh.vip("order-service")?);
    let host = json!({"Host": "order-service"});
    let call = || front.curl(&["-f", "-H", "Host: order-service", &url]);
    ensure!(call()?.contains("sa/frontend"));

    // Killed: connections wait in the listen queue until the next process runs, a second later.
    order_sidecar.end("KILL")?;
    let from_outside = outside.requests_meanwhile(&json!({"url": format!("http://{}:8080/", order.ip)}))?;
    let results = front.requests(&json!({"url": url, "count": 20, "concurrency": 4, "headers": host}))?;
    let failed = results.iter().find(|r| r["status"] != 200);
    ensure!(failed.is_none(), "{:?}: {failed:?}", statuses(&results));
    let waited = results.iter().filter_map(|r| r["ms"].as_f64()).fold(0.0, f64::max);
    ensure!(waited > 200.0, "no request waited: {waited} ms");
    let from_outside = from_outside.results()?;
    ensure!(statuses(&from_outside) == [(200, 1)].into(), "{from_outside:?}");
    front_sidecar.end("KILL")?;
    ensure!(call()?.contains("sa/frontend"), "the application's calls wait too");
    front_sidecar.end("KILL")?;
    let by_name = front.curl(&["-f", "http://order-service/"])?;
    ensure!(by_name.contains("sa/frontend"), "and its look-ups: {by_name}");

    // Reloaded under load: the only instance stays in the mesh, and no request fails, on either side.
    let load = |seconds: u64| {
        front.requests_meanwhile(&json!({
            "url": format!("{url}sleep/5"), "seconds": seconds, "concurrency": 8, "method": "POST",
            "body": "not idempotent", "headers": host,
        }))
    };
    let none_failed = |case: &str, results: &[Value]| {
        let failed: Vec<_> = results.iter().filter(|r| r["status"] != 200).take(3).collect();
        println!("{case}: {} requests, {:?}", results.len(), statuses(results));
        ensure!(failed.is_empty() && results.len() > 300, "{case}: of {} some failed: {failed:?}", results.len());
        Ok(())
    };
    let running = load(8)?;
    std::thread::sleep(Duration::from_secs(1));
    order_sidecar.reload()?;
    std::thread::sleep(Duration::from_secs(2));
    front_sidecar.reload()?;
    none_failed("hand-over of both", &running.results()?)?;

    // Stopped and started again under load: the caller's sidecar at once; the instance's where there is another one,
    // because it is out of the mesh until it is back.
    let running = load(4)?;
    std::thread::sleep(Duration::from_secs(1));
    front_sidecar.end("TERM")?;
    none_failed("restart of the caller's", &running.results()?)?;
    // The only instance, stopped: requests meanwhile are refused or wait; no connection breaks.
    let running = load(5)?;
    std::thread::sleep(Duration::from_secs(1));
    order_sidecar.end("TERM")?;
    let results = running.results()?;
    println!("stop of the only instance: {} requests, {:?}", results.len(), statuses(&results));
    let broken = results.iter().find(|r| r["status"] != 200 && r["status"] != 503);
    ensure!(broken.is_none(), "{broken:?}");
    mesh.wait_healthy(&order.ip)?;
    let _second = mesh.instance("order2", "order-service", 8080, &[])?;
    let running = load(5)?;
    std::thread::sleep(Duration::from_secs(1));
    order_sidecar.end("TERM")?;
    let results = running.results()?;
    none_failed("restart of one of two instances", &results)?;
    wait_for("its return", SOON, || {
        let results = front.requests(&json!({"url": url, "count": 20, "headers": host}))?;
        ensure!(served_by(&results).iter().any(|s| s == "order1"), "order1 gets no request");
        Ok(())
    })
}
