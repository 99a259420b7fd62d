//! Phase 4: the requests to endpoints that one request of the application becomes.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response};
use rand::Rng;
use smallvec::SmallVec;
use weft_core::balance::Again;
use weft_core::endpoint::{Endpoint, InFlight};
use weft_core::flag::{ResponseFlag, ResponseFlags};
use weft_core::limits::Overflow;
use weft_core::outcome::Outcome;
use weft_core::reply::Reason;
use weft_core::retry::{RetryPolicy, is_repeatable};

use super::Downstream;
use super::plan::Plan;
use crate::body::{BodyError, Replay, RequestBody};
use crate::connect::MARK_UPSTREAM;
use crate::http::{ATTEMPT_COUNT, UNDELIVERED};
use crate::http1::{ExchangeError, Failure as ExchangeFailure, ReadError};
use crate::incoming::{Incoming, IncomingError, Interim};
use crate::pool::{CheckoutError, Lease};
use crate::upstream::{DialError, Dialer, FAILOVER_PATIENCE};

/// One request on its way through its attempts.
pub(super) struct Attempts<'a> {
    pub(super) down: &'a Arc<Downstream>,
    pub(super) plan: &'a Plan,
    /// The head that the request came with.
    pub(super) origin: &'a Bytes,
    pub(super) body: Option<&'a Arc<Replay>>,
    /// Where interim responses go.
    pub(super) interim: Option<&'a dyn Interim>,
    pub(super) retry: &'a RetryPolicy,
    /// Whether HTTP/2 is spoken.
    pub(super) multiplex: bool,
    /// Whether it is a gRPC call.
    pub(super) grpc: bool,
    /// Where a retry goes.
    pub(super) again: Again,
    /// So many were made.
    pub(super) made: u32,
    /// Where the last one went.
    pub(super) last: Option<Arc<Endpoint>>,
}

/// An answer, and what it holds until it has ended.
pub(super) struct Sent {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
    pub(super) in_flight: InFlight,
    /// What became of the retries that the answer asked for.
    pub(super) flags: ResponseFlags,
}

/// No answer.
pub(super) struct Failure {
    pub(super) reason: Reason,
    /// Besides that of the reason: what became of the retries.
    pub(super) flags: ResponseFlags,
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Failure {
        Failure { reason, flags: ResponseFlags::NONE }
    }
}

/// One attempt's failure.
struct Failed {
    outcome: Outcome,
    detail: String,
    overflow: Option<Overflow>,
    without_identity: bool,
    /// The rule that the client's body broke: the endpoint is not to blame.
    broken_rule: Option<&'static str>,
    /// The connection had served another request before.
    reused: bool,
}

impl From<Outcome> for Failed {
    fn from(outcome: Outcome) -> Failed {
        Failed {
            outcome,
            detail: String::new(),
            overflow: None,
            without_identity: false,
            broken_rule: None,
            reused: false,
        }
    }
}

