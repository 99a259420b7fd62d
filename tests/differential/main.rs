//! The same cases through Weft and through Envoy: `driver.py` compares the results. An argument selects the
//! cases with that part in their names.

use std::fs::File;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::{Mesh, Pod, Process, binary, python_of, tests_dir, wait_for};

/// Ports of the one pod in which all of it runs. Endpoints listen on those of a range.
const WEFT: &str = "18080";
const ENVOY: &str = "18081";
const ENVOY_ADMIN: &str = "18082";
const CONTROL: &str = "18083";
/// Ports of the gateways for TLS.
const WEFT_TLS: &str = "18084";
const ENVOY_TLS: &str = "18085";
const ENDPOINTS: [&str; 2] = ["7001", "7040"];
/// A port that never accepts a connection.
const STUCK: &str = "7060";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            println!("FAILED: differential: {e:#}\n{}", weft_tests::take_logs());
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    weft_tests::install(&["envoy"])?;
    weft_tests::enter()?;
    let part = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let mut mesh = Mesh::network(&[])?;
    let pod = mesh.pod("client")?;
    let script = |name: &str| tests_dir().join("differential").join(name).to_string_lossy().into_owned();
    let folder = pod.folder("differential");
    std::fs::create_dir(&folder)?;
    let (driver, path) = (script("driver.py"), folder.to_string_lossy().into_owned());
    let policies = mesh.policies.to_string_lossy().into_owned();
    pod.run("python3", &[&driver, "write", &path, &policies, ENVOY, ENVOY_ADMIN, WEFT_TLS, ENVOY_TLS])?;
    mesh.weftctl(&["validate", &policies])?;
    let upstream = script("upstream.py");
    let endpoints = pod.spawn("upstream", "python3", &[&upstream, ENDPOINTS[0], ENDPOINTS[1], STUCK, CONTROL])?;
    let _envoy = envoy(&pod, &folder)?;
    mesh.start_control_plane()?;
    let log = folder.join("weft-access.log");
    let weft_log = log.to_string_lossy().into_owned();
    let proxy = format!("127.0.0.1:{WEFT}");
    let arguments =
        ["--workload", "client", "--http-proxy", &proxy, "--access-log", &weft_log, "--locality", "r1/z1/s1"];
    let _sidecar = mesh.sidecar(&pod, "client", &arguments)?;
    let _gateway = gateway(&mesh, &pod)?;
    wait_for("the endpoints", Duration::from_secs(10), || {
        ensure!(endpoints.output().contains("listening"), "{}", endpoints.output());
        Ok(())
    })?;
    let mut cases = pod.command("python3");
    cases.args([&driver, "run", &path, WEFT, ENVOY, ENVOY_ADMIN, CONTROL, WEFT_TLS, ENVOY_TLS, &weft_log]).args(part);
    Ok(cases.stdin(Stdio::null()).status()?.success())
}

/// A gateway beside the sidecar.
fn gateway(mesh: &Mesh, pod: &Pod) -> Result<Process> {
    let token = mesh.token("gateway")?.to_string_lossy().into_owned();
    let (control, data) = (format!("{}:15012", mesh.center.ip), pod.folder("gateway").to_string_lossy().into_owned());
    let listen = ["--ready-listen", "127.0.0.1:18086", "--metrics-listen", "127.0.0.1:18087", "--admin-listen"];
    let args = ["gateway", "--control-plane", &control, "--token-file", &token, "--data-dir", &data];
    pod.spawn("gateway", binary("weft-sidecar")?, &[&args[..], &listen, &["127.0.0.1:18088"]].concat())
}

/// Envoy from its package, ready.
fn envoy(pod: &Pod, folder: &Path) -> Result<Process> {
    let python = python_of("envoy")?;
    let binary = Path::new(&python).with_file_name("envoy");
    let config = folder.join("envoy.json");
    File::open(&config).context("no configuration for Envoy")?;
    let config = config.to_string_lossy();
    let few = ["--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"];
    let arguments = [&["-c", &config, "--file-flush-interval-msec", "10"], &few[..]].concat();
    let process = pod.spawn("envoy", binary, &arguments)?;
    wait_for("Envoy", Duration::from_secs(20), || {
        let ready = format!("http://127.0.0.1:{ENVOY_ADMIN}/ready");
        pod.curl(&["-f", &ready]).map(drop).map_err(|e| e.context(process.output()))
    })?;
    Ok(process)
}
