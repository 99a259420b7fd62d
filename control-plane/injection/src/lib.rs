//! The sidecar of a Kubernetes pod, without I/O: whether a pod has one, and the JSON Patch (RFC 6902) that adds it.
//!
//! [`decide`] reads the labels of a pod and its namespace, [`inject`] makes the patch from the [`Config`] of the mesh and the
//! pod's annotations, and [`manifest`] does both for the files of `weftctl inject`. A pod is a [`serde_json::Value`]: a
//! patch of paths leaves fields alone that a newer Kubernetes has and this program does not know.

pub mod config;
pub mod decide;
pub mod inject;
pub mod manifest;
pub mod patch;
mod settings;

pub use config::Config;
pub use decide::{Decision, Namespace, decide};
pub use inject::{Injection, METRICS_VARIABLE, Owner, PROBES_VARIABLE, Refusal, inject};
pub use settings::annotations::{ANNOTATIONS, Is};

/// Name of the container of the proxy.
pub const PROXY: &str = "weft-proxy";
/// Name of the init container that installs the redirection.
pub const INIT: &str = "weft-init";
/// Annotation of an injected pod: its revision, and the names of what was added.
pub const STATUS: &str = "weft.dev/status";

#[cfg(test)]
mod tests;
