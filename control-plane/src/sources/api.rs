//! Policies that `weftctl apply` and Consul's config entries have written to the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_policy::Document;
use weft_proto::v1::StoredPolicy;
use weft_world::parse_policies;

use super::PolicySource;

/// The policies of the API, by their keys in the store.
#[derive(Debug, Default)]
pub struct ApiPolicies(BTreeMap<String, Vec<Arc<Document>>>);

impl ApiPolicies {
    /// Adds a record of the store.
    pub fn insert(&mut self, key: String, stored: &StoredPolicy) {
        let parsed = parse_policies(&key, &stored.yaml);
        for problem in &parsed.problems {
            tracing::warn!("stored policy: {problem}");
        }
        let documents = parsed.documents.into_iter();
        let documents = documents.map(|d| Arc::new(Document { created: stored.created, ..d })).collect();
        self.0.insert(key, documents);
    }

    /// Removes a record that the store no longer has.
    pub fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// The keys of all records.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// When the object was first applied; `None`: it does not exist.
    pub fn created(&self, document: &Document) -> Option<u64> {
        self.0.get(&document.reference())?.first().map(|stored| stored.created)
    }
}

impl PolicySource for ApiPolicies {
    fn list(&self) -> Box<dyn Iterator<Item = &Arc<Document>> + '_> {
        Box::new(self.0.values().flatten())
    }
}

/// The record of a document.
pub fn record(document: &Document) -> StoredPolicy {
    StoredPolicy { yaml: document.yaml.clone(), created: document.created }
}
