//! Self-preservation of external programs' checks: their reports arrive over the network at one place, so that when
//! many are late at once this place is the likelier cause.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;
use weft_agent::local::Local;

/// A larger share of checks that lapse together is the control plane's fault; as with the leases of sidecars, and in
/// Eureka.
const SHARE: f64 = 0.15;
/// Time within which lapses count as simultaneous.
const TOGETHER: Duration = Duration::from_secs(30);

/// All checks that external programs report.
#[derive(Default)]
pub(super) struct Lapses(Mutex<State>);

#[derive(Default)]
struct State {
    agents: Vec<Weak<Local>>,
    /// Times of recent lapses.
    recent: VecDeque<Instant>,
    holding: bool,
}

impl Lapses {
    /// Adds the checks of a node.
    pub(super) fn watch(&self, local: &Arc<Local>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.agents.retain(|agent| agent.strong_count() > 0);
        state.agents.push(Arc::downgrade(local));
    }

    /// Whether a check whose report is overdue may become critical.
    pub(super) fn may_lapse(&self, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while state.recent.front().is_some_and(|at| *at + TOGETHER <= now) {
            state.recent.pop_front();
        }
        let counts = state.agents.iter().filter_map(Weak::upgrade).map(|agent| agent.late_reports(now));
        let (total, overdue) = counts.fold((0, 0), |(all, late), (a, l)| (all + a, late + l));
        let may = !is_own_fault(overdue + state.recent.len(), total);
        if may {
            state.recent.push_back(now);
        }
        if may == std::mem::replace(&mut state.holding, !may) {
            if may {
                tracing::info!(total, overdue, "checks of external programs lapse again");
            } else {
                let text =
                    "too many reports of external programs are overdue at once: keeping the state of their checks";
                tracing::warn!(total, overdue, "{text}");
            }
        }
        may
    }
}

/// Whether the number of late reports points to a fault of the control plane. A single one does not, whatever its share
/// of a small registry is.
fn is_own_fault(late: usize, total: usize) -> bool {
    late > 1 && late as f64 > total as f64 * SHARE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_simultaneous_lapses_are_the_control_planes_fault() {
        for (late, total, ours) in [(1, 1, false), (1, 100, false), (2, 3, true), (15, 100, false), (16, 100, true)] {
            assert_eq!(is_own_fault(late, total), ours, "{late} of {total}");
        }
    }
}
