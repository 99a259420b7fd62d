//! Ending without failing a request: the order in which others, and then our own application, are told.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Accepting, Sidecar};
use crate::call::Activity;

/// See [`idle`].
const QUIET: Duration = Duration::from_millis(250);
/// Longest wait for the application's last calls.
const FINISH: Duration = Duration::from_secs(5);

impl Sidecar {
    /// Takes this pod out of the mesh and waits until nobody calls it any more, within the configured limits.
    pub async fn drain(&self) {
        let limit = Instant::now() + Duration::from_secs(self.config.drain_limit);
        self.proxy.draining.send_replace(true);
        self.agent.local.close().await;
        if self.config.gateway {
            // Whoever calls is told to come again to another one.
            self.proxy.leaving.store(true, Ordering::Relaxed);
            return idle(&self.proxy.outbound, limit).await;
        }
        let wait = Duration::from_secs(self.config.drain_acks.min(self.config.drain_limit));
        let (acknowledged, subscribers) = self.registrations.deregister_all(wait).await;
        tracing::info!(acknowledged, subscribers, "deregistered");
        self.finish_inbound(limit).await;
    }

    /// Makes room for the sidecar that is started next, which takes connections that come from now on: this pod stays in
    /// the mesh. Where nobody keeps the listeners meanwhile this is a drain.
    pub async fn hand_over(&self) {
        if !self.kept {
            tracing::warn!("nobody keeps our listeners (socket activation), so this is a stop and not a hand-over");
            return self.drain().await;
        }
        let limit = Instant::now() + Duration::from_secs(self.config.drain_limit);
        self.proxy.draining.send_replace(true);
        self.agent.local.close().await;
        self.finish_inbound(limit).await;
    }

    async fn finish_inbound(&self, limit: Instant) {
        self.accepting.send_replace(Accepting::Outbound);
        idle(&self.proxy.inbound, limit).await;
        match self.proxy.inbound.count() {
            0 => tracing::info!("drained"),
            left => tracing::warn!(left, "the drain limit is over, requests are cut off"),
        }
    }

    /// Waits until our application's own calls have ended, a few seconds at most: a connection to a database never does.
    pub async fn finish_outbound(&self) {
        self.accepting.send_replace(Accepting::Nothing);
        self.proxy.leaving.store(true, Ordering::Relaxed);
        idle(&self.proxy.outbound, Instant::now() + FINISH).await;
    }
}

/// Waits until there has been nothing for a moment: one who had picked us before it learned that we end may still be on
/// its way, and a connection that was just accepted has not been heard yet.
async fn idle(activity: &Activity, limit: Instant) {
    let mut busy = Instant::now();
    while Instant::now() < limit && busy.elapsed() < QUIET {
        if activity.count() > 0 {
            busy = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
