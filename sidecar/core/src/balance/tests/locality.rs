//! Locality load balancing and warm-up.

use super::*;

/// Endpoints 10.0.0.0, 10.0.0.1 ... in these localities, for a proxy in eu/a.
fn spread(cluster: &Cluster, localities: &[&str]) -> Vec<Arc<Endpoint>> {
    let configs = localities.iter().enumerate().map(|(i, locality)| {
        let config = config(&format!("10.0.0.{i}:80"), 1);
        Arc::new(crate::endpoint::EndpointConfig { locality: (*locality).into(), ..config })
    });
    for_cluster(cluster, &configs.collect::<Vec<_>>(), &[])
}

/// Percent of the requests for each endpoint.
fn percents(balancer: &Balancer, endpoints: &[Arc<Endpoint>]) -> Vec<i64> {
    let counts = counts(balancer, 20_000);
    endpoints.iter().map(|e| (counts.get(&*e.key).copied().unwrap_or_default() as f64 / 200.0).round() as i64).collect()
}

fn at_eu_a(cluster: &Cluster, endpoints: &[Arc<Endpoint>]) -> Balancer {
    let location = Location { locality: "eu/a".into(), ..Location::default() };
    Balancer::new(cluster, endpoints, Inputs { location: &location, now: crate::outlier::tests::now() }, None)
}

fn near(got: &[i64], want: &[i64]) -> bool {
    got.len() == want.len() && got.iter().zip(want).all(|(got, want)| (got - want).abs() <= 2)
}

#[test]
fn requests_spill_to_farther_localities_when_near_endpoints_are_unhealthy() {
    let policy = outlier(1, 100);
    let failover = crate::locality::Failover::Regions(Default::default());
    for kind in all_kinds() {
        let cluster =
            Cluster { locality: Locality::Failover(failover.clone()), ..cluster(kind.clone(), Some(policy.clone())) };
        let endpoints = spread(&cluster, &["us/a", "eu/a", "eu/b", "eu/a"]);
        let now = crate::outlier::tests::now();
        let detector = Detector::new(policy.clone(), endpoints.clone(), None);
        let ill = |at: usize| assert!(detector.record(&endpoints[at], &Outcome::ConnectFailure, now).is_some());
        // The shares on a ring of two are not equal, but their sum is everything.
        let all = percents(&at_eu_a(&cluster, &endpoints), &endpoints);
        assert!(all[0] == 0 && all[2] == 0 && near(&[all[1] + all[3]], &[100]), "{kind:?} {all:?}");
        ill(1);
        let half = percents(&at_eu_a(&cluster, &endpoints), &endpoints);
        assert!(near(&half, &[0, 0, 30, 70]), "{kind:?} {half:?}");
        ill(3);
        assert!(near(&percents(&at_eu_a(&cluster, &endpoints), &endpoints), &[0, 0, 100, 0]), "{kind:?}");
        ill(2);
        assert!(near(&percents(&at_eu_a(&cluster, &endpoints), &endpoints), &[100, 0, 0, 0]), "{kind:?}");
        ill(0);
        assert!(at_eu_a(&cluster, &endpoints).pick(Some(1), &mut || 1, 0).is_none(), "{kind:?}");
    }
}

#[test]
fn retries_exclude_localities_after_two_attempts() {
    let failover = crate::locality::Failover::Regions(Default::default());
    for kind in all_kinds() {
        let cluster = Cluster { locality: Locality::Failover(failover.clone()), ..cluster(kind.clone(), None) };
        let endpoints = spread(&cluster, &["eu/a", "eu/a", "eu/b", "us/a"]);
        let balancer = at_eu_a(&cluster, &endpoints);
        assert!(balancer.hosts().all(|host| host.config.locality.starts_with("eu/a")), "{kind:?}");
        let selection = RetrySelection { other_levels: true, other_endpoints: true };
        let (mut random, mut tried, mut localities) = (generator(3), Vec::new(), String::new());
        for _ in 0..8 {
            let picked = match tried.is_empty() {
                true => balancer.pick(Some(5), &mut random, 0),
                false => balancer.pick_for_retry(selection, Some(5), &mut random, &tried),
            };
            let picked = picked.unwrap().clone();
            localities.push_str(&format!("{} ", picked.config.locality));
            tried.push(picked);
        }
        // After the last locality, the sequence starts again.
        assert_eq!(localities, "eu/a eu/a eu/b eu/b us/a us/a eu/a eu/a ", "{kind:?}");
    }
}

