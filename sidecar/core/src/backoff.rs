//! Pauses between the tries of a loop that many processes run at once. Randomness is an argument: `draw` is in 0..=1.

use std::time::Duration;

/// A pause drawn between half and all of this.
pub fn jittered(pause: Duration, draw: f64) -> Duration {
    pause.mul_f64(0.5 + draw.clamp(0.0, 1.0) / 2.0)
}

/// Growing pauses, each drawn between half and all of it, so that a thousand processes do not return at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    tries: u32,
}

impl Default for Backoff {
    /// For connections to the control plane: 100 ms doubled to 10 s.
    fn default() -> Backoff {
        Backoff::new(Duration::from_millis(100), Duration::from_secs(10))
    }
}

impl Backoff {
    /// Pauses from `first`, doubled with each try up to `most`.
    pub fn new(first: Duration, most: Duration) -> Backoff {
        Backoff { first, most, tries: 0 }
    }

    /// The next pause.
    pub fn pause(&mut self, draw: f64) -> Duration {
        self.pause_within(Duration::MAX, draw)
    }

    /// The next pause, drawn from a shorter one if this is less.
    pub fn pause_within(&mut self, limit: Duration, draw: f64) -> Duration {
        let full = self.first.saturating_mul(1 << self.tries.min(20)).min(self.most);
        self.tries = self.tries.saturating_add(1);
        jittered(full.min(limit), draw)
    }

    /// Begins anew, after a success.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_from_floor_to_ceiling_and_are_drawn() {
        let ms = Duration::from_millis;
        let pauses = |draw: f64| {
            let mut backoff = Backoff::default();
            (0..40).map(|_| backoff.pause(draw)).collect::<Vec<_>>()
        };
        let (short, long) = (pauses(0.0), pauses(1.0));
        assert_eq!((short[0], short[1], short[39]), (ms(50), ms(100), ms(5000)));
        assert_eq!((long[0], long[1], long[39]), (ms(100), ms(200), ms(10_000)));
        let mut backoff = Backoff::new(ms(1000), ms(10_000));
        backoff.pause(0.5);
        assert_eq!(
            [0.0, 0.5, 1.0].map(|draw| backoff.clone().pause_within(ms(1000), draw)),
            [ms(500), ms(750), ms(1000)]
        );
        backoff.reset();
        assert_eq!(backoff.pause(1.0), ms(1000));
    }
}
