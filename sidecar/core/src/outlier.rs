//! Outlier detection: an endpoint that fails several times in a row is left out of balancing for a while. Envoy's rules.
//!
//! Counting is atomic and per endpoint; only crossing a threshold takes the cluster's lock, under which the share of
//! ejected endpoints is counted, so that `maxEjectionPercent` holds exactly whatever the number of workers. The counters
//! live with the endpoint (`EndpointState`), the lock is handed from one snapshot's detector to the next: a request that
//! still holds the old snapshot counts in the same place.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::endpoint::Endpoint;
use crate::outcome::Outcome;
use crate::policy::OutlierDetection;

/// Counters of one endpoint of one cluster.
#[derive(Debug, Default)]
pub struct EjectionState {
    consecutive_5xx: AtomicU32,
    consecutive_gateway_errors: AtomicU32,
    consecutive_local_failures: AtomicU32,
    ejected: AtomicBool,
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    /// Ejections in a row: multiplies the time. One less for each interval spent in health.
    multiplier: u32,
    ejected_at: Option<Instant>,
}

/// Why an endpoint was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EjectionCause {
    /// `consecutive5xxErrors`
    Consecutive5xx,
    /// `consecutiveGatewayErrors`
    ConsecutiveGatewayErrors,
    /// `consecutiveLocalOriginFailures`
    ConsecutiveLocalOriginFailures,
}

/// An endpoint has just been ejected: the caller rebuilds the balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// Which counter reached its threshold.
    pub cause: EjectionCause,
    /// Ejections in a row, this one included.
    pub multiplier: u32,
    /// How long it lasts at least; it ends at the first tick after that.
    pub duration: Duration,
}

/// Outlier detection of one cluster.
#[derive(Debug)]
pub struct Detector {
    policy: OutlierDetection,
    // All endpoints of the cluster, behind the lock that makes ejections one at a time.
    endpoints: Arc<Mutex<Vec<Arc<Endpoint>>>>,
}

/// An ejection lasts no longer than this, unless `baseEjectionTime` itself is longer.
const MAX_EJECTION_TIME: Duration = Duration::from_secs(300);

impl EjectionState {
    /// Left out of balancing now.
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Acquire)
    }

    /// Takes over from another proxy, which has ejected it: for those who tell what that proxy does. No [`Detector`] ends
    /// it.
    pub fn adopt(&self) {
        self.ejected.store(true, Ordering::Release);
    }

    /// Forgets everything.
    pub(crate) fn reset(&self) {
        *lock(&self.history) = History::default();
        self.clear_counters();
        self.ejected.store(false, Ordering::Release);
    }

    fn clear_counters(&self) {
        clear(&self.consecutive_5xx);
        clear(&self.consecutive_gateway_errors);
        clear(&self.consecutive_local_failures);
    }
}

/// Stores only when needed: success is the usual case and must not take the cache line from the other workers.
fn clear(counter: &AtomicU32) {
    if counter.load(Ordering::Relaxed) != 0 {
        counter.store(0, Ordering::Relaxed);
    }
}

