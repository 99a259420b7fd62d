//! A redirection that is lost: by a reboot, by another program.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Mesh, Pod, binary, statuses, wait_for};

use crate::Scenario;
use crate::machine::{belongings, user};

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        lost_rules_of_the_redirection_are_installed_again,
        a_sidecar_that_may_not_install_lost_rules_is_not_ready,
    ]
}

const SOON: Duration = Duration::from_secs(15);

fn flush(pod: &Pod) -> Result<()> {
    pod.run("nft", &["flush", "ruleset"]).map(drop)
}

fn redirect(pod: &Pod, args: &[&str]) -> Result<String> {
    pod.run(&binary("weft-sidecar")?.to_string_lossy(), &[&["redirect"], args].concat())
}

fn lost_rules_of_the_redirection_are_installed_again() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let mut order = mesh.instance("order1", "order-service", 8080, &["--health-path", "/health"])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    mesh.wait_healthy(&order.pod.ip)?;
    let url = format!("http://{}/", mesh.vip("order-service")?);
    let call = || front.curl(&["-i", "-H", "Host: order-service", &url]);
    let captured = |case: &str| {
        wait_for(case, SOON, || {
            let rules = redirect(&order.pod, &["show"])?;
            ensure!(rules.contains("redirect to :15006") && rules.contains("redirect to :15001"), "{rules}");
            let answer = call()?;
            ensure!(answer.contains("200 OK") && answer.contains("sa/frontend"), "{answer}");
            Ok(())
        })
    };
    captured("a call")?;
    // A sidecar guards rules that were present.
    wait_for("the guard of the rules", SOON, || {
        let config: Value = serde_json::from_str(&order.pod.curl(&["http://127.0.0.1:15000/config"])?)?;
        ensure!(config["redirected"] == true, "{}", config["redirected"]);
        Ok(())
    })?;
    // While it runs: reported by the kernel.
    flush(&order.pod)?;
    let begun = std::time::Instant::now();
    captured("rules after a flush")?;
    println!("installed again within {} ms", begun.elapsed().as_millis());
    ensure!(order.sidecar.output().contains("installed again"), "{}", order.sidecar.output());
    let metrics = order.pod.curl(&["http://127.0.0.1:15020/metrics"])?;
    ensure!(metrics.contains("weft_redirection_reinstalled_total 1\n"), "{metrics}");
    // Part of them.
    order.pod.run("nft", &["flush", "chain", "inet", "weft", "inbound"])?;
    captured("rules after a flush of one chain")?;
    // Rules with other options are kept as they are.
    redirect(&order.pod, &["install", "--exclude-inbound-ports", "9999"])?;
    std::thread::sleep(Duration::from_secs(1));
    let rules = redirect(&order.pod, &["show"])?;
    ensure!(rules.contains("9999"), "{rules}");

    // A reboot: rules and route are gone before the sidecar starts.
    order.sidecar.signal("KILL")?;
    order.sidecar.wait(SOON)?;
    flush(&order.pod)?;
    order.sidecar = mesh.sidecar(&order.pod, "order-service", &["--service", "order-service", "--port", "8080"])?;
    let rules = redirect(&order.pod, &["show"])?;
    ensure!(rules.contains("9999") && rules.contains("redirect to :15006"), "ready without rules: {rules}");
    wait_for("a call", SOON, || {
        let answer = call()?;
        ensure!(answer.contains("200 OK") && answer.contains("sa/frontend"), "{answer}");
        Ok(())
    })?;

    // `redirect remove` is respected, and the caller's error names the cause.
    redirect(&order.pod, &["remove"])?;
    wait_for("the reason", SOON, || {
        let answer = call()?;
        let why = "the peer answered without TLS: its traffic is not captured";
        ensure!(answer.contains("503") && answer.contains(why), "{answer}");
        Ok(())
    })?;
    order.sidecar.signal("KILL")?;
    order.sidecar.wait(SOON)?;
    order.sidecar = mesh.sidecar(&order.pod, "order-service", &[])?;
    ensure!(order.pod.run("nft", &["list", "tables"])?.is_empty(), "installed again though they were removed");
    Ok(())
}

fn a_sidecar_that_may_not_install_lost_rules_is_not_ready() -> Result<()> {
    let Some(user) = user("1337") else { return Ok(()) };
    let mesh = Mesh::start(&[])?;
    let pod = mesh.pod("order1")?;
    let _app = pod.serve(8080, "order1")?;
    let [sidecar, token, data] = belongings(&mesh, "order-service", "1337")?;
    let control = format!("{}:15012", mesh.center.ip);
    let run = [&sidecar, "run", "--control-plane", &control, "--token-file", &token, "--data-dir", &data];
    let service = ["--service", "order-service", "--port", "8080"];
    let user: Vec<&str> = user.iter().map(String::as_str).collect();
    let process = pod.spawn("sidecar", "setpriv", &[&user[..], &run, &service].concat())?;
    mesh.wait_ready(&pod)?;
    redirect(&pod, &["install", "--proxy-uid", "1337"])?;
    mesh.wait_healthy(&pod.ip)?;
    let record = std::path::Path::new(&data).join("redirection.nft");
    wait_for("the record", SOON, || {
        let text = std::fs::read_to_string(&record)?;
        ensure!(text.contains(":8080"), "{text}");
        Ok(())
    })?;
    let ready = || pod.curl(&["http://127.0.0.1:15021/healthz/ready"]);
    flush(&pod)?;
    wait_for("the loss to be noticed", SOON, || {
        let answer = ready()?;
        ensure!(answer.contains("traffic is not captured") && answer.contains("CAP_NET_ADMIN"), "{answer}");
        Ok(())
    })?;
    ensure!(process.output().contains("traffic is not captured"), "{}", process.output());
    let metrics = pod.curl(&["http://127.0.0.1:15020/metrics"])?;
    ensure!(metrics.contains("weft_redirection_lost 1\n"), "{metrics}");
    wait_for("the instance to be unhealthy", SOON, || {
        let status = mesh.status();
        let line = status.lines().find(|line| line.contains(&format!(" {}:8080", pod.ip))).context("no instance")?;
        ensure!(line.contains("unhealthy"), "{line}");
        Ok(())
    })?;
    redirect(&pod, &["install", "--proxy-uid", "1337"])?;
    wait_for("readiness", SOON, || {
        let answer = ready()?;
        ensure!(answer.trim() == "ready", "{answer}");
        Ok(())
    })?;
    mesh.wait_healthy(&pod.ip)?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let results = front.requests(&json!({"url": format!("http://{}:8080/", pod.ip), "count": 5}))?;
    ensure!(statuses(&results) == [(200, 5)].into(), "{results:?}");
    Ok(())
}
