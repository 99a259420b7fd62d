//! `weftctl` against a control plane.

use anyhow::{Result, ensure};
use serde_json::Value;
use weft_tests::{Mesh, binary};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    vec![("weftctl_names_and_shows_objects_as_kubectl_does", objects)]
}

const TWO: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: order}\nspec: {host: order}\n---\n\
                   apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: order, namespace: shop}\n\
                   spec: {hosts: [order], http: [{route: [{destination: {host: order}}]}]}\n";

fn objects() -> Result<()> {
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
