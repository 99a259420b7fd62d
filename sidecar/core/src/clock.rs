//! Clock skew: the validity of certificates is absolute time, so that mutual TLS fails between machines whose clocks
//! differ too much.

use std::time::{Duration, SystemTime};

/// Skew above which the difference is logged.
pub const SKEW_THRESHOLD: Duration = Duration::from_secs(5);
/// A certificate is backdated by this much, so that a verifier's clock may be behind; by less if its lifetime is only
/// minutes.
pub const TOLERANCE: Duration = Duration::from_secs(60);
/// A longer round trip makes the measurement useless.
const MAX_ROUND_TRIP_MS: u64 = 2_000;

/// Milliseconds since 1970; 0 before that.
pub fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds by which the local clock is ahead of a remote clock that answered `theirs`; negative: behind. All
/// arguments are milliseconds since 1970, `sent` and `received` by the local clock. `None`: the round trip took too
/// long, or the answer has no time.
pub fn ahead_ms(sent: u64, received: u64, theirs: u64) -> Option<i64> {
    let round_trip = received.checked_sub(sent).filter(|ms| *ms <= MAX_ROUND_TRIP_MS)?;
    if theirs == 0 {
        return None;
    }
    i64::try_from(sent + round_trip / 2).ok()?.checked_sub(i64::try_from(theirs).ok()?)
}

/// Whether handshakes fail with a clock that is this far ahead, given the `lifetime` of certificates. A clock that is
/// behind sees certificates that are not valid yet; a clock that is ahead sees expired ones, because certificates are
/// renewed at half of their lifetime.
pub fn breaks_handshakes(ahead_ms: i64, lifetime: Duration) -> bool {
    let apart = Duration::from_millis(ahead_ms.unsigned_abs());
    if ahead_ms < 0 { apart > TOLERANCE.min(lifetime / 10) } else { apart >= lifetime / 2 }
}

/// The skew as text: "13 h 5 min ahead of", "4.2 s behind".
pub fn describe(ahead_ms: i64) -> String {
    let (ms, way) = (ahead_ms.unsigned_abs(), if ahead_ms < 0 { "behind" } else { "ahead of" });
    let s = (ms + 500) / 1000;
    let (min, h) = (s / 60, s / 3600);
    match (h, min) {
        (0, 0) => format!("{:.1} s {way}", ms as f64 / 1000.0),
        (0, _) => format!("{min} min {} s {way}", s % 60),
        (..48, _) => format!("{h} h {} min {way}", min % 60),
        _ => format!("{} days {} h {way}", h / 24, h % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skew_is_measured_at_the_middle_of_the_round_trip() {
        assert_eq!(ahead_ms(10_000, 10_200, 5_100), Some(5_000));
        assert_eq!(ahead_ms(10_000, 10_000, 15_000), Some(-5_000));
        for (sent, received, theirs) in [(10_000, 12_001, 1), (10_000, 9_999, 1), (10_000, 10_000, 0), (1, 1, u64::MAX)]
        {
            assert_eq!(ahead_ms(sent, received, theirs), None);
        }
    }

    #[test]
    fn handshakes_fail_when_certificates_are_expired_or_not_yet_valid() {
        let day = Duration::from_secs(24 * 3600);
        for (ahead_s, lifetime, fails) in [
            (0, day, false),
            (-60, day, false),
            (-61, day, true),
            (-4, Duration::from_secs(30), true),
            (12 * 3600 - 1, day, false),
            (12 * 3600, day, true),
        ] {
            assert_eq!(breaks_handshakes(ahead_s * 1000, lifetime), fails, "{ahead_s} s, {lifetime:?}");
        }
    }

    #[test]
    fn skew_is_formatted_for_logs() {
        let cases = [(-4_200, "4.2 s behind"), (90_000, "1 min 30 s ahead of"), (46_800_000, "13 h 0 min ahead of")];
        for (ms, text) in cases {
            assert_eq!(describe(ms), text);
        }
        assert_eq!(describe(-200_000_000), "2 days 7 h behind");
        assert_eq!(describe(46_799_900), "13 h 0 min ahead of");
    }
}
