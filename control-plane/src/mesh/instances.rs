//! Instances: registered, checked, removed.

use std::net::IpAddr;

use prost::Message;
use weft_proto::v1;

use super::stored::{health_of, instance_of, registration_key, stored_of};
use super::{Mesh, unix_now};
use crate::store::{Op, Table};
use crate::world::{Instance, InstanceKey};

impl Mesh {
    /// Registers an instance of `node`, or changes it.
    ///
    /// # Errors
    /// When the address is not the node's, the node has no session, or the store refuses.
    pub async fn register(&self, name: &str, session: u64, registered: v1::Instance) -> Result<(), String> {
        let _writer = self.writer.lock().await;
        let stored = {
            let state = self.lock();
            let node = state.nodes.get(name).filter(|n| n.session == session);
            let node = node.ok_or("this session was superseded by a newer one of the same node")?;
            let mut instance = registered;
            if instance.address.is_empty() {
                instance.address = node.address.to_string();
            }
            let address: IpAddr = instance
                .address
                .parse()
                .map_err(|_| format!("{:?} is not an IP address; register the pod's own", instance.address))?;
            if address.to_canonical() != node.address {
                return Err(format!(
                    "{address} is not an address of this sidecar, whose stream comes from {}",
                    node.address
                ));
            }
            v1::StoredInstance {
                namespace: node.namespace.clone(),
                node: name.to_owned(),
                identity: node.identity.clone(),
                workload: node.workload.clone(),
                locality: node.locality.clone(),
                labels: node.labels.clone().into_iter().collect(),
                instance: Some(instance),
            }
        };
        self.put(stored).await
    }

    async fn put(&self, stored: v1::StoredInstance) -> Result<(), String> {
        let mut instance = instance_of(&stored).ok_or("the registration is not complete")?;
        let op = Op::Put(Table::Registrations, registration_key(&instance.key()), stored.encode_to_vec());
        self.store.commit(vec![op]).await.map_err(|e| format!("{e:#}"))?;
        {
            let mut state = self.lock();
            if let Some(node) = state.nodes.get(&instance.node) {
                instance.health = health_of(&instance.checks, &node.checks);
            }
            let changed = state.world.upsert(instance, unix_now());
            self.publish(&mut state, changed);
        }
        self.keep_virtual_ips().await;
        Ok(())
    }

    /// Changes a check of an instance, or of the node when it names no service.
    ///
    /// # Errors
    /// When there is no such instance, or the store refuses.
    pub async fn update_check(&self, name: &str, session: u64, update: v1::CheckUpdate) -> Result<(), String> {
        let check = update.check.ok_or("no check in the update")?;
        let _writer = self.writer.lock().await;
        if check.service_id.is_empty() {
            let mut state = self.lock();
            let node = state.nodes.get_mut(name).filter(|n| n.session == session).ok_or("no such session")?;
            if update.removed {
                node.checks.remove(&check.check_id);
            } else {
                node.checks.insert(check.check_id.clone(), check);
            }
            let (checks, namespace) = (node.checks.clone(), node.namespace.clone());
            let instances: Vec<Instance> =
                state.world.instances_of_node(&namespace, name).map(|i| (**i).clone()).collect();
            for mut instance in instances {
                instance.health = health_of(&instance.checks, &checks);
                let changed = state.world.upsert(instance, unix_now());
                self.publish(&mut state, changed);
            }
            return Ok(());
        }
        let stored = {
            let state = self.lock();
            let node = state.nodes.get(name).filter(|n| n.session == session).ok_or("no such session")?;
            let key = InstanceKey {
                namespace: node.namespace.clone(),
                node: name.to_owned(),
                service_id: check.service_id.clone(),
            };
            let instance = state.world.instance(&key).ok_or_else(|| format!("no service {:?}", check.service_id))?;
            let mut stored = stored_of(instance, node);
            if let Some(instance) = &mut stored.instance {
                instance.checks.retain(|c| c.check_id != check.check_id);
                if !update.removed {
                    instance.checks.push(check);
                }
            }
            stored
        };
        self.put(stored).await
    }

    /// Removes an instance of `node`, or all of them when `service_id` is empty; returns the hosts they were of.
    ///
    /// # Errors
    /// When there is none of that id, or the store refuses.
    pub async fn deregister(&self, name: &str, service_id: &str) -> Result<Vec<String>, String> {
        let _writer = self.writer.lock().await;
        let gone = self.registered_by(name, |id| service_id.is_empty() || id == service_id);
        if gone.is_empty() && !service_id.is_empty() {
            return Err(format!("no service {service_id:?} is registered here"));
        }
        self.remove(&gone).await?;
        Ok(gone.into_iter().map(|(_, host)| host).collect())
    }

    /// Removes what `name` registered in an earlier session and not in this one.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn keep_only(&self, name: &str, service_ids: &[String]) -> Result<(), String> {
        let _writer = self.writer.lock().await;
        let gone = self.registered_by(name, |id| !service_ids.iter().any(|kept| kept == id));
        self.remove(&gone).await
    }

    /// Of what the sidecar `name` registered those whose ids `wanted` picks, with their hosts.
    fn registered_by(&self, name: &str, wanted: impl Fn(&str) -> bool) -> Vec<(InstanceKey, String)> {
        let state = self.lock();
        let Some(node) = state.nodes.get(name) else { return Vec::new() };
        let ours = state.world.instances_of_node(&node.namespace, name).filter(|i| wanted(&i.service_id));
        ours.map(|i| (i.key(), i.host())).collect()
    }

    async fn remove(&self, gone: &[(InstanceKey, String)]) -> Result<(), String> {
        if gone.is_empty() {
            return Ok(());
        }
        let ops = gone.iter().map(|(key, _)| Op::Delete(Table::Registrations, registration_key(key))).collect();
        self.store.commit(ops).await.map_err(|e| format!("{e:#}"))?;
        {
            let mut state = self.lock();
            for (key, _) in gone {
                let changed = state.world.remove(key, unix_now());
                self.publish(&mut state, changed);
            }
        }
        self.keep_virtual_ips().await;
        Ok(())
    }
}
