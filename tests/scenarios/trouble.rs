//! Trouble: killed processes, invalid files, peers with a wrong identity.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use weft_tests::{Instance, Mesh, Pod, binary, served_by, statuses, wait_for};

use crate::Scenario;
use crate::operations::SOON;
use crate::traffic::ORDER_POLICY;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        a_killed_control_plane_stops_no_traffic_and_loses_no_state,
        a_killed_application_fails_no_request,
        a_broken_policy_is_reported_and_the_last_good_one_serves,
        unauthenticated_peers_are_refused_with_the_reason,
        a_foreign_address_cannot_be_registered,
        an_expired_certificate_is_refused_with_the_reason,
        sigterm_fails_no_request,
        sigterm_to_sidecar_and_application_together_fails_no_request,
        certificates_rotate_under_traffic,
        a_blocked_log_stops_no_traffic,
        a_cloned_data_folder_is_refused_until_the_first_sidecar_is_gone,
    ]
}

fn a_killed_control_plane_stops_no_traffic_and_loses_no_state() -> Result<()> {
    let mut mesh = Mesh::start(&[])?;
    mesh.policy("order.yaml", ORDER_POLICY)?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let (front, front_sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let plan = json!({"url": format!("http://{vip}/"), "count": 50, "headers": {"Host": "order-service"}});
    let works = || -> Result<()> {
        let counts = statuses(&front.requests(&plan)?);
        ensure!(counts == HashMap::from([(200, 50)]), "{counts:?}");
        Ok(())
    };
    works()?;
    // The directory is saved within a second.
    std::thread::sleep(Duration::from_millis(1500));
    mesh.control_plane.take().map_or(Ok(()), |c| c.signal("KILL"))?;
    works()?;
    // A sidecar that restarts meanwhile serves from its saved directory.
    drop(front_sidecar);
    let _restarted = mesh.sidecar(&front, "frontend", &["--workload", "frontend"])?;
    works()?;
    mesh.start_control_plane()?;
    mesh.wait_healthy(&order.pod.ip)?;
    ensure!(mesh.vip("order-service")? == vip, "the virtual IP is the same");
    wait_for("both sidecars", Duration::from_secs(20), || {
        let status = mesh.status();
        ensure!(status.contains("2 sidecars"), "{status}");
        Ok(())
    })?;
    works()
}

fn a_killed_application_fails_no_request() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let a = mesh.instance("order1", "order-service", 8080, &[])?;
    let _b = mesh.instance("order2", "order-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let plan = json!({"url": format!("http://{vip}/"), "count": 100, "headers": {"Host": "order-service"}});
    ensure!(statuses(&front.requests(&plan)?) == HashMap::from([(200, 100)]));
    // The whole pod: sidecar and application.
    a.sidecar.signal("KILL")?;
    a.app.signal("KILL")?;
    let results = front.requests(&plan)?;
    let failed: Vec<_> = results.iter().filter(|r| r["status"] != 200).take(3).collect();
    ensure!(failed.is_empty(), "of {} requests some failed: {failed:?}", results.len());
    ensure!(served_by(&results).iter().all(|s| s == "order2"));
    wait_for("its lease to end", Duration::from_secs(40), || {
        let status = mesh.status();
        ensure!(!status.contains(&format!(" {}:", a.pod.ip)), "{status}");
        Ok(())
    })
}

fn a_broken_policy_is_reported_and_the_last_good_one_serves() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("order.yaml", ORDER_POLICY)?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    mesh.policy("order.yaml", &ORDER_POLICY.replace("httpHeaderName", "httpHeadername"))?;
    wait_for("the problem", Duration::from_secs(10), || {
        let status = mesh.status();
        let expected = "order.yaml:11:9: error:";
        ensure!(status.contains(expected) && status.contains("did you mean `httpHeaderName`?"), "{status}");
        Ok(())
    })?;
    let results = front.requests(&json!({
        "url": format!("http://{vip}/"), "count": 10, "headers": {"Host": "order-service", "user-id": "a"},
    }))?;
    ensure!(statuses(&results) == HashMap::from([(200, 10)]));
    let body = results.last().and_then(|r| r["body"].as_str()).unwrap_or_default().to_owned();
    let body: serde_json::Value = serde_json::from_str(&body)?;
    ensure!(body["request"].as_u64().is_some_and(|n| n <= 2), "the old policy still serves: {body}");
    Ok(())
}

