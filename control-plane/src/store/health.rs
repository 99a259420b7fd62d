//! Whether a store accepts writes: one place for the log, `weftctl status`, readiness and metrics.
//!
//! Reads are answered from memory in any state of the disk, so a store that accepts no writes would go unnoticed until
//! a record is missing. Each store reports its failures and recoveries here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// The state of a store's writes.
#[derive(Default)]
pub struct Health {
    problem: Mutex<Option<Problem>>,
    failures: AtomicU64,
    repairs: AtomicU64,
    failed: Notify,
}

/// The reason why a store accepts no writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Cause, place and remedy.
    pub reason: String,
    /// Time of the first failed write.
    pub since: Instant,
}

impl Problem {
    /// How long it has lasted.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Health {
    /// Reports the number of writes that the store refused. The log has one line for each cause.
    pub fn report_failure(&self, reason: &str, writes: usize) {
        self.count_refused(writes);
        let mut problem = self.lock();
        let since = problem.as_ref().map(|problem| problem.since);
        if problem.as_ref().is_none_or(|problem| problem.reason != reason) {
            tracing::error!("the store accepts no writes: {reason}");
        }
        *problem = Some(Problem { reason: reason.to_owned(), since: since.unwrap_or_else(Instant::now) });
        drop(problem);
        if since.is_none() {
            self.failed.notify_one();
        }
    }

    /// Counts writes that were refused for the known reason.
    pub(super) fn count_refused(&self, writes: usize) {
        self.failures.fetch_add(writes as u64, Ordering::Relaxed);
    }

    /// Reports that writes are accepted again.
    pub fn report_recovery(&self) {
        if let Some(problem) = self.lock().take() {
            tracing::warn!("the store accepts writes again, after {} s", problem.age().as_secs());
        }
    }

    /// Counts a damaged store that was reset to an older state.
    pub fn count_repair(&self) {
        self.repairs.fetch_add(1, Ordering::Relaxed);
    }

    /// The reason why no writes are accepted; `None`: they are.
    pub fn problem(&self) -> Option<Problem> {
        self.lock().clone()
    }

    /// Writes that failed since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Repairs of damage since the start.
    pub fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Relaxed)
    }

    /// Waits for the first failed write after a time without.
    pub(super) async fn failure(&self) {
        self.failed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Problem>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn problem_keeps_its_start_and_the_latest_cause() {
        let health = Health::default();
        assert_eq!(health.problem(), None);
        health.report_failure("no space", 1);
        tokio::time::advance(Duration::from_secs(3)).await;
        health.report_failure("read-only", 1);
        let problem = health.problem().unwrap();
        assert_eq!((problem.reason.as_str(), problem.age().as_secs(), health.failures()), ("read-only", 3, 2));
        health.report_recovery();
        assert_eq!(health.problem(), None);
        health.report_failure("no space", 1);
        assert_eq!(health.problem().unwrap().age(), Duration::ZERO);
    }
}
