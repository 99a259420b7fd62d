//! Virtual IPs: one address of 240.240.0.0/16 per host, the same on every sidecar.
//!
//! Applications cache addresses, so an address must not be assigned to another host soon: a removed host keeps its
//! address for a day, and gets it again if it returns.
//!
//! The address of a host is derived from its name, so that several control planes that see a new host at the same
//! moment mostly choose the same one. The store decides: an address in the store is adopted ([`VirtualIps::adopt`]),
//! whatever was chosen here.

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
    /// Unix seconds at which the host left; `None`: it is present.
    pub released: Option<u64>,
    /// Revision of the store that has it; 0: it was chosen here and is not stored yet.
    pub modified: u64,
}

/// The holder of an address, for the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The address.
    pub address: Ipv4Addr,
    /// Its host, and when that left; `None`: it is free.
    pub holder: Option<(String, Option<u64>)>,
    /// Revision of the address in the store; 0: it is not stored.
    pub modified: u64,
}

/// All allocations.
#[derive(Clone, Debug, Default)]
pub struct VirtualIps {
    by_host: BTreeMap<String, Allocation>,
    by_address: BTreeMap<Ipv4Addr, String>,
    /// Hosts that left, by when.
    released: BTreeSet<(u64, String)>,
    /// Addresses that differ from the last result of [`VirtualIps::take_changed`], with their revision in the store.
    changed: BTreeMap<Ipv4Addr, u64>,
}

impl VirtualIps {
    /// The address of `host`, new or its old one. `None` if all 65,534 are taken.
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

    /// Marks `host` as having left at `now`.
    pub fn release(&mut self, host: &str, now: u64) {
        if let Some(allocation) = self.by_host.get_mut(host)
            && allocation.released.is_none()
        {
            allocation.released = Some(now);
            self.released.insert((now, host.to_owned()));
            self.changed.insert(allocation.address, allocation.modified);
        }
    }

    /// Removes the hosts that left more than a day before `now`, and returns them.
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

    /// The changes since the last call, for the store. The cost is that of the changes, not of all allocations.
    pub fn take_changed(&mut self) -> Vec<Keep> {
        let keep = |(address, modified): (Ipv4Addr, u64)| {
            let holder = self.by_address.get(&address);
            let holder = holder.and_then(|host| Some((host.clone(), self.by_host.get(host)?.released)));
            // An address that neither was stored nor must be is not a change.
            (holder.is_some() || modified != 0).then_some(Keep { address, holder, modified })
        };
        std::mem::take(&mut self.changed).into_iter().filter_map(keep).collect()
    }

    /// Returns allocations of [`VirtualIps::take_changed`] that could not be stored.
    pub fn put_back(&mut self, all: impl IntoIterator<Item = Keep>) {
        for Keep { address, modified, .. } in all {
            self.changed.entry(address).or_insert(modified);
        }
    }

    /// Whether there are changes for the store.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Adopts the holder of `address` in the store, `None` if it is free. Returns the hosts whose address has changed.
    /// A host to which two control planes assigned different addresses keeps the lower one.
    pub fn adopt(&mut self, address: Ipv4Addr, kept: Option<(String, Allocation)>) -> Vec<String> {
        let holder = self.by_address.get(&address).cloned();
        let Some((host, allocation)) = kept else {
            // An address that was chosen here is on its way to the store.
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

    /// The address of `host`, as long as it is present or in quarantine.
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
        // All other addresses are taken: the next host needs this one.
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
    fn changes_are_reported_once() {
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
        assert_eq!(ips.take_changed(), [], "stored addresses stay");
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
    fn addresses_in_the_store_take_precedence_over_local_choices() {
        let mut ips = VirtualIps::default();
        let chosen = ips.allocate("a").unwrap();
        ips.take_changed();
        let stored = |address, modified| Allocation { address, released: None, modified };
        // Another control plane assigned it to another host: the local assignment changes.
        assert_eq!(ips.adopt(chosen, Some(("b".to_owned(), stored(chosen, 9)))), ["a", "b"]);
        assert_eq!((ips.of("b"), ips.host(chosen)), (Some(chosen), Some("b")));
        let moved = ips.of("a").unwrap();
        assert_ne!(moved, chosen);
        let keep = Keep { address: moved, holder: Some(("a".to_owned(), None)), modified: 0 };
        assert_eq!(ips.take_changed(), [keep], "the new choice must be stored, the store's is");
        // Another control plane assigned a different address to the local host.
        let other = Ipv4Addr::new(240, 240, 0, 7);
        assert_eq!(ips.adopt(other, Some(("a".to_owned(), stored(other, 10)))), ["a"]);
        assert_eq!((ips.of("a"), ips.host(moved)), (Some(other), None));
        assert_eq!(ips.take_changed(), [], "an address that was never stored need not be removed");
        // If two are stored, the lower stays and the other is released.
        let higher = Ipv4Addr::new(240, 240, 255, 7);
        assert!(ips.adopt(higher, Some(("a".to_owned(), stored(higher, 11)))).is_empty());
        assert_eq!(ips.take_changed(), [Keep { address: higher, holder: None, modified: 11 }]);
        assert_eq!(ips.adopt(other, None), ["a"]);
        assert_eq!(ips.of("a"), None);
    }
}
