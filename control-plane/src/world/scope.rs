//! What of a client decides what it is told: two clients that are alike in this get the same translations, made once.

use std::collections::BTreeMap;

use super::World;

/// A client as translations see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Its namespace.
    pub namespace: String,
    /// Those of its labels that some document selects clients by.
    pub labels: BTreeMap<String, String>,
}

impl Scope {
    /// A client without labels.
    pub fn of(namespace: &str) -> Scope {
        Scope { namespace: namespace.to_owned(), labels: BTreeMap::new() }
    }
}

impl World {
    /// What counts of a client in `namespace` with `labels`.
    pub fn scope(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Scope {
        let counts = |name: &String| self.policies().selects_clients_by(name);
        let labels = labels.iter().filter(|(name, _)| counts(name)).map(|(k, v)| (k.clone(), v.clone()));
        Scope { namespace: namespace.to_owned(), labels: labels.collect() }
    }
}
