//! The connection from an agent to the registry, as needed by [`crate::local`]: a sidecar uses its session, the control
//! plane calls itself.

use std::time::Duration;

use futures::future::BoxFuture;
use weft_proto::v1::{Check, Instance};
use weft_registry_api::error::ApiError;

/// Registers services and checks in the mesh.
pub trait Upstream: Send + Sync + 'static {
    /// Registers or changes an instance. If the registry is unavailable, the registration is stored and sent later,
    /// which is not an error. The error is the registry's reason for refusing it, or a missing answer.
    fn register(&self, instance: Instance) -> BoxFuture<'_, Result<(), ApiError>>;

    /// Deregisters an instance, and waits until its callers know, for at most `wait`.
    fn deregister<'a>(&'a self, service_id: &'a str, wait: Duration) -> BoxFuture<'a, ()>;

    /// Changes or (with `removed`) removes a check of an instance, or of the node if it has no service.
    fn check(&self, check: Check, removed: bool) -> BoxFuture<'_, ()>;

    /// Instances that were accepted while the registry was unavailable and are refused now: service id and reason.
    fn refused(&self) -> Vec<(String, String)>;

    /// Whether a check may become critical for a missing report. Not if so many applications stop reporting at once
    /// that the cause is more likely on the mesh's side.
    fn may_lapse(&self) -> bool {
        true
    }

    /// Whether a service with this name may be registered here, as far as that is known locally; the error has the
    /// registry's words.
    fn may_register(&self, service: &str) -> Result<(), String>;
}
