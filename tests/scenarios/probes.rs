//! A pod as the injection into Kubernetes' pods makes it: rules before the proxy, a proxy of a user of its own, and the
//! kubelet's probes through it.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use weft_tests::{Mesh, Pod, binary, wait_for};

use crate::Scenario;
use crate::machine::{belongings, user};

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![probes_of_a_pod_pass_its_proxy_under_strict, only_a_program_of_the_pod_stops_the_proxy]
}

const SOON: Duration = Duration::from_secs(15);

/// Status and body of a page of a pod's proxy, asked from another pod.
fn page(from: &Pod, pod: &Pod, path: &str) -> Result<(String, String)> {
    let url = format!("http://{}:15020{path}", pod.ip);
    let answer = from.curl(&["-w", "\n%{http_code}", &url])?;
    let (body, status) = answer.rsplit_once('\n').unwrap_or_default();
    Ok((status.to_owned(), body.to_owned()))
}

fn probes_of_a_pod_pass_its_proxy_under_strict() -> Result<()> {
    let Some(user) = user("1337") else { return Ok(()) };
    let user: Vec<&str> = user.iter().map(String::as_str).collect();
    let mesh = Mesh::start(&[])?;
    mesh.strict()?;
    let (kubelet, pod) = (mesh.pod("kubelet")?, mesh.pod("order1")?);
    let _app = pod.serve(8080, "order1")?;
    let _hidden = pod.spawn("hidden", "python3", &["-m", "http.server", "--bind", "127.0.0.1", "9000"])?;
    let program = binary("weft-sidecar")?.to_string_lossy().into_owned();
    pod.run(&program, &["redirect", "install", "--force", "--own-namespace", "--proxy-uid", "1337"])?;
    let [sidecar, token, data] = belongings(&mesh, "order-service", "1337")?;
    let control = format!("{}:15012", mesh.center.ip);
    let probes = json!({
        "/app-health/app/livez": { "httpGet": { "port": 8080, "path": "/health" } },
        "/app-health/app/readyz": { "tcpSocket": { "port": 8080 } },
        "/app-health/app/startupz": { "tcpSocket": { "port": 9000 } },
        "/app-health/other/livez": { "httpGet": { "port": 8080, "path": "/status/302" } },
        "/app-lifecycle/app/prestopz": { "httpGet": { "port": 8080, "path": "/status/404" } },
    })
    .to_string();
    let metrics = json!({ "port": 8080, "path": "/bytes/3" }).to_string();
    let service = ["--service", "order-service", "--port", "8080"];
    let own = ["--pod-probes", &probes, "--app-metrics", &metrics, "--pod-ip", &pod.ip];
    let run = [&sidecar, "run", "--control-plane", &control, "--token-file", &token, "--data-dir", &data];
    let mut process = pod.spawn("sidecar", "setpriv", &[&user[..], &run, &service, &own].concat())?;
    pod.run(&program, &["wait", "--timeout", "15"])?;
    mesh.wait_healthy(&pod.ip)?;
    let direct = kubelet.curl(&["-f", &format!("http://{}:8080/health", pod.ip)]);
    ensure!(direct.is_err(), "STRICT refuses a kubelet: {direct:?}");
    for (path, status, expected) in [
        ("/app-health/app/livez", "200", "200 OK"),
        ("/app-health/app/readyz", "200", "Success"),
        ("/app-health/app/startupz", "500", "refused"),
        ("/app-health/other/livez", "200", "302"),
        ("/app-health/other/readyz", "404", "not declared"),
        ("/app-health/8080/health", "404", "not declared"),
        ("/app-lifecycle/app/prestopz", "500", "404"),
        ("/stats/prometheus", "200", "# TYPE"),
    ] {
        let (found, body) = page(&kubelet, &pod, path)?;
        ensure!(found == status && body.contains(expected), "{path}: {found} {body}");
    }
    let (_, merged) = page(&kubelet, &pod, "/stats/prometheus")?;
    ensure!(!merged.contains("# EOF") && !merged.contains("no metrics of the application"), "{merged}");
    pod.curl(&["-X", "POST", "http://127.0.0.1:8080/sick"])?;
    let (found, body) = page(&kubelet, &pod, "/app-health/app/livez")?;
    ensure!(found == "500" && body.contains("503"), "{found} {body}");
    process.signal("TERM")?;
    process.wait(SOON).map(drop)
}

fn only_a_program_of_the_pod_stops_the_proxy() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let outside = mesh.pod("outside")?;
    let (pod, mut sidecar) = mesh.client("job1")?;
    let quit = |from: &Pod, at: &str, more: &[&str]| {
        from.curl(&[&["-X", "POST", &*format!("http://{at}:15020/quitquitquit")][..], more].concat())
    };
    for (answer, expected) in [
        (quit(&outside, &pod.ip, &[])?, "programs of this pod only"),
        (pod.curl(&["http://127.0.0.1:15020/quitquitquit"])?, "POST only"),
        (quit(&pod, "127.0.0.1", &["-H", "Origin: http://evil.example"])?, "web pages"),
        (quit(&pod, "127.0.0.1", &["-H", "Host: evil.example"])?, "evil.example"),
    ] {
        ensure!(answer.contains(expected), "{answer}, not {expected}");
    }
    ensure!(sidecar.is_running(), "the sidecar ended");
    let answer = quit(&pod, "127.0.0.1", &[])?;
    ensure!(answer.contains("the sidecar stops"), "{answer}");
    let code = sidecar.wait(SOON)?;
    ensure!(code == 0, "it ended with {code}");
    wait_for("the end of its page", SOON, || {
        ensure!(pod.curl(&["-f", "http://127.0.0.1:15021/healthz/ready"]).is_err(), "it still answers");
        Ok(())
    })
}
