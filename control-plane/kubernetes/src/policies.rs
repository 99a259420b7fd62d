//! Policies that are objects of a cluster. Each is judged alone: one with an error keeps its last valid version, and
//! does not concern the others.

use std::collections::BTreeMap;
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
pub struct Policy {
    /// UID and `metadata.generation`: the version that was read.
    pub version: (String, i64),
    /// The version that applies: this one, or the last valid one.
    applied: Option<Arc<Document>>,
    /// Problems of this version.
    pub problems: Vec<Problem>,
    /// `metadata.resourceVersion` and the status, as the cluster has them.
    pub status: (String, Value),
    /// The spec, of objects whose status refers to parts of it.
    spec: Value,
}

impl Policy {
    /// Whether this version applies.
    pub fn is_accepted(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity != Severity::Error)
    }
}

/// All policies.
#[derive(Debug, Default)]
pub struct Policies {
    all: BTreeMap<(Kind, Key), Policy>,
    changed: bool,
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

    /// An object.
    pub fn get(&self, kind: Kind, key: &Key) -> Option<&Policy> {
        self.all.get(&(kind, key.clone()))
    }

    /// Whether the documents have changed since the last call.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The conditions that objects do not have yet.
    pub(crate) fn reports(&self) -> Vec<Report> {
        let now = status::now();
        let report = |((kind, key), policy): (&(Kind, Key), &Policy)| {
            let own = status::condition(policy.version.1, &policy.problems);
            let old = policy.status.1["conditions"].as_array().cloned().unwrap_or_default();
            let conditions = status::with(&old, &own, &now)?;
            let (resource_version, status) = (policy.status.0.clone(), json!({ "conditions": conditions }));
            Some(Report { kind: *kind, key: key.clone(), resource_version, status })
        };
        // The kinds of other projects have statuses of their own.
        let own = self.all.iter().filter(|((kind, _), _)| !is_gateway_api(*kind) && *kind != Kind::Namespace);
        own.filter_map(report).collect()
    }

    /// The statuses of the Gateway API's objects that these do not have yet, by the decisions of `world`.
    pub(crate) fn conditions(&self, world: &World) -> Vec<Report> {
        let now = status::now();
        let of_kind = self.all.iter().filter(|((kind, _), _)| is_gateway_api(*kind));
        let report = |((kind, key), policy): (&(Kind, Key), &Policy)| {
            let ((resource_version, old), generation) = (&policy.status, policy.version.1);
            let status = if policy.is_accepted() {
                conditions::status(world, policy.applied.as_ref()?, &policy.spec, old, generation, &now)?
            } else {
                let message =
                    policy.problems.iter().map(|problem| problem.text.as_str()).collect::<Vec<_>>().join("\n");
                let message = (key.0.as_str(), message.as_str());
                conditions::refused(world, message, &policy.spec, old, generation, &now)?
            };
            Some(Report { kind: *kind, key: key.clone(), resource_version: resource_version.clone(), status })
        };
        of_kind.filter_map(report).collect()
    }

    /// Sets or removes an object.
    pub(crate) fn set(&mut self, kind: Kind, key: &Key, object: Option<&DynamicObject>) {
        let at = (kind, key.clone());
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
        let (document, problems) = read(kind, key, object);
        let applied = document.map(Arc::new).or(kept);
        let spec = if is_gateway_api(kind) { object.data.get("spec").cloned() } else { None };
        self.all.insert(at, Policy { version, applied, problems, status, spec: spec.unwrap_or_default() });
        self.changed = true;
    }
}

fn is_gateway_api(kind: Kind) -> bool {
    kind.descriptor().group == GATEWAY_API
}

/// Reads an object. Its problems have no place in a file: they name the object and the field.
fn read(kind: Kind, (namespace, name): &Key, object: &DynamicObject) -> (Option<Document>, Vec<Problem>) {
    let descriptor = kind.descriptor();
    let version = descriptor.versions.first().copied().unwrap_or_default();
    let annotations = object.metadata.annotations.iter().flatten();
    // The whole object as it was applied, which kubectl keeps there for itself.
    let annotations = annotations.filter(|(name, _)| *name != "kubectl.kubernetes.io/last-applied-configuration");
    let text = json!({
        "apiVersion": if descriptor.group.is_empty() { version.to_owned() } else { format!("{}/{version}", descriptor.group) },
        "kind": kind.written(),
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": annotations.collect::<BTreeMap<_, _>>(),
            "labels": object.metadata.labels.clone().unwrap_or_default(),
        },
        "spec": object.data.get("spec").cloned().unwrap_or_else(|| Value::Object(Default::default())),
    });
    let reference = format!("{}/{namespace}/{name}", kind.name());
    let parsed = parse_policies(&reference, &text.to_string());
    let mut problems = parsed.problems;
    problems.iter_mut().for_each(|problem| problem.place = Place::default());
    let valid = problems.iter().all(|problem| problem.severity != Severity::Error);
    let document = parsed.documents.into_iter().next().filter(|_| valid);
    (document.map(|document| Document { line: 0, created: created(object), ..document }), problems)
}
