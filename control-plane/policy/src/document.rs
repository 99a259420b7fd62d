//! A document with its object, and the documents of a text.

use crate::{Code, Finding, Kind, Object, Problem, Severity, mesh_config, placed};

/// One object of a policy file.
#[derive(Clone, Debug)]
pub struct Document {
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
    /// Line of its first field; 0: it is an object of Kubernetes, and `file` its reference.
    pub line: u32,
    /// Age: of two with the same claim, the smaller wins. From `creationTimestamp` (Unix seconds) if present, else set
    /// by the source; ties go by namespace and name.
    pub created: u64,
}

impl Document {
    /// Kind of its object.
    pub fn kind(&self) -> Kind {
        self.object.kind()
    }

    /// Whether clients of a namespace see it.
    pub fn reaches(&self, client_ns: &str) -> bool {
        self.object.export().is_none_or(|export| export.reaches(&self.namespace, client_ns))
    }

    /// "DestinationRule/default/order-service": its form in logs, in headers and on the wire.
    pub fn reference(&self) -> String {
        format!("{}/{}/{}", self.kind(), self.namespace, self.name)
    }

    /// Whether both are versions of one object.
    pub fn is_same_object(&self, other: &Document) -> bool {
        self.kind() == other.kind() && self.namespace == other.namespace && self.name == other.name
    }

    /// Key of the object.
    pub fn key(&self) -> (Kind, String, String) {
        (self.kind(), self.namespace.clone(), self.name.clone())
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