fn unauthenticated_peers_are_refused_with_the_reason() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    // A service that the token does not name.
    let thief = mesh.pod("thief")?;
    let sidecar = mesh.sidecar(&thief, "thief", &["--service", "order-service", "--port", "8080"])?;
    wait_for("the refusal", Duration::from_secs(10), || {
        let log = sidecar.output();
        ensure!(log.contains("may not register the service"), "{log}");
        Ok(())
    })?;
    ensure!(!mesh.status().contains(&format!(" {}:8080", thief.ip)));
    // A token that was not made here.
    let forger = mesh.pod("forger")?;
    let token = mesh.token("forger")?;
    let text = std::fs::read_to_string(&token)?;
    let (body, _) = text.trim().rsplit_once('.').unwrap_or_default();
    std::fs::write(&token, format!("{body}.{}", "A".repeat(43)))?;
    let sidecar = mesh.sidecar_unready(&forger, "forger", &[])?;
    wait_for("the refusal", Duration::from_secs(10), || {
        let log = sidecar.output();
        ensure!(log.contains("the join token was not created by this control plane"), "{log}");
        Ok(())
    })?;
    // A server with another identity at a registered address: the instance is killed, and another process takes its address.
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let get = || front.curl(&["-i", "-H", "Host: order-service", &format!("http://{vip}/")]);
    ensure!(get()?.starts_with("HTTP/1.1 200"));
    order.sidecar.signal("KILL")?;
    let imposter = mesh.sidecar(&order.pod, "imposter", &["--workload", "imposter", "--data-dir", "/run/imposter"])?;
    let answer = get()?;
    ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    ensure!(answer.contains("x-weft-reason: peer_identity_mismatch"), "{answer}");
    ensure!(answer.contains("sa/imposter"), "the error has no identity: {answer}");
    drop(imposter);
    Ok(())
}

fn sigterm_fails_no_request() -> Result<()> {
    one_of_two_leaves(|a| {
        a.sidecar.signal("TERM")?;
        let code = a.sidecar.wait(Duration::from_secs(10))?;
        ensure!(code == 0, "exit code {code}");
        a.app.signal("TERM")
    })
}

fn sigterm_to_sidecar_and_application_together_fails_no_request() -> Result<()> {
    one_of_two_leaves(|a| {
        // The application is the first to stop listening, while its sidecar is still being called.
        a.app.signal("TERM")?;
        a.sidecar.signal("TERM")?;
        ensure!(a.app.wait(Duration::from_secs(10))? == 0, "the application did not end by itself");
        ensure!(a.sidecar.wait(Duration::from_secs(20))? == 0, "{}", a.sidecar.output());
        Ok(())
    })
}

/// POSTs to two instances, of which one stops meanwhile: no request fails.
fn one_of_two_leaves(leave: impl FnOnce(&mut Instance) -> Result<()>) -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let mut a = mesh.instance("order1", "order-service", 8080, &[])?;
    let _b = mesh.instance("order2", "order-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let load = front.requests_meanwhile(&json!({
        "url": format!("http://{vip}/sleep/3"), "seconds": 6, "concurrency": 8, "method": "POST", "body": "not idempotent",
        "headers": {"Host": "order-service"},
    }))?;
    std::thread::sleep(Duration::from_secs(2));
    leave(&mut a)?;
    let results = load.results()?;
    let failed: Vec<_> = results.iter().filter(|r| r["status"] != 200).take(3).collect();
    ensure!(failed.is_empty(), "of {} requests some failed: {failed:?}", results.len());
    let last: Vec<_> = served_by(&results).into_iter().rev().take(50).collect();
    ensure!(last.iter().all(|s| s == "order2"), "the remaining instance served the last requests");
    ensure!(results.len() > 200, "only {} requests", results.len());
    Ok(())
}

fn certificates_rotate_under_traffic() -> Result<()> {
    let mesh = Mesh::start(&["--certificate-ttl", "30"])?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let vip = mesh.vip("order-service")?;
    let certificate = || front.curl(&["http://127.0.0.1:15000/certs"]);
    let before = certificate()?;
    // New connections throughout, so that handshakes happen before, during and after the renewal at half life.
    let results = front.requests(&json!({
        "url": format!("http://{vip}/"), "seconds": 22, "concurrency": 2, "headers": {"Host": "order-service"},
        "keep_alive": false,
    }))?;
    let failed: Vec<_> = results.iter().filter(|r| r["status"] != 200).take(3).collect();
    ensure!(failed.is_empty(), "of {} requests some failed: {failed:?}", results.len());
    ensure!(certificate()? != before, "the certificate is the same");
    Ok(())
}

fn a_blocked_log_stops_no_traffic() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let front = mesh.pod("frontend")?;
    let args = mesh.sidecar_args(&front, "frontend", &["--workload", "frontend", "--access-log", "-"])?;
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (_sidecar, _unread) = front.spawn_unread(binary("weft-sidecar")?, &args)?;
    mesh.wait_ready(&front)?;
    mesh.redirect(&front)?;
    let url = format!("http://{}/", mesh.vip("order-service")?);
    let counts = statuses(&front.requests(&json!({"url": url, "count": 100, "headers": {"Host": "order-service"}}))?);
    ensure!(counts == HashMap::from([(200, 100)]), "{counts:?}");
    Ok(())
}

