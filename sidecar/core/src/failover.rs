//! How much of a service's traffic goes to another data centre, by what is left of it at home.
//!
//! Away at once, back only when home has been better for a while: an instance that comes and goes must not drag the
//! traffic between continents. The control plane asks, once a service, for all of its sidecars.

use std::time::{Duration, Instant};

/// Envoy's over-provisioning factor, in percent: 72 % of a service's instances are taken to carry all of its traffic.
const OVERPROVISIONING: u64 = 140;

/// Instances of a service, or of a subset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Those that take requests.
    pub healthy: u32,
    /// All.
    pub total: u32,
}

impl Capacity {
    /// Percent of the requests that it is too little for: 0 to 100. Nobody at all is too little for any.
    pub fn shortfall(self) -> u32 {
        let carried = match u64::from(self.total) {
            0 => 0,
            total => (u64::from(self.healthy) * OVERPROVISIONING / total).min(100),
        };
        100 - u32::try_from(carried).unwrap_or(100)
    }
}

/// The share of one service, or of one of its subsets, that goes elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failover {
    share: u32,
    /// Since when less would have been enough, and the most that was wanted in that time.
    better: Option<(Instant, u32)>,
}

impl Failover {
    /// Percent of the requests that go elsewhere, given what is at home now; `hold`: how long it must have been better
    /// before requests return.
    pub fn next(&mut self, home: Capacity, now: Instant, hold: Duration) -> u32 {
        let wanted = home.shortfall();
        if wanted >= self.share {
            self.share = wanted;
            self.better = None;
            return self.share;
        }
        let (since, most) = self.better.map_or((now, wanted), |(since, most)| (since, most.max(wanted)));
        self.better = Some((since, most));
        if now.saturating_duration_since(since) >= hold {
            self.share = most;
            // What is better still has to last as long.
            self.better = (wanted < most).then_some((now, wanted));
        }
        self.share
    }

    /// Whether time alone may change the share.
    pub fn is_waiting(&self) -> bool {
        self.better.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(30);

    fn of(healthy: u32, total: u32) -> Capacity {
        Capacity { healthy, total }
    }

    #[test]
    fn what_is_missing_goes_elsewhere_as_envoy_counts() {
        for (healthy, total, want) in
            [(10, 10, 0), (8, 10, 0), (72, 100, 0), (71, 100, 1), (5, 10, 30), (1, 10, 86), (0, 10, 100), (0, 0, 100)]
        {
            assert_eq!(of(healthy, total).shortfall(), want, "{healthy} of {total}");
        }
        assert_eq!(of(u32::MAX, u32::MAX).shortfall(), 0);
    }

    #[test]
    fn away_at_once_and_back_when_it_has_lasted() {
        let start = crate::outlier::tests::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut failover = Failover::default();
        assert_eq!(failover.next(of(3, 3), at(0), HOLD), 0);
        assert_eq!(failover.next(of(0, 3), at(1), HOLD), 100);
        assert!(!failover.is_waiting());
        // It comes back for a moment: nothing moves.
        assert_eq!(failover.next(of(3, 3), at(2), HOLD), 100);
        assert!(failover.is_waiting());
        assert_eq!(failover.next(of(0, 3), at(3), HOLD), 100);
        assert_eq!(failover.next(of(3, 3), at(40), HOLD), 100);
        // Not quite well in between: only what was there all the time counts.
        assert_eq!(failover.next(of(2, 3), at(50), HOLD), 100);
        assert_eq!(failover.next(of(3, 3), at(69), HOLD), 100);
        assert_eq!(failover.next(of(3, 3), at(70), HOLD), 7);
        assert_eq!(failover.next(of(3, 3), at(99), HOLD), 7);
        assert_eq!(failover.next(of(3, 3), at(100), HOLD), 0);
        assert!(!failover.is_waiting());
        // Worse is always at once.
        assert_eq!(failover.next(of(1, 3), at(101), HOLD), 54);
        assert_eq!(failover.next(of(0, 3), at(101), HOLD), 100);
    }
}
