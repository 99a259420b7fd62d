//! Kubernetes as a source of services and policies: its objects, the part of the mesh that they make, and the watches
//! that follow them.
//!
//! [`objects`] reads the few fields that matter of an object, and never fails for an unknown value: a Service is not
//! Weft's document, and one that is refused is an outage. [`Cluster`] is the state of all objects, without I/O: it
//! makes the documents and instances of the mesh. [`watch`] lists and watches the API, [`status`] writes conditions
//! back, and [`accounts`] reviews the tokens of pods.

pub mod accounts;
pub mod bundle;
mod cluster;
mod conditions;
pub mod objects;
pub mod policies;
pub mod roots;
pub mod secret;
pub mod status;
pub mod watch;

pub use cluster::{AllPolicies, Change, Cluster, Delta, Resource};
pub use kube::Client;

/// Waits until then; `None`: for ever.
pub(crate) async fn sleep_until(until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
