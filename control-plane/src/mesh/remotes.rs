//! Other data centres: what they are told, what they have told, and how much of our traffic goes there.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use prost::Message;
use weft_core::failover::Failover;
use weft_proto::v1::{PeerGateway, StoredSummaries, Summaries};

use super::{Mesh, unix_now};
use crate::policy::Object;
use crate::store::{self, Op, Table};
use crate::translate;
use crate::world::{Peering, has_all};

/// How much of each service, and of each of its subsets, goes elsewhere.
pub type Shares = BTreeMap<(String, String), Failover>;

impl Mesh {
    /// Says where this is, and which other data centres are listened to, the preferred one first.
    pub fn set_peers(&self, datacenter: &str, peers: Vec<Peering>) {
        let mut state = self.lock();
        let changed = state.world.set_peers(datacenter, peers, unix_now());
        self.publish(&mut state, changed);
    }

    /// What other data centres are told. `gateways`: where they reach us; none: at the gateways that are connected.
    pub fn summaries(&self, gateways: &[PeerGateway]) -> Summaries {
        let state = self.lock();
        let gateways = if gateways.is_empty() { state.east_west_gateways() } else { gateways.to_vec() };
        Summaries {
            datacenter: state.world.datacenter().to_owned(),
            services: translate::summaries(&state.world),
            gateways,
        }
    }

    /// Keeps what a data centre has told, where it differs from what is known.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn keep_remote(&self, datacenter: &str, summaries: Summaries) -> Result<(), store::Error> {
        let known = self.store.get(Table::Remotes, datacenter).await?;
        let known = known.and_then(|record| StoredSummaries::decode(record.value.as_slice()).ok());
        if known.and_then(|known| known.summaries).as_ref() == Some(&summaries) {
            return Ok(());
        }
        let stored = StoredSummaries { summaries: Some(summaries), received: unix_now() };
        self.write(Vec::new(), vec![Op::put(Table::Remotes, datacenter, stored.encode_to_vec())]).await.map(drop)
    }

    /// Forgets what a data centre has told.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn forget_remote(&self, datacenter: &str) -> Result<(), store::Error> {
        self.write(Vec::new(), vec![Op::delete(Table::Remotes, datacenter)]).await.map(drop)
    }

    /// Decides anew which share of each service goes elsewhere. True: time alone may change it.
    pub fn fail_over(&self, shares: &mut Shares, now: Instant, hold: Duration) -> bool {
        let mut state = self.lock();
        let world = &state.world;
        let mut wanted = HashSet::new();
        let mut decided = BTreeMap::new();
        for host in world.imported() {
            let home = translate::capacity(world, host);
            let elsewhere: HashSet<&str> = world
                .remotes_of(host)
                .flat_map(|remote| remote.subsets.iter())
                .filter(|(_, presence)| presence.healthy > 0)
                .map(|(subset, _)| subset.as_str())
                .collect();
            for subset in elsewhere {
                let key = (host.to_owned(), subset.to_owned());
                let home = home.get(subset).copied().unwrap_or_default();
                decided.insert(key.clone(), shares.entry(key.clone()).or_default().next(home, now, hold));
                wanted.insert(key);
            }
        }
        shares.retain(|key, _| wanted.contains(key));
        let waiting = shares.values().any(Failover::is_waiting);
        let changed = state.world.set_shares(decided);
        self.publish(&mut state, changed);
        waiting
    }
}

impl super::State {
    /// Connected gateways that pass connections of other data centres on: those that a Gateway with such a server picks.
    fn east_west_gateways(&self) -> Vec<PeerGateway> {
        let mut found = Vec::new();
        for document in self.world.policies().gateways() {
            let Object::Gateway(gateway) = &document.object else { continue };
            for server in gateway.servers.iter().filter(|server| server.auto_passthrough) {
                let picked = self
                    .nodes
                    .values()
                    .filter(|node| node.alive.is_some() && !node.unknown && has_all(&node.labels, &gateway.selector));
                found.extend(picked.map(|node| PeerGateway { address: node.address.to_string(), port: server.port }));
            }
        }
        found.sort_by(|a, b| (&a.address, a.port).cmp(&(&b.address, b.port)));
        found.dedup();
        found
    }
}
