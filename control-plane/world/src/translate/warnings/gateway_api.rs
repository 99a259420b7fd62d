//! Conditions of the Gateway API's objects that are not true, as warnings for the authors of files.

use crate::attach::conditions::{self, Condition};
use crate::world::World;
use weft_policy::{Code, Document, Finding};

/// The conditions of a route.
pub(super) fn of_route<'a>(world: &World, complete: bool, document: &'a Document, findings: &mut Vec<Finding<'a>>) {
    for status in conditions::of_route(world, document) {
        let bad = status.conditions.iter().filter(|condition| !condition.status);
        findings.extend(bad.map(|condition| finding(document, complete, status.at, condition)));
    }
}

fn finding<'a>(document: &'a Document, complete: bool, parent: usize, condition: &Condition) -> Finding<'a> {
    let path = if condition.kind == "ResolvedRefs" { "rules".to_owned() } else { format!("parentRefs[{parent}]") };
    let code = match condition.reason {
        "BackendNotFound" | "NoMatchingParent" => Code::UnknownHost,
        "Conflicted" => Code::Overruled,
        "RefNotPermitted" => Code::NotExported,
        "InvalidKind" => Code::NotSupported,
        _ => Code::Ineffective,
    };
    // Files alone do not show which services are registered.
    match code == Code::UnknownHost && !complete {
        true => Finding::info(document, path, code, text(condition)),
        false => Finding::warning(document, path, code, text(condition)),
    }
}

fn text(condition: &Condition) -> String {
    format!("{}: {} ({})", condition.kind, condition.message, condition.reason)
}
