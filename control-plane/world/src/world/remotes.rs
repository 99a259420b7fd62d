//! Other data centres: summaries of the services that they export, and the share of local requests that goes there.
//!
//! The order of the data centres is that of preference. One counts as long as it is a peer and its last summary is
//! kept, even while its control plane is unreachable.

use std::collections::{BTreeMap, BTreeSet};

use weft_core::identity::SpiffeId;
use weft_proto::v1;

use super::{Changed, MESH_SUFFIX, World, fqdn};

/// The default name of a data centre, as in Consul.
pub const DEFAULT_DATACENTER: &str = "dc1";

/// Another data centre.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peering {
    /// Its name.
    pub datacenter: String,
    /// Trust domain of its identities.
    pub trust_domain: String,
    /// Its root certificate.
    pub root_der: Vec<u8>,
}

/// A service of another data centre, or a subset of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    /// Number of available instances.
    pub healthy: u32,
    /// Number of all instances.
    pub total: u32,
    /// SPIFFE IDs of the instances.
    pub identities: Vec<String>,
}

/// The exports of a data centre.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Summary {
    gateways: Vec<v1::GatewayAddress>,
    /// Subsets by canonical host; "" is all of it.
    hosts: BTreeMap<String, BTreeMap<String, Presence>>,
    /// Time of reception, Unix seconds.
    received: u64,
}

/// The state of all other data centres.
#[derive(Clone, Debug)]
pub(super) struct Remotes {
    datacenter: String,
    peers: Vec<Peering>,
    summaries: BTreeMap<String, Summary>,
    /// Data centres whose control plane is unreachable from here.
    cut_off: BTreeSet<String>,
    /// Percent by host and subset.
    shares: BTreeMap<(String, String), u32>,
}

impl Default for Remotes {
    fn default() -> Remotes {
        Remotes {
            datacenter: DEFAULT_DATACENTER.to_owned(),
            peers: Vec::new(),
            summaries: BTreeMap::new(),
            cut_off: BTreeSet::new(),
            shares: BTreeMap::new(),
        }
    }
}

/// A data centre's part of a host.
#[derive(Debug)]
pub struct RemoteHost<'a> {
    /// Its name.
    pub datacenter: &'a str,
    /// Its east-west gateways; at least one.
    pub gateways: &'a [v1::GatewayAddress],
    /// By subset.
    pub subsets: &'a BTreeMap<String, Presence>,
    /// Whether its control plane is connected, so that the summary is current.
    pub connected: bool,
}

impl World {
    /// Sets the name of this data centre, and its peers, the preferred one first.
    pub fn set_peers(&mut self, datacenter: &str, peers: Vec<Peering>, now: u64) -> Changed {
        self.remotes.datacenter = datacenter.to_owned();
        self.remotes.peers = peers;
        self.version += 1;
        let hosts: BTreeSet<String> =
            self.remotes.summaries.values().flat_map(|summary| summary.hosts.keys().cloned()).collect();
        let changed = self.remotes_changed(hosts, now);
        Changed { all: true, ..changed }
    }

    /// Name of this data centre.
    pub fn datacenter(&self) -> &str {
        &self.remotes.datacenter
    }

    /// The peers.
    pub fn peers(&self) -> &[Peering] {
        &self.remotes.peers
    }

    /// Replaces the summary of a data centre; `None`: it is removed.
    pub fn set_remote(&mut self, datacenter: &str, stored: Option<&v1::StoredSummaries>, now: u64) -> Changed {
        let old = self.remotes.summaries.remove(datacenter);
        if let Some(stored) = stored {
            self.remotes.summaries.insert(datacenter.to_owned(), summary_of(stored));
        }
        let new = self.remotes.summaries.get(datacenter);
        let none = BTreeMap::new();
        let of = |summary: Option<&Summary>| summary.map_or_else(|| none.clone(), |summary| summary.hosts.clone());
        let (before, after) = (of(old.as_ref()), of(new));
        let moved = old.as_ref().map(|summary| &summary.gateways) != new.map(|summary| &summary.gateways);
        let differs = |host: &&String| moved || before.get(*host) != after.get(*host);
        let hosts: BTreeSet<String> = before.keys().chain(after.keys()).filter(differs).cloned().collect();
        if hosts.is_empty() {
            return Changed::default();
        }
        self.version += 1;
        self.remotes_changed(hosts, now)
    }

    fn remotes_changed(&mut self, hosts: BTreeSet<String>, now: u64) -> Changed {
        let mut changed = Changed::default();
        for host in &hosts {
            self.refresh_named(host, now, &mut changed);
        }
        changed.hosts.extend(hosts);
        self.settle(changed, now)
    }

    /// Sets whether a data centre's control plane is connected.
    pub fn set_connected(&mut self, datacenter: &str, connected: bool) -> Changed {
        let changed = if connected {
            self.remotes.cut_off.remove(datacenter)
        } else {
            self.remotes.cut_off.insert(datacenter.to_owned())
        };
        let summary = self.remotes.summaries.get(datacenter).filter(|_| changed);
        let hosts: BTreeSet<String> =
            summary.map(|summary| summary.hosts.keys().cloned().collect()).unwrap_or_default();
        if !hosts.is_empty() {
            self.version += 1;
        }
        Changed { hosts, ..Changed::default() }
    }

