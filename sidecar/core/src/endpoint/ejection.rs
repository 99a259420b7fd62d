//! The state of outlier detection that belongs to an endpoint.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Counters of one endpoint of one cluster.
#[derive(Debug, Default)]
pub struct EjectionState {
    pub(crate) consecutive_5xx: AtomicU32,
    pub(crate) consecutive_gateway_errors: AtomicU32,
    pub(crate) consecutive_local_failures: AtomicU32,
    pub(crate) ejected: AtomicBool,
    pub(crate) history: Mutex<History>,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    /// Ejections in a row: the factor of the ejection time. Decremented after each healthy interval.
    pub(crate) multiplier: u32,
    pub(crate) ejected_at: Option<Instant>,
}

impl EjectionState {
    /// Whether the endpoint is ejected.
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Acquire)
    }

    /// Marks an endpoint as ejected by another proxy, for a simulation of that proxy. No [`crate::outlier::Detector`] ends this.
    pub fn adopt(&self) {
        self.ejected.store(true, Ordering::Release);
    }

    /// Resets all counters and the ejection.
    pub(crate) fn reset(&self) {
        *lock(&self.history) = History::default();
        self.clear_counters();
        self.ejected.store(false, Ordering::Release);
    }

    /// Stores only if needed: success is the usual case and must not take the cache line from other workers.
    pub(crate) fn clear_counters(&self) {
        clear(&self.consecutive_5xx);
        clear(&self.consecutive_gateway_errors);
        clear(&self.consecutive_local_failures);
    }
}

/// Stores only if needed: success is the usual case and must not take the cache line from other workers.
pub(crate) fn clear(counter: &AtomicU32) {
    if counter.load(Ordering::Relaxed) != 0 {
        counter.store(0, Ordering::Relaxed);
    }
}

/// The code under these locks does not panic; if it did, the data would still be consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
