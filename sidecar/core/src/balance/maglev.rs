//! Maglev hashing, slot by slot as Envoy fills its table: each endpoint has a permutation of the slots of its own and
//! takes the next free one in turn, lighter endpoints less often.

use std::sync::Arc;

use crate::endpoint::Endpoint;
use crate::hash::key_hash;

use super::group::normalised;

#[derive(Debug)]
pub(super) struct Maglev {
    // Index of each slot's host.
    table: Vec<u32>,
}

struct Build {
    host: u32,
    offset: u64,
    skip: u64,
    next: u64,
    weight: f64,
    target_weight: f64,
}

const FREE: u32 = u32::MAX;

impl Maglev {
    /// `size` must be a prime.
    pub(super) fn new(hosts: &[Arc<Endpoint>], weights: &[u32], size: u64) -> Self {
        let weights = normalised(weights);
        let heaviest = weights.iter().copied().fold(0.0, f64::max);
        let mut builds: Vec<Build> = hosts
            .iter()
            .enumerate()
            .map(|(index, host)| Build {
                host: index as u32,
                offset: key_hash(host.key.as_bytes(), 0) % size,
                skip: key_hash(host.key.as_bytes(), 1) % (size - 1) + 1,
                next: 0,
                weight: weights[index],
                target_weight: 0.0,
            })
            .collect();
        builds.sort_by(|a, b| hosts[a.host as usize].key.cmp(&hosts[b.host as usize].key));
        if builds.is_empty() {
            return Maglev { table: Vec::new() };
        }
        let mut table = vec![FREE; size as usize];
        let mut free = table.len();
        let mut iteration = 1.0;
        while free > 0 {
            for build in &mut builds {
                // A host with half the greatest weight takes a slot in every second iteration.
                if iteration * build.weight < build.target_weight {
                    continue;
                }
                build.target_weight += heaviest;
                let slot = build.next_free(&table);
                table[slot] = build.host;
                free -= 1;
                if free == 0 {
                    break;
                }
            }
            iteration += 1.0;
        }
        Maglev { table }
    }

    /// Index of a host. Requires at least one.
    pub(super) fn pick(&self, hash: u64, attempt: u32) -> usize {
        let hash = match attempt {
            0 => hash,
            attempt => hash ^ (u64::MAX - u64::from(attempt) + 1),
        };
        self.table[(hash % self.table.len() as u64) as usize] as usize
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &[u32] {
        &self.table
    }
}

impl Build {
    /// The next free slot of this host's permutation. The table must have one; the permutation visits every slot
    /// because the size is prime.
    fn next_free(&mut self, table: &[u32]) -> usize {
        loop {
            let slot = ((self.offset + self.skip * self.next) % table.len() as u64) as usize;
            self.next += 1;
            if table[slot] == FREE {
                return slot;
            }
        }
    }
}
