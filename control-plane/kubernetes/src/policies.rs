//! Policies that are objects of a cluster. Each is judged alone: one with an error keeps its last valid version, and
//! does not concern the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::api::DynamicObject;
use serde_json::{Value, json};
use weft_policy::{Document, GATEWAY_API, Kind, Place, Problem, Severity};
use weft_world::{World, parse_policies};

use crate::conditions;
use crate::objects::{Key, created};
use crate::status::{self, Report};

/// One object.
#[derive(Debug)]
struct Policy {
    /// UID and `metadata.generation`: the version that was read.
    version: (String, i64),
    /// The version that applies: this one, or the last valid one.
    applied: Option<Arc<Document>>,
    /// Problems of this version.
    problems: Vec<Problem>,
    /// `metadata.resourceVersion` and the status, as the cluster has them.
    status: (String, Value),
    /// The spec, of objects whose status refers to parts of it.
    spec: Value,
}

impl Policy {
    fn report(&self, (kind, key): &(Kind, Key), status: Value) -> Report {
        Report { kind: *kind, key: key.clone(), resource_version: self.status.0.clone(), status }
    }

    /// The status of an object of the Gateway API, if it does not have it.
    fn of_gateway_api(&self, at: &(Kind, Key), world: &World, now: &str) -> Option<Report> {
        let (old, generation) = (&self.status.1, self.version.1);
        let status = if self.is_accepted() {
            conditions::status(world, self.applied.as_ref()?, &self.spec, old, generation, now)?
        } else {
            let texts: Vec<&str> = self.problems.iter().map(|problem| problem.text.as_str()).collect();
            let message = (at.1.0.as_str(), &*texts.join("\n"));
            conditions::refused(world, message, &self.spec, old, generation, now)?
        };
        Some(self.report(at, status))
    }

    /// Whether this version applies.
    fn is_accepted(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity != Severity::Error)
    }
}

/// All policies.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    all: BTreeMap<(Kind, Key), Policy>,
    changed: bool,
    /// Objects with a condition of their own whose version or status is new.
    unreported: BTreeSet<(Kind, Key)>,
    /// Whether the statuses of the Gateway API's objects may differ.
    conditions_due: bool,
}

impl Policies {
    /// Keys of the objects of a kind.
    pub(crate) fn keys(&self, kind: Kind) -> impl Iterator<Item = &Key> {
        self.all.keys().filter(move |(one, _)| *one == kind).map(|(_, key)| key)
    }

    /// The documents that apply.
    pub(crate) fn documents(&self) -> impl Iterator<Item = &Arc<Document>> {
        self.all.values().filter_map(|policy| policy.applied.as_ref())
    }

