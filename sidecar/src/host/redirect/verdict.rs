//! The state of the rules, by the table as `nft list` prints it and the record of its installation.

use super::rules::{MARK, REMOVED};

fn mark(listing: &str) -> Option<&str> {
    let (_, rest) = listing.split_once(MARK)?;
    rest.split_whitespace().next()
}

/// The state of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There are none, and there were none.
    Nothing,
    /// As they were recorded.
    Same,
    /// Of an installation that is not recorded yet.
    New,
    /// On their way out.
    Removed,
    /// Gone, or changed by another program.
    Lost,
}

/// Compares the table as `nft list` prints it with the record.
pub(super) fn judge(listing: Option<&str>, record: Option<&str>) -> Verdict {
    match (listing, record) {
        (None, None) => Verdict::Nothing,
        (Some(listing), _) if listing.contains(REMOVED) => Verdict::Removed,
        (Some(listing), Some(record)) if listing == record => Verdict::Same,
        (Some(listing), record) if is_new(listing, record) => Verdict::New,
        _ => Verdict::Lost,
    }
}

fn is_new(listing: &str, record: Option<&str>) -> bool {
    match (mark(listing), record.and_then(mark)) {
        (Some(now), before) => before != Some(now),
        // Installed by an earlier version.
        (None, None) => listing.contains(" redirect to :"),
        (None, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::{render, render_marked, tests::default};
    use super::*;

    #[test]
    fn lost_new_and_removed_rules_are_distinguished() {
        let listing =
            |number| render_marked(&default(), number).replace("table inet weft\ndelete table inet weft\n", "");
        let (one, two) = (listing(1), listing(2));
        assert!(one.ends_with("\t}\n\tchain installed_0000000000000001 {\n\t}\n}\n"), "{one}");
        let (one, two) = (Some(one.as_str()), Some(two.as_str()));
        assert_eq!(judge(None, None), Verdict::Nothing);
        assert_eq!(judge(one, None), Verdict::New);
        assert_eq!(judge(one, one), Verdict::Same);
        assert_eq!(judge(two, one), Verdict::New);
        assert_eq!(judge(None, one), Verdict::Lost);
        let flushed = one.map(|text| text.replace("meta l4proto tcp redirect to :15006", ""));
        assert_eq!(judge(flushed.as_deref(), one), Verdict::Lost);
        assert_eq!(judge(Some("table inet weft {\n}\n"), one), Verdict::Lost);
        assert_eq!(judge(Some("table inet weft {\n\tchain removed {\n\t}\n}\n"), one), Verdict::Removed);
        // Of an earlier version.
        let old = render(&default());
        assert_eq!((judge(Some(&old), None), judge(Some(&old), Some(&old))), (Verdict::New, Verdict::Same));
        assert_eq!(judge(Some("table inet weft {\n}\n"), Some(&old)), Verdict::Lost);
    }
}
