//! Operations: what an administrator does to a sidecar, and what an accident does, while its application goes on.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Mesh, Pod, Process, binary, served_by, statuses, tests_dir, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    vec![
        ("registrations_survive_a_restart_of_the_sidecar", registrations_survive),
        ("a_second_sidecar_in_a_namespace_is_refused_and_a_second_command_joins", second_sidecar),
        ("sockets_kept_by_systemd_outlive_the_sidecar", activation),
        ("exec_netns_makes_a_pod_and_leaves_nothing_behind", exec_netns),
    ]
}

/// Limit for what takes a moment.
const SOON: Duration = Duration::from_secs(15);

/// Consul's API of the pod's sidecar.
fn put(pod: &Pod, path: &str, body: &Value) -> Result<String> {
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

fn registrations_survive() -> Result<()> {
    let mut mesh = Mesh::start(&[])?;
    let pod = mesh.pod("order1")?;
    let _app = pod.serve(8080, "order1")?;
    let data = format!("/run/survive-{}", pod.name);
    let start = |mesh: &Mesh| mesh.sidecar(&pod, "order-service", &["--data-dir", &data]);
    let sidecar = start(&mesh)?;
    let service = |id: &str, port: u16, check: Value| json!({"name": "order-service", "id": id, "port": port, "tags": ["v1"], "check": check});
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

    // Killed: nobody asks the application to register again, and its TTL report still counts.
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

    // Killed with the control plane: what was registered meanwhile is known to both when they are back.
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
    ensure!(refused.ends_with("403") && refused.contains("its token names [\"order-service\"]"), "{refused}");
    // Port 0 is what only the control plane refuses.
    ensure!(put(&pod, "service/register", &service("wrong", 0, Value::Null))? == "200");
    sidecar.signal("KILL")?;
    drop(sidecar);
    let mut sidecar = start(&mesh)?;
    mesh.start_control_plane()?;
    healthy(&mesh)?;
    wait_for("what was registered meanwhile", SOON, || {
        let status = mesh.status();
        ensure!(status.contains(" meanwhile on "), "{status}");
        Ok(())
    })?;
    wait_for("the refusal to be shown", SOON, || {
        let check = get(&pod, "checks")?["_registration:wrong"].clone();
        let output = check["Output"].as_str().unwrap_or_default();
        ensure!(check["Status"] == "critical" && output.contains("0 is not a port"), "{check}");
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

    // Damaged: said, set aside, and the sidecar goes on.
    sidecar.signal("KILL")?;
    drop(sidecar);
    std::fs::write(&file, "{\"services\": [{\"regis")?;
    let sidecar = start(&mesh)?;
    let log = sidecar.output();
    ensure!(log.contains(&*file.to_string_lossy()) && log.contains("have to register again"), "{log}");
    ensure!(file.with_extension("damaged").exists());
    ensure!(ids(&pod)?.is_empty(), "{:?}", ids(&pod)?);
    let again = service("by-ttl", 8081, json!({"ttl": "60s", "status": "passing"}));
    ensure!(put(&pod, "service/register", &again)? == "200");
    mesh.wait_healthy(&pod.ip)
}

fn second_sidecar() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let mut second = mesh.sidecar_unready(&order.pod, "billing", &["--data-dir", "/run/second"])?;
    let code = second.wait(SOON)?;
    let log = second.output();
    let why = format!("another weft-sidecar of order-service (process {}) serves port 15001", order.sidecar.id());
    ensure!(code == 1 && log.contains(&why) && log.contains("weft-sidecar exec --netns"), "{code}: {log}");

    // A command of the same service joins the sidecar that runs, one of another is refused like its sidecar would be.
    let exec = |service: &str| -> Result<Process> {
        let token = mesh.token(service)?.to_string_lossy().into_owned();
        let control = format!("{}:15012", mesh.center.ip);
        let config = ["exec", "--control-plane", &control, "--token-file", &token, "--data-dir", "/run/third"];
        let command = ["--service", service, "--", "sh", "-c", "exit 5"];
        order.pod.spawn(&format!("exec-{service}"), binary("weft-sidecar")?, &[&config[..], &command].concat())
    };
    let mut joined = exec("order-service")?;
    let code = joined.wait(SOON)?;
    ensure!(code == 5 && joined.output().contains("the command joins it"), "{code}: {}", joined.output());
    let mut refused = exec("billing")?;
    let code = refused.wait(SOON)?;
    ensure!(code == 1 && refused.output().contains("another weft-sidecar of order-service"), "{}", refused.output());
    // Nothing of it disturbed the one that runs, and when it is gone another may come.
    let (front, _sidecar) = mesh.client("frontend")?;
    let url = format!("http://{}:8080/", order.pod.ip);
    ensure!(front.curl(&["-f", &url])?.contains("sa/frontend"));
    drop(order.sidecar);
    mesh.sidecar(&order.pod, "billing", &["--data-dir", "/run/second"]).map(drop)
}

/// `weft-sidecar exec --netns` on the machine that the control plane runs on.
fn netns(mesh: &Mesh, name: &str, service: &str, options: &[&str], command: &[&str]) -> Result<Process> {
    let token = mesh.token(service)?.to_string_lossy().into_owned();
    let (control, data) = (format!("{}:15012", mesh.center.ip), format!("/run/netns-{name}"));
    let config = ["exec", "--control-plane", &control, "--token-file", &token, "--data-dir", &data];
    let all = [&config[..], &["--service", service], options, &["--"], command].concat();
    mesh.center.spawn_as_host(name, binary("weft-sidecar")?, &all)
}

/// The address at which the mesh knows the one instance of a service that is healthy.
fn address_of(mesh: &Mesh, id: &str) -> Result<String> {
    wait_for("the pod's registration", SOON, || {
        let status = mesh.status();
        let line = status.lines().find(|l| l.contains(&format!(" {id} on ")) && l.contains(" healthy "));
        let address = line.and_then(|l| l.split_whitespace().next()).with_context(|| status.clone())?;
        Ok(address.rsplit_once(':').context("no port")?.0.to_owned())
    })
}

/// What `exec --netns` has made and not removed.
fn left(mesh: &Mesh) -> Result<String> {
    let namespaces = weft_tests::run("ip", &["netns", "list"])?;
    let links = mesh.center.run("ip", &["-o", "link"])?;
    let tables = mesh.center.run("nft", &["list", "tables"])?;
    let all = [namespaces, links, tables].concat();
    Ok(all.lines().filter(|l| l.contains("weft")).collect::<Vec<_>>().join("\n"))
}

fn exec_netns() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let server = tests_dir().join("apps/server.py").to_string_lossy().into_owned();
    let order = ["python3", &server, "8080", "order1"];
    let options = ["--port", "8080", "--netns"];
    let mut process = netns(&mesh, "order", "order-service", &options, &order)?;
    let ip = address_of(&mesh, "order-service-8080").map_err(|e| e.context(process.output()))?;
    ensure!(ip.starts_with("10.87."), "an address of its own: {ip}");
    // Reached at its own address, by the mesh and by this machine.
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let call = || front.curl(&["-f", "-H", "Host: order-service", &format!("http://{vip}/")]);
    ensure!(call()?.contains("sa/frontend"));
    ensure!(mesh.center.curl(&["-f", &format!("http://{ip}:8080/")])?.contains("order1"));

    // A second service with the same port beside it, at an address that was asked for; they call each other, and a
    // machine outside.
    let outside = mesh.pod("outside")?;
    let web = outside.spawn("web", "python3", &["-u", "-m", "http.server", "9000"])?;
    let script = format!(
        "python3 {server} 8080 billing1 & curl -sS -m 10 -H 'Host: order-service' http://{vip}/; \
         for i in 1 2 3 4 5 6 7 8 9; do curl -sS -f -m 5 -o /dev/null http://{}:9000/ && break; sleep 0.2; done; wait",
        outside.ip
    );
    let options = ["--port", "8080", "--netns=10.77.7.2/30"];
    let billing = netns(&mesh, "billing", "billing", &options, &["sh", "-c", &script])?;
    ensure!(address_of(&mesh, "billing-8080").map_err(|e| e.context(billing.output()))? == "10.77.7.2");
    wait_for("its calls", SOON, || {
        ensure!(billing.output().contains("sa/billing"), "{}", billing.output());
        // The address was asked for, so it is not hidden behind this machine's.
        ensure!(web.output().contains("10.77.7.2 - -"), "{}", web.output());
        Ok(())
    })?;
    // The other one's address was not, and this machine is where it calls other machines from.
    let made = process.output();
    let (_, name) = made.split_once("made the network namespace ").context(made.clone())?;
    let name = name.split_whitespace().next().context("no name")?;
    weft_tests::run(
        "ip",
        &["netns", "exec", name, "curl", "-sS", "-m", "10", &format!("http://{}:9000/", outside.ip)],
    )?;
    wait_for("its call", SOON, || {
        ensure!(web.output().contains(&format!("{} - -", mesh.center.ip)), "{}", web.output());
        Ok(())
    })?;
    let same = netns(&mesh, "order", "order-service", &["--netns"], &["true"])?;
    wait_for("the refusal", SOON, || {
        ensure!(same.output().contains("with the same --data-dir /run/netns-order"), "{}", same.output());
        Ok(())
    })?;
    ensure!(call()?.contains("sa/frontend"), "and nothing happens to the first one");

    // Killed: what is inside ends too, and the next start makes the same pod anew.
    process.signal("KILL")?;
    process.wait(SOON)?;
    ensure!(left(&mesh)?.contains("weft"), "a killed process cannot clean up");
    let mut process = netns(&mesh, "order", "order-service", &["--port", "8080", "--netns"], &order)?;
    wait_for("the pod's return", SOON, || {
        ensure!(process.output().matches("made the network namespace").count() == 2, "{}", process.output());
        call()
    })?;
    ensure!(address_of(&mesh, "order-service-8080")? == ip, "its address is the same");

    // Ended in order: nothing is left.
    process.signal("TERM")?;
    let code = process.wait(Duration::from_secs(30))?;
    ensure!(code == 128 + 15, "the command died of SIGTERM: {code}\n{}", process.output());
    let mut billing = billing;
    billing.signal("TERM")?;
    billing.wait(Duration::from_secs(30))?;
    ensure!(left(&mesh)?.is_empty(), "{}", left(&mesh)?);
    ensure!(!mesh.status().contains("healthy"), "{}", mesh.status());

    // Mistakes are named.
    let refusal = |name: &str, options: &[&str], words: &str| -> Result<()> {
        let mut process = netns(&mesh, name, "order-service", options, &["true"])?;
        let code = process.wait(SOON)?;
        ensure!(code != 0 && process.output().contains(words), "{code}: {}", process.output());
        Ok(())
    };
    refusal("a", &["--netns=10.1.2.3/31"], "an address and prefix such as 10.87.0.2/30")?;
    refusal("b", &["--netns", "--control-plane", "127.0.0.1:15012"], "is on this machine's loopback")?;
    let anybody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    if weft_tests::run("setpriv", &[&anybody[..], &["true"]].concat()).is_ok() {
        let sidecar = std::fs::read(binary("weft-sidecar")?)?;
        std::fs::write("/run/weft-sidecar", sidecar)?;
        weft_tests::run("chmod", &["755", "/run", "/run/weft-sidecar"])?;
        let exec = ["/run/weft-sidecar", "exec", "--control-plane", "10.0.0.1:1", "--netns", "--", "true"];
        let refused = weft_tests::run("setpriv", &[&anybody[..], &exec].concat());
        let refused = refused.err().context("a user who is not root may make namespaces")?.to_string();
        ensure!(refused.contains("needs root"), "{refused}");
    }
    Ok(())
}

/// A sidecar whose sockets are kept by another program, as systemd does it.
struct Activated(Process);

impl Activated {
    fn start(mesh: &Mesh, pod: &Pod, account: &str, args: &[&str]) -> Result<Activated> {
        let token = mesh.token(account)?.to_string_lossy().into_owned();
        let (control, data) = (format!("{}:15012", mesh.center.ip), format!("/run/activated-{}", pod.name));
        let (activator, sidecar) = (tests_dir().join("apps/activator.py"), binary("weft-sidecar")?);
        let (activator, sidecar) = (activator.to_string_lossy(), sidecar.to_string_lossy());
        // Those of deploy/systemd/weft-sidecar@.socket, and one that nobody wants.
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
        let more = ["--token-file", &token, "--data-dir", &data, "--workers", "2"];
        let all = [&[&*activator, "1"], &sockets[..], &run, &more, args].concat();
        let process = pod.spawn("activator", "python3", &all)?;
        wait_for("the sidecar", SOON, || {
            let ready = pod.curl(&["-f", "http://127.0.0.1:15021/healthz/ready"]);
            ready.map_err(|e| e.context(process.output()))
        })?;
        Ok(Activated(process))
    }

    /// Sends the sidecar a signal and waits for its end.
    fn end(&self, signal: &str) -> Result<()> {
        let before = self.0.output();
        let pid = before.lines().rev().find_map(|l| l.strip_prefix("started ")).context("never started")?;
        weft_tests::run("kill", &[&format!("-{signal}"), pid])?;
        let ends = |log: &str| log.lines().filter(|l| l.starts_with("ended ")).count();
        wait_for("the end of the sidecar", Duration::from_secs(20), || {
            ensure!(ends(&self.0.output()) > ends(&before), "{}", self.0.output());
            Ok(())
        })
    }
}

fn activation() -> Result<()> {
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

    // Killed: what comes before the next one runs waits for it. It is a second until then.
    order_sidecar.end("KILL")?;
    let from_outside = outside.requests_meanwhile(&json!({"url": format!("http://{}:8080/", order.ip)}))?;
    let results = front.requests(&json!({"url": url, "count": 20, "concurrency": 4, "headers": host}))?;
    let failed = results.iter().find(|r| r["status"] != 200);
    ensure!(failed.is_none(), "{:?}: {failed:?}", statuses(&results));
    let waited = results.iter().filter_map(|r| r["ms"].as_f64()).fold(0.0, f64::max);
    ensure!(waited > 200.0, "nobody waited: {waited} ms");
    let from_outside = from_outside.results()?;
    ensure!(statuses(&from_outside) == [(200, 1)].into(), "{from_outside:?}");
    front_sidecar.end("KILL")?;
    ensure!(call()?.contains("sa/frontend"), "the application's calls wait too");
    front_sidecar.end("KILL")?;
    let by_name = front.curl(&["-f", "http://order-service/"])?;
    ensure!(by_name.contains("sa/frontend"), "and its look-ups: {by_name}");

    // Asked to hand over, under load: the only instance stays in the mesh, and no request fails, on either side.
    let load = |seconds: u64| {
        front.requests_meanwhile(&json!({
            "url": format!("{url}sleep/5"), "seconds": seconds, "concurrency": 8, "method": "POST",
            "body": "not idempotent", "headers": host,
        }))
    };
    let none_failed = |what: &str, results: &[Value]| {
        let failed: Vec<_> = results.iter().filter(|r| r["status"] != 200).take(3).collect();
        println!("{what}: {} requests, {:?}", results.len(), statuses(results));
        ensure!(failed.is_empty() && results.len() > 300, "{what}: of {} some failed: {failed:?}", results.len());
        Ok(())
    };
    let running = load(8)?;
    std::thread::sleep(Duration::from_secs(1));
    order_sidecar.end("HUP")?;
    std::thread::sleep(Duration::from_secs(2));
    front_sidecar.end("HUP")?;
    none_failed("hand-over of both", &running.results()?)?;

    // Stopped and started again under load: the caller's sidecar at once; the instance's where there is another one,
    // because it is out of the mesh until it is back.
    let running = load(4)?;
    std::thread::sleep(Duration::from_secs(1));
    front_sidecar.end("TERM")?;
    none_failed("restart of the caller's", &running.results()?)?;
    let _second = mesh.instance("order2", "order-service", 8080, &[])?;
    let running = load(5)?;
    std::thread::sleep(Duration::from_secs(1));
    order_sidecar.end("TERM")?;
    let results = running.results()?;
    none_failed("restart of one of two instances", &results)?;
    wait_for("its return", SOON, || {
        let results = front.requests(&json!({"url": url, "count": 20, "headers": host}))?;
        ensure!(served_by(&results).iter().any(|s| s == "order1"), "order1 serves nobody");
        Ok(())
    })
}
