//! Streams between two sidecars: resets, mirrored bodies, half-closed connections.

use crate::Scenario;
use crate::wire::{Wire, start};
use anyhow::{Result, ensure};
use std::time::Duration;
use weft_tests::wait_for;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![a_reset_crosses_two_sidecars, mirrors_get_large_bodies_whole,]
}

pub(crate) fn waiting() -> Vec<Scenario> {
    scenarios![a_half_closed_connection_outlives_connection_tracking,]
}

const RESETS: &str = r#"
import socket, struct, sys, time
listener = socket.create_server(("0.0.0.0", 9000))
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    wanted = connection.recv(10)
    connection.sendall(b"half of it")
    time.sleep(.3)
    if wanted.startswith(b"\0r"):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif wanted.startswith(b"\0w"):
        try:
            while connection.recv(100): pass
            print("end", flush=True)
        except ConnectionResetError:
            print("reset", flush=True)
    connection.close()
"#;

const RESETTING: &str = r#"
import socket, struct, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
connection.sendall(b"\0w")
connection.recv(100)
connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
connection.close()
"#;

/// A reset is passed on as a reset, from either side, over mTLS and without.
fn a_reset_crosses_two_sidecars() -> Result<()> {
    let wire = Wire::start()?;
    let pod = wire.mesh.pod("bytes")?;
    let server = pod.spawn("bytes", "python3", &["-c", RESETS])?;
    let _sidecar = wire.mesh.sidecar_with_redirection(
        &pod,
        "bytes",
        &["--service", "bytes", "--port", "9000", "--protocol", "tcp"],
    )?;
    wire.mesh.wait_healthy(&pod.ip)?;
    let outside = wire.mesh.pod("outside")?;
    let elsewhere = outside.spawn("elsewhere", "python3", &["-c", RESETS])?;
    for (server, host, port) in [(&server, wire.mesh.vip("bytes")?, "80"), (&elsewhere, outside.ip.clone(), "9000")] {
        wait_for("a server", Duration::from_secs(10), || {
            ensure!(server.output().contains("listening"), "{}", server.output());
            Ok(())
        })?;
        let answer = wire.ask_at(&host, port, &[r"\x00r"])?;
        ensure!(answer == "half of it<reset>\n", "{host}: {answer}");
        let answer = wire.ask_at(&host, port, &[r"\x00e"])?;
        ensure!(answer == "half of it<end>\n", "{host}: {answer}");
        wire.front.run("python3", &["-c", RESETTING, &host, port])?;
        wait_for("the server's own end", Duration::from_secs(5), || {
            ensure!(server.output().contains("reset"), "{}", server.output());
            Ok(())
        })?;
    }
    Ok(())
}

const MIRROR: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wire}
spec:
  hosts: [wire]
  http:
  - route: [{destination: {host: wire}}]
    mirror: {host: shadow}
";

fn mirrors_get_large_bodies_whole() -> Result<()> {
    let wire = Wire::start()?;
    let pod = wire.mesh.pod("shadow")?;
    let _app = start(&pod, &["wire_server.py", "8080"])?;
    let sidecar = wire.mesh.sidecar_with_redirection(
        &pod,
        "shadow",
        &["--service", "shadow", "--port", "8080", "--access-log", "-"],
    )?;
    wire.mesh.wait_healthy(&pod.ip)?;
    wire.mesh.policy("wire.yaml", MIRROR)?;
    let upload = |bytes: &str| {
        let head = format!(r"POST /length HTTP/1.1\r\nHost: wire\r\nContent-Length: {bytes}\r\n\r\n");
        wire.ask(&[&head, &format!("@{bytes}")])
    };
    wait_for("the mirror", Duration::from_secs(10), || {
        upload("1")?;
        ensure!(sidecar.output().contains("\"/length\""), "no copy");
        Ok(())
    })?;
    for bytes in ["2500000", "20000000"] {
        let answer = upload(bytes)?;
        ensure!(answer.contains(bytes), "{answer}");
        Wire::logged(
            &sidecar,
            &["\"path\":\"/length\"", &format!("\"bytes_received\":{bytes},"), "\"response_code\":200"],
        )?;
    }
    let metrics = wire.front.curl(&["http://127.0.0.1:15020/metrics"])?;
    ensure!(metrics.contains("weft_mirrors_cut_total 0"), "a copy was cut off");
    Ok(())
}

/// The kernel forgets a half-closed redirected connection after 60 s without a packet.
fn a_half_closed_connection_outlives_connection_tracking() -> Result<()> {
    let wire = Wire::start()?;
    let outside = wire.mesh.pod("outside")?;
    let late = r#"
import socket, time
listener = socket.create_server(("0.0.0.0", 9000))
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    while connection.recv(100): pass
    time.sleep(75)
    connection.sendall(b"late")
    connection.close()
"#;
    let server = outside.spawn("late", "python3", &["-c", late])?;
    wait_for("a server", Duration::from_secs(10), || {
        ensure!(server.output().contains("listening"), "{}", server.output());
        Ok(())
    })?;
    let client = r#"
import socket, sys
connection = socket.create_connection((sys.argv[1], 9000), timeout=100)
connection.sendall(b"\0x")
connection.shutdown(socket.SHUT_WR)
print(connection.recv(100).decode())
"#;
    let answer = wire.front.run("python3", &["-c", client, &outside.ip])?;
    ensure!(answer.trim() == "late", "{answer}");
    Ok(())
}