    /// Sets the share of a host's requests for other data centres, by host and subset; none for those not named.
    pub fn set_shares(&mut self, shares: BTreeMap<(String, String), u32>) -> Changed {
        let old = std::mem::replace(&mut self.remotes.shares, shares);
        let new = &self.remotes.shares;
        let keys = old.keys().chain(new.keys()).filter(|key| old.get(*key) != new.get(*key));
        let hosts: BTreeSet<String> = keys.map(|(host, _)| host.clone()).collect();
        if !hosts.is_empty() {
            self.version += 1;
        }
        Changed { hosts, ..Changed::default() }
    }

    /// Percent of a host's requests for other data centres.
    pub fn share(&self, host: &str, subset: &str) -> u32 {
        self.remotes.shares.get(&(host.to_owned(), subset.to_owned())).copied().unwrap_or(0)
    }

    /// The other data centres with a host that have gateways and, as far as is known, a healthy instance: the preferred
    /// one first, disconnected ones last.
    pub fn remotes_of<'a>(&'a self, host: &'a str) -> impl Iterator<Item = RemoteHost<'a>> {
        let of = move |peer: &'a Peering| {
            let datacenter = peer.datacenter.as_str();
            let summary = self.remotes.summaries.get(datacenter)?;
            let (gateways, subsets) = (summary.gateways.as_slice(), summary.hosts.get(host)?);
            let there = !gateways.is_empty() && subsets.values().any(|presence| presence.healthy > 0);
            let connected = !self.remotes.cut_off.contains(datacenter);
            there.then_some(RemoteHost { datacenter, gateways, subsets, connected })
        };
        let all = move |connected| self.remotes.peers.iter().filter_map(of).filter(move |r| r.connected == connected);
        all(true).chain(all(false))
    }

    /// Hosts that a peer exports.
    pub fn imported(&self) -> BTreeSet<&str> {
        let summary = self.remotes.peers.iter().filter_map(|peer| self.remotes.summaries.get(&peer.datacenter));
        summary.flat_map(|summary| summary.hosts.keys().map(String::as_str)).collect()
    }

    /// Whether a peer exports this host.
    pub fn is_imported(&self, host: &str) -> bool {
        self.imported_namespace(host).is_some()
    }

    /// Namespace of a host that a peer exports.
    pub(super) fn imported_namespace<'h>(&self, host: &'h str) -> Option<&'h str> {
        let summary = |peer: &Peering| self.remotes.summaries.get(&peer.datacenter);
        let is = self.remotes.peers.iter().filter_map(summary).any(|summary| summary.hosts.contains_key(host));
        is.then(|| host.strip_suffix(MESH_SUFFIX)?.rsplit_once('.').map(|(_, namespace)| namespace)).flatten()
    }

    /// Data centres with a stored summary, peers or not, and the time of its reception (Unix seconds).
    pub fn remote_summaries(&self) -> impl Iterator<Item = (&str, u64, usize)> {
        self.remotes.summaries.iter().map(|(name, summary)| (name.as_str(), summary.received, summary.hosts.len()))
    }

    /// Whether other data centres may call a host.
    pub fn is_exported(&self, host: &str) -> bool {
        self.policies.exports().contains(host)
    }
}

fn summary_of(stored: &v1::StoredSummaries) -> Summary {
    let mut summary = Summary { received: stored.received, ..Summary::default() };
    let Some(summaries) = &stored.summaries else { return summary };
    let gateway = |g: &v1::PeerGateway| v1::GatewayAddress { address: g.address.clone(), port: g.port };
    summary.gateways = summaries.gateways.iter().map(gateway).collect();
    for service in &summaries.services {
        let subset = |s: &v1::SubsetSummary| {
            let presence = Presence { healthy: s.healthy, total: s.total, identities: s.identities.clone() };
            (s.name.clone(), presence)
        };
        let subsets = service.subsets.iter().map(subset).collect();
        summary.hosts.insert(fqdn(&service.name, &service.namespace), subsets);
    }
    summary
}

/// Bound on the services that a data centre may export, and on any list in a summary.
const MAX_SERVICES: usize = 5_000;
const MAX_PARTS: usize = 256;

/// The summaries of a peer without its invalid parts: names that make no sense, identities of other trust domains.
pub fn sound(mut summaries: v1::Summaries, peer: &Peering) -> v1::Summaries {
    summaries.datacenter.clone_from(&peer.datacenter);
    summaries.services.truncate(MAX_SERVICES);
    summaries.gateways.truncate(MAX_PARTS);
    summaries.gateways.retain(|g| (1..=65535).contains(&g.port) && is_address(&g.address));
    let label = |text: &str| !text.is_empty() && text.len() <= 253 && text.bytes().all(is_plain);
    summaries.services.retain(|service| label(&service.name) && label(&service.namespace));
    for service in &mut summaries.services {
        service.subsets.truncate(MAX_PARTS);
        service.subsets.retain(|subset| subset.name.is_empty() || label(&subset.name));
        for subset in &mut service.subsets {
            subset.identities.truncate(MAX_PARTS);
            let own = |id: &String| id.parse().is_ok_and(|id: SpiffeId| id.trust_domain() == peer.trust_domain);
            subset.identities.retain(own);
        }
    }
    summaries
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

/// An IP address or a host name.
fn is_address(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok() || (!text.is_empty() && text.len() <= 253 && text.bytes().all(is_plain))
}
