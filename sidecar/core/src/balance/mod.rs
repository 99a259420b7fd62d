//! Which endpoint serves an attempt.
//!
//! A `Balancer` is built for a cluster whenever its endpoints or their ejections change, from the endpoints that may be
//! used then; picking reads it without locks. Enum dispatch, because there are five and none will come from outside.

mod least_request;
mod maglev;
mod random;
mod ring;
mod round_robin;

use std::sync::Arc;

use crate::endpoint::Endpoint;
use crate::policy::{Cluster, LoadBalancer};

use least_request::LeastRequest;
use maglev::Maglev;
use random::Random;
use ring::Ring;
use round_robin::RoundRobin;

/// How often a retry looks for an endpoint that was not tried yet before it takes one that was.
const RE_PICKS: u32 = 5;

/// Picks among the endpoints of a cluster that may be used.
#[derive(Debug)]
pub struct Balancer {
    hosts: Vec<Arc<Endpoint>>,
    kind: Kind,
    panic: bool,
    elsewhere: Option<Box<Elsewhere>>,
}

/// Gateways of other data centres, and percent of the requests that go there.
#[derive(Debug)]
struct Elsewhere {
    share: u32,
    gateways: Balancer,
}

#[derive(Debug)]
enum Kind {
    LeastRequest(LeastRequest),
    RoundRobin(RoundRobin),
    Random(Random),
    Ring(Ring),
    Maglev(Maglev),
}

impl Balancer {
    /// For the endpoints of `cluster` (from [`crate::endpoint::for_cluster`]) as they are now. Unhealthy and draining
    /// ones are left out, and ejected ones unless so many are ejected that the policy asks for panic: then all that the
    /// registry calls healthy are used. `previous` hands on the place that round robin has reached.
    pub fn new(cluster: &Cluster, endpoints: &[Arc<Endpoint>], previous: Option<&Balancer>) -> Self {
        let eligible = endpoints.iter().filter(|endpoint| endpoint.is_eligible());
        let (mut ejected, mut hosts): (Vec<_>, Vec<_>) = eligible.cloned().partition(|endpoint| endpoint.is_ejected());
        let mut elsewhere = Elsewhere::take(&mut hosts);
        let unreachable = Elsewhere::take(&mut ejected);
        if hosts.is_empty() && ejected.is_empty() {
            // Nobody else is left to be tried.
            elsewhere = elsewhere.or(unreachable);
        }
        let min_health_percent = cluster.outlier.as_ref().map_or(0, |outlier| outlier.min_health_percent);
        // Who is well elsewhere is better than who is ill here.
        let panic = elsewhere.is_none() && is_panic(hosts.len(), hosts.len() + ejected.len(), min_health_percent);
        if panic {
            hosts.extend(ejected);
        }
        let kind = match &cluster.load_balancer {
            LoadBalancer::LeastRequest => Kind::LeastRequest(LeastRequest::new(&hosts)),
            LoadBalancer::RoundRobin => Kind::RoundRobin(RoundRobin::new(&hosts, previous.and_then(Self::round_robin))),
            // Passthrough dials the original destination; where that is unknown any endpoint is as good.
            LoadBalancer::Random | LoadBalancer::Passthrough => Kind::Random(Random::new(&hosts)),
            LoadBalancer::RingHash { minimum_size, .. } => Kind::Ring(Ring::new(&hosts, *minimum_size)),
            LoadBalancer::Maglev { table_size, .. } => Kind::Maglev(Maglev::new(&hosts, *table_size)),
        };
        Balancer { hosts, kind, panic, elsewhere }
    }

    /// An endpoint; `None`: there is none to use. `hash` counts for consistent hashing only; without one, `random`
    /// stands in. `attempt` is the number of picks thrown away before (0 for the first): consistent hashing then takes
    /// another place, the others just pick again.
    pub fn pick(&self, hash: Option<u64>, random: &mut impl FnMut() -> u64, attempt: u32) -> Option<&Arc<Endpoint>> {
        if let Some(elsewhere) = &self.elsewhere
            && (self.hosts.is_empty() || elsewhere.is_due(hash, random))
        {
            return elsewhere.gateways.pick_here(None, random, attempt);
        }
        self.pick_here(hash, random, attempt)
    }

    /// An endpoint of this data centre, as [`Balancer::pick`] picks it.
    pub fn pick_here(
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

    /// An endpoint for a retry: not one of `tried`, if five more picks find another. For a route with one hashed
    /// destination call [`Balancer::pick`] instead, the same endpoint is wanted
    /// ([`crate::route::Forward::avoids_tried`]).
    pub fn pick_avoiding(
        &self,
        hash: Option<u64>,
        random: &mut impl FnMut() -> u64,
        tried: &[Arc<Endpoint>],
    ) -> Option<&Arc<Endpoint>> {
        let mut pick = self.pick(hash, random, 0)?;
        for attempt in 1..=RE_PICKS {
            if !tried.iter().any(|tried| tried.is_same(pick)) {
                break;
            }
            pick = self.pick(hash, random, attempt)?;
        }
        Some(pick)
    }

    /// The endpoints of this data centre that are picked from.
    pub fn hosts(&self) -> &[Arc<Endpoint>] {
        &self.hosts
    }

    /// Ejected endpoints are used, because too few are left.
    pub fn is_panic(&self) -> bool {
        self.panic
    }

    fn round_robin(&self) -> Option<&RoundRobin> {
        match &self.kind {
            Kind::RoundRobin(round) => Some(round),
            _ => None,
        }
    }
}

impl Elsewhere {
    /// Takes those that are gateways of other data centres from `hosts`.
    fn take(hosts: &mut Vec<Arc<Endpoint>>) -> Option<Box<Elsewhere>> {
        let share = hosts.iter().filter_map(|host| host.remote.as_ref()).map(|remote| remote.share).max()?;
        let gateways: Vec<_> = hosts.extract_if(.., |host| host.remote.is_some()).collect();
        let kind = Kind::LeastRequest(LeastRequest::new(&gateways));
        let gateways = Balancer { hosts: gateways, kind, panic: false, elsewhere: None };
        Some(Box::new(Elsewhere { share, gateways }))
    }

    /// Whether a request goes there although it could stay. A hash decides for good: whoever has it stays on one side, and
    /// where the share grows only some of those here leave.
    fn is_due(&self, hash: Option<u64>, random: &mut impl FnMut() -> u64) -> bool {
        // Others of its bits than those that say the place on the ring.
        let mixed = |hash: u64| hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.share > 0 && hash.map_or_else(random, mixed) % 100 < u64::from(self.share)
    }
}

/// Envoy's panic: fewer healthy than the threshold, and the over-provisioning factor of 1.4 does not make up for it.
fn is_panic(healthy: usize, total: usize, min_health_percent: u32) -> bool {
    let threshold = min_health_percent as usize;
    healthy * 140 < total * 100 && healthy * 100 < total * threshold
}

/// Weights as shares of 1; empty for no hosts.
fn normalised_weights(hosts: &[Arc<Endpoint>]) -> Vec<f64> {
    let total: f64 = hosts.iter().map(|host| f64::from(host.config.weight)).sum();
    hosts.iter().map(|host| f64::from(host.config.weight) / total).collect()
}

fn has_equal_weights(hosts: &[Arc<Endpoint>]) -> bool {
    hosts.windows(2).all(|pair| pair[0].config.weight == pair[1].config.weight)
}

#[cfg(test)]
mod tests;
