//! DestinationRules of a host, merged: the rules that a client sees, and the settings of ports and subsets.

use weft_proto::v1;

use crate::translate::defaults::Defaults;
use crate::world::ports::PortView;
use crate::world::{Host, Scope, World};
use weft_policy::{Document, Object, ROOT_NAMESPACES, Settings, Subset, TrafficPolicy};

/// The DestinationRules of one host for clients with the same properties.
#[derive(Debug, Default)]
pub(crate) struct Rules<'a> {
    defaults: Defaults<'a>,
    policy: Option<(&'a TrafficPolicy, &'a Document)>,
    subsets: Vec<(&'a Subset, &'a Document)>,
}

/// Settings of a cluster and the document that decided them.
#[derive(Debug, Default)]
pub(crate) struct Decision {
    pub(crate) settings: Settings,
    pub(crate) policy: String,
}

impl<'a> Rules<'a> {
    /// Of the client's namespace, the host's and the root one, only the first with a rule for the host applies. Within
    /// it the rules of the most specific host are joined: the oldest policy as a whole, and all subsets with new names.
    pub(crate) fn of(world: &'a World, client: &Scope, host: &Host) -> Self {
        let documents = [client.namespace.as_str(), host.namespace.as_str()]
            .into_iter()
            .chain(ROOT_NAMESPACES)
            .map(|namespace| world.policies().rules(namespace, client, &host.name))
            .find(|documents| !documents.is_empty())
            .unwrap_or_default();
        let mut rules = Rules { defaults: Defaults::of(world), ..Self::default() };
        for document in documents {
            let Object::DestinationRule(rule) = &document.object else { continue };
            if rules.policy.is_none() {
                rules.policy = rule.traffic_policy.as_ref().map(|policy| (policy, &**document));
            }
            for subset in &rule.subsets {
                if rules.subset(&subset.name).is_none() {
                    rules.subsets.push((subset, document));
                }
            }
        }
        rules
    }

    /// All subsets.
    pub(crate) fn subsets(&self) -> impl Iterator<Item = &'a Subset> {
        self.subsets.iter().map(|(subset, _)| *subset)
    }

    /// A subset by name.
    pub(crate) fn subset(&self, name: &str) -> Option<&'a Subset> {
        self.subsets.iter().find(|(subset, _)| subset.name == name).map(|(subset, _)| *subset)
    }

    /// Settings of a port and, unless empty, a subset. A port's own settings replace the rule's as a whole; a subset's
    /// override block by block; a subset's port settings replace the subset's, and of the settings that a port can have
    /// they replace all, present or not: those that a port cannot have stay, as in Istio (`mergeTrafficPolicy`). The
    /// mesh's defaults fill the rest.
    pub(crate) fn decide(&self, port: &PortView, subset: &str) -> Decision {
        let mut decided = self.decide_by_rules(port.policy_number, subset);
        self.defaults.fill(&mut decided, port.protocol);
        decided
    }

    fn decide_by_rules(&self, port: u32, subset: &str) -> Decision {
        let mut decided = Decision::default();
        if let Some((policy, document)) = self.policy {
            decided.settings = policy.ports.get(&port).unwrap_or(&policy.settings).clone();
            decided.policy = document.reference();
        }
        let Some((subset, document)) = self.subsets.iter().find(|(known, _)| known.name == subset) else {
            return decided;
        };
        let Some(policy) = &subset.traffic_policy else { return decided };
        decided.policy = document.reference();
        let base = decided.settings;
        if let Some(own) = policy.ports.get(&port) {
            let Settings { retry_budget, tunnel, proxy_protocol, .. } = base;
            decided.settings = Settings { retry_budget, tunnel, proxy_protocol, ..own.clone() };
            return decided;
        }
        let over = policy.settings.clone();
        decided.settings = Settings {
            load_balancer: over.load_balancer.or(base.load_balancer),
            connection_pool: over.connection_pool.or(base.connection_pool),
            outlier_detection: over.outlier_detection.or(base.outlier_detection),
            tls: over.tls.or(base.tls),
            retry_budget: over.retry_budget.or(base.retry_budget),
            tunnel: over.tunnel.or(base.tunnel),
            proxy_protocol: over.proxy_protocol.or(base.proxy_protocol),
        };
        decided
    }
}

impl Decision {
    /// Whether calls go to the address that the caller dialed.
    pub(crate) fn passthrough(&self) -> bool {
        let simple =
            self.settings.load_balancer.as_ref().filter(|lb| lb.consistent_hash.is_none()).map(|lb| lb.simple());
        simple == Some(v1::load_balancer::Simple::Passthrough)
    }
}
