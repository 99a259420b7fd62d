//! The order of matches, over all routes of one parent: the first that matches a request applies.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{Attached, route};
use weft_policy::Document;

/// All matches of `documents`, each with the most specific of its hostnames that applies.
pub(super) fn ordered<'a>(documents: impl Iterator<Item = (&'a Arc<Document>, (bool, usize))>) -> Vec<Attached<'a>> {
    let mut all: Vec<Attached<'a>> = Vec::new();
    for (document, hostname) in documents {
        let rules = route(document).map(|route| &route.rules[..]).unwrap_or_default();
        for (n, rule) in rules.iter().enumerate() {
            let matches = rule.matches.iter().enumerate();
            all.extend(matches.map(|(m, one)| Attached { document, rule, one, at: (n, m), hostname }));
        }
    }
    all.sort_by_key(|one| {
        let Document { created, namespace, name, .. } = &**one.document;
        (Reverse(one.hostname), Reverse(one.one.rank), *created, namespace, name, one.at)
    });
    all
}
