//! `make demo`: a small shop on this machine. Three order services and a frontend, a sidecar each, one control plane.
//!
//! With `CHECK=1` it verifies each claim and ends; without, it shows traffic until it is interrupted.

mod client;
mod live;
mod report;
mod steps;
mod wire;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_tests::{Instance, Mesh, Pod, Process, wait_for};

use report::Report;

/// All processes of the demo.
pub(crate) struct Shop {
    mesh: Mesh,
    orders: Vec<Instance>,
    front: Pod,
    _front_sidecar: Process,
    report: Report,
}

/// The instances, and the `version` label of each.
pub(crate) const ORDERS: [(&str, &str); 3] = [("order-1", "v1"), ("order-2", "v1"), ("order-3", "v2")];

/// The subset that an instance is in.
pub(crate) fn version(instance: &str) -> &'static str {
    ORDERS.iter().find(|(name, _)| *name == instance).map_or("?", |(_, version)| version)
}

/// One of the shipped policy files.
pub(crate) fn shipped(file: &str) -> Result<String> {
    let path = weft_tests::tests_dir().join("../deploy/demo").join(file);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            println!("FAILED: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    weft_tests::enter()?;
    weft_tests::name_server("10.0.0.53")?;
    let check = std::env::var_os("CHECK").is_some_and(|v| !v.is_empty() && v != "0");
    let start = Instant::now();
    let mut shop = Shop::open()?;
    steps::all(&mut shop)?;
    let passed = shop.report.end();
    if check {
        println!("{:.0} s", start.elapsed().as_secs_f64());
        return Ok(passed);
    }
    live::run(&shop)?;
    Ok(passed)
}

impl Shop {
    fn open() -> Result<Shop> {
        let mut report = Report::new();
        report.step("A control plane, three order services, a frontend");
        let mesh = Mesh::start(&[])?;
        end_with(mesh.policies.parent().context("no folder")?)?;
        for file in ["destination-rule.yaml", "virtual-service.yaml"] {
            mesh.policy(file, &shipped(file)?)?;
        }
        let mut orders = Vec::new();
        for (name, version) in ORDERS {
            let label = format!("version={version}");
            orders.push(mesh.instance(name, "order-service", 8080, &["--label", &label])?);
        }
        let (front, sidecar) = mesh.client("frontend")?;
        let mut rows = vec![["pod", "address", "runs"].map(str::to_owned).to_vec()];
        let control = format!("weft-control-plane --policies {}", mesh.policies.display());
        rows.push(vec!["center".into(), mesh.center.ip.clone(), control]);
        for order in &orders {
            let runs = format!("python3 server.py 8080, weft-sidecar --label version={}", version(&order.pod.name));
            rows.push(vec![order.pod.name.clone(), order.pod.ip.clone(), runs]);
        }
        rows.push(vec![front.name.clone(), front.ip.clone(), "curl, weft-sidecar".into()]);
        report.table(&rows);
        let request = client::Request { path: "/", user: "alice", canary: false };
        wait_for("the first answer", Duration::from_secs(10), || {
            let answers = client::repeat(&front, request, 1)?;
            ensure!(answers.iter().all(|a| a.status == 200), "no answer yet");
            Ok(())
        })?;
        report.claim(true, "the frontend's `curl http://order-service:8080/` finds the service by its name");
        Ok(Shop { mesh, orders, front, _front_sidecar: sidecar, report })
    }
}

/// Removes this folder and ends when interrupted; the processes of the pods end with this one.
fn end_with(folder: &Path) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let folder = folder.to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        println!("\nstopping");
        // The processes may still be writing there; then a few files stay in the temporary folder.
        let _ = std::fs::remove_dir_all(&folder);
        std::process::exit(130);
    });
    Ok(())
}
