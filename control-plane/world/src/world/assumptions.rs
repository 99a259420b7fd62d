//! A world of documents alone: the registry is unknown, and services that documents call are assumed to be registered.

use super::{Host, MESH_SUFFIX, World, fqdn};
use weft_policy::{Object, canonical};

impl World {
    /// Assumes every service of the mesh that a document names to be registered, without an instance: the results for
    /// its routes and policies are then those of the live mesh. Returns the services that no document offers, sorted.
    pub fn assume_registered(&mut self) -> Vec<String> {
        let mut hosts: Vec<String> = self
            .joined
            .values()
            .flat_map(|document| match &document.object {
                Object::DestinationRule(rule) => vec![canonical(&rule.host, &document.namespace)],
                Object::VirtualService(service) => {
                    let names = service.hosts.iter().filter(|_| service.of_mesh());
                    let destinations = service.destinations().map(|destination| &destination.host);
                    names.chain(destinations).map(|host| canonical(host, &document.namespace)).collect()
                }
                route @ (Object::HTTPRoute(_) | Object::GRPCRoute(_) | Object::TLSRoute(_) | Object::TCPRoute(_)) => {
                    let backends = route.backends().into_iter().map(|(_, backend)| &backend.object);
                    let objects = route.parents().iter().map(|parent| &parent.object).chain(backends);
                    objects.filter(|it| it.is_service()).map(|it| fqdn(&it.name, &it.namespace)).collect()
                }
                _ => Vec::new(),
            })
            .collect();
        hosts.retain(|name| name.ends_with(MESH_SUFFIX) && !name.starts_with('*'));
        hosts.sort();
        hosts.dedup();
        let offered = |host: &Host| host.service.is_some() || host.entry.is_some();
        hosts.retain(|name| !self.hosts.get(name).is_some_and(offered));
        for name in &hosts {
            let namespace = name.trim_end_matches(MESH_SUFFIX).rsplit('.').next().unwrap_or_default().to_owned();
            let (service, entry, export) = (None, None, self.default_export());
            let host = Host {
                name: name.clone(),
                namespace,
                service,
                entry,
                more_entries: Vec::new(),
                export,
                registered: true,
                live: true,
                virtual_ip: true,
            };
            self.hosts.insert(name.clone(), host);
            self.virtual_ips.allocate(name);
        }
        hosts
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::documents;
    use super::*;

    #[test]
    fn services_that_documents_call_are_assumed_to_be_registered() {
        let text = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: shop}
spec: {hosts: [order], http: [{route: [{destination: {host: stock}, weight: 1}, {destination: {host: api.example.com}, weight: 1}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a}
spec: {host: pay.shop.svc.cluster.local}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: b}
spec: {host: '*.shop.svc.cluster.local'}
---
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: a, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: cart}, {name: a-gateway}], rules: [{backendRefs: [{name: cart-v2, port: 80}]}]}
";
        let mut world = World::new("cluster.local", 1);
        world.set_policies(documents(text), 0);
        let assumed = world.assume_registered();
        let names = ["cart-v2", "cart", "order", "pay"].map(|name| format!("{name}.shop.svc.cluster.local"));
        assert_eq!(assumed, names);
        let host = world.host(&assumed[3]).unwrap();
        assert!(host.live && host.registered && host.namespace == "shop" && !world.addresses_of(host).is_empty());
    }
}
