//! Random choice by weight.

use crate::retry::scale;

/// Uniform if all weights are equal; otherwise by running sums of the weights.
#[derive(Debug)]
pub(super) struct Random {
    // Running sum up to and including each host.
    sums: Vec<u64>,
}

impl Random {
    pub(super) fn new(weights: &[u32]) -> Self {
        let sums = weights.iter().scan(0, |sum, weight| {
            *sum += u64::from(*weight);
            Some(*sum)
        });
        Random { sums: sums.collect() }
    }

    /// Index of a host. Requires at least one.
    pub(super) fn pick(&self, random: &mut impl FnMut() -> u64) -> usize {
        let total = self.sums.last().copied().unwrap_or(0);
        let point = scale(random(), total);
        self.sums.partition_point(|sum| *sum <= point)
    }
}
