//! Least request: the less busy endpoint of two.
//!
//! Equal weights: two random picks with replacement, the second wins only when strictly less busy (power of two
//! choices). Unequal: a random pick by `weight / (requests in flight + 1)`, the shares that Envoy's scheduler converges
//! to, without its queue, which would have to be locked between workers.

use std::sync::Arc;

use crate::endpoint::Endpoint;
use crate::retry::scale;

use super::group::are_equal;

#[derive(Debug)]
pub(super) struct LeastRequest {
    /// Empty: all are equal.
    weights: Vec<u32>,
}

impl LeastRequest {
    pub(super) fn new(weights: Vec<u32>) -> Self {
        LeastRequest { weights: if are_equal(&weights) { Vec::new() } else { weights } }
    }

    /// Index into `hosts`, which must be those of `new` and not empty.
    pub(super) fn pick(&self, hosts: &[Arc<Endpoint>], random: &mut impl FnMut() -> u64) -> usize {
        if !self.weights.is_empty() {
            return self.pick_weighted(hosts, random());
        }
        let mut draw = || scale(random(), hosts.len() as u64) as usize;
        let (first, second) = (draw(), draw());
        if hosts[second].state.in_flight() < hosts[first].state.in_flight() { second } else { first }
    }

    fn pick_weighted(&self, hosts: &[Arc<Endpoint>], random: u64) -> usize {
        let share =
            |(host, weight): (&Arc<Endpoint>, &u32)| f64::from(*weight) / (f64::from(host.state.in_flight()) + 1.0);
        let total: f64 = hosts.iter().zip(&self.weights).map(share).sum();
        let mut point = (random >> 11) as f64 / (1u64 << 53) as f64 * total;
        for (index, host) in hosts.iter().zip(&self.weights).enumerate() {
            point -= share(host);
            if point < 0.0 {
                return index;
            }
        }
        // Only if the counters changed between the two loops.
        hosts.len() - 1
    }
}
