//! Counts of what the guards of this process have turned away, for its metrics. They are of all listeners together: a
//! guard belongs to one or several listeners, and a process shows one number.

use std::sync::atomic::{AtomicU64, Ordering};

/// One count.
#[derive(Debug)]
pub struct Count(AtomicU64);

/// Idle connections closed for newer ones.
pub static IDLE_CLOSED: Count = Count(AtomicU64::new(0));
/// Requests answered with 429.
pub static TOO_MANY_REQUESTS: Count = Count(AtomicU64::new(0));

impl Count {
    pub(crate) fn increase(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Its value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
