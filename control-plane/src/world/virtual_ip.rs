//! Virtual IPs: one address of 240.240.0.0/16 per host, the same on every sidecar.
//!
//! Applications cache addresses, so an address must never come to mean another host soon after: a host that leaves keeps
//! its address for a day, and takes it up again if it comes back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

/// Seconds for which a released address stays its host's.
pub const QUARANTINE_S: u64 = 24 * 60 * 60;

/// The address of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// In 240.240.0.0/16.
    pub address: Ipv4Addr,
    /// Unix seconds at which the host left; `None`: it is there.
    pub released: Option<u64>,
}

/// All allocations.
#[derive(Clone, Debug, Default)]
pub struct VirtualIps {
    by_host: BTreeMap<String, Allocation>,
    by_address: BTreeMap<Ipv4Addr, String>,
    /// Hosts that left, by when.
    released: BTreeSet<(u64, String)>,
    /// Hosts whose allocation differs from what was last taken to be kept.
    changed: BTreeSet<String>,
    /// Last one given: going on from here makes reuse as late as it can be.
    last: u16,
}

impl VirtualIps {
    /// The address of `host`, new or its old one. `None` when all 65,534 are taken.
    pub fn allocate(&mut self, host: &str) -> Option<Ipv4Addr> {
        if let Some(allocation) = self.by_host.get_mut(host) {
            let address = allocation.address;
            if let Some(at) = allocation.released.take() {
                self.released.remove(&(at, host.to_owned()));
                self.changed.insert(host.to_owned());
            }
            return Some(address);
        }
        let address = (1..=u16::MAX)
            .map(|step| self.last.wrapping_add(step))
            .filter(|&low| low != 0 && low != u16::MAX)
            .map(address)
            .find(|address| !self.by_address.contains_key(address))?;
        self.insert(host, Allocation { address, released: None });
        self.changed.insert(host.to_owned());
        Some(address)
    }

    /// `host` left at `now`.
    pub fn release(&mut self, host: &str, now: u64) {
        if let Some(allocation) = self.by_host.get_mut(host)
            && allocation.released.is_none()
        {
            allocation.released = Some(now);
            self.released.insert((now, host.to_owned()));
            self.changed.insert(host.to_owned());
        }
    }

    /// Forgets the hosts that left more than a day before `now`, and names them.
    pub fn expire(&mut self, now: u64) -> Vec<String> {
        let mut hosts = Vec::new();
        while self.released.first().is_some_and(|(at, _)| now >= at + QUARANTINE_S) {
            let Some((_, host)) = self.released.pop_first() else { break };
            if let Some(allocation) = self.by_host.remove(&host) {
                self.by_address.remove(&allocation.address);
            }
            self.changed.insert(host.clone());
            hosts.push(host);
        }
        hosts
    }

    /// What changed since the last call, to be kept; `None`: the host's allocation is gone. The cost is that of the
    /// changes, not of all allocations.
    pub fn take_changed(&mut self) -> Vec<(String, Option<Allocation>)> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .into_iter()
            .map(|host| (self.by_host.get(&host).copied(), host))
            .map(|(kept, host)| (host, kept))
            .collect()
    }

    /// What [`VirtualIps::take_changed`] gave could not be kept.
    pub fn put_back(&mut self, hosts: impl IntoIterator<Item = String>) {
        self.changed.extend(hosts);
    }

    /// Takes up an allocation that was kept. Ignored where the address is another host's already.
    pub fn restore(&mut self, host: &str, allocation: Allocation) {
        if !self.by_address.contains_key(&allocation.address) && !self.by_host.contains_key(host) {
            self.insert(host, allocation);
        }
    }

    /// The address of `host`, while it is there or might come back.
    pub fn of(&self, host: &str) -> Option<Ipv4Addr> {
        self.by_host.get(host).map(|allocation| allocation.address)
    }

    /// The host of `address`.
    pub fn host(&self, address: Ipv4Addr) -> Option<&str> {
        self.by_address.get(&address).map(String::as_str)
    }

    /// All allocations, to be kept.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Allocation)> {
        self.by_host.iter().map(|(host, allocation)| (host.as_str(), *allocation))
    }

    fn insert(&mut self, host: &str, allocation: Allocation) {
        let [_, _, high, low] = allocation.address.octets();
        self.last = u16::from_be_bytes([high, low]);
        self.by_address.insert(allocation.address, host.to_owned());
        self.released.extend(allocation.released.map(|at| (at, host.to_owned())));
        self.by_host.insert(host.to_owned(), allocation);
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
        assert_eq!(a, Ipv4Addr::new(240, 240, 0, 1));
        ips.release("a", 1000);
        assert_ne!(ips.allocate("b").unwrap(), a);
        assert!(ips.expire(1000 + QUARANTINE_S - 1).is_empty());
        assert_eq!(ips.allocate("a"), Some(a), "a host that comes back has its address");
        ips.release("a", 2000);
        assert_eq!(ips.expire(2000 + QUARANTINE_S), ["a"]);
        assert_eq!(ips.allocate("c"), Some(Ipv4Addr::new(240, 240, 0, 3)), "free addresses are used in turn");
    }

    #[test]
    fn changes_are_told_once() {
        let mut ips = VirtualIps::default();
        let a = Allocation { address: ips.allocate("a").unwrap(), released: None };
        ips.allocate("a");
        assert_eq!(ips.take_changed(), [("a".to_owned(), Some(a))]);
        assert_eq!(ips.take_changed(), []);
        ips.release("a", 5);
        ips.release("a", 6);
        assert_eq!(ips.take_changed(), [("a".to_owned(), Some(Allocation { released: Some(5), ..a }))]);
        ips.allocate("a");
        assert_eq!(ips.take_changed(), [("a".to_owned(), Some(a))]);
        ips.release("a", 7);
        assert_eq!(ips.expire(7 + QUARANTINE_S), ["a"]);
        assert_eq!(ips.take_changed(), [("a".to_owned(), None)]);
        ips.restore("b", a);
        assert_eq!(ips.take_changed(), [], "what was kept is kept");
    }

    #[test]
    fn exhaustion_gives_none_and_restored_addresses_stay() {
        let mut ips = VirtualIps::default();
        let kept = Allocation { address: Ipv4Addr::new(240, 240, 0, 9), released: None };
        ips.restore("kept", kept);
        for n in 0..65_533 {
            assert!(ips.allocate(&format!("h{n}")).is_some(), "{n}");
        }
        assert_eq!(ips.allocate("one too many"), None);
        assert_eq!(ips.of("kept"), Some(kept.address));
        assert_eq!(ips.host(kept.address), Some("kept"));
    }
}