/// Nothing can panic while these locks are held; if it did, the data would still be whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Detector {
    /// For a cluster's endpoints (all of them, unhealthy ones too). `previous`: the same cluster's of the snapshot before.
    pub fn new(policy: OutlierDetection, endpoints: Vec<Arc<Endpoint>>, previous: Option<&Detector>) -> Self {
        let shared = match previous {
            Some(previous) => {
                *lock(&previous.endpoints) = endpoints;
                previous.endpoints.clone()
            }
            None => Arc::new(Mutex::new(endpoints)),
        };
        Detector { policy, endpoints: shared }
    }

    /// How often [`Detector::tick`] is to be called.
    pub fn interval(&self) -> Duration {
        self.policy.interval
    }

    /// Counts an attempt's outcome for the endpoint that it went to. `Some`: the endpoint is ejected from now on.
    pub fn record(&self, endpoint: &Endpoint, outcome: &Outcome, now: Instant) -> Option<Ejection> {
        let state = &endpoint.state.ejection;
        let status = outcome.counted_status()?;
        if self.policy.split_external_local_origin_errors {
            if outcome.is_local_failure() {
                // As in Envoy a connection that is there ends the row: what fails on it begins another one.
                if outcome.was_connected() {
                    clear(&state.consecutive_local_failures);
                }
                let (counter, limit) =
                    (&state.consecutive_local_failures, self.policy.consecutive_local_origin_failures);
                return self.count(endpoint, counter, limit, EjectionCause::ConsecutiveLocalOriginFailures, now);
            }
            // An answer means that a connection was made.
            clear(&state.consecutive_local_failures);
        }
        let Some(status) = self.error(status, outcome) else {
            clear(&state.consecutive_5xx);
            clear(&state.consecutive_gateway_errors);
            return None;
        };
        let by_gateway_error = if matches!(status.as_u16(), 502..=504) {
            let (counter, limit) = (&state.consecutive_gateway_errors, self.policy.consecutive_gateway_errors);
            self.count(endpoint, counter, limit, EjectionCause::ConsecutiveGatewayErrors, now)
        } else {
            clear(&state.consecutive_gateway_errors);
            None
        };
        let (counter, limit) = (&state.consecutive_5xx, self.policy.consecutive_5xx);
        let by_5xx = self.count(endpoint, counter, limit, EjectionCause::Consecutive5xx, now);
        by_gateway_error.or(by_5xx)
    }

    /// As which error an outcome counts: its own status, or 500 for one that only the policy calls an error.
    fn error(&self, status: StatusCode, outcome: &Outcome) -> Option<StatusCode> {
        let is_error = match self.policy.error_codes.as_slice() {
            // A failure to be answered is one whatever answers are.
            codes if !codes.is_empty() && !outcome.is_local_failure() => codes.contains(&status),
            _ => status.is_server_error(),
        };
        let counted = if status.is_server_error() { status } else { StatusCode::INTERNAL_SERVER_ERROR };
        is_error.then_some(counted)
    }

    /// Ends ejections whose time is over and forgives endpoints that were healthy; to be called once per
    /// [`Detector::interval`]. True: an endpoint came back; the caller rebuilds the balancer.
    pub fn tick(&self, now: Instant) -> bool {
        let endpoints = lock(&self.endpoints);
        let mut changed = false;
        for endpoint in endpoints.iter() {
            let state = &endpoint.state.ejection;
            let mut history = lock(&state.history);
            let Some(ejected_at) = history.ejected_at else {
                history.multiplier = history.multiplier.saturating_sub(1);
                continue;
            };
            if now.saturating_duration_since(ejected_at) >= self.ejection_time(history.multiplier) {
                history.ejected_at = None;
                // Or the counter that did not eject would do so after very few further errors.
                state.clear_counters();
                state.ejected.store(false, Ordering::Release);
                changed = true;
            }
        }
        changed
    }

    fn count(
        &self,
        endpoint: &Endpoint,
        counter: &AtomicU32,
        limit: Option<u32>,
        cause: EjectionCause,
        now: Instant,
    ) -> Option<Ejection> {
        let limit = limit?;
        // Above the limit, too: a new policy may have lowered it. Whoever comes first clears the counter below.
        if counter.fetch_add(1, Ordering::Relaxed).saturating_add(1) < limit {
            return None;
        }
        let endpoints = lock(&self.endpoints);
        let state = &endpoint.state.ejection;
        if state.is_ejected() || counter.load(Ordering::Relaxed) < limit {
            return None;
        }
        // Cleared even when the ejection is refused: the next one takes as many errors again.
        counter.store(0, Ordering::Relaxed);
        let ejected = endpoints.iter().filter(|endpoint| endpoint.is_ejected()).count();
        let total = endpoints.len();
        let may = 100 * (ejected + 1) <= total * self.policy.max_ejection_percent as usize;
        if !may || !endpoints.iter().any(|known| known.is_same(endpoint)) {
            return None;
        }
        let mut history = lock(&state.history);
        // No further than the time still grows (and one, as Envoy), so that a long bad past is forgiven in few intervals.
        let base = self.policy.base_ejection_time;
        if base.saturating_mul(history.multiplier) < MAX_EJECTION_TIME.max(base) + base {
            history.multiplier += 1;
        }
        history.ejected_at = Some(now);
        state.ejected.store(true, Ordering::Release);
        let multiplier = history.multiplier;
        Some(Ejection { cause, multiplier, duration: self.ejection_time(multiplier) })
    }

    fn ejection_time(&self, multiplier: u32) -> Duration {
        let base = self.policy.base_ejection_time;
        base.saturating_mul(multiplier).min(MAX_EJECTION_TIME.max(base))
    }
}

#[cfg(test)]
pub(crate) mod tests;
