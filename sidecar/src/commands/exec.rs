//! `weft-sidecar exec`: runs the application as a child, so that both start and stop in the right order.
//!
//! The proxy is ready before the application starts; the service is registered when its port accepts connections, not
//! before; and on SIGTERM the pod leaves the mesh before the application gets the signal. Where a sidecar of the same service
//! runs already, the command joins it.

mod child;
pub mod netns;
pub mod rootless;

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Resource, Signal};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::commands::run::{self, Application};
use crate::host::redirect::{self, Capture};
use crate::net::connect::{self, MARK_DELIVERY};
use crate::net::pod;

/// Time between two looks whether the application listens.
const POLL: Duration = Duration::from_millis(100);
/// After this long the log says that the application does not listen; waiting goes on.
const REMIND: Duration = Duration::from_secs(30);

/// Options of `exec`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(flatten)]
    config: run::Config,
    /// Redirect this pod's traffic, until the command has ended.
    #[arg(long)]
    redirect: bool,
    #[command(flatten, next_help_heading = "With --redirect")]
    capture: Capture,
    /// Run in a network namespace of its own, with --redirect. Without root, or if the control plane is on this machine's
    /// loopback, the sidecar stays in the machine's network, and others reach the service there, at its own port. With root the pod
    /// can have this address, which this machine reaches, and others that route it here [default: a free private address].
    #[arg(long, value_name = "ADDRESS/PREFIX", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    netns: Option<netns::Wanted>,
    /// The process that made the network namespace.
    #[arg(long, hide = true)]
    within: Option<i32>,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs the command in the mesh. Returns the code to exit with: the command's, or 128 and the signal that ended it.
///
/// # Errors
/// When the proxy or the redirection cannot be set up.
pub async fn run(options: Options) -> Result<u8> {
    let Options { config, redirect, mut capture, netns, within, command } = options;
    let redirect = redirect || netns.is_some() || within.is_some();
    ensure!(redirect || !capture.is_given(), "options of the redirection need --redirect");
    ensure!(
        config.drain_min.is_none(),
        "--drain-min is an option of `run`: `exec` stops its command after the drain, and ends after it"
    );
    if let Some(wanted) = netns {
        let root = rustix::process::geteuid().is_root();
        let outside = !root || rootless::is_control_plane_on_loopback(&config).await;
        if wanted == netns::Wanted::Any && outside {
            return Box::pin(rootless::run(config, capture, &command)).await;
        }
        return netns::run(wanted, &config).await;
    }
    if let Some(outside) = within {
        netns::end_with(outside)?;
    }
    let port = config.port.filter(|_| config.service.is_some());
    let own = config.own_ports();
    if config.dns_listen.0.is_none() {
        capture.leave_dns_alone();
    }
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let mut signals = signals()?;
    if let Some(other) = run::other(&config).filter(|other| other.word == config.service.as_deref().unwrap_or_default())
    {
        tracing::info!(
            "a sidecar of this service runs here already ({other}): the command joins it, and its redirection"
        );
        return match child::spawn(&command, limit) {
            Ok(child) => supervise(child, &mut signals, std::future::pending(), || std::future::ready(())).await,
            Err(e) => Ok(cannot_run(&command, &e)),
        };
    }
    let sidecar = run::start(config, Application::Follows)?;
    if redirect {
        capture.check_marks()?;
    }
    tokio::select! {
        () = sidecar.ready() => {}
        Some(signal) = stop(&mut signals) => return Ok(killed_by(signal)),
    }
    if redirect {
        redirect::apply(&capture, own)?;
    }
    let code = match child::spawn(&command, limit) {
        Ok(child) => {
            let register = async {
                if let Some(port) = port {
                    accepts(port).await;
                }
                sidecar.restore().await;
                sidecar.register().await;
            };
            let code = supervise(child, &mut signals, register, || sidecar.drain()).await;
            sidecar.finish_outbound().await;
            code
        }
        Err(e) => Ok(cannot_run(&command, &e)),
    };
    if redirect {
        sidecar.proxy.redirection.forget();
        if let Err(e) = redirect::remove() {
            tracing::warn!("the redirection stays: {e:#}");
        }
    }
    code
}

