//! One request from its arrival to its last byte: what is measured and logged of it, and what it holds meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use http::request::Parts;
use http::{HeaderMap, Response};
use weft_core::endpoint::InFlight;
use weft_core::flag::{ResponseFlag, ResponseFlags};
use weft_core::limits::Permit;
use weft_core::outcome::grpc_status;
use weft_core::reply::{LocalReply, is_grpc};

use crate::access_log::{AccessLog, LogFields};
use crate::body::BodyState;
use crate::http::head_bytes;
use crate::incoming::Upgrade;
use crate::metrics::{Metrics, Pair, RequestSample};
use crate::pool::Lease;
use crate::proxy::Proxy;
use crate::relay::{Moved, relay};

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
    pub flags: ResponseFlags,
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
    /// Bytes of the request's body that came from the client.
    pub received: u64,
    /// Body bytes sent to the client.
    pub sent: u64,
    /// Bytes of the heads of request and response.
    pub heads: (u64, u64),
    written: bool,
}

impl Drop for Record {
    fn drop(&mut self) {
        // Nobody waited for the end.
        if !self.written {
            if self.flags.is_empty() {
                self.flags.insert(ResponseFlag::DownstreamConnectionTermination);
            }
            self.write();
        }
    }
}

impl Record {
    /// Of a request that came at `start` from `source`.
    pub fn new(proxy: &Proxy, parts: &Parts, source: SocketAddr, start: Instant, pair: Arc<Pair>) -> Box<Record> {
        let log = proxy.log.as_ref().map(|log| (log.clone(), LogFields::of(parts, source)));
        let mut record = Record::empty(proxy, log, start, pair);
        record.grpc = is_grpc(&parts.headers);
        record
    }

    /// Of a request from `source` whose head cannot be read; `line`: its first line.
    pub fn unread(proxy: &Proxy, line: &str, source: SocketAddr, pair: Arc<Pair>) -> Box<Record> {
        let log = proxy.log.as_ref().map(|log| (log.clone(), LogFields::of_line(line, source)));
        Record::empty(proxy, log, Instant::now(), pair)
    }

    // On the heap: it is large, and goes from hand to hand until the response's last byte.
    fn empty(proxy: &Proxy, log: Option<(Arc<AccessLog>, LogFields)>, start: Instant, pair: Arc<Pair>) -> Box<Record> {
        Box::new(Record {
            start,
            pair,
            metrics: proxy.metrics.clone(),
            log,
            grpc: false,
            code: 0,
            flags: ResponseFlags::NONE,
            reason: None,
            grpc_status: None,
            upstream: None,
            cluster: None,
            route: None,
            attempts: 0,
            received: 0,
            sent: 0,
            heads: (0, 0),
            written: false,
        })
    }

    /// The upstream has answered. `origin`: the head of its answer; empty where it did not come by HTTP/1.
    pub fn answered<B>(&mut self, response: &Response<B>, origin: &[u8]) {
        self.code = response.status().as_u16();
        self.heads.1 = head_bytes(origin, response.headers());
        self.grpc_status = grpc_status(response.headers());
    }

    /// The sidecar answers itself. `request`: the headers of the request.
    pub fn refused<B>(&mut self, reply: LocalReply, response: &Response<B>, request: &HeaderMap) {
        if self.heads.0 == 0 {
            self.heads.0 = head_bytes(b"", request);
        }
        self.answered(response, b"");
        if let Some(flag) = reply.flag {
            self.flags.insert(flag);
        }
        self.reason = Some(reply.reason);
    }

    fn write(&mut self) {
        self.written = true;
        let duration = self.start.elapsed();
        self.metrics.request(
            &self.pair,
            &RequestSample {
                code: self.code,
                flags: self.flags,
                grpc: self.grpc,
                grpc_status: self.grpc_status,
                duration,
                request_bytes: self.heads.0 + self.received,
                response_bytes: self.heads.1 + self.sent,
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
            "response_flags": self.flags.to_string(),
            "reason": self.reason,
            "grpc_status": self.grpc_status,
            "duration_ms": duration.as_secs_f64() * 1000.0,
            "bytes_received": self.received,
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

impl Drop for Ending {
    fn drop(&mut self) {
        // The record writes itself, with what is known by now.
        self.count_received();
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
    pub record: Option<Box<Record>>,
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
            && let Some(status) = grpc_status(trailers)
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
        self.end_record(None);
        (self.in_flight, self.permit, self.active) = (None, None, None);
    }

    /// Adds the request's body, as far as it has come.
    fn count_received(&mut self) {
        if let (Some(record), Some(request)) = (&mut self.record, &self.request) {
            record.received += request.received();
        }
    }

    /// Writes the record.
    fn end_record(&mut self, flag: Option<ResponseFlag>) {
        self.count_received();
        if let Some(mut record) = self.record.take() {
            if let Some(flag) = flag {
                record.flags.insert(flag);
            }
            record.write();
        }
    }

    /// Relays bytes both ways after an upgrade, holding what the request held. They are in the request's one entry of the log.
    pub async fn tunnel(mut self, client: Upgrade, server: Upgrade) {
        let (Some(client), Some(server)) = (client.stream().await, server.stream().await) else { return };
        let moved = Moved::default();
        relay(client, server, &moved, None, None).await;
        self.sent(usize::try_from(moved.received.into_inner()).unwrap_or(usize::MAX));
        if let Some(record) = &mut self.record {
            record.received += moved.sent.into_inner();
        }
        // The connection is used up.
        self.lease = None;
        self.complete();
    }

    /// The response broke off in its middle.
    pub fn failed(mut self, flag: ResponseFlag) {
        self.end_record(Some(flag));
    }
}
