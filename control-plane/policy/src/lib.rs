//! Istio's YAML as typed documents, without I/O. Files, bodies of API requests and stored objects are read by
//! [`parse`].
//!
//! Blocks of a document that correspond one to one to a wire message are decoded into that message at once
//! (`weft_proto::v1`): a second set of structs with the same fields would only be a place for the two to differ.
//!
//! [`yaml`] reads text as a tree with places, `decode` reads fields of the tree, `kinds` has a descriptor with a decoder for
//! each kind, `parse` picks the descriptor of each document, and `check` compares documents with each other.

mod catch_all;
mod check;
pub mod crd;
mod decode;
mod delegate;
mod document;
mod export;
mod kinds;
mod names;
pub mod nearest;
mod parse;
mod problem;
mod table;
pub mod yaml;

pub use catch_all::{is_catch_all, is_unconditional, takes_all};
pub use check::check;
pub use check::destinations;
pub use check::impact::{Impact, check_change, impact};
pub use check::needs::{Key, Need, needs};
pub use decode::duration::parse_ms as duration_ms;
pub use decode::protocol;
pub use delegate::join;
pub use document::{Document, Parsed};
pub use export::Export;
pub use kinds::destination_rule::{ClientTls, DestinationRule, Settings, Subset, TrafficPolicy};
pub use kinds::gateway::{Gateway, Server};
pub use kinds::gateway_api::{
    BackendRef, GROUP as GATEWAY_API, ObjectRef, ParentRef,
    backend_tls_policy::BackendTlsPolicy,
    gateway::{AllowedNamespaces, KubernetesGateway, LabelSelector, Listener, protocol_of},
    gateway_class::{CONTROLLER, GatewayClass},
    http_route::{BackendMirror, HttpRoute, HttpRule, matching::RankedMatch},
    namespace::Namespace,
    reference_grant::ReferenceGrant,
    tcp_route::StreamRoute,
};
pub use kinds::kube_service::{KubePort, KubeService, TargetPort};
pub use kinds::mesh_config::{self, MeshConfig};
pub use kinds::peer_authentication::PeerAuthentication;
pub use kinds::service_entry::{EntryPort, Resolution, ServiceEntry};
pub use kinds::service_export::ServiceExport;
pub use kinds::sidecar::{Egress, Import, Ingress, Sidecar};
pub use kinds::virtual_service::{
    Action, ConnectionMatch, ConnectionRoute, Delegate, Destination, Forward, MESH, Mirror, Route, RouteMatch,
    VirtualService,
};
pub use kinds::workload_entry::WorkloadEntry;
pub use kinds::workload_group::WorkloadGroup;
pub use kinds::{Descriptor, Kind, Object, nearest_kind};
pub use names::is_host;
pub use names::is_label;
pub use names::{MESH_SUFFIX, MOST_ALIASES, canonical, fqdn};
pub use parse::parse;
pub use problem::{Code, Problem, Severity};
pub use problem::{Finding, placed, sort_problems};
pub use table::{Row, field_table, refused_kinds};

pub use crate::yaml::Place;
pub use weft_core::{names::covers, subnet::Subnet};

/// Namespace whose policies apply to the whole mesh.
pub const ROOT_NAMESPACE: &str = "weft-system";

/// Namespaces whose policies apply to the whole mesh, in the order of precedence: Istio's files use their own.
pub const ROOT_NAMESPACES: [&str; 2] = [ROOT_NAMESPACE, "istio-system"];

/// Whether the policies of a namespace apply to the whole mesh.
pub fn is_root(namespace: &str) -> bool {
    ROOT_NAMESPACES.contains(&namespace)
}
