//! Labels of the proxy's metrics, which are Istio's, and the samples that are counted under them.
//!
//! The labels of a pair of workloads are many and long; they are made once per endpoint and shared ([`Pair`]), and the
//! hot path hashes a pointer and four small numbers.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use weft_core::flag::{ResponseFlag, ResponseFlags};

/// One side of a pair.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Name; "unknown" where it is not known.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// SPIFFE ID; "unknown" for plaintext.
    pub principal: Arc<str>,
    /// Label `app`, else the name.
    pub app: Arc<str>,
    /// Label `version`, else "latest".
    pub version: Arc<str>,
}

impl Workload {
    /// One of which nothing is known.
    pub fn unknown() -> Workload {
        let unknown: Arc<str> = "unknown".into();
        Workload {
            name: unknown.clone(),
            namespace: unknown.clone(),
            principal: unknown.clone(),
            app: unknown.clone(),
            version: unknown,
        }
    }
}

/// Labels of a pair of workloads: source and destination.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    /// "source" or "destination".
    pub reporter: &'static str,
    /// The caller.
    pub source: Workload,
    /// The called.
    pub destination: Workload,
    /// Canonical host.
    pub service: Arc<str>,
    /// Short name of the service.
    pub service_name: Arc<str>,
    /// Its namespace.
    pub service_namespace: Arc<str>,
    /// Whether the connection is mTLS.
    pub mtls: bool,
    /// Where most of its requests are counted.
    pub usual: Usual,
}

/// The series of successful requests, found once. It is not part of the pair's identity: all are equal.
#[derive(Default)]
pub struct Usual {
    pub(super) http: OnceLock<Series>,
    pub(super) grpc: OnceLock<Series>,
}

impl PartialEq for Usual {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Usual {}

impl Hash for Usual {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Clone for Usual {
    fn clone(&self) -> Self {
        Usual::default()
    }
}

impl fmt::Debug for Usual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Usual")
    }
}

/// Where requests with the same labels are counted.
pub(super) struct Series {
    pub(super) requests: Counter,
    pub(super) durations: Histogram,
    pub(super) request_bytes: Histogram,
    pub(super) response_bytes: Histogram,
}

impl Series {
    pub(super) fn add(&self, sample: &RequestSample) {
        self.requests.inc();
        self.durations.observe(sample.duration.as_secs_f64() * 1000.0);
        self.request_bytes.observe(sample.request_bytes as f64);
        self.response_bytes.observe(sample.response_bytes as f64);
    }
}

/// Labels of one request series.
#[derive(Debug, Clone)]
pub(super) struct RequestLabels {
    pub(super) pair: Arc<Pair>,
    pub(super) code: u16,
    pub(super) flags: ResponseFlags,
    pub(super) grpc: bool,
    pub(super) grpc_status: Option<u32>,
}

impl PartialEq for RequestLabels {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pair, &other.pair)
            && (self.code, self.flags, self.grpc, self.grpc_status)
                == (other.code, other.flags, other.grpc, other.grpc_status)
    }
}

impl Eq for RequestLabels {}

impl Hash for RequestLabels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (Arc::as_ptr(&self.pair), self.code, self.flags, self.grpc, self.grpc_status).hash(state);
    }
}

fn encode_pair(pair: &Pair, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
    let mut put = |name: &str, value: &str| (name, value).encode(encoder.encode_label());
    put("reporter", pair.reporter)?;
    let (s, d) = (&pair.source, &pair.destination);
    put("source_workload", &s.name)?;
    put("source_workload_namespace", &s.namespace)?;
    put("source_principal", &s.principal)?;
    put("source_app", &s.app)?;
    put("source_version", &s.version)?;
    put("source_canonical_service", &s.app)?;
    put("source_canonical_revision", &s.version)?;
    put("source_cluster", "Weft")?;
    put("destination_workload", &d.name)?;
    put("destination_workload_namespace", &d.namespace)?;
    put("destination_principal", &d.principal)?;
    put("destination_app", &d.app)?;
    put("destination_version", &d.version)?;
    put("destination_service", &pair.service)?;
    put("destination_service_name", &pair.service_name)?;
    put("destination_service_namespace", &pair.service_namespace)?;
    put("destination_canonical_service", &d.app)?;
    put("destination_canonical_revision", &d.version)?;
    put("destination_cluster", "Weft")?;
    let security = match (pair.reporter, pair.mtls) {
        ("destination", true) => "mutual_tls",
        ("destination", false) => "none",
        _ => "unknown",
    };
    put("connection_security_policy", security)
}

impl EncodeLabelSet for RequestLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        encode_pair(&self.pair, encoder)?;
        let mut put = |name: &str, value: &str| (name, value).encode(encoder.encode_label());
        put("request_protocol", if self.grpc { "grpc" } else { "http" })?;
        put("response_code", &self.code.to_string())?;
        put("grpc_response_status", &self.grpc_status.map(|s| s.to_string()).unwrap_or_default())?;
        put("response_flags", &self.flags.to_string())
    }
}

/// Labels of one TCP series.
#[derive(Debug, Clone)]
pub(super) struct TcpLabels {
    pub(super) pair: Arc<Pair>,
    pub(super) flag: Option<ResponseFlag>,
}

impl PartialEq for TcpLabels {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pair, &other.pair) && self.flag == other.flag
    }
}

impl Eq for TcpLabels {}

impl Hash for TcpLabels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (Arc::as_ptr(&self.pair), self.flag).hash(state);
    }
}

impl EncodeLabelSet for TcpLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        encode_pair(&self.pair, encoder)?;
        let mut put = |name: &str, value: &str| (name, value).encode(encoder.encode_label());
        put("request_protocol", "tcp")?;
        put("response_flags", self.flag.map_or("-", ResponseFlag::as_str))
    }
}

/// One request's contribution.
#[derive(Debug, Clone, Copy)]
pub struct RequestSample {
    /// HTTP status; 0 when none was sent.
    pub code: u16,
    /// Why it did not go the usual way.
    pub flags: ResponseFlags,
    /// Whether it is gRPC.
    pub grpc: bool,
    /// gRPC's own status.
    pub grpc_status: Option<u32>,
    /// From the request's arrival to the response's end.
    pub duration: Duration,
    /// Bytes of headers and body from the client.
    pub request_bytes: u64,
    /// Bytes of headers and body to the client.
    pub response_bytes: u64,
}
