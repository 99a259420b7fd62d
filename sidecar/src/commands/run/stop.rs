//! Shutdown without failing a request: first the mesh, then the application is notified.

use std::time::{Duration, Instant};

use super::Sidecar;
use super::ports::Accepting;
use crate::proxy::activity::Activity;

/// See [`idle`].
const QUIET: Duration = Duration::from_millis(250);
/// Shortest stay after SIGTERM unless the command line or the mesh sets it, as Istio's.
const DRAIN_MIN: Duration = Duration::from_secs(5);
/// Longest wait for the application's last calls.
const FINISH: Duration = Duration::from_secs(5);

impl Sidecar {
    /// Ends a sidecar that does not own its application, which may have got a signal at the same moment: everything goes on until the
    /// application has closed its connections (Istio's `EXIT_ON_ZERO_ACTIVE_CONNECTIONS` after `MINIMUM_DRAIN_DURATION`), and
    /// other sidecars have removed this endpoint.
    pub async fn stop(&self) {
        if self.config.gateway {
            self.drain().await;
            return self.finish_outbound().await;
        }
        let begun = Instant::now();
        let (least, most) = self.drain_bounds();
        let limit = begun + most;
        self.leave_mesh().await;
        tracing::info!(at_least_s = least.as_secs(), at_most_s = most.as_secs(), "waiting for the application to end");
        let (proxy, least) = (&self.proxy, begun + least);
        let busy = || Instant::now() < least || proxy.connections.count() + proxy.inbound.count() > 0;
        idle(busy, limit).await;
        match proxy.connections.count() {
            0 => tracing::info!("the application has closed its connections"),
            left => tracing::warn!(left, "the drain limit is over, connections of the application are cut off"),
        }
        self.finish_inbound(limit).await;
        self.finish_outbound().await;
    }

    /// Shortest and longest stay after SIGTERM.
    fn drain_bounds(&self) -> (Duration, Duration) {
        let most = Duration::from_secs(self.config.drain_limit);
        if let Some(least) = self.config.drain_min {
            return (Duration::from_secs(least), most);
        }
        let of_mesh = self.proxy.directory.snapshot().inbound.as_ref().and_then(|inbound| inbound.termination_drain);
        match of_mesh {
            Some(least) => (least, most.max(least)),
            None => (DRAIN_MIN.min(most), most),
        }
    }

    /// Takes this pod out of the mesh and waits until it has no more inbound requests, within the configured limits.
    pub async fn drain(&self) {
        let limit = Instant::now() + Duration::from_secs(self.config.drain_limit);
        if self.config.gateway {
            self.proxy.draining.send_replace(true);
            self.agent.local.close().await;
            // Responses close the connections of downstreams.
            self.proxy.leaving.begin();
            return quiet(&self.proxy.outbound, limit).await;
        }
        self.leave_mesh().await;
        self.finish_inbound(limit).await;
    }

    /// Takes this pod out of the mesh, and waits until the sidecars that call it have acknowledged that.
    async fn leave_mesh(&self) {
        self.proxy.draining.send_replace(true);
        self.agent.local.close().await;
        let wait = Duration::from_secs(self.config.drain_acks.min(self.config.drain_limit));
        let (acknowledged, subscribers) = self.registrations.deregister_all(wait).await;
        tracing::info!(acknowledged, subscribers, "deregistered");
    }

    async fn finish_inbound(&self, limit: Instant) {
        self.accepting.send_replace(Accepting::Outbound);
        quiet(&self.proxy.inbound, limit).await;
        match self.proxy.inbound.count() {
            0 => tracing::info!("drained"),
            left => tracing::warn!(left, "the drain limit is over, requests are cut off"),
        }
    }

    /// Waits until the application's own calls have ended, a few seconds at most: a connection to a database never does.
    pub async fn finish_outbound(&self) {
        self.accepting.send_replace(Accepting::Nothing);
        self.proxy.leaving.begin();
        quiet(&self.proxy.outbound, Instant::now() + FINISH).await;
    }
}

async fn quiet(activity: &Activity, limit: Instant) {
    idle(|| activity.count() > 0, limit).await;
}

/// Waits until nothing has been `busy` for a moment: a request of a peer that had picked this endpoint may still be on its way, and
/// an accepted connection has not sent its request yet.
pub(super) async fn idle(busy: impl Fn() -> bool, limit: Instant) {
    let mut last = Instant::now();
    while Instant::now() < limit && last.elapsed() < QUIET {
        if busy() {
            last = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
