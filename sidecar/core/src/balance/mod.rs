//! Choice of the endpoint for an attempt.
//!
//! A `Balancer` is built for a cluster whenever its endpoints or their ejections change, from the endpoints that are
//! usable at that time; picking reads it without locks. Enum dispatch: there are five kinds and no extension point.

mod group;
mod least_request;
mod levels;
mod maglev;
mod random;
mod ring;
mod round_robin;
mod shares;

use std::sync::Arc;
use std::time::Instant;

use crate::endpoint::{Endpoint, Health};
use crate::locality::{Locality, Location};
use crate::policy::{Cluster, LoadBalancer};

use group::Group;
use levels::Count;
use shares::Shares;

/// Picks that a retry discards, because the endpoint was tried before, until it accepts such an endpoint.
const RE_PICKS: u32 = 5;
/// Attempts per level after which retries with [`RetrySelection::other_levels`] exclude the level, as in Istio.
const ATTEMPTS_A_LEVEL: usize = 2;

/// Preferences of a retry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetrySelection {
    /// Prefers an endpoint that was not tried, if five more picks find one. Off for a route with one hashed
    /// destination, whose requests belong to one endpoint.
    pub other_endpoints: bool,
    /// Excludes the levels that were tried, after every second attempt, until no other is left (Envoy's
    /// `previous_priorities`).
    pub other_levels: bool,
}

/// Picks among the usable endpoints of a cluster.
#[derive(Debug)]
pub struct Balancer {
    /// Nearest first.
    levels: Vec<Level>,
    panic: bool,
    warming: bool,
    remote: Option<Box<RemoteGateways>>,
}

/// Endpoints at one distance.
#[derive(Debug)]
struct Level {
    /// Distance rank among all levels, including those without a usable endpoint, which are not kept here.
    number: usize,
    /// Cumulative percent of the requests for this level and the nearer ones; equal to the previous level's if this
    /// level serves retries only.
    up_to: u64,
    count: Count,
    group: Group,
}

/// View of a level, see [`Balancer::levels`].
#[derive(Debug)]
pub struct LevelView<'a> {
    /// Distance; 0 is nearest.
    pub number: usize,
    /// Percent of this data centre's requests; 0: the level serves retries only.
    pub percent: u64,
    /// Endpoints that may be picked.
    pub hosts: &'a [Arc<Endpoint>],
}

/// Gateways of other data centres, and the percentage of the requests for them.
#[derive(Debug)]
struct RemoteGateways {
    share: u32,
    gateways: Group,
}

/// Inputs of a balancer besides the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Locality of the proxy.
    pub location: &'a Location,
    /// Current time, for warm-up.
    pub now: Instant,
}

/// The usable and the ejected endpoints of a level.
#[derive(Default)]
struct Candidates {
    usable: Vec<Arc<Endpoint>>,
    ejected: Vec<Arc<Endpoint>>,
    unhealthy: usize,
}

