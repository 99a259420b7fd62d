//! The share of the requests for an endpoint: its weight, the share of its locality (`distribute`), and a reduction
//! while it is new (`warmup`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::endpoint::{Endpoint, EndpointConfig};
use crate::locality::{Distribution, Locality};
use crate::policy::{Cluster, LoadBalancer, Warmup};

use super::Inputs;

/// Parts of a weight in which locality shares and warm-up weights are counted.
const FINE: f64 = 1000.0;

pub(super) struct Shares<'a> {
    distribution: Option<Distributed<'a>>,
    warmup: Option<(&'a Warmup, Instant)>,
    warming: bool,
}

/// For each locality with a share: the index of its pattern, and the factor for the weights of its endpoints.
struct Distributed<'a> {
    from: &'a Distribution,
    factors: HashMap<usize, f64>,
}

impl<'a> Shares<'a> {
    pub(super) fn new(cluster: &'a Cluster, endpoints: &[Arc<Endpoint>], inputs: Inputs<'_>) -> Self {
        let distribution = match &cluster.locality {
            Locality::Distribute(all) => all.iter().find(|one| one.from.covers(&inputs.location.locality)),
            _ => None,
        };
        let takes_turns = matches!(cluster.load_balancer, LoadBalancer::LeastRequest | LoadBalancer::RoundRobin);
        let warmup = cluster.warmup.as_ref().filter(|_| takes_turns).map(|warmup| (warmup, inputs.now));
        let warming = warmup.is_some_and(|(warmup, now)| {
            // Every new endpoint must record the time when it was first seen, so this does not stop at the first one.
            let young = endpoints.iter().filter(|endpoint| endpoint.is_eligible() && endpoint.remote.is_none());
            young.filter(|endpoint| warmup.is_new(endpoint.state.usable_for(now))).count() > 0
        });
        Shares { distribution: distribution.map(|from| Distributed::new(from, endpoints)), warmup, warming }
    }

    /// Whether an endpoint gets a share.
    pub(super) fn has(&self, endpoint: &Endpoint) -> bool {
        self.distribution.as_ref().is_none_or(|distributed| distributed.index(&endpoint.config).is_some())
    }

    /// At least 1.
    pub(super) fn weight(&self, endpoint: &Endpoint) -> u32 {
        let weight = endpoint.config.weight;
        if self.distribution.is_none() && !self.warming {
            return weight;
        }
        let mut share = f64::from(weight) * FINE;
        if let Some(distributed) = &self.distribution {
            share *= distributed.factor(&endpoint.config);
        }
        if let Some((warmup, now)) = self.warmup {
            share *= warmup.factor(endpoint.state.usable_for(now));
        }
        (share as u32).max(1)
    }

    pub(super) fn is_warming(&self) -> bool {
        self.warming
    }
}

impl<'a> Distributed<'a> {
    fn new(from: &'a Distribution, endpoints: &[Arc<Endpoint>]) -> Self {
        let mut distributed = Distributed { from, factors: HashMap::new() };
        // Weight of the usable and of all endpoints of each locality.
        let mut sums: HashMap<usize, (f64, f64)> = HashMap::new();
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.remote.is_none()) {
            let Some(index) = distributed.index(&endpoint.config) else { continue };
            let (usable, all) = sums.entry(index).or_default();
            let weight = f64::from(endpoint.config.weight);
            *all += weight;
            if endpoint.is_eligible() && !endpoint.is_ejected() {
                *usable += weight;
            }
        }
        for (index, (usable, all)) in sums {
            if usable > 0.0 {
                // As in Envoy's locality weighting: the share shrinks once over-provisioning no longer compensates for
                // unusable endpoints.
                let available = (usable / all * 1.4).min(1.0);
                let percent = f64::from(from.to[index].1);
                distributed.factors.insert(index, percent * available / usable);
            }
        }
        distributed
    }

    /// Index of the pattern that covers an endpoint.
    fn index(&self, endpoint: &EndpointConfig) -> Option<usize> {
        self.from.to.iter().position(|(pattern, percent)| *percent > 0 && pattern.covers(&endpoint.locality))
    }

    fn factor(&self, endpoint: &EndpointConfig) -> f64 {
        self.index(endpoint).and_then(|index| self.factors.get(&index)).copied().unwrap_or(1.0)
    }
}

impl Warmup {
    fn is_new(&self, usable_for: Duration) -> bool {
        usable_for < self.duration
    }

    /// Factor for the weight of an endpoint that has been usable for this time: Envoy's slow start.
    fn factor(&self, usable_for: Duration) -> f64 {
        if !self.is_new(usable_for) {
            return 1.0;
        }
        let passed = usable_for.as_secs_f64().max(1.0) / self.duration.as_secs_f64();
        passed.min(1.0).powf(1.0 / self.aggression).max(self.minimum_percent / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_endpoint_warms_up_as_in_envoy() {
        let warmup = |aggression| Warmup { duration: Duration::from_secs(60), minimum_percent: 10.0, aggression };
        for (aggression, seconds, want) in [
            (1.0, 0, 0.1),
            (1.0, 3, 0.1),
            (1.0, 30, 0.5),
            (1.0, 59, 59.0 / 60.0),
            (1.0, 60, 1.0),
            (1.0, 600, 1.0),
            (2.0, 15, 0.5),
            (2.0, 0, (1.0_f64 / 60.0).sqrt()),
        ] {
            let got = warmup(aggression).factor(Duration::from_secs(seconds));
            assert!((got - want).abs() < 1e-9, "{aggression} {seconds}: {got}");
        }
    }
}
