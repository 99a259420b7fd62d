//! Checks of documents against each other.
//!
//! An error is a document that cannot work whatever else is registered, such as one that refers to a missing part of
//! another document. A name that another source may offer, or a setting that has less effect than it seems to have, is
//! a warning. The number of documents is not bounded, so every check uses an index: its time is linear in their size.

mod aliases;
mod connections;
mod destinations;
mod gateways;
pub(super) mod impact;
pub(super) mod needs;
mod precedence;
mod reach;
mod security;

use std::collections::HashMap;

pub use destinations::destinations;

use super::{Code, Document, Finding, Object, Problem, mesh_config, placed};

/// Problems between `documents`, which are all the documents that are applied together.
pub fn check(documents: &[&Document]) -> Vec<Problem> {
    let exported = mesh_config::exported(documents);
    let documents: Vec<&Document> = exported.iter().map(AsRef::as_ref).collect();
    let sorted = by_age(&documents);
    let mut findings = duplicates(&documents);
    findings.extend(precedence::check(&sorted));
    findings.extend(destinations::check(&sorted));
    findings.extend(aliases::check(&sorted));
    findings.extend(security::check(&sorted));
    findings.extend(gateways::check(&sorted));
    for document in sorted {
        if let Object::VirtualService(service) = &document.object {
            findings.extend(reach::check(document, service));
            findings.extend(connections::check(document, service));
        }
    }
    let mut problems = [placed(findings), crate::delegate::check(&documents)].concat();
    crate::sort_problems(&mut problems);
    problems
}

/// Oldest first; of the same age by namespace and name.
fn by_age<'a>(documents: &[&'a Document]) -> Vec<&'a Document> {
    let mut sorted = documents.to_vec();
    sorted.sort_by(|a, b| (a.created, &a.namespace, &a.name).cmp(&(b.created, &b.namespace, &b.name)));
    sorted
}

fn duplicates<'a>(documents: &[&'a Document]) -> Vec<Finding<'a>> {
    let mut seen: HashMap<_, &Document> = HashMap::new();
    let mut findings = Vec::new();
    for document in documents {
        let first = seen.entry((document.kind(), &document.namespace, &document.name)).or_insert(document);
        if !std::ptr::eq(*first, *document) {
            let text = format!("{} is defined already at {}:{}", document.reference(), first.file, first.line);
            findings.push(Finding::error(document, "", Code::DuplicateObject, text));
        }
    }
    findings
}

#[cfg(test)]
mod tests;
