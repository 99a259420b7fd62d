//! PeerAuthentications against the TLS settings of callers.

use std::collections::{HashMap, HashSet};

use weft_proto::v1::{MtlsMode, Tls};

use crate::MESH_SUFFIX;
use crate::{Code, Document, Finding, Object, ROOT_NAMESPACES, canonical, is_root};

/// Findings of this module; `documents` are sorted by age.
pub(super) fn check<'a>(documents: &[&'a Document]) -> Vec<Finding<'a>> {
    let mut findings = Vec::new();
    // The oldest policy of the namespace decides; without a mode there, the root namespace's does.
    let mut of_namespace: HashMap<&str, (Option<MtlsMode>, &Document)> = HashMap::new();
    // In these a workload may have another mode.
    let mut divided: HashSet<&str> = HashSet::new();
    for document in documents {
        let Object::PeerAuthentication(policy) = &document.object else { continue };
        if policy.selector.is_empty() {
            of_namespace.entry(&document.namespace).or_insert((policy.mode, document));
        } else if is_root(&document.namespace) {
            let text = "a `selector` has no meaning in the root namespace: this policy is ignored, as in Istio";
            findings.push(Finding::warning(document, "selector", Code::Ineffective, text));
        } else {
            divided.insert(&document.namespace);
        }
    }
    let mode = |namespace: &str| {
        let own = of_namespace.get(namespace).filter(|(mode, _)| mode.is_some());
        own.or_else(|| ROOT_NAMESPACES.iter().find_map(|root| of_namespace.get(root)))
            .filter(|_| !divided.contains(namespace))
    };
    for document in documents {
        let Object::DestinationRule(rule) = &document.object else { continue };
        let tls = rule.traffic_policy.as_ref().and_then(|policy| policy.settings.tls.as_ref());
        let host = canonical(&rule.host, &document.namespace);
        let service = host.strip_suffix(MESH_SUFFIX).and_then(|service| service.rsplit_once('.'));
        let (Some(tls), Some((_, namespace))) = (tls, service) else { continue };
        if tls.mode == Tls::Disable
            && let Some((Some(MtlsMode::Strict), policy)) = mode(namespace)
        {
            let text = format!("callers of `{host}` use plaintext, and {} requires mTLS", policy.reference());
            findings.push(Finding::warning(document, "trafficPolicy.tls.mode", Code::PlaintextToStrict, text));
        }
    }
    findings
}
