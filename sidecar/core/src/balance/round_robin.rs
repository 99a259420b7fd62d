//! Round robin, by weight.
//!
//! Equal weights: a cursor modulo the number of hosts. Unequal weights: the same cursor over a precomputed schedule
//! that spreads each host's turns evenly. Envoy keeps a priority queue per worker instead; a schedule gives the same
//! order of turns, is shared by all workers, and costs one atomic addition.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::group::are_equal;

/// Weights are scaled down above this number of turns: 1:1000000 becomes coarser, memory stays small.
const MAX_TURNS: u64 = 8192;

#[derive(Debug)]
pub(super) struct RoundRobin {
    cursor: Arc<AtomicUsize>,
    hosts: usize,
    // Empty: weights are equal.
    schedule: Vec<u32>,
}

impl RoundRobin {
    pub(super) fn new(weights: &[u32], previous: Option<&RoundRobin>) -> Self {
        let cursor = previous.map(|previous| previous.cursor.clone()).unwrap_or_default();
        let schedule = if are_equal(weights) { Vec::new() } else { schedule(weights) };
        RoundRobin { cursor, hosts: weights.len(), schedule }
    }

    /// Index of a host. Requires at least one.
    pub(super) fn pick(&self) -> usize {
        let turn = self.cursor.fetch_add(1, Ordering::Relaxed);
        match self.schedule.len() {
            0 => turn % self.hosts,
            turns => self.schedule[turn % turns] as usize,
        }
    }
}

/// Earliest deadline first: host i's turns are due at (k + 1/2) / weight.
fn schedule(weights: &[u32]) -> Vec<u32> {
    let weights: Vec<u64> = weights.iter().map(|weight| u64::from(*weight)).collect();
    let divisor = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
    let total: u64 = weights.iter().map(|weight| weight / divisor).sum();
    let turns_of = |weight: u64| match total > MAX_TURNS {
        true => (u128::from(weight / divisor) * u128::from(MAX_TURNS) / u128::from(total)).max(1) as u64,
        false => weight / divisor,
    };
    let turns: Vec<u64> = weights.into_iter().map(turns_of).collect();
    // Due times as fractions of one round, in 2^-32; ties are resolved in favour of the earlier host.
    let due = |host: usize, k: u64| (((u128::from(2 * k + 1)) << 31) / u128::from(turns[host])) as u64;
    let mut queue: BinaryHeap<_> = (0..turns.len()).map(|host| Reverse((due(host, 0), host, 0))).collect();
    let mut schedule = Vec::new();
    while let Some(Reverse((_, host, k))) = queue.pop() {
        schedule.push(host as u32);
        if k + 1 < turns[host] {
            queue.push(Reverse((due(host, k + 1), host, k + 1)));
        }
    }
    schedule
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
