//! Prometheus metrics with Istio's names and labels.
//!
//! Pairs of workloads are bounded: a sidecar that calls more workloads reports the rest as "other", so that a scrape does
//! not grow without end.

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use weft_core::flag::ResponseFlag;

use super::labels::{Pair, RequestLabels, RequestSample, Series, TcpLabels, Workload};

/// Pairs of workloads with labels of their own.
const MAX_PAIRS: usize = 2000;

/// Upper bounds of all histograms, Envoy's: milliseconds and bytes alike.
const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// All metrics of a sidecar.
pub struct Metrics {
    registry: Registry,
    pairs: Mutex<HashSet<Arc<Pair>>>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RequestLabels, Histogram, fn() -> Histogram>,
    request_bytes: Family<RequestLabels, Histogram, fn() -> Histogram>,
    response_bytes: Family<RequestLabels, Histogram, fn() -> Histogram>,
    tcp_opened: Family<TcpLabels, Counter>,
    tcp_closed: Family<TcpLabels, Counter>,
    tcp_sent: Family<TcpLabels, Counter>,
    tcp_received: Family<TcpLabels, Counter>,
    /// Connections refused because they were addressed to the proxy's own ports.
    pub loops: Counter,
    /// Inbound connections refused because they were plaintext under STRICT.
    pub plaintext_refused: Counter,
    /// TLS handshakes that failed, inbound.
    pub handshakes_failed: Counter,
    /// Mirrored bodies that were cut off: their mirrors fell behind by more than the proxy keeps for them.
    pub mirrors_cut: Counter,
    /// 1 while the rules of the redirection are gone and cannot be installed again.
    pub redirection_lost: Gauge,
    /// Times that lost rules were installed again.
    pub redirection_reinstalled: Counter,
    /// Seconds that the certificate is still valid.
    pub certificate_left_s: Gauge<f64, AtomicU64>,
    /// 1 while the stream to the control plane is up.
    pub control_plane_connected: Gauge,
    /// Requests and TCP connections of the application in progress.
    pub outbound_active: Gauge,
    /// The same from outside.
    pub inbound_active: Gauge,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::default(),
            pairs: Mutex::default(),
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            request_bytes: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            response_bytes: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            tcp_opened: Family::default(),
            tcp_closed: Family::default(),
            tcp_sent: Family::default(),
            tcp_received: Family::default(),
            loops: Counter::default(),
            plaintext_refused: Counter::default(),
            handshakes_failed: Counter::default(),
            mirrors_cut: Counter::default(),
            redirection_lost: Gauge::default(),
            redirection_reinstalled: Counter::default(),
            certificate_left_s: Gauge::default(),
            control_plane_connected: Gauge::default(),
            outbound_active: Gauge::default(),
            inbound_active: Gauge::default(),
        };
        let mut r = Registry::default();
        r.register("istio_requests", "Requests", metrics.requests.clone());
        r.register("istio_request_duration_milliseconds", "Duration of requests", metrics.durations.clone());
        r.register("istio_request_bytes", "Bytes of requests, headers and body", metrics.request_bytes.clone());
        r.register("istio_response_bytes", "Bytes of responses, headers and body", metrics.response_bytes.clone());
        r.register("istio_tcp_connections_opened", "TCP connections opened", metrics.tcp_opened.clone());
        r.register("istio_tcp_connections_closed", "TCP connections closed", metrics.tcp_closed.clone());
        r.register("istio_tcp_sent_bytes", "Bytes of TCP responses", metrics.tcp_sent.clone());
        r.register("istio_tcp_received_bytes", "Bytes of TCP requests", metrics.tcp_received.clone());
        r.register("weft_loops_refused", "Connections to the proxy's own ports", metrics.loops.clone());
        r.register("weft_plaintext_refused", "Plaintext refused under STRICT", metrics.plaintext_refused.clone());
        r.register("weft_handshakes_failed", "Inbound TLS handshakes failed", metrics.handshakes_failed.clone());
        r.register("weft_mirrors_cut", "Mirrored bodies cut off", metrics.mirrors_cut.clone());
        r.register("weft_redirection_lost", "Traffic is not captured any more", metrics.redirection_lost.clone());
        let help = "Lost rules of the redirection installed again";
        r.register("weft_redirection_reinstalled", help, metrics.redirection_reinstalled.clone());
        r.register(
            "weft_certificate_left_seconds",
            "Remaining life of the workload certificate",
            metrics.certificate_left_s.clone(),
        );
        r.register("weft_control_plane_connected", "Stream is up", metrics.control_plane_connected.clone());
        r.register("weft_outbound_active", "Outbound requests in progress", metrics.outbound_active.clone());
        r.register("weft_inbound_active", "Inbound requests in progress", metrics.inbound_active.clone());
        r.register_collector(Box::new(super::guards::Guards));
        metrics.registry = r;
        metrics
    }
}

