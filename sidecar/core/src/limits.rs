//! Counted limits of a cluster: requests in flight (`http2MaxRequests`) and retries in flight (`maxRetries`).
//!
//! One atomic per limit, shared by all workers, so that a limit of 100 is 100 per sidecar. Exact: the count is raised by
//! compare-and-swap and is never above the limit, unlike Envoy's, whose workers race. The limit is an argument of each
//! acquisition, not part of the counter: a new policy applies at once and the count survives it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The counters of one cluster, kept under its name for as long as it exists.
#[derive(Debug)]
pub struct ClusterLimits {
    /// Requests in flight; its limit is the pool's `max_requests`.
    pub requests: Limiter,
    /// Retries in flight; its limit is the pool's `max_retries`.
    pub retries: Limiter,
}

impl ClusterLimits {
    /// Counters at zero.
    pub fn new() -> Self {
        ClusterLimits { requests: Limiter::new("http2MaxRequests"), retries: Limiter::new("maxRetries") }
    }
}

impl Default for ClusterLimits {
    fn default() -> Self {
        Self::new()
    }
}

/// A count of what is in flight. Clones share the count.
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

/// Counts as one in flight until dropped.
#[derive(Debug)]
pub struct Permit(Arc<AtomicU32>);

impl Limiter {
    /// A count at zero, that reports overflows of `field`.
    pub fn new(field: &'static str) -> Self {
        Limiter { field, active: Arc::new(AtomicU32::new(0)) }
    }

    /// One more in flight, unless `limit` are already.
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

    /// How many are in flight now.
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
    fn refuses_at_the_limit_and_says_which() {
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
    fn a_lower_limit_applies_at_once() {
        let limiter = Limiter::new("x");
        let held: Vec<_> = (0..5).map(|_| limiter.try_acquire(5).unwrap()).collect();
        assert!(limiter.try_acquire(3).is_err());
        drop(held);
        assert!(limiter.try_acquire(3).is_ok());
    }

    #[test]
    fn never_above_the_limit_with_concurrent_callers() {
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
