//! Copies of requests (`mirror`, `mirrors`): sent like the request itself, once, and their answers thrown away.
//!
//! A copy costs the request nothing but its bytes: neither waits for the other. What copies may hold is bounded: the bytes by
//! which they are slower ([`crate::body::COPY_BUDGET`]), a time, and a number of copies at once.

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

use super::attempts::classify;
use super::plan::{Target, speaks_http2};
use super::{Downstream, speaks_only_http2};
use crate::body::{Replay, RequestBody};
use crate::cluster::ClusterView;
use crate::connect::MARK_UPSTREAM;
use crate::http::{Form, HTTP1_CLIENT, address_request, authority};
use crate::pool::CheckoutError;
use crate::upstream::Dialer;

/// Copies to one cluster at once, where `http2MaxRequests` does not allow fewer: those that are more are not made.
const MOST: u32 = 1024;
/// How long a copy may take where its route has no timeout.
const LONGEST: Duration = Duration::from_secs(60);

/// A request about to be sent.
pub(super) struct Original<'a> {
    pub(super) down: &'a Arc<Downstream>,
    /// As the endpoint is to see it.
    pub(super) parts: &'a Parts,
    /// The version that the client spoke.
    pub(super) version: Version,
    pub(super) origin: &'a Bytes,
    pub(super) body: Option<&'a Arc<Replay>>,
    pub(super) host: &'a str,
    pub(super) timeout: Option<Duration>,
}

impl Original<'_> {
    /// Sends the copies.
    pub(super) fn copies(&self, targets: &[Target], grpc: bool) {
        for target in targets {
            let cluster = target.cluster.clone();
            let limit = cluster.config.pool.max_requests.min(MOST);
            let Ok(permit) = cluster.shared.limits.requests.try_acquire(limit) else { continue };
            let mut parts = self.parts.clone();
            let entered = self.down.gateway.is_some();
            let multiplex = speaks_http2(&cluster, self.version, &parts, grpc, entered);
            parts.headers.remove(HTTP1_CLIENT);
            if multiplex && self.version != Version::HTTP_2 && !speaks_only_http2(cluster.config.protocol) {
                parts.headers.insert(HTTP1_CLIENT, HeaderValue::from_static("1"));
            }
            address_request(&mut parts, self.host, if multiplex { Form::Http2 } else { Form::Origin });
            let copy = Copy {
                down: self.down.clone(),
                cluster,
                hash: target.hash,
                parts,
                origin: self.origin.clone(),
                body: self
                    .body
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
            return self.down.original.map(|to| self.down.foreign.endpoint_of(cluster, to));
        }
        if cluster.config.dynamic_dns {
            return cluster.named(authority(&self.parts)).ok();
        }
        cluster.balancer().pick(self.hash, &mut || rand::rng().next_u64(), 0).cloned()
    }

    /// Sends it, and reads the answer to its end. How it goes concerns the endpoint's health and nobody else.
    async fn run(self) {
        let cluster = &self.cluster;
        if cluster.config.undefined {
            return;
        }
        let Some(endpoint) = self.endpoint() else { return };
        let _in_flight = endpoint.state.enter();
        cluster.shared.limits.begun(&cluster.config.pool, Instant::now);
        let (identity, worker) = (&self.down.proxy.identity, self.down.worker);
        let (multiplex, grpc) = (self.multiplex, self.grpc);
        let ends = Some(&self.down.ends);
        let (config, mark) = (&cluster.config, MARK_UPSTREAM);
        let generation = cluster.generation;
        let dialer = Dialer {
            cluster: config,
            endpoint: &endpoint,
            identity,
            ends,
            multiplex,
            mark,
            patience: None,
            generation,
        };
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
