//! Which endpoint serves an attempt.
//!
//! A `Balancer` is built for a cluster whenever its endpoints or their ejections change, from the endpoints that may be
//! used then; picking reads it without locks. Enum dispatch, because there are five and none will come from outside.

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
use crate::locality::{Locality, Place};
use crate::policy::{Cluster, LoadBalancer};

use group::Group;
use levels::Count;
use shares::Shares;

/// How often a retry looks for an endpoint that was not tried yet before it takes one that was.
const RE_PICKS: u32 = 5;
/// How many attempts a level gets before the retries of a route with [`Again::other_levels`] leave it out, as Istio has it.
const ATTEMPTS_A_LEVEL: usize = 2;

/// What a retry looks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Again {
    /// An endpoint that was not tried, if five more picks find one. Not for a route with one hashed destination, whose
    /// requests belong to one endpoint.
    pub other_endpoints: bool,
    /// After every second attempt the levels that were tried are left out, while there are others (Envoy's
    /// `previous_priorities`).
    pub other_levels: bool,
}

/// Picks among the endpoints of a cluster that may be used.
#[derive(Debug)]
pub struct Balancer {
    /// The nearest first.
    levels: Vec<Level>,
    panic: bool,
    warming: bool,
    elsewhere: Option<Box<Elsewhere>>,
}

/// Endpoints that are equally far.
#[derive(Debug)]
struct Level {
    /// How far, in the order of all levels; those without a usable endpoint are not here.
    number: usize,
    /// Percent of the requests that go here or nearer; 0, or that of the one before, where none go here but for retries.
    up_to: u64,
    count: Count,
    group: Group,
}

/// A level as it is told of; see [`Balancer::levels`].
#[derive(Debug)]
pub struct LevelView<'a> {
    /// How far: 0 is nearest.
    pub number: usize,
    /// Of the requests of this data centre; 0: none go here but for retries.
    pub percent: u64,
    /// Those who may be picked there.
    pub hosts: &'a [Arc<Endpoint>],
}

/// Gateways of other data centres, and percent of the requests that go there.
#[derive(Debug)]
struct Elsewhere {
    share: u32,
    gateways: Group,
}

/// What a balancer depends on besides the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// Where the proxy is.
    pub place: &'a Place,
    /// For those that are warming up.
    pub now: Instant,
}

/// The usable and the ejected endpoints of a level.
#[derive(Default)]
struct Found {
    usable: Vec<Arc<Endpoint>>,
    ejected: Vec<Arc<Endpoint>>,
    unhealthy: usize,
}

impl Balancer {
    /// For the endpoints of `cluster` (from [`crate::endpoint::for_cluster`]) as they are now. Unhealthy and draining
    /// ones are left out, and ejected ones unless so many are ejected that the policy asks for panic: then all that the
    /// registry calls healthy are used. `previous` hands on the place that round robin has reached.
    pub fn new(cluster: &Cluster, endpoints: &[Arc<Endpoint>], here: Here<'_>, previous: Option<&Balancer>) -> Self {
        let shares = Shares::new(cluster, endpoints, here);
        let mut elsewhere = Found::default();
        let mut levels: Vec<(u32, Found)> = Vec::new();
        for endpoint in endpoints {
            let found = if endpoint.remote.is_some() {
                &mut elsewhere
            } else if !shares.has(endpoint) {
                continue;
            } else {
                let distance = match &cluster.locality {
                    Locality::Failover(failover) => failover.distance(here.place, &endpoint.config),
                    _ => 0,
                };
                let at = levels.binary_search_by_key(&distance, |(far, _)| *far).unwrap_or_else(|at| {
                    levels.insert(at, (distance, Found::default()));
                    at
                });
                &mut levels[at].1
            };
            found.add(endpoint);
        }
        let nobody = levels.iter().all(|(_, found)| found.usable.is_empty() && found.ejected.is_empty());
        // Where nobody else is left those elsewhere are tried that could not be reached.
        let gateways = if elsewhere.usable.is_empty() && nobody { elsewhere.ejected } else { elsewhere.usable };
        let elsewhere = Elsewhere::new(gateways);
        let counts =
            |levels: &[(u32, Found)]| -> Vec<Count> { levels.iter().map(|(_, found)| found.count()).collect() };
        let min_health_percent = cluster.outlier.as_ref().map_or(0, |outlier| outlier.min_health_percent);
        // Who is well elsewhere is better than who is ill here.
        let may_panic = min_health_percent > 0 && elsewhere.is_none() && !levels::suffices(&counts(&levels));
        let mut panic = false;
        for (_, found) in levels.iter_mut().filter(|(_, found)| may_panic && found.is_panic(min_health_percent)) {
            panic = true;
            found.usable.append(&mut found.ejected);
        }
        let counts = counts(&levels);
        let loads = levels::loads(&counts);
        let mut up_to = 0;
        let all = levels.into_iter().zip(loads.into_iter().zip(counts)).enumerate();
        let used = all.filter(|(_, ((_, found), _))| !found.usable.is_empty());
        let levels = used.map(|(number, ((_, found), (load, count)))| {
            up_to += load;
            let before = previous.and_then(|previous| previous.levels.iter().find(|level| level.number == number));
            let weights = found.usable.iter().map(|endpoint| shares.weight(endpoint)).collect();
            let group = Group::new(&cluster.load_balancer, found.usable, weights, before.map(|level| &level.group));
            Level { number, up_to, count, group }
        });
        Balancer { levels: levels.collect(), panic, warming: shares.is_warming(), elsewhere }
    }

