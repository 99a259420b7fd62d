//! Reload: a successor takes over, and this process finishes its requests and connections ([`crate::host::hot_restart`]).

use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::Sidecar;
use super::stop::idle;
use crate::gateway;
use crate::host::hot_restart::{self, End, Successor};
use crate::host::notify;
use crate::net::sockets;

/// Longest wait of a successor for the control plane's stream: without it names that the application asks for first are unknown.
const CONNECTED: Duration = Duration::from_secs(5);
/// Longest wait of a successor until it could serve, of an earlier snapshot or of the stream.
const READY: Duration = Duration::from_secs(15);
/// How long connections stay that have no request, so that their clients learn from a response to connect anew.
const LINGER: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// The signals of a supervisor or an administrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM, or an interrupt from the terminal.
    Stop,
    /// SIGHUP.
    Reload,
}

impl Sidecar {
    /// Where a predecessor has handed its sockets over: takes its place, as soon as requests can be served.
    ///
    /// # Errors
    /// When that takes too long, or the predecessor goes on.
    pub async fn succeed(&self) -> Result<()> {
        if !hot_restart::has_predecessor() {
            return Ok(());
        }
        let begun = Instant::now();
        let directory = &self.proxy.directory;
        while !*directory.ready().borrow() || (!directory.connected() && begun.elapsed() < CONNECTED) {
            if begun.elapsed() > READY {
                bail!("not ready within {} s, the predecessor goes on", READY.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
        hot_restart::succeed().await?;
        sockets::begin_turn();
        tracing::info!("took over from the predecessor");
        Ok(())
    }

    /// Waits until registrations of before a restart are restored.
    pub async fn restored(&self) {
        // Never closed: this has the sender.
        let _ = self.restored.subscribe().wait_for(|restored| *restored).await;
    }

    /// Starts a successor, which accepts all connections from now on, and gives up the duties of one process alone. Nothing is
    /// deregistered: the successor registers the same instances on the same node.
    ///
    /// # Errors
    /// If no successor came up: then nothing has changed.
    pub async fn hand_over(&self) -> Result<Successor> {
        let mut shared = sockets::shared().context("cannot share the sockets")?;
        if let Some(ports) = &self.ports {
            shared.extend(gateway::shared(&ports.borrow()).context("cannot share the gateway's ports")?);
        }
        let claims = {
            let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
            claims.iter().map(OwnedFd::try_clone).collect::<std::io::Result<_>>()?
        };
        let successor = hot_restart::start(shared, claims).await?;
        self.duties.cancel();
        self.agent.local.hand_over().await;
        Ok(successor)
    }

    /// Lets the successor serve, and finishes the open connections.
    ///
    /// # Errors
    /// If the successor has ended.
    pub async fn outlast(&self, mut successor: Successor, mut requests: impl AsyncFnMut() -> Request) -> Result<End> {
        hot_restart::adopt_successors();
        successor.go()?;
        // No socket of the successor stays open here: after a crash of the successor the next one could not bind it.
        sockets::end_turn();
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.proxy.draining.send_replace(true);
        self.proxy.leaving.begin();
        tracing::info!(
            at_most_s = self.config.parent_shutdown_time,
            "the successor serves, finishing open connections"
        );
        let mut limit = Instant::now() + Duration::from_secs(self.config.parent_shutdown_time);
        loop {
            tokio::select! {
                () = self.finish(limit) => break,
                // The supervisor looks at the exit of this process.
                code = successor.wait(), if !notify::is_supervised() => return Ok(End::Exit(code)),
                request = requests() => {
                    if request == Request::Stop {
                        limit = limit.min(Instant::now() + Duration::from_secs(self.config.drain_limit));
                    }
                    // systemd knows the successor, and signals it by itself.
                    if !notify::is_supervised() {
                        hot_restart::pass_on(if request == Request::Stop { Signal::TERM } else { Signal::HUP });
                    }
                }
            }
        }
        match self.proxy.inbound.count() + self.proxy.outbound.count() {
            0 => tracing::info!("finished all connections"),
            left => tracing::warn!(left, "--parent-shutdown-time is over, connections are cut off"),
        }
        Ok(successor.end())
    }

    /// Waits until nothing is in progress.
    async fn finish(&self, limit: Instant) {
        let (proxy, begun) = (&self.proxy, Instant::now());
        let linger = async {
            // The first look-ups on connections of before are still answered.
            tokio::time::sleep(LINGER).await;
            self.discovery.cancel();
            std::future::pending().await
        };
        let busy = || {
            let open = || proxy.connections.count() + proxy.callers.count() > 0;
            proxy.inbound.count() + proxy.outbound.count() > 0 || (begun.elapsed() < LINGER && open())
        };
        tokio::select! {
            () = idle(busy, limit) => {}
            () = linger => {}
        }
    }
}
