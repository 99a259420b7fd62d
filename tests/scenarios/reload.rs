//! Reload: SIGHUP puts a successor in the place of a sidecar, while connections are open.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Mesh, Pod, Process, binary, python_of, statuses, tests_dir, wait_for};

use crate::Scenario;
use crate::gateway;
use crate::operations::put;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        a_reload_fails_no_request_while_a_response_is_open,
        open_streams_stay_with_the_predecessor_after_a_reload,
        a_reload_of_a_gateway_fails_no_request,
        a_reload_moves_the_main_process_under_systemd,
    ]
}

const SOON: Duration = Duration::from_secs(10);

/// Sends SIGHUP and waits until a successor, the `nth` one, has taken over.
fn reload(sidecar: &Process, nth: usize) -> Result<()> {
    sidecar.signal("HUP")?;
    wait_for("the successor", SOON, || {
        let log = sidecar.output();
        ensure!(log.matches("took over from the predecessor").count() == nth, "{log}");
        Ok(())
    })
}

/// The process that listens on the admin port, by the kernel's list of sockets.
fn serving(pod: &Pod) -> Result<String> {
    let found = pod.run("sh", &["-c", "ss -Hltnp sport = :15000 | grep -o 'pid=[0-9]*' | sort -u | tr '\\n' ' '"])?;
    Ok(found.replace("pid=", "").trim().to_owned())
}

fn a_reload_fails_no_request_while_a_response_is_open() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let pod = mesh.pod("order1")?;
    let _apps = (pod.serve(8080, "order1")?, pod.serve(8081, "order2")?);
    let mut order =
        mesh.sidecar_with_redirection(&pod, "order-service", &["--service", "order-service", "--port", "8080"])?;
    let (front, mut client) = mesh.client("frontend")?;
    mesh.wait_healthy(&pod.ip)?;
    let ttl = json!({"name": "order-service", "id": "by-ttl", "port": 8081, "check": {"ttl": "60s"}});
    ensure!(put(&pod, "service/register", &ttl)? == "200");
    ensure!(put(&pod, "check/pass/service:by-ttl", &Value::Null)? == "200");

    // By name, so that each new connection includes a look-up.
    let url = |path: &str| format!("http://order-service{path}");
    let load = |keep_alive: bool| {
        front.requests_meanwhile(&json!({
            "url": url("/sleep/5"), "seconds": 8, "concurrency": 3, "method": "POST", "body": "not idempotent",
            "keep_alive": keep_alive,
        }))
    };
    let long = front.requests_meanwhile(&json!({ "url": url("/drip/10"), "timeout": 30 }))?;
    let (reused, always_new) = (load(true)?, load(false)?);
    std::thread::sleep(Duration::from_secs(1));
    reload(&order, 1)?;
    // The instance was neither removed nor taken over, and only one process writes its state.
    let status = mesh.status();
    ensure!(status.lines().any(|l| l.contains(" by-ttl on ") && l.contains(" healthy ")), "{status}");
    ensure!(put(&pod, "check/fail/service:by-ttl", &Value::Null)? == "200");
    reload(&client, 1)?;
    reload(&client, 2)?;
    for (connections, load) in [("reused", reused), ("always new", always_new)] {
        let results = load.results()?;
        let failed: Vec<_> = results.iter().filter(|r| r["status"] != 200).take(3).collect();
        ensure!(failed.is_empty() && results.len() > 100, "{connections}: {:?} {failed:?}", statuses(&results));
        let slowest = results.iter().filter_map(|r| r["ms"].as_f64()).fold(0.0, f64::max);
        ensure!(slowest < 1500.0, "{connections}: one request took {slowest} ms");
    }
    let results = long.results()?;
    ensure!(results[0]["status"] == 200 && results[0]["body"] == "xxxxxxxxxx", "{results:?}");
    let status = mesh.status();
    ensure!(status.lines().any(|l| l.contains(" by-ttl on ") && l.contains(" unhealthy")), "{status}");
    let log = mesh.control_plane.as_ref().context("it runs")?.output();
    ensure!(!log.contains("refused:") && !log.contains("is in use by"), "{log}");

    // The supervisor's process represents the successors.
    wait_for("the end of predecessors", SOON, || {
        let at = serving(&front)?;
        ensure!(!at.is_empty() && !at.contains(' ') && at != client.id().to_string(), "{at} and {}", client.id());
        ensure!(client.is_running(), "{}", client.output());
        Ok(())
    })?;
    client.signal("TERM")?;
    ensure!(client.wait(Duration::from_secs(20))? == 0, "{}", client.output());
    ensure!(serving(&front)?.is_empty(), "{}", client.output());
    // It is killed: its successors end too.
    order.signal("KILL")?;
    order.wait(SOON)?;
    wait_for("the end of the successor", SOON, || {
        let at = serving(&pod)?;
        ensure!(at.is_empty(), "{at}");
        Ok(())
    })
}

