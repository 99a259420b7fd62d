//! Answers that the sidecar makes by itself: one table from reason to status, body, flag and headers, so that every such
//! answer looks like Envoy's to clients and says why to people.
//!
//! `x-weft-reason: <reason>: <rule that was broken>; policy=<kind/namespace/name>; limit=<field>=<value>` says which rule of the
//! protocol, policy and limit decided.

use std::borrow::Cow;
use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, HeaderName, Response, StatusCode};

use crate::fault::Abort;
use crate::flag::ResponseFlag;
use crate::http1::HeadError;
use crate::limits::Overflow;
use crate::outcome::{GRPC_STATUS, Outcome, grpc_to_http, http_to_grpc};

/// The header that says why.
pub const REASON_HEADER: HeaderName = HeaderName::from_static("x-weft-reason");
/// Set when a limit refused the request, as Envoy does.
pub const OVERLOADED_HEADER: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// Why the sidecar answers by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Every endpoint is unhealthy, ejected or missing.
    NoHealthyUpstream,
    /// A limit of the cluster.
    Overflow(Overflow),
    /// The service has routes and none matches.
    NoRoute,
    /// The route names a host or subset that nothing defines.
    ClusterUndefined,
    /// The connection was refused, or TLS failed; `detail` is for people, for example the system's error.
    ConnectFailure { detail: String },
    /// No connection within `connectTimeout`.
    ConnectTimeout,
    /// The peer's certificate does not name the expected identity.
    PeerIdentityMismatch { detail: String },
    /// `ISTIO_MUTUAL` and the endpoint has no sidecar.
    PeerWithoutIdentity,
    /// The upstream closed the connection before it answered.
    UpstreamClosed,
    /// The upstream reset the stream before it answered.
    UpstreamReset,
    /// The upstream refused the stream.
    UpstreamRefusedStream,
    /// The upstream's answer is not HTTP; `detail`: the rule that it breaks.
    UpstreamProtocolError { detail: String },
    /// The request's timeout: the route's, or the one that it asked for itself.
    Timeout { after: Duration },
    /// The timeout of the last attempt.
    PerTryTimeout { after: Duration },
    /// `REGISTRY_ONLY`, and nothing is registered under this host.
    UnknownHost,
    /// The client's request breaks the protocol; `detail`: the rule that it breaks.
    BadRequest { detail: &'static str },
    /// The client's request head is too large.
    HeaderTooLarge,
    /// The client's request has another transfer coding than chunked; `detail`: which ones.
    UnsupportedCoding { detail: String },
    /// The client's request is of another version of HTTP/1 than 1.0 and 1.1.
    UnsupportedVersion,
    /// The client's request asks for a protocol that is not tunnelled here; `token`: its name.
    UpgradeRefused { token: String },
    /// CONNECT to a service of the mesh.
    ConnectRefused,
    /// Plaintext where STRICT mTLS is asked for.
    PlaintextRefused,
    /// The route's fault.
    Fault(Abort),
}

impl From<&HeadError> for Reason {
    /// Why a client's request is refused whose head cannot be read.
    fn from(error: &HeadError) -> Reason {
        match error {
            HeadError::TooLarge => Reason::HeaderTooLarge,
            HeadError::Invalid(detail) => Reason::BadRequest { detail },
            HeadError::Version => Reason::UnsupportedVersion,
            HeadError::Coding(_) => Reason::UnsupportedCoding { detail: error.to_string() },
        }
    }
}

/// An answer of the sidecar's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalReply {
    /// HTTP status.
    pub status: StatusCode,
    /// Envoy's text where clients may know it.
    pub body: Cow<'static, str>,
    /// For logs and metrics; `None` where Envoy sets none.
    pub flag: Option<ResponseFlag>,
    /// Refused by a limit: `x-envoy-overloaded: true`.
    pub overloaded: bool,
    /// gRPC's status; `None`: the one that stands for HTTP's.
    pub grpc_status: Option<u32>,
    /// Value of `x-weft-reason`.
    pub reason: String,
}

