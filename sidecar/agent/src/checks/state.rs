//! The status of one check over time, without I/O: the effects of results, reports and elapsed time, and the updates
//! that the mesh needs.
//!
//! Time is an argument everywhere, so that the rules are tested without waiting. [`super::run`] and the agent drive it.

use std::time::Duration;

use tokio::time::Instant;

/// Minimum interval between updates of the output alone, since each wakes every blocking query on the service.
const OUTPUT_INTERVAL: Duration = Duration::from_secs(300);
/// Maximum length of the stored output in bytes, unless the check sets less.
pub const MAX_OUTPUT: usize = 4096;

/// Health by Consul's names, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Serves.
    Passing,
    /// Serves, but needs attention.
    Warning,
    /// Does not serve.
    Critical,
}

impl Status {
    /// Consul's name of the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Passing => "passing",
            Status::Warning => "warning",
            Status::Critical => "critical",
        }
    }

    /// The status with this name.
    pub fn parse(word: &str) -> Option<Status> {
        [Status::Passing, Status::Warning, Status::Critical].into_iter().find(|s| s.as_str() == word)
    }
}

/// Consecutive results needed before the status changes; 0 and 1 both mean that the first result counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// `SuccessBeforePassing`.
    pub passing: u32,
    /// `FailuresBeforeWarning`.
    pub warning: u32,
    /// `FailuresBeforeCritical`.
    pub critical: u32,
}

/// Time to live of a check that its application reports.
#[derive(Debug)]
struct Ttl {
    ttl: Duration,
    /// `None`: expired, until the next report.
    due: Option<Instant>,
    reported: String,
}

/// A check's state.
#[derive(Debug)]
pub struct State {
    status: Status,
    output: String,
    max_output: usize,
    thresholds: Thresholds,
    successes: u32,
    failures: u32,
    ttl: Option<Ttl>,
    critical_since: Option<Instant>,
    /// The last update sent to the mesh, and its time.
    last_update: Option<(Status, String, Instant)>,
}

/// Whether the mesh needs an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// No: nothing changed.
    Unneeded,
    /// Now: the status changed.
    Now,
    /// At this time: only the output changed.
    At(Instant),
}

impl State {
    /// A check that starts with `status`; `ttl`: it is reported by its application.
    pub fn new(status: Status, thresholds: Thresholds, ttl: Option<Duration>, now: Instant) -> State {
        State {
            status,
            output: String::new(),
            max_output: MAX_OUTPUT,
            thresholds,
            // Starts at the threshold: the first result counts at once, whatever it is.
            successes: thresholds.passing,
            failures: thresholds.critical,
            ttl: ttl.map(|ttl| Ttl { ttl, due: Some(now + ttl), reported: String::new() }),
            critical_since: (status == Status::Critical).then_some(now),
            last_update: None,
        }
    }

    /// Reduces the length of the stored output.
    pub fn with_max_output(self, bytes: usize) -> State {
        State { max_output: bytes, ..self }
    }

    /// The first result counts like any other: it takes the full number of results to change the status.
    pub fn without_credit(self) -> State {
        State { successes: 0, failures: 0, ..self }
    }

    /// Continues from `previous`, the same check in an earlier registration.
    pub fn resume(&mut self, previous: &State) {
        self.status = previous.status;
        self.output.clone_from(&previous.output);
        self.critical_since = previous.critical_since;
        (self.successes, self.failures) = (previous.successes, previous.failures);
    }

    /// Restores the state from before a restart of the sidecar; the first result still counts at once.
    pub fn restore(&mut self, status: Status, output: String, critical_since: Option<Instant>, now: Instant) {
        if let Some(ttl) = &mut self.ttl {
            ttl.reported.clone_from(&output);
        }
        self.critical_since = critical_since;
        self.set(status, output, now);
    }

    /// Makes the last report valid until `due`; `None`: it has expired. No effect on a check without a time to live.
    pub fn set_due(&mut self, due: Option<Instant>) {
        if let Some(ttl) = &mut self.ttl {
            ttl.due = due;
        }
    }

    /// Start of the critical state; for a critical state that is kept by reports, the time when they expire.
    pub fn critical_since(&self) -> Option<Instant> {
        self.critical_since
    }

