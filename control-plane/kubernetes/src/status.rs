//! The status of policies: whether a version is accepted, and why not.
//!
//! Every control plane writes it, and all write the same: an object that has the condition already is left alone. Conditions
//! of other controllers stay, and a version that has changed meanwhile is not written over.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use weft_policy::{Kind, Problem, Severity};

use crate::Resource;
use crate::objects::Key;
use crate::sleep_until;
use crate::watch::api_resource;

/// Type of the condition.
pub const ACCEPTED: &str = "weft.dev/Accepted";
/// Shortest time between two statuses of an object.
const INTERVAL: Duration = Duration::from_secs(5);
/// Bound on a condition's message, in bytes (`metav1.Condition`).
const MESSAGE: usize = 32_768;

/// A status that an object should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The object.
    pub kind: Kind,
    /// Its namespace and name.
    pub key: Key,
    /// The version of the object that the status belongs to.
    pub resource_version: String,
    /// Fields of the status, with the entries of other controllers.
    pub status: Value,
}

/// The condition of a version with these problems.
pub(crate) fn condition(generation: i64, problems: &[Problem]) -> Value {
    let accepted = problems.iter().all(|problem| problem.severity != Severity::Error);
    let reason = match (accepted, problems.is_empty()) {
        (true, true) => "Accepted",
        (true, false) => "AcceptedWithWarnings",
        (false, _) => "Invalid",
    };
    let mut message = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    if !accepted {
        message.push_str("\nthe last valid version applies, if there was one");
    }
    let end = message.floor_char_boundary(MESSAGE);
    message.truncate(end);
    json!({
        "type": ACCEPTED,
        "status": if accepted { "True" } else { "False" },
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
    })
}

/// The conditions of an object with `own` in its place; `None`: it has that already.
pub(crate) fn with(conditions: &[Value], own: &Value, now: &str) -> Option<Vec<Value>> {
    let is_own = |one: &&Value| one["type"] == ACCEPTED;
    let old = conditions.iter().find(is_own);
    let same = |field: &str| old.is_some_and(|old| old[field] == own[field]);
    if ["status", "reason", "message", "observedGeneration"].into_iter().all(same) {
        return None;
    }
    let since = old.filter(|_| same("status")).map_or(json!(now), |old| old["lastTransitionTime"].clone());
    let mut new = own.clone();
    new["lastTransitionTime"] = since;
    let mut all: Vec<Value> = conditions.iter().filter(|one| !is_own(one)).cloned().collect();
    all.push(new);
    Some(all)
}

/// The time as Kubernetes writes it.
pub(crate) fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Writes reports for as long as they come, each object's at most once in [`INTERVAL`]: where two control planes of
/// different versions disagree about a message, neither keeps the API server busy. A refusal is logged, and the next version
/// of the object is reported again; while the API server does not answer, the report waits.
pub async fn write(client: Client, mut reports: mpsc::Receiver<Vec<Report>>) {
    let (mut queue, mut resources) = (Queue::default(), BTreeMap::new());
    loop {
        let due = queue.next_due();
        let batch = tokio::select! {
            batch = reports.recv() => batch,
            () = sleep_until(due) => Some(Vec::new()),
        };
        let Some(batch) = batch else { return };
        queue.extend(batch);
        for report in queue.take(Instant::now()) {
            match write_one(&client, &report, &mut resources).await {
                Ok(()) => {}
                Err(error @ kube::Error::Api(_)) => log(&report, &error),
                Err(_) => queue.put_back(report),
            }
        }
    }
}

fn log(report: &Report, error: &kube::Error) {
    let (kind, (namespace, name)) = (report.kind.name(), &report.key);
    let forbidden = matches!(error, kube::Error::Api(status) if status.code == 403);
    let remedy = if forbidden { "; grant patch of its status to the control plane's service account" } else { "" };
    tracing::warn!("Kubernetes: the status of {kind}/{namespace}/{name} cannot be written: {error}{remedy}");
}

/// Reports that wait for their turn, the latest of each object.
#[derive(Debug, Default)]
struct Queue {
    waiting: BTreeMap<(Kind, Key), Report>,
    /// When an object was written; forgotten after [`INTERVAL`].
    written: BTreeMap<(Kind, Key), Instant>,
}

