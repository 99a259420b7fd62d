//! `weftctl` against a control plane.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use weft_tests::{Mesh, binary, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        weftctl_names_and_shows_objects_as_kubectl_does,
        an_object_that_another_needs_is_not_deleted_or_replaced_without_force,
        an_emptied_policy_file_fails_no_request,
    ]
}

const TWO: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: order}
spec: {host: order}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order, namespace: shop}
spec: {hosts: [order], http: [{route: [{destination: {host: order}}]}]}
";

const RULE: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: order}
spec: {host: order, subsets: [{name: x, labels: {}}]}
";

const ROUTE: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order}
spec: {hosts: [order], http: [{route: [{destination: {host: order, subset: x}}]}]}
";

fn an_object_that_another_needs_is_not_deleted_or_replaced_without_force() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let folder = mesh.data_dir();
    let file = |name: &str, text: &str| -> Result<String> {
        let path = folder.with_file_name(name);
        std::fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let (rule, route) = (file("rule.yaml", RULE)?, file("route.yaml", ROUTE)?);
    let less = file("less.yaml", &RULE.replace("name: x", "name: y"))?;
    let both = file("both.yaml", &format!("{ROUTE}---\n{RULE}"))?;
    mesh.weftctl(&["apply", "-f", &rule, "-f", &route])?;
    let refused = |args: &[&str]| match mesh.weftctl(args) {
        Ok(text) => anyhow::bail!("{args:?} was done: {text}"),
        Err(e) => Ok(e.to_string()),
    };
    let need = "VirtualService/default/order needs its subset `x` (http[0].route[0].destination.subset)";
    for args in [&["delete", "dr", "order"][..], &["apply", "-f", &less]] {
        let text = refused(args)?;
        ensure!(text.contains(need) && text.contains("--force"), "{text}");
    }
    ensure!(mesh.weftctl(&["get", "dr/order", "-o", "yaml"])?.contains("name: x"), "nothing was changed");
    // Documents in one file may depend on each other, in any order.
    mesh.weftctl(&["delete", "-f", &both])?;
    mesh.weftctl(&["apply", "-f", &both])?;
    mesh.weftctl(&["delete", "dr/order", "vs/order"])?;

    mesh.weftctl(&["apply", "-f", &both])?;
    let text = mesh.weftctl(&["apply", "-f", &less, "--force"])?;
    ensure!(text.contains("configured") && text.contains(need), "{text}");
    mesh.weftctl(&["apply", "-f", &rule])?;
    let text = mesh.weftctl(&["delete", "dr", "order", "--force"])?;
    ensure!(text.contains("deleted") && text.contains(need), "{text}");

    // A route of the API keeps a rule whose file is removed.
    mesh.policy("rule.yaml", RULE)?;
    let source = || mesh.weftctl(&["get", "dr", "order"]);
    wait_for("the file", Duration::from_secs(10), || {
        ensure!(source()?.contains("rule.yaml"));
        Ok(())
    })?;
    std::fs::remove_file(mesh.policies.join("rule.yaml"))?;
    wait_for("the reason", Duration::from_secs(10), || {
        let (status, source) = (mesh.status(), source()?);
        ensure!(status.contains(need) && status.contains("the file was removed"), "{status}");
        ensure!(source.contains("(emptied or removed)"), "{source}");
        Ok(())
    })?;
    mesh.weftctl(&["delete", "vs", "order"])?;
    wait_for("its end", Duration::from_secs(15), || {
        ensure!(source().is_err() && !mesh.status().contains("is kept"), "{}", mesh.status());
        Ok(())
    })
}

fn an_emptied_policy_file_fails_no_request() -> Result<()> {
    let mesh = Mesh::start(&["--policy-grace", "10"])?;
    let (front, _sidecar) = mesh.client("front")?;
    let _order = mesh.instance("order1", "order", 8080, &[])?;
    mesh.policy("rule.yaml", RULE)?;
    mesh.policy("route.yaml", ROUTE)?;
    let ask = || front.curl(&["-s", "-o", "/dev/null", "-w", "%{http_code}", "http://order:8080/"]);
    wait_for("the policies", Duration::from_secs(10), || {
        let names = mesh.weftctl(&["get", "-o", "name"])?;
        ensure!(names == "VirtualService/default/order\nDestinationRule/default/order\n", "{names}");
        ensure!(ask()? == "200" && !mesh.status().contains("subset `x`"), "{}", mesh.status());
        Ok(())
    })?;
    let rule = mesh.policies.join("rule.yaml");
    for remove in [false, true] {
        if remove {
            std::fs::remove_file(&rule)?;
        } else {
            std::fs::write(&rule, "")?;
        }
        wait_for("the control plane to see it", Duration::from_secs(5), || {
            let status = mesh.status();
            ensure!(status.contains("DestinationRule/default/order is kept for 10 s"), "{status}");
            ensure!(ask()? == "200");
            Ok(())
        })?;
        for _ in 0..20 {
            ensure!(ask()? == "200");
        }
        std::fs::write(&rule, RULE)?;
        wait_for("its return", Duration::from_secs(5), || {
            ensure!(ask()? == "200");
            ensure!(!mesh.status().contains("is kept"), "{}", mesh.status());
            Ok(())
        })?;
    }
    Ok(())
}

