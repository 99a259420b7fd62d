//! This machine's clock beside the control plane's, as each exchange with it measures.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use weft_core::clock::{self, SKEW_THRESHOLD, unix_ms};

/// The difference that was measured last.
#[derive(Debug, Default)]
pub struct Clock {
    /// Milliseconds ahead; 0 until it was measured.
    ahead_ms: AtomicI64,
}

impl Clock {
    /// Takes the response to a request sent at `sent`. `theirs`: the control plane's time, 0 where the response has none.
    pub fn measured(&self, sent: SystemTime, theirs: u64) {
        let Some(ahead_ms) = clock::ahead_ms(unix_ms(sent), unix_ms(SystemTime::now()), theirs) else { return };
        let before = self.ahead_ms.swap(ahead_ms, Ordering::Relaxed);
        let differs = |ms: i64| Duration::from_millis(ms.unsigned_abs()) > SKEW_THRESHOLD;
        if differs(ahead_ms) && !differs(before) {
            let apart = clock::describe(ahead_ms);
            tracing::warn!(
                "this machine's clock is {apart} the control plane's: certificates end by the one and begin by the other"
            );
        }
    }

    /// Milliseconds by which this clock is ahead; negative: behind.
    pub fn ahead_ms(&self) -> i64 {
        self.ahead_ms.load(Ordering::Relaxed)
    }

    /// Why handshakes fail, where certificates that last for `lifetime` cannot be verified by this clock.
    pub fn problem(&self, lifetime: Duration) -> Option<String> {
        let ahead_ms = self.ahead_ms();
        clock::breaks_handshakes(ahead_ms, lifetime).then(|| {
            format!(
                "this machine's clock is {} the control plane's: certificates cannot be verified",
                clock::describe(ahead_ms)
            )
        })
    }
}