    /// Problems of all objects.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.all.values().flat_map(|policy| &policy.problems)
    }

    /// Whether the documents have changed since the last call.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Says that the decisions about the Gateway API's objects may be others.
    pub(crate) fn conditions_are_due(&mut self) {
        self.conditions_due |= self.all.keys().any(|(kind, _)| is_gateway_api(*kind));
    }

    pub(crate) fn has_reports(&self) -> bool {
        self.conditions_due || !self.unreported.is_empty()
    }

    /// See [`crate::Cluster::take_reports`].
    pub(crate) fn take_reports(&mut self, world: &World) -> Vec<Report> {
        let now = status::now();
        let unreported = std::mem::take(&mut self.unreported);
        let own = unreported.into_iter().filter_map(|at| {
            let policy = self.all.get(&at)?;
            let own = status::condition(policy.version.1, &policy.problems);
            let old = policy.status.1["conditions"].as_array().cloned().unwrap_or_default();
            let conditions = status::with(&old, &own, &now)?;
            Some(policy.report(&at, json!({ "conditions": conditions })))
        });
        let mut reports: Vec<Report> = own.collect();
        if std::mem::take(&mut self.conditions_due) {
            let of_api = self.all.iter().filter(|((kind, _), _)| is_gateway_api(*kind));
            reports.extend(of_api.filter_map(|(at, policy)| policy.of_gateway_api(at, world, &now)));
        }
        reports
    }

    /// Sets or removes an object.
    pub(crate) fn set(&mut self, kind: Kind, key: &Key, object: Option<&DynamicObject>) {
        let at = (kind, key.clone());
        // Namespaces have no status of this mesh, and kinds of other projects have statuses of their own.
        if is_gateway_api(kind) {
            self.conditions_due = true;
        } else if kind != Kind::Namespace && object.is_some() {
            self.unreported.insert(at.clone());
        }
        let Some(object) = object else {
            self.changed |= self.all.remove(&at).is_some();
            return;
        };
        let version = (object.metadata.uid.clone().unwrap_or_default(), object.metadata.generation.unwrap_or_default());
        let status = object.data.get("status").cloned().unwrap_or_default();
        let status = (object.metadata.resource_version.clone().unwrap_or_default(), status);
        // A status that was written, or a label: the spec is the same. A Namespace has labels alone, and no generation.
        let known = self.all.get_mut(&at).filter(|known| kind != Kind::Namespace && known.version == version);
        if let Some(known) = known {
            known.status = status;
            return;
        }
        let kept = self.all.remove(&at).filter(|known| known.version.0 == version.0).and_then(|known| known.applied);
        let metadata = Metadata {
            namespace: &key.0,
            name: &key.1,
            annotations: object
                .metadata
                .annotations
                .iter()
                .flatten()
                .map(|(name, value)| (&**name, &**value))
                .collect(),
            labels: object.metadata.labels.iter().flatten().map(|(name, value)| (&**name, &**value)).collect(),
        };
        let (document, problems) = read(kind, &metadata, object.data.get("spec"));
        let is_valid = problems.iter().all(|problem| problem.severity != Severity::Error);
        let document = document.filter(|_| is_valid);
        let document = document.map(|document| Document { created: created(object), ..document });
        let applied = document.map(Arc::new).or(kept);
        let spec = if is_gateway_api(kind) { object.data.get("spec").cloned() } else { None };
        self.all.insert(at, Policy { version, applied, problems, status, spec: spec.unwrap_or_default() });
        self.changed = true;
    }
}

fn is_gateway_api(kind: Kind) -> bool {
    kind.descriptor().group == GATEWAY_API
}

/// The part of an object's metadata that policies read.
#[derive(Debug, Default)]
pub struct Metadata<'a> {
    /// Its namespace; empty: it belongs to the whole cluster.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its annotations.
    pub annotations: BTreeMap<&'a str, &'a str>,
    /// Its labels.
    pub labels: BTreeMap<&'a str, &'a str>,
}

/// Annotation with the whole object as it was applied, which kubectl keeps for itself.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Reads an object, valid or not. Its problems have no place in a file: they name the object and the field.
pub fn read(kind: Kind, metadata: &Metadata<'_>, spec: Option<&Value>) -> (Option<Document>, Vec<Problem>) {
    let (descriptor, Metadata { namespace, name, annotations, labels }) = (kind.descriptor(), metadata);
    let version = descriptor.versions.first().copied().unwrap_or_default();
    let annotations: BTreeMap<_, _> = annotations.iter().filter(|(name, _)| **name != LAST_APPLIED).collect();
    let text = json!({
        "apiVersion": if descriptor.group.is_empty() { version.to_owned() } else { format!("{}/{version}", descriptor.group) },
        "kind": kind.written(),
        "metadata": { "name": name, "namespace": namespace, "annotations": annotations, "labels": labels },
        "spec": spec.cloned().unwrap_or_else(|| json!({})),
    });
    let reference = format!("{}/{namespace}/{name}", kind.name());
    let parsed = parse_policies(&reference, &text.to_string());
    let mut problems = parsed.problems;
    problems.iter_mut().for_each(|problem| problem.place = Place::default());
    let document = parsed.documents.into_iter().next();
    (document.map(|document| Document { line: 0, ..document }), problems)
}