impl Balancer {
    /// Builds a balancer for the current state of `endpoints` (from [`crate::endpoint::for_cluster`]). Unhealthy and
    /// draining endpoints are left out, and ejected ones unless the share of ejections triggers the policy's panic
    /// mode: then all that the registry reports healthy are used. The round-robin position is taken over from
    /// `previous`.
    pub fn new(
        cluster: &Cluster,
        endpoints: &[Arc<Endpoint>],
        inputs: Inputs<'_>,
        previous: Option<&Balancer>,
    ) -> Self {
        let shares = Shares::new(cluster, endpoints, inputs);
        let mut remote = Candidates::default();
        let mut levels: Vec<(u32, Candidates)> = Vec::new();
        for endpoint in endpoints {
            let candidates = if endpoint.remote.is_some() {
                &mut remote
            } else if !shares.has(endpoint) {
                continue;
            } else {
                let distance = match &cluster.locality {
                    Locality::Failover(failover) => {
                        let config = &endpoint.config;
                        failover.distance(inputs.location, &config.locality, &config.labels)
                    }
                    _ => 0,
                };
                let at = levels.binary_search_by_key(&distance, |(far, _)| *far).unwrap_or_else(|at| {
                    levels.insert(at, (distance, Candidates::default()));
                    at
                });
                &mut levels[at].1
            };
            candidates.add(endpoint);
        }
        let none_here =
            levels.iter().all(|(_, candidates)| candidates.usable.is_empty() && candidates.ejected.is_empty());
        // If no other endpoint is left, gateways that could not be reached are tried retry_selection.
        let gateways = if remote.usable.is_empty() && none_here { remote.ejected } else { remote.usable };
        let remote = RemoteGateways::new(gateways);
        let counts = |levels: &[(u32, Candidates)]| -> Vec<Count> {
            levels.iter().map(|(_, candidates)| candidates.count()).collect()
        };
        let min_health_percent = cluster.outlier.as_ref().map_or(0, |outlier| outlier.min_health_percent);
        // A usable remote gateway is preferred to an ejected local endpoint.
        let may_panic = min_health_percent > 0 && remote.is_none() && !levels::suffices(&counts(&levels));
        let mut panic = false;
        for (_, candidates) in
            levels.iter_mut().filter(|(_, candidates)| may_panic && candidates.is_panic(min_health_percent))
        {
            panic = true;
            candidates.usable.append(&mut candidates.ejected);
        }
        let counts = counts(&levels);
        let loads = levels::loads(&counts);
        let mut up_to = 0;
        let all = levels.into_iter().zip(loads.into_iter().zip(counts)).enumerate();
        let used = all.filter(|(_, ((_, candidates), _))| !candidates.usable.is_empty());
        let levels = used.map(|(number, ((_, candidates), (load, count)))| {
            up_to += load;
            let before = previous.and_then(|previous| previous.levels.iter().find(|level| level.number == number));
            let weights = candidates.usable.iter().map(|endpoint| shares.weight(endpoint)).collect();
            let group =
                Group::new(&cluster.load_balancer, candidates.usable, weights, before.map(|level| &level.group));
            Level { number, up_to, count, group }
        });
        Balancer { levels: levels.collect(), panic, warming: shares.is_warming(), remote }
    }

    /// Picks an endpoint; `None`: none is usable. `hash` matters for consistent hashing only; without one, `random`
    /// replaces it. `attempt` is the number of picks discarded before (0 for the first): consistent hashing then takes
    /// another position, the other kinds just pick retry_selection.
    pub fn pick(&self, hash: Option<u64>, random: &mut impl FnMut() -> u64, attempt: u32) -> Option<&Arc<Endpoint>> {
        if let Some(remote) = &self.remote
            && (self.levels.is_empty() || remote.is_due(hash, random))
        {
            return remote.gateways.pick(None, random, attempt);
        }
        self.pick_here(hash, random, attempt)
    }

    /// Picks an endpoint of this data centre, as [`Balancer::pick`] does.
    pub fn pick_here(
        &self,
        hash: Option<u64>,
        random: &mut impl FnMut() -> u64,
        attempt: u32,
    ) -> Option<&Arc<Endpoint>> {
        let level = match &self.levels[..] {
            [nearest, ..] if nearest.up_to == 100 => nearest,
            levels => {
                let percent = hash.unwrap_or_else(&mut *random) % 100;
                levels.iter().find(|level| percent < level.up_to)?
            }
        };
        level.group.pick(hash, random, attempt)
    }

    /// Picks an endpoint for a retry, after attempts at `tried`.
    pub fn pick_for_retry(
        &self,
        retry_selection: RetrySelection,
        hash: Option<u64>,
        random: &mut impl FnMut() -> u64,
        tried: &[Arc<Endpoint>],
    ) -> Option<&Arc<Endpoint>> {
        let level = if retry_selection.other_levels { self.other_level(hash, random, tried) } else { None };
        let mut one = |attempt| match level {
            Some(level) => level.group.pick(hash, random, attempt),
            None => self.pick(hash, random, attempt),
        };
        let mut pick = one(0)?;
        let is_tried =
            |host: &Arc<Endpoint>| retry_selection.other_endpoints && tried.iter().any(|tried| tried.is_same(host));
        for attempt in 1..=RE_PICKS {
            if !is_tried(pick) {
                return Some(pick);
            }
            pick = one(attempt)?;
        }
        if !is_tried(pick) {
            return Some(pick);
        }
        // Envoy accepts the last pick. But an endpoint that has vanished has few requests in flight, so `LEAST_REQUEST`
        // prefers it.
        let hosts = || self.levels.iter().map(|level| level.group.hosts());
        let level = hosts().find(|hosts| hosts.iter().any(|host| host.is_same(pick)));
        Some(level.and_then(|hosts| hosts.iter().find(|host| !is_tried(host))).unwrap_or(pick))
    }

