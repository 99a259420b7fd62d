//! One attempt to send a request to an endpoint.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use http_body::Body;
use weft_core::limits::Overflow;
use weft_core::outcome::Outcome;
use weft_core::reply::Reason;

use super::Exchange;
use crate::http::body::{BodyState, Replay, RequestBody};
use crate::http::head_bytes;
use crate::http::incoming::{Incoming, Interim};
use crate::http::outcome::{broken_rule, classify};
use crate::upstream::cluster::ClusterView;
use crate::upstream::dial::{DialError, Dialer};
use crate::upstream::pool::{CheckoutError, Lease};

/// What all attempts of a request send, besides its head.
pub struct Outgoing {
    /// The head as it came from the downstream; empty where it did not come by HTTP/1.
    pub origin: Bytes,
    /// The body; `None`: there is none.
    pub body: Option<Arc<Replay>>,
    /// Where interim responses go.
    interim: Option<Arc<dyn Interim>>,
}

/// Why an attempt has no response.
pub struct AttemptFailure {
    /// Its class, for outlier ejection and retries.
    pub outcome: Outcome,
    /// The connection had served another request before.
    pub reused: bool,
    /// Nothing of the request was sent.
    pub unsent: bool,
    detail: String,
    overflow: Option<Overflow>,
    without_identity: bool,
    /// The rule that the downstream's body broke: the endpoint is not to blame.
    broken_rule: Option<&'static str>,
}

impl From<Outcome> for AttemptFailure {
    fn from(outcome: Outcome) -> AttemptFailure {
        AttemptFailure {
            outcome,
            reused: false,
            unsent: false,
            detail: String::new(),
            overflow: None,
            without_identity: false,
            broken_rule: None,
        }
    }
}

impl From<CheckoutError> for AttemptFailure {
    fn from(error: CheckoutError) -> AttemptFailure {
        let failed = match error {
            CheckoutError::Overflow(overflow) => {
                AttemptFailure { overflow: Some(overflow), ..AttemptFailure::from(Outcome::Overflow) }
            }
            CheckoutError::Dial(DialError { outcome, detail, without_identity }) => {
                AttemptFailure { detail, without_identity, ..AttemptFailure::from(outcome) }
            }
        };
        AttemptFailure { unsent: true, ..failed }
    }
}

impl AttemptFailure {
    /// The reason of a request whose last attempt this was. `per_try_timeout`: the limit of one attempt, where there is one.
    pub fn reason(self, per_try_timeout: Option<Duration>) -> Reason {
        if self.without_identity {
            return Reason::PeerWithoutIdentity;
        }
        if let Some(detail) = self.broken_rule {
            return Reason::BadRequest { detail };
        }
        let after = per_try_timeout.unwrap_or(Duration::ZERO);
        Reason::of(&self.outcome, self.overflow, after, &self.detail).unwrap_or(Reason::UpstreamClosed)
    }
}

impl Outgoing {
    /// Of a request whose head was prepared for the endpoint.
    pub fn new(mut incoming: Incoming, head: &Parts, exchange: &mut Exchange) -> Outgoing {
        let interim = incoming.take_interim();
        let origin = std::mem::take(&mut incoming.origin);
        exchange.heads.0 = head_bytes(&origin, &head.headers);
        let body = if incoming.is_end_stream() { None } else { Some(Replay::new(incoming)) };
        Outgoing { origin, body, interim }
    }

    /// How far the body has come.
    pub fn state(&self) -> Option<Arc<BodyState>> {
        self.body.as_ref().map(|body| body.state.clone())
    }

    /// Whether the body can be sent from its beginning.
    pub fn is_repeatable(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.is_whole())
    }

    /// Takes a connection from the cluster's pool and sends the request. A kept connection that its peer closed before any
    /// byte was sent is exchanged for another one.
    ///
    /// # Errors
    /// The failure of the attempt.
    pub async fn attempt(
        &self,
        head: &Parts,
        cluster: &ClusterView,
        dialer: &Dialer<'_>,
        worker: u16,
    ) -> Result<(Response<Incoming>, Lease), AttemptFailure> {
        loop {
            let mut lease = cluster.shared.pool.checkout(worker, dialer).await?;
            let body = match &self.body {
                None => RequestBody::Empty,
                Some(body) => match body.attempt() {
                    Some(body) => body,
                    None => return Err(AttemptFailure::from(Outcome::Reset { request_started: true })),
                },
            };
            let error = match lease.send(head, &self.origin, body, self.interim.as_deref()).await {
                Ok(response) => return Ok((response, lease)),
                Err(error) => error,
            };
            let reused = lease.reused;
            if error.unsent && reused && self.is_repeatable() {
                continue;
            }
            let (detail, broken_rule, unsent) = (error.to_string(), broken_rule(&error), error.unsent);
            return Err(AttemptFailure { detail, broken_rule, reused, unsent, ..classify(&error).into() });
        }
    }
}
