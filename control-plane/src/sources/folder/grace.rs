//! Documents of emptied or removed files: they stay for a grace time, and as long as other documents need them.
//!
//! Many programs truncate a file before they write it, and on a network file system a file may be missing for a moment:
//! a moment without its policies would fail requests. Pure: time and the other documents are arguments.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_policy::{Code, Document, Key, Need, Place, Problem, Severity, needs};

/// Interval of the checks whether a document whose time is over is still needed.
const RECHECK: Duration = Duration::from_secs(5);

/// The reason of a withdrawal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The file was removed.
    Removed,
    /// The file has no documents.
    Emptied,
    /// The file has other documents, but not this one.
    LeftOut,
}

#[derive(Debug)]
struct WithdrawnDocument {
    document: Arc<Document>,
    cause: Cause,
    /// The document is kept at least until then.
    until: Instant,
    /// The time of the next check.
    due: Instant,
    /// The need for which it was kept longer, as of the last check.
    needed: Option<Need>,
}

/// The withdrawn documents that still apply.
#[derive(Debug)]
pub(super) struct GraceList {
    grace: Duration,
    documents: BTreeMap<Key, WithdrawnDocument>,
}

impl GraceList {
    /// Keeps the documents of an emptied or removed file for `grace`. A document that a file leaves out beside others
    /// is kept only if another document needs it: the rest of the file shows that its text is complete.
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, documents: BTreeMap::new() }
    }

    /// Adds a document whose text was removed at `now`.
    pub(super) fn withdraw(&mut self, document: Arc<Document>, cause: Cause, now: Instant) {
        let grace = if cause == Cause::LeftOut { Duration::ZERO } else { self.grace };
        let until = now.checked_add(grace).unwrap_or(now);
        self.documents.insert(document.key(), WithdrawnDocument { document, cause, until, due: until, needed: None });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// The documents that still apply, by key.
    pub(super) fn documents(&self) -> impl Iterator<Item = &Arc<Document>> {
        self.documents.values().map(|one| &one.document)
    }

    /// Removes those that `present` has again. Returns whether there were any.
    pub(super) fn return_to(&mut self, present: impl Fn(&Key) -> bool) -> bool {
        let before = self.documents.len();
        self.documents.retain(|key, _| !present(key));
        self.documents.len() != before
    }

    /// Removes and returns those of one file.
    pub(super) fn take(&mut self, file: &str) -> Vec<Arc<Document>> {
        let of_file = self.documents.extract_if(.., |_, one| one.document.file == file);
        of_file.map(|(_, one)| one.document).collect()
    }

    /// The time at which [`GraceList::expire`] may change something; `None`: the list is empty.
    pub(super) fn due(&self) -> Option<Instant> {
        self.documents.values().map(|one| one.due).min()
    }

    /// Withdraws at `now` the documents whose time is over and that are needed neither by `present`, which are all
    /// other documents that apply, nor by another kept one. `offers`: hosts that the registry has. Returns the
    /// references of the withdrawn ones, and whether the other content of [`GraceList::problems`] has changed.
    pub(super) fn expire(
        &mut self,
        now: Instant,
        present: &[Arc<Document>],
        offers: &dyn Fn(&str) -> bool,
    ) -> (Vec<String>, bool) {
        let (mut over, kept): (Vec<_>, Vec<_>) = self.documents.values().partition(|one| one.until <= now);
        let mut rest: Vec<&Document> = present.iter().map(AsRef::as_ref).collect();
        rest.extend(kept.iter().map(|one| &*one.document));
        let mut needed: BTreeMap<Key, Need> = BTreeMap::new();
        // A need of a document that stays keeps another one.
        loop {
            let gone: Vec<&Document> = over.iter().map(|one| &*one.document).collect();
            let found = needs(&gone, &rest, offers);
            if found.is_empty() {
                break;
            }
            let (stays, goes): (Vec<_>, Vec<_>) =
                over.into_iter().partition(|one| found.contains_key(&one.document.key()));
            rest.extend(stays.iter().map(|one| &*one.document));
            over = goes;
            needed.extend(found);
        }
        let withdrawn: BTreeSet<Key> = over.iter().map(|one| one.document.key()).collect();
        let names = over.iter().map(|one| one.document.reference()).collect();
        self.documents.retain(|key, _| !withdrawn.contains(key));
        let mut changed = false;
        for (key, one) in &mut self.documents {
            let needed = needed.remove(key);
            changed |= one.needed != needed;
            if one.until <= now {
                one.due = now.checked_add(RECHECK).unwrap_or(now);
            }
            one.needed = needed;
        }
        (names, changed)
    }

    /// The kept documents, with the reasons. The text is stable as long as the reason is the same.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let one = |one: &WithdrawnDocument| {
            let cause = match one.cause {
                Cause::Removed => "the file was removed",
                Cause::Emptied => "the file was emptied",
                Cause::LeftOut => "the file leaves it out",
            };
            let until = match &one.needed {
                Some(need) => format!("as long as {need}: requests would fail without it"),
                None => format!("for {} s, in case its text returns (--policy-grace)", self.grace.as_secs()),
            };
            Problem {
                file: one.document.file.clone(),
                place: Place { line: one.document.line, column: 1 },
                severity: Severity::Warning,
                code: Code::Withdrawn,
                path: String::new(),
                text: format!("{} is kept {until}; {cause}", one.document.reference()),
            }
        };
        self.documents.values().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_policy::parse;

    const GRACE: Duration = Duration::from_secs(10);

    fn documents(text: &str) -> Vec<Arc<Document>> {
        let parsed = parse("f.yaml", text);
        assert!(!parsed.has_errors(), "{:?}", parsed.problems);
        parsed.documents.into_iter().map(Arc::new).collect()
    }

    fn rule() -> Arc<Document> {
        documents("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r}\nspec: {host: a, subsets: [{name: v1}]}\n").remove(0)
    }

    fn route() -> Arc<Document> {
        documents("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\nspec: {hosts: [a], http: [{route: [{destination: {host: a, subset: v1}}]}]}\n").remove(0)
    }

    fn names(list: &GraceList) -> Vec<String> {
        list.documents().map(|document| document.reference()).collect()
    }

    fn expire(list: &mut GraceList, now: Instant, present: &[Arc<Document>]) -> (Vec<String>, bool) {
        list.expire(now, present, &|_| false)
    }

    #[test]
    fn a_withdrawn_document_is_kept_for_the_grace_time_and_no_longer() {
        let (mut list, start) = (GraceList::new(GRACE), Instant::now());
        list.withdraw(rule(), Cause::Emptied, start);
        let just_before = start + GRACE - Duration::from_millis(1);
        assert_eq!(list.due(), Some(start + GRACE));
        assert_eq!(expire(&mut list, just_before, &[]), (vec![], false));
        assert_eq!(names(&list), ["DestinationRule/default/r"]);
        let text = "DestinationRule/default/r is kept for 10 s, in case its text returns (--policy-grace); the file was emptied";
        assert_eq!(list.problems()[0].text, text);
        assert_eq!(expire(&mut list, start + GRACE, &[]).0, ["DestinationRule/default/r"]);
        assert!(list.is_empty() && list.problems().is_empty() && list.due().is_none());
    }

    #[test]
    fn a_withdrawn_document_is_kept_as_long_as_another_needs_it() {
        let (mut list, start) = (GraceList::new(GRACE), Instant::now());
        list.withdraw(rule(), Cause::Removed, start);
        let later = start + GRACE * 100;
        assert_eq!(expire(&mut list, later, &[route()]), (vec![], true), "the reason is reported");
        assert_eq!(list.due(), Some(later + RECHECK));
        assert_eq!(expire(&mut list, later, &[route()]), (vec![], false), "once");
        let text = &list.problems()[0].text;
        assert!(text.contains("as long as VirtualService/default/v needs its subset `v1`"), "{text}");
        assert!(text.ends_with("the file was removed"), "{text}");
        assert_eq!(expire(&mut list, later, &[]).0, ["DestinationRule/default/r"]);
    }

    #[test]
    fn documents_withdrawn_together_do_not_keep_each_other() {
        let (mut list, start) = (GraceList::new(GRACE), Instant::now());
        list.withdraw(rule(), Cause::Removed, start);
        list.withdraw(route(), Cause::Removed, start + Duration::from_secs(1));
        assert_eq!(expire(&mut list, start + GRACE, &[]), (vec![], true), "the route still has its time");
        let (gone, _) = expire(&mut list, start + GRACE * 2, &[]);
        assert_eq!(gone, ["DestinationRule/default/r", "VirtualService/default/v"]);
    }

    #[test]
    fn a_document_that_a_file_leaves_out_beside_others_is_kept_only_while_it_is_needed() {
        let (mut list, now) = (GraceList::new(GRACE), Instant::now());
        list.withdraw(rule(), Cause::LeftOut, now);
        assert_eq!(expire(&mut list, now, &[route()]).0, Vec::<String>::new());
        assert_eq!(expire(&mut list, now, &[]).0, ["DestinationRule/default/r"]);
    }

    #[test]
    fn a_document_that_returns_is_no_longer_kept() {
        let (mut list, now) = (GraceList::new(GRACE), Instant::now());
        list.withdraw(rule(), Cause::Removed, now);
        assert!(!list.return_to(|key| *key == route().key()) && !list.is_empty());
        assert!(list.return_to(|key| *key == rule().key()) && list.is_empty());
    }
}
