//! Gateways of other data centres.

use super::*;

/// A balancer of `here` local endpoints and two gateways of another data centre with this share.
fn with_gateways(kind: LoadBalancer, here: u8, share: u32) -> Balancer {
    let local = (0..here).map(|i| Arc::new(config(&format!("10.0.0.{i}:80"), 1)));
    let remote = [1, 2].map(|i| Arc::new(gateway(&format!("10.9.0.{i}:15443"), share)));
    let cluster = cluster(kind, None);
    let endpoints = for_cluster(&cluster, &local.chain(remote).collect::<Vec<_>>(), &[]);
    new_balancer(&cluster, &endpoints, None)
}

fn is_remote(balancer: &Balancer, hash: Option<u64>, random: &mut impl FnMut() -> u64) -> bool {
    balancer.pick(hash, random, 0).unwrap().remote.is_some()
}

#[test]
fn remote_gateways_get_their_share_and_all_requests_without_local_endpoints() {
    for kind in all_kinds() {
        for (here, share, want) in [(3, 0, 0.0), (3, 30, 0.3), (3, 100, 1.0), (0, 0, 1.0), (0, 30, 1.0)] {
            let balancer = with_gateways(kind.clone(), here, share);
            let mut random = generator(7);
            let all = 10_000;
            let remote_picks = (0..all).filter(|_| is_remote(&balancer, None, &mut random)).count();
            let got = remote_picks as f64 / f64::from(all);
            assert!((got - want).abs() < 0.02, "{kind:?} {here} {share}: {got}");
            if remote_picks == all as usize {
                assert_eq!(counts(&balancer, 1000).len(), 2, "both gateways are used");
            }
            assert!(balancer.hosts().all(|host| host.remote.is_none()));
            let local = balancer.pick_here(None, &mut random, 0);
            assert_eq!(local.map(|host| host.remote.is_some()), (here > 0).then_some(false));
        }
    }
}

#[test]
fn ejected_local_endpoints_are_not_used_while_a_remote_gateway_is_usable() {
    let policy = crate::policy::OutlierDetection { min_health_percent: 50, ..outlier(1, 100) };
    let cluster = cluster(LoadBalancer::RoundRobin, Some(policy.clone()));
    let configs = [Arc::new(config("10.0.0.1:80", 1)), Arc::new(gateway("10.9.0.1:15443", 100))];
    let endpoints = for_cluster(&cluster, &configs, &[]);
    let here = Detector::new(policy, endpoints[..1].to_vec(), None);
    let gateways = Detector::new(crate::policy::OutlierDetection::of_gateways(), endpoints[1..].to_vec(), None);
    let mut random = generator(1);
    let now = crate::outlier::tests::now();
    let mut goes_elsewhere = || is_remote(&new_balancer(&cluster, &endpoints, None), None, &mut random);
    // Error responses do not eject a gateway; a connection failure does at once, and then the local endpoints are used.
    let status = http::StatusCode::INTERNAL_SERVER_ERROR;
    let failed = Outcome::response(status, &http::HeaderMap::new(), false);
    assert!(gateways.record(&endpoints[1], &failed, now).is_none() && goes_elsewhere());
    assert!(gateways.record(&endpoints[1], &Outcome::ConnectTimeout, now).is_some() && !goes_elsewhere());
    // Both gateways are ejected: local endpoints are used as without another data centre.
    assert!(here.record(&endpoints[0], &failed, now).is_some());
    assert!(new_balancer(&cluster, &endpoints, None).is_panic() && !goes_elsewhere());
    assert!(gateways.tick(now + std::time::Duration::from_secs(6)));
    assert!(!new_balancer(&cluster, &endpoints, None).is_panic() && goes_elsewhere());
    // Without any local endpoint, an ejected gateway is tried all the same.
    assert!(gateways.record(&endpoints[1], &Outcome::ConnectTimeout, now).is_some());
    assert!(is_remote(&new_balancer(&cluster, &endpoints[1..], None), None, &mut random));
}

proptest! {
    #[test]
    fn a_hash_stays_in_one_data_centre_while_the_share_grows(hash: u64, less in 0_u32..=100, more in 0_u32..=100) {
        let (less, more) = (less.min(more), less.max(more));
        let went = |share| {
            let balancer = with_gateways(ring(64), 3, share);
            let mut random = generator(hash);
            let first = is_remote(&balancer, Some(hash), &mut random);
            prop_assert_eq!(first, is_remote(&balancer, Some(hash), &mut random));
            Ok(first)
        };
        // No key returns when the share grows.
        prop_assert!(!went(less)? || went(more)?);
    }
}
