//! Detects that the redirection is gone (a reboot, `nft flush ruleset`, another program) and installs it again.
//!
//! The kernel keeps rules as long as it runs, and an administrator installs them once. So the sidecar records the rules that it
//! finds, in its data folder, and compares: at its start, when the kernel reports a change of any rules, and every few
//! seconds. Each installation has a mark (a chain without rules), which tells a new installation from a damaged one, and an
//! intended removal from another.
//!
//! A sidecar without CAP_NET_ADMIN cannot read rules. It connects to a port of its own service and checks whether the
//! connection arrives at its inbound listener.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, netlink};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpSocket;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::verdict::{Verdict, judge};
use super::{TABLE_ANEW, host, installed, nft};
use crate::net::connect;
use crate::telemetry::metrics::Metrics;
use weft_agent::files::write_private;

/// Between looks where the kernel reports changes.
const SELDOM: Duration = Duration::from_secs(30);
/// Between looks where it does not.
const OFTEN: Duration = Duration::from_secs(3);
/// From a change to the look at it: several come together.
const SETTLE: Duration = Duration::from_millis(100);
/// Shortest time between looks, however often rules of others change: a look runs a program.
const GAP: Duration = Duration::from_secs(1);
/// Longest wait for a connection to this pod itself to arrive.
const ARRIVAL: Duration = Duration::from_secs(1);
/// nftables' multicast group of nfnetlink (NFNLGRP_NFTABLES, number 7), as a mask.
const CHANGES: u32 = 1 << 6;

/// How a lost redirection is named, on the readiness page too.
pub const NOT_CAPTURED: &str = "traffic is not captured";

/// The state of this pod's redirection.
#[derive(Debug)]
pub struct Redirection {
    /// The record of the installed rules; `None`: there is nothing to guard.
    record: Option<PathBuf>,
    state: watch::Sender<State>,
    /// Local port of a connection to ourselves that is on its way; 0: there is none.
    probe: AtomicU16,
    /// All of its address.
    probe_from: Mutex<Option<SocketAddr>>,
    arrived: Notify,
    /// The turn to look.
    looking: Mutex<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Unknown,
    None,
    Captured,
    Lost(String),
}

impl Redirection {
    /// `record`: a file in the data folder; `None`: nothing is looked after.
    pub fn new(record: Option<PathBuf>) -> Redirection {
        let state = match &record {
            None => State::None,
            Some(record) if record.exists() => {
                State::Lost(format!("{NOT_CAPTURED} yet: the rules are being looked at"))
            }
            Some(_) => State::Unknown,
        };
        Redirection {
            record,
            state: watch::Sender::new(state),
            probe: AtomicU16::new(0),
            probe_from: Mutex::new(None),
            arrived: Notify::new(),
            looking: Mutex::new(true),
        }
    }