    /// An endpoint; `None`: there is none to use. `hash` counts for consistent hashing only; without one, `random`
    /// stands in. `attempt` is the number of picks thrown away before (0 for the first): consistent hashing then takes
    /// another place, the others just pick again.
    pub fn pick(&self, hash: Option<u64>, random: &mut impl FnMut() -> u64, attempt: u32) -> Option<&Arc<Endpoint>> {
        if let Some(elsewhere) = &self.elsewhere
            && (self.levels.is_empty() || elsewhere.is_due(hash, random))
        {
            return elsewhere.gateways.pick(None, random, attempt);
        }
        self.pick_here(hash, random, attempt)
    }

    /// An endpoint of this data centre, as [`Balancer::pick`] picks it.
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

    /// An endpoint for a retry, after attempts at `tried`.
    pub fn pick_again(
        &self,
        again: Again,
        hash: Option<u64>,
        random: &mut impl FnMut() -> u64,
        tried: &[Arc<Endpoint>],
    ) -> Option<&Arc<Endpoint>> {
        let level = if again.other_levels { self.other_level(hash, random, tried) } else { None };
        let mut one = |attempt| match level {
            Some(level) => level.group.pick(hash, random, attempt),
            None => self.pick(hash, random, attempt),
        };
        let mut pick = one(0)?;
        let is_tried = |host: &Arc<Endpoint>| again.other_endpoints && tried.iter().any(|tried| tried.is_same(host));
        for attempt in 1..=RE_PICKS {
            if !is_tried(pick) {
                return Some(pick);
            }
            pick = one(attempt)?;
        }
        if !is_tried(pick) {
            return Some(pick);
        }
        // Envoy takes the last one. An endpoint that has vanished has few requests, which is what `LEAST_REQUEST` prefers.
        let hosts = || self.levels.iter().map(|level| level.group.hosts());
        let level = hosts().find(|hosts| hosts.iter().any(|host| host.is_same(pick)));
        Some(level.and_then(|hosts| hosts.iter().find(|host| !is_tried(host))).unwrap_or(pick))
    }

    /// The level of a retry where those that were tried are left out; `None`: none is to be left out.
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
            // Nobody is left: it begins anew.
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

    /// The levels of this data centre that have somebody to pick, the nearest first.
    pub fn levels(&self) -> impl Iterator<Item = LevelView<'_>> {
        let mut before = 0;
        self.levels.iter().map(move |level| LevelView {
            number: level.number,
            percent: level.up_to - std::mem::replace(&mut before, level.up_to),
            hosts: level.group.hosts(),
        })
    }

    /// The endpoints of this data centre that are picked from.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.levels().filter(|level| level.percent > 0).flat_map(|level| level.hosts)
    }

    /// The gateways of other data centres that are picked from, and percent of the requests that go there.
    pub fn elsewhere(&self) -> Option<(u32, &[Arc<Endpoint>])> {
        let elsewhere = self.elsewhere.as_ref()?;
        let share = if self.levels.is_empty() { 100 } else { elsewhere.share };
        Some((share, elsewhere.gateways.hosts()))
    }

    /// Ejected endpoints are used, because too few are left.
    pub fn is_panic(&self) -> bool {
        self.panic
    }

    /// Some endpoint gets less than its share because it is new: the balancer is to be made anew soon.
    pub fn is_warming(&self) -> bool {
        self.warming
    }
}

impl Found {
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

    /// Envoy's panic: fewer healthy than the threshold.
    fn is_panic(&self, min_health_percent: u32) -> bool {
        let total = self.usable.len() + self.ejected.len();
        self.usable.len() * 100 < total * min_health_percent as usize
    }
}

impl Elsewhere {
    /// Gateways, if there are any.
    fn new(gateways: Vec<Arc<Endpoint>>) -> Option<Box<Elsewhere>> {
        let share = gateways.iter().filter_map(|host| host.remote.as_ref()).map(|remote| remote.share).max()?;
        let weights = gateways.iter().map(|gateway| gateway.config.weight).collect();
        let gateways = Group::new(&LoadBalancer::LeastRequest, gateways, weights, None);
        Some(Box::new(Elsewhere { share, gateways }))
    }

    /// Whether a request goes there although it could stay. A hash decides for good: whoever has it stays on one side, and
    /// where the share grows only some of those here leave.
    fn is_due(&self, hash: Option<u64>, random: &mut impl FnMut() -> u64) -> bool {
        // Others of its bits than those that say the place on the ring.
        let mixed = |hash: u64| hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.share > 0 && hash.map_or_else(random, mixed) % 100 < u64::from(self.share)
    }
}

#[cfg(test)]
mod tests;
