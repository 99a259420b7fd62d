//! Readiness and metrics of the control plane, for probes and Prometheus, at the listener of [`crate::api::listener`].
//!
//! Sidecars are served from memory while the store accepts no writes, so the process stays alive then and is not ready:
//! it refuses registrations. Liveness is that the port answers.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use weft_listen::counts;
use weft_registry_api::reply::{self, Reply};

use crate::store::health::{Health, Problem};
use crate::store::snapshot::automatic;

/// Path of readiness, as at a sidecar. It needs no token.
pub const READY: &str = "/healthz/ready";
/// Path of the metrics.
pub const METRICS: &str = "/metrics";

/// The sources of the metrics.
#[derive(Clone, Default)]
pub struct Telemetry {
    /// Whether the store accepts writes.
    pub store: Arc<Health>,
    /// Number of requests that were out of bounds.
    pub out_of_bounds: Arc<AtomicU64>,
    /// Number of refused certificates.
    pub certificates_refused: Arc<AtomicU64>,
    /// Automatic snapshots.
    pub snapshots: Arc<automatic::Counts>,
    /// Kubernetes' admission webhooks.
    pub admissions: Arc<Admissions>,
}

/// Answers of the admission webhooks.
#[derive(Debug, Default)]
pub struct Admissions {
    /// Pods that were injected.
    pub injected: AtomicU64,
    /// Pods that were admitted without a sidecar.
    pub skipped: AtomicU64,
    /// Pods that were refused.
    pub refused: AtomicU64,
    /// Policies that were accepted.
    pub accepted: AtomicU64,
    /// Policies that were refused.
    pub rejected: AtomicU64,
}

/// One line for people: a store's problem and its duration.
pub fn describe(problem: &Problem) -> String {
    format!("the store has accepted no writes for {} s: {}", problem.age().as_secs(), problem.reason)
}

impl Telemetry {
    /// The response for a path, `None` for other paths.
    pub fn answer(&self, path: &str) -> Option<Reply> {
        match path {
            READY => Some(self.ready()),
            METRICS => Some(reply::text(self.metrics())),
            _ => None,
        }
    }

    fn ready(&self) -> Reply {
        let Some(problem) = self.store.problem() else { return reply::text("ready\n") };
        let mut answer = reply::text(format!("not ready: {}\n", describe(&problem)));
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        answer
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        let value = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let admissions = &self.admissions;
        for (name, kind, help, value) in [
            (
                "weft_store_writable",
                "gauge",
                "1 while the store accepts writes, else 0.",
                u64::from(self.store.problem().is_none()),
            ),
            ("weft_store_write_failures_total", "counter", "Writes that the store refused.", self.store.failures()),
            (
                "weft_store_repairs_total",
                "counter",
                "Damaged stores that were reset to an older state.",
                self.store.repairs(),
            ),
            ("weft_snapshots_total", "counter", "Automatic snapshots made.", value(&self.snapshots.written)),
            (
                "weft_out_of_bounds_total",
                "counter",
                "Requests that were refused because they were larger than allowed, or above a budget.",
                self.out_of_bounds.load(Ordering::Relaxed),
            ),
            (
                "weft_certificates_refused_total",
                "counter",
                "Requests for certificates that were refused to an identity: too many of them, an expired token or certificate.",
                self.certificates_refused.load(Ordering::Relaxed),
            ),
            (
                "weft_too_many_requests_total",
                "counter",
                "Requests of the HTTP APIs that were answered with 429.",
                counts::TOO_MANY_REQUESTS.value(),
            ),
            (
                "weft_idle_connections_closed_total",
                "counter",
                "Idle connections closed for newer ones.",
                counts::IDLE_CLOSED.value(),
            ),
            (
                "weft_snapshot_failures_total",
                "counter",
                "Automatic snapshots that failed.",
                value(&self.snapshots.failed),
            ),
            (
                "weft_pods_injected_total",
                "counter",
                "Pods that the admission webhook gave a sidecar.",
                value(&admissions.injected),
            ),
            (
                "weft_pods_skipped_total",
                "counter",
                "Pods that the admission webhook admitted without a sidecar.",
                value(&admissions.skipped),
            ),
            (
                "weft_pods_refused_total",
                "counter",
                "Pods that the admission webhook refused.",
                value(&admissions.refused),
            ),
            (
                "weft_policies_admitted_total",
                "counter",
                "Policies that the admission webhook accepted.",
                value(&admissions.accepted),
            ),
            (
                "weft_policies_refused_total",
                "counter",
                "Policies that the admission webhook refused.",
                value(&admissions.rejected),
            ),
        ] {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_and_metrics_follow_the_store() {
        let telemetry = Telemetry::default();
        let ask = |path| {
            telemetry.answer(path).map(|a| (a.status().as_u16(), String::from_utf8_lossy(a.body()).into_owned()))
        };
        assert_eq!(ask(READY), Some((200, "ready\n".into())));
        telemetry.store.report_failure("cannot write a: no space", 1);
        let (status, text) = ask(READY).unwrap();
        assert!(status == 503 && text.ends_with("no writes for 0 s: cannot write a: no space\n"), "{status} {text}");
        let metrics = ask(METRICS).unwrap().1;
        assert!(
            metrics.contains("\nweft_store_writable 0\n") && metrics.contains("\nweft_store_write_failures_total 1\n")
        );
        telemetry.store.report_recovery();
        assert_eq!(ask(READY).unwrap().0, 200);
        assert_eq!(ask("/v1/kv/metrics"), None);
        telemetry.certificates_refused.fetch_add(1, Ordering::Relaxed);
        telemetry.admissions.injected.fetch_add(2, Ordering::Relaxed);
        telemetry.admissions.rejected.fetch_add(1, Ordering::Relaxed);
        let metrics = ask(METRICS).unwrap().1;
        for line in [
            "weft_certificates_refused_total 1\n",
            "\nweft_too_many_requests_total ",
            "\nweft_idle_connections_closed_total ",
            "\nweft_pods_injected_total 2\n",
            "\nweft_policies_refused_total 1\n",
        ] {
            assert!(metrics.contains(line), "{line}: {metrics}");
        }
    }
}
