//! The access log: a JSON line for each request and TCP connection, written on a thread of its own.

use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::request::Parts;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use weft_core::http1::path_and_query;

use crate::http::{REQUEST_ID, authority};

/// Lines that may wait to be written.
const QUEUE: usize = 4096;

/// Where access log lines go.
pub struct AccessLog {
    lines: NonBlocking,
    lost: ErrorCounter,
    told: AtomicUsize,
    _guard: WorkerGuard,
}

impl AccessLog {
    /// Writes to `file` (`-`: standard output) on a thread of its own: a slow disk must not hold up traffic. Lines that
    /// it cannot take in time are dropped, and counted in the next one that gets through.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(file: &str) -> std::io::Result<AccessLog> {
        let out: Box<dyn Write + Send> = if file == "-" {
            Box::new(std::io::stdout())
        } else {
            Box::new(std::fs::OpenOptions::new().create(true).append(true).open(file)?)
        };
        // Buffered: the thread flushes when its queue is empty.
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUE).thread_name("access-log");
        let (lines, guard) = builder.finish(BufWriter::with_capacity(64 * 1024, out));
        let lost = lines.error_counter();
        Ok(AccessLog { lines, lost, told: AtomicUsize::new(0), _guard: guard })
    }

    /// Queues a line.
    pub fn line(&self, fields: &serde_json::Value) {
        let mut text = fields.to_string();
        let lost = self.lost.dropped_lines();
        let new = lost.saturating_sub(self.told.swap(lost, Ordering::Relaxed));
        if new > 0 {
            text.insert_str(1, &format!("\"lost_lines\":{new},"));
        }
        text.push('\n');
        // Never fails and never waits: what does not fit is counted as lost.
        let _ = self.lines.clone().write_all(text.as_bytes());
    }
}

/// What the access log says of a request besides figures; kept only when there is a log.
#[derive(Debug, Clone)]
pub struct LogFields {
    /// Method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Authority.
    pub authority: String,
    /// HTTP version of the client.
    pub version: String,
    /// Who called.
    pub source: SocketAddr,
    /// `x-request-id`.
    pub request_id: String,
}

impl LogFields {
    /// Of a request as it came from `source`.
    pub fn of(parts: &Parts, source: SocketAddr) -> LogFields {
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
    pub fn of_line(line: &str, source: SocketAddr) -> LogFields {
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
