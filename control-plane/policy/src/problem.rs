//! Problems of a file, in the one form that the command line, the API and the logs print.

use std::fmt;

use serde_json::{Value, json};

use super::{Document, nearest};
use crate::yaml::{self, Node, Place};

/// The severity of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Nothing of the file is applied.
    Error,
    /// Applied, and shown.
    Warning,
    /// Applied, and shown only on request (`--verbose`): it is probably right.
    Info,
}

impl Severity {
    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// The kind of a problem, for programs: unlike the text it does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The file cannot be read.
    Unreadable,
    /// Not YAML, or too large.
    NotYaml,
    /// The kind or its version is unknown to Istio and to Weft.
    UnknownKind,
    /// A kind that does not concern the mesh: skipped.
    ForeignKind,
    /// A field that does not concern the traffic: skipped.
    ForeignField,
    /// The field is unknown to Istio and to Weft.
    UnknownField,
    /// Istio's, and not supported yet.
    NotSupported,
    /// A field is missing.
    Required,
    /// A field's value is not allowed, or not together with the others.
    InvalidValue,
    /// Sidecars would refuse it.
    Refused,
    /// A field has no effect in its place, or is deprecated.
    Ineffective,
    /// Two documents are one object.
    DuplicateObject,
    /// The rules of a host have no such subset.
    UndefinedSubset,
    /// No rule among the documents is for the host of a subset.
    MissingRule,
    /// The documents of a host declare no such port.
    UndefinedPort,
    /// No source defines the host.
    UnknownHost,
    /// The gateway does not exist.
    UnknownGateway,
    /// The gateway does not accept the host.
    HostNotInGateway,
    /// The VirtualService to delegate to does not exist, or does not fit.
    Delegate,
    /// An older object takes precedence.
    Overruled,
    /// The route is unreachable.
    Unreachable,
    /// No instance is in the subset.
    EmptySubset,
    /// A selector selects no workload, or no workload uses the object.
    NoWorkload,
    /// A host has several ports, and the route names none.
    OpenPort,
    /// Callers are configured for plaintext, the service for STRICT mTLS.
    PlaintextToStrict,
    /// Two servers of Gateways cannot share a port, or claim one host of it.
    ConflictingGateways,
    /// Two servers of gateways present one certificate.
    DuplicateCertificate,
    /// Two Sidecars are for the same workloads.
    ConflictingSidecars,
    /// A Service of type ExternalName leads back to itself, or its chain is too long.
    AliasLoop,
    /// The host of a destination is not exported to the namespace of the route.
    NotExported,
    /// Istio has no such annotation.
    UnknownAnnotation,
    /// Some callers of a route cannot dial its destination.
    Undialable,
    /// The document's file was emptied or removed, and the document is kept for a while.
    Withdrawn,
}

