//! The share of a service's traffic that goes to another data centre, by the local capacity that is left.
//!
//! Traffic moves at once if no local instance is healthy, otherwise only after the capacity has been lower for a while;
//! it returns after the capacity has been higher for a while, so that a flapping instance does not shift traffic
//! between continents. The control plane computes the share once per service for all of its sidecars.

use std::time::{Duration, Instant};

/// Envoy's over-provisioning factor, in percent: 72 % of a service's instances are assumed to carry all of its traffic.
const OVERPROVISIONING: u64 = 140;

/// Instances of a service, or of a subset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Instances that accept requests.
    pub healthy: u32,
    /// All.
    pub total: u32,
}

impl Capacity {
    /// Percent of the requests beyond this capacity: 0 to 100. Without instances, all of them.
    pub fn shortfall(self) -> u32 {
        let carried = match u64::from(self.total) {
            0 => 0,
            total => (u64::from(self.healthy) * OVERPROVISIONING / total).min(100),
        };
        100 - u32::try_from(carried).unwrap_or(100)
    }
}

/// Delays before the share changes; without healthy local instances it changes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delays {
    /// Delay before more requests leave after capacity was lost: an instance that is only starting is not a loss.
    pub away: Duration,
    /// Delay before requests return after capacity was gained.
    pub back: Duration,
}

/// The remote share of one service, or of one of its subsets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failover {
    share: u32,
    trend: Option<Trend>,
}

/// A pending change of the share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trend {
    since: Instant,
    /// The target nearest to the current share since then.
    nearest: u32,
}

impl Failover {
    /// Updates the remote share, in percent of the requests, from the local capacity.
    pub fn next(&mut self, home: Capacity, now: Instant, delays: Delays) -> u32 {
        let wanted = home.shortfall();
        if wanted == self.share || wanted == 100 {
            *self = Failover { share: wanted, trend: None };
            return wanted;
        }
        let away = wanted > self.share;
        let same_way = |trend: &Trend| (trend.nearest > self.share) == away;
        let trend = match self.trend.filter(same_way) {
            None => Trend { since: now, nearest: wanted },
            Some(trend) if away => Trend { nearest: trend.nearest.min(wanted), ..trend },
            Some(trend) => Trend { nearest: trend.nearest.max(wanted), ..trend },
        };
        self.trend = Some(trend);
        let hold = if away { delays.away } else { delays.back };
        if now.saturating_duration_since(trend.since) >= hold {
            self.share = trend.nearest;
            // A larger change has to persist for the same delay.
            self.trend = (wanted != self.share).then_some(Trend { since: now, nearest: wanted });
        }
        self.share
    }

    /// Whether the share may change by the passing of time alone.
    pub fn is_waiting(&self) -> bool {
        self.trend.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAYS: Delays = Delays { away: Duration::from_secs(10), back: Duration::from_secs(30) };

    fn of(healthy: u32, total: u32) -> Capacity {
        Capacity { healthy, total }
    }

    #[test]
    fn shortfall_follows_envoys_overprovisioning_factor() {
        for (healthy, total, want) in
            [(10, 10, 0), (8, 10, 0), (72, 100, 0), (71, 100, 1), (5, 10, 30), (1, 10, 86), (0, 10, 100), (0, 0, 100)]
        {
            assert_eq!(of(healthy, total).shortfall(), want, "{healthy} of {total}");
        }
        assert_eq!(of(u32::MAX, u32::MAX).shortfall(), 0);
    }

    #[test]
    fn failover_is_immediate_without_capacity_and_failback_is_delayed() {
        let start = crate::outlier::tests::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut failover = Failover::default();
        let mut next = |home, seconds| {
            let share = failover.next(home, at(seconds), DELAYS);
            (share, failover.is_waiting())
        };
        assert_eq!(next(of(3, 3), 0), (0, false));
        assert_eq!(next(of(0, 3), 1), (100, false));
        // A short recovery moves nothing.
        assert_eq!(next(of(3, 3), 2), (100, true));
        assert_eq!(next(of(0, 3), 3), (100, false));
        assert_eq!(next(of(3, 3), 40), (100, true));
        // A partial recovery in between: only the capacity present all the time counts.
        assert_eq!(next(of(2, 3), 50), (100, true));
        assert_eq!(next(of(3, 3), 69), (100, true));
        assert_eq!(next(of(3, 3), 70), (7, true));
        assert_eq!(next(of(3, 3), 99), (7, true));
        assert_eq!(next(of(3, 3), 100), (0, false));
    }

    #[test]
    fn a_starting_instance_moves_no_traffic_and_a_persistent_failure_does() {
        let start = crate::outlier::tests::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut failover = Failover::default();
        let mut next = |home, seconds| failover.next(home, at(seconds), DELAYS);
        // A second instance is starting.
        assert_eq!((next(of(1, 1), 0), next(of(1, 2), 1), next(of(1, 2), 9), next(of(2, 2), 10)), (0, 0, 0, 0));
        assert_eq!((next(of(1, 2), 11), next(of(1, 2), 20), next(of(1, 2), 21)), (0, 0, 30));
        // Lower for a moment, then as before.
        assert_eq!((next(of(1, 4), 22), next(of(1, 2), 30), next(of(1, 4), 31)), (30, 30, 30));
        assert_eq!((next(of(1, 4), 40), next(of(1, 3), 41), next(of(1, 4), 50)), (30, 54, 54));
        assert_eq!(next(of(0, 4), 51), 100);
    }
}
