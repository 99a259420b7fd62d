//! Settings of a route besides its destinations: `redirect`, `directResponse`, `retries`.

use base64::Engine;
use weft_proto::v1;

use crate::decode::fields::{Fields, Shape, explicit, read};
use crate::nearest::suggest;

/// Largest body of a direct response.
const MAX_BODY: usize = 1 << 20;

/// Envoy's retry conditions; Istio accepts no other names.
const RETRY_ON: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "envoy-ratelimited",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// The value of an absent `retryOn`.
const DEFAULT_RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";

/// Reads `redirect`.
pub(super) fn redirect(fields: &Fields<'_>) -> v1::Redirect {
    if !["uri", "prefixRewrite", "authority", "scheme", "port", "derivePort"].into_iter().any(|name| fields.has(name)) {
        fields.error_at(
            fields.place,
            "`redirect` needs `uri`, `prefixRewrite`, `authority`, `scheme`, `port` or `derivePort`",
        );
    }
    if fields.has("uri") && fields.has("prefixRewrite") {
        fields.error("prefixRewrite", "`uri` and `prefixRewrite` exclude each other");
    }
    if fields.has("port") && fields.has("derivePort") {
        fields.error("derivePort", "give either `port` or `derivePort`, not both");
    }
    let code = fields.number("redirectCode", 300..=399).unwrap_or(301);
    if !matches!(code, 301 | 302 | 303 | 307 | 308) {
        fields.error("redirectCode", format!("`redirectCode` must be 301, 302, 303, 307 or 308, not {code}"));
    }
    let scheme = fields.string("scheme");
    if scheme.as_deref().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        fields.error("scheme", "`scheme` must be http or https");
    }
    let derive = fields.one_of(
        "derivePort",
        &[
            ("FROM_PROTOCOL_DEFAULT", v1::DerivePort::FromProtocolDefault),
            ("FROM_REQUEST_PORT", v1::DerivePort::FromRequestPort),
        ],
    );
    v1::Redirect {
        uri: fields.string("uri"),
        authority: fields.string("authority"),
        scheme,
        port: fields.port("port"),
        code: u32::try_from(code).unwrap_or_default(),
        derive_port: derive.unwrap_or_default().into(),
        prefix_rewrite: fields.string("prefixRewrite"),
    }
}

/// Reads `directResponse`.
pub(super) fn direct(fields: &Fields<'_>) -> v1::DirectResponse {
    fields.require("status");
    let status = fields.number("status", 200..=599).and_then(|n| u32::try_from(n).ok()).unwrap_or_default();
    let body = fields.object("body").map(|body| body_of(&body)).unwrap_or_default();
    if body.len() > MAX_BODY {
        fields.error(
            "body",
            format!(
                "the body has {} bytes, more than the {MAX_BYTES} that are accepted",
                body.len(),
                MAX_BYTES = MAX_BODY
            ),
        );
    }
    v1::DirectResponse { status, body }
}

fn body_of(fields: &Fields<'_>) -> Vec<u8> {
    if fields.has("string") == fields.has("bytes") {
        fields.error_at(fields.place, "`body` needs either `string` or `bytes`");
    }
    let Some(text) = fields.string("bytes") else { return fields.string("string").unwrap_or_default().into_bytes() };
    base64::engine::general_purpose::STANDARD.decode(text.trim()).unwrap_or_else(|_| {
        fields.error("bytes", "`bytes` must be base64");
        Vec::new()
    })
}

/// Fields of `retries`.
pub(crate) const RETRIES: Shape = &[
    read("attempts"),
    read("perTryTimeout"),
    read("retryOn"),
    read("backoff"),
    explicit("retryRemoteLocalities"),
    explicit("retryIgnorePreviousHosts"),
];

/// Reads `retries`.
pub(crate) fn retry(fields: &Fields<'_>) -> v1::RetryPolicy {
    let attempts = fields.limit("attempts").unwrap_or_default();
    if attempts == 0
        && let Some(name) =
            ["perTryTimeout", "retryOn", "backoff", "retryRemoteLocalities"].into_iter().find(|name| fields.has(name))
    {
        fields.error(name, format!("`{name}` has no effect while `attempts` is absent or 0, which turns retries off"));
    }
    let retry_on =
        fields.string("retryOn").filter(|list| !list.is_empty()).unwrap_or_else(|| DEFAULT_RETRY_ON.to_owned());
    let retry_on: Vec<String> = retry_on.split(',').map(str::to_owned).collect();
    for condition in &retry_on {
        let status = condition.parse::<u16>().is_ok_and(|status| (100..600).contains(&status));
        let refused = match condition.as_str() {
            "retriable-headers" => Some("a VirtualService cannot name the headers"),
            "http3-post-connect-failure" => Some("endpoints are not called by HTTP/3"),
            _ => None,
        };
        if let Some(why) = refused {
            fields.error("retryOn", format!("`retryOn: {condition}` is not supported: {why}"));
        } else if !status && !RETRY_ON.contains(&condition.as_str()) {
            let hint = suggest(condition, RETRY_ON, "allowed are HTTP statuses and");
            fields.error("retryOn", format!("`retryOn`: unknown condition `{condition}`{hint}"));
        }
    }
    v1::RetryPolicy {
        attempts,
        per_try_timeout_ms: fields.duration("perTryTimeout", 1).unwrap_or_default(),
        retry_on,
        backoff_ms: fields.duration("backoff", 1).unwrap_or_default(),
        previous_hosts: fields.boolean("retryIgnorePreviousHosts") == Some(false),
        other_localities: fields.boolean("retryRemoteLocalities").unwrap_or_default(),
    }
}