impl Code {
    /// All of them. `docs/analysis.md` lists them.
    pub const ALL: [Self; 33] = [
        Self::Unreadable,
        Self::NotYaml,
        Self::UnknownKind,
        Self::ForeignKind,
        Self::ForeignField,
        Self::UnknownField,
        Self::NotSupported,
        Self::Required,
        Self::InvalidValue,
        Self::Refused,
        Self::Ineffective,
        Self::DuplicateObject,
        Self::UndefinedSubset,
        Self::MissingRule,
        Self::UndefinedPort,
        Self::UnknownHost,
        Self::UnknownGateway,
        Self::HostNotInGateway,
        Self::Delegate,
        Self::Overruled,
        Self::Unreachable,
        Self::EmptySubset,
        Self::NoWorkload,
        Self::OpenPort,
        Self::PlaintextToStrict,
        Self::ConflictingGateways,
        Self::DuplicateCertificate,
        Self::ConflictingSidecars,
        Self::AliasLoop,
        Self::NotExported,
        Self::UnknownAnnotation,
        Self::Undialable,
        Self::Withdrawn,
    ];

    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::NotYaml => "not-yaml",
            Self::UnknownKind => "unknown-kind",
            Self::ForeignKind => "foreign-kind",
            Self::ForeignField => "foreign-field",
            Self::UnknownField => "unknown-field",
            Self::NotSupported => "not-supported",
            Self::Required => "required",
            Self::InvalidValue => "invalid-value",
            Self::Refused => "refused",
            Self::Ineffective => "ineffective",
            Self::DuplicateObject => "duplicate-object",
            Self::UndefinedSubset => "undefined-subset",
            Self::MissingRule => "missing-rule",
            Self::UndefinedPort => "undefined-port",
            Self::UnknownHost => "unknown-host",
            Self::UnknownGateway => "unknown-gateway",
            Self::HostNotInGateway => "host-not-in-gateway",
            Self::Delegate => "delegate",
            Self::Overruled => "overruled",
            Self::Unreachable => "unreachable",
            Self::EmptySubset => "empty-subset",
            Self::NoWorkload => "no-workload",
            Self::OpenPort => "open-port",
            Self::PlaintextToStrict => "plaintext-to-strict",
            Self::ConflictingGateways => "conflicting-gateways",
            Self::DuplicateCertificate => "duplicate-certificate",
            Self::ConflictingSidecars => "conflicting-sidecars",
            Self::AliasLoop => "alias-loop",
            Self::NotExported => "not-exported",
            Self::UnknownAnnotation => "unknown-annotation",
            Self::Undialable => "undialable",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// One line for the user: the place, the problem and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// File as named by the caller.
    pub file: String,
    /// The place in the file; 0:0: the document is an object of Kubernetes, and `file` its reference.
    pub place: Place,
    /// The severity.
    pub severity: Severity,
    /// The kind of problem.
    pub code: Code,
    /// Field, such as `trafficPolicy.loadBalancer.simple`; empty: the document.
    pub path: String,
    /// The problem.
    pub text: String,
}

impl Problem {
    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "file": self.file,
            "line": self.place.line,
            "column": self.place.column,
            "path": self.path,
            "severity": self.severity.name(),
            "code": self.code.name(),
            "message": self.text,
            "suggestion": nearest::suggested(&self.text),
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, severity) = (self.place, self.severity.name());
        if place == Place::default() {
            let path = if self.path.is_empty() { String::new() } else { format!("{}: ", self.path) };
            return write!(f, "{}: {severity}: {path}{}", self.file, self.text);
        }
        write!(f, "{}:{}:{}: {severity}: {}", self.file, place.line, place.column, self.text)
    }
}

/// A problem of a decoded document, which has no places any more: they are found again by the field's path.
#[derive(Clone, Debug)]
pub struct Finding<'a> {
    /// The document.
    pub document: &'a Document,
    /// Field, as in [`Problem::path`].
    pub path: String,
    /// The severity.
    pub severity: Severity,
    /// The kind of problem.
    pub code: Code,
    /// The problem.
    pub text: String,
}

impl<'a> Finding<'a> {
    /// A finding that must be corrected.
    pub fn error(document: &'a Document, path: impl Into<String>, code: Code, text: impl Into<String>) -> Self {
        Finding { document, path: path.into(), severity: Severity::Error, code, text: text.into() }
    }

    /// A finding that may be a mistake.
    pub fn warning(document: &'a Document, path: impl Into<String>, code: Code, text: impl Into<String>) -> Self {
        Finding { severity: Severity::Warning, ..Self::error(document, path, code, text) }
    }

    /// A finding that is probably right.
    pub fn info(document: &'a Document, path: impl Into<String>, code: Code, text: impl Into<String>) -> Self {
        Finding { severity: Severity::Info, ..Self::error(document, path, code, text) }
    }
}

/// Problems with their places, by file and place. A document's text is parsed once, whatever the number of findings.
pub fn placed(mut findings: Vec<Finding<'_>>) -> Vec<Problem> {
    findings.sort_by_key(|finding| std::ptr::from_ref(finding.document));
    let of_documents = findings.chunk_by(|a, b| std::ptr::eq(a.document, b.document));
    let mut problems: Vec<Problem> = of_documents.flat_map(of_document).collect();
    sort_problems(&mut problems);
    problems
}

