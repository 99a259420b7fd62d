//! TLS of the connections to Services, by BackendTLSPolicies.

use std::sync::Arc;

use weft_proto::v1;

use super::{Rejection, offered};
use crate::world::{Host, World, ports};
use weft_policy::{BackendTlsPolicy, Document, Object, fqdn};

/// The BackendTLSPolicy of a port of `host`, with the settings of TLS; an error: connections fail, never in plaintext. The
/// oldest policy that names the port applies, else the oldest for all ports.
pub(crate) fn of_port<'a>(
    world: &'a World,
    host: &Host,
    port: &str,
) -> Option<(&'a Arc<Document>, Result<v1::TlsOrigination, Rejection>)> {
    let (document, policy) = applied(world, &host.name, port)?;
    Some((document, origination(policy)))
}

fn applied<'a>(world: &'a World, host: &str, port: &str) -> Option<(&'a Arc<Document>, &'a BackendTlsPolicy)> {
    let all = world.policies().gateway_api().backend_tls(host).iter();
    let all: Vec<(&Arc<Document>, &BackendTlsPolicy)> = all.filter_map(|one| Some((one, policy(one)?))).collect();
    let of = |section: &str| {
        let names = |(_, policy): &&(&'a Arc<Document>, &'a BackendTlsPolicy)| {
            let mut targets = policy.targets.iter();
            targets.any(|(target, own)| own == section && fqdn(&target.name, &target.namespace) == host)
        };
        all.iter().find(names).copied()
    };
    Some(port).filter(|port| !port.is_empty()).and_then(of).or_else(|| of(""))
}

fn policy(document: &Document) -> Option<&BackendTlsPolicy> {
    match &document.object {
        Object::BackendTLSPolicy(policy) => Some(policy),
        _ => None,
    }
}

fn origination(policy: &BackendTlsPolicy) -> Result<v1::TlsOrigination, Rejection> {
    match (policy.authorities.first(), policy.authority()) {
        (None, _) => Ok(policy.origination(None)),
        (Some(_), Some(authority)) => Ok(policy.origination(Some(&authority.name))),
        (Some(first), None) => {
            let text = format!("a CA certificate is a ConfigMap, not `{}` of group `{}`", first.kind, first.group);
            Err(Rejection::new("InvalidKind", text))
        }
    }
}

/// Whether a policy applies to its targets, and whether its references are to known kinds.
pub(super) fn conditions(world: &World, document: &Document) -> (Result<(), Rejection>, Result<(), Rejection>) {
    let Some(policy) = policy(document) else { return (Ok(()), Ok(())) };
    let references = origination(policy).map(drop);
    let target = |(target, section): &(weft_policy::ObjectRef, String)| -> Result<(), Rejection> {
        let not_found = |text: String| Err(Rejection::new("TargetNotFound", text));
        if !target.is_service() {
            return not_found(format!("a target is a Service, not `{}` of group `{}`", target.kind, target.group));
        }
        let host = fqdn(&target.name, &target.namespace);
        let found = offered(world, &host, "TargetNotFound")?;
        let has = || ports::of(world, found).iter().any(|port| port.name == *section);
        if !section.is_empty() && !has() {
            return not_found(format!("Service `{host}` has no port `{section}`"));
        }
        match applied(world, &host, section) {
            Some((first, _)) if !first.is_same_object(document) => {
                let text = format!("{} is older and has the same target", first.reference());
                Err(Rejection::new("Conflicted", text))
            }
            _ => Ok(()),
        }
    };
    let accepted = policy.targets.iter().try_for_each(target);
    let accepted = match (accepted, &references) {
        (Ok(()), Err(_)) => Err(Rejection::new("NoValidCACertificate", "none of the CA certificates can be used")),
        (accepted, _) => accepted,
    };
    (accepted, references)
}
