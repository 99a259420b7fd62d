//! What Envoy's formatters tell and a sidecar does not know.

/// Why a formatter of Envoy's cannot be used.
pub(super) fn refusal(name: &str) -> &'static str {
    const ENDS: &[&str] = &[
        "DURATION",
        "COMMON_DURATION",
        "REQUEST_DURATION",
        "REQUEST_TX_DURATION",
        "RESPONSE_DURATION",
        "RESPONSE_TX_DURATION",
        "ROUNDTRIP_DURATION",
        "TRAILER",
        "GRPC_STATUS",
        "GRPC_STATUS_NUMBER",
        "EMIT_TIME",
        "EMIT_TIME_LOCAL",
        "CUSTOM_FLAGS",
        "ACCESS_LOG_TYPE",
        "LOCAL_REPLY_BODY",
        "RESPONSE_FLAGS_LONG",
    ];
    const CONFIGURATION: &[&str] = &[
        "DYNAMIC_METADATA",
        "CLUSTER_METADATA",
        "UPSTREAM_METADATA",
        "FILTER_STATE",
        "UPSTREAM_FILTER_STATE",
        "PER_REQUEST_STATE",
        "FILTER_CHAIN_NAME",
        "VIRTUAL_CLUSTER_NAME",
        "METADATA",
        "COALESCE",
        "CEL",
        "REQ_WITHOUT_QUERY",
        "FILE_CONTENT",
        "SECRET",
    ];
    match name {
        _ if ENDS.contains(&name) || name.contains("BYTES") => {
            "it is of access logs, or known when the response has ended, after its headers have gone"
        }
        _ if CONFIGURATION.contains(&name) => {
            "it is of Envoy's own configuration or extensions, which the mesh does not have"
        }
        "REQUESTED_SERVER_NAME" | "TLS_JA3_FINGERPRINT" | "TLS_JA4_FINGERPRINT" => {
            "an application speaks to its own sidecar without TLS"
        }
        _ if name.starts_with("DOWNSTREAM_") => {
            "an application speaks to its own sidecar without TLS; at the callee `x-forwarded-client-cert` tells who calls"
        }
        _ if name.starts_with("UPSTREAM_") => "of the connection to the endpoint its address is kept alone",
        "START_TIME_LOCAL" => "times are UTC: use %START_TIME(FORMAT)%",
        "CONNECTION_ID" => "connections have no numbers",
        "TRACE_ID" | "SPAN_ID" => "the sidecar makes no traces; %REQ(traceparent)% is the application's",
        _ => {
            "supported are HOSTNAME, DOWNSTREAM_REMOTE_ADDRESS and DOWNSTREAM_LOCAL_ADDRESS (with _WITHOUT_PORT too), \
             DOWNSTREAM_REMOTE_PORT, DOWNSTREAM_LOCAL_PORT, PROTOCOL, REQ(name?other):LENGTH, START_TIME(format), \
             UPSTREAM_CLUSTER, ROUTE_NAME, STREAM_ID, UNIQUE_ID, ENVIRONMENT(NAME), and in responses RESP(name?other):LENGTH, \
             RESPONSE_CODE, RESPONSE_CODE_DETAILS, RESPONSE_FLAGS, UPSTREAM_HOST, UPSTREAM_REMOTE_ADDRESS (with \
             _WITHOUT_PORT too), UPSTREAM_REMOTE_PORT and UPSTREAM_REQUEST_ATTEMPT_COUNT"
        }
    }
}
