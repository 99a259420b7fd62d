//! Catalog entries that a program writes on behalf of others: nodes without a session, with instances and checks that
//! are not probed. They stay until they are deregistered.

use std::collections::BTreeMap;
use std::net::IpAddr;

use prost::Message;
use weft_proto::v1::{self, Check};

use super::records::{instance_of, registration_key, stored_of, wire};
use super::sessions::stored;
use super::usage::account;
use super::{Mesh, Node, RETRY, Refusal};
use crate::identity::bounds;
use crate::store::{Condition, Op, Table};
use weft_world::InstanceKey;

/// Bound on the nodes of this kind.
const MAX_NODES: usize = 10_000;
/// Attempts of a change that conflicts with others.
const TRIES: usize = 10;

/// A write to one node.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// Its name.
    pub node: String,
    /// Its namespace.
    pub namespace: String,
    /// `None`: unchanged.
    pub address: Option<IpAddr>,
    /// `None`: unchanged.
    pub meta: Option<BTreeMap<String, String>>,
    /// Instances on it; they keep their previous checks.
    pub services: Vec<v1::Instance>,
    /// New or changed checks; without a service's id: of the node.
    pub checks: Vec<Check>,
}

/// The object of a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// The node with all of its instances.
    Node,
    /// A service, by its id.
    Service(String),
    /// A check, by its id.
    Check(String),
}

impl Mesh {
    /// A node of the catalog, with the instances on it; `None`: there is none of this name in this namespace.
    ///
    /// # Errors
    /// If the name is that of a node with a session, or in another namespace.
    pub fn catalog_node(&self, name: &str, namespace: &str) -> Result<Option<(Node, Vec<v1::Instance>)>, Refusal> {
        let state = self.lock();
        let Some(node) = state.nodes.get(name) else { return Ok(None) };
        if !node.catalog {
            let text = format!("the node {name} has an agent of its own: register with it");
            return Err(text.into());
        }
        if node.namespace != namespace {
            return Err(format!("the node name {name} is in use in another namespace").into());
        }
        let instances = state.world.registered_of_node(namespace, name).map(|instance| wire(instance)).collect();
        Ok(Some((node.clone(), instances)))
    }

    /// Writes a node, an instance on it and their checks, together.
    ///
    /// # Errors
    /// If the name or an address belongs to a node with a session, a check's service does not exist, there are too many
    /// nodes, or the store refuses.
    pub async fn catalog_register(&self, entry: &Entry) -> Result<(), Refusal> {
        for _ in 0..TRIES {
            let (conditions, ops) = self.catalog_ops(entry)?;
            if self.write(conditions, ops).await? {
                return Ok(());
            }
            // Another control plane changed it: its write arrives here soon.
            tokio::time::sleep(RETRY / 20).await;
        }
        Err(format!("too many concurrent changes of the node {}", entry.node).into())
    }

    pub(super) fn catalog_ops(&self, entry: &Entry) -> Result<(Vec<Condition>, Vec<Op>), Refusal> {
        let existing = self.catalog_node(&entry.node, &entry.namespace)?;
        let modified = existing.as_ref().map_or(0, |(node, _)| node.modify_index);
        let is_new = existing.is_none();
        let (mut node, mut instances) = match existing {
            Some(existing) => existing,
            None => (self.new_node(entry)?, Vec::new()),
        };
        if let Some(address) = entry.address {
            node.address = address;
        }
        if let Some(meta) = &entry.meta {
            bounds::node_meta(meta.iter())?;
            node.labels.clone_from(meta);
        }
        let mut changed = Vec::new();
        for service in &entry.services {
            let existing = instances.iter().position(|existing| existing.service_id == service.service_id);
            let checks = existing.map(|at| instances.swap_remove(at).checks).unwrap_or_default();
            let address = if service.address.is_empty() { node.address.to_string() } else { service.address.clone() };
            changed.push(service.service_id.clone());
            instances.push(v1::Instance { address, checks, ..service.clone() });
        }
        for check in &entry.checks {
            bounds::check(check)?;
            if check.service_id.is_empty() {
                node.checks.insert(check.check_id.clone(), check.clone());
                bounds::check_count(node.checks.len())?;
                continue;
            }
            let of = instances.iter_mut().find(|existing| existing.service_id == check.service_id);
            let of = of.ok_or_else(|| format!("no service {:?} is on the node {}", check.service_id, entry.node))?;
            of.checks.retain(|existing| existing.check_id != check.check_id);
            of.checks.push(check.clone());
            bounds::check_count(of.checks.len())?;
            changed.push(check.service_id.clone());
        }
        let conditions = vec![Condition::unchanged(Table::Nodes, &entry.node, modified)];
        let mut ops = vec![Op::put(Table::Nodes, &entry.node, stored(&node).encode_to_vec())];
        // A write without a change wakes no waiter.
        if !is_new && self.lock().nodes.get(&entry.node).is_some_and(|existing| stored(existing) == stored(&node)) {
            ops.clear();
        }
        for instance in instances.into_iter().filter(|instance| changed.contains(&instance.service_id)) {
            let stored = stored_of(&entry.node, &node, instance);
            let instance = instance_of(&stored).ok_or("the registration is not complete")?;
            self.has_no_owner(instance.address)?;
            self.lock().outside_cluster(&instance)?;
            let path = registration_key(&instance.key());
            ops.push(Op::put(Table::Registrations, path, stored.encode_to_vec()));
        }
        self.has_no_owner(node.address)?;
        let (state, account) = (self.lock(), account("", &entry.namespace));
        for op in &ops {
            if let Op::Put { table, key, value, .. } = op {
                state.usage.admit(*table, key, &account, value.len())?;
            }
        }
        Ok((conditions, ops))
    }

