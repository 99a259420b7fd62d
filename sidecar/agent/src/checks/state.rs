//! The status of one check over time, without any I/O: what a result, a report or the passing of time makes of it, and
//! whether the mesh must hear of it.
//!
//! The time is an argument everywhere, so that the rules are tested without waiting. [`super::run`] and the agent feed it.

use std::time::Duration;

use tokio::time::Instant;

/// Changes of the output alone travel this often at most: they wake every blocking query on the service.
const OUTPUT_INTERVAL: Duration = Duration::from_secs(300);
/// Output that is kept of a check, bytes, unless it asks for less.
pub const MAX_OUTPUT: usize = 4096;

/// Health as Consul names it, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Serves.
    Passing,
    /// Serves, but somebody should look.
    Warning,
    /// Does not serve.
    Critical,
}

impl Status {
    /// Consul's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Passing => "passing",
            Status::Warning => "warning",
            Status::Critical => "critical",
        }
    }

    /// The status of that word.
    pub fn parse(word: &str) -> Option<Status> {
        [Status::Passing, Status::Warning, Status::Critical].into_iter().find(|s| s.as_str() == word)
    }
}

/// Results in a row that are needed before the status follows; 0 and 1 both mean the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// `SuccessBeforePassing`.
    pub passing: u32,
    /// `FailuresBeforeWarning`.
    pub warning: u32,
    /// `FailuresBeforeCritical`.
    pub critical: u32,
}

/// The time to live of a check that its application reports.
#[derive(Debug)]
struct Ttl {
    ttl: Duration,
    /// `None` after it has lapsed, until the next report.
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
    /// What the mesh was told last, and when.
    told: Option<(Status, String, Instant)>,
}

/// Whether the mesh must hear of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    /// It knows.
    No,
    /// At once: the status is another.
    Now,
    /// The output is another, which may wait until then.
    At(Instant),
}

impl State {
    /// A check that begins with `status`; `ttl` where the application reports it.
    pub fn new(status: Status, thresholds: Thresholds, ttl: Option<Duration>, now: Instant) -> State {
        State {
            status,
            output: String::new(),
            max_output: MAX_OUTPUT,
            thresholds,
            // At the threshold: the first result counts at once, whatever it is.
            successes: thresholds.passing,
            failures: thresholds.critical,
            ttl: ttl.map(|ttl| Ttl { ttl, due: Some(now + ttl), reported: String::new() }),
            critical_since: (status == Status::Critical).then_some(now),
            told: None,
        }
    }

    /// Keeps less output.
    pub fn with_max_output(self, bytes: usize) -> State {
        State { max_output: bytes, ..self }
    }

    /// The first result counts like any other: a status is reached by as many as it needs.
    pub fn without_credit(self) -> State {
        State { successes: 0, failures: 0, ..self }
    }

    /// Continues where `previous`, the same check registered before, has arrived.
    pub fn resume(&mut self, previous: &State) {
        self.status = previous.status;
        self.output.clone_from(&previous.output);
        self.critical_since = previous.critical_since;
        (self.successes, self.failures) = (previous.successes, previous.failures);
    }

    /// Continues where it was before the sidecar was restarted; the first result counts at once all the same.
    pub fn restore(&mut self, status: Status, output: String, critical_since: Option<Instant>, now: Instant) {
        if let Some(ttl) = &mut self.ttl {
            ttl.reported.clone_from(&output);
        }
        self.critical_since = critical_since;
        self.set(status, output, now);
    }

    /// Has the last report count until `due`; `None`: it counts no more. Without effect on a check that has no time to live.
    pub fn set_due(&mut self, due: Option<Instant>) {
        if let Some(ttl) = &mut self.ttl {
            ttl.due = due;
        }
    }

    /// Since when it is critical; of one that is so by its reports, when they end.
    pub fn critical_since(&self) -> Option<Instant> {
        self.critical_since
    }

    /// The application has registered it again: a time to live that has not lapsed begins anew.
    pub fn rearm(&mut self, now: Instant) {
        if let Some(ttl) = &mut self.ttl {
            ttl.due = ttl.due.map(|_| now + ttl.ttl);
        }
    }

    /// The status.
    pub fn status(&self) -> Status {
        self.status
    }

    /// What the last result that counted said.
    pub fn output(&self) -> &str {
        &self.output
    }

