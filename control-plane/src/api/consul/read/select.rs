//! The instances and nodes of a query: in the caller's namespaces, of this data centre, with the requested tags and
//! metadata.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use http::StatusCode;
use weft_proto::v1::Check;
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;

use crate::api::consul::{Caller, Consul, near};
use crate::state::{Node, Nodes};
use weft_world::Instance;

/// The visible data of a node.
#[derive(Debug)]
pub(in crate::api::consul) struct NodeView {
    /// Its name.
    pub(in crate::api::consul) name: String,
    /// Its data centre.
    pub(in crate::api::consul) datacenter: String,
    /// Its address.
    pub(in crate::api::consul) address: IpAddr,
    /// The labels of its sidecar.
    pub(in crate::api::consul) meta: BTreeMap<String, String>,
    /// Checks of the node itself.
    pub(in crate::api::consul) checks: Vec<Check>,
    /// `region/zone/subzone`
    pub(in crate::api::consul) locality: String,
}

/// An instance on its node.
#[derive(Debug, Clone)]
pub(in crate::api::consul) struct Row {
    /// The instance.
    pub(in crate::api::consul) instance: Arc<Instance>,
    /// Its node.
    pub(in crate::api::consul) node: Arc<NodeView>,
}

impl Row {
    /// Checks of the instance and of its node.
    pub(in crate::api::consul) fn checks(&self) -> impl Iterator<Item = &Check> {
        self.node.checks.iter().chain(&self.instance.checks)
    }
}

/// Refuses unsupported parameters that would change the answer: an answer without them would be wrong.
pub(in crate::api::consul) fn in_scope(consul: &Consul, query: &Query) -> Result<(), ApiError> {
    // Requests for another data centre were forwarded already; see `forward`.
    if crate::api::consul::forward::datacenter(consul, query).is_some() {
        let text =
            "in another data centre only the catalog and health can be read: ask a sidecar or control plane there";
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, text));
    }
    for key in ["peer", "sg"] {
        if query.value(key).is_some_and(|value| !value.is_empty()) {
            return Err(ApiError::bad_request(format!("the query parameter {key:?} is not supported yet")));
        }
    }
    for key in ["ns", "partition"] {
        if query.value(key).is_some_and(|value| !value.is_empty() && value != "default") {
            let text = format!("Invalid query parameter: {key:?} - the token decides the namespace that is read");
            return Err(ApiError::bad_request(text));
        }
    }
    Ok(())
}

/// The instances that the query's `tag` and `node-meta` select, each on its node, in the order of `near`.
pub(in crate::api::consul) fn rows(
    consul: &Consul,
    caller: &Caller,
    instances: Vec<Arc<Instance>>,
    query: &Query,
) -> Vec<Row> {
    let (mut rows, close) = consul.mesh.read_nodes(|nodes| {
        let mut seen: HashMap<String, Arc<NodeView>> = HashMap::new();
        let rows = instances.into_iter().map(|instance| {
            let node = match seen.get(&instance.node) {
                Some(node) => node.clone(),
                None => {
                    let node = Arc::new(seen_of(consul, nodes, &instance));
                    seen.insert(instance.node.clone(), node.clone());
                    node
                }
            };
            Row { instance, node }
        });
        let close = query.value("near").and_then(|near| near::locality(near, caller, nodes));
        (rows.collect::<Vec<Row>>(), close)
    });
    rows.retain(|row| has_tags(&row.instance, query) && has_meta(&row.node, query));
    if let Some(close) = close {
        near::sort(&mut rows, &close);
    }
    rows
}

/// The visible nodes that the query's `node-meta` selects, by name; with `near` the nearest first.
pub(in crate::api::consul) fn nodes(consul: &Consul, caller: &Caller, query: &Query) -> Vec<NodeView> {
    let allowed = consul.mesh.read(|world| caller.nodes(world));
    let (mut nodes, close) = consul.mesh.read_nodes(|nodes| {
        let seen = |name: &str| allowed.as_ref().is_none_or(|allowed| allowed.contains(name));
        let visible = nodes.iter().filter(|(name, node)| caller.sees(&node.namespace) && seen(name));
        let seen: Vec<NodeView> = visible.map(|(name, node)| of(consul, name, node)).collect();
        (seen, query.value("near").and_then(|near| near::locality(near, caller, nodes)))
    });
    nodes.retain(|node| has_meta(node, query));
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(close) = close {
        nodes.sort_by_key(|node| std::cmp::Reverse(near::shared(&node.locality, &close)));
    }
    nodes
}

/// One node, if the caller sees it.
pub(in crate::api::consul) fn node(consul: &Consul, caller: &Caller, name: &str) -> Option<NodeView> {
    if caller.is_narrowed() && consul.mesh.read(|world| caller.instances_of_node(world, name).is_empty()) {
        return None;
    }
    consul.mesh.read_nodes(|nodes| {
        nodes.get(name).filter(|node| caller.sees(&node.namespace)).map(|node| of(consul, name, node))
    })
}

fn of(consul: &Consul, name: &str, node: &Node) -> NodeView {
    NodeView {
        name: name.to_owned(),
        datacenter: consul.federation.datacenter().to_owned(),
        address: node.address,
        meta: node.labels.clone(),
        checks: node.checks.values().cloned().collect(),
        locality: node.locality.clone(),
    }
}

/// A node that was just removed is shown with the data of its instance.
fn seen_of(consul: &Consul, nodes: &HashMap<String, Node>, instance: &Instance) -> NodeView {
    nodes.get(&instance.node).map_or_else(
        || NodeView {
            name: instance.node.clone(),
            datacenter: consul.federation.datacenter().to_owned(),
            address: instance.address,
            meta: BTreeMap::new(),
            checks: Vec::new(),
            locality: instance.locality.clone(),
        },
        |node| of(consul, &instance.node, node),
    )
}

/// Whether it has every requested tag, whatever its case.
fn has_tags(instance: &Instance, query: &Query) -> bool {
    query.values("tag").all(|wanted| instance.tags.iter().any(|tag| tag.eq_ignore_ascii_case(wanted)))
}

/// Whether it has every requested `key:value`; a key alone stands for an empty value.
fn has_meta(node: &NodeView, query: &Query) -> bool {
    query.values("node-meta").all(|wanted| {
        let (key, value) = wanted.split_once(':').unwrap_or((wanted, ""));
        node.meta.get(key).is_some_and(|found| found == value)
    })
}

impl Caller {
    /// The caller's own node and its name; `None`: it has no sidecar and no registrations.
    pub(in crate::api::consul) fn node<'a>(&self, nodes: &'a Nodes) -> Option<(&'a str, &'a Node)> {
        let own = |node: &Node| node.identity == self.identity && node.namespace == self.namespace;
        nodes.at(self.address).find(|(_, node)| own(node))
    }
}