    fn new_node(&self, entry: &Entry) -> Result<Node, Refusal> {
        if self.lock().nodes.of_catalog() >= MAX_NODES {
            return Err(format!("{MAX_NODES} nodes are in the catalog already").into());
        }
        let address = entry.address.ok_or("Must provide address if SkipNodeUpdate is not set")?;
        let node = Node::new(entry.namespace.as_str(), String::new(), address);
        Ok(Node { workload: entry.node.clone(), catalog: true, ..node })
    }

    /// Whether no sidecar with an identity owns the address.
    fn has_no_owner(&self, address: IpAddr) -> Result<(), Refusal> {
        let state = self.lock();
        let owner = state.nodes.at(address).find(|(_, node)| !node.identity.is_empty());
        match owner {
            Some((name, node)) => Err(format!("the address {address} belongs to {} ({name})", node.identity).into()),
            None => Ok(()),
        }
    }

    /// Removes an object; a missing one is not an error.
    ///
    /// # Errors
    /// As [`Mesh::catalog_node`], or if the store refuses.
    pub async fn catalog_deregister(&self, name: &str, namespace: &str, what: &Removal) -> Result<(), Refusal> {
        for _ in 0..TRIES {
            if *what == Removal::Node {
                // There may be more than fits into one transaction.
                let there = self.catalog_node(name, namespace)?.is_some();
                let gone = if there { self.instances_of(name, |_| true) } else { Vec::new() };
                self.remove(&gone).await?;
            }
            let Some((unchanged, ops)) = self.removal_ops(name, namespace, what)? else { return Ok(()) };
            if self.write(vec![unchanged], ops).await? {
                return Ok(());
            }
            tokio::time::sleep(RETRY / 20).await;
        }
        Err(format!("too many concurrent changes of the node {name}").into())
    }

    /// The operations of a removal; `None`: there is no such node.
    pub(super) fn removal_ops(
        &self,
        name: &str,
        namespace: &str,
        what: &Removal,
    ) -> Result<Option<(Condition, Vec<Op>)>, Refusal> {
        let key = |service_id: &str| {
            let (namespace, node) = (namespace.to_owned(), name.to_owned());
            registration_key(&InstanceKey { namespace, node, service_id: service_id.to_owned() })
        };
        let Some((mut node, instances)) = self.catalog_node(name, namespace)? else { return Ok(None) };
        let mut ops = Vec::new();
        match what {
            Removal::Node => {
                let of_services = instances.iter().map(|i| Op::delete(Table::Registrations, key(&i.service_id)));
                ops.extend(of_services);
                ops.push(Op::delete(Table::Nodes, name));
            }
            Removal::Service(id) => ops.push(Op::delete(Table::Registrations, key(id))),
            Removal::Check(id) => {
                if node.checks.remove(id).is_some() {
                    ops.push(Op::put(Table::Nodes, name, stored(&node).encode_to_vec()));
                }
                for mut instance in instances.into_iter().filter(|i| i.checks.iter().any(|c| c.check_id == *id)) {
                    instance.checks.retain(|check| check.check_id != *id);
                    let path = key(&instance.service_id);
                    let stored = stored_of(name, &node, instance);
                    ops.push(Op::put(Table::Registrations, path, stored.encode_to_vec()));
                }
            }
        }
        Ok(Some((Condition::unchanged(Table::Nodes, name, node.modify_index), ops)))
    }
}
