//! `--from`: whose request it is.

use std::collections::{BTreeSet, HashMap};

use weft_core::locality::Place;

use super::Client;
use crate::mesh::Node;
use crate::policy::nearest::suggest;
use crate::world::World;

/// Namespace of a caller of whom nothing is said.
const DEFAULT_NAMESPACE: &str = "default";

/// A workload as it is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// As given.
    pub workload: String,
    /// `None`: it was not said.
    pub namespace: Option<String>,
}

impl Name {
    /// `name`, `name.namespace` or `namespace/name`.
    ///
    /// # Errors
    /// Where one of the two is empty.
    pub fn parse(text: &str) -> Result<Name, String> {
        let (workload, namespace) = match text.split_once('/') {
            Some((namespace, workload)) => (workload, Some(namespace)),
            None => text.rsplit_once('.').map_or((text, None), |(workload, namespace)| (workload, Some(namespace))),
        };
        if workload.is_empty() || workload.contains('/') || namespace.is_some_and(str::is_empty) {
            return Err(format!("--from: {text:?} is not NAME, NAME.NAMESPACE or NAMESPACE/NAME"));
        }
        Ok(Name { workload: workload.to_owned(), namespace: namespace.map(str::to_owned) })
    }

    /// That of the caller.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
    }
}

/// The sidecar of a workload, by its name: one that is connected, to whichever control plane. `ejected` gives what a node's
/// sidecar has ejected.
///
/// # Errors
/// When there is none, or in several namespaces.
pub fn find(
    name: &Name,
    nodes: &HashMap<String, Node>,
    world: &World,
    ejected: impl Fn(&str) -> BTreeSet<(String, String)>,
) -> Result<Client, String> {
    let connected = || nodes.iter().filter(|(_, node)| node.alive.is_some() && !node.catalog);
    let is_meant = |(key, node): &(&String, &Node)| {
        (node.workload == name.workload || **key == name.workload)
            && name.namespace.as_ref().is_none_or(|namespace| *namespace == node.namespace)
    };
    let mut found: Vec<(&String, &Node)> = connected().filter(is_meant).collect();
    // Of several that are alike the same one every time.
    found.sort_by_key(|(key, node)| (&node.namespace, *key));
    let Some((key, node)) = found.first().copied() else {
        let mut known: Vec<&str> = connected().map(|(_, node)| node.workload.as_str()).collect();
        known.sort_unstable();
        known.dedup();
        let hint = if known.is_empty() { String::new() } else { suggest(&name.workload, &known, "there are") };
        let of = name.namespace.as_ref().map(|namespace| format!(" of namespace {namespace}")).unwrap_or_default();
        return Err(format!("--from: no sidecar of a workload `{}`{of} is connected{hint}", name.workload));
    };
    let namespaces: BTreeSet<&str> = found.iter().map(|(_, node)| node.namespace.as_str()).collect();
    if namespaces.len() > 1 {
        let namespaces: Vec<&str> = namespaces.into_iter().collect();
        let workload = &name.workload;
        return Err(format!(
            "--from: `{workload}` is in the namespaces {}: say {workload}.{}",
            namespaces.join(" and "),
            namespaces[0]
        ));
    }
    let mut labels = node.labels.clone();
    for instance in world.instances_of_node(&node.namespace, key).filter(|one| one.identity == node.identity) {
        labels.extend(world.labels_of(instance).clone());
    }
    Ok(Client {
        workload: node.workload.clone(),
        node: key.clone(),
        namespace: node.namespace.clone(),
        gateway: None,
        labels,
        place: Place { locality: node.locality.as_str().into(), labels: node.labels.clone() },
        address: Some(node.address),
        ejected: ejected(key),
    })
}
