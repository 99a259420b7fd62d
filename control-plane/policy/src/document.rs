//! A document with its kind and object, and the documents of a text.

use std::fmt;

use crate::{
    Code, DestinationRule, Export, Finding, Gateway, KubeService, MeshConfig, PeerAuthentication, Problem,
    ServiceEntry, Severity, Sidecar, VirtualService, WorkloadEntry, WorkloadGroup, mesh_config, nearest, placed,
};

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

/// The hint for a word that is no kind, as the end of a sentence.
pub fn nearest_kind(word: &str) -> String {
    nearest::suggest(word, &Kind::ALL.map(Kind::name), "kinds are")
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The content of a document.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// Traffic policy for the callers of a host.
    DestinationRule(Box<DestinationRule>),
    /// Routes of the requests to a host.
    VirtualService(VirtualService),
    /// Listeners for callers outside the mesh.
    Gateway(Gateway),
    /// A host outside the registry.
    ServiceEntry(ServiceEntry),
    /// An address behind ServiceEntries.
    WorkloadEntry(WorkloadEntry),
    /// The template of the workloads that join by it.
    WorkloadGroup(Box<WorkloadGroup>),
    /// Whether plaintext is accepted.
    PeerAuthentication(PeerAuthentication),
    /// Ports of a registered service.
    Service(KubeService),
    /// Exports the service of this name to other data centres.
    ServiceExport,
    /// The hosts that a workload's proxy can reach, and its settings for inbound traffic.
    Sidecar(Box<Sidecar>),
    /// Settings of the whole mesh; `None`: the document has none that concern traffic.
    IstioOperator(Option<Box<MeshConfig>>),
}

impl Object {
    /// The hosts that it applies to, as written; empty if its kind has none.
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
    /// Namespace; if the file names none, "default", or for an IstioOperator the root one.
    pub namespace: String,
    /// Name, unique per kind and namespace.
    pub name: String,
    /// Its content.
    pub object: Object,
    /// The document's text as written.
    pub yaml: String,
    /// File it came from.
    pub file: String,
    /// Line of its first field.
    pub line: u32,
    /// Age: of two with the same claim, the smaller wins. From `creationTimestamp` (Unix seconds) if present, else set
    /// by the source; ties go by namespace and name.
    pub created: u64,
}

impl Document {
    /// Whether clients of a namespace see it.
    pub fn reaches(&self, client_ns: &str) -> bool {
        self.object.export().is_none_or(|export| export.reaches(&self.namespace, client_ns))
    }

    /// "DestinationRule/default/order-service": its form in logs, in headers and on the wire.
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

/// The documents and problems of a text.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// Documents without an error of their own.
    pub documents: Vec<Document>,
    /// Errors and warnings, in the order of the text.
    pub problems: Vec<Problem>,
}

impl Parsed {
    /// Adds the checks against the mesh's trust domain: a document with another one is an error.
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

    /// Whether an error must be corrected before the text may be applied.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }
}
