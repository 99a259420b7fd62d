//! Instances: registration, checks, removal.

use std::net::IpAddr;

use prost::Message;
use weft_proto::v1;

use super::records::{instance_of, registration_key, stored_of, wire as wire_of};
use super::sessions::stored;
use super::usage::account;
use super::{Mesh, Node, RETRY, Refusal, State};
use crate::identity::bounds;
use crate::store::{self, Condition, MAX_OPS, Op, Table};
use weft_world::{Instance, InstanceKey, Origin};

/// Attempts of a change that conflicts with others.
const TRIES: usize = 10;

/// Whether a registration changes nothing.
fn is_same(existing: &Instance, new: &Instance) -> bool {
    let new = Instance {
        health: existing.health,
        create_index: existing.create_index,
        modify_index: existing.modify_index,
        ..new.clone()
    };
    *existing == new
}

impl State {
    /// The node, if this is its session.
    fn node_of(&self, name: &str, session: u64) -> Result<&Node, Refusal> {
        let ours = self.sessions.get(name).is_some_and(|held| held.session == session);
        self.nodes.get(name).filter(|_| ours).ok_or(Refusal::SessionOver)
    }

    /// Assigns an address and port to an instance of the node `name`, whose sidecar is connected here. A disconnected
    /// node does not prevent its successor.
    ///
    /// # Errors
    /// If another connected sidecar has an instance there.
    fn take_port(&mut self, address: IpAddr, port: u32, name: &str) -> Result<(), String> {
        let at = match u16::try_from(port) {
            Ok(port @ 1..) => (address, port),
            _ => return Ok(()),
        };
        // A program without a sidecar has no identity, and several may claim the same address.
        let is_sidecar = |node: &str| self.nodes.get(node).is_some_and(|node| !node.identity.is_empty());
        if !is_sidecar(name) {
            return Ok(());
        }
        if let Some(other) = self.ports.get(&at).filter(|other| *other != name)
            && self.sessions.get(other).is_some_and(|held| held.connected)
            && let Some(node) = self.nodes.get(other)
            && let mut instances = self.world.registered_of_node(&node.namespace, other)
            && let Some(held) = instances.find(|held| held.address == at.0 && held.port == at.1)
        {
            return Err(format!(
                "{address}:{port} is registered by the node {other} (service {:?}), which is connected: two pods that come \
                 from one address need different ports, or addresses of their own",
                held.service
            ));
        }
        if let Some(held) = self.sessions.get_mut(name) {
            held.ports.insert(at);
            self.ports.insert(at, name.to_owned());
        }
        Ok(())
    }
}

impl State {
    /// # Errors
    /// If an instance stands for a Service of the Kubernetes cluster, whose endpoints are its pods.
    pub(super) fn outside_cluster(&self, instance: &Instance) -> Result<(), Refusal> {
        let held = self.world.instance(&instance.key());
        if self.world.is_of_cluster(&instance.host()) || held.is_some_and(|held| held.origin != Origin::Registry) {
            let text = format!(
                "{}.{} is a Service of the Kubernetes cluster, and its endpoints are pods: register another name",
                instance.service, instance.namespace
            );
            return Err(text.into());
        }
        Ok(())
    }
}

impl Mesh {
    /// Registers an instance of `node`, or changes it.
    ///
    /// # Errors
    /// If the address is not the node's, the node has no session, or the store refuses.
    pub async fn register(&self, name: &str, session: u64, mut instance: v1::Instance) -> Result<(), Refusal> {
        let stored = {
            let mut state = self.lock();
            let own = state.node_of(name, session)?.address;
            if instance.address.is_empty() {
                instance.address = own.to_string();
            }
            let address: IpAddr = instance
                .address
                .parse()
                .map_err(|_| format!("{:?} is not an IP address; register the pod's own", instance.address))?;
            if address.to_canonical() != own {
                let text = format!("{address} is not an address of this sidecar, whose stream comes from {own}");
                return Err(text.into());
            }
            state.take_port(own, instance.port, name)?;
            let node = state.node_of(name, session)?;
            if !instance.group.is_empty() && instance.checks.is_empty() {
                // A restarted sidecar keeps its health until its probe has a result.
                let (namespace, node) = (node.namespace.clone(), name.to_owned());
                let key = InstanceKey { namespace, node, service_id: instance.service_id.clone() };
                let held = state.world.instance(&key).filter(|held| held.group == instance.group);
                instance.checks = held.map(|held| held.checks.clone()).unwrap_or_default();
            }
            stored_of(name, node, instance)
        };
        let instance = instance_of(&stored).ok_or("the registration is not complete")?;
        self.lock().outside_cluster(&instance)?;
        // Many clients register repeatedly: a registration without a change wakes no waiter.
        if self.lock().world.instance(&instance.key()).is_some_and(|held| is_same(held, &instance)) {
            return Ok(());
        }
        let (path, record) = (registration_key(&instance.key()), stored.encode_to_vec());
        let account = account(&stored.identity, &stored.namespace);
        self.lock().usage.admit(Table::Registrations, &path, &account, record.len())?;
        self.write(Vec::new(), vec![Op::put(Table::Registrations, path, record)]).await?;
        Ok(())
    }