fn a_foreign_address_cannot_be_registered() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let thief = mesh.pod("thief")?;
    let _sidecar = mesh.sidecar(&thief, "order-service", &["--workload", "thief"])?;
    for address in [order.pod.ip.as_str(), "240.240.0.1", "192.0.2.1", "not-an-address"] {
        let service = json!({"ID": "mine", "Name": "order-service", "Address": address, "Port": 8080}).to_string();
        let url = "http://127.0.0.1:8500/v1/agent/service/register";
        let output = thief.curl(&["-w", " %{http_code}", "-X", "PUT", "-d", &service, url])?;
        ensure!(output.ends_with(" 400") || output.ends_with(" 403"), "{address}: {output}");
        ensure!(output.contains(address), "the error has no address: {output}");
    }
    let status = mesh.status();
    ensure!(status.matches(&format!(" {}:8080", order.pod.ip)).count() == 1, "{status}");
    ensure!(!status.contains("192.0.2.1"), "{status}");
    // A loopback address stands for the pod, which has another address in the mesh.
    let own = json!({"ID": "own", "Name": "order-service", "Address": "127.0.0.1", "Port": 8081}).to_string();
    let url = "http://127.0.0.1:8500/v1/agent/service/register";
    thief.curl(&["-f", "-X", "PUT", "-d", &own, url])?;
    let status = mesh.status();
    ensure!(status.contains(&format!(" {}:8081", thief.ip)) && !status.contains("127.0.0.1"), "{status}");
    Ok(())
}

fn an_expired_certificate_is_refused_with_the_reason() -> Result<()> {
    let mesh = Mesh::start(&["--certificate-ttl", "10"])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let vip = mesh.vip("order-service")?;
    // The server alone cannot renew its certificate any more.
    let rules = "table inet cut { chain out { type filter hook output priority 0; tcp dport 15012 drop; }; }";
    order.pod.run("nft", &[rules])?;
    wait_for("the end of the certificate", Duration::from_secs(30), || {
        let answer = order.pod.curl(&["-i", "http://127.0.0.1:15021/healthz/ready"])?;
        ensure!(answer.contains("no valid certificate"), "{answer}");
        Ok(())
    })?;
    // The certificate is valid to the end of its last second.
    std::thread::sleep(Duration::from_millis(1100));
    // A client without an earlier connection. The server's lease has not ended: it is still an endpoint.
    let (front, _sidecar) = mesh.client("frontend")?;
    let answer = front.curl(&["-i", "-H", "Host: order-service", &format!("http://{vip}/")])?;
    ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    ensure!(answer.to_lowercase().contains("expired"), "why: {answer}");
    Ok(())
}

/// Two sidecars of one identity and one node name at different addresses: a copied machine.
fn a_cloned_data_folder_is_refused_until_the_first_sidecar_is_gone() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let (first, second) = (mesh.pod("order1")?, mesh.pod("order2")?);
    let _apps = (first.serve(8080, "order1")?, second.serve(8080, "order2")?);
    let data = [first.folder("data"), second.folder("data")].map(|path| path.to_string_lossy().into_owned());
    let start = |pod: &Pod, data: &str| {
        let args = ["--service", "order-service", "--port", "8080", "--data-dir", data];
        mesh.sidecar_unready(pod, "order-service", &args)
    };
    let mut original = start(&first, &data[0])?;
    mesh.wait_ready(&first)?;
    mesh.redirect(&first)?;
    mesh.wait_healthy(&first.ip)?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let url = "http://order-service/";
    let load = front.requests_meanwhile(&json!({"url": url, "seconds": 6, "concurrency": 2}))?;

    weft_tests::run("cp", &["-a", &data[0], &data[1]])?;
    let mut clone = start(&second, &data[1])?;
    let places = format!("is connected from {}, and this sidecar comes from {}", first.ip, second.ip);
    wait_for("the refusal, and another after it", Duration::from_secs(15), || {
        let log = clone.output();
        ensure!(log.matches(&places).count() >= 2, "{log}");
        Ok(())
    })?;
    let refusal = clone.output();
    ensure!(refusal.contains("--data-dir") && refusal.contains("sa/order-service"), "{refusal}");
    let results = load.results()?;
    ensure!(results.len() > 100 && statuses(&results).keys().eq([&200]), "{:?}", statuses(&results));
    ensure!(served_by(&results).iter().all(|name| name == "order1"), "the clone has served requests");
    let log = original.output();
    ensure!(!log.contains("refused this sidecar") && !log.contains("is connected from"), "{log}");
    let status = mesh.status();
    ensure!(!status.contains(&format!(" {}:", second.ip)), "{status}");
    mesh.wait_healthy(&first.ip)?;

    // The clone tries again within 10 s.
    original.signal("KILL")?;
    original.wait(SOON)?;
    let serves = |name: &str| {
        wait_for(name, SOON, || {
            let answer = front.curl(&["-f", url])?;
            ensure!(answer.contains(&format!("\"name\": \"{name}\"")), "{answer}");
            Ok(())
        })
    };
    wait_for("the clone's place", Duration::from_secs(15), || mesh.wait_healthy(&second.ip))?;
    mesh.redirect(&second)?;
    serves("order2")?;
    // A sidecar that is started has its place at once.
    clone.signal("KILL")?;
    clone.wait(SOON)?;
    let started = Instant::now();
    let _original = start(&first, &data[0])?;
    mesh.wait_healthy(&first.ip)?;
    ensure!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    serves("order1")
}
