//! Counted limits of a cluster: requests in flight (`http2MaxRequests`) and retries in flight (`maxRetries`).
//!
//! One atomic per limit, shared by all workers, so that a limit of 100 is 100 per sidecar. Exact: the count is raised
//! by compare-and-swap and never exceeds the limit, unlike Envoy's, whose workers race. The limit is an argument of
//! each acquisition, not part of the counter: a new policy applies at once and the count survives it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::policy::ConnectionPool;
use crate::windowed_count::WindowedCount;

/// The counters of one cluster, kept under the cluster's name as long as it exists.
#[derive(Debug)]
pub struct ClusterLimits {
    /// Requests in flight; its limit is the pool's `max_requests`.
    pub requests: Limiter,
    /// Retries in flight; its limit is the pool's `max_retries`.
    pub retries: Limiter,
    /// Number of recent requests, for retry budgets with an interval.
    recent_requests: WindowedCount,
}

impl ClusterLimits {
    /// Counters at zero.
    pub fn new() -> Self {
        let (requests, retries) = (Limiter::new("http2MaxRequests"), Limiter::new("maxRetries"));
        ClusterLimits { requests, retries, recent_requests: WindowedCount::default() }
    }

    /// Records the start of an attempt. `now` is called only if the policy needs the time.
    pub fn record_request(&self, pool: &ConnectionPool, now: impl FnOnce() -> Instant) {
        if let Some(interval) = pool.retry_budget.and_then(|budget| budget.interval) {
            self.recent_requests.add(interval, now());
        }
    }

    /// Acquires a permit for a retry. `now` is called only if the policy needs the time.
    ///
    /// # Errors
    /// If the limit of concurrent retries is reached.
    pub fn try_retry(&self, pool: &ConnectionPool, now: impl FnOnce() -> Instant) -> Result<Permit, Overflow> {
        let requests = match pool.retry_budget.and_then(|budget| budget.interval) {
            Some(interval) => self.recent_requests.count(interval, now()),
            None => self.requests.active(),
        };
        self.retries.try_acquire(pool.retries(requests))
    }
}

impl Default for ClusterLimits {
    fn default() -> Self {
        Self::new()
    }
}

/// A count of concurrent uses. Clones share it.
#[derive(Debug, Clone)]
pub struct Limiter {
    field: &'static str,
    active: Arc<AtomicU32>,
}

/// A limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} {limit} reached")]
pub struct Overflow {
    /// The policy's field, for example `http2MaxRequests`.
    pub field: &'static str,
    /// Its value.
    pub limit: u32,
}

/// Counts as one use until dropped.
#[derive(Debug)]
pub struct Permit(Arc<AtomicU32>);

impl Limiter {
    /// A count at zero; overflows report `field`.
    pub fn new(field: &'static str) -> Self {
        Limiter { field, active: Arc::new(AtomicU32::new(0)) }
    }

    /// One more use; an error if `limit` uses are in progress already.
    pub fn try_acquire(&self, limit: u32) -> Result<Permit, Overflow> {
        // The counter guards no other memory: relaxed suffices, and its own order is total.
        let raised = self.active.try_update(Ordering::Relaxed, Ordering::Relaxed, |active| {
            (active < limit).then_some(active.saturating_add(1))
        });
        match raised {
            Ok(_) => Ok(Permit(self.active.clone())),
            Err(_) => Err(Overflow { field: self.field, limit }),
        }
    }

    /// The current number of uses.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_names_the_field_and_the_limit() {
        let limits = ClusterLimits::new();
        let first = limits.requests.try_acquire(1).unwrap();
        let refused = limits.requests.try_acquire(1).unwrap_err();
        assert_eq!(refused, Overflow { field: "http2MaxRequests", limit: 1 });
        drop(first);
        assert_eq!(limits.requests.active(), 0);
        assert!(limits.requests.try_acquire(1).is_ok());
        assert_eq!(limits.retries.try_acquire(0).unwrap_err(), Overflow { field: "maxRetries", limit: 0 });
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn retry_budget_counts_requests_in_flight_or_within_the_interval() {
        use crate::policy::RetryBudget;
        use std::time::Duration;
        let (limits, start) = (ClusterLimits::new(), Instant::now());
        let pool = |interval| ConnectionPool {
            retry_budget: Some(RetryBudget { percent: 20.0, minimum: 0, interval }),
            ..ConnectionPool::default()
        };
        let (flying, late) = (pool(None), pool(Some(Duration::from_secs(10))));
        let most = |pool: &ConnectionPool, seconds: u64| {
            let mut permits = Vec::new();
            while let Ok(permit) = limits.try_retry(pool, || start + Duration::from_secs(seconds)) {
                permits.push(permit);
            }
            permits.len()
        };
        let _requests: Vec<_> = (0..10).map(|_| limits.requests.try_acquire(u32::MAX)).collect();
        for _ in 0..50 {
            limits.record_request(&late, || start);
        }
        assert_eq!((most(&flying, 0), most(&late, 0), most(&late, 10), most(&late, 11)), (2, 10, 10, 0));
        limits.record_request(&flying, || unreachable!("this budget needs no time"));
    }

    #[test]
    fn a_lower_limit_applies_at_once() {
        let limiter = Limiter::new("x");
        let permits: Vec<_> = (0..5).map(|_| limiter.try_acquire(5).unwrap()).collect();
        assert!(limiter.try_acquire(3).is_err());
        drop(permits);
        assert!(limiter.try_acquire(3).is_ok());
    }

    #[test]
    fn concurrent_callers_never_exceed_the_limit() {
        const LIMIT: u32 = 7;
        let limiter = Limiter::new("x");
        let peak = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        if let Ok(_permit) = limiter.try_acquire(LIMIT) {
                            peak.fetch_max(limiter.active(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(limiter.active(), 0);
        assert!((1..=LIMIT).contains(&peak.load(Ordering::Relaxed)));
    }
}
