//! Virtual IPs: one address of 240.240.0.0/16 per host, the same on every sidecar.
//!
//! Applications cache addresses, so an address must not be assigned to another host soon: a removed host keeps its address
//! for a day, and gets it again if it returns.
//!
//! The address of a host is derived from its name, so that several control planes that see a new host at the same moment
//! mostly choose the same one. The store decides: an address that it has is adopted ([`VirtualIps::adopt`]), whatever was
//! chosen here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use xxhash_rust::xxh64::xxh64;

/// Seconds for which a released address stays its host's.
pub const QUARANTINE_S: u64 = 24 * 60 * 60;

/// The address of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// In 240.240.0.0/16.
    pub address: Ipv4Addr,
    /// Unix seconds at which the host left; `None`: it is there.
    pub released: Option<u64>,
    /// Revision of the store that has it; 0: it was chosen here and is not kept yet.
    pub modified: u64,
}

/// Whose an address is, to be kept in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The address.
    pub address: Ipv4Addr,
    /// Its host and when that left; `None`: nobody's.
    pub holder: Option<(String, Option<u64>)>,
    /// Revision of what the store has of it; 0: nothing.
    pub modified: u64,
}

/// All allocations.
#[derive(Clone, Debug, Default)]
pub struct VirtualIps {
    by_host: BTreeMap<String, Allocation>,
    by_address: BTreeMap<Ipv4Addr, String>,
    /// Hosts that left, by when.
    released: BTreeSet<(u64, String)>,
    /// Addresses that differ from what was last taken to be kept, with the revision of what the store has of them.
    changed: BTreeMap<Ipv4Addr, u64>,
}

impl VirtualIps {
    /// The address of `host`, new or its old one. `None` when all 65,534 are taken.
    pub fn allocate(&mut self, host: &str) -> Option<Ipv4Addr> {
        if let Some(allocation) = self.by_host.get_mut(host) {
            let address = allocation.address;
            if let Some(at) = allocation.released.take() {
                self.released.remove(&(at, host.to_owned()));
                self.changed.insert(address, allocation.modified);
            }
            return Some(address);
        }
        let [.., high, low] = xxh64(host.as_bytes(), 0).to_be_bytes();
        let first = u16::from_be_bytes([high, low]);
        let address = (0..=u16::MAX)
            .map(|step| first.wrapping_add(step))
            .filter(|&low| low != 0 && low != u16::MAX)
            .map(address)
            .find(|address| !self.by_address.contains_key(address))?;
        self.insert(host, Allocation { address, released: None, modified: 0 });
        self.changed.insert(address, 0);
        Some(address)
    }

    /// `host` left at `now`.
    pub fn release(&mut self, host: &str, now: u64) {
        if let Some(allocation) = self.by_host.get_mut(host)
            && allocation.released.is_none()
        {
            allocation.released = Some(now);
            self.released.insert((now, host.to_owned()));
            self.changed.insert(allocation.address, allocation.modified);
        }
    }

    /// Forgets the hosts that left more than a day before `now`, and names them.
    pub fn expire(&mut self, now: u64) -> Vec<String> {
        let mut hosts = Vec::new();
        while let Some((at, host)) = self.released.first().cloned()
            && now >= at + QUARANTINE_S
        {
            self.released.pop_first();
            if let Some(allocation) = self.remove(&host) {
                self.changed.insert(allocation.address, allocation.modified);
            }
            hosts.push(host);
        }
        hosts
    }

    /// What changed since the last call, to be kept. The cost is that of the changes, not of all allocations.
    pub fn take_changed(&mut self) -> Vec<Keep> {
        let keep = |(address, modified): (Ipv4Addr, u64)| {
            let holder = self.by_address.get(&address);
            let holder = holder.and_then(|host| Some((host.clone(), self.by_host.get(host)?.released)));
            // What was neither kept nor is to be is no change.
            (holder.is_some() || modified != 0).then_some(Keep { address, holder, modified })
        };
        std::mem::take(&mut self.changed).into_iter().filter_map(keep).collect()
    }

    /// What [`VirtualIps::take_changed`] gave could not be kept.
    pub fn put_back(&mut self, all: impl IntoIterator<Item = Keep>) {
        for Keep { address, modified, .. } in all {
            self.changed.entry(address).or_insert(modified);
        }
    }

    /// Whether something is to be kept.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Takes up what the store has: whose `address` is, or `None` for nobody's. Returns the hosts whose address is another
    /// now. A host that two control planes gave an address each keeps the lower one.
    pub fn adopt(&mut self, address: Ipv4Addr, kept: Option<(String, Allocation)>) -> Vec<String> {
        let holder = self.by_address.get(&address).cloned();
        let Some((host, allocation)) = kept else {
            // One that was chosen here is on its way to the store.
            let stored = |host: &String| self.by_host.get(host).is_some_and(|held| held.modified != 0);
            let gone = holder.filter(stored);
            if let Some(host) = &gone {
                self.remove(host);
            }
            return gone.into_iter().collect();
        };
        let mut moved = Vec::new();
        match self.by_host.get(&host).copied() {
            Some(held) if held.address == address => {
                self.remove(&host);
                self.insert(&host, allocation);
                return moved;
            }
            Some(held) if held.modified != 0 && held.address < address => {
                self.changed.insert(address, allocation.modified);
                return moved;
            }
            Some(held) => {
                self.remove(&host);
                self.changed.insert(held.address, held.modified);
            }
            None => {}
        }
        if let Some(holder) = holder {
            let held = self.remove(&holder);
            if held.is_some_and(|held| held.released.is_none()) {
                self.insert(&host, allocation);
                self.allocate(&holder);
            }
            moved.push(holder);
        }
        self.insert(&host, allocation);
        self.changed.remove(&address);
        moved.push(host);
        moved
    }

