//! Connections whose first bytes have not come: which of them goes when there are too many.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;

/// Bounds, and those that are silent now. `K`: what a connection comes from, an address.
#[derive(Debug)]
pub struct Silent<K> {
    per_source: usize,
    total: usize,
    next: u64,
    /// By age: the oldest has the smallest number.
    all: BTreeMap<u64, K>,
    by_source: HashMap<K, VecDeque<u64>>,
}

impl<K: Eq + Hash + Clone> Silent<K> {
    /// At most so many of one source, and in total; both 1 or more.
    pub fn new(per_source: usize, total: usize) -> Silent<K> {
        Silent { per_source, total, next: 0, all: BTreeMap::new(), by_source: HashMap::new() }
    }

    /// One more. Gives its number, and that of the one that has to go for it: the oldest of the same source, or of all.
    pub fn add(&mut self, source: K) -> (u64, Option<u64>) {
        let of_source = self.by_source.get(&source).filter(|held| held.len() >= self.per_source);
        let goes = match of_source.and_then(|held| held.front()) {
            Some(oldest) => Some(*oldest),
            None if self.all.len() >= self.total => self.all.keys().next().copied(),
            None => None,
        };
        if let Some(goes) = goes {
            self.remove(goes);
        }
        let number = self.next;
        self.next += 1;
        self.all.insert(number, source.clone());
        self.by_source.entry(source).or_default().push_back(number);
        (number, goes)
    }

    /// It is silent no more, or gone.
    pub fn remove(&mut self, number: u64) {
        let Some(source) = self.all.remove(&number) else { return };
        if let Some(held) = self.by_source.get_mut(&source) {
            held.retain(|other| *other != number);
            if held.is_empty() {
                self.by_source.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_a_source_goes_first_and_then_the_oldest_of_all() {
        let mut silent = Silent::new(2, 4);
        assert_eq!(silent.add("a"), (0, None));
        assert_eq!(silent.add("a"), (1, None));
        assert_eq!(silent.add("a"), (2, Some(0)));
        assert_eq!(silent.add("b"), (3, None));
        assert_eq!(silent.add("c"), (4, None));
        assert_eq!(silent.add("d"), (5, Some(1)), "of all: the oldest");
        silent.remove(4);
        silent.remove(4);
        assert_eq!(silent.add("d"), (6, None));
        assert_eq!((silent.all.len(), silent.by_source.len()), (4, 3), "a, b and d");
    }
}
