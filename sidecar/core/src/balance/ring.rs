//! Ring hash (ketama), entry by entry as Envoy builds it: an endpoint is placed at the hashes of its key with a running
//! number; a request goes to the first entry at or after its own hash.
//!
//! There is one difference, above eight endpoints: Envoy gives each endpoint about `minimum / n` entries, so that the
//! removal of one of ten gives every other endpoint new entries and moves 17 % of all keys (measured) instead of the
//! necessary 10 %. Here the number of entries per endpoint stays constant above eight endpoints, and the ring grows
//! beyond the configured minimum.

use std::sync::Arc;

use crate::endpoint::Endpoint;
use crate::hash::key_hash;

use super::group::normalised;

/// Envoy's bound for the number of entries.
const MAX_SIZE: f64 = 8_388_608.0;
/// Number of hosts up to which the ring equals Envoy's.
const ENVOY_HOSTS: usize = 8;

#[derive(Debug)]
pub(super) struct Ring {
    // Hash and index of the host, ascending.
    entries: Vec<(u64, u32)>,
}

impl Ring {
    pub(super) fn new(hosts: &[Arc<Endpoint>], weights: &[u32], minimum_size: u64) -> Self {
        let weights = normalised(weights);
        let lightest = weights.iter().copied().fold(1.0, f64::min);
        // The lightest host gets an integral number of entries, so that equal weights get equal numbers of entries.
        let scale = (entries_of_lightest(lightest, hosts.len(), minimum_size as f64) / lightest).min(MAX_SIZE);
        let mut entries = Vec::with_capacity(scale.ceil() as usize);
        let (mut current, mut target) = (0.0, 0.0);
        let mut key = Vec::new();
        for (index, host) in hosts.iter().enumerate() {
            target += scale * weights[index];
            key.clear();
            key.extend_from_slice(host.key.as_bytes());
            key.push(b'_');
            let prefix = key.len();
            let mut number = 0u32;
            while current < target {
                key.truncate(prefix);
                push_number(&mut key, number);
                entries.push((key_hash(&key, 0), index as u32));
                number += 1;
                current += 1.0;
            }
        }
        entries.sort_unstable_by_key(|(hash, _)| *hash);
        Ring { entries }
    }

    /// Index of a host. Requires at least one.
    pub(super) fn pick(&self, hash: u64, attempt: u32) -> usize {
        let first = self.entries.partition_point(|(entry, _)| *entry < hash);
        // Past the last entry the ring wraps around.
        let place = if first == self.entries.len() { 0 } else { first };
        self.entries[(place + attempt as usize) % self.entries.len()].1 as usize
    }

    #[cfg(test)]
    pub(super) fn entries(&self) -> &[(u64, u32)] {
        &self.entries
    }
}

fn entries_of_lightest(weight: f64, hosts: usize, minimum_size: f64) -> f64 {
    if hosts <= ENVOY_HOSTS {
        return (weight * minimum_size).ceil();
    }
    let grown = minimum_size * hosts as f64 / ENVOY_HOSTS as f64;
    // Rounding errors such as 1/9 * 9 > 1 must not add an entry, or nine hosts would get a different ring than ten.
    (weight * grown - 1e-6).ceil().max(1.0)
}

fn push_number(key: &mut Vec<u8>, number: u32) {
    use std::io::Write;
    // Writing to a Vec cannot fail.
    let _ = write!(key, "{number}");
}
