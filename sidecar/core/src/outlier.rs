//! Outlier detection: an endpoint that fails several times in a row is excluded from balancing for a while. Envoy's
//! rules.
//!
//! Counting is atomic and per endpoint; only crossing a threshold takes the cluster's lock, under which the share of
//! ejected endpoints is computed, so that `maxEjectionPercent` holds exactly for any number of workers. The counters
//! belong to the endpoint (`EndpointState`), and the lock is passed from one snapshot's detector to the next: a request
//! that still holds the old snapshot counts in the same place.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::endpoint::Endpoint;
use crate::endpoint::ejection::{clear, lock};
use crate::outcome::Outcome;
use crate::policy::OutlierDetection;

/// Reason for an ejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EjectionCause {
    /// `consecutive5xxErrors`
    Consecutive5xx,
    /// `consecutiveGatewayErrors`
    ConsecutiveGatewayErrors,
    /// `consecutiveLocalOriginFailures`
    ConsecutiveLocalOriginFailures,
}

/// An endpoint has just been ejected: the caller must rebuild the balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// The counter that reached its threshold.
    pub cause: EjectionCause,
    /// Ejections in a row, this one included.
    pub multiplier: u32,
    /// Minimum duration; the ejection ends at the first tick after it.
    pub duration: Duration,
}

/// Outlier detection of one cluster.
#[derive(Debug)]
pub struct Detector {
    policy: OutlierDetection,
    // All endpoints of the cluster; the lock serialises ejections.
    endpoints: Arc<Mutex<Vec<Arc<Endpoint>>>>,
}

/// Maximum ejection time, unless `baseEjectionTime` itself is longer.
const MAX_EJECTION_TIME: Duration = Duration::from_secs(300);

impl Detector {
    /// Takes all endpoints of a cluster, including unhealthy ones. `previous`: the cluster's detector in the preceding
    /// snapshot.
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

    /// Interval between calls of [`Detector::tick`].
    pub fn interval(&self) -> Duration {
        self.policy.interval
    }

    /// Counts an attempt's outcome for its endpoint. `Some`: this ejects the endpoint.
    pub fn record(&self, endpoint: &Endpoint, outcome: &Outcome, now: Instant) -> Option<Ejection> {
        let state = &endpoint.state.ejection;
        let status = outcome.counted_status()?;
        if self.policy.split_external_local_origin_errors {
            if outcome.is_local_failure() {
                // As in Envoy, an established connection resets the counter, and a failure on it starts a new one.
                if outcome.was_connected() {
                    clear(&state.consecutive_local_failures);
                }
                let (counter, limit) =
                    (&state.consecutive_local_failures, self.policy.consecutive_local_origin_failures);
                return self.count(endpoint, counter, limit, EjectionCause::ConsecutiveLocalOriginFailures, now);
            }
            // A response proves that the connection succeeded.
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

    /// Error status of an outcome: its own status, or 500 for a status that is an error by policy only.
    fn error(&self, status: StatusCode, outcome: &Outcome) -> Option<StatusCode> {
        let is_error = match self.policy.error_codes.as_slice() {
            // The list of statuses applies to responses; a local failure is an error regardless.
            codes if !codes.is_empty() && !outcome.is_local_failure() => codes.contains(&status),
            _ => status.is_server_error(),
        };
        let counted = if status.is_server_error() { status } else { StatusCode::INTERNAL_SERVER_ERROR };
        is_error.then_some(counted)
    }

    /// Ends expired ejections and lowers the multiplier of healthy endpoints; call it once per [`Detector::interval`].
    /// True: an endpoint has returned, and the caller must rebuild the balancer.
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
                // Otherwise a counter that has not ejected the endpoint yet would do so after very few further errors.
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
        // Also above the limit: a new policy may have lowered it. The first worker here clears the counter below.
        if counter.fetch_add(1, Ordering::Relaxed).saturating_add(1) < limit {
            return None;
        }
        let endpoints = lock(&self.endpoints);
        let state = &endpoint.state.ejection;
        if state.is_ejected() || counter.load(Ordering::Relaxed) < limit {
            return None;
        }
        // Cleared even if the ejection is refused: the next one requires the same number of errors again.
        counter.store(0, Ordering::Relaxed);
        let ejected = endpoints.iter().filter(|endpoint| endpoint.is_ejected()).count();
        let total = endpoints.len();
        let may = 100 * (ejected + 1) <= total * self.policy.max_ejection_percent as usize;
        if !may || !endpoints.iter().any(|known| known.is_same(endpoint)) {
            return None;
        }
        let mut history = lock(&state.history);
        // The multiplier stops (one later, as in Envoy) when the time no longer grows, so that a long bad past is
        // forgiven in few intervals.
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
