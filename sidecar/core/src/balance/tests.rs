mod locality;
mod remote;

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::maglev::Maglev;
use super::ring::Ring;
use super::*;
use crate::endpoint::tests::{cluster, config, endpoints, gateway, outlier};
use crate::endpoint::{Health, for_cluster};
use crate::hash::HashPolicy;
use crate::outcome::Outcome;
use crate::outlier::Detector;

const OTHERS: RetrySelection = RetrySelection { other_endpoints: true, other_levels: false };

fn ring(minimum_size: u64) -> LoadBalancer {
    LoadBalancer::RingHash { policy: HashPolicy::SourceIp, minimum_size }
}

fn maglev(table_size: u64) -> LoadBalancer {
    LoadBalancer::Maglev { policy: HashPolicy::SourceIp, table_size }
}

fn all_kinds() -> [LoadBalancer; 5] {
    [LoadBalancer::LeastRequest, LoadBalancer::RoundRobin, LoadBalancer::Random, ring(1024), maglev(65537)]
}

/// A balancer of a proxy with unknown locality.
fn new_balancer(cluster: &Cluster, endpoints: &[Arc<Endpoint>], previous: Option<&Balancer>) -> Balancer {
    let location = Location::default();
    Balancer::new(cluster, endpoints, Inputs { location: &location, now: crate::outlier::tests::now() }, previous)
}

fn weights(hosts: &[Arc<Endpoint>]) -> Vec<u32> {
    hosts.iter().map(|host| host.config.weight).collect()
}

fn balancer(kind: LoadBalancer, endpoints: &[Arc<Endpoint>]) -> Balancer {
    new_balancer(&cluster(kind, None), endpoints, None)
}