    /// The address of `host`, while it is there or might come back.
    pub fn of(&self, host: &str) -> Option<Ipv4Addr> {
        self.by_host.get(host).map(|allocation| allocation.address)
    }

    /// The host of `address`.
    pub fn host(&self, address: Ipv4Addr) -> Option<&str> {
        self.by_address.get(&address).map(String::as_str)
    }

    /// All allocations.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Allocation)> {
        self.by_host.iter().map(|(host, allocation)| (host.as_str(), *allocation))
    }

    fn insert(&mut self, host: &str, allocation: Allocation) {
        self.by_address.insert(allocation.address, host.to_owned());
        self.released.extend(allocation.released.map(|at| (at, host.to_owned())));
        self.by_host.insert(host.to_owned(), allocation);
    }

    fn remove(&mut self, host: &str) -> Option<Allocation> {
        let allocation = self.by_host.remove(host)?;
        self.by_address.remove(&allocation.address);
        if let Some(at) = allocation.released {
            self.released.remove(&(at, host.to_owned()));
        }
        Some(allocation)
    }
}

fn address(low: u16) -> Ipv4Addr {
    let [high, low] = low.to_be_bytes();
    Ipv4Addr::new(240, 240, high, low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_not_reused_within_a_day() {
        let mut ips = VirtualIps::default();
        let a = ips.allocate("a").unwrap();
        // All others taken: the next host needs this one.
        (0..65_533).for_each(|n| assert!(ips.allocate(&format!("h{n}")).is_some(), "{n}"));
        assert_eq!(ips.allocate("one too many"), None);
        ips.release("a", 1000);
        assert_eq!(ips.allocate("b"), None);
        assert!(ips.expire(1000 + QUARANTINE_S - 1).is_empty());
        assert_eq!(ips.allocate("a"), Some(a), "a host that comes back has its address");
        ips.release("a", 2000);
        assert_eq!(ips.expire(2000 + QUARANTINE_S), ["a"]);
        assert_eq!(ips.allocate("c"), Some(a));
    }

    #[test]
    fn changes_are_told_once() {
        let mut ips = VirtualIps::default();
        let address = ips.allocate("a").unwrap();
        let keep = |released| vec![Keep { address, holder: Some(("a".to_owned(), released)), modified: 0 }];
        ips.allocate("a");
        assert_eq!(ips.take_changed(), keep(None));
        assert_eq!(ips.take_changed(), []);
        ips.release("a", 5);
        ips.release("a", 6);
        assert_eq!(ips.take_changed(), keep(Some(5)));
        ips.allocate("a");
        assert_eq!(ips.take_changed(), keep(None));
        let kept = Allocation { address, released: None, modified: 3 };
        assert!(ips.adopt(address, Some(("a".to_owned(), kept))).is_empty());
        assert_eq!(ips.take_changed(), [], "what is kept is kept");
        ips.release("a", 7);
        assert_eq!(ips.expire(7 + QUARANTINE_S), ["a"]);
        assert_eq!(ips.take_changed(), [Keep { address, holder: None, modified: 3 }]);
    }

    #[test]
    fn the_same_name_gets_the_same_address_everywhere() {
        let (mut one, mut two) = (VirtualIps::default(), VirtualIps::default());
        ["a", "b", "c"].iter().for_each(|host| assert!(one.allocate(host).is_some()));
        ["c", "a", "b"].iter().for_each(|host| assert!(two.allocate(host).is_some()));
        assert!(one.iter().eq(two.iter()));
    }

    #[test]
    fn what_the_store_has_goes_before_what_was_chosen_here() {
        let mut ips = VirtualIps::default();
        let chosen = ips.allocate("a").unwrap();
        ips.take_changed();
        let kept = |address, modified| Allocation { address, released: None, modified };
        // Another control plane gave it to another host: ours moves.
        assert_eq!(ips.adopt(chosen, Some(("b".to_owned(), kept(chosen, 9)))), ["a", "b"]);
        assert_eq!((ips.of("b"), ips.host(chosen)), (Some(chosen), Some("b")));
        let moved = ips.of("a").unwrap();
        assert_ne!(moved, chosen);
        let keep = Keep { address: moved, holder: Some(("a".to_owned(), None)), modified: 0 };
        assert_eq!(ips.take_changed(), [keep], "the new choice is to be kept, the store's is");
        // And another gave ours another address.
        let other = Ipv4Addr::new(240, 240, 0, 7);
        assert_eq!(ips.adopt(other, Some(("a".to_owned(), kept(other, 10)))), ["a"]);
        assert_eq!((ips.of("a"), ips.host(moved)), (Some(other), None));
        assert_eq!(ips.take_changed(), [], "what was never kept need not be removed");
        // Two that are kept: the lower stays, the other is given back.
        let higher = Ipv4Addr::new(240, 240, 255, 7);
        assert!(ips.adopt(higher, Some(("a".to_owned(), kept(higher, 11)))).is_empty());
        assert_eq!(ips.take_changed(), [Keep { address: higher, holder: None, modified: 11 }]);
        assert_eq!(ips.adopt(other, None), ["a"]);
        assert_eq!(ips.of("a"), None);
    }
}
