//! Everything the control plane knows, in memory: policies, instances, and the indexes between them.
//!
//! Pure: no clock, no store, no socket. One writer applies changes and learns from [`Changed`] which hosts to translate
//! anew; readers clone an `Arc<World>` or borrow. Time is an argument (Unix seconds).

mod instance;
mod virtual_ip;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

pub use instance::{Instance, InstanceKey, derive_labels};
pub use virtual_ip::{Allocation, QUARANTINE_S, VirtualIps};

use crate::policy::{Document, Kind};

/// What a change touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Canonical hosts whose `Service`, `Endpoints` or instances' `Inbound` may differ now.
    pub hosts: BTreeSet<String>,
    /// Everything may differ.
    pub all: bool,
    /// A host came or went: a name may resolve otherwise than before.
    pub names: bool,
}

/// A host that the mesh knows.
#[derive(Clone, Debug)]
pub struct Host {
    /// Canonical name.
    pub name: String,
    /// Namespace of the service or document.
    pub namespace: String,
    /// Kubernetes Service that names its ports.
    pub service: Option<Arc<Document>>,
    /// ServiceEntry that defines it.
    pub entry: Option<Arc<Document>>,
}

/// The state.
#[derive(Clone, Debug, Default)]
pub struct World {
    version: u64,
    policies: BTreeMap<(Kind, String, String), Arc<Document>>,
}

/// "<service>.<namespace>.svc.cluster.local".
pub fn fqdn(service: &str, namespace: &str) -> String {
    format!("{service}.{namespace}.svc.cluster.local").to_ascii_lowercase()
}

impl World {
    /// An empty world. `trust_domain` is that of the identities of WorkloadEntries.
    pub fn new(trust_domain: &str) -> Self {
        let _ = trust_domain;
        Self::default()
    }

    /// Grows with every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Replaces all policies by `documents`.
    pub fn set_policies(&mut self, documents: Vec<Arc<Document>>, now: u64) -> Changed {
        let _ = now;
        self.policies = documents.into_iter().map(|document| (document.key(), document)).collect();
        Changed::default()
    }

    /// All policies, by kind, namespace and name.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Document>> {
        self.policies.values()
    }

    /// One policy.
    pub fn policy(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Arc<Document>> {
        self.policies.get(&(kind, namespace.to_owned(), name.to_owned()))
    }

    /// Adds or replaces an instance.
    pub fn upsert(&mut self, instance: Instance, now: u64) -> Changed {
        let _ = (instance, now);
        Changed::default()
    }

    /// Removes an instance.
    pub fn remove(&mut self, key: &InstanceKey, now: u64) -> Changed {
        let _ = (key, now);
        Changed::default()
    }

    /// One instance.
    pub fn instance(&self, key: &InstanceKey) -> Option<&Arc<Instance>> {
        let _ = key;
        None
    }

    /// All instances.
    pub fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        std::iter::empty()
    }

    /// Instances registered as `service` in `namespace`.
    pub fn service_instances(&self, namespace: &str, service: &str) -> impl Iterator<Item = &Arc<Instance>> {
        let _ = (namespace, service);
        std::iter::empty()
    }

    /// Instances at an address, whatever the port.
    pub fn at_address(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Instance>> {
        let _ = address;
        std::iter::empty()
    }

    /// World version of the last change of a service's instances (Consul's index): never goes back, not even when the
    /// service is gone.
    pub fn service_index(&self, namespace: &str, service: &str) -> u64 {
        let _ = (namespace, service);
        0
    }

    /// World version of the last change of any instance.
    pub fn catalog_index(&self) -> u64 {
        self.version
    }

    /// A host by its canonical name.
    pub fn host(&self, host: &str) -> Option<&Host> {
        let _ = host;
        None
    }

    /// Virtual IPs: read to be kept in the store.
    pub fn virtual_ips(&self) -> Option<&VirtualIps> {
        None
    }

    /// Takes up the allocations that the store kept. To be called before anything else.
    pub fn restore_virtual_ips(&mut self, kept: impl IntoIterator<Item = (String, Allocation)>) {
        let _ = kept.into_iter().count();
    }
}