/// A sufficient generator of random numbers (splitmix64).
fn generator(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn counts(balancer: &Balancer, picks: usize) -> HashMap<String, usize> {
    let mut random = generator(1);
    let mut counts = HashMap::new();
    for _ in 0..picks {
        *counts.entry(balancer.pick(None, &mut random, 0).unwrap().key.to_string()).or_default() += 1;
    }
    counts
}

fn port(endpoint: &Endpoint) -> u16 {
    endpoint.config.port
}

/// The vectors of Envoy's own tests: an endpoint is placed as in Envoy.
#[test]
fn ring_entries_match_envoy() {
    let hosts = endpoints(&[1; 6]);
    let ring = Ring::new(&hosts, &[1; 6], 12);
    let entries: Vec<_> = ring.entries().iter().map(|(hash, host)| (port(&hosts[*host as usize]), *hash)).collect();
    let expected = [
        (94, 833437586790550860),
        (92, 928266305478181108),
        (90, 1033482794131418490),
        (95, 3551244743356806947),
        (93, 3851675632748031481),
        (91, 5583722120771150861),
        (91, 6311230543546372928),
        (93, 7700377290971790572),
        (95, 13144177310400110813),
        (92, 13444792449719432967),
        (94, 15516499411664133160),
        (90, 16117243373044804889),
    ];
    assert_eq!(entries, expected);
    let balancer = balancer(super::tests::ring(12), &hosts);
    let pick = |hash, attempt| port(balancer.pick(Some(hash), &mut || 0, attempt).unwrap());
    assert_eq!(
        [pick(0, 0), pick(u64::MAX, 0), pick(3551244743356806947, 0), pick(3551244743356806948, 0)],
        [94, 94, 95, 93]
    );
    assert_eq!([pick(0, 1), pick(0, 2), pick(u64::MAX, 12)], [92, 90, 94]);
}

#[test]
fn ring_size_is_at_least_the_minimum() {
    for (weights, minimum, size) in [
        (vec![1; 3], 1024, 1026),
        (vec![1, 2], 3, 3),
        (vec![1; 5], 1, 5),
        (vec![1], 1024, 1024),
        (vec![1; 8], 1024, 1024),
        (vec![1; 9], 1024, 1152),
        (vec![1; 10], 1024, 1280),
    ] {
        assert_eq!(Ring::new(&endpoints(&weights), &weights, minimum).entries().len(), size, "{weights:?} {minimum}");
    }
}

#[test]
fn maglev_table_matches_envoy() {
    let hosts = endpoints(&[1; 6]);
    let table: Vec<_> =
        Maglev::new(&hosts, &[1; 6], 7).table().iter().map(|host| port(&hosts[*host as usize])).collect();
    assert_eq!(table, [92, 94, 90, 91, 95, 90, 93]);
    let balancer = balancer(maglev(7), &hosts);
    let pick = |hash, attempt| port(balancer.pick(Some(hash), &mut || 0, attempt).unwrap());
    assert_eq!([pick(0, 0), pick(8, 0)], [92, 94]);
    // Attempt n uses hash ^ (2^64 - n).
    assert_eq!(pick(5, 1), pick(5 ^ u64::MAX, 0));
    assert_eq!(pick(5, 3), pick(5 ^ (u64::MAX - 2), 0));
}

#[test]
fn maglev_respects_weights_and_order_does_not_matter() {
    let mut hosts = endpoints(&[1, 3]);
    let of_second = |hosts: &[Arc<Endpoint>], second: u32| {
        Maglev::new(hosts, &weights(hosts), 65537).table().iter().filter(|host| **host == second).count() as f64
            / 65537.0
    };
    assert!((of_second(&hosts, 1) - 0.75).abs() < 0.01);
    hosts.reverse();
    assert!((of_second(&hosts, 0) - 0.75).abs() < 0.01);
}

#[test]
fn pick_returns_none_without_endpoints() {
    for kind in all_kinds() {
        let balancer = balancer(kind, &[]);
        assert!(balancer.pick(Some(1), &mut || 1, 0).is_none());
        assert!(balancer.pick_for_retry(OTHERS, None, &mut || 1, &[]).is_none());
    }
}

#[test]
fn round_robin_continues_across_rebuilds() {
    let hosts = endpoints(&[1; 3]);
    let cluster = cluster(LoadBalancer::RoundRobin, None);
    let first = new_balancer(&cluster, &hosts, None);
    let turns = |balancer: &Balancer, n| -> Vec<_> {
        (0..n).map(|_| port(balancer.pick(None, &mut || 0, 0).unwrap())).collect()
    };
    assert_eq!(turns(&first, 4), [90, 91, 92, 90]);
    let second = new_balancer(&cluster, &hosts, Some(&first));
    assert_eq!(turns(&second, 2), [91, 92]);
}

#[test]
fn round_robin_spreads_turns_by_weight() {
    let balancer = balancer(LoadBalancer::RoundRobin, &endpoints(&[4, 2, 2]));
    let turns: Vec<_> = (0..8).map(|_| port(balancer.pick(None, &mut || 0, 0).unwrap())).collect();
    assert_eq!(turns, [90, 91, 92, 90, 90, 91, 92, 90]);
    let extreme = super::tests::balancer(LoadBalancer::RoundRobin, &endpoints(&[u32::MAX, 1]));
    let counts = counts(&extreme, 8192);
    assert!(counts["127.0.0.1:90"] >= 8190 && counts["127.0.0.1:91"] >= 1, "{counts:?}");
}

#[test]
fn least_request_prefers_the_less_busy_endpoint() {
    let hosts = endpoints(&[1, 1]);
    let balancer = balancer(LoadBalancer::LeastRequest, &hosts);
    let _busy = hosts[0].state.enter();
    let counts = counts(&balancer, 4000);
    // The busy endpoint is picked only if both picks are of it.
    assert!((900..1100).contains(&counts["127.0.0.1:90"]), "{counts:?}");
}

#[test]
fn weighted_least_request_divides_weight_by_requests_in_flight() {
    let hosts = endpoints(&[3, 1]);
    let balancer = balancer(LoadBalancer::LeastRequest, &hosts);
    let idle = counts(&balancer, 4000);
    assert!((2850..3150).contains(&idle["127.0.0.1:90"]), "{idle:?}");
    let _busy: Vec<_> = (0..2).map(|_| hosts[0].state.enter()).collect();
    // 3 / (2 + 1) against 1.
    let busy = counts(&balancer, 4000);
    assert!((1850..2150).contains(&busy["127.0.0.1:90"]), "{busy:?}");
}

#[test]
fn retries_avoid_endpoints_that_were_tried() {
    let hosts = endpoints(&[1; 10]);
    for kind in all_kinds() {
        let balancer = balancer(kind.clone(), &hosts);
        let mut random = generator(7);
        let mut repeated = 0;
        for hash in 0..1000u64 {
            let hash = Some(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let first = balancer.pick(hash, &mut random, 0).unwrap().clone();
            let second = balancer.pick_for_retry(OTHERS, hash, &mut random, std::slice::from_ref(&first)).unwrap();
            repeated += usize::from(second.is_same(&first));
        }
        assert_eq!(repeated, 0, "{kind:?}");
        let all = balancer.pick_for_retry(OTHERS, Some(1), &mut random, &hosts);
        assert!(all.is_some(), "a tried endpoint is better than none");
    }
    // An endpoint that does not answer has no requests in flight.
    let hosts = endpoints(&[1; 2]);
    let balancer = balancer(LoadBalancer::LeastRequest, &hosts);
    let _busy: Vec<_> = (0..100).map(|_| hosts[0].state.enter()).collect();
    let mut random = generator(7);
    for _ in 0..100 {
        assert!(balancer.pick_for_retry(OTHERS, None, &mut random, &hosts[1..]).unwrap().is_same(&hosts[0]));
    }
}

#[test]
fn ejected_endpoints_are_excluded_until_panic() {
    for (min_health_percent, ejections, used, panic) in
        [(0, 4, 0, false), (0, 1, 3, false), (50, 2, 2, false), (50, 3, 4, true), (80, 1, 3, false), (80, 2, 4, true)]
    {
        let policy = crate::policy::OutlierDetection { min_health_percent, ..outlier(1, 100) };
        let hosts = endpoints(&[1; 4]);
        let detector = Detector::new(policy.clone(), hosts.clone(), None);
        for host in &hosts[..ejections] {
            assert!(detector.record(host, &Outcome::ConnectFailure, crate::outlier::tests::now()).is_some());
        }
        let balancer = new_balancer(&cluster(LoadBalancer::Random, Some(policy)), &hosts, None);
        assert_eq!((balancer.hosts().count(), balancer.is_panic()), (used, panic), "{min_health_percent} {ejections}");
    }
}

/// The share of 10,000 keys that move when one of ten endpoints is removed.
#[test]
fn removing_one_of_ten_moves_few_keys() {
    let hosts = endpoints(&[1; 10]);
    for kind in [ring(1024), maglev(65537)] {
        let all = balancer(kind.clone(), &hosts);
        for removed in 0..10 {
            let rest: Vec<_> =
                hosts.iter().enumerate().filter(|(i, _)| *i != removed).map(|(_, h)| h.clone()).collect();
            let fewer = balancer(kind.clone(), &rest);
            let mut random = generator(3);
            let moved = (0..10_000).filter(|_| {
                let hash = Some(random());
                let (before, after) = (all.pick(hash, &mut || 0, 0).unwrap(), fewer.pick(hash, &mut || 0, 0).unwrap());
                !before.is_same(after)
            });
            let moved = moved.count();
            assert!(moved <= 1_500, "{kind:?}: {moved} of 10,000 without {removed}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn only_live_endpoints_are_picked(
        hosts in proptest::collection::vec((1u32..10, 0u8..4, any::<bool>()), 0..12),
        kind in 0usize..5,
        picks in proptest::collection::vec((any::<Option<u64>>(), any::<u64>(), 0u32..6), 20),
    ) {
        let healths = [Health::Healthy, Health::Unhealthy, Health::Draining, Health::Unknown];
        let configs: Vec<_> = hosts.iter().enumerate().map(|(i, (weight, health, _))| {
            let health = healths[usize::from(*health)];
            Arc::new(crate::endpoint::EndpointConfig { health, ..config(&format!("10.0.0.{i}:80"), *weight) })
        }).collect();
        let kinds = [LoadBalancer::LeastRequest, LoadBalancer::RoundRobin, LoadBalancer::Random, ring(64), maglev(251)];
        let cluster = cluster(kinds[kind].clone(), Some(outlier(1, 100)));
        let endpoints = for_cluster(&cluster, &configs, &[]);
        let detector = Detector::new(outlier(1, 100), endpoints.clone(), None);
        for (endpoint, (_, _, fails)) in endpoints.iter().zip(&hosts) {
            if *fails {
                detector.record(endpoint, &Outcome::ConnectFailure, crate::outlier::tests::now());
            }
        }
        let live: HashSet<_> =
            endpoints.iter().filter(|e| e.is_eligible() && !e.is_ejected()).map(|e| e.key.clone()).collect();
        let balancer = new_balancer(&cluster, &endpoints, None);
        for (hash, random, attempt) in picks {
            let picked = balancer.pick(hash, &mut || random, attempt);
            prop_assert_eq!(picked.is_some(), !live.is_empty());
            prop_assert!(picked.is_none_or(|picked| live.contains(&picked.key)));
        }
    }

    #[test]
    fn weights_are_respected(weights in proptest::collection::vec(1u32..8, 2..6), kind in 0usize..5) {
        let kinds = [LoadBalancer::LeastRequest, LoadBalancer::RoundRobin, LoadBalancer::Random, ring(8192), maglev(65537)];
        let counts = counts(&balancer(kinds[kind].clone(), &endpoints(&weights)), 20_000);
        let total: u32 = weights.iter().sum();
        for (i, weight) in weights.iter().enumerate() {
            let share = counts[&format!("127.0.0.1:{}", 90 + i)] as f64 / 20_000.0;
            let expected = f64::from(*weight) / f64::from(total);
            // The shares of a ring deviate by about one over the root of a host's number of entries.
            prop_assert!((share - expected).abs() < 0.04, "host {} of {:?}: {} not {}", i, weights, share, expected);
        }
    }
}
