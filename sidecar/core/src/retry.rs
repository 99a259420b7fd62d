//! Retry decisions: retriable outcomes, number of attempts, back-off. Istio's names and defaults, Envoy's decisions.
//!
//! [`RetryPolicy::after`] decides about one attempt. The caller checks the cluster's retry limit and the remaining
//! time.

mod request_headers;

use std::fmt;
use std::time::Duration;

use http::Method;

use crate::outcome::Outcome;

pub use request_headers::{MAX_REQUESTED_RETRIES, RequestOverrides, request_overrides};

/// Whether a request may be sent twice without harm, whatever the outcome of the first attempt (RFC 9110, 9.2.2): its
/// method is safe, and it has no body that could be lost. A stale keep-alive connection then costs no request.
pub fn is_repeatable(method: &Method, has_body: bool) -> bool {
    method.is_safe() && !has_body
}

/// A finished attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// Its outcome.
    pub outcome: &'a Outcome,
    /// Its number; the first is 0.
    pub number: u32,
    /// Whether its connection had served an earlier request.
    pub reused: bool,
    /// Whether the request may be sent twice without harm ([`is_repeatable`]).
    pub repeatable: bool,
    /// Whether the request's body can be sent again from its beginning.
    pub resendable: bool,
}

/// The next step after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The outcome is final for the request.
    Final,
    /// The outcome is final because the policy allows no further attempt.
    Exhausted,
    /// Another attempt. `stale`: a keep-alive connection ended under a repeatable request; it does not count against
    /// the endpoint unless the next attempt fails too.
    Retry {
        /// See above.
        stale: bool,
    },
}

/// A compiled retry policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts after the first; 0: no retries.
    pub attempts: u32,
    /// Timeout of each attempt; `None`: the route's timeout alone.
    pub per_try_timeout: Option<Duration>,
    /// Retriable outcomes.
    pub retry_on: RetryOn,
    /// First back-off; never 0. Doubles with each attempt, up to ten times this.
    pub backoff: Duration,
}

/// Conditions for a retry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetryOn {
    conditions: u16,
    // From numbers in `retryOn`, such as `503`.
    statuses: Vec<u16>,
    // gRPC codes 0..=16, one bit each.
    grpc: u32,
}

const SERVER_ERROR: u16 = 1;
const GATEWAY_ERROR: u16 = 1 << 1;
const RESET: u16 = 1 << 2;
const RESET_BEFORE_REQUEST: u16 = 1 << 3;
const CONNECT_FAILURE: u16 = 1 << 4;
const REFUSED_STREAM: u16 = 1 << 5;
const RETRIABLE_4XX: u16 = 1 << 6;
const RATE_LIMITED: u16 = 1 << 7;

/// Names of the conditions.
const CONDITIONS: [(&str, u16); 8] = [
    ("5xx", SERVER_ERROR),
    ("gateway-error", GATEWAY_ERROR),
    ("reset", RESET),
    ("reset-before-request", RESET_BEFORE_REQUEST),
    ("connect-failure", CONNECT_FAILURE),
    ("refused-stream", REFUSED_STREAM),
    ("retriable-4xx", RETRIABLE_4XX),
    ("envoy-ratelimited", RATE_LIMITED),
];
/// Names of gRPC's codes.
const GRPC_CODES: [(&str, u16); 5] =
    [("cancelled", 1), ("deadline-exceeded", 4), ("resource-exhausted", 8), ("internal", 13), ("unavailable", 14)];

/// Istio's default: two attempts.
pub const DEFAULT_ATTEMPTS: u32 = 2;
const DEFAULT_RETRY_ON: [&str; 4] = ["connect-failure", "refused-stream", "unavailable", "cancelled"];
/// First back-off if the policy sets none.
pub const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);

impl Default for RetryPolicy {
    /// Istio's default: two retries for requests that certainly were not processed, and for gRPC's `unavailable` and
    /// `cancelled`.
    fn default() -> Self {
        let mut retry_on = RetryOn::default();
        for name in DEFAULT_RETRY_ON {
            // Cannot fail: a test checks this constant list.
            let _ = retry_on.add(name);
        }
        RetryPolicy { attempts: DEFAULT_ATTEMPTS, per_try_timeout: None, retry_on, backoff: DEFAULT_BACKOFF }
    }
}

