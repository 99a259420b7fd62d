//! Reads of Netflix Eureka's REST API: the whole mesh as applications and instances, however they were registered. The
//! same responses for requests that sidecars forward (`crate::api::catalog`) and for the listener of the control plane.
//!
//! [`instance`] converts a registered instance, [`recent`] has the changes of the last minutes, and [`cache`] the last
//! response as long as nothing has changed. The forms, and the paths, are `weft_registry_api::eureka`'s. Writes go to the
//! agent: an instance registers with the sidecar beside it, or at a listener of the control plane with
//! `crate::registry::external`.

mod cache;
mod instance;
mod recent;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, StatusCode};
use weft_registry_api::error::ApiError;
use weft_registry_api::eureka::documents::{self, Apps, Format};
use weft_registry_api::eureka::instance::Instance;
use weft_registry_api::eureka::route::{self, Endpoint, Read};
use weft_registry_api::eureka::{error_reply, missed_reply};
use weft_registry_api::reply::Reply;

use crate::identity::caller::Caller;
use crate::state::Mesh;
use cache::Cache;
use instance::{Row, instance_of};
use recent::Recent;
use weft_world::World;

/// The data that responses are made of.
pub struct Eureka {
    mesh: Arc<Mesh>,
    recent: Mutex<Recent>,
    cache: Mutex<Cache>,
}

/// The state of the registry: the world's version, and the index of checks of nodes.
type Stamp = (u64, u64);

impl Eureka {
    /// Over a mesh.
    pub fn new(mesh: Arc<Mesh>) -> Eureka {
        Eureka { mesh, recent: Mutex::default(), cache: Mutex::default() }
    }

    /// Answers one request.
    pub fn answer(&self, caller: &Caller, request: Request<Bytes>) -> Reply {
        let (head, _) = request.into_parts();
        let read = match route::route(&head.method, head.uri.path()) {
            Ok(Endpoint::Read(read)) => read,
            Ok(Endpoint::Write(_)) => {
                let text =
                    "instances register with the sidecar beside them (127.0.0.1:8761), not with the control plane";
                return error_reply(&ApiError::new(StatusCode::NOT_IMPLEMENTED, text));
            }
            Err(missed) => return missed_reply(missed, &head),
        };
        let format = Format::of(&head.headers);
        let document = match read {
            Read::Apps => return self.apps(caller, format),
            Read::Delta => Ok(self.delta(caller)),
            Read::App(app) => self.app(caller, &app),
            Read::InstanceOf(app, id) => {
                self.instance(caller, &id, |row| row.instance.service.eq_ignore_ascii_case(&app))
            }
            Read::Instance(id) => self.instance(caller, &id, |_| true),
            Read::Vip(name) => self.by_address(caller, &name, |instance| &instance.vip_address),
            Read::SecureVip(name) => self.by_address(caller, &name, |instance| &instance.secure_vip_address),
        };
        match document {
            Ok(document) => documents::encode(document, format),
            Err(error) => error_reply(&error),
        }
    }

    /// All registrations, and the oldest state that they may be of: the stamp is read first, so that concurrent changes
    /// are found by the next read.
    fn rows(&self) -> (Vec<Row>, Stamp) {
        let stamp = self.mesh.read(stamp);
        let out_of_service: HashSet<String> = self.mesh.read_nodes(|nodes| {
            let out = nodes.iter().filter(|(_, node)| node.checks.values().any(instance::is_maintenance));
            out.map(|(name, _)| name.clone()).collect()
        });
        let instances: Vec<Arc<weft_world::Instance>> = self.mesh.read(|world| world.instances().cloned().collect());
        let row = |instance: Arc<weft_world::Instance>| {
            let node_out = out_of_service.contains(&instance.node);
            Row { instance, node_out }
        };
        (instances.into_iter().map(row).collect(), stamp)
    }

    fn apps(&self, caller: &Caller, format: Format) -> Reply {
        let stamp = self.mesh.read(stamp);
        // Responses for a token are not cached: each token may hide other services.
        let kept = || self.cache().answer(stamp, &caller.namespace, format);
        if let Some(given) = (!caller.is_narrowed()).then(kept).flatten() {
            return given;
        }
        let (rows, stamp) = self.rows();
        self.recent().follow(&rows, stamp, Instant::now());
        let rows = View::of(caller, &rows).visible(&rows);
        let hash = documents::hashcode(rows.iter().map(|row| instance::status(row)));
        let document = documents::applications(&grouped(rows.into_iter().map(instance_of)), stamp.1, &hash);
        let reply = documents::encode(document, format);
        if !caller.is_narrowed() {
            self.cache().keep(stamp, &caller.namespace, format, &reply);
        }
        reply
    }

