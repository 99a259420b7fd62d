//! Protocols: each arrives intact, and between sidecars by mTLS.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_tests::{Mesh, Pod, Process, python_of, tests_dir, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        server_first_half_close_and_websocket,
        grpc_unary_and_streams_both_ways,
        a_gigabyte_arrives_intact,
        names_resolve_to_virtual_ips,
    ]
}

fn script(name: &str) -> String {
    tests_dir().join("apps").join(name).to_string_lossy().into_owned()
}

/// Starts a server of `tests/apps` in a pod that has a sidecar already, and registers nothing.
fn start(pod: &Pod, python: &str, args: &[&str]) -> Result<Process> {
    let process = pod.spawn(args.last().unwrap_or(&"server"), python, args)?;
    wait_for("a server", Duration::from_secs(20), || {
        ensure!(process.output().contains("listening"), "{}", process.output());
        Ok(())
    })?;
    Ok(process)
}

fn server_first_half_close_and_websocket() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let client = script("tcp_client.py");
    for (port, mode) in [(9001, "greet"), (9002, "count"), (9003, "websocket"), (9004, "trailers")] {
        let pod = mesh.pod(mode)?;
        let _server = start(&pod, "python3", &[&script("tcp.py"), &port.to_string(), mode])?;
        let _sidecar = mesh.sidecar_with_redirection(&pod, mode, &["--service", mode, "--port", &port.to_string()])?;
        mesh.wait_healthy(&pod.ip)?;
        let vip = mesh.vip(mode)?;
        let port = port.to_string();
        for (how, host) in [("by virtual IP", vip.as_str()), ("by its own address", pod.ip.as_str())] {
            let output = front.run("python3", &[&client, host, &port, mode]);
            ensure!(output.is_ok(), "{mode} {how}: {output:?}");
        }
        let metrics = front.curl(&["http://127.0.0.1:15020/metrics"])?;
        let service = format!("destination_service=\"{mode}.default.svc.cluster.local\"");
        let is_http = matches!(mode, "websocket" | "trailers");
        let kind = if is_http { "istio_requests_total" } else { "istio_tcp_connections_opened_total" };
        ensure!(metrics.lines().any(|l| l.starts_with(kind) && l.contains(&service)), "{mode} is not in {kind}");
    }
    let order = mesh.instance("order1", "order-service", 8080, &[])?;
    let vip = mesh.vip("order-service")?;
    for mode in ["slow-http", "drip"] {
        let output = front.run("python3", &[&client, &vip, "80", mode]);
        ensure!(output.is_ok(), "{mode}: {output:?}");
    }
    // Unknown destinations pass through, in plaintext, whichever side speaks first.
    let outside = mesh.pod("outside")?;
    let _server = start(&outside, "python3", &[&script("tcp.py"), "9001", "greet"])?;
    let output = front.run("python3", &[&client, &outside.ip, "9001", "greet"]);
    ensure!(output.is_ok(), "greet outside the mesh: {output:?}");
    drop(order);
    Ok(())
}

fn grpc_unary_and_streams_both_ways() -> Result<()> {
    let python = python_of("grpc")?;
    let mesh = Mesh::start(&[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    for (name, protocol) in [("declared", Some("grpc")), ("sniffed", None)] {
        let pod = mesh.pod(name)?;
        let _server = start(&pod, &python, &[&script("grpc_echo.py"), "server", "9090"])?;
        let mut args = vec!["--service", name, "--port", "9090"];
        if let Some(protocol) = protocol {
            args.extend(["--protocol", protocol]);
        }
        let _sidecar = mesh.sidecar_with_redirection(&pod, name, &args)?;
        mesh.wait_healthy(&pod.ip)?;
        let to = format!("{}:9090", mesh.vip(name)?);
        let output = front.run(&python, &[&script("grpc_echo.py"), "client", &to]);
        ensure!(output.is_ok(), "gRPC, protocol {name}: {output:?}");
    }
    Ok(())
}

fn a_gigabyte_arrives_intact() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let pod = mesh.pod("files")?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("gigabyte");
    // The period is a little more than 64 KiB, so that a lost or repeated block changes the data.
    let make = format!(
        "head -c 65573 /dev/urandom > {0}.block; for i in $(seq 16376); do cat {0}.block; done | head -c 1073741824 > {0}; rm {0}.block",
        file.display()
    );
    weft_tests::run("sh", &["-c", &make])?;
    let expected = weft_tests::run("sha256sum", &[&file.to_string_lossy()])?;
    let expected = expected.split(' ').next().unwrap_or_default();
    let _server = pod.spawn(
        "files",
        "python3",
        &["-m", "http.server", "--protocol", "HTTP/1.1", "8080", "--directory", &dir.path().to_string_lossy()],
    )?;
    let _sidecar = mesh.sidecar_with_redirection(&pod, "files", &["--service", "files", "--port", "8080"])?;
    mesh.wait_healthy(&pod.ip)?;
    let (front, front_sidecar) = mesh.client("frontend")?;
    let url = format!("http://{}/gigabyte", mesh.vip("files")?);
    let get = format!("curl -sS --max-time 120 -H 'Host: files' {url} | sha256sum");
    let got = front.run("sh", &["-c", &get])?;
    ensure!(got.starts_with(expected), "another content arrived: {got}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", front_sidecar.id()))?;
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default().trim().to_owned();
    let kilobytes: u64 = resident.trim_end_matches(" kB").parse()?;
    ensure!(kilobytes < 64 * 1024, "the sidecar holds {resident} after a gigabyte");
    Ok(())
}

fn names_resolve_to_virtual_ips() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let _order = mesh.instance("order1", "order-service", 8080, &[])?;
    let vip = mesh.vip("order-service")?;
    let search = "search default.svc.cluster.local example.test\noptions ndots:2\n";
    for (name, resolv, with_route) in [
        ("stub", format!("nameserver 127.0.0.53\n{search}"), true),
        ("local", format!("nameserver 127.0.0.1\n{search}"), true),
        ("remote", "nameserver 10.255.255.53\n".to_owned(), true),
        ("routeless", format!("nameserver 127.0.0.53\n{search}"), false),
    ] {
        let pod = mesh.pod(name)?;
        pod.resolv_conf(&resolv)?;
        if !with_route {
            pod.run("ip", &["route", "del", "default"])?;
        }
        let _sidecar = mesh.sidecar_with_redirection(&pod, name, &[])?;
        for host in [
            "order-service",
            "order-service.default",
            "order-service.default.svc.cluster.local",
            "order-service.service.consul",
        ] {
            let found = pod.run("getent", &["ahostsv4", host]);
            ensure!(found.as_ref().is_ok_and(|f| f.contains(&vip)), "{name}: {host} is {found:?}");
            let answer = pod.curl(&["-f", &format!("http://{host}:8080/")]);
            ensure!(answer.as_ref().is_ok_and(|a| a.contains("order1")), "{name}: {host} answers {answer:?}");
        }
        let unknown = pod.run("getent", &["ahostsv4", "unknown.default.svc.cluster.local"]);
        ensure!(unknown.is_err(), "{name}: {unknown:?}");
    }
    Ok(())
}
