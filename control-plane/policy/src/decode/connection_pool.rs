//! `connectionPool` of DestinationRules, Sidecars and the mesh.

use weft_proto::v1;

use crate::decode::fields::{Fields, Shape, object, read};

/// Fields of `tcpKeepalive`.
pub(crate) const KEEPALIVE: Shape = &[read("probes"), read("time"), read("interval")];
/// Its fields.
pub(crate) const SHAPE: Shape = &[
    object(
        "tcp",
        &[
            read("maxConnections"),
            read("connectTimeout"),
            object("tcpKeepalive", KEEPALIVE),
            read("maxConnectionDuration"),
            read("idleTimeout"),
        ],
    ),
    object(
        "http",
        &[
            read("http1MaxPendingRequests"),
            read("http2MaxRequests"),
            read("maxRequestsPerConnection"),
            read("maxRetries"),
            read("idleTimeout"),
            read("h2UpgradePolicy"),
            read("useClientProtocol"),
            read("maxConcurrentStreams"),
            object("http2KeepAlive", &[read("interval"), read("timeout")]),
        ],
    ),
];

/// Reads it. `http.idleTimeout` falls back to `tcp.idleTimeout`.
pub(crate) fn decode(fields: &Fields<'_>) -> v1::ConnectionPool {
    let mut pool = v1::ConnectionPool::default();
    if fields.written() == 0 {
        fields.error_at(fields.place, format!("`{}` must have `tcp` or `http`", fields.path));
    }
    if let Some(tcp) = fields.object("tcp") {
        pool.max_connections = tcp.limit("maxConnections").unwrap_or_default();
        pool.connect_timeout_ms = tcp.duration("connectTimeout", 1).unwrap_or_default();
        pool.tcp_idle_timeout_ms = tcp.duration("idleTimeout", 0);
        pool.max_connection_duration_ms = tcp.duration("maxConnectionDuration", 1).unwrap_or_default();
        pool.tcp_keepalive = tcp.object("tcpKeepalive").map(|fields| keepalive(&fields));
        pool.http_idle_timeout_ms = pool.tcp_idle_timeout_ms.unwrap_or_default();
    }
    if let Some(http) = fields.object("http") {
        pool.http1_max_pending_requests = http.limit("http1MaxPendingRequests").unwrap_or_default();
        pool.http2_max_requests = http.limit("http2MaxRequests").unwrap_or_default();
        pool.max_requests_per_connection = http.limit("maxRequestsPerConnection").unwrap_or_default();
        pool.max_retries = http.limit("maxRetries").unwrap_or_default();
        pool.max_concurrent_streams = http.limit("maxConcurrentStreams").unwrap_or_default();
        pool.http_idle_timeout_ms = http.duration("idleTimeout", 1).unwrap_or(pool.http_idle_timeout_ms);
        let upgrade = http.one_of(
            "h2UpgradePolicy",
            &[
                ("DEFAULT", v1::H2Upgrade::H2Default),
                ("DO_NOT_UPGRADE", v1::H2Upgrade::DoNotUpgrade),
                ("UPGRADE", v1::H2Upgrade::Upgrade),
            ],
        );
        pool.h2_upgrade = upgrade.unwrap_or_default().into();
        pool.http2_keepalive = http.object("http2KeepAlive").map(|keepalive| {
            let required = |name| {
                keepalive.require(name);
                keepalive.duration(name, 1).unwrap_or_default()
            };
            v1::Http2Keepalive { interval_ms: required("interval"), timeout_ms: required("timeout") }
        });
        pool.use_client_protocol = http.boolean("useClientProtocol").unwrap_or_default();
        if pool.use_client_protocol && upgrade == Some(v1::H2Upgrade::Upgrade) {
            http.error("useClientProtocol", "`h2UpgradePolicy: UPGRADE` and `useClientProtocol` exclude each other");
        }
    }
    pool
}

/// Reads `tcpKeepalive`.
pub(crate) fn keepalive(fields: &Fields<'_>) -> v1::TcpKeepalive {
    let seconds = |name| {
        let ms = fields.duration(name, 0).unwrap_or_default();
        if !ms.is_multiple_of(1000) {
            fields.error(name, format!("`{}` must be whole seconds", fields.path_of(name)));
        }
        u32::try_from(ms / 1000).unwrap_or(u32::MAX)
    };
    v1::TcpKeepalive {
        probes: fields.limit("probes").unwrap_or_default(),
        time_s: seconds("time"),
        interval_s: seconds("interval"),
    }
}