    /// The changes of the last minutes, and the hash of the whole registry.
    fn delta(&self, caller: &Caller) -> serde_json::Value {
        let (rows, stamp) = self.rows();
        let view = View::of(caller, &rows);
        let changed: Vec<Instance> = {
            let mut recent = self.recent();
            recent.follow(&rows, stamp, Instant::now());
            let changes = recent.changes().filter(|(row, _)| view.sees(row));
            changes.map(|(row, action)| Instance { action, ..instance_of(row) }).collect()
        };
        let hash = documents::hashcode(view.visible(&rows).into_iter().map(instance::status));
        documents::applications(&grouped(changed.into_iter()), stamp.1, &hash)
    }

    fn app(&self, caller: &Caller, app: &str) -> Result<serde_json::Value, ApiError> {
        let (rows, _) = self.rows();
        let rows = View::of(caller, &rows).visible(&rows).into_iter();
        let of_app = rows.filter(|row| row.instance.service.eq_ignore_ascii_case(app));
        let instances: Vec<Instance> = of_app.map(instance_of).collect();
        match instances.first() {
            Some(first) => Ok(documents::application(&first.app, &instances)),
            None => Err(ApiError::new(StatusCode::NOT_FOUND, format!("no application {app:?} is registered"))),
        }
    }

    fn instance(
        &self,
        caller: &Caller,
        id: &str,
        wanted: impl Fn(&Row) -> bool,
    ) -> Result<serde_json::Value, ApiError> {
        let (rows, _) = self.rows();
        let rows = View::of(caller, &rows).visible(&rows).into_iter();
        let found = rows.filter(|row| wanted(row)).map(instance_of).find(|instance| instance.id() == id);
        let missing = || ApiError::new(StatusCode::NOT_FOUND, format!("no instance {id:?} is registered"));
        found.map(|instance| documents::instance(&instance)).ok_or_else(missing)
    }

    /// The instances with a virtual address, in any case.
    fn by_address(
        &self,
        caller: &Caller,
        name: &str,
        addresses: impl Fn(&Instance) -> &String,
    ) -> Result<serde_json::Value, ApiError> {
        let (rows, stamp) = self.rows();
        let all = View::of(caller, &rows).visible(&rows).into_iter().map(instance_of);
        let carries =
            |instance: &Instance| addresses(instance).split(',').any(|one| one.trim().eq_ignore_ascii_case(name));
        let found: Vec<Instance> = all.filter(carries).collect();
        if found.is_empty() {
            return Err(ApiError::new(StatusCode::NOT_FOUND, format!("no instance carries the address {name:?}")));
        }
        let hash = documents::hashcode(found.iter().map(|instance| instance.status));
        Ok(documents::applications(&grouped(found.into_iter()), stamp.1, &hash))
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamp(world: &World) -> Stamp {
    (world.version(), world.catalog_index())
}

/// The part that a caller sees: a service of its namespace, or if that has none of the name, of "default"; as in
/// Consul's API.
struct View<'a> {
    caller: &'a Caller,
    own: HashSet<String>,
}

impl<'a> View<'a> {
    fn of(caller: &'a Caller, rows: &[Row]) -> View<'a> {
        let own = rows.iter().filter(|row| row.instance.namespace == caller.namespace);
        View { caller, own: own.map(|row| row.instance.service.to_ascii_lowercase()).collect() }
    }

    fn sees(&self, row: &Row) -> bool {
        let Row { instance, .. } = row;
        let found = instance.namespace == self.caller.namespace
            || (instance.namespace == "default" && !self.own.contains(&instance.service.to_ascii_lowercase()));
        found && self.caller.rights.read(&instance.service)
    }

    fn visible<'b>(&self, rows: &'b [Row]) -> Vec<&'b Row> {
        rows.iter().filter(|row| self.sees(row)).collect()
    }
}

fn grouped(instances: impl Iterator<Item = Instance>) -> Apps {
    let mut apps = Apps::new();
    instances.for_each(|instance| apps.entry(instance.app.clone()).or_default().push(instance));
    apps
}
