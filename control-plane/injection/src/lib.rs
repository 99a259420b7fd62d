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
/// The audience of the service account's token that the proxy shows to the control plane.
pub const AUDIENCE: &str = "weft-ca";
/// Name of the ConfigMap with the mesh's root certificates, which every namespace has.
pub const ROOT_MAP: &str = "weft-ca-root-cert";
/// Its key, as in Istio's.
pub const ROOT_FILE: &str = "root-cert.pem";
/// Label of a pod whose sidecar takes mutual TLS, with the value [`MUTUAL`]. Istio's sidecars have it too.
pub const TLS_MODE: &str = "security.istio.io/tlsMode";
/// See [`TLS_MODE`].
pub const MUTUAL: &str = "istio";
/// Annotation of a pod with a sidecar of Istio, which has an identity of another authority.
pub const ISTIO_STATUS: &str = "sidecar.istio.io/status";
/// Annotation of an injected pod: its revision, and the names of what was added.
pub const STATUS: &str = "weft.dev/status";

#[cfg(test)]
mod tests;
