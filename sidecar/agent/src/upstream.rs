//! The way from an agent to the registry, as much of it as [`crate::local`] needs: a sidecar goes by its session, the control
//! plane calls itself.

use std::time::Duration;

use futures::future::BoxFuture;
use weft_proto::v1::{Check, Instance};

use crate::refused::Refused;

/// Who takes what is registered here to the mesh.
pub trait Upstream: Send + Sync + 'static {
    /// Registers an instance or changes it. One that cannot be asked about now is kept and announced later: that is no
    /// error. The error is the registry's reason for refusing it, or that it does not answer.
    fn register(&self, instance: Instance) -> BoxFuture<'_, Result<(), Refused>>;

    /// Takes an instance back, and waits until those who use it know, this long at most.
    fn deregister<'a>(&'a self, service_id: &'a str, wait: Duration) -> BoxFuture<'a, ()>;

    /// Changes or (with `removed`) removes a check of an instance, or of the node where it names no service.
    fn check(&self, check: Check, removed: bool) -> BoxFuture<'_, ()>;

    /// What was taken without being asked about, and is refused now: service id and reason.
    fn refused(&self) -> Vec<(String, String)>;

    /// Whether a check may become critical because its application has not reported in time. Not so when so many fall silent
    /// at once that it is likelier our fault than theirs.
    fn may_lapse(&self) -> bool {
        true
    }

    /// Whether a service of this name may be registered here, as far as that is known without asking; the error is the
    /// registry's words.
    fn may_register(&self, service: &str) -> Result<(), String>;
}
