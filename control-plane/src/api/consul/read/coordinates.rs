//! `coordinate/*`: all nodes are at one place.
//!
//! Consul measures round trips between agents and makes positions of them. Sidecars measure none among themselves; what is
//! close is said by their localities, by which `near` sorts. So that clients that read coordinates find some, each node
//! has those with which Consul's begin.

use serde_json::{Value, json};

fn origin() -> Value {
    json!({ "Vec": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], "Error": 1.5, "Adjustment": 0.0, "Height": 0.00001 })
}

/// That of a node.
pub(in crate::api::consul) fn of(node: &str) -> Value {
    json!({ "Node": node, "Segment": "", "Partition": "default", "Coord": origin() })
}

/// Those of data centres: in each its control plane's.
pub(in crate::api::consul) fn datacenters(names: Vec<&str>) -> Value {
    let one = |name: &str| {
        let server = json!({ "Node": format!("control-plane.{name}"), "Coord": origin() });
        json!({ "Datacenter": name, "AreaID": "wan", "Coordinates": [server] })
    };
    Value::Array(names.into_iter().map(one).collect())
}
