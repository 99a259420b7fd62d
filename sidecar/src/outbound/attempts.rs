//! Phase 4: the requests to endpoints that one request of the application becomes.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderValue, Response};
use rand::Rng;
use smallvec::SmallVec;
use weft_core::balance::RetrySelection;
use weft_core::endpoint::{Endpoint, InFlight};
use weft_core::flag::{ResponseFlag, ResponseFlags};
use weft_core::limits::Permit;
use weft_core::outcome::Outcome;
use weft_core::reply::Reason;
use weft_core::retry::{Attempt, Next, RetryPolicy, is_repeatable};

use super::Downstream;
use super::plan::Plan;
use crate::exchange::Exchange;
use crate::exchange::attempt::{AttemptFailure, Outgoing};
use crate::http::incoming::Incoming;
use crate::http::{ATTEMPT_COUNT, UNDELIVERED};
use crate::net::connect::MARK_UPSTREAM;
use crate::proxy::labels;
use crate::upstream::dial::{Dialer, FAILOVER_PATIENCE};
use crate::upstream::pool::Lease;

/// One request on its way through its attempts.
pub(super) struct Attempts<'a> {
    down: &'a Arc<Downstream>,
    plan: &'a Plan,
    outgoing: &'a Outgoing,
    retry: &'a RetryPolicy,
    /// Whether HTTP/2 is spoken.
    multiplex: bool,
    grpc: bool,
    /// Where a retry goes.
    retry_selection: RetrySelection,
    /// The number of attempts so far.
    made: u32,
    /// The endpoint of the last attempt.
    pub(super) last: Option<Arc<Endpoint>>,
}

/// A response, and what it holds until it has ended.
pub(super) struct Sent {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
    pub(super) in_flight: InFlight,
    /// Flags of retries that the response asked for and that were not made.
    pub(super) flags: ResponseFlags,
}

/// Why there is no response.
pub(super) struct Failure {
    pub(super) reason: Reason,
    /// Flags of retries, besides that of the reason.
    pub(super) flags: ResponseFlags,
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Failure {
        Failure { reason, flags: ResponseFlags::NONE }
    }
}

