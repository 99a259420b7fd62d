//! Drain of a sidecar whose application is still running.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weft_tests::{Mesh, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![a_sidecar_outlasts_the_application_that_is_stopped_with_it,]
}

const SOON: Duration = Duration::from_secs(10);

/// Looks `order-service` up and calls it once a second for four seconds after SIGTERM, each time by a new connection that it
/// leaves open meanwhile.
const APPLICATION: &str = "
import http.client, signal, threading, time
terminated = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: terminated.set())
print('up', flush=True)
terminated.wait()
until = time.time() + 4
while time.time() < until:
    try:
        connection = http.client.HTTPConnection('order-service', 80, timeout=5)
        connection.request('GET', '/')
        print('answer', connection.getresponse().status, flush=True)
    except Exception as e:
        print('answer', repr(e), flush=True)
    time.sleep(1)
";

const MESH: &str = "
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata: {name: installation, namespace: istio-system}
spec: {meshConfig: {defaultConfig: {terminationDrainDuration: 1s}}}
";

fn a_sidecar_outlasts_the_application_that_is_stopped_with_it() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("mesh.yaml", MESH)?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let pod = mesh.pod("job")?;
    let mut sidecar = mesh.sidecar_with_redirection(&pod, "job", &["--workload", "job", "--drain-min", "2"])?;
    let mut application = pod.spawn("job", "python3", &["-c", APPLICATION])?;
    wait_for("the application", SOON, || {
        ensure!(application.output().contains("up"));
        Ok(())
    })?;
    let begun = Instant::now();
    sidecar.signal("TERM")?;
    application.signal("TERM")?;
    application.wait(SOON)?;
    let ended = begun.elapsed();
    let answers: Vec<String> =
        application.output().lines().filter(|l| l.starts_with("answer")).map(str::to_owned).collect();
    ensure!(
        answers.len() >= 3 && answers.iter().all(|answer| answer == "answer 200"),
        "{answers:?}\n{}",
        sidecar.output()
    );
    ensure!(sidecar.wait(SOON)? == 0, "{}", sidecar.output());
    let after = begun.elapsed() - ended;
    ensure!(after < Duration::from_secs(3), "{after:?} after the application\n{}", sidecar.output());

    // Without an option the mesh's setting applies.
    let pod = mesh.pod("idle")?;
    let mut args = mesh.sidecar_args(&pod, "idle", &["--workload", "idle", "--drain-min"])?;
    args.pop();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut sidecar = pod.spawn("sidecar", weft_tests::binary("weft-sidecar")?, &args)?;
    mesh.wait_ready(&pod)?;
    let begun = Instant::now();
    sidecar.signal("TERM")?;
    ensure!(sidecar.wait(SOON)? == 0, "{}", sidecar.output());
    let log = sidecar.output();
    ensure!(log.contains("at_least_s=1 "), "{log}");
    ensure!(begun.elapsed() >= Duration::from_secs(1), "{:?}\n{log}", begun.elapsed());
    Ok(())
}
