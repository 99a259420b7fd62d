//! The subscription of a stream to one type of resource, and the versions that the stream has.

use std::collections::HashMap;

use super::Version;
use super::names::{Label, Name, address_of, first_label, labels_of};
use crate::identity::bounds::{self, Exceeded};
use weft_world::Changed;

/// The subscription of a stream for one type.
#[derive(Default)]
pub(super) struct Subscription {
    /// Subscribed name -> canonical host; `None`: it resolves to nothing, which the client was sent.
    pub names: HashMap<Name, Option<Name>>,
    /// Hosts of names, with the number of those names.
    pub hosts: HashMap<Name, u32>,
    /// Host, or name of an earlier stream -> version that the client has.
    pub sent: HashMap<Name, Version>,
}

impl Subscription {
    /// Sets the host of a name; returns its previous host.
    pub(super) fn set(&mut self, name: Name, host: Option<Name>) -> Option<Name> {
        if let Some(host) = &host {
            *self.hosts.entry(host.clone()).or_default() += 1;
        }
        let before = self.names.insert(name, host).flatten();
        self.forget(before)
    }

    /// Removes a name; returns its host.
    pub(super) fn remove(&mut self, name: &str) -> Option<Name> {
        let before = self.names.remove(name).flatten();
        self.forget(before)
    }

    fn forget(&mut self, host: Option<Name>) -> Option<Name> {
        let host = host?;
        if let Some(count) = self.hosts.get_mut(&host) {
            *count -= 1;
            if *count == 0 {
                self.hosts.remove(&host);
            }
        }
        Some(host)
    }

    /// Removes the versions of resources to which the stream does not subscribe.
    pub(super) fn forget_versions(&mut self) {
        let (names, hosts) = (&self.names, &self.hosts);
        self.sent.retain(|name, _| names.contains_key(name) || hosts.contains_key(name));
        self.sent.shrink_to(2 * self.sent.len());
    }

    /// Names that may resolve otherwise after a change; `all`: for a client with another scope.
    pub(super) fn touched(&self, changed: &Changed, all: bool) -> Vec<Name> {
        if all || changed.names || changed.all {
            return self.names.keys().cloned().collect();
        }
        let renamed = |label: Label| changed.renamed.iter().any(|host| first_label(host) == label);
        let is_touched = |name: &&Name| match address_of(name) {
            Some(address) => changed.addresses.contains(&address),
            None => !changed.renamed.is_empty() && labels_of(name).any(renamed),
        };
        if changed.renamed.is_empty() && changed.addresses.is_empty() {
            return Vec::new();
        }
        self.names.keys().filter(is_touched).cloned().collect()
    }