impl Attempts<'_> {
    /// Until one is answered, or the policy allows no more.
    pub(super) async fn run(&mut self, head: &mut Parts) -> Result<Sent, Failure> {
        let cluster = &self.plan.cluster;
        let mut tried: SmallVec<[Arc<Endpoint>; 4]> = SmallVec::new();
        let mut random = || rand::rng().next_u64();
        let keeps = self.retry.attempts > 0;
        let repeats = is_repeatable(&head.method, self.body.is_some());
        // Held from a retry's beginning to its end, as maxRetries counts them.
        let mut retry_permit = None;
        loop {
            let Some(endpoint) = self.pick(&tried, &mut random) else {
                return Err(Reason::NoHealthyUpstream.into());
            };
            self.made += 1;
            cluster.shared.limits.begun(&cluster.config.pool, Instant::now);
            self.last = Some(endpoint.clone());
            head.headers.insert(ATTEMPT_COUNT, count(self.made));
            let result = {
                let trying = pin!(self.attempt(&endpoint, head, self.patience()));
                match self.retry.per_try_timeout {
                    None => trying.await,
                    Some(limit) => match tokio::time::timeout(limit, trying).await {
                        Ok(result) => result,
                        Err(_) => Err(Failed::from(Outcome::PerTryTimeout { request_started: true })),
                    },
                }
            };
            let attempt = self.made - 1;
            let (failed, sent) = match result {
                Ok(mut sent) => {
                    // Said by a sidecar that has proved who it is: as if there had been no connection.
                    let undelivered = sent.response.headers_mut().remove(UNDELIVERED).is_some();
                    let outcome = if undelivered && !endpoint.identities().is_empty() {
                        Outcome::ConnectFailure
                    } else {
                        Outcome::response(sent.response.status(), sent.response.headers(), self.grpc)
                    };
                    cluster.record(&endpoint, &outcome);
                    if !(keeps && self.retry.retry_on.matches(&outcome) && self.may_resend()) {
                        return Ok(sent);
                    }
                    (Failed::from(outcome), Some(sent))
                }
                Err(failed) => (failed, None),
            };
            // A kept connection that ended before it answered may have ended before it read: RFC 9110, 9.2.2, lets a
            // proxy repeat what is safe.
            let stale =
                repeats && failed.reused && matches!(failed.outcome, Outcome::Reset { .. } | Outcome::RemoteReset);
            // A kept connection ends at times, and the repetition shows whether the endpoint is ill.
            if sent.is_none() && !(stale && attempt < self.retry.attempts) {
                cluster.record(&endpoint, &failed.outcome);
            }
            let wanted = stale || self.retry.retry_on.matches(&failed.outcome);
            let possible = wanted && self.may_resend();
            let again = possible && attempt < self.retry.attempts;
            let mut flags = ResponseFlags::NONE;
            if possible && !again && attempt > 0 {
                flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
            }
            if again {
                drop(retry_permit.take());
                retry_permit = cluster.shared.limits.try_retry(&cluster.config.pool, Instant::now).ok();
                if retry_permit.is_none() {
                    flags.insert(ResponseFlag::UpstreamOverflow);
                }
            }
            if !again || retry_permit.is_none() {
                // An answer that could not be retried is still an answer.
                if let Some(sent) = sent {
                    return Ok(Sent { flags, ..sent });
                }
                return Err(Failure { reason: self.reason(failed), flags });
            }
            drop(sent);
            tokio::time::sleep(self.retry.backoff(attempt, &mut random)).await;
            tried.push(endpoint);
        }
    }

    fn pick(&self, tried: &[Arc<Endpoint>], random: &mut impl FnMut() -> u64) -> Option<Arc<Endpoint>> {
        if let Some(endpoint) = &self.plan.fixed {
            return Some(endpoint.clone());
        }
        let balancer = self.plan.cluster.balancer();
        let hash = self.plan.hash.hash;
        match tried.is_empty() {
            true => balancer.pick(hash, random, 0).cloned(),
            false => balancer.pick_again(self.again, hash, random, tried).cloned(),
        }
    }

    /// How long an endpoint may take to accept a connection, where the policy has the request tried again and there is another
    /// one; `None`: as the policy says.
    fn patience(&self) -> Option<Duration> {
        let again = self.made <= self.retry.attempts && self.retry.retry_on.matches(&Outcome::ConnectTimeout);
        let others = || self.plan.fixed.is_none() && self.plan.cluster.has_others();
        (again && others()).then_some(FAILOVER_PATIENCE)
    }

    /// Whether the body can be sent from its beginning.
    fn may_resend(&self) -> bool {
        self.body.is_none_or(|body| body.is_whole())
    }

    fn reason(&self, failed: Failed) -> Reason {
        if failed.without_identity {
            return Reason::PeerWithoutIdentity;
        }
        if let Some(detail) = failed.broken_rule {
            return Reason::BadRequest { detail };
        }
        let after = self.retry.per_try_timeout.unwrap_or(Duration::ZERO);
        Reason::of(&failed.outcome, failed.overflow, after, &failed.detail).unwrap_or(Reason::UpstreamClosed)
    }

    /// One attempt.
    async fn attempt(
        &self,
        endpoint: &Arc<Endpoint>,
        head: &Parts,
        patience: Option<Duration>,
    ) -> Result<Sent, Failed> {
        let in_flight = endpoint.state.enter();
        let cluster = &self.plan.cluster;
        let identity = &self.down.proxy.identity;
        // A connection that the peer closed while it was idle costs nobody a request: another one is taken.
        loop {
            let multiplex = self.multiplex;
            let checkout = {
                let (config, ends, mark) = (&cluster.config, Some(&self.down.ends), MARK_UPSTREAM);
                let generation = cluster.generation;
                let dialer =
                    Dialer { cluster: config, endpoint, identity, ends, multiplex, mark, patience, generation };
                cluster.shared.pool.checkout(self.down.worker, &dialer).await
            };
            let mut lease = match checkout {
                Ok(lease) => lease,
                Err(CheckoutError::Overflow(overflow)) => {
                    return Err(Failed { overflow: Some(overflow), ..Failed::from(Outcome::Overflow) });
                }
                Err(CheckoutError::Dial(DialError { outcome, detail, without_identity })) => {
                    return Err(Failed { detail, without_identity, ..Failed::from(outcome) });
                }
            };
            let body = match self.body {
                None => RequestBody::Empty,
                Some(body) => match body.attempt() {
                    Some(body) => body,
                    None => return Err(Failed::from(Outcome::Reset { request_started: true })),
                },
            };
            match lease.send(head, self.origin, body, self.interim).await {
                Ok(response) => return Ok(Sent { response, lease, in_flight, flags: ResponseFlags::NONE }),
                Err(error) => {
                    let reused = lease.reused;
                    if error.unsent && reused && self.may_resend() {
                        continue;
                    }
                    let (detail, broken_rule) = (error.to_string(), broken_rule(&error));
                    return Err(Failed { detail, broken_rule, reused, ..Failed::from(classify(&error)) });
                }
            }
        }
    }
}

