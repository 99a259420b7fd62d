//! The machine around a sidecar: network namespaces, users, capabilities, and other users of the machine.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_tests::{Mesh, Pod, Process, binary, tests_dir, wait_for};

use crate::Scenario;
use crate::operations::SOON;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        a_shared_host_is_captured_by_its_options_and_ssh_works,
        a_proxy_without_marks_and_a_user_of_its_own,
        systemd_resolved_is_detected_and_the_printed_fix_works,
    ]
}

/// A user other than root; `None` where there is none (a user namespace with one user).
pub(crate) fn user(id: &str) -> Option<[String; 5]> {
    let become_user = ["--reuid", id, "--regid", id, "--clear-groups"].map(String::from);
    let arguments: Vec<&str> = become_user.iter().map(String::as_str).chain(["true"]).collect();
    let there = weft_tests::run("setpriv", &arguments).is_ok();
    if !there {
        println!("there is no user {id} here: run as root to see this");
    }
    there.then_some(become_user)
}

/// The program, a token and a data folder for a sidecar, readable for user `id`.
pub(crate) fn belongings(mesh: &Mesh, account: &str, id: &str) -> Result<[String; 3]> {
    let folder = format!("/run/user-{account}-{id}");
    let paths = ["weft-sidecar", "token", "data"].map(|name| format!("{folder}/{name}"));
    std::fs::create_dir_all(&paths[2])?;
    std::fs::copy(binary("weft-sidecar")?, &paths[0])?;
    std::fs::copy(mesh.token(account)?, &paths[1])?;
    weft_tests::run("chown", &["-R", &format!("{id}:{id}"), &folder])?;
    weft_tests::run("chmod", &["755", "/run", &folder])?;
    Ok(paths)
}

/// One TCP connection from `from` to a listener on port 22 of `host` that answers every line.
fn ssh(from: &Pod, host: &str) -> Result<Process> {
    let script = format!(
        "import socket, time\ns = socket.create_connection(('{host}', 22), 5)\nf = s.makefile('rw')\nn = 0\nwhile True:\n \
         n += 1\n f.write(f'{{n}}\\n'); f.flush()\n assert f.readline() == f'{{n}}\\n'\n print(n, flush=True)\n time.sleep(0.05)"
    );
    let session = from.spawn("ssh", "python3", &["-c", &script])?;
    goes_on(&session)?;
    Ok(session)
}

/// Waits for new output of a session.
fn goes_on(session: &Process) -> Result<()> {
    let before = session.output().lines().count();
    wait_for("the session", SOON, || {
        let log = session.output();
        ensure!(!log.contains("Traceback"), "the session broke: {log}");
        ensure!(log.lines().count() > before + 2, "{log}");
        Ok(())
    })
}

fn a_shared_host_is_captured_by_its_options_and_ssh_works() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let (front, _front_sidecar) = mesh.client("frontend")?;
    // The host: an application in the mesh, one outside it, and the administrator's ssh.
    let host = mesh.pod("host")?;
    let admin = mesh.pod("admin")?;
    let echo = "import socketserver\nclass H(socketserver.StreamRequestHandler):\n def handle(self):\n  for l in self.rfile: \
                self.wfile.write(l)\nsocketserver.ThreadingTCPServer.allow_reuse_address = True\n\
                socketserver.ThreadingTCPServer(('', 22), H).serve_forever()";
    let _sshd = host.spawn("sshd", "python3", &["-c", echo])?;
    let _app = host.serve(8080, "app")?;
    let _other = host.serve(9090, "other")?;
    let session = wait_for("port 22", SOON, || ssh(&admin, &host.ip))?;
    let _sidecar = mesh.sidecar(&host, "billing", &["--service", "billing", "--port", "8080"])?;

    let redirect =
        |args: &[&str]| host.run(&binary("weft-sidecar")?.to_string_lossy(), &[&["redirect"], args].concat());
    for (options, words) in [
        (&[][..], "--inbound-ports is required"),
        (&["--inbound-ports", "8080"], "--uid or --cgroup of the application is required"),
        (&["--inbound-ports", "8080,22", "--uid", "1000"], "port 22 is never taken"),
    ] {
        let refused = redirect(&[&["install", "--shared-host"], options].concat());
        let refused = refused.err().with_context(|| format!("{options:?} is allowed"))?.to_string();
        ensure!(refused.contains(words), "{options:?}: {refused}");
    }
    ensure!(host.run("nft", &["list", "tables"])?.is_empty(), "a refusal changes nothing");
    // The widest range that is accepted.
    redirect(&["install", "--shared-host", "--inbound-ports", "1-9000", "--uid", "1000"])?;
    goes_on(&session)?;
    goes_on(&ssh(&admin, &host.ip)?)?;
    // Inbound: the given port is captured, others are not.
    mesh.wait_healthy(&host.ip)?;
    wait_for("the caller to know the address", SOON, || {
        let call = front.curl(&["-f", &format!("http://{}:8080/", host.ip)])?;
        ensure!(call.contains("sa/frontend"), "{call}");
        Ok(())
    })?;
    let other = admin.curl(&["-f", &format!("http://{}:9090/", host.ip)])?;
    ensure!(!other.to_lowercase().contains("x-request-id"), "no proxy has seen it: {other}");
    let captured = admin.curl(&["-f", &format!("http://{}:8080/", host.ip)])?;
    ensure!(captured.to_lowercase().contains("x-request-id"), "the proxy has seen it: {captured}");
    // Outbound: the application's user is in the mesh, others are not.
    let url = format!("http://{}:8080/", order.pod.ip);
    let root = host.curl(&["-f", &url])?;
    ensure!(!root.contains("spiffe://"), "another user's call was captured: {root}");
    if let Some(user) = user("1000") {
        let user: Vec<&str> = user.iter().map(String::as_str).collect();
        wait_for("the application to be in the mesh", SOON, || {
            let call = host.run("setpriv", &[&user[..], &["curl", "-sS", "-f", "-m", "10", &url]].concat())?;
            ensure!(call.contains("sa/billing"), "{call}");
            Ok(())
        })?;
        // Its ssh is its own.
        let script = format!("exec 3<>/dev/tcp/{}/22", host.ip);
        host.run("setpriv", &[&user[..], &["bash", "-c", &script]].concat())?;
    }
    redirect(&["remove"])?;
    goes_on(&session)?;
    goes_on(&ssh(&admin, &host.ip)?)?;
    ensure!(host.run("nft", &["list", "tables"])?.is_empty());
    let plain = admin.curl(&["-f", &format!("http://{}:8080/", host.ip)])?;
    ensure!(!plain.to_lowercase().contains("x-request-id"), "{plain}");
    Ok(())
}