impl Metrics {
    /// The one shared copy of these labels.
    pub fn pair(&self, pair: Pair) -> Arc<Pair> {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = pairs.get(&pair) {
            return known.clone();
        }
        let pair = if pairs.len() < MAX_PAIRS {
            Arc::new(pair)
        } else {
            let other: Arc<str> = "other".into();
            let unknown = Workload { name: other.clone(), app: other.clone(), ..Workload::unknown() };
            Arc::new(Pair {
                source: unknown.clone(),
                destination: unknown,
                service: other.clone(),
                service_name: other.clone(),
                service_namespace: other,
                ..pair
            })
        };
        let known = pairs.get(&pair).cloned().unwrap_or(pair);
        pairs.insert(known.clone());
        known
    }

    /// Counts a request that has ended.
    pub fn request(&self, pair: &Arc<Pair>, sample: &RequestSample) {
        let usual = match (sample.code, sample.grpc, sample.grpc_status) {
            (200, false, None) => Some(&pair.usual.http),
            (200, true, Some(0)) => Some(&pair.usual.grpc),
            _ => None,
        };
        match usual.filter(|_| sample.flags.is_empty()) {
            Some(series) => series.get_or_init(|| self.series(pair, sample)).add(sample),
            None => self.series(pair, sample).add(sample),
        }
    }

    fn series(&self, pair: &Arc<Pair>, sample: &RequestSample) -> Series {
        let labels = RequestLabels {
            pair: pair.clone(),
            code: sample.code,
            flags: sample.flags,
            grpc: sample.grpc,
            grpc_status: sample.grpc_status,
        };
        Series {
            requests: self.requests.get_or_create(&labels).clone(),
            durations: self.durations.get_or_create(&labels).clone(),
            request_bytes: self.request_bytes.get_or_create(&labels).clone(),
            response_bytes: self.response_bytes.get_or_create(&labels).clone(),
        }
    }

    /// Counts a TCP connection that begins.
    pub fn tcp_opened(&self, pair: &Arc<Pair>) {
        self.tcp_opened.get_or_create(&TcpLabels { pair: pair.clone(), flag: None }).inc();
    }

    /// Counts a TCP connection that has ended. `received`: from the client; `sent`: to it.
    pub fn tcp_closed(&self, pair: &Arc<Pair>, flag: Option<ResponseFlag>, received: u64, sent: u64) {
        let labels = TcpLabels { pair: pair.clone(), flag };
        self.tcp_closed.get_or_create(&labels).inc();
        self.tcp_received.get_or_create(&labels).inc_by(received);
        self.tcp_sent.get_or_create(&labels).inc_by(sent);
    }

    /// The page that Prometheus scrapes (OpenMetrics text).
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_core::flag::ResponseFlags;

    use super::*;
    use crate::telemetry::labels::Usual;

    fn pair(name: &str) -> Pair {
        Pair {
            reporter: "source",
            source: Workload::unknown(),
            destination: Workload { name: name.into(), ..Workload::unknown() },
            service: "order-service.default.svc.cluster.local".into(),
            service_name: "order-service".into(),
            service_namespace: "default".into(),
            mtls: true,
            usual: Usual::default(),
        }
    }

    fn sample(code: u16) -> RequestSample {
        RequestSample {
            code,
            flags: ResponseFlags::NONE,
            grpc: false,
            grpc_status: None,
            duration: Duration::from_millis(3),
            request_bytes: 300,
            response_bytes: 10,
        }
    }

    #[test]
    fn requests_are_counted_under_istios_names() {
        let metrics = Metrics::default();
        let a = metrics.pair(pair("order"));
        assert!(Arc::ptr_eq(&a, &metrics.pair(pair("order"))));
        metrics.request(&a, &sample(200));
        metrics.request(&a, &sample(200));
        metrics.request(&a, &RequestSample { flags: ResponseFlag::UpstreamOverflow.into(), ..sample(503) });
        let page = metrics.render();
        let of = |code: &str| {
            let line = page.lines().find(|l| l.starts_with("istio_requests_total{") && l.contains(code));
            line.and_then(|l| l.rsplit(' ').next()).map(str::to_owned)
        };
        assert_eq!(of("response_code=\"200\"").as_deref(), Some("2"));
        assert_eq!(of("response_flags=\"UO\"").as_deref(), Some("1"));
        let sum = |name: &str| {
            let line =
                page.lines().find(|l| l.starts_with(&format!("{name}_sum{{")) && l.contains("response_code=\"200\""));
            line.and_then(|l| l.rsplit(' ').next()).map(str::to_owned)
        };
        assert_eq!(sum("istio_request_bytes").as_deref(), Some("600.0"));
        assert_eq!(sum("istio_response_bytes").as_deref(), Some("20.0"));
        assert!(page.contains("istio_request_bytes_bucket") && page.contains("istio_response_bytes_bucket"));
        assert!(page.contains("istio_request_duration_milliseconds_bucket"));
        assert!(page.contains("destination_workload=\"order\""));
    }

    #[test]
    fn pairs_are_bounded() {
        let metrics = Metrics::default();
        for i in 0..MAX_PAIRS + 100 {
            metrics.pair(pair(&i.to_string()));
        }
        let (a, b) = (metrics.pair(pair("x")), metrics.pair(pair("y")));
        assert!(Arc::ptr_eq(&a, &b));
        assert_eq!(&*a.destination.name, "other");
    }
}
