//! The definitions of a host: the service itself, and the ServiceEntries of each namespace. The namespace of a client
//! decides which of them it has.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Changed, Host, MESH_SUFFIX, Scope, World};
use weft_policy::{Document, Export, Object, Resolution};

impl World {
    /// All definitions of `host` (canonical): the first is the service's, else that of the oldest ServiceEntry.
    pub fn definitions(&self, host: &str) -> impl Iterator<Item = &Host> {
        self.hosts.get(host).into_iter().chain(self.others.get(host).into_iter().flatten())
    }

    /// The definition of `host` (canonical) for a client: of those that are exported to its namespace (and, if its
    /// Sidecar imports any, of those) its own namespace's, else the first, as in Istio. `None`: there is none for it.
    /// [`World::sees`] decides whether it can reach the host at all.
    pub fn definition(&self, client: &Scope, host: &str) -> Option<&Host> {
        if !self.others.contains_key(host) {
            return self.hosts.get(host).filter(|host| host.reaches(&client.namespace));
        }
        let sidecar = self.policies().sidecar(&client.namespace, &client.labels);
        let imported = |host: &Host| {
            sidecar.is_none_or(|(own, sidecar)| sidecar.imports(&own.namespace, &host.namespace, &host.name, None))
        };
        let rank = |host: &&Host| (!imported(host), !host.live, host.namespace != client.namespace);
        self.definitions(host).filter(|host| host.reaches(&client.namespace)).min_by_key(rank)
    }

    /// As [`World::definition`], else that of the longest wildcard that covers `host` and is offered: a wildcard that
    /// only a VirtualService names leads nowhere by itself.
    pub fn definition_or_wildcard(&self, client: &Scope, host: &str) -> Option<&Host> {
        self.policies.patterns(host).find_map(|pattern| {
            let found = self.definition(client, &pattern)?;
            (!found.name.starts_with('*') || found.is_offered(self)).then_some(found)
        })
    }

    /// Updates the definitions of `host`. Returns whether one of them was added, removed or changed its liveness.
    pub(super) fn refresh(&mut self, host: &str, now: u64) -> bool {
        let before = self.shape(host);
        let service = self.policies.service(host).cloned();
        let member = self.members.get(host).and_then(|keys| keys.first());
        let imported = self.imported_namespace(host).map(str::to_owned);
        let known = self.hosts.get(host).filter(|known| known.registered);
        let registered = member.is_some() || known.is_some();
        // The service besides the documents.
        let of_service = member
            .map(|key| key.namespace.as_str())
            .or(service.as_ref().map(|document| document.namespace.as_str()))
            .or(imported.as_deref())
            .or(known.map(|known| known.namespace.as_str()))
            .map(str::to_owned);
        let mut by_namespace: Vec<Vec<Arc<Document>>> = Vec::new();
        for entry in self.policies.entries(host) {
            match by_namespace.iter_mut().find(|of| of.first().is_some_and(|one| one.namespace == entry.namespace)) {
                Some(of) => of.push(entry.clone()),
                None => by_namespace.push(vec![entry.clone()]),
            }
        }
        let own = by_namespace.iter().position(|entries| match (&of_service, entries.first()) {
            (Some(namespace), Some(entry)) => entry.namespace == *namespace,
            _ => of_service.is_none(),
        });
        let own = own.map(|at| by_namespace.remove(at)).unwrap_or_default();
        let routed = self.policies.routed(host);
        let namespace = of_service.or(own.first().map(|entry| entry.namespace.clone()));
        let namespace = namespace.or(routed.map(str::to_owned)).unwrap_or_else(|| "default".to_owned());
        let offered = service.is_some() || !own.is_empty() || member.is_some() || imported.is_some();
        let live = offered || routed.is_some() && by_namespace.is_empty();
        if !live && !registered {
            self.hosts.remove(host);
            self.others.remove(host);
            self.virtual_ips.release(host, now);
            return before != self.shape(host);
        }
        let name = host.to_owned();
        let kube = service.as_ref().and_then(|document| match &document.object {
            Object::Service(service) => Some(service),
            _ => None,
        });
        // Clients of a headless Service connect to its endpoints, those of an alias to another host, and those of a cluster's
        // Service to its cluster IP.
        let addressless = kube.is_some_and(|service| {
            service.headless || service.alias.is_some() || service.is_of_cluster && service.cluster_ip.is_some()
        });
        let virtual_ip = live
            && !addressless
            && (needs_virtual_ip(host, own.first()) || service.is_some() || member.is_some() || imported.is_some());
        let export = self.export_of(service.as_deref(), own.first(), registered, imported.is_some());
        let others: Vec<Host> = by_namespace.into_iter().filter_map(|entries| self.of_entries(host, entries)).collect();
        if virtual_ip || others.iter().any(|other| other.virtual_ip) {
            self.virtual_ips.allocate(host);
        } else {
            self.virtual_ips.release(host, now);
        }
        let mut own = own.into_iter();
        let (entry, more_entries) = (own.next(), own.collect());
        let first = Host { name, namespace, service, entry, more_entries, export, registered, live, virtual_ip };
        self.hosts.insert(host.to_owned(), first);
        match others.is_empty() {
            true => drop(self.others.remove(host)),
            false => drop(self.others.insert(host.to_owned(), others)),
        }
        before != self.shape(host)
    }