    /// The application has registered it again: a time to live that has not expired starts again.
    pub fn rearm(&mut self, now: Instant) {
        if let Some(ttl) = &mut self.ttl {
            ttl.due = ttl.due.map(|_| now + ttl.ttl);
        }
    }

    /// The current status.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Output of the last result that counted.
    pub fn output(&self) -> &str {
        &self.output
    }

    /// Applies a probe's result. `false`: more of them are needed before it counts.
    pub fn probed(&mut self, result: Status, output: String, now: Instant) -> bool {
        // A warning still serves and counts as a success.
        if result == Status::Critical {
            self.failures = self.failures.saturating_add(1);
            self.successes = 0;
            if self.failures >= self.thresholds.critical {
                self.set(Status::Critical, output, now);
            } else if self.failures >= self.thresholds.warning {
                self.set(Status::Warning, output, now);
            } else {
                return false;
            }
        } else {
            self.successes = self.successes.saturating_add(1);
            self.failures = 0;
            if self.successes >= self.thresholds.passing {
                self.set(result, output, now);
            } else {
                return false;
            }
        }
        true
    }

    /// Applies the application's report; its time to live starts again. `false`: the check has none.
    pub fn reported(&mut self, status: Status, output: String, now: Instant) -> bool {
        let Some(ttl) = &mut self.ttl else { return false };
        ttl.due = Some(now + ttl.ttl);
        let output = cap(output, self.max_output);
        ttl.reported.clone_from(&output);
        self.set(status, output, now);
        true
    }

    /// Applies a report as a sign of life, whatever its status: critical time starts only when these reports stop.
    /// `false`: the check has no time to live.
    pub fn renewed(&mut self, status: Status, output: String, now: Instant) -> bool {
        let renewed = self.reported(status, output, now);
        if status == Status::Critical {
            self.critical_since = self.due();
        }
        renewed
    }

    /// Expiry of the time to live, without a further report.
    pub fn due(&self) -> Option<Instant> {
        self.ttl.as_ref().and_then(|ttl| ttl.due)
    }

    /// Makes the check critical if its time to live has expired.
    pub fn expire(&mut self, now: Instant) {
        if let Some(ttl) = &mut self.ttl
            && ttl.due.is_some_and(|due| due <= now)
        {
            ttl.due = None;
            let output = format!("TTL expired (last output before timeout follows): {}", ttl.reported);
            self.set(Status::Critical, output, now);
        }
    }

    /// Whether it has been critical for `limit`.
    pub fn critical_for(&self, limit: Duration, now: Instant) -> bool {
        self.critical_since.is_some_and(|since| now.duration_since(since) >= limit)
    }

    /// Whether the mesh needs an update.
    pub fn pending_update(&self) -> Update {
        match &self.last_update {
            Some((status, _, _)) if *status != self.status => Update::Now,
            Some((_, output, at)) if *output != self.output => Update::At(*at + OUTPUT_INTERVAL),
            Some(_) => Update::Unneeded,
            None => Update::Now,
        }
    }

    /// Whether an update is due now; it is recorded as sent.
    pub fn take_due_update(&mut self, now: Instant) -> bool {
        let due = match self.pending_update() {
            Update::Unneeded => false,
            Update::At(at) => at <= now,
            Update::Now => true,
        };
        if due {
            self.record_update(now);
        }
        due
    }

    /// Records that an update was sent.
    pub fn record_update(&mut self, now: Instant) {
        self.last_update = Some((self.status, self.output.clone(), now));
    }

    fn set(&mut self, status: Status, output: String, now: Instant) {
        self.critical_since = match status {
            Status::Critical => self.critical_since.or(Some(now)),
            _ => None,
        };
        self.status = status;
        self.output = cap(output, self.max_output);
    }
}

