//! Replaces a few policies at the cost of those alone. The rest of the world stays as it is.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::{Changed, World, policies};
use weft_policy::{Action, Document, Object, mesh_config};

/// Up to this many changed policies, and a quarter of all, are replaced one by one; beyond that everything is rebuilt.
const MANY: usize = 16;

impl World {
    /// Replaces a few rules and routes; `None`: the changed documents are of other kinds.
    pub(super) fn replace_policies(&mut self, documents: &[Arc<Document>], now: u64) -> Option<Changed> {
        let old: HashSet<*const Document> = self.documents.values().map(Arc::as_ptr).collect();
        let new: HashSet<*const Document> = documents.iter().map(Arc::as_ptr).collect();
        let came: Vec<&Arc<Document>> = documents.iter().filter(|one| !old.contains(&Arc::as_ptr(one))).collect();
        let removed = self.documents.values().filter(|one| !new.contains(&Arc::as_ptr(one)));
        let removed: Vec<Arc<Document>> = removed.cloned().collect();
        if self.documents.is_empty() || came.len() + removed.len() > documents.len() / 4 + MANY {
            return None;
        }
        let plain = |document: &&Arc<Document>| policies::is_replaceable(document) && !is_of_delegates(document);
        // Of two with the same key the first counts.
        let keys: HashSet<_> = came.iter().map(|document| document.key()).collect();
        let replaced = removed.iter().filter(|document| keys.contains(&document.key())).count();
        let fresh = keys.iter().filter(|key| !self.documents.contains_key(*key)).count();
        let each_once = new.len() == documents.len() && keys.len() == came.len() && replaced + fresh == keys.len();
        if !each_once || !came.iter().copied().chain(&removed).all(|document| plain(&document)) {
            return None;
        }
        let config =
            mesh_config::in_force(self.documents.values().map(|document| &**document)).map(|(_, config)| config);
        let export = |document: &Arc<Document>| {
            config.and_then(|config| config.export(document)).map_or_else(|| document.clone(), Arc::new)
        };
        let mut exported: BTreeMap<_, _> = came.iter().map(|document| (document.key(), export(document))).collect();
        let mut left = Vec::new();
        for document in &removed {
            let Some(old) = self.joined.get(&document.key()) else { continue };
            match exported.get(&document.key()) {
                // The same content in another text.
                Some(new) if !differ(old, new) => drop(exported.remove(&document.key())),
                _ => left.push(old.clone()),
            }
        }
        removed.iter().for_each(|document| drop(self.documents.remove(&document.key())));
        self.documents.extend(came.into_iter().map(|document| (document.key(), document.clone())));
        let mut changed = Changed::default();
        if left.is_empty() && exported.is_empty() {
            return Some(changed);
        }
        self.version += 1;
        let came: Vec<Arc<Document>> = exported.values().cloned().collect();
        left.iter().for_each(|document| self.touch(document, &mut changed));
        self.policies.replace(&left, &came);
        left.iter().for_each(|document| drop(self.joined.remove(&document.key())));
        self.joined.extend(exported);
        came.iter().for_each(|document| self.touch(document, &mut changed));
        // Clients that import a host also see its routes' destinations and the other hosts of its routes.
        let routes = |document: &Arc<Document>| matches!(document.object, Object::VirtualService(_));
        changed.names = self.policies.has_sidecars() && left.iter().chain(&came).any(routes);
        for host in changed.hosts.clone() {
            // A rule defines no host, nor do routes to a service.
            if self.hosts.contains_key(&host) || self.policies.routed(&host).is_some() {
                self.refresh_named(&host, now, &mut changed);
            }
        }
        Some(self.settle(changed, now))
    }
}

/// Whether two versions of an object differ in meaning.
pub(super) fn differ(one: &Arc<Document>, other: &Arc<Document>) -> bool {
    !Arc::ptr_eq(one, other) && (one.created != other.created || one.object != other.object)
}

/// Whether a document has delegates, or is one.
fn is_of_delegates(document: &Document) -> bool {
    let Object::VirtualService(service) = &document.object else { return false };
    service.hosts.is_empty() || service.http.iter().any(|route| matches!(route.action, Action::Delegate(_)))
}
