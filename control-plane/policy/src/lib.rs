//! Istio's YAML as typed documents, without I/O. Files, bodies of API requests and stored objects are read by [`parse`].
//!
//! A document's blocks that mean one to one what a wire message means are decoded into that message at once
//! (`weft_proto::v1`): a second set of structs with the same fields would only be a place for the two to differ.

use std::fmt;

mod annotations;
mod catch_all;
mod check;
mod connection_pool;
mod delegate;
mod destination_rule;
mod duration;
mod export;
mod fields;
mod gateway;
mod kube_service;
pub mod mesh_config;
mod names;
pub mod nearest;
mod parse;
mod peer_authentication;
mod problem;
pub mod protocol;
mod service_entry;
mod sidecar;
mod table;
mod virtual_service;
mod workload_entry;
mod workload_group;
pub mod yaml;

pub use catch_all::{is_catch_all, is_unconditional, takes_all};
pub use check::check;
pub use check::destinations;
pub use check::needs::{Key, Need, needs};
pub use check::touched::{Touched, touched};
pub use delegate::join;
pub use destination_rule::{ClientTls, DestinationRule, Settings, Subset, TrafficPolicy};
pub use export::Export;
pub use gateway::{Gateway, Server};
pub use kube_service::{KubePort, KubeService, TargetPort};
pub use mesh_config::MeshConfig;
pub use names::is_host;
pub use names::is_label;
pub use names::{MESH_SUFFIX, MOST_ALIASES, canonical, fqdn};
pub use parse::parse;
pub use peer_authentication::PeerAuthentication;
pub use problem::{Code, Problem, Severity};
pub use problem::{Finding, placed, sort_problems};
pub use service_entry::{EntryPort, Resolution, ServiceEntry};
pub use sidecar::{Egress, Import, Ingress, Sidecar};
pub use table::{Row, field_table, refused_kinds};
pub use virtual_service::{
    Action, ConnectionMatch, ConnectionRoute, Delegate, Destination, Forward, MESH, Mirror, Route, RouteMatch,
    VirtualService,
};
pub use workload_entry::WorkloadEntry;
pub use workload_group::WorkloadGroup;

pub use crate::yaml::Place;
pub use weft_core::{names::covers, subnet::Subnet};

/// Namespace whose policies apply to the whole mesh.
pub const ROOT_NAMESPACE: &str = "weft-system";

/// Namespaces whose policies apply to the whole mesh, the one that counts first: Istio's files name their own.
pub const ROOT_NAMESPACES: [&str; 2] = [ROOT_NAMESPACE, "istio-system"];

/// Whether the policies of a namespace apply to the whole mesh.
pub fn is_root(namespace: &str) -> bool {
    ROOT_NAMESPACES.contains(&namespace)
}

/// Kinds that Weft reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `networking.istio.io` DestinationRule.
    DestinationRule,
    /// `networking.istio.io` VirtualService.
    VirtualService,
    /// `networking.istio.io` Gateway.
    Gateway,
    /// `networking.istio.io` ServiceEntry.
    ServiceEntry,
    /// `networking.istio.io` WorkloadEntry.
    WorkloadEntry,
    /// `networking.istio.io` WorkloadGroup.
    WorkloadGroup,
    /// `security.istio.io` PeerAuthentication.
    PeerAuthentication,
    /// Kubernetes' `v1` Service.
    Service,
    /// `multicluster.x-k8s.io` ServiceExport.
    ServiceExport,
    /// `networking.istio.io` Sidecar.
    Sidecar,
    /// `install.istio.io` IstioOperator.
    IstioOperator,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::DestinationRule,
        Self::VirtualService,
        Self::Gateway,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::WorkloadGroup,
        Self::PeerAuthentication,
        Self::Service,
        Self::ServiceExport,
        Self::Sidecar,
        Self::IstioOperator,
    ];

    /// As written in `kind:`.
    pub fn name(self) -> &'static str {
        match self {
            Self::DestinationRule => "DestinationRule",
            Self::VirtualService => "VirtualService",
            Self::Gateway => "Gateway",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::WorkloadGroup => "WorkloadGroup",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::Service => "Service",
            Self::ServiceExport => "ServiceExport",
            Self::Sidecar => "Sidecar",
            Self::IstioOperator => "IstioOperator",
        }
    }
}

