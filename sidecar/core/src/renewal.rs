//! When a certificate is renewed: at half of the life that it was granted, counted from its receipt. Its own dates are by the
//! control plane's clock; by a clock that is ahead it would be due at once, and again at once.

use std::time::{Duration, Instant, SystemTime};

/// However short a life is, a certificate is kept for so long.
const FLOOR: Duration = Duration::from_secs(1);

/// The schedule of one certificate.
#[derive(Debug, Clone, Copy)]
pub struct Renewal {
    received: Instant,
    received_wall: SystemTime,
    half_life: Duration,
}

impl Renewal {
    /// Of a certificate that was received at this moment and lasts for `life`.
    pub fn received(now: Instant, wall: SystemTime, life: Duration) -> Renewal {
        Renewal { received: now, received_wall: wall, half_life: (life / 2).max(FLOOR) }
    }

    /// Of one that an earlier run has left, which lasts from `not_before` to `not_after`.
    pub fn found(now: Instant, wall: SystemTime, not_before: SystemTime, not_after: SystemTime) -> Renewal {
        let life = not_after.duration_since(not_before).unwrap_or_default();
        Renewal { received: now, received_wall: not_before.min(wall), half_life: (life / 2).max(FLOOR) }
    }

    /// How long until it is due; zero: it is. A machine that was suspended is as late as its wall clock says, which the other
    /// clock has not seen.
    pub fn due_in(&self, now: Instant, wall: SystemTime) -> Duration {
        let by_wall = wall.duration_since(self.received_wall).unwrap_or_default();
        self.half_life.saturating_sub(now.saturating_duration_since(self.received).max(by_wall))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[allow(clippy::disallowed_methods)]
    fn moment() -> (Instant, SystemTime) {
        (Instant::now(), SystemTime::UNIX_EPOCH + 1000 * HOUR)
    }

    /// Whatever a machine's clock says of the certificate's dates.
    #[test]
    fn a_certificate_is_due_at_half_of_its_life_after_its_receipt() {
        let (now, wall) = moment();
        let renewal = Renewal::received(now, wall, 24 * HOUR);
        assert_eq!(renewal.due_in(now, wall), 12 * HOUR);
        assert_eq!(renewal.due_in(now + 11 * HOUR, wall + 11 * HOUR), HOUR);
        assert_eq!(renewal.due_in(now + 13 * HOUR, wall + 13 * HOUR), Duration::ZERO);
        // Suspended, then set back.
        assert_eq!(renewal.due_in(now, wall + 20 * HOUR), Duration::ZERO);
        assert_eq!(renewal.due_in(now + HOUR, wall - 20 * HOUR), 11 * HOUR);
        assert_eq!(Renewal::received(now, wall, Duration::ZERO).due_in(now, wall), FLOOR, "never at once");
    }

    #[test]
    fn one_that_was_found_goes_by_its_dates() {
        let (now, wall) = moment();
        let due = |begun: i32, life| {
            let not_before =
                if begun < 0 { wall - HOUR * begun.unsigned_abs() } else { wall + HOUR * begun.unsigned_abs() };
            Renewal::found(now, wall, not_before, not_before + life).due_in(now, wall)
        };
        assert_eq!(due(-4, 24 * HOUR), 8 * HOUR);
        assert_eq!(due(-30, 24 * HOUR), Duration::ZERO);
        assert_eq!(due(2, 24 * HOUR), 12 * HOUR, "its clock is behind");
    }
}
