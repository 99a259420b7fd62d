//! Consul's clients, unmodified, each with the sidecar of its pod as its agent: all find the services of all.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::{Mesh, Pod, Process, node_modules, python_of, tests_dir, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![consul_clients_use_the_agent_and_find_each_other, traefik_routes_by_the_catalog,]
}

fn script(name: &str) -> String {
    tests_dir().join("clients").join(name).to_string_lossy().into_owned()
}

/// The command of a client, by name.
fn command(client: &str) -> Result<Vec<String>> {
    Ok(match client {
        "py-consul" => vec![python_of("py-consul")?, script("py_consul.py")],
        "consulate" => vec![python_of("consulate")?, script("consulate_client.py")],
        _ => {
            let modules = format!("NODE_PATH={}", node_modules("consul")?.display());
            vec!["env".into(), modules, "node".into(), script("npm_consul.js")]
        }
    })
}

struct Running {
    client: &'static str,
    pod: Pod,
    process: Process,
    input: std::process::ChildStdin,
    _held: (Process, Process),
}

fn start(mesh: &Mesh, client: &'static str) -> Result<Running> {
    let pod = mesh.pod(client)?;
    let app = pod.serve(8080, client)?;
    let sidecar = mesh.sidecar_with_redirection(&pod, client, &[])?;
    let command = command(client)?;
    let (program, args) = command.split_first().context("no command")?;
    let args: Vec<&str> = args.iter().map(String::as_str).chain([client, &pod.ip]).collect();
    let (process, input) = pod.spawn_with_input(client, program, &args)?;
    Ok(Running { client, pod, process, input, _held: (app, sidecar) })
}

fn consul_clients_use_the_agent_and_find_each_other() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let mut running = Vec::new();
    for client in ["py-consul", "consulate", "npm-consul"] {
        running.push(start(&mesh, client)?);
    }
    for one in &mut running {
        wait_for(one.client, Duration::from_secs(60), || {
            let output = one.process.output();
            ensure!(output.contains("registered") || !one.process.is_running(), "not yet: {output}");
            Ok(())
        })?;
        ensure!(one.process.output().contains("registered"), "{}: {}", one.client, one.process.output());
    }
    // Each pod finds all three: by Consul's API, by DNS, and by a call.
    for from in &running {
        for to in &running {
            let url = format!("http://127.0.0.1:8500/v1/health/service/{}?passing", to.client);
            let found: Value = serde_json::from_str(&from.pod.curl(&["-f", &url])?)?;
            ensure!(
                found[0]["Service"]["Address"] == to.pod.ip.as_str(),
                "{} from {}: {found}",
                to.client,
                from.client
            );
            let name = format!("{}.service.consul", to.client);
            let address = from.pod.run("dig", &["+short", "@127.0.0.1", "-p", "8600", &name])?;
            ensure!(address.trim() == to.pod.ip, "{name}: {address}");
            let answer = from.pod.curl(&["-f", &format!("http://{}:8080/", to.pod.ip)])?;
            ensure!(answer.contains(&format!("sa/{}", from.client)), "no mesh TLS to {}: {answer}", to.client);
        }
    }
    for Running { client, mut process, input, .. } in running {
        drop(input);
        let code = process.wait(Duration::from_secs(30))?;
        ensure!(code == 0, "{client}: {}", process.output());
    }
    Ok(())
}

/// Traefik in a pod of the mesh, once polling and once watching the catalog: routes come and go with registrations and
/// health, and its calls are mutual TLS by its sidecar.
fn traefik_routes_by_the_catalog() -> Result<()> {
    let binary = std::path::Path::new(&python_of("traefik")?).with_file_name("traefik").to_string_lossy().into_owned();
    let mesh = Mesh::start(&[])?;
    let mut orders = Vec::new();
    for name in ["order1", "order2"] {
        let pod = mesh.pod(name)?;
        let app = pod.serve(8080, name)?;
        let sidecar = mesh.sidecar_with_redirection(&pod, "order", &[])?;
        let body = r#"{"Name":"order","ID":"o","Port":8080,"Tags":["traefik.enable=true","traefik.http.routers.order.rule=Host(`shop`)"],"Check":{"HTTP":"http://localhost:8080/health","Interval":"1s"}}"#;
        pod.curl(&["-f", "-X", "PUT", "-d", body, "http://127.0.0.1:8500/v1/agent/service/register"])?;
        orders.push((pod, app, sidecar));
    }
    for watch in ["false", "true"] {
        let edge = mesh.pod(&format!("edge-{watch}"))?;
        let _sidecar = mesh.sidecar_with_redirection(&edge, "edge", &[])?;
        let watch = format!("--providers.consulcatalog.watch={watch}");
        let args = [
            "--entrypoints.web.address=:8000",
            "--providers.consulcatalog.exposedbydefault=false",
            "--providers.consulcatalog.refreshinterval=1s",
            "--providers.consulcatalog.endpoint.address=127.0.0.1:8500",
            &watch,
        ];
        let process = edge.spawn("traefik", &binary, &args)?;
        let served = |count: usize| {
            let answers: Result<Vec<String>> =
                (0..count).map(|_| edge.curl(&["-f", "-H", "Host: shop", "http://127.0.0.1:8000/"])).collect();
            answers
        };
        let by = |wanted: &[bool; 2]| {
            wait_for("traefik's routes", Duration::from_secs(30), || {
                let answers = served(8)?;
                let seen = ["order1", "order2"].map(|name| answers.iter().any(|answer| answer.contains(name)));
                ensure!(seen == *wanted, "{seen:?}, not {wanted:?}");
                ensure!(answers.iter().all(|answer| answer.contains("sa/edge")), "no mesh TLS: {}", answers[0]);
                Ok(())
            })
            .map_err(|e| e.context(process.output()))
        };
        by(&[true, true])?;
        orders[1].0.curl(&["-X", "POST", "http://127.0.0.1:8080/sick"])?;
        by(&[true, false])?;
        orders[1].0.curl(&["-X", "POST", "http://127.0.0.1:8080/well"])?;
        by(&[true, true])?;
    }
    Ok(())
}