fn weftctl_names_and_shows_objects_as_kubectl_does() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let file = mesh.data_dir().with_file_name("two.yaml");
    std::fs::write(&file, TWO)?;
    let file = file.to_string_lossy().into_owned();
    let names = || mesh.weftctl(&["get", "-o", "name"]);
    mesh.weftctl(&["apply", "-f", &file])?;
    ensure!(names()? == "DestinationRule/default/order\nVirtualService/shop/order\n", "{}", names()?);
    ensure!(mesh.weftctl(&["get", "vs,gw", "-A", "-o", "name"])? == "VirtualService/shop/order\n");
    let wide = mesh.weftctl(&["get", "virtualservices", "order", "-o", "wide"])?;
    ensure!(wide.starts_with("KIND") && wide.contains("HOSTS") && !wide.contains('\x1b'), "{wide}");
    let json: Value = serde_json::from_str(&mesh.weftctl(&["get", "dr/order", "-o", "json"])?)?;
    ensure!(json["spec"]["host"] == "order", "{json}");
    ensure!(mesh.weftctl(&["get", "dr/order", "-o", "yaml"])?.contains("kind: DestinationRule"));
    let missing = mesh.weftctl(&["get", "dr", "gone"]).unwrap_or_else(|e| e.to_string());
    ensure!(missing.contains("there is no DestinationRule \"gone\""), "{missing}");

    mesh.weftctl(&["delete", "-f", &file])?;
    ensure!(names()?.is_empty(), "{}", names()?);
    ensure!(mesh.weftctl(&["delete", "-f", &file]).is_err(), "deleting a missing object is an error");
    mesh.weftctl(&["delete", "-f", &file, "--ignore-not-found"])?;
    mesh.weftctl(&["apply", "-f", &file])?;
    mesh.weftctl(&["delete", "dr", "order"])?;
    mesh.weftctl(&["delete", "vs/shop/order"])?;
    ensure!(names()?.is_empty(), "{}", names()?);

    let _instance = mesh.instance("order1", "order", 8080, &[])?;
    let status: Value = serde_json::from_str(&mesh.weftctl(&["status", "-o", "json"])?)?;
    let instance = &status["services"][0]["instances"][0];
    ensure!(instance["health"] == "healthy" && status["healthy"] == true, "{status}");
    ensure!(!mesh.status().contains('\x1b'), "colours are for terminals");
    let of = |args: &[&str]| mesh.weftctl(&[&["status", "-o", "wide"], args].concat());
    let (service, sidecar) = (of(&["--service", "ord*"])?, of(&["--sidecar", "*order*"])?);
    ensure!(service.contains("service order.default") && !service.contains("sidecar "), "{service}");
    ensure!(!sidecar.contains("service order.default") && sidecar.contains("0 services, "), "{sidecar}");
    ensure!(!of(&["--service", "cart"])?.contains("order.default"));
    ensure!(!of(&["--offset", "1"])?.contains("service order.default"));
    let terminal = mesh.center.command("script").args(["-qec", &on_a_terminal(&mesh)?, "/dev/null"]).output()?;
    let shown = String::from_utf8_lossy(&terminal.stdout).into_owned();
    ensure!(shown.contains("\x1b[32mhealthy"), "{shown}");
    ensure!(mesh.weftctl(&["--version"])?.starts_with("weftctl "));
    for shell in ["bash", "zsh", "fish"] {
        let script = mesh.weftctl(&["completion", shell])?;
        ensure!(script.contains("weftctl") && script.contains("ignore-not-found"), "{shell}");
    }
    Ok(())
}

fn on_a_terminal(mesh: &Mesh) -> Result<String> {
    let socket = mesh.data_dir().join("admin.sock");
    Ok(format!("env -u NO_COLOR TERM=xterm {} status --socket {}", binary("weftctl")?.display(), socket.display()))
}