impl Queue {
    fn extend(&mut self, reports: Vec<Report>) {
        self.waiting.extend(reports.into_iter().map(|report| ((report.kind, report.key.clone()), report)));
    }

    /// Keeps a report that could not be sent, unless there is a later one of its object.
    fn put_back(&mut self, report: Report) {
        self.waiting.entry((report.kind, report.key.clone())).or_insert(report);
    }

    /// When the next report may be written; `None`: none waits.
    fn next_due(&self) -> Option<Instant> {
        self.waiting.keys().filter_map(|object| Some(*self.written.get(object)? + INTERVAL)).min()
    }

    /// The reports that may be written now.
    fn take(&mut self, now: Instant) -> Vec<Report> {
        self.written.retain(|_, at| *at + INTERVAL > now);
        let due: Vec<(Kind, Key)> =
            self.waiting.keys().filter(|object| !self.written.contains_key(*object)).cloned().collect();
        self.written.extend(due.iter().map(|object| (object.clone(), now)));
        due.iter().filter_map(|object| self.waiting.remove(object)).collect()
    }
}

/// `resources`: the kinds in the API of this cluster, as far as they were looked up.
async fn write_one(
    client: &Client,
    report: &Report,
    resources: &mut BTreeMap<Kind, ApiResource>,
) -> Result<(), kube::Error> {
    let resource = match resources.get(&report.kind) {
        Some(resource) => resource.clone(),
        None => {
            let found = api_resource(client, Resource::Policy(report.kind)).await?;
            let Some(resource) = found else { return Ok(()) };
            resources.insert(report.kind, resource.clone());
            resource
        }
    };
    let api: Api<DynamicObject> = match report.key.0.as_str() {
        "" => Api::all_with(client.clone(), &resource),
        namespace => Api::namespaced_with(client.clone(), namespace, &resource),
    };
    let patch = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": { "resourceVersion": report.resource_version },
        "status": report.status,
    });
    match api.patch_status(&report.key.1, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        // The object is gone, or the kind: another version of it may come.
        Err(kube::Error::Api(status)) if status.code == 404 => {
            resources.remove(&report.kind);
            Ok(())
        }
        // Another control plane was first, or the object has changed: its new version is reported anew.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_written_once_for_each_version_and_keeps_those_of_others() {
        let own = condition(2, &[]);
        let other = json!({"type": "Reconciled", "status": "True"});
        let first = with(std::slice::from_ref(&other), &own, "2026-01-01T00:00:00Z").unwrap();
        assert_eq!((&first[0], &first[1]["reason"]), (&other, &json!("Accepted")));
        assert_eq!(with(&first, &own, "2026-01-02T00:00:00Z"), None);
        let later = with(&first, &condition(3, &[]), "2026-01-03T00:00:00Z").unwrap();
        assert_eq!(later[1]["lastTransitionTime"], "2026-01-01T00:00:00Z", "the status is the same");
        assert_eq!(later[1]["observedGeneration"], 3);
    }

    #[test]
    fn a_status_is_written_at_once_and_then_at_most_once_in_an_interval() {
        let report = |name: &str, version: &str| Report {
            kind: Kind::DestinationRule,
            key: ("shop".to_owned(), name.to_owned()),
            resource_version: version.to_owned(),
            status: json!({}),
        };
        let versions = |reports: Vec<Report>| reports.into_iter().map(|one| one.resource_version).collect::<Vec<_>>();
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.extend(vec![report("a", "1"), report("b", "2")]);
        assert_eq!((queue.next_due(), versions(queue.take(start))), (None, vec!["1".to_owned(), "2".into()]));
        queue.extend(vec![report("a", "3")]);
        queue.extend(vec![report("a", "4"), report("c", "5")]);
        assert_eq!(versions(queue.take(start)), ["5"], "another object");
        assert_eq!(queue.next_due(), Some(start + INTERVAL));
        queue.put_back(report("a", "3"));
        assert_eq!(versions(queue.take(start + INTERVAL)), ["4"], "the latest");
        assert_eq!(queue.next_due(), None);
        queue.put_back(report("a", "4"));
        assert_eq!(versions(queue.take(start + 2 * INTERVAL)), ["4"], "it could not be sent");
    }
}
