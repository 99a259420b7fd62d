//! The outcome of an exchange with an endpoint, as outlier ejection and retries classify it.

use weft_core::outcome::Outcome;

use super::body::BodyError;
use super::http1::{ExchangeError, Failure as ExchangeFailure, ReadError};
use super::incoming::IncomingError;

/// The rule that the client's body broke, where that is why the exchange failed.
pub fn broken_rule(error: &ExchangeError) -> Option<&'static str> {
    match &error.reason {
        ExchangeFailure::Body(BodyError::Client(IncomingError::Http1(ReadError::Body(e)))) => Some(e.rule()),
        _ => None,
    }
}

/// The outcome of a failed exchange.
pub fn classify(error: &ExchangeError) -> Outcome {
    match &error.reason {
        ExchangeFailure::Http2(e) => of_http2(e, !error.unsent),
        ExchangeFailure::Read(ReadError::Head(_)) => Outcome::ProtocolError,
        // The endpoint is not to blame.
        ExchangeFailure::Body(_) => Outcome::Cancelled,
        _ => Outcome::Reset { request_started: !error.unsent },
    }
}

/// The outcome of a body that broke off.
pub fn classify_body(error: &IncomingError) -> Outcome {
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
        // The peer's bytes are not HTTP/2.
        Some(_) if error.is_library() => Outcome::ProtocolError,
        _ => Outcome::Reset { request_started },
    }
}
