//! Conditions of the status of the Gateway API's objects, from the decisions of the attachment.

use super::listeners::{self, ListenerState};
use super::{Rejection, backend, backend_tls, services};
use crate::world::World;
use weft_policy::{CONTROLLER, Document, Object, ObjectRef, ParentRef};

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

    /// True with the reason of its type, or false with that of the rejection.
    fn of(kind: &'static str, result: Result<(), Rejection>) -> Condition {
        result.map_or_else(|rejection| Condition::bad(kind, rejection), |()| Condition::good(kind, kind))
    }

    /// Whether it reports a mistake: unlike the others, `Conflicted` is good if it is false.
    pub fn is_bad(&self) -> bool {
        self.status == (self.kind == CONFLICTED)
    }
}

const CONFLICTED: &str = "Conflicted";

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

/// The status of a Gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayStatus {
    /// Its own conditions.
    pub conditions: Vec<Condition>,
    /// By listener, in the order of the document.
    pub listeners: Vec<ListenerStatus>,
}

/// The status of a listener.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// `supportedKinds`: the kinds of routes that may attach.
    pub supported_kinds: Vec<&'static str>,
    /// `attachedRoutes`.
    pub attached_routes: usize,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// The status of a route at those of its parents that are this mesh's.
pub fn of_route<'a>(world: &World, document: &'a Document) -> Vec<ParentStatus<'a>> {
    let parents = document.object.parents();
    let one = |(at, parent): (usize, &'a ParentRef)| {
        let (controller, attached) = if parent.object.is_service() {
            (MESH_CONTROLLER, services::attach(world, document, parent))
        } else if parent.object.is_gateway() {
            (CONTROLLER, listeners::attach(world, document, parent)?)
        } else {
            return None;
        };
        let granted = parent.object.is_gateway();
        let conditions = vec![
            Condition::of("Accepted", attached),
            Condition::of("ResolvedRefs", resolved(world, document, granted)),
        ];
        Some(ParentStatus { at, parent, controller, conditions })
    };
    parents.iter().enumerate().filter_map(one).collect()
}

/// The status of a route that cannot be read, at a parent; `None`: the parent is not this mesh's.
pub fn of_refused(world: &World, parent: &ObjectRef, message: &str) -> Option<(&'static str, Vec<Condition>)> {
    let controller = if parent.is_service() {
        MESH_CONTROLLER
    } else {
        let document = world.policies().gateway_api().gateway(&parent.namespace, &parent.name);
        listeners::gateway(world, document.filter(|_| parent.is_gateway())?)?;
        CONTROLLER
    };
    Some((controller, vec![Condition::bad("Accepted", Rejection::new("UnsupportedValue", message))]))
}

/// Whether all backends of a route can be used.
fn resolved(world: &World, document: &Document, granted: bool) -> Result<(), Rejection> {
    for (path, of) in document.object.backends() {
        backend(world, document, of, granted)
            .map_err(|rejection| Rejection { message: format!("{path}: {}", rejection.message), ..rejection })?;
    }
    Ok(())
}

/// The status of a Gateway; `None`: its class is not served here.
pub fn of_gateway(world: &World, document: &Document) -> Option<GatewayStatus> {
    listeners::gateway(world, document)?;
    let states = listeners::listeners(world, document);
    let programmed = states.iter().any(ListenerState::is_programmed);
    let all_valid = states.iter().all(|state| state.accepted.is_ok() && state.conflicted.is_none());
    let accepted = match (programmed, all_valid) {
        (true, true) => Condition::good("Accepted", "Accepted"),
        (true, false) => Condition::good("Accepted", LISTENERS_NOT_VALID),
        (false, _) => Condition::bad("Accepted", Rejection::new(LISTENERS_NOT_VALID, "no listener is valid")),
    };
    let served = if programmed { Ok(()) } else { Err(Rejection::new("Invalid", "no listener is valid")) };
    Some(GatewayStatus {
        conditions: vec![accepted, Condition::of("Programmed", served)],
        listeners: states.iter().map(|state| of_listener(world, document, state)).collect(),
    })
}

const LISTENERS_NOT_VALID: &str = "ListenersNotValid";

fn of_listener(world: &World, gateway: &Document, state: &ListenerState<'_>) -> ListenerStatus {
    let programmed = match state.is_programmed() {
        true => Ok(()),
        false => Err(Rejection::new("Invalid", "see the other conditions")),
    };
    let conflicted = match &state.conflicted {
        Some(Rejection { reason, message }) => {
            Condition { kind: CONFLICTED, status: true, reason, message: message.clone() }
        }
        None => Condition::bad(CONFLICTED, Rejection::new("NoConflicts", "")),
    };
    ListenerStatus {
        name: state.listener.name.clone(),
        supported_kinds: state.kinds.iter().map(|kind| kind.written()).collect(),
        attached_routes: listeners::attached(world, gateway, state).len(),
        conditions: vec![
            Condition::of("Accepted", state.accepted.clone()),
            conflicted,
            Condition::of("ResolvedRefs", state.references.clone()),
            Condition::of("Programmed", programmed),
        ],
    }
}

/// The conditions of a BackendTLSPolicy, the same at all of its ancestors.
pub fn of_backend_tls(world: &World, document: &Document) -> Vec<Condition> {
    let (accepted, references) = backend_tls::conditions(world, document);
    vec![Condition::of("Accepted", accepted), Condition::of("ResolvedRefs", references)]
}

/// The conditions of a GatewayClass; none: another controller's.
pub fn of_class(document: &Document) -> Vec<Condition> {
    match &document.object {
        Object::GatewayClass(class) if class.controller == CONTROLLER => vec![Condition::good("Accepted", "Accepted")],
        _ => Vec::new(),
    }
}
