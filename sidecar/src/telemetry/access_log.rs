//! The access log: a JSON line for each request and TCP connection, written on a thread of its own.

use std::io::{BufWriter, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Lines that may wait to be written.
const QUEUE: usize = 4096;

/// Where access log lines go.
pub struct AccessLog {
    lines: NonBlocking,
    lost: ErrorCounter,
    reported: AtomicUsize,
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
        Ok(AccessLog { lines, lost, reported: AtomicUsize::new(0), _guard: guard })
    }

    /// Queues a line.
    pub fn line(&self, fields: &serde_json::Value) {
        let mut text = fields.to_string();
        let lost = self.lost.dropped_lines();
        let new = lost.saturating_sub(self.reported.swap(lost, Ordering::Relaxed));
        if new > 0 {
            text.insert_str(1, &format!("\"lost_lines\":{new},"));
        }
        text.push('\n');
        // Never fails and never waits: a line that does not fit is counted as lost.
        let _ = self.lines.clone().write_all(text.as_bytes());
    }
}
