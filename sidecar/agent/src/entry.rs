//! One registered service and one registered check, as [`super::local`] keeps them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_proto::v1::{self, Instance};
use xxhash_rust::xxh64::xxh64;

use crate::checks::state::State;
use crate::checks::{Definition, Kind};

/// A registered service.
#[derive(Debug, Clone)]
pub struct Held {
    /// The service.
    pub service: Instance,
    /// Registered by `--service`, not by the API.
    pub command_line: bool,
}

/// A digest of service ids, whatever their order: sidecar and registry compare what each holds of a node by it.
pub fn digest<'a>(service_ids: impl Iterator<Item = &'a str>) -> u64 {
    // As many as there are, so that the sum of one and of none differ even where a hash is 0.
    service_ids.fold(0, |sum: u64, id| sum.wrapping_add(xxh64(id.as_bytes(), 0)).wrapping_add(1))
}

/// A registered check.
pub struct Entry {
    /// As registered.
    pub definition: Arc<Definition>,
    /// How it fares.
    pub state: State,
    /// Runs it, and ends with the entry.
    pub task: Task,
}

/// Ends with its check.
pub struct Task(pub tokio::task::AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Entry {
    /// As the mesh has it.
    pub fn wire(&self) -> v1::Check {
        wire(&self.definition, &self.state)
    }

    /// Whether somebody has taken the service out of use by it.
    pub fn is_maintenance(&self) -> bool {
        matches!(self.definition.kind, Kind::Maintenance)
    }

    /// The check, if the mesh must hear of it now; taken as told.
    pub fn due(&mut self, now: Instant) -> Option<v1::Check> {
        self.state.due_to_tell(now).then(|| self.wire())
    }
}

/// The state that a check begins with.
pub fn new_state(definition: &Definition, now: Instant) -> State {
    let ttl = match definition.kind {
        Kind::Ttl(ttl) => Some(ttl),
        _ => None,
    };
    State::new(definition.initial, definition.thresholds, ttl, now).with_max_output(definition.max_output)
}

/// Whether two registrations are of one endpoint.
pub fn is_same(a: &Instance, b: &Instance) -> bool {
    a.port == b.port && a.service.eq_ignore_ascii_case(&b.service)
}

/// A check as the mesh has it.
pub fn wire(definition: &Definition, state: &State) -> v1::Check {
    let text = |d: Duration| if d.is_zero() { String::new() } else { format!("{}s", d.as_secs_f64()) };
    v1::Check {
        check_id: definition.id.clone(),
        name: definition.name.clone(),
        status: state.status().as_str().into(),
        output: state.output().to_owned(),
        notes: definition.notes.clone(),
        r#type: definition.kind.as_str().into(),
        service_id: definition.service_id.clone(),
        interval: text(definition.interval),
        timeout: text(definition.timeout),
    }
}

/// The id of the service of the command line.
pub fn command_line_id(service: &str, port: u16) -> String {
    format!("{service}-{port}")
}

/// The id under which a sidecar joins by a WorkloadGroup: it joins by one at most.
pub const GROUP_ID: &str = "_workload-group";

/// What a sidecar registers to join by a WorkloadGroup.
pub fn group_member(group: &str) -> Instance {
    Instance { service_id: GROUP_ID.to_owned(), group: group.to_owned(), ..Default::default() }
}

/// The service of the command line.
pub fn command_line_service(service: &str, port: u16, protocol: Option<&str>) -> Instance {
    let protocol = protocol.map(|p| ("protocol".to_owned(), p.to_owned()));
    Instance {
        service_id: command_line_id(service, port),
        service: service.to_owned(),
        port: u32::from(port),
        meta: protocol.into_iter().collect(),
        ..Default::default()
    }
}
