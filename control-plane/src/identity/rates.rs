//! Rate limits by key.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Bound on the keys before idle ones are searched for.
const SWEEP: usize = 4096;

/// Allows each key `burst` actions at once, and one more every `interval`. The generic cell rate algorithm (ITU-T
/// I.371): one instant is kept for each key, and nothing for an idle one.
pub struct Rates<K> {
    burst: u32,
    interval: Duration,
    buckets: Mutex<Buckets<K>>,
}

struct Buckets<K> {
    /// The time at which a key has its whole burst again.
    whole_again: HashMap<K, Instant>,
    /// Number of keys at which idle ones are removed.
    sweep_at: usize,
}

impl<K: Eq + Hash> Rates<K> {
    /// A limiter without history.
    pub fn new(burst: u32, interval: Duration) -> Rates<K> {
        Rates { burst, interval, buckets: Mutex::new(Buckets { whole_again: HashMap::new(), sweep_at: SWEEP }) }
    }

    /// Counts one action.
    ///
    /// # Errors
    /// If the rate is exceeded: the time until the next action.
    pub fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.whole_again.len() >= buckets.sweep_at {
            buckets.whole_again.retain(|_, whole_again| *whole_again > now);
            buckets.sweep_at = SWEEP.max(2 * buckets.whole_again.len());
        }
        let next = buckets.whole_again.get(&key).copied().unwrap_or(now).max(now) + self.interval;
        let late = next.saturating_duration_since(now + self.interval * self.burst);
        if !late.is_zero() {
            return Err(late);
        }
        buckets.whole_again.insert(key, next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_at_once_and_then_one_each_interval() {
        let rates = Rates::new(3, Duration::from_secs(1));
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for _ in 0..3 {
            assert_eq!(rates.take("a", at(0)), Ok(()));
        }
        assert_eq!(rates.take("a", at(0)), Err(Duration::from_secs(1)));
        assert_eq!(rates.take("a", at(400)), Err(Duration::from_millis(600)));
        assert_eq!(rates.take("b", at(400)), Ok(()), "another one's");
        assert_eq!(rates.take("a", at(1000)), Ok(()));
        assert!(rates.take("a", at(1000)).is_err());
        for _ in 0..3 {
            assert_eq!(rates.take("a", at(9000)), Ok(()), "quiet for long enough");
        }
    }

    #[test]
    fn idle_keys_are_removed() {
        let rates = Rates::new(1, Duration::from_secs(1));
        let start = Instant::now();
        for key in 0..SWEEP {
            assert_eq!(rates.take(key, start), Ok(()));
        }
        assert_eq!(rates.take(SWEEP, start + Duration::from_secs(2)), Ok(()));
        assert_eq!(rates.buckets.lock().unwrap().whole_again.len(), 1);
    }
}
