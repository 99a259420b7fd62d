//! The properties of a client that decide its translations: clients that are equal in these share them.

use std::collections::BTreeMap;

use super::{Host, World};
use weft_policy::Document;

/// The properties of a client that decide its translations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Its namespace.
    pub namespace: String,
    /// Those of its labels that documents select clients by.
    pub labels: BTreeMap<String, String>,
}

impl Scope {
    /// A client without labels.
    pub fn of(namespace: &str) -> Scope {
        Scope { namespace: namespace.to_owned(), labels: BTreeMap::new() }
    }
}

impl World {
    /// The scope of a client in `namespace` with `labels`.
    pub fn scope(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Scope {
        let counts = |name: &String| self.policies().selects_clients_by(name);
        let labels = labels.iter().filter(|(name, _)| counts(name)).map(|(k, v)| (k.clone(), v.clone()));
        Scope { namespace: namespace.to_owned(), labels: labels.collect() }
    }

    /// Whether a client can reach `host`, at `port` (`None`: at any): by `exportTo`, and by its Sidecar, which admits
    /// the hosts that it imports, the destinations of their routes, and the other hosts of their VirtualServices.
    pub fn sees(&self, client: &Scope, host: &Host, port: Option<u32>) -> bool {
        if !host.reaches(&client.namespace) {
            return false;
        }
        let Some((document, sidecar)) = self.policies().sidecar(&client.namespace, &client.labels) else { return true };
        let imports = |host: &Host| sidecar.imports(&document.namespace, &host.namespace, &host.name, port);
        let routed = self.policies().dependents(&host.name);
        let mut by_routes = routed.flat_map(|routed| self.definitions(routed));
        let comes_along = || {
            let services = self.policies().routing(&host.name).filter(|document| document.reaches(&client.namespace));
            let of = |service: &Document| sidecar.imports_routes(&document.namespace, service, port);
            !sidecar.excludes(&document.namespace, &host.namespace, &host.name, port) && services.into_iter().any(of)
        };
        imports(host) || by_routes.any(imports) || comes_along()
    }
}
