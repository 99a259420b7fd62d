//! `near`: sorts by distance to a node.
//!
//! Consul sorts by measured round trips; here, as in the mesh's balancing, distance is locality: the same zone, then
//! the same region, then the rest in their order.

use crate::api::consul::Caller;
use crate::api::consul::select::Row;
use crate::state::Nodes;

/// The locality that `near` names: that of a node, or with `_agent` the caller's. `None`: it has none, and nothing is
/// sorted, as in Consul for a node without coordinates.
pub(in crate::api::consul) fn locality(near: &str, caller: &Caller, nodes: &Nodes) -> Option<String> {
    let node = match near {
        "_agent" => caller.node(nodes).map(|(_, node)| node),
        name => nodes.get(name).filter(|node| caller.sees(&node.namespace)),
    };
    node.map(|node| node.locality.clone()).filter(|locality| !locality.is_empty())
}

/// Rows that share more of `locality` come first.
pub(in crate::api::consul) fn sort(rows: &mut [Row], locality: &str) {
    rows.sort_by_key(|row| std::cmp::Reverse(shared(&row.instance.locality, locality)));
}

/// The number of common components of two localities, from the left.
pub(in crate::api::consul) fn shared(a: &str, b: &str) -> usize {
    let same = a.split('/').zip(b.split('/')).take(2).take_while(|(a, b)| a == b && !a.is_empty());
    same.count()
}

#[cfg(test)]
mod tests {
    use super::shared;

    #[test]
    fn zones_are_closer_than_regions() {
        for (a, b, count) in [
            ("eu/a/1", "eu/a/2", 2),
            ("eu/a", "eu/b", 1),
            ("eu", "eu", 1),
            ("us/a", "eu/a", 0),
            ("", "", 0),
            ("eu", "", 0),
        ] {
            assert_eq!(shared(a, b), count, "{a} {b}");
        }
    }
}
