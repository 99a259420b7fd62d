//! Sidecar documents that select one workload by different selectors: as in Istio (IST0110) only one of them can apply.

use std::collections::BTreeMap;

use crate::world::{World, has_all};
use weft_policy::{Code, Document, Finding, Object};

/// Sidecars of one namespace that select some of its workloads, oldest first.
type Selecting<'a> = Vec<(&'a Document, &'a BTreeMap<String, String>)>;

/// Warnings about the Sidecars of `world`, given its workloads: each pair is reported once, with one workload.
pub(super) fn conflicts(world: &World) -> Vec<Finding<'_>> {
    let mut selecting: BTreeMap<&str, Selecting<'_>> = BTreeMap::new();
    for document in world.policies().sidecars() {
        if let Object::Sidecar(sidecar) = &document.object
            && !sidecar.selector.is_empty()
        {
            selecting.entry(&document.namespace).or_default().push((document, &sidecar.selector));
        }
    }
    selecting.retain(|_, sidecars| sidecars.len() > 1);
    if selecting.is_empty() {
        return Vec::new();
    }
    let mut pairs: BTreeMap<(&str, &str, &str), (&Document, String)> = BTreeMap::new();
    let mut pick = |namespace: &str, labels: &BTreeMap<String, String>, workload: &dyn Fn() -> String| {
        let Some((namespace, sidecars)) = selecting.get_key_value(namespace) else { return };
        let mut picking = sidecars.iter().filter(|(_, selector)| has_all(labels, selector));
        let Some((first, _)) = picking.next() else { return };
        for (second, _) in picking {
            let pair = (*namespace, first.name.as_str(), second.name.as_str());
            pairs.entry(pair).or_insert_with(|| (second, workload()));
        }
    };
    for instance in world.registered() {
        let name = || format!("workload `{}` on {}", instance.workload, instance.node);
        pick(&instance.namespace, world.labels_of(instance), &name);
    }
    for document in world.documents() {
        if let Object::WorkloadEntry(entry) = &document.object {
            pick(&document.namespace, &entry.labels, &|| document.reference());
        }
    }
    let texts = pairs.into_iter().map(|((namespace, first, _), (second, workload))| {
        let text = format!(
            "{workload} is also selected by Sidecar/{namespace}/{first}, which is older: this one does not \
             apply to it"
        );
        Finding::warning(second, "workloadSelector", Code::ConflictingSidecars, text)
    });
    texts.collect()
}
