//! One request from its arrival to the last byte of its response: its record for metrics and log, and the resources it holds.

pub mod attempt;
mod log;
mod response;
pub mod tcp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderMap, Response, Version};
use weft_core::endpoint::InFlight;
use weft_core::flag::{ResponseFlag, ResponseFlags};
use weft_core::limits::Permit;
use weft_core::outcome::grpc_status;
use weft_core::reply::{LocalReply, is_grpc};

use crate::http::body::{BodyState, ResponseObserver};
use crate::http::head_bytes;
use crate::http::incoming::Upgrade;
use crate::net::relay::{Moved, relay};
use crate::proxy::Proxy;
use crate::proxy::activity::Active;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::labels::{Pair, RequestSample};
use crate::telemetry::metrics::Metrics;
use crate::upstream::pool::Lease;
use log::LogFields;
pub use response::Returning;

/// One request and its response. It is counted and logged when the response has ended, or when this is dropped: then the
/// downstream has gone before.
pub struct Exchange {
    /// When the request arrived.
    pub start: Instant,
    /// HTTP version of the downstream.
    pub version: Version,
    /// Source and destination workload, for metrics.
    pub pair: Arc<Pair>,
    metrics: Arc<Metrics>,
    log: Option<(Arc<AccessLog>, LogFields)>,
    /// Whether the request is gRPC.
    pub grpc: bool,
    /// HTTP status of the response; 0: none.
    pub code: u16,
    /// Response flags, as in Envoy's access log.
    pub flags: ResponseFlags,
    /// `x-weft-reason` of a local reply.
    pub reason: Option<String>,
    grpc_status: Option<u32>,
    /// The endpoint that responded.
    pub upstream: Option<Arc<str>>,
    /// The cluster of the request.
    pub cluster: Option<Arc<str>>,
    /// The route of the request.
    pub route: Option<Arc<str>>,
    /// Attempts made.
    pub attempts: u32,
    /// Bytes of the request's body that came from the downstream.
    received: u64,
    /// Bytes of the response's body that went to the downstream.
    sent: u64,
    /// Bytes of the heads of request and response.
    pub heads: (u64, u64),
    written: bool,
    resources: Resources,
}

/// Resources that a request holds until its response has ended.
#[derive(Default)]
pub struct Resources {
    /// The connection to the endpoint.
    pub lease: Option<Lease>,
    /// The worker to which the connection is given back.
    pub worker: u16,
    /// The request's body: a connection whose request was not sent to its end cannot be used again.
    pub request: Option<Arc<BodyState>>,
    /// Counts the request as in flight at its endpoint.
    pub in_flight: Option<InFlight>,
    /// Its place under `http2MaxRequests`.
    pub permit: Option<Permit>,
    /// Its place among the requests that a drain waits for.
    pub active: Option<Active>,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.written {
            // The downstream has not waited for the end.
            if self.flags.is_empty() {
                self.flags.insert(ResponseFlag::DownstreamConnectionTermination);
            }
            self.write();
        }
    }
}

impl Exchange {
    /// Of a request that came at `start` from `source`.
    pub fn new(proxy: &Proxy, parts: &Parts, source: SocketAddr, start: Instant, pair: Arc<Pair>) -> Box<Exchange> {
        let log = proxy.log.as_ref().map(|log| (log.clone(), LogFields::of(parts, source)));
        let mut exchange = Exchange::empty(proxy, log, start, pair);
        exchange.version = parts.version;
        exchange.grpc = is_grpc(&parts.headers);
        exchange
    }

    /// Of a request from `source` whose head cannot be read; `line`: its first line.
    pub fn unread(proxy: &Proxy, line: &str, source: SocketAddr, pair: Arc<Pair>) -> Box<Exchange> {
        let log = proxy.log.as_ref().map(|log| (log.clone(), LogFields::of_line(line, source)));
        Exchange::empty(proxy, log, Instant::now(), pair)
    }

    // On the heap: it is large, and moves from the request's task into the response's body.
    fn empty(
        proxy: &Proxy,
        log: Option<(Arc<AccessLog>, LogFields)>,
        start: Instant,
        pair: Arc<Pair>,
    ) -> Box<Exchange> {
        Box::new(Exchange {
            start,
            version: Version::HTTP_11,
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
            resources: Resources::default(),
        })
    }

    /// The endpoint has responded. `origin`: the head of the response; empty where it did not come by HTTP/1.
    fn set_response<B>(&mut self, response: &Response<B>, origin: &[u8]) {
        self.code = response.status().as_u16();
        self.heads.1 = head_bytes(origin, response.headers());
        self.grpc_status = grpc_status(response.headers());
    }

    /// The proxy responds itself. `request`: the headers of the request.
    fn set_local_reply<B>(&mut self, reply: LocalReply, response: &Response<B>, request: &HeaderMap) {
        if self.heads.0 == 0 {
            self.heads.0 = head_bytes(b"", request);
        }
        self.set_response(response, b"");
        if let Some(flag) = reply.flag {
            self.flags.insert(flag);
        }
        self.reason = Some(reply.reason);
    }

    /// Relays bytes both ways after an upgrade, and keeps the request's resources meanwhile. The bytes are in the request's own
    /// entry of the access log.
    async fn tunnel(mut self: Box<Self>, client: Upgrade, server: Upgrade) {
        let (Some(client), Some(server)) = (client.stream().await, server.stream().await) else { return };
        let moved = Moved::default();
        relay(client, server, &moved, None, None).await;
        self.sent(usize::try_from(moved.received.into_inner()).unwrap_or(usize::MAX));
        self.received += moved.sent.into_inner();
        // The connection is used up.
        self.resources.lease = None;
        self.complete();
    }

    /// Counts and logs the request.
    fn write(&mut self) {
        self.written = true;
        if let Some(request) = self.resources.request.take() {
            self.received += request.received();
        }
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
        self.write_log(duration);
    }
}

impl ResponseObserver for Exchange {
    fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        // gRPC's status is in them.
        if let Some(status) = grpc_status(trailers) {
            self.grpc_status = Some(status);
        }
    }

    fn complete(&mut self) {
        if let Some(lease) = self.resources.lease.take()
            && self.resources.request.as_ref().is_none_or(|r| r.is_done())
        {
            lease.finish(self.resources.worker);
        }
        if !self.written {
            self.write();
        }
        self.resources = Resources::default();
    }

    fn failed(&mut self, flag: ResponseFlag) {
        self.flags.insert(flag);
        if !self.written {
            self.write();
        }
    }
}
