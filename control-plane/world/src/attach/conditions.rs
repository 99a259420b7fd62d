//! Conditions of the status of routes, from the decisions of the attachment.

use super::{Rejection, backend, route, services};
use crate::world::World;
use weft_policy::{Document, ParentRef};

/// `controllerName` of the status at Services.
pub const MESH_CONTROLLER: &str = "weft.dev/mesh-controller";

/// One condition of a status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `type`.
    pub kind: &'static str,
    /// `status`.
    pub status: bool,
    /// `reason`.
    pub reason: &'static str,
    /// `message`.
    pub message: String,
}

impl Condition {
    fn good(kind: &'static str, reason: &'static str) -> Condition {
        Condition { kind, status: true, reason, message: String::new() }
    }

    fn bad(kind: &'static str, Rejection { reason, message }: Rejection) -> Condition {
        Condition { kind, status: false, reason, message }
    }

    fn of(kind: &'static str, good: &'static str, result: Result<(), Rejection>) -> Condition {
        result.map_or_else(|rejection| Condition::bad(kind, rejection), |()| Condition::good(kind, good))
    }
}

/// The status of a route at one of its parents.
#[derive(Clone, Debug, PartialEq)]
pub struct ParentStatus<'a> {
    /// Its place in `parentRefs`.
    pub at: usize,
    /// The entry of `parentRefs`.
    pub parent: &'a ParentRef,
    /// `controllerName`.
    pub controller: &'static str,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// The status of a route at those of its parents that are this mesh's.
pub fn of_route<'a>(world: &World, document: &'a Document) -> Vec<ParentStatus<'a>> {
    let parents = route(document).map(|route| &route.parents[..]).unwrap_or_default();
    let one = |(at, parent): (usize, &'a ParentRef)| {
        let services = parent.object.is_service();
        let (controller, attached) = match services {
            true => (MESH_CONTROLLER, services::attach(world, document, parent)),
            false => return None,
        };
        let conditions = vec![
            Condition::of("Accepted", "Accepted", attached),
            Condition::of("ResolvedRefs", "ResolvedRefs", resolved(world, document, !services)),
        ];
        Some(ParentStatus { at, parent, controller, conditions })
    };
    parents.iter().enumerate().filter_map(one).collect()
}

/// Whether all backends of a route can be used.
fn resolved(world: &World, document: &Document, granted: bool) -> Result<(), Rejection> {
    let Some(route) = route(document) else { return Ok(()) };
    for (path, of) in route.backends() {
        backend(world, document, of, granted)
            .map_err(|rejection| Rejection { message: format!("{path}: {}", rejection.message), ..rejection })?;
    }
    Ok(())
}
