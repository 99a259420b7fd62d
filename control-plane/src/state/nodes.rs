//! The nodes of the mesh by name, with an index by address: a hello, and each request of Consul's API, look up the
//! nodes of one address.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Deref;

use weft_world::explain;

use super::Node;

/// All nodes by name. The map can be read directly; it is changed only here, so that the index stays consistent.
#[derive(Debug, Default)]
pub struct Nodes {
    all: HashMap<String, Node>,
    at: HashMap<IpAddr, BTreeSet<String>>,
    of_catalog: usize,
}

impl Deref for Nodes {
    type Target = HashMap<String, Node>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl Nodes {
    pub(super) fn insert(&mut self, name: String, node: Node) {
        self.remove(&name);
        self.at.entry(node.address).or_default().insert(name.clone());
        self.of_catalog += usize::from(node.catalog);
        self.all.insert(name, node);
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Node> {
        let node = self.all.remove(name)?;
        self.of_catalog -= usize::from(node.catalog);
        if let Some(names) = self.at.get_mut(&node.address) {
            names.remove(name);
            if names.is_empty() {
                self.at.remove(&node.address);
            }
        }
        Some(node)
    }

    /// For changes of a node's liveness; its address and its source stay.
    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.all.get_mut(name)
    }

    /// Nodes at an address, by name.
    pub fn at(&self, address: IpAddr) -> impl Iterator<Item = (&str, &Node)> {
        let names = self.at.get(&address).into_iter().flatten();
        names.filter_map(|name| Some((name.as_str(), self.all.get(name)?)))
    }

    /// Workloads whose sidecar is connected, to any of the control planes.
    pub(super) fn connected(&self) -> Vec<explain::Workload<'_>> {
        let connected = self.all.iter().filter(|(_, node)| node.alive.is_some() && !node.catalog);
        connected
            .map(|(name, node)| explain::Workload {
                node: name,
                name: &node.workload,
                namespace: &node.namespace,
                identity: &node.identity,
                address: node.address,
                locality: &node.locality,
                labels: &node.labels,
            })
            .collect()
    }

    /// Number of nodes that were written by `catalog/register`.
    pub(super) fn of_catalog(&self) -> usize {
        self.of_catalog
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::state::Alive;

    #[test]
    fn workloads_are_connected_while_a_control_plane_has_their_session() {
        let node = |alive: bool, catalog: bool| Node {
            workload: "front".to_owned(),
            locality: "eu/a".to_owned(),
            alive: alive.then(|| Alive { owner: String::new(), session: 1, modified: 1 }),
            catalog,
            ..Node::of_test("default", 9)
        };
        let mut nodes = Nodes::default();
        nodes.insert("front-1".to_owned(), node(true, false));
        nodes.insert("gone-1".to_owned(), node(false, false));
        nodes.insert("written-1".to_owned(), node(true, true));
        let connected = nodes.connected();
        let names: Vec<(&str, &str)> = connected.iter().map(|workload| (workload.node, workload.name)).collect();
        assert_eq!(names, [("front-1", "front")]);
    }
}
