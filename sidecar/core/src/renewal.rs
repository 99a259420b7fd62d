//! Renewal time of a certificate: half of its granted lifetime, counted from its receipt. Its own dates are in the
//! control plane's time; with a local clock that is ahead it would be due immediately, over and over.

use std::time::{Duration, Instant, SystemTime};

/// Minimum time between renewals, for very short lifetimes.
const FLOOR: Duration = Duration::from_secs(1);

/// Renewal schedule of one certificate.
#[derive(Debug, Clone, Copy)]
pub struct Renewal {
    received: Instant,
    received_wall: SystemTime,
    half_life: Duration,
}

impl Renewal {
    /// Schedule of a certificate received at this time with this lifetime.
    pub fn after_receipt(now: Instant, wall: SystemTime, life: Duration) -> Renewal {
        Renewal { received: now, received_wall: wall, half_life: (life / 2).max(FLOOR) }
    }

    /// Schedule of a certificate stored by an earlier run, valid from `not_before` to `not_after`.
    pub fn of_stored(now: Instant, wall: SystemTime, not_before: SystemTime, not_after: SystemTime) -> Renewal {
        let life = not_after.duration_since(not_before).unwrap_or_default();
        Renewal { received: now, received_wall: not_before.min(wall), half_life: (life / 2).max(FLOOR) }
    }

    /// Time until the renewal; zero: it is due. After a suspension of the machine the wall clock decides, since the
    /// monotonic clock stops meanwhile.
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

    /// Independent of the local clock's relation to the certificate's dates.
    #[test]
    fn renewal_is_due_at_half_of_the_lifetime_after_receipt() {
        let (now, wall) = moment();
        let renewal = Renewal::after_receipt(now, wall, 24 * HOUR);
        assert_eq!(renewal.due_in(now, wall), 12 * HOUR);
        assert_eq!(renewal.due_in(now + 11 * HOUR, wall + 11 * HOUR), HOUR);
        assert_eq!(renewal.due_in(now + 13 * HOUR, wall + 13 * HOUR), Duration::ZERO);
        // Suspended, then the clock is set back.
        assert_eq!(renewal.due_in(now, wall + 20 * HOUR), Duration::ZERO);
        assert_eq!(renewal.due_in(now + HOUR, wall - 20 * HOUR), 11 * HOUR);
        assert_eq!(Renewal::after_receipt(now, wall, Duration::ZERO).due_in(now, wall), FLOOR, "never at once");
    }

    #[test]
    fn a_stored_certificate_is_renewed_by_its_dates() {
        let (now, wall) = moment();
        let due = |begin: i32, life| {
            let not_before =
                if begin < 0 { wall - HOUR * begin.unsigned_abs() } else { wall + HOUR * begin.unsigned_abs() };
            Renewal::of_stored(now, wall, not_before, not_before + life).due_in(now, wall)
        };
        assert_eq!(due(-4, 24 * HOUR), 8 * HOUR);
        assert_eq!(due(-30, 24 * HOUR), Duration::ZERO);
        assert_eq!(due(2, 24 * HOUR), 12 * HOUR, "its clock is behind");
    }
}