/// What a word that is no kind may have meant, as the end of a sentence.
pub fn nearest_kind(word: &str) -> String {
    nearest::suggest(word, &Kind::ALL.map(Kind::name), "kinds are")
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a document says.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// How to call a host.
    DestinationRule(Box<DestinationRule>),
    /// Where a request to a host goes.
    VirtualService(VirtualService),
    /// Where callers from outside come in.
    Gateway(Gateway),
    /// A host that nothing registers.
    ServiceEntry(ServiceEntry),
    /// An address behind ServiceEntries.
    WorkloadEntry(WorkloadEntry),
    /// What sidecars that join by it become.
    WorkloadGroup(Box<WorkloadGroup>),
    /// Whether plaintext is accepted.
    PeerAuthentication(PeerAuthentication),
    /// Ports of a registered service.
    Service(KubeService),
    /// Other data centres may call the service of this name.
    ServiceExport,
    /// What a workload's proxy knows, and how it takes what comes in.
    Sidecar(Box<Sidecar>),
    /// What holds in the whole mesh; `None`: it is about something else than traffic.
    IstioOperator(Option<Box<MeshConfig>>),
}

impl Object {
    /// The hosts that it is for, as written; none: its kind names none.
    pub fn hosts(&self) -> &[String] {
        match self {
            Object::DestinationRule(rule) => std::slice::from_ref(&rule.host),
            Object::VirtualService(service) => &service.hosts,
            Object::ServiceEntry(entry) => &entry.hosts,
            _ => &[],
        }
    }

    /// The namespaces whose clients see it; `None`: its kind has no such field.
    pub fn export(&self) -> Option<&Export> {
        match self {
            Object::DestinationRule(rule) => Some(&rule.export),
            Object::VirtualService(service) => Some(&service.export),
            Object::ServiceEntry(entry) => Some(&entry.export),
            Object::Service(service) => Some(&service.export),
            _ => None,
        }
    }
}

/// One object of a policy file.
#[derive(Clone, Debug)]
pub struct Document {
    /// Kind of `object`.
    pub kind: Kind,
    /// Namespace; where the file names none "default", of an IstioOperator the root one.
    pub namespace: String,
    /// Name, unique per kind and namespace.
    pub name: String,
    /// What it says.
    pub object: Object,
    /// The document's text as written.
    pub yaml: String,
    /// File it came from.
    pub file: String,
    /// Line of its first field.
    pub line: u32,
    /// Age: of two that claim the same, the smaller wins. From `creationTimestamp` (Unix seconds) where given, else
    /// what the source sets; ties go by namespace and name.
    pub created: u64,
}

impl Document {
    /// Whether clients of a namespace see it.
    pub fn reaches(&self, client_ns: &str) -> bool {
        self.object.export().is_none_or(|export| export.reaches(&self.namespace, client_ns))
    }

    /// "DestinationRule/default/order-service": how logs, headers and the wire name it.
    pub fn reference(&self) -> String {
        format!("{}/{}/{}", self.kind, self.namespace, self.name)
    }

    /// Whether both are versions of one object.
    pub fn is_same_object(&self, other: &Document) -> bool {
        self.kind == other.kind && self.namespace == other.namespace && self.name == other.name
    }

    /// Key of the object.
    pub fn key(&self) -> (Kind, String, String) {
        (self.kind, self.namespace.clone(), self.name.clone())
    }
}

/// What a text held.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// Documents without an error of their own.
    pub documents: Vec<Document>,
    /// Errors and warnings, in the order of the text.
    pub problems: Vec<Problem>,
}

impl Parsed {
    /// As it is for a mesh with this trust domain: a document that names another is an error.
    #[must_use]
    pub fn of_mesh(mut self, trust_domain: &str) -> Self {
        let wrong = self.documents.iter().filter_map(|document| {
            let other = mesh_config::of(document)?.trust_domain.as_ref().filter(|other| *other != trust_domain)?;
            let text = format!("`trustDomain` is {trust_domain} here, not `{other}`: leave it out");
            Some(Finding::error(document, "meshConfig.trustDomain", Code::InvalidValue, text))
        });
        let wrong = placed(wrong.collect());
        self.problems.extend(wrong);
        self
    }

    /// Brings the problems into the order of the text, each once.
    pub fn sort_problems(&mut self) {
        self.problems.sort_by_key(|problem| problem.place);
        self.problems.dedup();
    }

    /// Whether anything must be corrected before the text may be applied.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }
}