    /// Takes a probe's result. `false`: it takes more of them to count.
    pub fn probed(&mut self, result: Status, output: String, now: Instant) -> bool {
        // A warning still serves: it counts as a success.
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

    /// Takes the application's report; its time to live begins anew. `false`: this check has none.
    pub fn reported(&mut self, status: Status, output: String, now: Instant) -> bool {
        let Some(ttl) = &mut self.ttl else { return false };
        ttl.due = Some(now + ttl.ttl);
        let output = cap(output, self.max_output);
        ttl.reported.clone_from(&output);
        self.set(status, output, now);
        true
    }

    /// Takes a report that is a sign of life, whatever it says: a check that is critical by such reports is so only from
    /// when they end. `false`: this check has no time to live.
    pub fn renewed(&mut self, status: Status, output: String, now: Instant) -> bool {
        let renewed = self.reported(status, output, now);
        if status == Status::Critical {
            self.critical_since = self.due();
        }
        renewed
    }

    /// When the time to live lapses, unless a report comes before.
    pub fn due(&self) -> Option<Instant> {
        self.ttl.as_ref().and_then(|ttl| ttl.due)
    }

    /// Makes the check critical if its time to live has lapsed.
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

    /// Whether the mesh must hear of it.
    pub fn tell(&self) -> Tell {
        match &self.told {
            Some((status, _, _)) if *status != self.status => Tell::Now,
            Some((_, output, at)) if *output != self.output => Tell::At(*at + OUTPUT_INTERVAL),
            Some(_) => Tell::No,
            None => Tell::Now,
        }
    }

    /// Whether the mesh must hear of it by now; taken as told.
    pub fn due_to_tell(&mut self, now: Instant) -> bool {
        let due = match self.tell() {
            Tell::No => false,
            Tell::At(at) => at <= now,
            Tell::Now => true,
        };
        if due {
            self.told(now);
        }
        due
    }

    /// The mesh has been told.
    pub fn told(&mut self, now: Instant) {
        self.told = Some((self.status, self.output.clone(), now));
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

/// At most `bytes` of `text`.
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
    fn the_first_result_counts_at_once_and_later_ones_by_the_thresholds() {
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
    async fn a_missed_report_makes_it_critical_and_the_next_one_revives_it() {
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
        assert_eq!(state.due(), None, "it lapses once");
        state.reported(Status::Warning, String::new(), Instant::now());
        assert_eq!((state.status(), state.due()), (Status::Warning, Some(Instant::now() + ttl)));
        assert!(!State::new(Status::Critical, Thresholds::default(), None, Instant::now()).reported(
            Status::Passing,
            String::new(),
            Instant::now()
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn only_changes_travel_and_those_of_the_output_seldom() {
        let mut state = State::new(Status::Critical, Thresholds::default(), None, Instant::now());
        assert_eq!(state.tell(), Tell::Now);
        let start = Instant::now();
        state.told(start);
        assert_eq!(state.tell(), Tell::No);
        state.probed(Status::Critical, "refused".into(), start);
        assert_eq!(state.tell(), Tell::At(start + OUTPUT_INTERVAL));
        state.probed(Status::Passing, "200 OK".into(), start);
        assert_eq!(state.tell(), Tell::Now);
        state.told(start);
        state.probed(Status::Passing, "200 OK".into(), start);
        assert_eq!(state.tell(), Tell::No);
    }

    #[tokio::test(start_paused = true)]
    async fn critical_time_is_counted_from_the_change() {
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
    async fn who_renews_is_alive_however_bad_it_is() {
        let minute = Duration::from_secs(60);
        let mut state = State::new(Status::Critical, Thresholds::default(), Some(minute), Instant::now());
        for _ in 0..5 {
            assert!(state.renewed(Status::Critical, "DOWN".into(), Instant::now()));
            assert!(!state.critical_for(minute, Instant::now()));
            tokio::time::advance(minute).await;
        }
        state.expire(Instant::now());
        assert!(!state.critical_for(minute, Instant::now()), "it lapses now");
        tokio::time::advance(minute).await;
        assert!(state.critical_for(minute, Instant::now()));
    }

    #[test]
    fn long_output_is_cut_between_characters() {
        let mut state = State::new(Status::Critical, Thresholds::default(), None, Instant::now());
        state.probed(Status::Passing, format!("a{}", "é".repeat(MAX_OUTPUT)), Instant::now());
        assert_eq!(state.output().len(), MAX_OUTPUT - 1);
    }
}
