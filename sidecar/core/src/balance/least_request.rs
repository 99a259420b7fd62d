//! The less busy one.
//!
//! Equal weights: two random picks with replacement, the second wins only when strictly less busy (power of two
//! choices). Unequal: a random pick by `weight / (requests in flight + 1)`, the shares that Envoy's scheduler converges
//! to, without its queue, which would have to be locked between workers.

use std::sync::Arc;

use crate::endpoint::Endpoint;
use crate::retry::scale;

use super::has_equal_weights;

#[derive(Debug)]
pub(super) struct LeastRequest {
    equal: bool,
}

impl LeastRequest {
    pub(super) fn new(hosts: &[Arc<Endpoint>]) -> Self {
        LeastRequest { equal: has_equal_weights(hosts) }
    }

    /// Index of one of `hosts`, the same as in `new`. There is at least one.
    pub(super) fn pick(&self, hosts: &[Arc<Endpoint>], random: &mut impl FnMut() -> u64) -> usize {
        if !self.equal {
            return pick_weighted(hosts, random());
        }
        let mut draw = || scale(random(), hosts.len() as u64) as usize;
        let (first, second) = (draw(), draw());
        if hosts[second].state.in_flight() < hosts[first].state.in_flight() { second } else { first }
    }
}

fn pick_weighted(hosts: &[Arc<Endpoint>], random: u64) -> usize {
    let share = |host: &Arc<Endpoint>| f64::from(host.config.weight) / (f64::from(host.state.in_flight()) + 1.0);
    let total: f64 = hosts.iter().map(share).sum();
    let mut point = (random >> 11) as f64 / (1u64 << 53) as f64 * total;
    for (index, host) in hosts.iter().enumerate() {
        point -= share(host);
        if point < 0.0 {
            return index;
        }
    }
    // The counts moved between the two loops.
    hosts.len() - 1
}
