//! How much of a service's traffic goes to another data centre, by what is left of it at home.
//!
//! Away at once when nobody is left, else only when it has been worse for a while; back when it has been better for a while:
//! an instance that comes and goes must not drag the traffic between continents. The control plane asks, once a service, for all of its sidecars.

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

/// How long it must have been so before requests move; when nobody at all is left they do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Worse at home, before more go away: an instance that is just starting is no loss.
    pub away: Duration,
    /// Better at home, before they return.
    pub back: Duration,
}

/// The share of one service, or of one of its subsets, that goes elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failover {
    share: u32,
    trend: Option<Trend>,
}

/// Since when another share would have been right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trend {
    since: Instant,
    /// Of what was wanted in that time that which is nearest to what is.
    nearest: u32,
}

impl Failover {
    /// Percent of the requests that go elsewhere, given what is at home now.
    pub fn next(&mut self, home: Capacity, now: Instant, patience: Patience) -> u32 {
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
        let hold = if away { patience.away } else { patience.back };
        if now.saturating_duration_since(trend.since) >= hold {
            self.share = trend.nearest;
            // What goes further still has to last as long.
            self.trend = (wanted != self.share).then_some(Trend { since: now, nearest: wanted });
        }
        self.share
    }

    /// Whether time alone may change the share.
    pub fn is_waiting(&self) -> bool {
        self.trend.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { away: Duration::from_secs(10), back: Duration::from_secs(30) };

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
    fn away_at_once_when_nobody_is_left_and_back_when_it_has_lasted() {
        let start = crate::outlier::tests::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut failover = Failover::default();
        let mut next = |home, seconds| {
            let share = failover.next(home, at(seconds), PATIENCE);
            (share, failover.is_waiting())
        };
        assert_eq!(next(of(3, 3), 0), (0, false));
        assert_eq!(next(of(0, 3), 1), (100, false));
        // It comes back for a moment: nothing moves.
        assert_eq!(next(of(3, 3), 2), (100, true));
        assert_eq!(next(of(0, 3), 3), (100, false));
        assert_eq!(next(of(3, 3), 40), (100, true));
        // Not quite well in between: only what was there all the time counts.
        assert_eq!(next(of(2, 3), 50), (100, true));
        assert_eq!(next(of(3, 3), 69), (100, true));
        assert_eq!(next(of(3, 3), 70), (7, true));
        assert_eq!(next(of(3, 3), 99), (7, true));
        assert_eq!(next(of(3, 3), 100), (0, false));
    }

    #[test]
    fn one_that_starts_is_no_loss_and_one_that_stays_ill_is() {
        let start = crate::outlier::tests::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut failover = Failover::default();
        let mut next = |home, seconds| failover.next(home, at(seconds), PATIENCE);
        // A second one is on its way.
        assert_eq!((next(of(1, 1), 0), next(of(1, 2), 1), next(of(1, 2), 9), next(of(2, 2), 10)), (0, 0, 0, 0));
        assert_eq!((next(of(1, 2), 11), next(of(1, 2), 20), next(of(1, 2), 21)), (0, 0, 30));
        // Worse for a moment, then as before.
        assert_eq!((next(of(1, 4), 22), next(of(1, 2), 30), next(of(1, 4), 31)), (30, 30, 30));
        assert_eq!((next(of(1, 4), 40), next(of(1, 3), 41), next(of(1, 4), 50)), (30, 54, 54));
        assert_eq!(next(of(0, 4), 51), 100);
    }
}
