//! Classification of one attempt's outcome, for ejection, retries and metrics.

use http::{HeaderMap, HeaderName, StatusCode};

/// gRPC's status. A constant name: looking a header up by text normalises the text each time.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// Outcome of one attempt to send a request to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Response headers arrived. `grpc_status`: from the headers only (never trailers), as Envoy reads it; `grpc`: the
    /// request was a gRPC call, so that the status reflects the endpoint's health. `rate_limited`: the response carries
    /// `x-envoy-ratelimited`; it is retried only by a policy that lists `envoy-ratelimited`.
    Response { status: StatusCode, grpc_status: Option<u32>, grpc: bool, rate_limited: bool },
    /// The connection was refused or reset while connecting, or TLS failed.
    ConnectFailure,
    /// No connection within `connectTimeout`.
    ConnectTimeout,
    /// The peer's certificate does not name the identity that the registry gives for the endpoint.
    IdentityMismatch,
    /// The connection ended before response headers. `request_started`: at least a byte of the request
    /// was written to a connection.
    Reset { request_started: bool },
    /// The peer reset the HTTP/2 stream before response headers.
    RemoteReset,
    /// The connection or stream ended after response headers: too late to retry.
    ResetAfterHeaders,
    /// HTTP/2 REFUSED_STREAM, or GOAWAY below this stream: certainly not processed.
    RefusedStream,
    /// The response violates the protocol.
    ProtocolError,
    /// The route's timeout over all attempts expired.
    Timeout,
    /// `perTryTimeout` expired. `request_started` as in `Reset`.
    PerTryTimeout { request_started: bool },
    /// Refused by a limit of the cluster; no endpoint was contacted.
    Overflow,
    /// No endpoint is available.
    NoHealthyUpstream,
    /// The client closed the connection.
    Cancelled,
}

impl Outcome {
    /// Classifies response headers; `grpc`: the request was a gRPC call.
    pub fn response(status: StatusCode, headers: &HeaderMap, grpc: bool) -> Outcome {
        let (grpc_status, rate_limited) = (grpc_status(headers), headers.contains_key(RATE_LIMITED));
        Outcome::Response { status, grpc_status, grpc, rate_limited }
    }

    /// The HTTP status under which outlier detection counts it; `None`: it is not counted. Local failures count as 503
    /// and 504.
    pub fn counted_status(&self) -> Option<StatusCode> {
        match *self {
            Outcome::Response { grpc_status: Some(code), grpc: true, .. } => Some(grpc_to_http(code)),
            Outcome::Response { status, .. } => Some(status),
            Outcome::ConnectFailure
            | Outcome::ConnectTimeout
            | Outcome::IdentityMismatch
            | Outcome::Reset { .. }
            | Outcome::RemoteReset
            | Outcome::ResetAfterHeaders
            | Outcome::RefusedStream
            | Outcome::ProtocolError => Some(StatusCode::SERVICE_UNAVAILABLE),
            Outcome::Timeout | Outcome::PerTryTimeout { .. } => Some(StatusCode::GATEWAY_TIMEOUT),
            Outcome::Overflow | Outcome::NoHealthyUpstream | Outcome::Cancelled => None,
        }
    }

    /// Whether the sidecar detected the failure, rather than the upstream (`splitExternalLocalOriginErrors` counts
    /// these separately).
    pub fn is_local_failure(&self) -> bool {
        !matches!(self, Outcome::Response { .. }) && self.counted_status().is_some()
    }

    /// Whether it failed after a connection was established.
    pub fn was_connected(&self) -> bool {
        !matches!(self, Outcome::ConnectFailure | Outcome::ConnectTimeout | Outcome::IdentityMismatch)
    }
}

/// The gRPC status in headers or trailers.
pub fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// The HTTP status for a gRPC status code, in Envoy's mapping.
pub fn grpc_to_http(code: u32) -> StatusCode {
    match code {
        0 => StatusCode::OK,
        1 => CLIENT_CLOSED_REQUEST,
        3 | 9 | 11 => StatusCode::BAD_REQUEST,
        4 => StatusCode::GATEWAY_TIMEOUT,
        5 => StatusCode::NOT_FOUND,
        6 | 10 => StatusCode::CONFLICT,
        7 => StatusCode::FORBIDDEN,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        16 => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The gRPC status code for the HTTP status of a local reply, in Envoy's mapping.
pub fn http_to_grpc(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// 499, nginx's and Envoy's "client closed request".
const CLIENT_CLOSED_REQUEST: StatusCode = match StatusCode::from_u16(499) {
    Ok(status) => status,
    Err(_) => StatusCode::BAD_REQUEST,
};

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn response_headers_are_classified() {
        let mut headers = HeaderMap::new();
        let plain = Outcome::response(StatusCode::OK, &headers, true);
        assert_eq!(
            plain,
            Outcome::Response { status: StatusCode::OK, grpc_status: None, grpc: true, rate_limited: false }
        );
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        headers.insert("x-envoy-ratelimited", HeaderValue::from_static("true"));
        let grpc = Outcome::response(StatusCode::OK, &headers, true);
        assert_eq!(
            grpc,
            Outcome::Response { status: StatusCode::OK, grpc_status: Some(14), grpc: true, rate_limited: true }
        );
        assert_eq!(grpc.counted_status(), Some(StatusCode::SERVICE_UNAVAILABLE));
        assert!(!grpc.is_local_failure());
        assert_eq!(Outcome::response(StatusCode::OK, &headers, false).counted_status(), Some(StatusCode::OK));
    }

    #[test]
    fn outcomes_are_counted_by_status() {
        for (outcome, status) in [
            (Outcome::ConnectFailure, Some(503)),
            (Outcome::ConnectTimeout, Some(503)),
            (Outcome::Reset { request_started: true }, Some(503)),
            (Outcome::Timeout, Some(504)),
            (Outcome::PerTryTimeout { request_started: true }, Some(504)),
            (Outcome::Overflow, None),
            (Outcome::NoHealthyUpstream, None),
            (Outcome::Cancelled, None),
        ] {
            assert_eq!(outcome.counted_status().map(|status| status.as_u16()), status, "{outcome:?}");
            assert_eq!(outcome.is_local_failure(), status.is_some(), "{outcome:?}");
        }
    }

    #[test]
    fn grpc_and_http_statuses_are_mapped() {
        let http = (0..=17).map(|code| grpc_to_http(code).as_u16()).collect::<Vec<_>>();
        let expected = [200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401, 500];
        assert_eq!(http, expected);
        let codes = [400, 401, 403, 404, 429, 502, 503, 504, 500, 200];
        let grpc = codes.map(|code| http_to_grpc(StatusCode::from_u16(code).unwrap()));
        assert_eq!(grpc, [13, 16, 7, 12, 14, 14, 14, 14, 2, 2]);
    }
}
