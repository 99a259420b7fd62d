//! The nodes of the mesh by name, with an index of those at each address: a hello, and each request of Consul's API, look for
//! the nodes of one address among all.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Deref;

use super::Node;

/// All nodes by name. Their map can be read as it is; it is changed here, so that the index keeps up.
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

    /// To change what is known of a node's life; its address and its source stay.
    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.all.get_mut(name)
    }

    /// Nodes at an address, by name.
    pub fn at(&self, address: IpAddr) -> impl Iterator<Item = (&str, &Node)> {
        let names = self.at.get(&address).into_iter().flatten();
        names.filter_map(|name| Some((name.as_str(), self.all.get(name)?)))
    }

    /// How many were written by `catalog/register`.
    pub(super) fn of_catalog(&self) -> usize {
        self.of_catalog
    }
}
