//! Problems of a file, in the one form that the command line, the API and the logs print.

use std::fmt;

use serde_json::{Value, json};

use super::{Document, nearest};
use crate::yaml::{self, Node, Place};

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Nothing of the file is applied.
    Error,
    /// Applied, and shown.
    Warning,
    /// Applied, and shown to those alone that ask for all (`--verbose`): nothing is known to be wrong.
    Info,
}

impl Severity {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// What kind of problem, for programs: unlike the text it does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The file cannot be read.
    Unreadable,
    /// No YAML, or more of it than is accepted.
    NotYaml,
    /// Neither Istio nor Weft knows the kind or its version.
    UnknownKind,
    /// A kind that is none of the mesh's: skipped.
    ForeignKind,
    /// A field that does not concern the traffic: skipped.
    ForeignField,
    /// Neither Istio nor Weft knows the field.
    UnknownField,
    /// Istio's, and not Weft's so far.
    NotSupported,
    /// A field is missing.
    Required,
    /// A field's value is not one that it can have, or not together with the others.
    InvalidValue,
    /// Sidecars would not take it.
    Refused,
    /// A field does nothing as it is used here, or is deprecated.
    Ineffective,
    /// Two documents are one object.
    DuplicateObject,
    /// The rules of a host have no such subset.
    UndefinedSubset,
    /// A subset of a host that no rule here is for.
    MissingRule,
    /// The documents of a host declare no such port.
    UndefinedPort,
    /// Nobody offers the host.
    UnknownHost,
    /// The gateway is not there.
    UnknownGateway,
    /// The gateway takes no callers for the host.
    HostNotInGateway,
    /// The VirtualService to delegate to is not there, or does not fit.
    Delegate,
    /// Another object, which is older, decides.
    Overruled,
    /// No request ever takes the route.
    Unreachable,
    /// No instance is in the subset.
    EmptySubset,
    /// A selector picks nobody, or nobody picks the object.
    NoWorkload,
    /// A host has several ports, and the route names none.
    OpenPort,
    /// Callers are told plaintext, the service to take none.
    PlaintextToStrict,
    /// Two servers of Gateways cannot share a port, or claim one host of it.
    ConflictingGateways,
    /// Two servers of gateways show one certificate.
    DuplicateCertificate,
    /// Two Sidecars are for the same workloads.
    ConflictingSidecars,
    /// A Service of type ExternalName leads back to itself, or further than is followed.
    AliasLoop,
    /// The host of a destination is not exported to the namespace of the route.
    NotExported,
    /// Istio knows no such annotation.
    UnknownAnnotation,
    /// Some callers of a route have no address of its destination.
    Undialable,
    /// The document's file was emptied or removed, and it is kept for a while.
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

    /// As it is written.
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

/// One line for the user: where, what, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// File as named by the caller.
    pub file: String,
    /// Where.
    pub place: Place,
    /// How bad.
    pub severity: Severity,
    /// What kind.
    pub code: Code,
    /// Field, such as `trafficPolicy.loadBalancer.simple`; empty: the document.
    pub path: String,
    /// What is wrong.
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
        write!(f, "{}:{}:{}: {severity}: {}", self.file, place.line, place.column, self.text)
    }
}

/// A problem of a decoded document, which no longer knows its places: they are found again by the field's path.
#[derive(Clone, Debug)]
pub struct Finding<'a> {
    /// The document.
    pub document: &'a Document,
    /// Field, as in [`Problem::path`].
    pub path: String,
    /// How bad.
    pub severity: Severity,
    /// What kind.
    pub code: Code,
    /// What is wrong.
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

/// Problems with their places, by file and place. A document's text is read once, however much is found in it.
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
    let root = yaml::parse(&first.document.yaml).0.into_iter().next().map(|found| found.root);
    let before = first.document.line.saturating_sub(root.as_ref().map_or(1, |root| root.place.line));
    let place = |path: &str| {
        let place = root.as_ref().filter(|_| !path.is_empty()).and_then(|root| place_of(root, path));
        let start = Place { line: first.document.line, column: 1 };
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

/// Where `http[2].route[0]` of a document starts; as much of the path as is there counts.
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

    /// Scripts compare them: a code that is there once stays, with its name.
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
    fn for_programs() {
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
