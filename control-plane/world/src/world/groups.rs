//! Sidecars that join by a WorkloadGroup: each is a workload entry of its own address for as long as it is registered.
//!
//! Membership is decided here whenever the sidecar or the group changes, not at registration: the group may be applied
//! later, or get another service account.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_core::identity::SpiffeId;
use weft_proto::v1;

use super::{Changed, Instance, InstanceKey, World, has_all};
use weft_policy::{Kind, Object, ServiceEntry, WorkloadEntry};

/// A sidecar that joins by a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Its registration.
    pub instance: Arc<Instance>,
    /// Its membership, or the reason for having none.
    pub joined: Result<Membership, String>,
}

/// The workload entry of a sidecar.
#[derive(Clone, Debug, PartialEq)]
pub struct Membership {
    /// `<group>-<address>`, as Istio names it.
    pub name: String,
    /// The group's template with the sidecar's address, labels and locality.
    pub entry: WorkloadEntry,
    /// The health check that the sidecar has to run.
    pub probe: Option<v1::Probe>,
}

impl Member {
    /// With a probe it is healthy once the probe has succeeded.
    pub fn health(&self) -> v1::Health {
        match &self.joined {
            Ok(Membership { probe: Some(_), .. }) if self.instance.checks.is_empty() => v1::Health::Unhealthy,
            _ => self.instance.health(),
        }
    }
}

/// An endpoint of a ServiceEntry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload<'a> {
    /// Name of the WorkloadEntry; empty: it is part of the ServiceEntry.
    pub(crate) name: &'a str,
    pub(crate) entry: &'a WorkloadEntry,
    /// The sidecar that joined as this entry.
    pub(crate) member: Option<&'a Member>,
}

/// The key for changes of a group's sidecars: no valid host looks like it.
fn change_key(namespace: &str, group: &str) -> String {
    format!("workload-group:{namespace}:{group}")
}

/// Marks the members of a group as changed.
pub(super) fn mark_changed(namespace: &str, group: &str, changed: &mut Changed) {
    changed.hosts.insert(change_key(namespace, group));
}

impl World {
    /// All sidecars that join by groups, members or not.
    pub fn group_members(&self) -> impl Iterator<Item = &Member> {
        self.groups.values()
    }

    /// One of them.
    pub fn group_member(&self, key: &InstanceKey) -> Option<&Member> {
        self.groups.get(key)
    }

    /// Labels of the workload of an instance.
    pub fn labels_of<'a>(&'a self, instance: &'a Instance) -> &'a BTreeMap<String, String> {
        let joined = self.joined(instance).map(|joined| &joined.entry.labels);
        joined.unwrap_or(&instance.labels)
    }

    /// Hosts that an instance is an endpoint of by itself: its service's, or those that select its workload entry.
    pub fn hosts_of(&self, instance: &Instance) -> Vec<String> {
        if instance.group.is_empty() {
            return vec![instance.host()];
        }
        let labels = self.joined(instance).map(|joined| &joined.entry.labels);
        let of = |labels| self.policies.hosts_selecting(&instance.namespace, labels).into_iter().cloned().collect();
        labels.map(of).unwrap_or_default()
    }

    /// Hosts whose changes concern the sidecar of an instance: those that it serves, and the key of its group.
    pub fn concerning(&self, instance: &Instance) -> BTreeSet<String> {
        let mut hosts: BTreeSet<String> = self.hosts_of(instance).into_iter().collect();
        if instance.group.is_empty() {
            hosts.extend(self.policies.selecting(&instance.namespace, &instance.labels).map(str::to_owned));
        } else {
            hosts.insert(change_key(&instance.namespace, &instance.group));
        }
        hosts
    }

    /// The workload entry of a sidecar that joins by a group.
    pub(super) fn joined(&self, instance: &Instance) -> Option<&Membership> {
        (!instance.group.is_empty()).then(|| self.groups.get(&instance.key())?.joined.as_ref().ok()).flatten()
    }

    /// A ServiceEntry's endpoints: its own, or the WorkloadEntries of its namespace that it selects and the sidecars
    /// there that have joined as such.
    pub(crate) fn workloads<'a>(
        &'a self,
        namespace: &'a str,
        entry: &'a ServiceEntry,
    ) -> impl Iterator<Item = Workload<'a>> {
        let written = self.policies.entry_endpoints(namespace, entry);
        let first = InstanceKey { namespace: namespace.to_owned(), node: String::new(), service_id: String::new() };
        let members = self.groups.range(first..).take_while(move |(key, _)| key.namespace == namespace);
        let members = members.map(|(_, member)| member);
        let selected = entry.workload_selector.iter().flat_map(move |selector| {
            members.clone().filter_map(move |member| {
                let joined = member.joined.as_ref().ok().filter(|joined| has_all(&joined.entry.labels, selector))?;
                Some(Workload { name: &joined.name, entry: &joined.entry, member: Some(member) })
            })
        });
        written.map(|(name, entry)| Workload { name, entry, member: None }).chain(selected)
    }

    /// Updates all memberships.
    pub(super) fn look_at_members(&mut self, changed: &mut Changed) {
        let keys: Vec<InstanceKey> = self.groups.keys().cloned().collect();
        keys.iter().for_each(|key| self.look_at_member(key, changed));
    }

    /// Updates one membership, if the instance is or was a group's.
    pub(super) fn look_at_member(&mut self, key: &InstanceKey, changed: &mut Changed) {
        let instance = self.instances.get(key).filter(|instance| !instance.group.is_empty());
        let new = instance.map(|instance| Member { instance: instance.clone(), joined: self.join(instance) });
        let old = match &new {
            Some(new) => self.groups.insert(key.clone(), new.clone()),
            None => self.groups.remove(key),
        };
        if old == new {
            return;
        }
        for Member { instance, joined } in old.iter().chain(&new) {
            mark_changed(&instance.namespace, &instance.group, changed);
            changed.addresses.insert(instance.address);
            // The owner of this address may have changed for other workloads.
            changed.hosts.extend(self.policies.hosts_at(instance.address).cloned());
            if let Ok(joined) = joined {
                let hosts = self.policies.hosts_selecting(&instance.namespace, &joined.entry.labels);
                changed.hosts.extend(hosts.into_iter().cloned());
            }
        }
    }

    /// The entry of a sidecar in its group, or the reason why it has none.
    fn join(&self, instance: &Instance) -> Result<Membership, String> {
        let (namespace, group) = (&instance.namespace, &instance.group);
        let document = self.document(Kind::WorkloadGroup, namespace, group);
        let Some(Object::WorkloadGroup(found)) = document.map(|document| &document.object) else {
            return Err(format!("there is no WorkloadGroup {namespace}/{group} yet"));
        };
        let wanted = &found.template.service_account;
        let own: Option<SpiffeId> = instance.identity.parse().ok();
        let own = own.as_ref().map_or("", SpiffeId::service_account);
        if own != wanted {
            return Err(format!(
                "WorkloadGroup {namespace}/{group} is for the service account `{wanted}` (template.serviceAccount), and \
                 the sidecar's is `{own}`"
            ));
        }
        let mut entry = found.template.clone();
        entry.address = instance.address.to_string();
        // Labels of the sidecar itself are more specific than the group's.
        entry.labels.extend(instance.labels.clone());
        if !instance.locality.is_empty() {
            entry.locality.clone_from(&instance.locality);
        }
        Ok(Membership { name: format!("{group}-{}", entry.address), entry, probe: found.probe.clone() })
    }
}

#[cfg(test)]
mod tests;
