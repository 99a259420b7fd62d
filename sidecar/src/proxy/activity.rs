//! Requests and connections in progress: what a drain waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A count of requests or connections in progress.
#[derive(Debug, Default)]
pub struct Activity(AtomicUsize);

/// One of them, counted until it is dropped.
#[derive(Debug)]
pub struct Active(Arc<Activity>);

impl Activity {
    /// Counts one more until the result is dropped.
    pub fn begin(self: &Arc<Self>) -> Active {
        self.0.fetch_add(1, Ordering::AcqRel);
        Active(self.clone())
    }

    /// The number in progress.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}
