//! `coordinate/*`: all nodes have one position.
//!
//! Consul measures round trips between agents and computes positions from them. Sidecars measure none; `near` sorts by
//! their localities. Each node has the initial coordinates of Consul, for clients that read them.

use serde_json::{Value, json};

fn origin() -> Value {
    json!({ "Vec": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], "Error": 1.5, "Adjustment": 0.0, "Height": 0.00001 })
}

/// The coordinates of a node.
pub(in crate::api::consul) fn of(node: &str) -> Value {
    json!({ "Node": node, "Segment": "", "Partition": "default", "Coord": origin() })
}

/// The coordinates of data centres: those of each one's control plane.
pub(in crate::api::consul) fn datacenters(names: Vec<&str>) -> Value {
    let one = |name: &str| {
        let server = json!({ "Node": format!("control-plane.{name}"), "Coord": origin() });
        json!({ "Datacenter": name, "AreaID": "wan", "Coordinates": [server] })
    };
    Value::Array(names.into_iter().map(one).collect())
}