/// By file and place, each once.
pub fn sort_problems(problems: &mut Vec<Problem>) {
    problems.sort_by(|a, b| (&a.file, a.place, &a.text).cmp(&(&b.file, b.place, &b.text)));
    problems.dedup();
}

fn of_document(findings: &[Finding<'_>]) -> Vec<Problem> {
    let Some(first) = findings.first() else { return Vec::new() };
    // An object of Kubernetes has no file to find a place in.
    let is_file = first.document.line != 0;
    let root =
        is_file.then(|| yaml::parse(&first.document.yaml).0.into_iter().next().map(|found| found.root)).flatten();
    let before = first.document.line.saturating_sub(root.as_ref().map_or(1, |root| root.place.line));
    let place = |path: &str| {
        let place = root.as_ref().filter(|_| !path.is_empty()).and_then(|root| place_of(root, path));
        let start = Place { line: first.document.line, column: u32::from(is_file) };
        place.map_or(start, |place| Place { line: place.line + before, ..place })
    };
    let problem = |finding: &Finding<'_>| Problem {
        file: finding.document.file.clone(),
        place: place(&finding.path),
        severity: finding.severity,
        code: finding.code,
        path: finding.path.clone(),
        text: finding.text.clone(),
    };
    findings.iter().map(problem).collect()
}

/// The place of a field such as `http[2].route[0]` of a document, or of its nearest existing parent.
fn place_of(root: &Node, path: &str) -> Option<Place> {
    let mut node = if path.starts_with("metadata") { root } else { root.get("spec")? };
    for step in path.split('.') {
        let (name, indexes) = step.split_once('[').map_or((step, ""), |(name, rest)| (name, rest));
        let Some(next) = node.get(name) else { break };
        node = next;
        for index in indexes.split('[').filter_map(|index| index.trim_end_matches(']').parse().ok()) {
            let Some(next) = node.item(index) else { break };
            node = next;
        }
    }
    Some(node.place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    /// Scripts compare codes: an existing code stays, with its name.
    #[test]
    fn every_code_is_documented() {
        let docs = include_str!("../../../docs/analysis.md");
        let listed: Vec<&str> = docs.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
        let codes: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(listed, codes);
    }

    #[test]
    fn fields_are_found_again() {
        let text = "# first\n---\n# of the second\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                    metadata:\n  name: a\nspec:\n  host: a\n  subsets:\n  - name: v1\n  - labels: {a: b}\n    name: v2\n";
        let parsed = parse("f.yaml", text);
        let [document] = &parsed.documents[..] else { panic!("{parsed:?}") };
        for (path, line, column) in [
            ("", 4, 1),
            ("metadata.name", 7, 9),
            ("host", 9, 9),
            ("subsets[1].name", 13, 11),
            ("subsets[1].labels.a", 12, 17),
            ("subsets[0].labels.x", 11, 5),
            ("subsets[7]", 11, 5),
            ("none", 9, 3),
        ] {
            let found = placed(vec![Finding::warning(document, path, Code::EmptySubset, "t")]);
            assert_eq!(found[0].place, Place { line, column }, "{path}");
        }
    }

    #[test]
    fn an_explanation_in_json() {
        let parsed = parse(
            "f.yaml",
            "kind: DestinationRule\napiVersion: networking.istio.io/v1\nmetadata: {nam: a}\nspec: {host: a}\n",
        );
        let all: Vec<Value> = parsed.problems.iter().map(Problem::to_json).collect();
        let want = json!({
            "file": "f.yaml", "line": 3, "column": 12, "path": "metadata.nam", "severity": "error",
            "code": "unknown-field", "message": "unknown field `nam`, did you mean `name`?", "suggestion": "name",
        });
        assert_eq!(all[0], want);
        assert_eq!(all.len(), 1, "{all:?}");
        let missing = parse("f.yaml", "kind: Gateway\napiVersion: networking.istio.io/v1\nmetadata: {name: a}\n");
        let missing = missing.problems[0].to_json();
        assert_eq!((&missing["code"], &missing["suggestion"]), (&json!("required"), &Value::Null));
    }
}