/// The code of a command that could not be started, as shells have it.
fn cannot_run(command: &[String], e: &io::Error) -> u8 {
    tracing::error!("cannot run {}: {e}", command.first().map_or("", String::as_str));
    if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

/// Waits for the command's end, passing signals on; `register` runs meanwhile. Before a signal that stops it, and after
/// an end of its own accord, `drain` takes the pod out of the mesh.
async fn supervise<D: Future<Output = ()>>(
    mut child: Child,
    signals: &mut mpsc::Receiver<Signal>,
    register: impl Future<Output = ()>,
    drain: impl FnOnce() -> D,
) -> Result<u8> {
    let (mut stopping, mut ended) = (None, None);
    {
        tokio::pin!(register);
        let mut registered = false;
        while stopping.is_none() && ended.is_none() {
            tokio::select! {
                status = child.wait() => ended = Some(exit_code(status.context("cannot wait for the command")?)),
                () = &mut register, if !registered => registered = true,
                Some(signal) = signals.recv() => {
                    if stops(signal) {
                        stopping = Some(signal);
                    } else {
                        pass_on(&child, signal);
                    }
                }
            }
        }
        // Whatever was being registered is not any more: `register` ends here, and holds up no drain.
    }
    if let Some(code) = ended {
        tracing::info!(code, "the command has ended");
        drain().await;
        return Ok(code);
    }
    tokio::select! {
        () = drain() => {}
        // A second signal: its sender does not want to wait.
        Some(_) = stop(signals) => {}
    }
    if let Some(signal) = stopping {
        pass_on(&child, signal);
    }
    loop {
        tokio::select! {
            status = child.wait() => return Ok(exit_code(status.context("cannot wait for the command")?)),
            Some(signal) = signals.recv() => pass_on(&child, signal),
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let signal = status.signal().map(|signal| 128 + signal);
    status.code().or(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn killed_by(signal: Signal) -> u8 {
    u8::try_from(128 + signal.as_raw()).unwrap_or(1)
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()?).ok()?)
}

fn pass_on(child: &Child, signal: Signal) {
    // A child that has just ended needs no signal.
    if let Some(pid) = pid(child) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Whether a signal asks for the end; others are the command's affair alone.
fn stops(signal: Signal) -> bool {
    signal == Signal::TERM || signal == Signal::INT
}

/// The next signal that asks for the end; others are dropped.
async fn stop(signals: &mut mpsc::Receiver<Signal>) -> Option<Signal> {
    loop {
        let signal = signals.recv().await?;
        if stops(signal) {
            return Some(signal);
        }
    }
}

/// The signals that are received for the command.
fn signals() -> Result<mpsc::Receiver<Signal>> {
    let (sender, receiver) = mpsc::channel(16);
    for (kind, name) in [
        (SignalKind::terminate(), Signal::TERM),
        (SignalKind::interrupt(), Signal::INT),
        (SignalKind::hangup(), Signal::HUP),
        (SignalKind::quit(), Signal::QUIT),
        (SignalKind::user_defined1(), Signal::USR1),
        (SignalKind::user_defined2(), Signal::USR2),
    ] {
        let mut arriving = signal(kind).context("cannot receive signals")?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while arriving.recv().await.is_some() {
                if sender.send(name).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(receiver)
}

/// Waits until something in this pod accepts connections to `port`.
async fn accepts(port: u16) {
    let start = Instant::now();
    let mut reminded = false;
    loop {
        for address in own_addresses() {
            // As a delivery: the redirection must not answer in the application's place.
            if connect::tcp(SocketAddr::new(address, port), MARK_DELIVERY, Duration::from_secs(1), None).await.is_ok() {
                return;
            }
        }
        if !reminded && start.elapsed() >= REMIND {
            reminded = true;
            tracing::warn!(port, "not registered yet: the command does not accept connections to its port");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Where the application may listen: on loopback, on all addresses, or on that which this pod calls from.
fn own_addresses() -> impl Iterator<Item = IpAddr> {
    let outside = pod::is_elsewhere();
    let from = |any: IpAddr, to: IpAddr| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        // Sends nothing; it selects a source address. No machine has the destination (TEST-NET).
        socket.connect((to, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
    };
    let v4 = from(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into());
    let v6 = from(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    // The others are the machine's, where the pod's network is another one.
    let others = v4.into_iter().chain(v6).filter(move |_| !outside);
    [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].into_iter().chain(others)
}

#[cfg(test)]
mod tests;