/// The number of an attempt; the usual ones cost nothing.
fn count(attempt: u32) -> HeaderValue {
    match attempt {
        1 => HeaderValue::from_static("1"),
        2 => HeaderValue::from_static("2"),
        3 => HeaderValue::from_static("3"),
        _ => HeaderValue::from(attempt),
    }
}

/// The rule that the client's body broke, where that is why the exchange failed.
pub(crate) fn broken_rule(error: &ExchangeError) -> Option<&'static str> {
    match &error.reason {
        ExchangeFailure::Body(BodyError::Client(IncomingError::Http1(ReadError::Body(e)))) => Some(e.rule()),
        _ => None,
    }
}

/// What a failed exchange means.
pub(crate) fn classify(error: &ExchangeError) -> Outcome {
    match &error.reason {
        ExchangeFailure::Http2(e) => of_http2(e, !error.unsent),
        ExchangeFailure::Read(ReadError::Head(_)) => Outcome::ProtocolError,
        // The endpoint is not to blame.
        ExchangeFailure::Body(_) => Outcome::Cancelled,
        _ => Outcome::Reset { request_started: !error.unsent },
    }
}

/// What the end of a body in its middle means.
pub(crate) fn classify_body(error: &IncomingError) -> Outcome {
    match error {
        IncomingError::Http2(e) => of_http2(e, true),
        IncomingError::Http1(_) => Outcome::Reset { request_started: true },
    }
}

fn of_http2(error: &h2::Error, request_started: bool) -> Outcome {
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => Outcome::RefusedStream,
        // Streams above the last one that a GOAWAY names were not processed (RFC 9113, 6.8).
        Some(h2::Reason::NO_ERROR) if error.is_go_away() && error.is_remote() => Outcome::RefusedStream,
        _ if error.is_reset() && error.is_remote() => Outcome::RemoteReset,
        // We found that what the peer sent is not HTTP/2.
        Some(_) if error.is_library() => Outcome::ProtocolError,
        _ => Outcome::Reset { request_started },
    }
}
