//! The snapshot that readers of the directory see.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use weft_core::endpoint::{Address, EndpointConfig, resolved};
use weft_core::inbound::Inbound;
use weft_core::policy;
use weft_core::service::Service;

use super::super::{Entry, Name, ServiceView, Snapshot};
use super::{Cached, Writer};
use crate::upstream::cluster::ClusterView;
use crate::upstream::resolution::Addresses;

type Clusters = HashMap<Arc<str>, Arc<ClusterView>>;

impl Writer {
    /// The known addresses of the endpoints that are names; resolution of new names begins.
    fn addresses(&mut self) -> Addresses {
        let Some(resolution) = &mut self.resolution else { return Addresses::default() };
        let names =
            self.endpoints.values().flat_map(|held| &held.compiled).filter_map(|endpoint| match &endpoint.address {
                Address::EachOf(name) => Some(name.clone()),
                _ => None,
            });
        resolution.want(names.collect());
        resolution.known()
    }

    /// Makes a new snapshot, which shares with the last one what did not change, and wakes the look-ups whose answer is
    /// complete.
    pub(super) fn publish(&mut self) {
        let old = self.directory.snapshot.load_full();
        let now = self.directory.start.elapsed().as_secs();
        let addresses = self.addresses();
        let (clusters, views) = self.views(&old, &addresses);
        let mut names = HashMap::with_capacity(self.wanted.len());
        let mut answered = Vec::new();
        for (name, wanted) in &mut self.wanted {
            let meaning = match &wanted.host {
                None => continue,
                Some(None) => Name::Absent,
                Some(Some(host)) => match views.get(host) {
                    Some(view) => Name::Service(view.clone()),
                    None => continue,
                },
            };
            answered.append(&mut wanted.waiters);
            let used = old.names.get(name).map_or(now, |e| e.used.load(Ordering::Relaxed));
            names.insert(name.clone(), Arc::new(Entry { name: meaning, used: AtomicU64::new(used) }));
        }
        self.views = views;
        let inbound = self.inbound.as_ref().map(|held| held.compiled.clone());
        self.directory.snapshot.store(Arc::new(Snapshot { names, clusters, inbound: inbound.clone() }));
        // Only now: woken look-ups read the snapshot at once.
        drop(answered);
        self.announce(inbound);
    }

    /// Clusters and services of a new snapshot.
    fn views(&self, old: &Snapshot, addresses: &Addresses) -> (Clusters, HashMap<String, Arc<ServiceView>>) {
        let mut clusters = Clusters::new();
        let mut views = HashMap::new();
        for (host, held) in &self.services {
            let complete = held.compiled.clusters.iter().all(|c| {
                !c.has_endpoints() || self.endpoints.contains_key(&*c.host) || self.no_endpoints.contains(&*c.host)
            });
            if complete {
                views.insert(host.clone(), self.view(host, held, old, addresses, &mut clusters));
            } else if let Some(view) = self.views.get(host) {
                // An older view serves on until the new one is whole.
                clusters.extend(view.clusters.iter().map(|c| (c.config.name.clone(), c.clone())));
                views.insert(host.clone(), view.clone());
            }
        }
        (clusters, views)
    }

    fn view(
        &self,
        host: &str,
        held: &Cached<Arc<Service>>,
        old: &Snapshot,
        addresses: &Addresses,
        clusters: &mut Clusters,
    ) -> Arc<ServiceView> {
        let of_service = held.compiled.clusters.iter().map(|config| {
            if let Some(known) = clusters.get(&config.name) {
                return known.clone();
            }
            let endpoints = self.endpoints.get(&*config.host).map(|h| h.compiled.as_slice()).unwrap_or_default();
            let endpoints = &*resolved(endpoints, addresses);
            let previous = old.clusters.get(&config.name);
            let cluster = match previous {
                Some(p) if p.is_at(&self.location) && *p.config == **config && same_endpoints(p, config, endpoints) => {
                    p.clone()
                }
                _ => {
                    let (location, previous) = (&self.location, previous.map(AsRef::as_ref));
                    Arc::new(ClusterView::new(config.clone(), endpoints, location, previous))
                }
            };
            clusters.insert(config.name.clone(), cluster.clone());
            cluster
        });
        let of_service: Vec<Arc<ClusterView>> = of_service.collect();
        let unchanged = self.views.get(host).filter(|v| {
            Arc::ptr_eq(&v.service, &held.compiled)
                && v.clusters.len() == of_service.len()
                && v.clusters.iter().zip(&of_service).all(|(a, b)| Arc::ptr_eq(a, b))
        });
        let new = || Arc::new(ServiceView { service: held.compiled.clone(), clusters: of_service });
        unchanged.cloned().unwrap_or_else(new)
    }

    /// Publishes the inbound policy, where it changed.
    fn announce(&self, inbound: Option<Arc<Inbound>>) {
        let ready = inbound.is_some();
        self.directory.inbound.send_if_modified(|before| {
            let same = match (&*before, &inbound) {
                (Some(before), Some(inbound)) => Arc::ptr_eq(before, inbound),
                (before, inbound) => before.is_none() && inbound.is_none(),
            };
            *before = inbound;
            !same
        });
        self.directory.ready.send_if_modified(|before| std::mem::replace(before, ready) != ready);
    }
}

/// Whether a cluster's endpoints would come out as they are.
fn same_endpoints(view: &ClusterView, config: &policy::Cluster, endpoints: &[Arc<EndpointConfig>]) -> bool {
    let new = weft_core::endpoint::for_cluster(config, endpoints, &view.endpoints);
    new.len() == view.endpoints.len() && new.iter().zip(&view.endpoints).all(|(a, b)| Arc::ptr_eq(a, b))
}
