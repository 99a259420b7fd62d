//! The status of the Gateway API's objects: the conditions of the world's decisions, merged into what the objects have.
//!
//! Entries of other controllers stay, and a condition keeps the time of its last transition while its status is the same.

use serde_json::{Value, json};
use weft_policy::{CONTROLLER, Document, GATEWAY_API, ObjectRef};
use weft_world::World;
use weft_world::conditions::{self, Condition, GatewayStatus, MESH_CONTROLLER, ParentStatus};

/// Bound on a route's parents, and on a status's: others are left out (`status.parents`).
const PARENTS: usize = 32;

/// The status that an object should have; `None`: it has that, or none of it is this mesh's. `spec` and `status` are those of
/// the object, whose version is `generation`.
pub(crate) fn status(
    world: &World,
    document: &Document,
    spec: &Value,
    status: &Value,
    generation: i64,
    now: &str,
) -> Option<Value> {
    let stamp = Stamp { generation, now };
    let wanted = if document.object.parents().is_empty() {
        match conditions::of_gateway(world, document) {
            Some(gateway) => stamp.gateway(&gateway, status),
            None => stamp.class(&conditions::of_class(document), status)?,
        }
    } else {
        let of_parent = |one: ParentStatus<'_>| (one.at, one.controller, one.conditions);
        let all: Vec<Entry> = conditions::of_route(world, document).into_iter().map(of_parent).collect();
        stamp.route(&all, spec, status)?
    };
    differing(wanted, status)
}

/// The status of a route that cannot be read, with its errors, as [`status`].
pub(crate) fn refused(
    world: &World,
    (namespace, message): (&str, &str),
    spec: &Value,
    status: &Value,
    generation: i64,
    now: &str,
) -> Option<Value> {
    let text = |parent: &Value, field: &str, default: &str| parent[field].as_str().unwrap_or(default).to_owned();
    let of_parent = |(at, parent): (usize, &Value)| {
        let object = ObjectRef {
            group: text(parent, "group", GATEWAY_API),
            kind: text(parent, "kind", "Gateway"),
            namespace: text(parent, "namespace", namespace),
            name: text(parent, "name", ""),
        };
        let (controller, conditions) = conditions::of_refused(world, &object, message)?;
        Some((at, controller, conditions))
    };
    let all: Vec<Entry> = spec["parentRefs"].as_array()?.iter().enumerate().filter_map(of_parent).collect();
    differing(Stamp { generation, now }.route(&all, spec, status)?, status)
}

/// The place of a parentRef, the controller of the parent, and the route's conditions there.
type Entry = (usize, &'static str, Vec<Condition>);

/// A status, if it is not the one that an object has.
fn differing(wanted: Value, status: &Value) -> Option<Value> {
    let same = wanted.as_object()?.iter().all(|(field, value)| status[field] == *value);
    (!same).then_some(wanted)
}

/// The version and the time of new conditions.
struct Stamp<'a> {
    generation: i64,
    now: &'a str,
}

