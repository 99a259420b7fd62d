//! The ports of redirected traffic: their claims, their sockets, and the workers that accept there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;

use super::Config;
use crate::commands::run::listen::{self, Role};
use crate::gateway;
use crate::host::claim;
use crate::net::sockets;
use crate::proxy::Proxy;

/// Longest time that connections at kept listeners wait until the sidecar is ready to serve them.
const FIRST_READY: Duration = Duration::from_secs(10);
/// A socket that traffic arrives at.
pub(super) struct Listener {
    socket: std::net::TcpListener,
    role: Role,
    /// Another process has the socket too: connections that are not accepted wait for the next sidecar.
    kept: bool,
}

/// The connections that are accepted, at listeners that are kept; others stay open to the end, or connections would be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Accepting {
    /// All.
    All,
    /// Connections of the application: it needs others for the requests that it still has to answer.
    Outbound,
    /// Nothing.
    Nothing,
}

/// The sidecar that has claimed these ports in this network namespace, with its service.
pub fn other(config: &Config) -> Option<claim::Holder> {
    claim::holder(&port_claim(config.inbound_port)).or_else(|| claim::holder(&port_claim(config.outbound_port)))
}

fn port_claim(port: u16) -> String {
    format!("weft-sidecar/{port}")
}

/// Claims the ports of redirected traffic. The error names the holder: "address in use" would not help.
pub(super) fn claim_ports(config: &Config) -> Result<Vec<OwnedFd>> {
    let mut claims = Vec::new();
    for port in [config.outbound_port, config.inbound_port] {
        let Some(claimed) = claim::claim(&port_claim(port))? else {
            let (who, of) = other(config).map_or_else(Default::default, |other| {
                let of = if other.word.is_empty() { String::new() } else { format!(" of {}", other.word) };
                (format!(" ({other})"), of)
            });
            anyhow::bail!(
                "another weft-sidecar{of}{who} serves port {port} in this network namespace, and one namespace has one: \
                 its traffic can only be sent to one proxy. Run the second service in a namespace of its own: \
                 weft-sidecar exec --netns [options] -- your-server"
            );
        };
        claims.push(claimed.handle()?);
        claimed.keep(config.service.clone().unwrap_or_default())?;
    }
    Ok(claims)
}

/// Listeners for the pod's redirected traffic.
pub(super) fn listeners(config: &Config) -> Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    if !config.outside {
        let kept = sockets::is_kept(sockets::any(config.inbound_port));
        listeners.push(Listener { socket: sockets::tcp_any(config.inbound_port)?, role: Role::Inbound, kept });
    }
    for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::new(loopback, config.outbound_port);
        let kept = sockets::is_kept(address);
        match sockets::tcp(address) {
            Ok(socket) => listeners.push(Listener { socket, role: Role::Outbound, kept }),
            // A host without IPv6 has nothing to redirect there.
            Err(e) if loopback.is_ipv6() => tracing::debug!("no outbound listener on ::1: {e:#}"),
            Err(e) => return Err(e),
        }
    }
    if let Some(address) = config.http_proxy {
        let kept = sockets::is_kept(address);
        listeners.push(Listener { socket: sockets::tcp(address)?, role: Role::HttpProxy, kept });
    }
    Ok(listeners)
}

pub(super) fn start_workers(
    proxy: &Arc<Proxy>,
    config: &Config,
    listeners: Vec<Listener>,
    phase: &watch::Sender<Accepting>,
    gateway: Option<&watch::Receiver<Arc<gateway::Ports>>>,
) -> Result<()> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = config.workers.unwrap_or_else(|| u16::try_from(processors.min(2)).unwrap_or(1));
    for worker in 0..workers {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut accepting = Vec::new();
        for Listener { socket, role, kept } in &listeners {
            // The last phase in which the listener accepts. One that the supervisor keeps stops then, so that new connections wait
            // for the next process; the others accept until the end.
            let last = if *role == Role::Inbound { Accepting::All } else { Accepting::Outbound };
            accepting.push((socket.try_clone()?, *role, kept.then_some(last).unwrap_or(Accepting::Nothing)));
        }
        let phase = phase.subscribe();
        let (proxy, gateway) = (proxy.clone(), gateway.cloned());
        std::thread::Builder::new().name(format!("worker-{worker}")).spawn(move || {
            runtime.block_on(async move {
                if let Some(ports) = gateway {
                    gateway::serve(proxy.clone(), ports, worker).await;
                }
                for (listener, role, last) in accepting {
                    let mut phase = phase.clone();
                    match tokio::net::TcpListener::from_std(listener) {
                        Ok(listener) => {
                            let proxy = proxy.clone();
                            tokio::spawn(sockets::in_turn(async move {
                                if last < Accepting::Nothing {
                                    // Ended by the limit: then requests are refused with the reason.
                                    let mut ready = proxy.directory.ready();
                                    let _ = tokio::time::timeout(FIRST_READY, ready.wait_for(|ready| *ready)).await;
                                }
                                tokio::select! {
                                    () = listen::accept(proxy, listener, role, worker) => {}
                                    Ok(_) = phase.wait_for(|phase| *phase > last) => {}
                                }
                            }));
                        }
                        Err(e) => tracing::error!("worker {worker} cannot listen: {e}"),
                    }
                }
                std::future::pending::<()>().await;
            });
        })?;
    }
    Ok(())
}