    /// Whether the further names and versions are within the bounds.
    ///
    /// # Errors
    /// If they are not; the error names the bound.
    pub(super) fn admit<'a>(
        &self,
        names: impl ExactSizeIterator<Item = &'a String>,
        versions: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
    ) -> Result<(), Exceeded> {
        let most = bounds::NAMES;
        if self.names.len() + names.len() > most || self.sent.len() + versions.len() > 2 * most {
            return Err(Exceeded(format!("more than {most} names on one stream")));
        }
        for (name, version) in versions {
            bounds::text("initial_resource_versions", name, bounds::ASKED)?;
            bounds::text("initial_resource_versions", version, bounds::VERSION)?;
        }
        let mut names = names;
        names.try_for_each(|name| bounds::text("resource_names_subscribe", name, bounds::ASKED))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::testing::{documents, instance};
    use weft_world::translate::resolve;
    use weft_world::{Instance, Scope, World};

    fn of(names: &[&str]) -> Subscription {
        let mut subscription = Subscription::default();
        for name in names {
            subscription.set((*name).into(), None);
        }
        subscription
    }

    #[test]
    fn a_change_touches_names_that_may_resolve_otherwise() {
        let names = [
            "order",
            "order.shop",
            "pod-1.order.shop",
            "shop",
            "10.0.0.1:80",
            "10.0.0.10:80",
            "10.0.0.1",
            "::1",
            "[::1]:80",
        ];
        let subscription = of(&names);
        let touched = |changed: &Changed| {
            let found = subscription.touched(changed, false);
            let mut found: Vec<String> = found.iter().map(|name| name.to_string()).collect();
            found.sort();
            found
        };
        let host = |host: &str| Changed { renamed: [host.to_owned()].into(), ..Changed::default() };
        assert_eq!(touched(&host("order.default.svc.cluster.local")), ["order", "order.shop", "pod-1.order.shop"]);
        assert_eq!(touched(&host("shop.default.svc.cluster.local")), ["order.shop", "shop"]);
        assert!(touched(&host("cart.default.svc.cluster.local")).is_empty());
        let at = |text: &str| Changed { addresses: [text.parse().unwrap()].into(), ..Changed::default() };
        assert_eq!(touched(&at("10.0.0.1")), ["10.0.0.1", "10.0.0.1:80"]);
        assert_eq!(touched(&at("::1")), ["::1", "[::1]:80"]);
        assert_eq!(touched(&Changed { names: true, ..Changed::default() }).len(), names.len());
        assert!(touched(&Changed::default()).is_empty());
    }

    #[test]
    fn names_and_versions_have_bounds() {
        let subscription = of(&["a"]);
        let admit = |names: &[String], versions: &[(String, String)]| {
            subscription.admit(names.iter(), versions.iter().map(|(name, version)| (name, version)))
        };
        let long = "x".repeat(bounds::ASKED + 1);
        assert_eq!(admit(&["b".into()], &[("b".into(), "0".into())]), Ok(()));
        assert!(
            admit(std::slice::from_ref(&long), &[]).unwrap_err().0.contains("resource_names_subscribe has 513 bytes")
        );
        assert!(admit(&[], &[(long.clone(), String::new())]).unwrap_err().0.contains("initial_resource_versions"));
        assert!(admit(&[], &[(String::new(), long)]).is_err());
        assert!(admit(&vec![String::new(); bounds::NAMES], &[]).unwrap_err().0.contains("20000 names"));
    }

    #[test]
    fn versions_of_unsubscribed_resources_are_removed() {
        let mut subscription = of(&["a"]);
        subscription.set("b".into(), Some("host".into()));
        for name in ["a", "b", "host", "other"] {
            subscription.sent.insert(name.into(), 1);
        }
        subscription.forget_versions();
        assert!(subscription.sent.len() == 3 && !subscription.sent.contains_key("other"));
    }

    const OBJECTS: [&str; 6] = [
        "kind: Service\nmetadata: {name: alias}\nspec: {type: ExternalName, externalName: a.default.svc.cluster.local}",
        "kind: Service\nmetadata: {name: db}\nspec: {clusterIP: None, ports: [{port: 80}]}",
        "kind: ServiceEntry\nmetadata: {name: one}\nspec: {hosts: [x.example.com], addresses: [10.9.0.1], ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 10.8.0.1}]}",
        "kind: ServiceEntry\nmetadata: {name: all}\nspec: {hosts: ['*.example.com'], ports: [{number: 80, name: http}], resolution: NONE}",
        "kind: VirtualService\nmetadata: {name: r}\nspec: {hosts: [routed], http: [{route: [{destination: {host: a}}]}]}",
        "kind: Sidecar\nmetadata: {name: s}\nspec: {egress: [{hosts: ['./*', 'shop/*']}]}",
    ];

    /// After any change, a name that resolves to another host is among the touched ones.
    #[test]
    fn every_name_that_resolves_otherwise_is_touched() {
        let mut seed: u64 = 5;
        let mut roll = |of: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % of
        };
        let mut world = World::new("cluster.local", 1);
        let mut given = [false; OBJECTS.len()];
        let mut names: BTreeSet<String> =
            ["alias", "routed", "x.example.com", "y.example.com", "a.service.consul", "10.9.0.1:80"]
                .map(str::to_owned)
                .into();
        for service in ["a", "b", "db"] {
            names.extend(["", ".default", ".shop", ".default.svc.cluster.local"].map(|end| format!("{service}{end}")));
            names.extend((0..3).map(|n| format!("i{n}.{service}")));
        }
        names.extend((0..6).flat_map(|n| [format!("10.0.0.{n}:80"), format!("10.0.0.{n}")]));
        let scopes = ["default", "shop"].map(Scope::of);
        let (mut moved, mut narrow) = (0, 0);
        for now in 0..600 {
            // Virtual IPs may resolve otherwise too.
            for host in ["a.default.svc.cluster.local", "b.shop.svc.cluster.local"] {
                let address = world.virtual_ips().of(host).map(|address| format!("{address}:80"));
                names.extend(address);
            }
            let mut subscription = Subscription::default();
            let meanings = |world: &World| -> Vec<Vec<Option<String>>> {
                let of = |scope| names.iter().map(|name| resolve(world, scope, name)).collect();
                scopes.iter().map(of).collect()
            };
            let before = meanings(&world);
            names.iter().for_each(|name| drop(subscription.set(name.as_str().into(), None)));
            let changed = if roll(4) == 0 {
                let at = roll(OBJECTS.len());
                given[at] = !given[at];
                let of = |(object, _): (&&str, &bool)| {
                    let api = if object.starts_with("kind: Service\n") { "v1" } else { "networking.istio.io/v1" };
                    documents(&format!("apiVersion: {api}\n{object}\n"))
                };
                let all = OBJECTS.iter().zip(&given).filter(|(_, given)| **given).flat_map(of).collect();
                world.set_policies(all, now)
            } else {
                let (service, id) = (["a", "b", "db"][roll(3)], format!("i{}", roll(3)));
                let address = format!("10.0.0.{}", roll(6));
                let namespace = ["default", "shop"][roll(2)].to_owned();
                let instance = Instance { namespace, ..instance(service, &id, &address, 80) };
                if roll(2) == 0 { world.upsert(instance, now) } else { world.remove(&instance.key(), now) }
            };
            let touched = subscription.touched(&changed, false);
            narrow += usize::from(touched.len() < names.len());
            for (before, after) in before.iter().zip(&meanings(&world)) {
                for ((name, before), after) in names.iter().zip(before).zip(after) {
                    moved += usize::from(before != after);
                    let said = before == after || touched.iter().any(|touched| **touched == **name);
                    assert!(said, "at {now}, {name} meant {before:?} and means {after:?}: {changed:?}");
                }
            }
        }
        assert!(moved > 300 && narrow > 300, "{moved} {narrow}");
    }
}