impl Stamp<'_> {
    /// `status.parents`: the entries of other controllers, and this mesh's; `None`: it has none, and had none.
    fn route(&self, all: &[Entry], spec: &Value, status: &Value) -> Option<Value> {
        let old = status["parents"].as_array().cloned().unwrap_or_default();
        let is_own = |entry: &&Value| {
            let controller = entry["controllerName"].as_str();
            controller == Some(MESH_CONTROLLER) || controller == Some(CONTROLLER)
        };
        if all.is_empty() && !old.iter().any(|entry| is_own(&entry)) {
            return None;
        }
        let mut parents: Vec<Value> = old.iter().filter(|entry| !is_own(entry)).cloned().collect();
        for (at, controller, conditions) in all {
            // As written, so that its author finds it again.
            let parent = &spec["parentRefs"][*at];
            let before = old.iter().filter(is_own).find(|entry| entry["parentRef"] == *parent);
            let before = before.map_or(&Value::Null, |entry| &entry["conditions"]);
            parents.push(json!({
                "parentRef": parent,
                "controllerName": controller,
                "conditions": self.merged(before, conditions),
            }));
        }
        parents.truncate(PARENTS);
        Some(json!({ "parents": parents }))
    }

    fn gateway(&self, gateway: &GatewayStatus, status: &Value) -> Value {
        let old = status["listeners"].as_array().cloned().unwrap_or_default();
        let listener = |one: &conditions::ListenerStatus| {
            let before = old.iter().find(|before| before["name"] == *one.name);
            let before = before.map_or(&Value::Null, |before| &before["conditions"]);
            let kind = |kind: &&str| json!({ "group": GATEWAY_API, "kind": kind });
            json!({
                "name": one.name,
                "supportedKinds": one.supported_kinds.iter().map(kind).collect::<Vec<_>>(),
                "attachedRoutes": one.attached_routes,
                "conditions": self.merged(before, &one.conditions),
            })
        };
        json!({
            "conditions": self.merged(&status["conditions"], &gateway.conditions),
            "listeners": gateway.listeners.iter().map(listener).collect::<Vec<_>>(),
        })
    }

    /// `None`: it is another controller's.
    fn class(&self, all: &[Condition], status: &Value) -> Option<Value> {
        (!all.is_empty()).then(|| json!({ "conditions": self.merged(&status["conditions"], all) }))
    }

    /// The conditions `before` with `own` instead of those of the same type, in place.
    fn merged(&self, before: &Value, own: &[Condition]) -> Vec<Value> {
        let mut all: Vec<Value> = before.as_array().cloned().unwrap_or_default();
        for one in own {
            let at = all.iter().position(|old| old["type"] == one.kind);
            let status = if one.status { "True" } else { "False" };
            let since = at.map(|at| &all[at]).filter(|old| old["status"] == status);
            let since = since.map_or(json!(self.now), |old| old["lastTransitionTime"].clone());
            let condition = json!({
                "type": one.kind,
                "status": status,
                "reason": one.reason,
                "message": one.message,
                "observedGeneration": self.generation,
                "lastTransitionTime": since,
            });
            match at {
                Some(at) => all[at] = condition,
                None => all.push(condition),
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_world::parse_policies;

    use super::*;

    fn world() -> World {
        let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec: {gatewayClassName: weft, \
                    listeners: [{name: http, port: 80, protocol: HTTP}]}\n---\n\
                    apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a}\nspec: {parentRefs: [{name: other}, \
                    {name: edge}, {group: '', kind: Service, name: none}]}\n---\n\
                    apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: alone}\nspec: {parentRefs: [{name: other}]}\n";
        let parsed = parse_policies("f.yaml", text);
        let mut world = World::new("cluster.local", 1);
        world.set_policies(parsed.documents.into_iter().map(Arc::new).collect(), 0);
        world
    }

    fn document(world: &World, name: &str) -> Arc<Document> {
        world.documents().find(|document| document.name == name).unwrap().clone()
    }

    #[test]
    fn parents_of_other_controllers_stay_and_times_change_with_the_status() {
        let (world, mut spec) =
            (world(), json!({"parentRefs": [{"name": "other"}, {"name": "edge"}, {"kind": "Service"}]}));
        let route = document(&world, "a");
        let foreign = json!({"parentRef": {"name": "other"}, "controllerName": "example.com/other", "conditions": []});
        let first = status(&world, &route, &spec, &json!({"parents": [foreign]}), 1, "t1").unwrap();
        let parents = first["parents"].as_array().unwrap();
        assert_eq!((parents.len(), &parents[0]), (3, &foreign));
        assert_eq!(
            (&parents[1]["parentRef"], &parents[1]["controllerName"]),
            (&json!({"name": "edge"}), &json!(CONTROLLER))
        );
        assert_eq!(parents[1]["conditions"][0]["status"], "True");
        assert_eq!((&parents[2]["conditions"][0]["reason"]), &json!("NoMatchingParent"));
        assert_eq!(status(&world, &route, &spec, &first, 1, "t2"), None, "nothing differs");
        let later = status(&world, &route, &spec, &first, 2, "t3").unwrap();
        let accepted = &later["parents"][1]["conditions"][0];
        assert_eq!((&accepted["observedGeneration"], &accepted["lastTransitionTime"]), (&json!(2), &json!("t1")));
        let unread = refused(&world, ("default", "wrong"), &spec, &json!({}), 1, "t").unwrap();
        assert_eq!(unread["parents"].as_array().unwrap().len(), 1, "the Gateway is ours");
        assert_eq!(unread["parents"][0]["conditions"][0]["reason"], "UnsupportedValue");
        let nothing = json!({"parents": [foreign]});
        let others = World::new("cluster.local", 1);
        assert_eq!(
            status(&others, &document(&world, "alone"), &json!({"parentRefs": [{"name": "other"}]}), &nothing, 1, "t"),
            None
        );
        spec["parentRefs"][1]["sectionName"] = json!("http");
        let moved = status(&world, &route, &spec, &first, 2, "t4").unwrap();
        assert_eq!(moved["parents"].as_array().unwrap().len(), 3, "the entry of a parentRef that is gone is gone");
    }

    #[test]
    fn a_gateway_has_the_status_of_its_listeners() {
        let world = world();
        let gateway = document(&world, "edge");
        let old = json!({
            "addresses": [{"value": "10.0.0.1"}],
            "conditions": [{"type": "Accepted", "status": "Unknown", "lastTransitionTime": "t0"}, {"type": "example.com/Other"}],
        });
        let found = status(&world, &gateway, &json!({}), &old, 3, "t1").unwrap();
        assert!(found.get("addresses").is_none(), "not ours to change");
        let types: Vec<&str> =
            found["conditions"].as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["Accepted", "example.com/Other", "Programmed"]);
        let listener = &found["listeners"][0];
        assert_eq!((&listener["name"], &listener["attachedRoutes"]), (&json!("http"), &json!(1)));
        assert_eq!(listener["supportedKinds"][1]["kind"], "GRPCRoute");
    }
}
