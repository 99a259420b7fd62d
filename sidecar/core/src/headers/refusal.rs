//! Envoy's formatters that are not supported, with the reasons.

/// The reason why a formatter of Envoy is not supported.
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
        "RESPONSE_TRAILER",
        "GRPC_STATUS",
        "GRPC_STATUS_NUMBER",
        "EMIT_TIME",
        "EMIT_TIME_LOCAL",
        "CUSTOM_FLAGS",
        "ACCESS_LOG_TYPE",
        "LOCAL_REPLY_BODY",
        "RESPONSE_FLAGS_LONG",
        "PACKETS_RETRANSMITTED",
        "CONNECTION_TERMINATION_DETAILS",
        "DOWNSTREAM_LOCAL_CLOSE_REASON",
        "DOWNSTREAM_DETECTED_CLOSE_TYPE",
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    ];
    const CONFIGURATION: &[&str] = &[
        "DYNAMIC_METADATA",
        "CLUSTER_METADATA",
        "UPSTREAM_METADATA",
        "FILTER_STATE",
        "UPSTREAM_FILTER_STATE",
        "PER_REQUEST_STATE",
        "FILTER_CHAIN_NAME",
        "LISTENER_NAME",
        "VIRTUAL_CLUSTER_NAME",
        "METADATA",
        "CEL",
        "REQ_WITHOUT_QUERY",
        "FILE_CONTENT",
        "SECRET",
        "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID",
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID",
        "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID",
    ];
    match name {
        _ if ENDS.contains(&name) || name.contains("BYTES") => {
            "it is for access logs, or known only when the response has ended and its headers were sent"
        }
        _ if CONFIGURATION.contains(&name) => {
            "it belongs to Envoy's own configuration or extensions, which the mesh does not have"
        }
        "COALESCE" => "alternatives are supported by %REQ(name?other)% and %RESP(name?other)% only",
        "TLS_JA3_FINGERPRINT" | "TLS_JA4_FINGERPRINT" => "fingerprints of a TLS ClientHello are not computed",
        "DOWNSTREAM_TLS_SESSION_ID" => "the TLS library does not expose session ids",
        "DOWNSTREAM_CX_RTT" | "DOWNSTREAM_HANDSHAKE_DURATION" => "it is not measured",
        "DOWNSTREAM_PEER_OTHERNAME_SAN" => "only alternative names of the kinds URI, DNS, IP and email are read",
        _ if name.starts_with("DOWNSTREAM_PEER_CHAIN_") || name.starts_with("DOWNSTREAM_PEER_ISSUER_") => {
            "only the client's own certificate is recorded: use %DOWNSTREAM_PEER_FINGERPRINT_256%, \
             %DOWNSTREAM_PEER_SERIAL% or %DOWNSTREAM_PEER_ISSUER%"
        }
        "DOWNSTREAM_LOCAL_SUBJECT"
        | "DOWNSTREAM_LOCAL_URI_SAN"
        | "DOWNSTREAM_LOCAL_DNS_SAN"
        | "DOWNSTREAM_LOCAL_IP_SAN"
        | "DOWNSTREAM_LOCAL_EMAIL_SAN"
        | "DOWNSTREAM_LOCAL_OTHERNAME_SAN" => "the certificate that a gateway presented is not recorded",
        _ if name.starts_with("DOWNSTREAM_DIRECT_LOCAL_") => {
            "a redirected connection arrives at the sidecar's own listener: use %DOWNSTREAM_LOCAL_ADDRESS%, which the \
             client dialed"
        }
        _ if name.starts_with("UPSTREAM_") => "only the address of an upstream connection is recorded",
        "START_TIME_LOCAL" => "times are UTC: use %START_TIME(FORMAT)%",
        "CONNECTION_ID" => "connections have no ids",
        "TRACE_ID" | "SPAN_ID" => "the sidecar creates no traces; %REQ(traceparent)% is the application's",
        _ => {
            "supported are HOSTNAME, DOWNSTREAM_REMOTE_ADDRESS and DOWNSTREAM_LOCAL_ADDRESS (with _WITHOUT_PORT too), \
             DOWNSTREAM_REMOTE_PORT, DOWNSTREAM_LOCAL_PORT, PROTOCOL, REQ(name?other):LENGTH, PATH, QUERY_PARAM(name), \
             QUERY_PARAMS, START_TIME(format), UPSTREAM_CLUSTER, ROUTE_NAME, STREAM_ID, UNIQUE_ID, ENVIRONMENT(NAME), of \
             TLS at gateways REQUESTED_SERVER_NAME, DOWNSTREAM_TLS_VERSION, _CIPHER and _GROUP, DOWNSTREAM_PEER_SUBJECT, \
             _ISSUER, _URI_SAN, _DNS_SAN, _IP_SAN, _EMAIL_SAN, _FINGERPRINT_256, _FINGERPRINT_1, _SERIAL, _CERT, \
             _CERT_V_START and _CERT_V_END, and in responses RESP(name?other):LENGTH, RESPONSE_CODE, \
             RESPONSE_CODE_DETAILS, RESPONSE_FLAGS, UPSTREAM_HOST, UPSTREAM_REMOTE_ADDRESS (with _WITHOUT_PORT too), \
             UPSTREAM_REMOTE_PORT and UPSTREAM_REQUEST_ATTEMPT_COUNT"
        }
    }
}