impl RetryPolicy {
    /// No retries at all.
    pub fn none() -> Self {
        RetryPolicy { attempts: 0, ..RetryPolicy::default() }
    }

    /// Decides what follows an attempt. A keep-alive connection that ended before the response may have ended before
    /// the endpoint read the request: RFC 9110, 9.2.2, allows a proxy to repeat safe requests in this case, regardless
    /// of the policy.
    pub fn after(&self, attempt: Attempt<'_>) -> Next {
        let reset = matches!(attempt.outcome, Outcome::Reset { .. } | Outcome::RemoteReset);
        let stale = attempt.repeatable && attempt.reused && reset;
        if !attempt.resendable || !(stale || self.retry_on.matches(attempt.outcome)) {
            return Next::Final;
        }
        if attempt.number < self.attempts { Next::Retry { stale } } else { Next::Exhausted }
    }

    /// Delay before the retry after attempt number `attempt` (the first is 0): uniform in `[0, backoff * 2^attempt)`,
    /// with a bound of at most ten times `backoff`.
    pub fn backoff(&self, attempt: u32, random: &mut impl FnMut() -> u64) -> Duration {
        let factor = 1u32.checked_shl(attempt).unwrap_or(u32::MAX).min(10);
        let bound = u64::try_from(self.backoff.saturating_mul(factor).as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(scale(random(), bound))
    }
}

/// Scales a uniform random number to `[0, bound)`; 0 if `bound` is 0.
pub(crate) fn scale(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

impl RetryOn {
    /// Parses Istio's `retryOn`: comma-separated names and statuses. The error names the invalid word.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<RetryOn, String> {
        let mut retry_on = RetryOn::default();
        for name in names.into_iter().flat_map(|names| names.split(',')).filter(|name| !name.is_empty()) {
            retry_on.add(name)?;
        }
        Ok(retry_on)
    }

    /// Whether the outcome is retriable.
    pub fn matches(&self, outcome: &Outcome) -> bool {
        // 5xx and gateway-error count a missing response as the 5xx status that it would become.
        const NO_ANSWER: u16 = RESET | SERVER_ERROR | GATEWAY_ERROR;
        match *outcome {
            Outcome::Response { rate_limited: true, .. } => self.has(RATE_LIMITED),
            Outcome::Response { status, grpc_status, .. } => {
                let code = status.as_u16();
                let by_status = match code {
                    502..=504 => self.has(SERVER_ERROR | GATEWAY_ERROR),
                    500.. => self.has(SERVER_ERROR),
                    409 => self.has(RETRIABLE_4XX),
                    _ => false,
                };
                by_status
                    || self.statuses.contains(&code)
                    || grpc_status.is_some_and(|code| code < 32 && self.grpc & (1 << code) != 0)
            }
            Outcome::ConnectFailure | Outcome::ConnectTimeout | Outcome::IdentityMismatch => {
                self.has(NO_ANSWER | CONNECT_FAILURE | RESET_BEFORE_REQUEST)
            }
            Outcome::RefusedStream => self.has(NO_ANSWER | REFUSED_STREAM),
            Outcome::Reset { request_started } | Outcome::PerTryTimeout { request_started } => {
                self.has(NO_ANSWER) || (!request_started && self.has(RESET_BEFORE_REQUEST))
            }
            Outcome::RemoteReset | Outcome::ProtocolError => self.has(NO_ANSWER),
            Outcome::ResetAfterHeaders
            | Outcome::Timeout
            | Outcome::Overflow
            | Outcome::NoHealthyUpstream
            | Outcome::Cancelled => false,
        }
    }

    fn has(&self, conditions: u16) -> bool {
        self.conditions & conditions != 0
    }

    fn add(&mut self, name: &str) -> Result<(), String> {
        let is = |known: &&(&str, u16)| known.0 == name;
        let condition = CONDITIONS.iter().find(is);
        let grpc = GRPC_CODES.iter().find(is);
        match (condition, grpc, name) {
            (Some((_, condition)), ..) => self.conditions |= condition,
            (_, Some((_, code)), _) => self.grpc |= 1 << code,
            // Only announces the numbers. Istio cannot name headers, and the mesh has no HTTP/3.
            (.., "retriable-status-codes" | "retriable-headers" | "http3-post-connect-failure") => {}
            (.., other) => match other.parse::<u16>() {
                Ok(status @ 100..=599) => self.statuses.push(status),
                _ => return Err(format!("{other:?} is not a valid retryOn policy")),
            },
        }
        Ok(())
    }
}

/// The syntax of `retryOn`.
impl fmt::Display for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conditions = CONDITIONS.iter().filter(|(_, condition)| self.has(*condition)).map(|(name, _)| *name);
        let codes = GRPC_CODES.iter().filter(|(_, code)| self.grpc & (1 << code) != 0).map(|(name, _)| *name);
        let names: Vec<String> = conditions.chain(codes).map(str::to_owned).collect();
        f.write_str(&[names, self.statuses.iter().map(u16::to_string).collect()].concat().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;
    use proptest::prelude::*;

    fn response(status: u16, grpc_status: Option<u32>) -> Outcome {
        Outcome::Response {
            status: StatusCode::from_u16(status).unwrap(),
            grpc_status,
            grpc: true,
            rate_limited: false,
        }
    }

    /// The next step after an attempt on a new connection.
    fn after(policy: &RetryPolicy, outcome: &Outcome, number: u32) -> Next {
        policy.after(Attempt { outcome, number, reused: false, repeatable: true, resendable: true })
    }

    fn matches(names: &str, outcome: Outcome) -> bool {
        RetryOn::parse([names]).unwrap().matches(&outcome)
    }

    #[test]
    fn the_default_policy_retries_unprocessed_requests() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.retry_on, RetryOn::parse(DEFAULT_RETRY_ON).unwrap());
        for (outcome, retried) in [
            (Outcome::ConnectFailure, true),
            (Outcome::ConnectTimeout, true),
            (Outcome::RefusedStream, true),
            (response(200, Some(14)), true),
            (response(200, Some(1)), true),
            (response(503, None), false),
            (response(200, Some(13)), false),
            (Outcome::Reset { request_started: true }, false),
            (Outcome::Reset { request_started: false }, false),
            (Outcome::PerTryTimeout { request_started: true }, false),
            (Outcome::Timeout, false),
            (Outcome::Overflow, false),
            (Outcome::Cancelled, false),
        ] {
            let (again, last) =
                if retried { (Next::Retry { stale: false }, Next::Exhausted) } else { (Next::Final, Next::Final) };
            assert_eq!(after(&policy, &outcome, 0), again, "{outcome:?}");
            assert_eq!(after(&policy, &outcome, 1), again, "{outcome:?}");
            assert_eq!(after(&policy, &outcome, 2), last, "{outcome:?}");
            assert_eq!(after(&RetryPolicy::none(), &outcome, 0), last, "{outcome:?}");
        }
    }

    #[test]
    fn a_safe_request_is_repeated_after_a_reused_connection_was_reset() {
        let (policy, reset) = (RetryPolicy::default(), Outcome::Reset { request_started: true });
        let attempt = Attempt { outcome: &reset, number: 0, reused: true, repeatable: true, resendable: true };
        assert_eq!(policy.after(attempt), Next::Retry { stale: true });
        assert_eq!(policy.after(Attempt { number: 2, ..attempt }), Next::Exhausted);
        assert_eq!(policy.after(Attempt { reused: false, ..attempt }), Next::Final);
        assert_eq!(policy.after(Attempt { repeatable: false, ..attempt }), Next::Final);
        assert_eq!(policy.after(Attempt { resendable: false, ..attempt }), Next::Final);
        assert_eq!(policy.after(Attempt { outcome: &Outcome::Timeout, ..attempt }), Next::Final);
    }

    #[test]
    fn retry_conditions_match_outcomes() {
        let reset = |request_started| Outcome::Reset { request_started };
        let per_try = Outcome::PerTryTimeout { request_started: true };
        for (names, outcome, expected) in [
            ("5xx", response(500, None), true),
            ("5xx", response(503, None), true),
            ("5xx", response(499, None), false),
            ("5xx", reset(true), true),
            ("5xx", Outcome::ConnectFailure, true),
            ("5xx", per_try, true),
            ("gateway-error", response(500, None), false),
            ("gateway-error", response(502, None), true),
            ("gateway-error", response(504, None), true),
            ("gateway-error", per_try, true),
            ("reset", reset(true), true),
            ("reset", Outcome::ConnectFailure, true),
            ("reset", per_try, true),
            ("reset", response(503, None), false),
            ("reset", Outcome::ResetAfterHeaders, false),
            ("reset-before-request", reset(false), true),
            ("reset-before-request", reset(true), false),
            ("connect-failure", reset(false), false),
            ("connect-failure", per_try, false),
            ("refused-stream", Outcome::RefusedStream, true),
            ("retriable-4xx", response(409, None), true),
            ("retriable-4xx", response(404, None), false),
            ("retriable-status-codes,503", response(503, None), true),
            ("503", response(503, None), true),
            ("503", response(500, None), false),
            ("503", Outcome::ConnectFailure, false),
            ("503,reset", reset(true), true),
            ("deadline-exceeded", response(200, Some(4)), true),
            ("resource-exhausted", response(200, Some(8)), true),
            ("internal", response(200, Some(13)), true),
            ("internal", response(200, Some(77)), false),
            ("5xx,reset", Outcome::Overflow, false),
            ("", response(503, None), false),
        ] {
            assert_eq!(matches(names, outcome), expected, "{names} {outcome:?}");
        }
        // Rate-limited by another proxy: a retry makes it worse, unless the policy lists it.
        let limited = Outcome::Response {
            status: StatusCode::SERVICE_UNAVAILABLE,
            grpc_status: None,
            grpc: true,
            rate_limited: true,
        };
        assert!(!matches("5xx,503", limited) && matches("envoy-ratelimited", limited));
        assert!(!matches("envoy-ratelimited", response(503, None)));
    }

    #[test]
    fn retry_on_round_trips() {
        for (names, written) in [
            ("5xx,503,unavailable,429,reset", "5xx,reset,unavailable,503,429"),
            ("retriable-status-codes", ""),
            ("connect-failure,envoy-ratelimited,cancelled", "connect-failure,envoy-ratelimited,cancelled"),
        ] {
            let parsed = RetryOn::parse([names]).unwrap();
            assert_eq!(parsed.to_string(), written);
            assert_eq!(RetryOn::parse([written]).unwrap(), parsed);
        }
    }

    #[test]
    fn parse_errors_name_the_invalid_word() {
        for (names, word) in [("503, reset", "\" reset\""), ("5xxx", "\"5xxx\""), ("600", "\"600\"")] {
            let error = RetryOn::parse([names]).unwrap_err();
            assert_eq!(error, format!("{word} is not a valid retryOn policy"));
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum() {
        let policy = RetryPolicy::default();
        let bounds = [0, 1, 2, 3, 4, 40].map(|attempt| policy.backoff(attempt, &mut || u64::MAX).as_millis());
        assert_eq!(bounds, [24, 49, 99, 199, 249, 249]);
        assert_eq!(policy.backoff(0, &mut || 0), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn backoff_is_below_its_bound(attempt in 0u32..100, random: u64, base_ms in 1u64..10_000) {
            let policy = RetryPolicy { backoff: Duration::from_millis(base_ms), ..RetryPolicy::default() };
            let waited = policy.backoff(attempt, &mut || random);
            prop_assert!(waited < policy.backoff * 10 && waited.as_nanos() < policy.backoff.as_nanos() << attempt.min(20));
        }
    }
}