impl<'a> Attempts<'a> {
    /// None made yet.
    pub(super) fn new(
        down: &'a Arc<Downstream>,
        plan: &'a Plan,
        outgoing: &'a Outgoing,
        retry: &'a RetryPolicy,
        multiplex: bool,
        grpc: bool,
        retry_selection: RetrySelection,
    ) -> Attempts<'a> {
        Attempts { down, plan, outgoing, retry, multiplex, grpc, retry_selection, made: 0, last: None }
    }

    /// Notes in the request's record how many attempts were made, and the endpoint of the last.
    pub(super) fn report(&self, exchange: &mut Exchange) {
        exchange.attempts = self.made;
        if let Some(endpoint) = &self.last {
            exchange.upstream = Some(endpoint.key.clone());
            exchange.pair = labels::to_cluster(&self.down.proxy, &self.plan.cluster, Some(endpoint));
        }
    }

    /// Runs attempts until one has a response that stands, or the policy allows no more.
    pub(super) async fn run(&mut self, head: &mut Parts) -> Result<Sent, Failure> {
        let cluster = &self.plan.cluster;
        let mut tried: SmallVec<[Arc<Endpoint>; 4]> = SmallVec::new();
        let mut random = || rand::rng().next_u64();
        let repeatable = is_repeatable(&head.method, self.outgoing.body.is_some());
        // Held from a retry's beginning to its end, as maxRetries counts them.
        let mut retry_permit = None;
        loop {
            let Some(endpoint) = self.pick(&tried, &mut random) else {
                return Err(Reason::NoHealthyUpstream.into());
            };
            let result = self.attempt(&endpoint, head).await;
            let number = self.made - 1;
            let (outcome, sent, failed) = self.outcome(&endpoint, result);
            let reused = failed.as_ref().is_some_and(|failed| failed.reused);
            let resendable = self.outgoing.is_repeatable();
            let next = self.retry.after(Attempt { outcome: &outcome, number, reused, repeatable, resendable });
            // A kept connection ends at times; the next attempt shows whether the endpoint is at fault.
            if sent.is_some() || next != (Next::Retry { stale: true }) {
                cluster.record(&endpoint, &outcome);
            }
            if let Err(flags) = self.permit(next, number, &mut retry_permit) {
                return match (sent, failed) {
                    // A response that could not be retried is still a response.
                    (Some(sent), _) => Ok(Sent { flags, ..sent }),
                    (None, failed) => {
                        let failed = failed.unwrap_or_else(|| outcome.into());
                        Err(Failure { reason: failed.reason(self.retry.per_try_timeout), flags })
                    }
                };
            }
            drop(sent);
            tokio::time::sleep(self.retry.backoff(number, &mut random)).await;
            tried.push(endpoint);
        }
    }

    /// The outcome of an attempt, for ejection and retries.
    fn outcome(
        &self,
        endpoint: &Endpoint,
        result: Result<Sent, AttemptFailure>,
    ) -> (Outcome, Option<Sent>, Option<AttemptFailure>) {
        match result {
            Err(failed) => (failed.outcome, None, Some(failed)),
            Ok(mut sent) => {
                // Set by a sidecar that has proved its identity: as if there had been no connection.
                let undelivered = sent.response.headers_mut().remove(UNDELIVERED).is_some();
                let outcome = if undelivered && !endpoint.identities().is_empty() {
                    Outcome::ConnectFailure
                } else {
                    Outcome::response(sent.response.status(), sent.response.headers(), self.grpc)
                };
                (outcome, Some(sent), None)
            }
        }
    }

    /// Takes the place of a retry under the cluster's limits, in exchange for that of the one before.
    ///
    /// # Errors
    /// The flags of a request that is not retried.
    fn permit(&self, next: Next, number: u32, held: &mut Option<Permit>) -> Result<(), ResponseFlags> {
        let mut flags = ResponseFlags::NONE;
        match next {
            Next::Final => {}
            Next::Exhausted if number == 0 => {}
            Next::Exhausted => flags.insert(ResponseFlag::UpstreamRetryLimitExceeded),
            Next::Retry { .. } => {
                let cluster = &self.plan.cluster;
                drop(held.take());
                *held = cluster.shared.limits.try_retry(&cluster.config.pool, Instant::now).ok();
                if held.is_some() {
                    return Ok(());
                }
                flags.insert(ResponseFlag::UpstreamOverflow);
            }
        }
        Err(flags)
    }

    fn pick(&self, tried: &[Arc<Endpoint>], random: &mut impl FnMut() -> u64) -> Option<Arc<Endpoint>> {
        if let Some(endpoint) = &self.plan.fixed {
            return Some(endpoint.clone());
        }
        let balancer = self.plan.cluster.balancer();
        let hash = self.plan.hash.hash;
        match tried.is_empty() {
            true => balancer.pick(hash, random, 0).cloned(),
            false => balancer.pick_for_retry(self.retry_selection, hash, random, tried).cloned(),
        }
    }

    /// How long an endpoint may take to accept a connection where the policy retries on another one; `None`: as the policy says.
    fn patience(&self) -> Option<Duration> {
        let again = self.made <= self.retry.attempts && self.retry.retry_on.matches(&Outcome::ConnectTimeout);
        let others = || self.plan.fixed.is_none() && self.plan.cluster.has_others();
        (again && others()).then_some(FAILOVER_PATIENCE)
    }

    /// One attempt, within the policy's time for it.
    async fn attempt(&mut self, endpoint: &Arc<Endpoint>, head: &mut Parts) -> Result<Sent, AttemptFailure> {
        let cluster = &self.plan.cluster;
        self.made += 1;
        cluster.shared.limits.record_request(&cluster.config.pool, Instant::now);
        self.last = Some(endpoint.clone());
        head.headers.insert(ATTEMPT_COUNT, count(self.made));
        let trying = pin!(self.send(endpoint, head, self.patience()));
        match self.retry.per_try_timeout {
            None => trying.await,
            Some(limit) => match tokio::time::timeout(limit, trying).await {
                Ok(result) => result,
                Err(_) => Err(Outcome::PerTryTimeout { request_started: true }.into()),
            },
        }
    }

    async fn send(
        &self,
        endpoint: &Arc<Endpoint>,
        head: &Parts,
        patience: Option<Duration>,
    ) -> Result<Sent, AttemptFailure> {
        let in_flight = endpoint.state.enter();
        let (cluster, multiplex) = (&self.plan.cluster, self.multiplex);
        let dialer = cluster.dialer(endpoint, &self.down.proxy.identity, MARK_UPSTREAM);
        let dialer = Dialer { ends: Some(&self.down.ends), multiplex, patience, ..dialer };
        let (response, lease) = self.outgoing.attempt(head, cluster, &dialer, self.down.worker).await?;
        Ok(Sent { response, lease, in_flight, flags: ResponseFlags::NONE })
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