impl Reason {
    /// A short name, for metrics and `x-weft-reason`.
    pub fn name(&self) -> &'static str {
        self.row().0
    }

    /// The flag, for metrics and logs; `None` where Envoy sets none.
    pub fn flag(&self) -> Option<ResponseFlag> {
        self.row().2
    }

    /// Why a request failed whose last attempt ended so; `None`: the attempt has an answer, or nobody waits for one.
    /// `overflow`: which limit, when that was it; `after`: how long it was waited for, when it was too long; `detail`: of a
    /// failure to connect.
    pub fn of(outcome: &Outcome, overflow: Option<Overflow>, after: Duration, detail: &str) -> Option<Reason> {
        Some(match outcome {
            Outcome::Response { .. } | Outcome::Cancelled | Outcome::ResetAfterHeaders => return None,
            Outcome::ConnectFailure => Reason::ConnectFailure { detail: detail.to_owned() },
            Outcome::ConnectTimeout => Reason::ConnectTimeout,
            Outcome::IdentityMismatch => Reason::PeerIdentityMismatch { detail: detail.to_owned() },
            Outcome::Reset { .. } => Reason::UpstreamClosed,
            Outcome::RemoteReset => Reason::UpstreamReset,
            Outcome::RefusedStream => Reason::UpstreamRefusedStream,
            Outcome::ProtocolError => Reason::UpstreamProtocolError { detail: detail.to_owned() },
            Outcome::Timeout => Reason::Timeout { after },
            Outcome::PerTryTimeout { .. } => Reason::PerTryTimeout { after },
            Outcome::Overflow => Reason::Overflow(overflow?),
            Outcome::NoHealthyUpstream => Reason::NoHealthyUpstream,
        })
    }

    /// Name, status and flag.
    fn row(&self) -> (&'static str, u16, Option<ResponseFlag>) {
        use ResponseFlag as Flag;
        let (name, status, flag) = match self {
            // Envoy sets no flag for it.
            Reason::UpgradeRefused { .. } => return ("upgrade_refused", 403, None),
            Reason::NoHealthyUpstream => ("no_healthy_upstream", 503, Flag::NoHealthyUpstream),
            Reason::Overflow(_) => ("overflow", 503, Flag::UpstreamOverflow),
            Reason::NoRoute => ("no_route", 404, Flag::NoRoute),
            Reason::ClusterUndefined => ("cluster_undefined", 503, Flag::NoCluster),
            Reason::ConnectFailure { .. } => ("connect_failure", 503, Flag::UpstreamConnectionFailure),
            Reason::ConnectTimeout => ("connect_timeout", 503, Flag::UpstreamConnectionFailure),
            Reason::PeerIdentityMismatch { .. } => ("peer_identity_mismatch", 503, Flag::UpstreamConnectionFailure),
            Reason::PeerWithoutIdentity => ("peer_without_identity", 503, Flag::UpstreamConnectionFailure),
            Reason::UpstreamClosed => ("upstream_closed", 503, Flag::UpstreamConnectionTermination),
            Reason::UpstreamReset => ("upstream_reset", 503, Flag::UpstreamRemoteReset),
            Reason::UpstreamRefusedStream => ("upstream_refused_stream", 503, Flag::UpstreamRemoteReset),
            Reason::UpstreamProtocolError { .. } => ("upstream_protocol_error", 502, Flag::UpstreamProtocolError),
            Reason::Timeout { .. } => ("timeout", 504, Flag::UpstreamRequestTimeout),
            Reason::PerTryTimeout { .. } => ("per_try_timeout", 504, Flag::UpstreamRequestTimeout),
            Reason::UnknownHost => ("unknown_host", 502, Flag::NoRoute),
            Reason::BadRequest { .. } => ("bad_request", 400, Flag::DownstreamProtocolError),
            Reason::HeaderTooLarge => ("header_too_large", 431, Flag::DownstreamProtocolError),
            Reason::UnsupportedCoding { .. } => ("unsupported_coding", 501, Flag::DownstreamProtocolError),
            Reason::UnsupportedVersion => ("unsupported_version", 505, Flag::DownstreamProtocolError),
            Reason::ConnectRefused => ("connect_refused", 404, Flag::NoRoute),
            Reason::PlaintextRefused => ("plaintext_refused", 403, Flag::UnauthorizedExternalService),
            Reason::Fault(Abort::Http(status)) => ("fault_injected", status.as_u16(), Flag::FaultInjected),
            Reason::Fault(Abort::Grpc(code)) => ("fault_injected", grpc_to_http(*code).as_u16(), Flag::FaultInjected),
        };
        (name, status, Some(flag))
    }

    /// The rule that a message breaks, for `x-weft-reason`.
    fn detail(&self) -> Option<&str> {
        let detail = match self {
            Reason::BadRequest { detail } => *detail,
            Reason::UpstreamProtocolError { detail } | Reason::UnsupportedCoding { detail } => detail,
            Reason::UpgradeRefused { token } => token,
            _ => "",
        };
        Some(detail).filter(|detail| !detail.is_empty())
    }

    fn body(&self) -> Cow<'static, str> {
        let reset =
            |reason: &str| format!("upstream connect error or disconnect/reset before headers. reset reason: {reason}");
        match self {
            Reason::NoHealthyUpstream => "no healthy upstream".into(),
            Reason::Overflow(_) => reset("overflow").into(),
            // Envoy has no body here.
            Reason::NoRoute | Reason::ClusterUndefined | Reason::UnknownHost => "".into(),
            Reason::UpgradeRefused { .. } | Reason::ConnectRefused => "".into(),
            Reason::ConnectFailure { detail } | Reason::PeerIdentityMismatch { detail } if detail.is_empty() => {
                reset("remote connection failure").into()
            }
            Reason::ConnectFailure { detail } | Reason::PeerIdentityMismatch { detail } => {
                reset(&format!("remote connection failure, transport failure reason: {detail}")).into()
            }
            Reason::PeerWithoutIdentity => reset(
                "local connection failure, transport failure reason: mTLS is required and the endpoint has no identity",
            )
            .into(),
            Reason::ConnectTimeout => reset("connection timeout").into(),
            Reason::UpstreamClosed => reset("connection termination").into(),
            Reason::UpstreamReset => reset("remote reset").into(),
            Reason::UpstreamRefusedStream => reset("remote refused stream reset").into(),
            Reason::UpstreamProtocolError { .. } => reset("protocol error").into(),
            Reason::Timeout { .. } | Reason::PerTryTimeout { .. } => "upstream request timeout".into(),
            Reason::BadRequest { detail } => (*detail).into(),
            Reason::HeaderTooLarge => "request header fields too large".into(),
            Reason::UnsupportedCoding { detail } => format!("the only transfer coding is chunked, not {detail}").into(),
            Reason::UnsupportedVersion => "the version is neither HTTP/1.0 nor HTTP/1.1".into(),
            Reason::PlaintextRefused => "mTLS is required here and the connection is plaintext".into(),
            Reason::Fault(_) => "fault filter abort".into(),
        }
    }
}

