//! The access log's line of one request.

use std::net::SocketAddr;
use std::time::Duration;

use http::request::Parts;
use weft_core::http1::path_and_query;

use super::Exchange;
use crate::http::{REQUEST_ID, authority};

/// Fields of the line that are read from the request's head; kept only where there is an access log.
pub(super) struct LogFields {
    method: String,
    path: String,
    authority: String,
    version: String,
    source: SocketAddr,
    request_id: String,
}

impl LogFields {
    /// Of a request as it came from `source`.
    pub(super) fn of(parts: &Parts, source: SocketAddr) -> LogFields {
        LogFields {
            method: parts.method.to_string(),
            path: path_and_query(parts).to_owned(),
            authority: authority(parts).to_owned(),
            version: format!("{:?}", parts.version),
            source,
            request_id: parts.headers.get(REQUEST_ID).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned(),
        }
    }

    /// Of a request from `source` whose head cannot be read; `line`: its first line.
    pub(super) fn of_line(line: &str, source: SocketAddr) -> LogFields {
        let mut words = line.split(' ').map(str::to_owned);
        LogFields {
            method: words.next().unwrap_or_default(),
            path: words.next().unwrap_or_default(),
            authority: String::new(),
            version: words.next().unwrap_or_default(),
            source,
            request_id: String::new(),
        }
    }
}

impl Exchange {
    /// Writes the line, where there is an access log.
    pub(super) fn write_log(&self, duration: Duration) {
        let Some((log, fields)) = &self.log else { return };
        let now = time::OffsetDateTime::now_utc();
        let start = now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
        log.line(&serde_json::json!({
            "time": start,
            "reporter": self.pair.reporter,
            "method": fields.method,
            "path": fields.path,
            "authority": fields.authority,
            "protocol": fields.version,
            "request_id": fields.request_id,
            "response_code": self.code,
            "response_flags": self.flags.to_string(),
            "reason": self.reason,
            "grpc_status": self.grpc_status,
            "duration_ms": duration.as_secs_f64() * 1000.0,
            "bytes_received": self.received,
            "bytes_sent": self.sent,
            "attempts": self.attempts,
            "upstream_host": self.upstream.as_deref(),
            "upstream_cluster": self.cluster.as_deref(),
            "route": self.route.as_deref(),
            "source": fields.source.to_string(),
            "source_principal": &*self.pair.source.principal,
            "destination_principal": &*self.pair.destination.principal,
            "destination_service": &*self.pair.service,
        }));
    }
}