/// One service with a port for each protocol of `long_lived.py`.
const STREAMS: &str = "
apiVersion: v1
kind: Service
metadata: {name: order-service}
spec:
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: grpc, port: 90, targetPort: 9090}
  - {name: http-websocket, port: 91, targetPort: 9091}
  - {name: tcp, port: 92, targetPort: 9092}
";

/// Whether a process, which was a sidecar, only passes on signals to its successor.
fn follows(sidecar: &Process) -> Result<bool> {
    let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", sidecar.id()))?;
    Ok(arguments.split('\0').any(|argument| argument == "follow"))
}

/// Requests that the serving process of a pod has counted as this end of the connection.
fn counted(pod: &Pod, end: &str) -> Result<u64> {
    let text = pod.curl(&["http://127.0.0.1:15020/metrics"])?;
    let end = format!("reporter=\"{end}\"");
    let lines = text.lines().filter(|line| line.starts_with("istio_requests_total{") && line.contains(&end));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

fn open_streams_stay_with_the_predecessor_after_a_reload() -> Result<()> {
    let python = python_of("grpc")?;
    let script = |name: &str| tests_dir().join("apps").join(name).to_string_lossy().into_owned();
    let mesh = Mesh::start(&[])?;
    mesh.policy("streams.yaml", STREAMS)?;
    let pod = mesh.pod("order1")?;
    let _app = pod.serve(8080, "order1")?;
    let servers = [
        pod.spawn("grpc", &python, &[&script("grpc_echo.py"), "server", "9090"])?,
        pod.spawn("websocket", "python3", &[&script("tcp.py"), "9091", "websocket"])?,
        pod.spawn("bytes", "python3", &[&script("tcp.py"), "9092", "echo"])?,
    ];
    for server in &servers {
        wait_for("a server", SOON, || {
            ensure!(server.output().contains("listening"), "{}", server.output());
            Ok(())
        })?;
    }
    let args = ["--service", "order-service", "--port", "8080"];
    let order = mesh.sidecar_with_redirection(&pod, "order-service", &args)?;
    let (front, client) = mesh.client("frontend")?;
    mesh.wait_healthy(&pod.ip)?;
    let vip = mesh.vip("order-service")?;
    let args = [&*script("long_lived.py"), &vip, "90", "91", "92"];
    let (streams, mut input) = front.spawn_with_input("streams", &python, &args)?;
    let printed = |line: &str| {
        wait_for(line, SOON, || {
            let output = streams.output();
            ensure!(output.lines().any(|one| one == line), "{output}");
            Ok(())
        })
    };
    let mut echo = |message: &str| {
        writeln!(input, "{message}")?;
        printed(&format!("echoed {message}"))
    };
    printed("open")?;

    // First at the end of the servers, then at the client's.
    reload(&order, 1)?;
    echo("after-the-first-reload")?;
    reload(&client, 1)?;
    echo("after-the-second-reload")?;
    // Connections without a request are closed after 5 s; these are not.
    let reloaded = Instant::now();
    for n in 0.. {
        echo(&n.to_string())?;
        if reloaded.elapsed() > Duration::from_secs(7) {
            break;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    for (pod, predecessor) in [(&pod, &order), (&front, &client)] {
        ensure!(!follows(predecessor)?, "{}", predecessor.output());
        let sockets = pod.run("ss", &["-Htnp", "state", "established"])?;
        let own = sockets.lines().filter(|line| line.contains(&format!("pid={},", predecessor.id()))).count();
        // Each of the three has a socket on either side of the proxy.
        ensure!(own >= 6, "the predecessor {} has {own} connections:\n{sockets}", predecessor.id());
    }

    // The counters of a new process begin at 0: all these requests, and no others, are the successors'.
    let url = format!("http://{vip}/");
    let results = front.requests(&json!({
        "url": url, "count": 10, "keep_alive": false, "headers": {"Host": "order-service"},
    }))?;
    ensure!(statuses(&results) == [(200, 10)].into(), "{results:?}");
    for (pod, end) in [(&front, "source"), (&pod, "destination")] {
        wait_for("the counters of the successor", SOON, || {
            let counted = counted(pod, end)?;
            ensure!(counted == 10, "{end}: {counted} requests of 10");
            Ok(())
        })?;
    }

    echo("last")?;
    drop(input);
    printed("closed")?;
    for (pod, predecessor) in [(&front, &client), (&pod, &order)] {
        wait_for("the end of the predecessor", SOON, || {
            let open = pod.run("ss", &["-tnp", "state", "established"])?;
            ensure!(follows(predecessor)?, "{} has\n{open}\n{}", predecessor.id(), predecessor.output());
            // Written before the log's thread ended.
            ensure!(predecessor.output().contains("finished all connections"), "{}", predecessor.output());
            Ok(())
        })?;
    }
    let answer = front.curl(&["-f", "-H", "Host: order-service", &url])?;
    ensure!(answer.contains("order1"), "{answer}");
    Ok(())
}

fn a_reload_of_a_gateway_fails_no_request() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("edge.yaml", gateway::PLAIN)?;
    let _order = mesh.instance("order1", "order-service", 8000, &[])?;
    let (edge, process) = gateway::another(&mesh, "edge", &[])?;
    let outside = mesh.pod("outside")?;
    let url = |path: &str| format!("http://{}:8080{path}", edge.ip);
    wait_for("the gateway", SOON, || outside.curl(&["-f", &url("/")]))?;
    let load = |keep_alive: bool| {
        outside.requests_meanwhile(&json!({
            "url": url("/sleep/5"), "seconds": 4, "concurrency": 4, "method": "POST", "body": "not idempotent",
            "keep_alive": keep_alive,
        }))
    };
    let long = outside.requests_meanwhile(&json!({ "url": url("/drip/5") }))?;
    let loads = [load(true)?, load(false)?];
    std::thread::sleep(Duration::from_secs(1));
    reload(&process, 1)?;
    for load in loads {
        let results = load.results()?;
        let failed: Vec<_> = results.iter().filter(|r| r["status"] != 200).take(3).collect();
        ensure!(failed.is_empty() && results.len() > 100, "{:?} {failed:?}", statuses(&results));
    }
    let results = long.results()?;
    ensure!(results[0]["status"] == 200 && results[0]["body"] == "xxxxx", "{results:?}");
    ensure!(serving(&edge)? != process.id().to_string(), "{}", process.output());
    Ok(())
}

fn a_reload_moves_the_main_process_under_systemd() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let pod = mesh.pod("frontend")?;
    let path = pod.folder("notify.sock");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(SOON))?;
    let receive = || -> Result<String> {
        let mut message = [0; 1024];
        let n = socket.recv(&mut message).context("no notification")?;
        Ok(String::from_utf8_lossy(&message[..n]).into_owned())
    };
    let args = mesh.sidecar_args(&pod, "frontend", &["--workload", "frontend"])?;
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let notify = [("NOTIFY_SOCKET".to_owned(), path.to_string_lossy().into_owned())];
    let program = pod.folder("program");
    std::os::unix::fs::symlink(binary("weft-sidecar")?, &program)?;
    let mut first = pod.spawn_with("sidecar", &program, &args, &notify)?;
    let ready = receive()?;
    ensure!(ready.contains("READY=1") && ready.contains(&format!("MAINPID={}\n", first.id())), "{ready}");
    mesh.redirect(&pod)?;
    let call = || pod.curl(&["-f", "-H", "Host: order-service", &format!("http://{}:8080/", order.pod.ip)]);
    ensure!(call()?.contains("order1"));

    // An upgrade that cannot run changes nothing.
    std::fs::remove_file(&program)?;
    std::os::unix::fs::symlink("/bin/false", &program)?;
    first.signal("HUP")?;
    ensure!(receive()?.contains("RELOADING=1"));
    let failed = receive()?;
    ensure!(
        failed.contains("READY=1") && failed.contains("the reload failed") && !failed.contains("MAINPID"),
        "{failed}"
    );
    ensure!(call()?.contains("order1"), "{}", first.output());
    std::fs::remove_file(&program)?;
    std::os::unix::fs::symlink(binary("weft-sidecar")?, &program)?;

    first.signal("HUP")?;
    let reloading = receive()?;
    ensure!(reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="), "{reloading}");
    let ready = receive()?;
    let main = ready.lines().find_map(|line| line.strip_prefix("MAINPID=")).context("no main process")?;
    ensure!(ready.contains("READY=1") && main != first.id().to_string(), "{ready}");
    // No connection is open: the predecessor ends, and systemd supervises the successor alone.
    ensure!(first.wait(Duration::from_secs(15))? == 0, "{}", first.output());
    ensure!(call()?.contains("order1"), "{}", first.output());
    ensure!(serving(&pod)? == main, "{}", serving(&pod)?);
    weft_tests::run("kill", &["-TERM", main])?;
    ensure!(receive()?.contains("STOPPING=1"));
    wait_for("the end", SOON, || {
        ensure!(serving(&pod)?.is_empty());
        Ok(())
    })
}