impl LocalReply {
    /// The answer for a reason. `policy`: `<kind>/<namespace>/<name>` that decided; empty: none did.
    pub fn new(reason: &Reason, policy: &str) -> LocalReply {
        let (name, status, flag) = reason.row();
        let mut text = name.to_owned();
        // Writing to a String cannot fail.
        if let Some(detail) = reason.detail() {
            let _ = write!(text, ": {detail}");
        }
        if !policy.is_empty() {
            let _ = write!(text, "; policy={policy}");
        }
        let _ = match reason {
            Reason::Overflow(overflow) => write!(text, "; limit={}={}", overflow.field, overflow.limit),
            Reason::Timeout { after } => write!(text, "; limit=timeout={after:?}"),
            Reason::PerTryTimeout { after } => write!(text, "; limit=perTryTimeout={after:?}"),
            _ => Ok(()),
        };
        LocalReply {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
            body: reason.body(),
            flag,
            overloaded: matches!(reason, Reason::Overflow(_)),
            grpc_status: match reason {
                Reason::Fault(Abort::Grpc(code)) => Some(*code),
                _ => None,
            },
            reason: text,
        }
    }

    /// As an HTTP response.
    pub fn http(&self) -> Response<Bytes> {
        let body = match &self.body {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => Bytes::copy_from_slice(text.as_bytes()),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        self.add_headers(response.headers_mut());
        if !self.body.is_empty() {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        response
    }

    /// As a gRPC response: 200 with the status in the headers ("trailers only"), the body as percent-encoded message.
    pub fn grpc(&self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        self.add_headers(headers);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(self.grpc_status.unwrap_or_else(|| http_to_grpc(self.status))));
        if !self.body.is_empty()
            && let Ok(message) = HeaderValue::from_str(&percent_encode(&self.body))
        {
            headers.insert("grpc-message", message);
        }
        response
    }

    fn add_headers(&self, headers: &mut HeaderMap) {
        if let Ok(reason) = HeaderValue::from_str(&self.reason) {
            headers.insert(REASON_HEADER, reason);
        }
        if self.overloaded {
            headers.insert(OVERLOADED_HEADER, HeaderValue::from_static("true"));
        }
    }
}

/// Whether a request is gRPC, to be answered as such: its `content-type` is `application/grpc` or begins with
/// `application/grpc+` or `application/grpc;`.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// As the gRPC protocol encodes `grpc-message`: all but visible ASCII and space, and the percent sign.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests;