fn a_proxy_without_marks_and_a_user_of_its_own() -> Result<()> {
    let Some(user) = user("1337") else { return Ok(()) };
    let mesh = Mesh::start(&[])?;
    mesh.strict()?;
    let pod = mesh.pod("order1")?;
    let _app = pod.serve(8080, "order1")?;
    let [sidecar, token, data] = belongings(&mesh, "order-service", "1337")?;
    let control = format!("{}:15012", mesh.center.ip);
    let run = [&sidecar, "run", "--control-plane", &control, "--token-file", &token, "--data-dir", &data];
    let service =
        ["--service", "order-service", "--port", "8080", "--health-path", "/health", "--health-interval", "1"];
    let user: Vec<&str> = user.iter().map(String::as_str).collect();
    let process = pod.spawn("sidecar", "setpriv", &[&user[..], &run, &service].concat())?;
    wait_for("the sidecar", SOON, || {
        let ready = pod.curl(&["-f", "http://127.0.0.1:15021/healthz/ready"]);
        ready.map_err(|e| e.context(process.output()))
    })?;
    ensure!(process.output().contains("sockets cannot be marked"), "{}", process.output());
    let install =
        |args: &[&str]| pod.run(&binary("weft-sidecar")?.to_string_lossy(), &[&["redirect", "install"], args].concat());
    let refused = install(&[]).err().context("installed without marks")?.to_string();
    ensure!(refused.contains("may not mark its sockets") && refused.contains("--proxy-uid"), "{refused}");
    install(&["--proxy-uid", "1337"])?;
    mesh.wait_healthy(&pod.ip)?;
    // Inbound, outbound and calls to itself, by every address.
    let (front, _front_sidecar) = mesh.client("frontend")?;
    let own = format!("http://{}:8080/", pod.ip);
    let vip = format!("http://{}/", mesh.vip("order-service")?);
    wait_for("calls by address", SOON, || {
        let answer = front.curl(&["-f", &own])?;
        ensure!(answer.contains("sa/frontend"), "{answer}");
        let answer = pod.curl(&["-f", &own])?;
        ensure!(answer.contains("sa/order-service"), "a call to oneself is mTLS like any other: {answer}");
        Ok(())
    })?;
    let answer = pod.curl(&["-f", "-H", "Host: order-service", &vip])?;
    ensure!(answer.contains("sa/order-service"), "{answer}");
    // An application that listens on the pod's address alone is reached too, without a redirection loop.
    let server = tests_dir().join("apps/server.py").to_string_lossy().into_owned();
    let _second = pod.spawn("second", "python3", &[&server, "8081", "second", &pod.ip])?;
    let register = json!({"name": "order-service", "id": "second", "port": 8081}).to_string();
    pod.curl(&["-f", "-X", "PUT", "--data-binary", &register, "http://127.0.0.1:8500/v1/agent/service/register"])?;
    let second = format!("http://{}:8081/", pod.ip);
    wait_for("the second application", SOON, || {
        let answer = front.curl(&["-f", &second])?;
        ensure!(answer.contains("second") && answer.contains("sa/frontend"), "{answer}");
        let answer = pod.curl(&["-f", &second])?;
        ensure!(answer.contains("second") && answer.contains("sa/order-service"), "{answer}");
        Ok(())
    })
}

fn systemd_resolved_is_detected_and_the_printed_fix_works() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let pod = mesh.pod("desktop")?;
    let _sidecar = mesh.sidecar(&pod, "desktop", &["--workload", "desktop"])?;
    pod.resolv_conf("nameserver 127.0.0.53\n")?;
    let nsswitch = pod.etc("nsswitch.conf", "hosts: files resolve [!UNAVAIL=return] dns\n")?;
    // The resolver's message is in the log.
    let install = |name: &str| -> Result<String> {
        let mut process = pod.spawn(name, binary("weft-sidecar")?, &["redirect", "install"])?;
        let code = process.wait(SOON)?;
        ensure!(code == 0, "{code}: {}", process.output());
        Ok(process.output())
    };
    let log = install("install")?;
    ensure!(log.contains("systemd-resolved's is 127.0.0.53"), "{log}");
    let (_, fix) = log.split_once("Fix: ").with_context(|| format!("no fix: {log}"))?;
    let fix = fix.lines().next().unwrap_or_default();
    ensure!(fix.ends_with(" /etc/nsswitch.conf"), "{fix}");
    // The pod's file is a bind mount, so the original is changed.
    weft_tests::run("sh", &["-c", &fix.replace("/etc/nsswitch.conf", &nsswitch.to_string_lossy())])?;
    let log = install("install-again")?;
    ensure!(!log.contains("Fix:"), "{log}");
    let found = pod.run("getent", &["ahostsv4", "order-service"])?;
    ensure!(found.starts_with("240.240."), "{found}");
    Ok(())
}