    /// The problem, where there is one.
    pub fn problem(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Lost(why) => Some(why.clone()),
            _ => None,
        }
    }

    /// Whether there are rules, for the admin page.
    pub fn is_installed(&self) -> bool {
        matches!(*self.state.borrow(), State::Captured | State::Lost(_))
    }

    /// Waits for the first look, `limit` at most.
    pub async fn looked(&self, limit: Duration) {
        let mut state = self.state.subscribe();
        let looked = state.wait_for(|state| matches!(state, State::None | State::Captured));
        // One that cannot be mended is a state too.
        let _ = tokio::time::timeout(limit, looked).await;
    }

    /// Rules are removed on purpose from now on, and not recorded any more.
    pub fn forget(&self) {
        *self.looking() = false;
        self.remove_record();
        self.state.send_replace(State::None);
    }

    /// Whether a connection from `peer` is a probe of [`keep`], made to see where it arrives.
    pub fn is_probe(&self, peer: SocketAddr) -> bool {
        // A relaxed load where nothing is on its way, as nearly always.
        if self.probe.load(Ordering::Relaxed) != peer.port() || *self.probe_from() != Some(peer) {
            return false;
        }
        self.arrived.notify_one();
        true
    }

    fn probe_from(&self) -> MutexGuard<'_, Option<SocketAddr>> {
        self.probe_from.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn looking(&self) -> MutexGuard<'_, bool> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_record(&self) -> Option<String> {
        std::fs::read_to_string(self.record.as_ref()?).ok()
    }

    fn write_record(&self, text: &str) {
        let Some(record) = &self.record else { return };
        if let Err(e) = write_private(record, text.as_bytes()) {
            tracing::warn!("the redirection is not recorded, a reboot will lose it: {e:#}");
        }
    }

    fn remove_record(&self) {
        // There may be none.
        let _ = self.record.as_ref().map(std::fs::remove_file);
    }

    /// Looks at the rules once, and installs them again where they are gone.
    fn look(&self, metrics: &Metrics) -> State {
        let looking = self.looking();
        if !*looking {
            return State::None;
        }
        let listing = match installed() {
            Ok(listing) => listing,
            Err(e) => {
                // Without the right or the program nothing is known of a pod that was never redirected.
                tracing::debug!("the redirection cannot be looked at: {e:#}");
                return if self.read_record().is_some() { State::Lost(self.lost(&e)) } else { State::None };
            }
        };
        let record = self.read_record();
        match judge(listing.as_deref(), record.as_deref()) {
            Verdict::Nothing => State::None,
            Verdict::Removed => {
                tracing::info!("the redirection is removed");
                self.remove_record();
                State::None
            }
            Verdict::New => {
                self.write_record(listing.as_deref().unwrap_or_default());
                State::Captured
            }
            Verdict::Same => match host::add_route() {
                Ok(()) => State::Captured,
                Err(e) => State::Lost(self.lost(&e.context("virtual IPs have no route"))),
            },
            Verdict::Lost => match self.reinstall(record.as_deref().unwrap_or_default()) {
                Ok(()) => {
                    metrics.redirection_reinstalled.inc();
                    tracing::warn!(
                        "the rules of the redirection were gone (a reboot, or another program): installed again"
                    );
                    State::Captured
                }
                Err(e) => State::Lost(self.lost(&e)),
            },
        }
    }

    fn reinstall(&self, rules: &str) -> Result<()> {
        host::add_route().context("virtual IPs have no route")?;
        nft(&["-f", "-"], Some(&format!("{TABLE_ANEW}{rules}")))?;
        // As this version of nft prints them, which may be another one.
        self.write_record(&installed()?.context("the rules did not stay")?);
        Ok(())
    }

    fn lost(&self, why: &anyhow::Error) -> String {
        let record = self.record.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
        format!(
            "{NOT_CAPTURED}: the rules of `weft-sidecar redirect` are gone and cannot be installed again: {why:#}. Install them as \
             root; where they are gone on purpose, remove {record}"
        )
    }
}

/// The guard's inputs from the rest of the sidecar.
pub struct Surroundings {
    /// The state that it keeps.
    pub redirection: Arc<Redirection>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// The pod's address, and ports of its services.
    pub own: Box<dyn Fn() -> Vec<SocketAddr> + Send + Sync>,
    /// Called when it is lost, with the reason, and when it is back.
    pub changed: Box<dyn Fn(Option<String>) -> BoxFuture<'static, ()> + Send + Sync>,
}

