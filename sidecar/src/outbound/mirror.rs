//! Mirrored requests (`mirror`, `mirrors`): sent like the request itself, once, and their responses discarded.
//!
//! A mirrored request costs the original only its bytes: neither waits for the other. The resources of mirrored requests are
//! bounded: bytes by which they fall behind ([`crate::http::body::COPY_BUDGET`]), a time, and their number.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Version};
use http_body_util::BodyExt;
use rand::Rng;
use weft_core::endpoint::Endpoint;
use weft_core::limits::Permit;
use weft_core::outcome::Outcome;
use weft_core::protocol::{self, is_http2_only, upstream_is_http2};

use super::Downstream;
use super::plan::Target;
use crate::exchange::attempt::Outgoing;
use crate::http::body::RequestBody;
use crate::http::outcome::classify;
use crate::http::{Form, HTTP1_CLIENT, address_request, authority};
use crate::net::connect::MARK_UPSTREAM;
use crate::upstream::cluster::ClusterView;
use crate::upstream::dial::Dialer;
use crate::upstream::pool::CheckoutError;

/// Copies to one cluster at once, where `http2MaxRequests` does not allow fewer: those that are more are not made.
const MOST: u32 = 1024;
/// How long a copy may take where its route has no timeout.
const LONGEST: Duration = Duration::from_secs(60);

/// A request about to be sent.
pub(super) struct Mirrored<'a> {
    pub(super) down: &'a Arc<Downstream>,
    /// As the endpoint is to see it.
    pub(super) parts: &'a Parts,
    /// The version that the client spoke.
    pub(super) version: Version,
    pub(super) outgoing: &'a Outgoing,
    pub(super) host: &'a str,
    pub(super) timeout: Option<Duration>,
}

impl Mirrored<'_> {
    /// Sends the copies.
    pub(super) fn send(&self, targets: &[Target], grpc: bool) {
        for target in targets {
            let cluster = target.cluster.clone();
            let limit = cluster.config.pool.max_requests.min(MOST);
            let Ok(permit) = cluster.shared.limits.requests.try_acquire(limit) else { continue };
            let mut parts = self.parts.clone();
            let request = protocol::Request { method: &parts.method, version: self.version, grpc };
            let multiplex = upstream_is_http2(&cluster.config, request, self.down.gateway.is_some());
            parts.headers.remove(HTTP1_CLIENT);
            if multiplex && self.version != Version::HTTP_2 && !is_http2_only(cluster.config.protocol) {
                parts.headers.insert(HTTP1_CLIENT, HeaderValue::from_static("1"));
            }
            address_request(&mut parts, self.host, if multiplex { Form::Http2 } else { Form::Origin });
            let copy = Copy {
                down: self.down.clone(),
                cluster,
                hash: target.hash,
                parts,
                origin: self.outgoing.origin.clone(),
                body: self
                    .outgoing
                    .body
                    .as_ref()
                    .map_or(RequestBody::Empty, |body| body.copy(self.down.proxy.metrics.mirrors_cut.clone())),
                multiplex,
                grpc,
                _permit: permit,
            };
            let limit = self.timeout.unwrap_or(LONGEST);
            tokio::spawn(async move { drop(tokio::time::timeout(limit, copy.run()).await) });
        }
    }
}

/// One copy.
struct Copy {
    down: Arc<Downstream>,
    cluster: Arc<ClusterView>,
    hash: Option<u64>,
    parts: Parts,
    origin: Bytes,
    body: RequestBody,
    multiplex: bool,
    grpc: bool,
    _permit: Permit,
}

impl Copy {
    /// Of the cluster's, or as the request would have it there.
    fn endpoint(&self) -> Option<Arc<Endpoint>> {
        let cluster = &self.cluster;
        if cluster.config.original_destination {
            return self.down.original.map(|to| self.down.passthrough.endpoint_of(cluster, to));
        }
        if cluster.config.dynamic_dns {
            return cluster.dynamic_endpoint(authority(&self.parts)).ok();
        }
        cluster.balancer().pick(self.hash, &mut || rand::rng().next_u64(), 0).cloned()
    }

    /// Sends the request, and reads the response to its end. The outcome counts for the endpoint's health only.
    async fn run(self) {
        let cluster = &self.cluster;
        if cluster.config.undefined {
            return;
        }
        let Some(endpoint) = self.endpoint() else { return };
        let _in_flight = endpoint.state.enter();
        cluster.shared.limits.record_request(&cluster.config.pool, Instant::now);
        let (worker, multiplex, grpc) = (self.down.worker, self.multiplex, self.grpc);
        let dialer = cluster.dialer(&endpoint, &self.down.proxy.identity, MARK_UPSTREAM);
        let dialer = Dialer { ends: Some(&self.down.ends), multiplex, ..dialer };
        let mut lease = match cluster.shared.pool.checkout(worker, &dialer).await {
            Ok(lease) => lease,
            Err(CheckoutError::Overflow(_)) => return,
            Err(CheckoutError::Dial(error)) => return cluster.record(&endpoint, &error.outcome),
        };
        let sent = match &self.body {
            RequestBody::Copy(body) => Some(body.state.clone()),
            _ => None,
        };
        let response = match lease.send(&self.parts, &self.origin, self.body, None).await {
            Ok(response) => response,
            Err(error) => return cluster.record(&endpoint, &classify(&error)),
        };
        cluster.record(&endpoint, &Outcome::response(response.status(), response.headers(), grpc));
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return;
            }
        }
        if sent.is_none_or(|sent| sent.is_done()) {
            lease.finish(worker);
        }
    }
}
