//! The machine as the redirection needs to know it: the owner of this network namespace, whether the proxy is ready for
//! traffic, and whether virtual IPs have a route.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::guard::NOT_CAPTURED;
use super::rules::VIRTUAL_IPS;
use super::run_tool;
use crate::resolve::resolv;

/// The number that marks the redirection's route among others (`proto` in `ip route`; the numbers from 64 on are free).
const ROUTE_PROTOCOL: &str = "87";

/// Whether this is the network namespace that the machine booted with.
///
/// Comparing with process 1 would be the obvious way, but a container's process 1 is its own, and the host's may only be
/// looked at by root. The kernel shows this setting, which is one of the machine, in no other namespace.
pub(super) fn in_init_namespace() -> bool {
    Path::new("/proc/sys/net/core/netdev_budget").exists()
}

/// The name servers that this machine asks.
pub(super) fn nameservers() -> Vec<IpAddr> {
    // No file means no name servers.
    resolv::nameservers(&std::fs::read_to_string(resolv::RESOLV_CONF).unwrap_or_default())
}

/// Refuses where redirected traffic would have nowhere to go, or would go round in circles.
pub(super) fn check_proxy(ready_port: u16, admin_port: u16, has_own_user: bool) -> Result<()> {
    let (status, body) = readiness(ready_port).with_context(|| {
        format!(
            "no proxy answers on 127.0.0.1:{ready_port}; start it first: until then redirected traffic would go nowhere"
        )
    })?;
    // A problem that this installation fixes is no obstacle.
    ensure!(
        status == 200 || body.contains(NOT_CAPTURED),
        "the proxy is not ready, redirected traffic would go nowhere ({}); --force installs all the same",
        body.trim()
    );
    let (status, body) = get(admin_port, "/config").context("the proxy's admin page does not answer")?;
    let config: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    ensure!(
        status == 200 && config["marks"].is_boolean(),
        "127.0.0.1:{admin_port} is not the admin page of a Weft proxy"
    );
    ensure!(has_own_user || config["marks"] == true, NO_MARKS);
    Ok(())
}

/// Whether the sidecar with this admin page looks after rules; `None`: none answers.
pub(super) fn guards(admin_port: u16) -> Option<bool> {
    let (status, body) = get(admin_port, "/config").ok()?;
    let config: serde_json::Value = serde_json::from_str(&body).ok()?;
    config["redirected"].as_bool().filter(|_| status == 200)
}

/// Refuses where redirected name look-ups would have no answer.
pub(super) fn check_dns(port: u16) -> Result<()> {
    TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), Duration::from_secs(2)).with_context(
        || {
            format!(
                "the proxy does not answer DNS on 127.0.0.1:{port} (--dns-listen); --no-dns leaves name look-ups alone"
            )
        },
    )?;
    Ok(())
}

/// Why the redirection is refused where sockets cannot be marked.
pub const NO_MARKS: &str = "the proxy may not mark its sockets, so its traffic cannot be told from the application's and \
    would be redirected to itself for ever. Grant it CAP_NET_ADMIN over this network namespace: \
    `setcap cap_net_admin+ep` on the program, AmbientCapabilities=CAP_NET_ADMIN in a systemd unit, or \
    capabilities.add: [NET_ADMIN] in a pod; or run it as a user of its own and give --proxy-uid";

/// The status and body of the readiness page.
///
/// # Errors
/// If none answers.
pub fn readiness(port: u16) -> Result<(u16, String)> {
    get(port, "/healthz/ready")
}

fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(64 << 20).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("the answer is not HTTP")?;
    Ok((status, body.to_owned()))
}

/// Gives virtual IPs a route where none covers them: connect(2) fails without one before nftables sees the packet.
///
/// An ordinary route over `lo`, not a `local` one: that would make the addresses local, and after the rules are removed a
/// call to a virtual IP would reach any program that listens here on all addresses.
pub(super) fn add_route() -> Result<()> {
    if routed() {
        return Ok(());
    }
    let route = ["-4", "route", "replace", VIRTUAL_IPS, "dev", "lo", "proto", ROUTE_PROTOCOL];
    run_tool("ip", "iproute2", &route, None)?;
    if !routed() {
        // No address but loopback's to call from.
        run_tool("ip", "iproute2", &[&route[..], &["src", "127.0.0.1"]].concat(), None)?;
    }
    Ok(())
}

/// Whether the kernel has a route to virtual IPs, and a source address for it.
fn routed() -> bool {
    let probe = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // Sends nothing.
        socket.connect((Ipv4Addr::new(240, 240, 0, 1), 9))?;
        socket.local_addr()
    };
    probe().is_ok_and(|from| !from.ip().is_unspecified())
}

/// Removes the redirection's route, where there is one.
pub(super) fn remove_route() -> Result<()> {
    let ours = [VIRTUAL_IPS, "proto", ROUTE_PROTOCOL];
    let found = run_tool("ip", "iproute2", &[&["-4", "route", "show"][..], &ours].concat(), None);
    // Without the program there is no such route either.
    if found.is_ok_and(|found| !found.stdout.is_empty()) {
        run_tool("ip", "iproute2", &[&["-4", "route", "del"][..], &ours].concat(), None)?;
    }
    Ok(())
}