    /// The level of a retry that excludes tried levels; `None`: no level is excluded.
    fn other_level(
        &self,
        hash: Option<u64>,
        random: &mut impl FnMut() -> u64,
        tried: &[Arc<Endpoint>],
    ) -> Option<&Level> {
        let mut left: Vec<Count> = self.levels.iter().map(|level| level.count).collect();
        for pair in tried.chunks_exact(ATTEMPTS_A_LEVEL) {
            for (level, count) in self.levels.iter().zip(&mut left) {
                if level.group.hosts().iter().any(|host| pair.iter().any(|tried| tried.is_same(host))) {
                    count.usable = 0;
                }
            }
            // Every level was tried: start over with all of them.
            if left.iter().all(|count| count.usable == 0) {
                left = self.levels.iter().map(|level| level.count).collect();
            }
        }
        if self.levels.iter().zip(&left).all(|(level, left)| level.count == *left) {
            return None;
        }
        let percent = hash.unwrap_or_else(random) % 100;
        let up_to = levels::loads(&left).into_iter().scan(0, |sum, load| {
            *sum += load;
            Some(*sum)
        });
        self.levels.iter().zip(up_to).find(|(_, up_to)| percent < *up_to).map(|(level, _)| level)
    }

    /// The levels of this data centre with endpoints to pick, the nearest first.
    pub fn levels(&self) -> impl Iterator<Item = LevelView<'_>> {
        let mut before = 0;
        self.levels.iter().map(move |level| LevelView {
            number: level.number,
            percent: level.up_to - std::mem::replace(&mut before, level.up_to),
            hosts: level.group.hosts(),
        })
    }

    /// The usable endpoints of this data centre.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.levels().filter(|level| level.percent > 0).flat_map(|level| level.hosts)
    }

    /// The usable gateways of other data centres, and the percentage of the requests for them.
    pub fn elsewhere(&self) -> Option<(u32, &[Arc<Endpoint>])> {
        let remote = self.remote.as_ref()?;
        let share = if self.levels.is_empty() { 100 } else { remote.share };
        Some((share, remote.gateways.hosts()))
    }

    /// Whether ejected endpoints are used because too few others are left.
    pub fn is_panic(&self) -> bool {
        self.panic
    }

    /// Whether some endpoint gets less than its share because it is new. The caller rebuilds the balancer soon in that
    /// case.
    pub fn is_warming(&self) -> bool {
        self.warming
    }
}

impl Candidates {
    fn add(&mut self, endpoint: &Arc<Endpoint>) {
        match endpoint.config.health {
            Health::Draining => {}
            Health::Unhealthy => self.unhealthy += 1,
            Health::Healthy | Health::Unknown if endpoint.is_ejected() => self.ejected.push(endpoint.clone()),
            Health::Healthy | Health::Unknown => self.usable.push(endpoint.clone()),
        }
    }

    fn count(&self) -> Count {
        Count { usable: self.usable.len(), total: self.usable.len() + self.ejected.len() + self.unhealthy }
    }

    /// Envoy's panic: the healthy share is below the threshold.
    fn is_panic(&self, min_health_percent: u32) -> bool {
        let total = self.usable.len() + self.ejected.len();
        self.usable.len() * 100 < total * min_health_percent as usize
    }
}

impl RemoteGateways {
    /// `None` if there are no gateways.
    fn new(gateways: Vec<Arc<Endpoint>>) -> Option<Box<RemoteGateways>> {
        let share = gateways.iter().filter_map(|host| host.remote.as_ref()).map(|remote| remote.share).max()?;
        let weights = gateways.iter().map(|gateway| gateway.config.weight).collect();
        let gateways = Group::new(&LoadBalancer::LeastRequest, gateways, weights, None);
        Some(Box::new(RemoteGateways { share, gateways }))
    }

    /// Whether a request goes to a remote gateway although it could stay. The hash decides, so that a key stays on one
    /// side, and a growing share only moves keys away from this data centre.
    fn is_due(&self, hash: Option<u64>, random: &mut impl FnMut() -> u64) -> bool {
        // Different bits of the hash than those that choose the position on the ring.
        let mixed = |hash: u64| hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.share > 0 && hash.map_or_else(random, mixed) % 100 < u64::from(self.share)
    }
}

#[cfg(test)]
mod tests;