    /// As [`World::refresh`], and adds the names that may resolve otherwise to `changed`.
    pub(super) fn refresh_named(&mut self, host: &str, now: u64, changed: &mut Changed) {
        let addresses = |world: &World| -> Vec<IpAddr> {
            world.definitions(host).flat_map(|one| world.addresses_of(one)).collect()
        };
        let before = addresses(self);
        if self.refresh(host, now) {
            self.rename(host, changed);
            changed.addresses.extend(before.into_iter().chain(addresses(self)));
        }
    }

    /// Records in `changed` that names may have begun or ceased to stand for `host`.
    pub(super) fn rename(&self, host: &str, changed: &mut Changed) {
        // Any name may end like a wildcard.
        changed.names |= host.starts_with('*');
        changed.renamed.extend(self.policies.aliases_of(host));
        changed.renamed.insert(host.to_owned());
    }

    /// The properties of a host's definitions that decide which clients can resolve its name.
    fn shape(&self, host: &str) -> Vec<(String, bool, Export)> {
        self.definitions(host).map(|one| (one.namespace.clone(), one.live, one.export.clone())).collect()
    }

    /// A host as the ServiceEntries of one namespace define it.
    fn of_entries(&self, host: &str, entries: Vec<Arc<Document>>) -> Option<Host> {
        let mut entries = entries.into_iter();
        let first = entries.next()?;
        Some(Host {
            name: host.to_owned(),
            namespace: first.namespace.clone(),
            service: None,
            export: self.export_of(None, Some(&first), false, false),
            registered: false,
            live: true,
            virtual_ip: needs_virtual_ip(host, Some(&first)),
            entry: Some(first),
            more_entries: entries.collect(),
        })
    }

    fn export_of(
        &self,
        service: Option<&Document>,
        entry: Option<&Arc<Document>>,
        registered: bool,
        imported: bool,
    ) -> Export {
        let own = |document: Option<&Document>| document.and_then(|own| own.object.export().cloned());
        match own(service) {
            Some(export) => export,
            None if registered => self.default_export(),
            None => match own(entry.map(|entry| &**entry)) {
                Some(export) => export,
                None if imported => self.default_export(),
                // A host that only a route names.
                None => Export::default(),
            },
        }
    }

    /// The namespaces that see a service whose documents have no `exportTo`.
    pub(super) fn default_export(&self) -> Export {
        self.policies.mesh().map(|(_, mesh)| mesh.service_export.clone()).unwrap_or_default()
    }
}

/// Whether a host without a service needs a virtual IP. One outside the mesh's suffix that only a VirtualService names
/// keeps its real address.
fn needs_virtual_ip(host: &str, entry: Option<&Arc<Document>>) -> bool {
    match entry.map(|document| &document.object) {
        Some(Object::ServiceEntry(entry)) => {
            entry.addresses.is_empty() && entry.resolution != Resolution::None && !host.starts_with('*')
        }
        _ => host.ends_with(MESH_SUFFIX) && !host.starts_with('*'),
    }
}