    /// Changes a check of an instance, or of the node if it names no service.
    ///
    /// # Errors
    /// If there is no such instance or session, or the store refuses.
    pub async fn update_check(&self, name: &str, session: u64, update: v1::CheckUpdate) -> Result<(), Refusal> {
        let check = update.check.ok_or("no check in the update")?;
        for _ in 0..TRIES {
            let (condition, op) = {
                let state = self.lock();
                let node = state.node_of(name, session)?;
                if check.service_id.is_empty() {
                    let mut node = node.clone();
                    if node.checks.get(&check.check_id) == Some(&check).filter(|_| !update.removed) {
                        return Ok(());
                    }
                    if update.removed {
                        node.checks.remove(&check.check_id);
                    } else {
                        node.checks.insert(check.check_id.clone(), check.clone());
                        bounds::check_count(node.checks.len())?;
                    }
                    let condition = Condition::unchanged(Table::Nodes, name, node.modify_index);
                    let record = stored(&node).encode_to_vec();
                    let account = account(&node.identity, &node.namespace);
                    state.usage.admit(Table::Nodes, name, &account, record.len())?;
                    (condition, Op::put(Table::Nodes, name, record))
                } else {
                    let key = InstanceKey {
                        namespace: node.namespace.clone(),
                        node: name.to_owned(),
                        service_id: check.service_id.clone(),
                    };
                    let unknown = || format!("no service {:?}", check.service_id);
                    let instance = state.world.instance(&key).filter(|held| held.origin == Origin::Registry);
                    let instance = instance.ok_or_else(unknown)?;
                    let mut wire = wire_of(instance);
                    wire.checks.retain(|c| c.check_id != check.check_id);
                    if !update.removed {
                        wire.checks.push(check.clone());
                        bounds::check_count(wire.checks.len())?;
                    }
                    if wire == wire_of(instance) {
                        return Ok(());
                    }
                    let path = registration_key(&key);
                    let condition = Condition::unchanged(Table::Registrations, path.clone(), instance.modify_index);
                    let record = stored_of(name, node, wire).encode_to_vec();
                    let account = account(&node.identity, &node.namespace);
                    state.usage.admit(Table::Registrations, &path, &account, record.len())?;
                    (condition, Op::put(Table::Registrations, path, record))
                }
            };
            if self.write(vec![condition], vec![op]).await? {
                return Ok(());
            }
            // Another control plane changed it: its write arrives here soon.
            tokio::time::sleep(RETRY / 20).await;
        }
        Err("too many concurrent changes of the instance".into())
    }

    /// Removes an instance of `node`, or all of them if `service_id` is empty; returns their hosts.
    ///
    /// # Errors
    /// If there is none of that id, the session was superseded, or the store refuses.
    pub async fn deregister(&self, name: &str, session: u64, service_id: &str) -> Result<Vec<String>, Refusal> {
        self.lock().node_of(name, session)?;
        let gone = self.instances_of(name, |id| service_id.is_empty() || id == service_id);
        if gone.is_empty() && !service_id.is_empty() {
            return Err(format!("no service {service_id:?} is registered here").into());
        }
        self.remove(&gone).await?;
        Ok(gone.into_iter().flat_map(|(_, hosts)| hosts).collect())
    }

    /// Removes the registrations of earlier sessions of `name` that this one did not repeat.
    ///
    /// # Errors
    /// If the session was superseded, or the store refuses.
    pub async fn keep_only(&self, name: &str, session: u64, service_ids: &[String]) -> Result<(), Refusal> {
        self.lock().node_of(name, session)?;
        let gone = self.instances_of(name, |id| !service_ids.iter().any(|kept| kept == id));
        Ok(self.remove(&gone).await?)
    }

    /// The registrations of the sidecar `name` whose ids `wanted` selects, with their hosts.
    pub(super) fn instances_of(&self, name: &str, wanted: impl Fn(&str) -> bool) -> Vec<(InstanceKey, Vec<String>)> {
        let state = self.lock();
        let Some(node) = state.nodes.get(name) else { return Vec::new() };
        let ours = state.world.registered_of_node(&node.namespace, name).filter(|i| wanted(&i.service_id));
        ours.map(|i| (i.key(), state.world.hosts_of(i))).collect()
    }

    pub(super) async fn remove(&self, gone: &[(InstanceKey, Vec<String>)]) -> Result<(), store::Error> {
        for gone in gone.chunks(MAX_OPS) {
            let ops = gone.iter().map(|(key, _)| Op::delete(Table::Registrations, registration_key(key))).collect();
            self.write(Vec::new(), ops).await?;
        }
        Ok(())
    }
}