#[test]
fn a_key_moves_to_a_farther_locality_only_with_its_share() {
    let policy = outlier(1, 100);
    let failover = crate::locality::Failover::Regions(Default::default());
    let cluster = Cluster { locality: Locality::Failover(failover), ..cluster(ring(1024), Some(policy.clone())) };
    let endpoints = spread(&cluster, &["eu/a", "eu/a", "us/a"]);
    let detector = Detector::new(policy, endpoints.clone(), None);
    detector.record(&endpoints[0], &Outcome::ConnectFailure, crate::outlier::tests::now());
    let balancer = at_eu_a(&cluster, &endpoints);
    let mut random = generator(5);
    for _ in 0..1000 {
        let hash = random();
        let want = if hash % 100 < 70 { &endpoints[1] } else { &endpoints[2] };
        assert!(
            balancer.pick(Some(hash), &mut random, 0).unwrap().is_same(want),
            "as in Envoy, hash % 100 selects the level"
        );
    }
}

#[test]
fn distribute_sets_the_shares_of_localities() {
    use crate::locality::{Distribution, Pattern};
    let pattern = |text: &str| Pattern::parse(text).unwrap();
    let distribution = Distribution { from: pattern("eu/*"), to: vec![(pattern("eu/a"), 70), (pattern("us/*"), 30)] };
    for kind in all_kinds() {
        let cluster = Cluster {
            locality: Locality::Distribute(vec![distribution.clone()]),
            ..cluster(kind.clone(), Some(outlier(1, 100)))
        };
        let endpoints = spread(&cluster, &["eu/a", "eu/b", "us/a", "us/b", "eu/a"]);
        let got = percents(&at_eu_a(&cluster, &endpoints), &endpoints);
        // The shares on a ring are not equal.
        let even = |got: i64, want: i64| (got - want).abs() <= 5;
        assert!(got[1] == 0 && even(got[0] + got[4], 70) && even(got[2] + got[3], 30), "{kind:?} {got:?}");
        // The distribution does not apply to a proxy elsewhere.
        let other = percents(&new_balancer(&cluster, &endpoints, None), &endpoints);
        assert!(other.iter().all(|percent| even(*percent, 20)), "{kind:?} {other:?}");
        let detector = Detector::new(outlier(1, 100), endpoints.clone(), None);
        for at in [2, 3] {
            detector.record(&endpoints[at], &Outcome::ConnectFailure, crate::outlier::tests::now());
        }
        let left = percents(&at_eu_a(&cluster, &endpoints), &endpoints);
        assert!(near(&[left[0] + left[4]], &[100]), "{kind:?} {left:?}");
    }
}

#[test]
fn a_new_endpoint_gets_a_reduced_share_during_warmup() {
    let second = std::time::Duration::from_secs(1);
    for kind in [LoadBalancer::LeastRequest, LoadBalancer::RoundRobin] {
        let warmup = crate::policy::Warmup { duration: 60 * second, minimum_percent: 10.0, aggression: 1.0 };
        let cluster = Cluster { warmup: Some(warmup), ..cluster(kind.clone(), None) };
        let start = crate::outlier::tests::now();
        let at = |endpoints: &[Arc<Endpoint>], now| {
            let balancer = Balancer::new(&cluster, endpoints, Inputs { location: &Location::default(), now }, None);
            (percents(&balancer, endpoints), balancer.is_warming())
        };
        let endpoints = spread(&cluster, &["", ""]);
        // All endpoints are new: none gets less than another.
        assert!(near(&at(&endpoints[..1], start).0, &[100]));
        assert!(near(&at(&endpoints, start + 60 * second).0, &[91, 9]), "{kind:?}");
        let (half, warming) = at(&endpoints, start + 90 * second);
        assert!(near(&half, &[67, 33]) && warming, "{kind:?} {half:?}");
        let (all, warming) = at(&endpoints, start + 120 * second);
        assert!(near(&all, &[50, 50]) && !warming, "{kind:?} {all:?}");
    }
}
