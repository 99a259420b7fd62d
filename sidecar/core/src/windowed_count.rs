//! A count of recent events, over a window that advances in tenths of its length.
//!
//! Envoy's retry budgets have such a window (`circuit_breakers.retry_budget.budget_interval`): an event leaves the
//! count after between one and 1.1 window lengths. A mutex, not atomics: proxies without such a budget never lock it,
//! and for the others it is held for a few instructions.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Complete tenths that are counted besides the current one.
const TENTHS: usize = 10;

/// A windowed count.
#[derive(Debug, Default)]
pub struct WindowedCount(Mutex<Option<Window>>);

#[derive(Debug)]
struct Window {
    length: Duration,
    /// Start of the current tenth.
    began: Instant,
    /// Events of each tenth; `at` is the index of the current one, followed by the oldest.
    counts: [u32; TENTHS + 1],
    at: usize,
}

impl WindowedCount {
    /// Adds an event. A window of another length starts empty.
    pub fn add(&self, length: Duration, now: Instant) {
        self.with(length, now, |window| {
            let count = &mut window.counts[window.at];
            *count = count.saturating_add(1);
        });
    }

    /// The number of events in the window.
    pub fn count(&self, length: Duration, now: Instant) -> u32 {
        self.with(length, now, |window| window.counts.iter().fold(0, |sum, n| n.saturating_add(sum)))
    }

    fn with<T>(&self, length: Duration, now: Instant, then: impl FnOnce(&mut Window) -> T) -> T {
        // A count left inconsistent by a panic is still usable.
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let anew = Window { length, began: now, counts: [0; TENTHS + 1], at: 0 };
        let window = match &mut *guard {
            Some(window) if window.length == length => window,
            other => other.insert(anew),
        };
        window.move_on(now);
        then(window)
    }
}

impl Window {
    fn move_on(&mut self, now: Instant) {
        let tenth = (self.length / TENTHS as u32).max(Duration::from_nanos(1));
        let passed = now.saturating_duration_since(self.began).as_nanos() / tenth.as_nanos();
        for _ in 0..passed.min(TENTHS as u128 + 1) {
            self.at = (self.at + 1) % self.counts.len();
            self.counts[self.at] = 0;
        }
        match u32::try_from(passed).ok().and_then(|passed| self.began.checked_add(tenth.checked_mul(passed)?)) {
            Some(began) => self.began = began,
            // After a pause longer than the window, tenths may start at any time.
            None => self.began = now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn events_older_than_the_window_are_dropped() {
        let (recent, start) = (WindowedCount::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let length = Duration::from_millis(1000);
        assert_eq!(recent.count(length, start), 0);
        for ms in [0, 50, 99, 100, 950] {
            recent.add(length, at(ms));
        }
        for (ms, want) in [(950, 5), (1099, 5), (1100, 2), (1199, 2), (1200, 1), (1999, 1), (2000, 0), (100_000, 0)] {
            assert_eq!(recent.count(length, at(ms)), want, "at {ms} ms");
        }
        // After a long pause it counts as before.
        recent.add(length, at(100_050));
        assert_eq!((recent.count(length, at(101_099)), recent.count(length, at(101_150))), (1, 0));
        recent.add(length, at(101_150));
        assert_eq!(recent.count(Duration::from_secs(5), at(101_150)), 0, "another window");
    }
}
