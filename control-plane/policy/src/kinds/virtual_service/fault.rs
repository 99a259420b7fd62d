//! `fault`: delays and aborts of some requests.

use weft_proto::v1::{self, fault::Abort};

use crate::decode::fields::{Fields, Shape, object, read, refused};

/// Of a percentage.
pub(super) const PERCENTAGE: Shape = &[read("value")];
/// Its fields.
pub(super) const SHAPE: Shape = &[
    object(
        "delay",
        &[
            read("fixedDelay"),
            object("percentage", PERCENTAGE),
            read("percent"),
            refused("exponentialDelay", "nor by Istio: write `fixedDelay`"),
        ],
    ),
    object(
        "abort",
        &[
            read("httpStatus"),
            read("grpcStatus"),
            object("percentage", PERCENTAGE),
            refused("http2Error", "nor by Istio: write `httpStatus` or `grpcStatus`"),
        ],
    ),
];

/// Statuses of gRPC by number.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Reads it.
pub(super) fn decode(fields: &Fields<'_>) -> v1::Fault {
    if !fields.has("delay") && !fields.has("abort") {
        fields.error_at(fields.place, "`fault` needs `delay` or `abort`");
    }
    let mut fault = v1::Fault::default();
    if let Some(delay) = fields.object("delay") {
        delay.require("fixedDelay");
        fault.delay_ms = delay.duration("fixedDelay", 1).unwrap_or_default();
        if delay.has("percent") {
            delay.warn("percent", "`percent` is deprecated: write `percentage.value`");
        }
        let old = delay.number("percent", 0..=100).and_then(|n| u32::try_from(n).ok()).map(f64::from);
        fault.delay_percent = share(&delay, percentage(&delay, "percentage").or(old));
    }
    if let Some(abort) = fields.object("abort") {
        let status = abort.number("httpStatus", 200..=599).and_then(|n| u32::try_from(n).ok());
        let known: Vec<(&str, usize)> = GRPC.iter().copied().zip(0..).collect();
        let grpc = abort.one_of("grpcStatus", &known).and_then(|n| u32::try_from(n).ok());
        if abort.has("httpStatus") == abort.has("grpcStatus") {
            abort.error_at(abort.place, "`abort` needs either `httpStatus` or `grpcStatus`");
        }
        fault.abort = status.map(Abort::HttpStatus).or(grpc.map(Abort::GrpcStatus));
        fault.abort_percent = share(&abort, percentage(&abort, "percentage"));
    }
    fault
}

/// The percentage `name`; the least value above 0 is one in a million.
pub(super) fn percentage(fields: &Fields<'_>, name: &'static str) -> Option<f64> {
    let given = fields.object(name)?;
    let value = given.decimal("value", 0.0..=100.0).unwrap_or_default();
    if value > 0.0 && value < 0.0001 {
        given.error("value", "a percentage is 0, or from 0.0001 to 100");
    }
    Some(value)
}

fn share(fields: &Fields<'_>, given: Option<f64>) -> f64 {
    if given.is_none() {
        fields.warn("percentage", "without a `percentage` this never happens, as in Istio");
    }
    given.unwrap_or_default()
}
