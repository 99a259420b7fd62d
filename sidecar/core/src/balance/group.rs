//! The endpoints of one level, and the choice among them.

use std::sync::Arc;

use crate::endpoint::Endpoint;
use crate::policy::LoadBalancer;

use super::least_request::LeastRequest;
use super::maglev::Maglev;
use super::random::Random;
use super::ring::Ring;
use super::round_robin::RoundRobin;

#[derive(Debug)]
pub(super) struct Group {
    hosts: Vec<Arc<Endpoint>>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    LeastRequest(LeastRequest),
    RoundRobin(RoundRobin),
    Random(Random),
    Ring(Ring),
    Maglev(Maglev),
}

impl Group {
    /// Each of `hosts` has a weight of at least 1.
    pub(super) fn new(
        balancer: &LoadBalancer,
        hosts: Vec<Arc<Endpoint>>,
        weights: Vec<u32>,
        previous: Option<&Group>,
    ) -> Group {
        let kind = match balancer {
            LoadBalancer::LeastRequest => Kind::LeastRequest(LeastRequest::new(weights)),
            LoadBalancer::RoundRobin => {
                Kind::RoundRobin(RoundRobin::new(&weights, previous.and_then(Self::round_robin)))
            }
            // Passthrough dials the original destination; if that is unknown, any endpoint is acceptable.
            LoadBalancer::Random | LoadBalancer::Passthrough => Kind::Random(Random::new(&weights)),
            LoadBalancer::RingHash { minimum_size, .. } => Kind::Ring(Ring::new(&hosts, &weights, *minimum_size)),
            LoadBalancer::Maglev { table_size, .. } => Kind::Maglev(Maglev::new(&hosts, &weights, *table_size)),
        };
        Group { hosts, kind }
    }

    /// See [`super::Balancer::pick`].
    pub(super) fn pick(
        &self,
        hash: Option<u64>,
        random: &mut impl FnMut() -> u64,
        attempt: u32,
    ) -> Option<&Arc<Endpoint>> {
        let index = match &self.kind {
            _ if self.hosts.len() < 2 => 0,
            Kind::LeastRequest(least) => least.pick(&self.hosts, random),
            Kind::RoundRobin(round) => round.pick(),
            Kind::Random(weighted) => weighted.pick(random),
            Kind::Ring(ring) => ring.pick(hash.unwrap_or_else(random), attempt),
            Kind::Maglev(maglev) => maglev.pick(hash.unwrap_or_else(random), attempt),
        };
        self.hosts.get(index)
    }

    pub(super) fn hosts(&self) -> &[Arc<Endpoint>] {
        &self.hosts
    }

    fn round_robin(&self) -> Option<&RoundRobin> {
        match &self.kind {
            Kind::RoundRobin(round) => Some(round),
            _ => None,
        }
    }
}

/// Weights as fractions of their sum; empty for no weights.
pub(super) fn normalised(weights: &[u32]) -> Vec<f64> {
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    weights.iter().map(|weight| f64::from(*weight) / total).collect()
}

pub(super) fn are_equal(weights: &[u32]) -> bool {
    weights.windows(2).all(|pair| pair[0] == pair[1])
}