/// Looks after the redirection for ever.
pub async fn keep(surroundings: Surroundings) {
    let Surroundings { redirection, metrics, own, changed } = surroundings;
    if redirection.record.is_none() {
        return;
    }
    let events = if connect::marks() { changes() } else { None };
    let pause = if events.is_some() { SELDOM } else { OFTEN };
    let mut known = None;
    loop {
        let state = if connect::marks() {
            let (redirection, metrics) = (redirection.clone(), metrics.clone());
            // It runs a program.
            let looked = tokio::task::spawn_blocking(move || redirection.look(&metrics)).await;
            looked.unwrap_or(State::Unknown)
        } else {
            probe(&redirection, &own()).await
        };
        let looked = Instant::now();
        redirection.state.send_replace(state.clone());
        let problem = redirection.problem();
        metrics.redirection_lost.set(i64::from(problem.is_some()));
        if known.as_ref() != Some(&problem) {
            match &problem {
                Some(why) => tracing::error!("{why}"),
                None if known.is_some() => tracing::info!("traffic is captured again, or meant not to be"),
                None => {}
            }
            if known.is_some() || problem.is_some() {
                changed(problem.clone()).await;
            }
            known = Some(problem);
        }
        let pause = if matches!(state, State::Lost(_)) { OFTEN } else { pause };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = event(events.as_ref()) => {
                tokio::time::sleep_until((Instant::now() + SETTLE).max(looked + GAP)).await;
            }
        }
    }
}

/// Changes of rules, as the kernel reports them.
fn changes() -> Option<AsyncFd<std::os::fd::OwnedFd>> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let open = || -> std::io::Result<_> {
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
        rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, CHANGES))?;
        #[allow(unsafe_code)]
        // SAFETY: the registration owns the descriptor, which stays the same and open until the registration is dropped.
        let registered = unsafe { AsyncFd::register(socket) };
        Ok(registered?)
    };
    open().map_err(|e| tracing::debug!("the kernel does not report changes of rules: {e}")).ok()
}

async fn event(events: Option<&AsyncFd<std::os::fd::OwnedFd>>) {
    let Some(events) = events else { return std::future::pending().await };
    let Ok(mut ready) = events.readable().await else { return std::future::pending().await };
    let mut message = [0u8; 8192];
    // The content of an event does not matter. An overrun (ENOBUFS) is an event too.
    while rustix::net::recv(events.get_ref(), &mut message[..], RecvFlags::DONTWAIT).is_ok() {}
    ready.clear_ready();
}

/// Whether connections to this pod's services arrive at the inbound listener. Those that once did are recorded.
async fn probe(redirection: &Redirection, own: &[SocketAddr]) -> State {
    let record = redirection.read_record().unwrap_or_default();
    let mut captured: BTreeSet<SocketAddr> = record.lines().filter_map(|line| line.parse().ok()).collect();
    let mut state = if captured.is_empty() { State::None } else { State::Captured };
    for at in own {
        if arrives(redirection, *at).await {
            state = State::Captured;
            if captured.insert(*at) {
                let lines: Vec<String> = captured.iter().map(SocketAddr::to_string).collect();
                redirection.write_record(&lines.join("\n"));
            }
        } else if captured.contains(at) {
            let why = anyhow::anyhow!("this sidecar has no CAP_NET_ADMIN; a connection to {at} does not arrive here");
            return State::Lost(redirection.lost(&why));
        }
    }
    state
}

async fn arrives(redirection: &Redirection, at: SocketAddr) -> bool {
    let connect = async {
        let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(at.ip(), 0))?;
        let from = socket.local_addr()?;
        *redirection.probe_from() = Some(from);
        redirection.probe.store(from.port(), Ordering::Relaxed);
        let _open = socket.connect(at).await?;
        redirection.arrived.notified().await;
        std::io::Result::Ok(())
    };
    let arrived = tokio::time::timeout(ARRIVAL, connect).await;
    redirection.probe.store(0, Ordering::Relaxed);
    *redirection.probe_from() = None;
    matches!(arrived, Ok(Ok(())))
}

/// Where connections to services of this pod are sent, of its address and their ports.
pub fn own_services(address: Option<IpAddr>, ports: impl Iterator<Item = u32>) -> Vec<SocketAddr> {
    let ports: BTreeSet<u16> = ports.filter_map(|port| u16::try_from(port).ok()).filter(|port| *port != 0).collect();
    address.map(|ip| ports.into_iter().map(|port| SocketAddr::new(ip, port)).collect()).unwrap_or_default()
}
