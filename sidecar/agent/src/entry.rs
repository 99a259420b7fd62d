//! A registered service and a registered check, as stored by [`super::local`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_proto::v1::{self, Instance};

use crate::checks::state::State;
use crate::checks::{Definition, Kind};

/// A registered service.
#[derive(Debug, Clone)]
pub struct RegisteredService {
    /// The service.
    pub service: Instance,
    /// Whether it was registered by `--service` instead of the API.
    pub command_line: bool,
}

/// A registered check.
pub struct Entry {
    /// As registered.
    pub definition: Arc<Definition>,
    /// Current state.
    pub state: State,
    /// Task that runs it, and ends with the entry.
    pub task: Task,
}

/// Aborts a check's task when dropped.
pub struct Task(pub tokio::task::AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Entry {
    /// The check in the mesh's form.
    pub fn wire(&self) -> v1::Check {
        wire(&self.definition, &self.state)
    }

    /// Whether the check takes its service out of use.
    pub fn is_maintenance(&self) -> bool {
        matches!(self.definition.kind, Kind::Maintenance)
    }

    /// The check, if an update to the mesh is due; it is recorded as sent.
    pub fn due(&mut self, now: Instant) -> Option<v1::Check> {
        self.state.take_due_update(now).then(|| self.wire())
    }
}

/// Initial state of a check.
pub fn new_state(definition: &Definition, now: Instant) -> State {
    let ttl = match definition.kind {
        Kind::Ttl(ttl) => Some(ttl),
        _ => None,
    };
    State::new(definition.initial, definition.thresholds, ttl, now).with_max_output(definition.max_output)
}

/// Whether two registrations describe the same endpoint.
pub fn is_same(a: &Instance, b: &Instance) -> bool {
    a.port == b.port && a.service.eq_ignore_ascii_case(&b.service)
}

/// A check in the mesh's form.
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

/// The id of the service on the command line.
pub fn command_line_id(service: &str, port: u16) -> String {
    format!("{service}-{port}")
}

/// The registration of the service on the command line.
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
