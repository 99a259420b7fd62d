//! Division of requests between near and far endpoints: Envoy's priorities
//! (`source/extensions/load_balancing_policies/common/load_balancer_impl.cc`).

/// Number of endpoints at one distance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// Healthy, and not ejected.
    pub(super) usable: usize,
    /// All except draining ones.
    pub(super) total: usize,
}

/// Envoy's over-provisioning factor, in percent.
const OVERPROVISIONING: u64 = 140;

/// Percent of the requests that the usable endpoints can carry.
fn health(count: Count) -> u64 {
    match count.total as u64 {
        0 => 0,
        total => (count.usable as u64 * OVERPROVISIONING / total).min(100),
    }
}

/// Whether the usable endpoints of all levels can carry all requests. Ejected endpoints may be used only if they
/// cannot.
pub(super) fn suffices(levels: &[Count]) -> bool {
    levels.iter().map(|level| health(*level)).sum::<u64>() >= 100
}

/// Percent of the requests for each level, the nearest first. The sum is 100, or 0 if no endpoint is usable.
pub(super) fn loads(levels: &[Count]) -> Vec<u64> {
    let healths: Vec<u64> = levels.iter().map(|level| health(*level)).collect();
    let together = healths.iter().sum::<u64>().min(100);
    if together == 0 {
        // The over-provisioned share rounds to 0 if fewer than one in 140 endpoints is usable: all requests go to
        // those.
        let first = levels.iter().position(|level| level.usable > 0);
        return (0..levels.len()).map(|at| if Some(at) == first { 100 } else { 0 }).collect();
    }
    let mut left = 100;
    let mut loads: Vec<u64> = healths
        .iter()
        .map(|health| {
            let load = (health * 100 / together).min(left);
            left -= load;
            load
        })
        .collect();
    // The first level with usable endpoints takes the remainder of the rounding.
    if let Some(first) = loads.iter_mut().find(|load| **load > 0) {
        *first += left;
    }
    loads
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(counts: &[(usize, usize)]) -> Vec<Count> {
        counts.iter().map(|(usable, total)| Count { usable: *usable, total: *total }).collect()
    }

    #[test]
    fn loads_match_envoy() {
        for (levels, want) in [
            (&[(100, 100), (100, 100)][..], &[100, 0][..]),
            (&[(72, 100), (72, 100)], &[100, 0]),
            (&[(71, 100), (71, 100)], &[99, 1]),
            (&[(50, 100), (50, 100)], &[70, 30]),
            (&[(25, 100), (100, 100)], &[35, 65]),
            (&[(25, 100), (25, 100)], &[50, 50]),
            (&[(100, 100), (100, 100), (100, 100)], &[100, 0, 0]),
            (&[(72, 100), (72, 100), (100, 100)], &[100, 0, 0]),
            (&[(50, 100), (50, 100), (50, 100)], &[70, 30, 0]),
            (&[(25, 100), (100, 100), (100, 100)], &[35, 65, 0]),
            (&[(25, 100), (25, 100), (100, 100)], &[35, 35, 30]),
            (&[(25, 100), (25, 100), (25, 100)], &[35, 35, 30]),
            (&[(20, 100), (20, 100), (20, 100)], &[34, 33, 33]),
            (&[(0, 3), (1, 3)], &[0, 100]),
            (&[(0, 3), (0, 0)], &[0, 0]),
            (&[(0, 3), (1, 300)], &[0, 100]),
        ] {
            assert_eq!(loads(&of(levels)), want, "{levels:?}");
        }
        assert!(suffices(&of(&[(50, 100), (50, 100)])) && !suffices(&of(&[(25, 100), (25, 100)])));
    }

    proptest! {
        #[test]
        fn levels_with_usable_endpoints_take_all_requests(levels in proptest::collection::vec((0_usize..9, 0_usize..9), 1..5)) {
            let counts: Vec<Count> = levels.iter().map(|(usable, ill)| Count { usable: *usable, total: usable + ill }).collect();
            let loads = loads(&counts);
            let some = counts.iter().any(|count| count.usable > 0);
            prop_assert_eq!(loads.iter().sum::<u64>(), if some { 100 } else { 0 });
            for (load, count) in loads.iter().zip(&counts) {
                prop_assert!(*load == 0 || count.usable > 0);
            }
        }
    }
}
