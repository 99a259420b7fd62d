//! Operations: what an administrator does to a sidecar, and what an accident does, while its application goes on.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Mesh, Pod, Process, binary, tests_dir, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    vec![
        ("registrations_survive_a_restart_of_the_sidecar", registrations_survive),
        ("a_second_sidecar_in_a_namespace_is_refused_and_a_second_command_joins", second_sidecar),
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
