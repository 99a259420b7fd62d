//! Fault injection: delays and aborts (Envoy's fault filter, `source/extensions/filters/http/fault`).
//!
//! Faults precede everything at the level of a cluster: an aborted request is not retried, not counted against an
//! endpoint and not limited, and the route's timeout begins after the delay.

use std::time::Duration;

use crate::reply::Abort;

/// A share of the requests, in parts of a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    /// From a percentage, 0 to 100, rounded down to a millionth as in Istio.
    pub fn percent(percent: f64) -> Share {
        Share((percent * 10_000.0) as u32)
    }

    /// As a percentage.
    pub fn as_percent(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }

    /// Whether the share includes a request.
    pub fn hits(self, random: u64) -> bool {
        random % 1_000_000 < u64::from(self.0)
    }
}

/// The faults of a route.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Applied first.
    pub delay: Option<(Share, Duration)>,
    /// Applied after the delay, drawn independently.
    pub abort: Option<(Share, Abort)>,
}

impl Fault {
    /// The delay of a request, if the draw includes it.
    pub fn delay(&self, random: u64) -> Option<Duration> {
        self.delay.filter(|(share, _)| share.hits(random)).map(|(_, delay)| delay)
    }

    /// The abort of a request, if the draw includes it.
    pub fn abort(&self, random: u64) -> Option<Abort> {
        self.abort.filter(|(share, _)| share.hits(random)).map(|(_, abort)| abort)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact() {
        for (percent, hits) in [(0.0, 0), (0.0001, 1), (0.00019, 1), (12.5, 125_000), (100.0, 1_000_000)] {
            let share = Share::percent(percent);
            assert_eq!((0..1_000_000).filter(|random| share.hits(*random)).count(), hits, "{percent}");
            assert!((share.as_percent() - percent).abs() < 0.0001, "{percent}");
        }
    }

    #[test]
    fn delay_and_abort_are_drawn_independently() {
        let half = Share::percent(50.0);
        let delay = Duration::from_secs(1);
        let fault = Fault { delay: Some((half, delay)), abort: Some((half, Abort::Grpc(14))) };
        let (low, high) = (0, 999_999);
        assert_eq!((fault.delay(low), fault.abort(high)), (Some(delay), None));
        assert_eq!((fault.delay(high), fault.abort(low)), (None, Some(Abort::Grpc(14))));
    }
}
