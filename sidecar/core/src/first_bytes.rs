//! Connections that have not sent their first bytes: selection of the one to close when there are too many.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;

/// The limits, and the current connections. `K`: the source of a connection, an address.
#[derive(Debug)]
pub struct FirstBytesWait<K> {
    per_source: usize,
    total: usize,
    next: u64,
    /// Ordered by age: the oldest has the smallest number.
    all: BTreeMap<u64, K>,
    by_source: HashMap<K, VecDeque<u64>>,
}

impl<K: Eq + Hash + Clone> FirstBytesWait<K> {
    /// Limits per source and in total; both must be at least 1.
    pub fn new(per_source: usize, total: usize) -> FirstBytesWait<K> {
        FirstBytesWait { per_source, total, next: 0, all: BTreeMap::new(), by_source: HashMap::new() }
    }

    /// Adds a connection. Returns its number, and the number of a connection to close for it: the oldest of the same
    /// source, or of all.
    pub fn add(&mut self, source: K) -> (u64, Option<u64>) {
        let of_source = self.by_source.get(&source).filter(|numbers| numbers.len() >= self.per_source);
        let evicted = match of_source.and_then(|numbers| numbers.front()) {
            Some(oldest) => Some(*oldest),
            None if self.all.len() >= self.total => self.all.keys().next().copied(),
            None => None,
        };
        if let Some(evicted) = evicted {
            self.remove(evicted);
        }
        let number = self.next;
        self.next += 1;
        self.all.insert(number, source.clone());
        self.by_source.entry(source).or_default().push_back(number);
        (number, evicted)
    }

    /// Removes a connection that has sent bytes or was closed.
    pub fn remove(&mut self, number: u64) {
        let Some(source) = self.all.remove(&number) else { return };
        if let Some(numbers) = self.by_source.get_mut(&source) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.by_source.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_the_same_source_is_evicted_before_the_oldest_of_all() {
        let mut waiting = FirstBytesWait::new(2, 4);
        assert_eq!(waiting.add("a"), (0, None));
        assert_eq!(waiting.add("a"), (1, None));
        assert_eq!(waiting.add("a"), (2, Some(0)));
        assert_eq!(waiting.add("b"), (3, None));
        assert_eq!(waiting.add("c"), (4, None));
        assert_eq!(waiting.add("d"), (5, Some(1)), "of all: the oldest");
        waiting.remove(4);
        waiting.remove(4);
        assert_eq!(waiting.add("d"), (6, None));
        assert_eq!((waiting.all.len(), waiting.by_source.len()), (4, 3), "a, b and d");
    }
}
