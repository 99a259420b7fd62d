//! Other data centres: the summaries sent and received, and the share of traffic that goes to each.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use prost::Message;
use weft_core::failover::{Delays, Failover};
use weft_proto::v1::{PeerGateway, StoredSummaries, Summaries};

use super::Mesh;
use crate::clock::unix_now;
use crate::store::{self, Op, Table};
use weft_policy::Object;
use weft_world::translate;
use weft_world::{Peering, has_all};

/// The share of each service, and of each of its subsets, for other data centres.
pub type Shares = BTreeMap<(String, String), Share>;

/// The share of one service or subset.
#[derive(Debug, Clone, Default)]
pub struct Share {
    /// The share by the local endpoints.
    wanted: Failover,
    /// The share in effect: for a disconnected data centre, only requests that no local endpoint can serve.
    done: u32,
}

impl Mesh {
    /// Sets the name of this data centre, and its peers, the preferred one first.
    pub fn set_peers(&self, datacenter: &str, peers: Vec<Peering>) {
        let mut state = self.lock();
        let changed = state.world.set_peers(datacenter, peers, unix_now());
        self.publish(&mut state, changed);
    }

    /// The summaries for other data centres. `gateways`: the addresses for them; none: those of the connected gateways.
    pub fn summaries(&self, gateways: &[PeerGateway]) -> Summaries {
        let state = self.lock();
        let gateways = if gateways.is_empty() { state.east_west_gateways() } else { gateways.to_vec() };
        Summaries {
            datacenter: state.world.datacenter().to_owned(),
            services: translate::summaries(&state.world),
            gateways,
        }
    }

    /// Stores the summary of a data centre, if it differs from the stored one.
    ///
    /// # Errors
    /// If the store refuses it.
    pub async fn keep_remote(&self, datacenter: &str, summaries: Summaries) -> Result<(), store::Error> {
        let known = self.store.get(Table::Remotes, datacenter).await?;
        let known = known.and_then(|record| StoredSummaries::decode(record.value.as_slice()).ok());
        if known.and_then(|known| known.summaries).as_ref() == Some(&summaries) {
            return Ok(());
        }
        let stored = StoredSummaries { summaries: Some(summaries), received: unix_now() };
        self.write(Vec::new(), vec![Op::put(Table::Remotes, datacenter, stored.encode_to_vec())]).await.map(drop)
    }

    /// Sets whether a data centre is connected.
    pub fn set_connected(&self, datacenter: &str, connected: bool) {
        let mut state = self.lock();
        let changed = state.world.set_connected(datacenter, connected);
        self.publish(&mut state, changed);
    }

    /// Deletes the summary of a data centre.
    ///
    /// # Errors
    /// If the store refuses it.
    pub async fn forget_remote(&self, datacenter: &str) -> Result<(), store::Error> {
        self.write(Vec::new(), vec![Op::delete(Table::Remotes, datacenter)]).await.map(drop)
    }

    /// Decides the share of each service for other data centres: of those in `touched` (`None`: of all), and of those
    /// that depend on time. True: there are some of the latter.
    pub fn fail_over(
        &self,
        shares: &mut Shares,
        touched: Option<&BTreeSet<String>>,
        now: Instant,
        delays: Delays,
    ) -> bool {
        let mut state = self.lock();
        let world = &state.world;
        let imported = world.imported();
        let waiting = shares.iter().filter(|(_, share)| share.wanted.is_waiting()).map(|((host, _), _)| host.clone());
        let mut hosts: BTreeSet<String> = waiting.collect();
        match touched {
            None => hosts.extend(imported.iter().map(|host| (*host).to_owned())),
            Some(touched) => hosts.extend(touched.iter().filter(|host| imported.contains(host.as_str())).cloned()),
        }
        for host in &hosts {
            let home = translate::capacity(world, host);
            let mut there = BTreeMap::new();
            for remote in world.remotes_of(host) {
                let healthy = remote.subsets.iter().filter(|(_, presence)| presence.healthy > 0);
                for (subset, _) in healthy {
                    // The first one gets the requests.
                    there.entry(subset.as_str()).or_insert(remote.connected);
                }
            }
            shares.retain(|(of, subset), _| of != host || there.contains_key(subset.as_str()));
            for (subset, connected) in there {
                let home = home.get(subset).copied().unwrap_or_default();
                let share = shares.entry((host.clone(), subset.to_owned())).or_default();
                let wanted = share.wanted.next(home, now, delays);
                share.done = if connected || home.healthy == 0 { wanted } else { 0 };
            }
        }
        shares.retain(|(host, _), _| imported.contains(host.as_str()));
        let decided = shares.iter().map(|(key, share)| (key.clone(), share.done)).collect();
        let changed = state.world.set_shares(decided);
        self.publish(&mut state, changed);
        shares.values().any(|share| share.wanted.is_waiting())
    }
}

impl super::State {
    /// Connected gateways that pass through connections of other data centres: those that a Gateway with such a server
    /// selects.
    fn east_west_gateways(&self) -> Vec<PeerGateway> {
        let mut gateways = Vec::new();
        for document in self.world.gateways() {
            let Object::Gateway(gateway) = &document.object else { continue };
            for server in gateway.servers.iter().filter(|server| server.auto_passthrough) {
                let picked = self
                    .nodes
                    .values()
                    .filter(|node| node.alive.is_some() && !node.unknown && has_all(&node.labels, &gateway.selector));
                gateways
                    .extend(picked.map(|node| PeerGateway { address: node.address.to_string(), port: server.port }));
            }
        }
        gateways.sort_by(|a, b| (&a.address, a.port).cmp(&(&b.address, b.port)));
        gateways.dedup();
        gateways
    }
}
