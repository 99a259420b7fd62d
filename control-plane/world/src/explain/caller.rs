//! `--from`: the workload that sends the request.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_core::locality::Location;

use super::Client;
use crate::world::World;
use weft_policy::nearest::suggest;

/// Namespace of a caller that is not described otherwise.
const DEFAULT_NAMESPACE: &str = "default";

/// The name of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// As given.
    pub workload: String,
    /// `None`: not given.
    pub namespace: Option<String>,
}

impl Name {
    /// `name`, `name.namespace` or `namespace/name`.
    ///
    /// # Errors
    /// If one of the two is empty.
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

    /// The caller's namespace.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
    }
}

/// A workload whose sidecar is connected to a control plane.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// Name of its node.
    pub node: &'a str,
    /// Its own name.
    pub name: &'a str,
    /// Namespace of its identity.
    pub namespace: &'a str,
    /// SPIFFE ID of its sidecar.
    pub identity: &'a str,
    /// Source address of its sidecar's stream.
    pub address: IpAddr,
    /// `region/zone/subzone`.
    pub locality: &'a str,
    /// Labels given on the command line of its sidecar.
    pub labels: &'a BTreeMap<String, String>,
}

/// The client of that name among the `connected` workloads. `ejected` returns the endpoints that a node's sidecar has
/// ejected.
///
/// # Errors
/// If there is none, or in several namespaces.
pub fn find(
    name: &Name,
    connected: &[Workload<'_>],
    world: &World,
    ejected: impl Fn(&str) -> BTreeSet<(String, String)>,
) -> Result<Client, String> {
    let is_meant = |workload: &&Workload<'_>| {
        (workload.name == name.workload || workload.node == name.workload)
            && name.namespace.as_ref().is_none_or(|namespace| namespace == workload.namespace)
    };
    let mut candidates: Vec<&Workload<'_>> = connected.iter().filter(is_meant).collect();
    // The result is the same every time, even if several are alike.
    candidates.sort_by_key(|workload| (workload.namespace, workload.node));
    let Some(workload) = candidates.first().copied() else {
        let mut known: Vec<&str> = connected.iter().map(|workload| workload.name).collect();
        known.sort_unstable();
        known.dedup();
        let hint = if known.is_empty() { String::new() } else { suggest(&name.workload, &known, "there are") };
        let of = name.namespace.as_ref().map(|namespace| format!(" of namespace {namespace}")).unwrap_or_default();
        return Err(format!("--from: no sidecar of a workload `{}`{of} is connected{hint}", name.workload));
    };
    let namespaces: BTreeSet<&str> = candidates.iter().map(|workload| workload.namespace).collect();
    if namespaces.len() > 1 {
        let namespaces: Vec<&str> = namespaces.into_iter().collect();
        let workload = &name.workload;
        return Err(format!(
            "--from: `{workload}` is in the namespaces {}: use {workload}.{}",
            namespaces.join(" and "),
            namespaces[0]
        ));
    }
    let mut labels = workload.labels.clone();
    let instances = world.instances_of_node(workload.namespace, workload.node);
    for instance in instances.filter(|instance| instance.identity == workload.identity) {
        labels.extend(world.labels_of(instance).clone());
    }
    Ok(Client {
        workload: workload.name.to_owned(),
        node: workload.node.to_owned(),
        namespace: workload.namespace.to_owned(),
        gateway: None,
        labels,
        location: Location { locality: workload.locality.into(), labels: workload.labels.clone() },
        address: Some(workload.address),
        ejected: ejected(workload.node),
    })
}
