//! Conditions of the Gateway API's objects that report mistakes, as warnings for the authors of files.

use crate::attach::conditions::{self, Condition};
use crate::world::World;
use weft_policy::{Code, Document, Finding};

/// The conditions of a route at its parents.
pub(super) fn of_route<'a>(world: &World, complete: bool, document: &'a Document, findings: &mut Vec<Finding<'a>>) {
    for status in conditions::of_route(world, document) {
        let path = |condition: &Condition| match condition.kind {
            "ResolvedRefs" => "rules".to_owned(),
            _ => format!("parentRefs[{}]", status.at),
        };
        let bad = status.conditions.iter().filter(|condition| condition.is_bad());
        findings.extend(bad.map(|condition| finding(document, complete, path(condition), condition)));
    }
}

/// The conditions of a BackendTLSPolicy.
pub(super) fn of_backend_tls<'a>(
    world: &World,
    complete: bool,
    document: &'a Document,
    findings: &mut Vec<Finding<'a>>,
) {
    for condition in conditions::of_backend_tls(world, document).iter().filter(|condition| condition.is_bad()) {
        let path = if condition.kind == "ResolvedRefs" { "validation" } else { "targetRefs" };
        findings.push(finding(document, complete, path.to_owned(), condition));
    }
}

/// The conditions of a Gateway and its listeners.
pub(super) fn of_gateway<'a>(world: &World, document: &'a Document, findings: &mut Vec<Finding<'a>>) {
    let Some(status) = conditions::of_gateway(world, document) else {
        let text = "no GatewayClass of this name has the controller weft.dev/gateway-controller: no gateway serves it";
        findings.push(Finding::warning(document, "gatewayClassName", Code::Ineffective, text));
        return;
    };
    for (n, listener) in status.listeners.iter().enumerate() {
        // That it is not served follows from the others.
        let bad = listener.conditions.iter().filter(|condition| condition.is_bad() && condition.kind != "Programmed");
        findings.extend(bad.map(|condition| finding(document, true, format!("listeners[{n}]"), condition)));
    }
}

fn finding<'a>(document: &'a Document, complete: bool, path: String, condition: &Condition) -> Finding<'a> {
    let code = match condition.reason {
        "BackendNotFound" | "NoMatchingParent" | "TargetNotFound" => Code::UnknownHost,
        "NoMatchingListenerHostname" => Code::HostNotInGateway,
        "Conflicted" => Code::Overruled,
        "ProtocolConflict" | "HostnameConflict" => Code::ConflictingGateways,
        "RefNotPermitted" => Code::NotExported,
        "InvalidKind" | "UnsupportedProtocol" | "InvalidRouteKinds" => Code::NotSupported,
        _ => Code::Ineffective,
    };
    let text = format!("{}: {} ({})", condition.kind, condition.message, condition.reason);
    // Files alone do not show which services are registered.
    match code == Code::UnknownHost && !complete {
        true => Finding::info(document, path, code, text),
        false => Finding::warning(document, path, code, text),
    }
}
