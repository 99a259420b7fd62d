//! The VirtualService and DestinationRule that result from the config entries of a service.

use serde_json::{Map, Value, json};

use super::entries::{Leg, Resolver, Route, Router, Splitter};

/// The entries of one service.
#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) router: Option<Router>,
    pub(super) splitter: Option<Splitter>,
    pub(super) resolver: Option<Resolver>,
}

impl Chain {
    /// All destinations of requests.
    fn legs(&self) -> impl Iterator<Item = &Leg> {
        let routes = self.router.iter().flat_map(|router| router.routes.iter().map(|route| &route.to));
        let splits = self.splitter.iter().flat_map(|splitter| splitter.splits.iter().map(|(_, leg, _)| leg));
        routes.chain(splits).chain(self.resolver.iter().flat_map(|resolver| &resolver.redirect))
    }

    /// Other services that are destinations.
    pub(super) fn others(&self, service: &str) -> Vec<String> {
        let all = self.legs().map(|leg| leg.service.clone());
        all.filter(|other| !other.is_empty() && other != service).collect()
    }

    /// Subsets of the service itself that are used and not defined by a resolver.
    pub(super) fn undefined(&self, service: &str) -> Vec<String> {
        let own = self.legs().filter(|leg| leg.service.is_empty() || leg.service == service);
        let default = self.resolver.iter().map(|resolver| &resolver.default_subset);
        let used = own.map(|leg| &leg.subset).chain(default).filter(|subset| !subset.is_empty());
        let defined =
            |subset: &str| self.resolver.iter().flat_map(|resolver| &resolver.subsets).any(|(name, _)| name == subset);
        used.filter(|subset| !defined(subset)).cloned().collect()
    }

    /// Whether requests to the service itself have other destinations than all of its instances.
    pub(super) fn routes(&self) -> bool {
        let resolves =
            |r: &Resolver| r.redirect.is_some() || !r.default_subset.is_empty() || !r.request_timeout.is_empty();
        self.router.is_some() || self.splitter.is_some() || self.resolver.as_ref().is_some_and(resolves)
    }

    /// The documents, as JSON.
    pub(super) fn documents(&self, service: &str, namespace: &str) -> Vec<Value> {
        let mut all = Vec::new();
        if let Some(resolver) = self.resolver.as_ref().filter(|r| !r.subsets.is_empty() || !r.policy.is_null()) {
            let subsets = resolver.subsets.iter().map(|(name, labels)| json!({ "name": name, "labels": labels }));
            let mut spec = json!({ "host": service, "subsets": subsets.collect::<Vec<_>>() });
            if !resolver.policy.is_null() {
                spec["trafficPolicy"] = resolver.policy.clone();
            }
            all.push(document("DestinationRule", service, namespace, spec));
        }
        if self.routes() {
            let mut http: Vec<Value> =
                self.router.iter().flat_map(|router| &router.routes).map(|route| self.route(service, route)).collect();
            // Requests without a matching route use the splitter.
            if http.last().is_none_or(|last| last.get("match").is_some()) {
                let route = Route { matching: Value::Null, to: Leg::default(), settings: json!({}) };
                http.push(self.route(service, &route));
            }
            all.push(document("VirtualService", service, namespace, json!({ "hosts": [service], "http": http })));
        }
        all
    }

    fn route(&self, service: &str, route: &Route) -> Value {
        let mut all = route.settings.as_object().cloned().unwrap_or_default();
        if !route.matching.is_null() && route.matching != json!({}) {
            all.insert("match".into(), json!([route.matching]));
        }
        let timeout = self.resolver.as_ref().map(|r| r.request_timeout.clone()).unwrap_or_default();
        if !timeout.is_empty() {
            all.entry("timeout").or_insert_with(|| timeout.into());
        }
        all.insert("route".into(), Value::Array(self.destinations(service, &route.to)));
        Value::Object(all)
    }

    /// The destinations of a route: by the splitter if it names no subset, then by the resolver.
    fn destinations(&self, service: &str, to: &Leg) -> Vec<Value> {
        let is_own = |leg: &Leg| leg.service.is_empty() || leg.service == service;
        match &self.splitter {
            Some(splitter) if is_own(to) && to.subset.is_empty() => {
                let legs = splitter.splits.iter().map(|(weight, leg, headers)| {
                    let mut one = Map::new();
                    one.insert("destination".into(), self.destination(service, leg));
                    one.insert("weight".into(), (*weight).into());
                    if headers.as_object().is_some_and(|map| !map.is_empty()) {
                        one.insert("headers".into(), headers.clone());
                    }
                    Value::Object(one)
                });
                legs.collect()
            }
            _ => vec![json!({ "destination": self.destination(service, to) })],
        }
    }

    fn destination(&self, service: &str, leg: &Leg) -> Value {
        let own = leg.service.is_empty() || leg.service == service;
        let resolver = self.resolver.as_ref().filter(|_| own && leg.subset.is_empty());
        let redirected = resolver.and_then(|resolver| resolver.redirect.as_ref());
        let (host, subset) = match (redirected, resolver) {
            (Some(to), _) => (if to.service.is_empty() { service } else { &to.service }, to.subset.as_str()),
            (None, Some(resolver)) => (service, resolver.default_subset.as_str()),
            (None, None) => (if own { service } else { &leg.service }, leg.subset.as_str()),
        };
        if subset.is_empty() { json!({ "host": host }) } else { json!({ "host": host, "subset": subset }) }
    }
}

/// The name of the policies that result from the entries of a service.
pub(super) fn name(service: &str) -> String {
    format!("consul-{}", service.to_ascii_lowercase().replace('_', "-"))
}

fn document(kind: &str, service: &str, namespace: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": { "name": name(service), "namespace": namespace },
        "spec": spec,
    })
}