/// Truncates `text` to `bytes`.
fn cap(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(state: &mut State, results: &[Status]) -> Vec<Status> {
        let now = Instant::now();
        results
            .iter()
            .map(|result| {
                state.probed(*result, String::new(), now);
                state.status()
            })
            .collect()
    }

    #[test]
    fn the_first_result_counts_at_once_and_later_ones_by_threshold() {
        use Status::{Critical, Passing, Warning};
        let thresholds = Thresholds { passing: 2, warning: 2, critical: 3 };
        let mut state = State::new(Critical, thresholds, None, Instant::now());
        let results = [Passing, Critical, Critical, Critical, Passing, Passing, Critical, Warning];
        let expected = [Passing, Passing, Warning, Critical, Critical, Passing, Passing, Passing];
        assert_eq!(probe(&mut state, &results), expected);

        let mut state = State::new(Passing, thresholds, None, Instant::now());
        assert_eq!(probe(&mut state, &[Critical, Passing, Passing]), [Critical, Critical, Passing]);
        let mut state = State::new(Critical, Thresholds::default(), None, Instant::now());
        assert_eq!(probe(&mut state, &[Warning, Passing, Critical]), [Warning, Passing, Critical]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_missed_report_makes_a_check_critical_until_the_next_one() {
        let ttl = Duration::from_secs(10);
        let mut state = State::new(Status::Critical, Thresholds::default(), Some(ttl), Instant::now());
        assert!(state.reported(Status::Passing, "all well".into(), Instant::now()));
        tokio::time::advance(Duration::from_secs(9)).await;
        state.expire(Instant::now());
        assert_eq!(state.status(), Status::Passing);
        tokio::time::advance(Duration::from_secs(1)).await;
        state.expire(Instant::now());
        assert_eq!(state.status(), Status::Critical);
        assert_eq!(state.output(), "TTL expired (last output before timeout follows): all well");
        assert_eq!(state.due(), None, "it expires once");
        state.reported(Status::Warning, String::new(), Instant::now());
        assert_eq!((state.status(), state.due()), (Status::Warning, Some(Instant::now() + ttl)));
        assert!(!State::new(Status::Critical, Thresholds::default(), None, Instant::now()).reported(
            Status::Passing,
            String::new(),
            Instant::now()
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn status_changes_are_sent_at_once_and_output_changes_rarely() {
        let mut state = State::new(Status::Critical, Thresholds::default(), None, Instant::now());
        assert_eq!(state.pending_update(), Update::Now);
        let start = Instant::now();
        state.record_update(start);
        assert_eq!(state.pending_update(), Update::Unneeded);
        state.probed(Status::Critical, "refused".into(), start);
        assert_eq!(state.pending_update(), Update::At(start + OUTPUT_INTERVAL));
        state.probed(Status::Passing, "200 OK".into(), start);
        assert_eq!(state.pending_update(), Update::Now);
        state.record_update(start);
        state.probed(Status::Passing, "200 OK".into(), start);
        assert_eq!(state.pending_update(), Update::Unneeded);
    }

    #[tokio::test(start_paused = true)]
    async fn critical_time_starts_with_the_status_change() {
        let minute = Duration::from_secs(60);
        let mut state = State::new(Status::Critical, Thresholds::default(), None, Instant::now());
        tokio::time::advance(minute).await;
        assert!(state.critical_for(minute, Instant::now()));
        state.probed(Status::Passing, String::new(), Instant::now());
        state.probed(Status::Critical, String::new(), Instant::now());
        assert!(!state.critical_for(minute, Instant::now()));
        tokio::time::advance(minute / 2).await;
        state.probed(Status::Critical, "still".into(), Instant::now());
        tokio::time::advance(minute / 2).await;
        assert!(state.critical_for(minute, Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn renewals_count_as_alive_in_any_status() {
        let minute = Duration::from_secs(60);
        let mut state = State::new(Status::Critical, Thresholds::default(), Some(minute), Instant::now());
        for _ in 0..5 {
            assert!(state.renewed(Status::Critical, "DOWN".into(), Instant::now()));
            assert!(!state.critical_for(minute, Instant::now()));
            tokio::time::advance(minute).await;
        }
        state.expire(Instant::now());
        assert!(!state.critical_for(minute, Instant::now()), "it expires now");
        tokio::time::advance(minute).await;
        assert!(state.critical_for(minute, Instant::now()));
    }

    #[test]
    fn long_output_is_truncated_at_a_character_boundary() {
        let mut state = State::new(Status::Critical, Thresholds::default(), None, Instant::now());
        state.probed(Status::Passing, format!("a{}", "é".repeat(MAX_OUTPUT)), Instant::now());
        assert_eq!(state.output().len(), MAX_OUTPUT - 1);
    }
}
