//! Retry policy and timeouts in the headers of a request: Envoy's
//! (<https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter>, "HTTP headers
//! (consumed from downstreams)"), and gRPC's `grpc-timeout`.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{RetryOn, RetryPolicy};

/// Upper bound of the retries that a request can ask for.
pub const MAX_REQUESTED_RETRIES: u32 = 100;

const PREFIX: &str = "x-envoy-";
const RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");
const RETRY_GRPC_ON: HeaderName = HeaderName::from_static("x-envoy-retry-grpc-on");
const MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");
const STATUS_CODES: HeaderName = HeaderName::from_static("x-envoy-retriable-status-codes");
const TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
const PER_TRY_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Overrides of the route's settings by a request. `None`: the route's.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RequestOverrides {
    /// The route's retry policy with the additions and changes of the request.
    pub retry: Option<RetryPolicy>,
    /// `Some(None)`: no timeout at all.
    pub timeout: Option<Option<Duration>>,
}

/// Removes these headers from a request, since they are addressed to the proxy. `grpc-timeout` stays, because the
/// server uses it too; it is capped by the route's timeout. Invalid values are ignored.
pub fn request_overrides(
    headers: &mut HeaderMap,
    retry: &RetryPolicy,
    timeout: Option<Duration>,
    grpc: bool,
) -> RequestOverrides {
    let mut overrides = RequestOverrides::default();
    if grpc && let Some(wanted) = headers.get(GRPC_TIMEOUT).and_then(grpc_timeout) {
        overrides.timeout = Some(Some(timeout.map_or(wanted, |limit| limit.min(wanted))));
    }
    // One pass over the names costs less than six lookups that find nothing.
    if !headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
        return overrides;
    }
    let mut take = |name: HeaderName| headers.remove(name).and_then(|value| value.to_str().ok().map(str::to_owned));
    let (retry_on, grpc_on, statuses) = (take(RETRY_ON), take(RETRY_GRPC_ON), take(STATUS_CODES));
    let max_retries = take(MAX_RETRIES).and_then(|text| text.parse::<u32>().ok());
    let milliseconds = |text: String| text.parse().ok().map(Duration::from_millis);
    let requested_timeout = take(TIMEOUT).and_then(milliseconds);
    let per_try = take(PER_TRY_TIMEOUT).and_then(milliseconds);
    if let Some(wanted) = requested_timeout {
        overrides.timeout = Some(Some(wanted).filter(|wanted| !wanted.is_zero()));
    }
    if [&retry_on, &grpc_on, &statuses].into_iter().all(Option::is_none) && max_retries.is_none() && per_try.is_none() {
        return overrides;
    }
    let mut changed = retry.clone();
    // The request's statuses are added if the route's policy has any.
    let mut by_status = !retry.retry_on.statuses.is_empty();
    for names in [retry_on, grpc_on].into_iter().flatten() {
        let known = |name: &&str| RetryOn::parse([*name]).is_ok();
        for name in names.split(',').map(str::trim).filter(known) {
            // Cannot fail: the name was checked above.
            let _ = changed.retry_on.add(name);
        }
        by_status |= names.split(',').any(|name| name.trim() == "retriable-status-codes");
    }
    if by_status {
        let codes = statuses.iter().flat_map(|list| list.split(',')).filter_map(|code| code.trim().parse::<u16>().ok());
        changed.retry_on.statuses.extend(codes);
    }
    if let Some(max) = max_retries {
        changed.attempts = max.min(MAX_REQUESTED_RETRIES);
    }
    if let Some(limit) = per_try {
        changed.per_try_timeout = Some(limit).filter(|limit| !limit.is_zero());
    }
    overrides.retry = Some(changed);
    overrides
}

/// Parses "20m": at most eight digits and a unit (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::{Attempt, Next};

    fn retries(policy: &RetryPolicy, outcome: &Outcome, number: u32) -> bool {
        let attempt = Attempt { outcome, number, reused: false, repeatable: false, resendable: true };
        matches!(policy.after(attempt), Next::Retry { .. })
    }
    use crate::outcome::Outcome;
    use http::StatusCode;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn response(status: u16) -> Outcome {
        Outcome::Response {
            status: StatusCode::from_u16(status).unwrap(),
            grpc_status: None,
            grpc: true,
            rate_limited: false,
        }
    }

    #[test]
    fn a_request_without_these_headers_overrides_nothing() {
        let mut plain = headers(&[("x-request-id", "1"), ("x-envoy-attempt-count", "1")]);
        assert_eq!(request_overrides(&mut plain, &RetryPolicy::default(), None, false), RequestOverrides::default());
        assert_eq!(plain.len(), 2);
    }

    #[test]
    fn request_headers_override_the_retry_policy() {
        let mut all = headers(&[
            ("x-envoy-retry-on", "5xx, nonsense,retriable-status-codes"),
            ("x-envoy-retriable-status-codes", "418,x"),
            ("x-envoy-max-retries", "4"),
            ("x-envoy-upstream-rq-per-try-timeout-ms", "50"),
            ("x-other", "stays"),
        ]);
        let policy = request_overrides(&mut all, &RetryPolicy::default(), None, false).retry.unwrap();
        assert_eq!((policy.attempts, policy.per_try_timeout), (4, Some(Duration::from_millis(50))));
        for outcome in [response(500), response(418), Outcome::ConnectFailure] {
            assert!(retries(&policy, &outcome, 3) && !retries(&policy, &outcome, 4), "{outcome:?}");
        }
        assert!(!retries(&policy, &response(404), 0));
        assert_eq!(all.len(), 1, "headers for the proxy are removed: {all:?}");
        let mut many = headers(&[("x-envoy-max-retries", "4000000000")]);
        assert_eq!(
            request_overrides(&mut many, &RetryPolicy::default(), None, false).retry.unwrap().attempts,
            MAX_REQUESTED_RETRIES
        );
        let mut grpc = headers(&[("x-envoy-retry-grpc-on", "internal")]);
        let policy = request_overrides(&mut grpc, &RetryPolicy::default(), None, true).retry.unwrap();
        let internal =
            Outcome::Response { status: StatusCode::OK, grpc_status: Some(13), grpc: true, rate_limited: false };
        assert!(retries(&policy, &internal, 0));
    }

    #[test]
    fn request_headers_override_the_timeouts() {
        let limit = Some(Duration::from_secs(2));
        let of = |list: &[(&'static str, &'static str)], grpc| {
            request_overrides(&mut headers(list), &RetryPolicy::default(), limit, grpc).timeout
        };
        assert_eq!(of(&[("x-envoy-upstream-rq-timeout-ms", "300")], false), Some(Some(Duration::from_millis(300))));
        assert_eq!(of(&[("x-envoy-upstream-rq-timeout-ms", "0")], false), Some(None));
        assert_eq!(of(&[("x-envoy-upstream-rq-timeout-ms", "soon")], false), None);
        assert_eq!(of(&[("grpc-timeout", "20m")], true), Some(Some(Duration::from_millis(20))));
        assert_eq!(of(&[("grpc-timeout", "1H")], true), Some(limit), "capped by the route's");
        assert_eq!(of(&[("grpc-timeout", "20m")], false), None);
        for bad in ["", "m", "123456789S", "1x", "-1S", "1.5S", "é"] {
            let value = HeaderValue::from_bytes(bad.as_bytes()).unwrap();
            assert_eq!(grpc_timeout(&value), None, "{bad}");
        }
    }
}
