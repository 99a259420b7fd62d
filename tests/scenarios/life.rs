//! The lifetime of a sidecar's certificate: clock skew, and outages of the control plane that are longer.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::{Mesh, binary, wait_for};

use crate::Scenario;
use crate::registry::find_library;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        a_clock_that_is_ahead_renews_at_half_of_the_granted_life_and_is_reported,
        a_sidecar_returns_after_an_outage_longer_than_its_certificate,
    ]
}

fn a_clock_that_is_ahead_renews_at_half_of_the_granted_life_and_is_reported() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let pod = mesh.pod("ahead")?;
    let args = mesh.sidecar_args(&pod, "order-service", &["--service", "order-service", "--port", "8080"])?;
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ahead = [("LD_PRELOAD".to_owned(), find_library()?), ("FAKETIME".to_owned(), "+13h".to_owned())];
    let sidecar = pod.spawn_with("sidecar", binary("weft-sidecar")?, &args, &ahead)?;
    let ready = || pod.curl(&["http://127.0.0.1:15021/healthz/ready"]);
    let skew = "clock is 13 h 0 min ahead of the control plane's";
    wait_for("the report of the skew", Duration::from_secs(15), || {
        ensure!(ready()?.contains(skew), "{}\n{}", ready()?, sidecar.output());
        Ok(())
    })?;
    ensure!(sidecar.output().contains(skew), "{}", sidecar.output());
    // Reported by a heartbeat: until then a renewal loop would have signed hundreds of certificates.
    wait_for("the skew in the status", Duration::from_secs(15), || {
        ensure!(mesh.status().contains("its clock is 13 h 0 min ahead of this one"), "{}", mesh.status());
        Ok(())
    })?;
    let log = mesh.control_plane.as_ref().context("it runs")?.output();
    let signed = log.matches("signed a certificate").count();
    ensure!(signed == 1, "{signed} certificates were signed\n{log}");
    Ok(())
}

fn a_sidecar_returns_after_an_outage_longer_than_its_certificate() -> Result<()> {
    let mut mesh = Mesh::start(&["--certificate-ttl", "10", "--renewal-grace", "600"])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let token = mesh.token("order-service")?.to_string_lossy().into_owned();
    mesh.weftctl(&["token", "create", "--service-account", "order-service", "--ttl", "1s", "--out", &token])?;
    let away = |mesh: &mut Mesh| -> Result<()> {
        drop(mesh.control_plane.take().context("it runs")?);
        wait_for("the end of the certificate", Duration::from_secs(20), || {
            let answer = order.pod.curl(&["http://127.0.0.1:15021/healthz/ready"])?;
            ensure!(answer.contains("no valid certificate"), "{answer}");
            Ok(())
        })?;
        // The certificate is valid to the end of its last second.
        std::thread::sleep(Duration::from_millis(1100));
        mesh.start_control_plane()
    };
    away(&mut mesh)?;
    wait_for("its return", Duration::from_secs(20), || mesh.wait_healthy(&order.pod.ip))?;
    mesh.wait_ready(&order.pod)?;

    // Past the grace period and without a valid token: status has its name and the reason.
    mesh.control_plane_args = ["--certificate-ttl", "10", "--renewal-grace", "0"].map(str::to_owned).to_vec();
    away(&mut mesh)?;
    wait_for("the refusal", Duration::from_secs(20), || {
        let status = mesh.status();
        let line =
            status.lines().find(|line| line.contains("REFUSED a certificate")).with_context(|| status.clone())?;
        let is_named = line.contains("spiffe://cluster.local/ns/default/sa/order-service");
        ensure!(is_named && line.contains("weftctl token create"), "{line}");
        Ok(())
    })?;
    // With a new token it is back.
    mesh.weftctl(&["token", "create", "--service-account", "order-service", "--out", &token])?;
    mesh.wait_ready(&order.pod)?;
    ensure!(!mesh.status().contains("REFUSED a certificate"), "{}", mesh.status());
    Ok(())
}
