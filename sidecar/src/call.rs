//! One request from its arrival to its last byte: what is measured and logged of it, and what it holds meanwhile.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use http::HeaderMap;
use weft_core::endpoint::InFlight;
use weft_core::limits::Permit;
use weft_core::outcome::ResponseFlag;

use crate::body::BodyState;
use crate::metrics::{Metrics, Pair, RequestSample};
use crate::pool::Lease;

/// Requests and connections in progress: what a drain waits for.
#[derive(Debug, Default)]
pub struct Activity(AtomicUsize);

/// One of them.
#[derive(Debug)]
pub struct Active(Arc<Activity>);

impl Activity {
    /// Counts one until it is dropped.
    pub fn begin(self: &Arc<Self>) -> Active {
        self.0.fetch_add(1, Ordering::AcqRel);
        Active(self.clone())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Where access log lines go.
pub struct AccessLog {
    lines: std::sync::mpsc::SyncSender<String>,
    lost: AtomicUsize,
}

impl AccessLog {
    /// Writes to `file` (`-`: standard output) on a thread of its own: a slow disk must not hold up traffic. Lines that
    /// it cannot take in time are dropped, and counted in the next one that gets through.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(file: &str) -> std::io::Result<AccessLog> {
        let mut out: Box<dyn Write + Send> = if file == "-" {
            Box::new(std::io::stdout())
        } else {
            Box::new(std::fs::OpenOptions::new().create(true).append(true).open(file)?)
        };
        let (lines, queue) = std::sync::mpsc::sync_channel::<String>(4096);
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            while let Ok(first) = queue.recv() {
                let mut text = first;
                text.push('\n');
                while let Ok(next) = queue.try_recv() {
                    text.push_str(&next);
                    text.push('\n');
                    if text.len() > 64 * 1024 {
                        break;
                    }
                }
                // A full disk is no reason to stop serving.
                let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            }
        })?;
        Ok(AccessLog { lines, lost: AtomicUsize::new(0) })
    }

    /// Queues a line.
    pub fn line(&self, fields: &serde_json::Value) {
        let mut text = fields.to_string();
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            text.insert_str(1, &format!("\"lost_lines\":{lost},"));
        }
        if self.lines.try_send(text).is_err() {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }
}

/// What the access log says of a request besides figures; kept only when there is a log.
#[derive(Debug, Clone)]
pub struct LogFields {
    /// Method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Authority.
    pub authority: String,
    /// HTTP version of the client.
    pub version: String,
    /// Who called.
    pub source: SocketAddr,
    /// `x-request-id`.
    pub request_id: String,
}

/// The running record of one request.
pub struct Record {
    /// When it arrived.
    pub start: Instant,
    /// Who calls whom.
    pub pair: Arc<Pair>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// Where it is logged.
    pub log: Option<(Arc<AccessLog>, LogFields)>,
    /// Whether it is gRPC.
    pub grpc: bool,
    /// HTTP status of the response; 0: none.
    pub code: u16,
    /// Why it did not go the usual way.
    pub flag: Option<ResponseFlag>,
    /// The `x-weft-reason` of a local answer.
    pub reason: Option<String>,
    /// gRPC's status.
    pub grpc_status: Option<u32>,
    /// The endpoint that served it.
    pub upstream: Option<Arc<str>>,
    /// The cluster that it went to.
    pub cluster: Option<Arc<str>>,
    /// The route that it took.
    pub route: Option<Arc<str>>,
    /// Attempts made.
    pub attempts: u32,
    /// Body bytes sent to the client.
    pub sent: u64,
}

impl Record {
    fn write(&mut self) {
        let duration = self.start.elapsed();
        self.metrics.request(
            &self.pair,
            &RequestSample {
                code: self.code,
                flag: self.flag,
                grpc: self.grpc,
                grpc_status: self.grpc_status,
                duration,
                response_bytes: self.sent,
            },
        );
        let Some((log, fields)) = &self.log else { return };
        let now = time::OffsetDateTime::now_utc();
        let start = now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
        log.line(&serde_json::json!({
            "time": start,
            "reporter": self.pair.reporter,
            "method": fields.method,
            "path": fields.path,
            "authority": fields.authority,
            "protocol": fields.version,
            "request_id": fields.request_id,
            "response_code": self.code,
            "response_flags": self.flag.map_or("-", ResponseFlag::as_str),
            "reason": self.reason,
            "grpc_status": self.grpc_status,
            "duration_ms": duration.as_secs_f64() * 1000.0,
            "bytes_sent": self.sent,
            "attempts": self.attempts,
            "upstream_host": self.upstream.as_deref(),
            "upstream_cluster": self.cluster.as_deref(),
            "route": self.route.as_deref(),
            "source": fields.source.to_string(),
            "source_principal": &*self.pair.source.principal,
            "destination_principal": &*self.pair.destination.principal,
            "destination_service": &*self.pair.service,
        }));
    }
}

/// What a request holds until its response has ended, and what is then done. Dropped earlier, the client has gone.
pub struct Ending {
    /// The connection.
    pub lease: Option<Lease>,
    /// Where it is given back.
    pub worker: u16,
    /// The request's body: a connection whose request was not sent to its end cannot be used again.
    pub request: Option<Arc<BodyState>>,
    /// Counts the request as in flight at its endpoint.
    pub in_flight: Option<InFlight>,
    /// Its place under `http2MaxRequests`.
    pub permit: Option<Permit>,
    /// Its place among what a drain waits for.
    pub active: Option<Active>,
    /// `None` once it was written.
    pub record: Option<Record>,
}

impl Ending {
    /// Nothing to do.
    pub fn none() -> Ending {
        Ending { lease: None, worker: 0, request: None, in_flight: None, permit: None, active: None, record: None }
    }

    /// So many body bytes went to the client.
    pub fn sent(&mut self, bytes: usize) {
        if let Some(record) = &mut self.record {
            record.sent += bytes as u64;
        }
    }

    /// Trailers came: gRPC's status is in them.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(record) = &mut self.record
            && let Some(status) = trailers.get("grpc-status").and_then(|s| s.to_str().ok()?.parse().ok())
        {
            record.grpc_status = Some(status);
        }
    }

    /// The response has ended as it should.
    pub fn complete(&mut self) {
        if let Some(lease) = self.lease.take()
            && self.request.as_ref().is_none_or(|r| r.is_done())
        {
            lease.finish(self.worker);
        }
        if let Some(mut record) = self.record.take() {
            record.write();
        }
        (self.in_flight, self.permit, self.active) = (None, None, None);
    }

    /// The upstream broke off in the middle of its response.
    pub fn upstream_failed(mut self) {
        if let Some(mut record) = self.record.take() {
            record.flag = Some(ResponseFlag::UpstreamConnectionTermination);
            record.write();
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.flag.get_or_insert(ResponseFlag::DownstreamConnectionTermination);
            record.write();
        }
    }
}
