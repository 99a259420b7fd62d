//! `weftctl apply`, `get` and `delete`: the policies of the API.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tonic::Status;
use weft_proto::v1::{self, ObjectName};

use crate::state::{Mesh, Policies};
use crate::store::batch::Interrupted;
use weft_policy::{self, Document, Key, Severity};

/// Applies files, all of them or none.
///
/// # Errors
/// If the store refuses; problems of the files are in the reply.
pub(super) async fn apply(mesh: &Mesh, request: v1::ApplyRequest) -> Result<v1::ApplyReply, Status> {
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    let trust_domain = mesh.read(|world| world.trust_domain().to_owned());
    for file in request.files {
        let parsed = weft_world::parse_policies(&file.name, &file.text).of_mesh(&trust_domain);
        problems.extend(parsed.problems);
        documents.extend(parsed.documents);
    }
    let policies = mesh.policies();
    let mut failed = problems.iter().any(|p| p.severity == Severity::Error);
    let mut texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let conflicts = of_others(&documents, &policies);
    failed |= !conflicts.is_empty();
    texts.extend(conflicts);
    // Checked together with the remaining documents, which are older.
    mesh.date(&mut documents);
    let new: HashSet<Key> = documents.iter().map(Document::key).collect();
    let mut all: Vec<&Document> = documents.iter().collect();
    let stays = |document: &&Arc<Document>| !new.contains(&document.key());
    all.extend(policies.all().filter(stays).map(AsRef::as_ref));
    let files: BTreeSet<String> = documents.iter().map(|d| d.file.clone()).collect();
    let old: HashMap<Key, &Document> = policies.api.iter().map(|d| (d.key(), &**d)).collect();
    let replaced: Vec<&Document> = documents.iter().filter_map(|d| old.get(&d.key()).copied()).collect();
    let changed: Vec<&Document> = replaced.iter().copied().chain(&documents).collect();
    let part = weft_policy::impact(&changed, &all).documents;
    for problem in weft_policy::check(&part) {
        // Existing problems are not this request's.
        if files.contains(&problem.file) {
            failed |= problem.severity == Severity::Error;
            texts.push(problem.to_string());
        }
    }
    let needed = weft_policy::needs(&replaced, &part, &|host| mesh.read(|world| world.offers(host)));
    for document in &documents {
        if let Some(need) = needed.get(&document.key()) {
            failed |= !request.force;
            let (severity, remedy) = match request.force {
                true => ("warning", ""),
                false => ("error", "; change that first or together with this, or use --force"),
            };
            texts.push(format!(
                "{}:{}:1: {severity}: {} is replaced by a version that lacks what another object needs: {need}: requests \
                 fail without it{remedy}",
                document.file,
                document.line,
                document.reference()
            ));
        }
    }
    if failed {
        return Ok(v1::ApplyReply { problems: texts, ..Default::default() });
    }
    let change = |d: &Document| match old.get(&d.key()) {
        None => format!("{} created", d.reference()),
        Some(old) if old.yaml == d.yaml => format!("{} unchanged", d.reference()),
        Some(_) => format!("{} configured", d.reference()),
    };
    let changes: Vec<String> = documents.iter().map(change).collect();
    let places: Vec<String> = documents.iter().map(|d| format!("{}:{}:1", d.file, d.line)).collect();
    if let Err(interrupted) = mesh.change_policies(documents, &[]).await {
        return partly(changes, &places, interrupted);
    }
    let odd = mesh.read(|world| weft_world::translate::warnings_of(world, &|document| files.contains(&document.file)));
    texts.extend(odd.iter().map(ToString::to_string));
    Ok(v1::ApplyReply { changes, problems: texts, applied: true })
}

/// The reply to a request that the store did only in part: the applied documents, and each that was not, or may not
/// have been, applied.
fn partly(mut changes: Vec<String>, places: &[String], failed: Interrupted) -> Result<v1::ApplyReply, Status> {
    let Interrupted { done, unknown, error, .. } = &failed;
    if *done == 0 {
        return Err(Status::unavailable(failed.to_string()));
    }
    let object = |change: &str| change.split(' ').next().unwrap_or_default().to_owned();
    let rest = changes.split_off((*done).min(changes.len()));
    let places = places.iter().skip(*done);
    let problem = |(n, (place, change)): (usize, (&String, &String))| {
        let state = if n < *unknown { "may not have been applied" } else { "was not applied" };
        format!("{place}: error: {} {state}: {error}", object(change))
    };
    let problems = places.zip(&rest).enumerate().map(problem).collect();
    Ok(v1::ApplyReply { changes, problems, applied: false })
}

/// Reports the documents that belong to a source of higher precedence.
fn of_others(documents: &[Document], policies: &Policies) -> Vec<String> {
    let of_folder =
        policies.folder.iter().map(|owner| (owner.key(), format!("the file {}; change it there", owner.file)));
    let of_cluster = policies.kubernetes.iter().map(|owner| (owner.key(), CLUSTER.to_owned()));
    let owners: HashMap<Key, String> = of_cluster.chain(of_folder).collect();
    let conflicts = documents.iter().filter_map(|document| Some((document, owners.get(&document.key())?)));
    let text = |(document, owner): (&Document, &String)| {
        let (file, line, name) = (&document.file, document.line, document.reference());
        format!("{file}:{line}:1: error: {name} belongs to {owner}")
    };
    conflicts.map(text).collect()
}

/// The owner of an object of Kubernetes, and the remedy.
const CLUSTER: &str = "the Kubernetes cluster; use kubectl";

/// Returns the requested objects.
pub(super) fn get(mesh: &Mesh, request: &v1::GetRequest) -> v1::GetReply {
    let wanted = request.object.clone().unwrap_or_default();
    let policies = mesh.policies();
    let kept = mesh.withdrawn_policies();
    let from_folder = policies.folder.iter().map(|d| (d.as_ref(), format!("file {}", d.file)));
    let from_cluster = policies.kubernetes.iter().map(|d| (d.as_ref(), "kubernetes".to_owned()));
    let from_api = policies.api.iter().map(|d| (d.as_ref(), "api".to_owned()));
    let kept = kept.iter().map(|d| (d.as_ref(), format!("file {} (emptied or removed)", d.file)));
    let all = from_folder.chain(from_cluster).chain(from_api).chain(kept);
    let objects = all.filter(|(d, _)| matches(&wanted, d)).map(|(d, source)| v1::Object {
        object: Some(ObjectName { kind: d.kind().to_string(), namespace: d.namespace.clone(), name: d.name.clone() }),
        yaml: d.yaml.clone(),
        source,
    });
    v1::GetReply { objects: objects.collect() }
}

/// Deletes one object of the API.
///
/// # Errors
/// If no object is named, or the store refuses; other reasons against the deletion are in the reply.
pub(super) async fn delete(mesh: &Mesh, request: v1::DeleteRequest) -> Result<v1::DeleteReply, Status> {
    let mut wanted = request.object.unwrap_or_default();
    if wanted.kind.is_empty() || wanted.name.is_empty() {
        return Err(Status::invalid_argument("a kind and a name are required"));
    }
    if wanted.namespace.is_empty() {
        wanted.namespace = "default".into();
    }
    let policies = mesh.policies();
    let reference = format!("{}/{}/{}", wanted.kind, wanted.namespace, wanted.name);
    let failed = |error: String| Ok(v1::DeleteReply { error, ..Default::default() });
    if let Some(owner) = policies.folder.iter().find(|d| matches(&wanted, d)) {
        return failed(format!("{reference} belongs to the file {}; delete it there", owner.file));
    }
    if policies.kubernetes.iter().any(|d| matches(&wanted, d)) {
        return failed(format!("{reference} belongs to {CLUSTER}"));
    }
    let deleted_documents: Vec<Document> =
        policies.api.iter().filter(|d| matches(&wanted, d)).map(|d| (**d).clone()).collect();
    if deleted_documents.is_empty() {
        return failed(match mesh.withdrawn_policies().iter().find(|d| matches(&wanted, d)) {
            Some(kept) => {
                let file = &kept.file;
                format!(
                    "{reference} belongs to the file {file}, which was emptied or removed; `weftctl status` shows how long it is kept"
                )
            }
            None => format!("there is no {reference}"),
        });
    }
    let goes = |d: &Document| matches(&wanted, d) || request.along.iter().any(|name| matches(name, d));
    let api_rest = policies.api.iter().filter(|d| !goes(d));
    let rest = policies.folder.iter().chain(&policies.kubernetes).chain(api_rest);
    let rest: Vec<&Document> = rest.map(AsRef::as_ref).collect();
    let needed = weft_policy::needs(&deleted_documents.iter().collect::<Vec<_>>(), &rest, &|host| {
        mesh.read(|world| world.offers(host))
    });
    let need = needed.into_values().next().map(|need| format!("{need}: requests fail without it"));
    if let Some(need) = need.as_ref().filter(|_| !request.force) {
        return failed(format!("{reference} is not deleted: {need}; delete or change that first, or use --force"));
    }
    mesh.change_policies(Vec::new(), &deleted_documents).await.map_err(|e| Status::unavailable(e.to_string()))?;
    let warnings = need.map(|need| format!("warning: {reference}: {need}")).into_iter().collect();
    Ok(v1::DeleteReply { warnings, ..Default::default() })
}

/// Whether `wanted` selects a document.
fn matches(wanted: &ObjectName, document: &Document) -> bool {
    let is = |wanted: &str, found: &str| wanted.is_empty() || wanted.eq_ignore_ascii_case(found);
    is(&wanted.kind, document.kind().name())
        && (wanted.namespace.is_empty() || wanted.namespace == document.namespace)
        && (wanted.name.is_empty() || wanted.name == document.name)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::store::batch::Limits;
    use crate::store::embedded::Embedded;
    use crate::store::health::Health;
    use crate::store::{Condition, Error, Op, Record, Store, Table, Watch};

    /// A store with etcd's limits, which fails after the given number of transactions.
    struct Halfway {
        store: Embedded,
        limits: Limits,
        left: AtomicUsize,
        error: Error,
    }

    #[tonic::async_trait]
    impl Store for Halfway {
        async fn get(&self, table: Table, key: &str) -> Result<Option<Record>, Error> {
            self.store.get(table, key).await
        }

        async fn txn(&self, conditions: Vec<Condition>, ops: Vec<Op>) -> Result<Option<u64>, Error> {
            let of_policies = ops.iter().any(|op| matches!(op, Op::Put { table: Table::Policies, .. }));
            let one_less = |left: usize| left.checked_sub(1);
            if of_policies && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err() {
                return Err(self.error.clone());
            }
            self.store.txn(conditions, ops).await
        }

        async fn grant(&self, ttl: Duration) -> Result<u64, Error> {
            self.store.grant(ttl).await
        }

        async fn keep_alive(&self, lease: u64) -> Result<bool, Error> {
            self.store.keep_alive(lease).await
        }

        async fn revoke(&self, lease: u64) -> Result<(), Error> {
            self.store.revoke(lease).await
        }

        async fn watch(&self) -> Result<Watch, Error> {
            self.store.watch().await
        }

        fn limits(&self) -> Limits {
            self.limits
        }

        fn health(&self) -> Arc<Health> {
            self.store.health()
        }
    }

    async fn apply_to(limits: Limits, left: usize, error: Error) -> (Result<v1::ApplyReply, Status>, usize) {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path()).unwrap();
        let store = Arc::new(Halfway { store, limits, left: left.into(), error });
        let mesh = Mesh::open(store, "cluster.local", Duration::from_secs(60)).await.unwrap();
        let rule = |n: usize| {
            let head = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n";
            format!("{head}metadata: {{name: r{n:03}}}\nspec: {{host: h{n}}}\n")
        };
        let file = v1::File { name: "all.yaml".into(), text: (0..250).map(rule).collect() };
        let reply = apply(&mesh, v1::ApplyRequest { files: vec![file], force: false }).await;
        (reply, mesh.policies().api.len())
    }

    #[tokio::test]
    async fn batch_is_one_transaction_where_the_store_takes_it_so() {
        let large = Limits { ops: 1000, bytes: 1 << 20 };
        let (reply, applied) = apply_to(large, 1, Error::Unavailable("full".into())).await;
        assert!(reply.unwrap().applied && applied == 250, "{applied}");
        let (reply, applied) = apply_to(large, 0, Error::Unavailable("full".into())).await;
        let text = reply.unwrap_err().message().to_owned();
        assert!(text.ends_with("full; nothing was changed") && applied == 0, "{text} {applied}");
    }

    #[tokio::test]
    async fn the_applied_part_of_a_batch_is_reported() {
        let small = Limits { ops: 100, bytes: 1 << 20 };
        for (error, state) in [
            (Error::Unavailable("full".into()), "was not applied"),
            (Error::Unknown("gone".into()), "may not have been applied"),
        ] {
            let (reply, applied) = apply_to(small, 1, error).await;
            let reply = reply.unwrap();
            assert!(!reply.applied && applied == 100 && reply.changes.len() == 100, "{reply:?}");
            assert_eq!(reply.changes[99], "DestinationRule/default/r099 created");
            assert_eq!(reply.problems.len(), 150);
            let first = &reply.problems[0];
            assert!(first.contains(&format!("error: DestinationRule/default/r100 {state}")), "{first}");
            assert!(reply.problems[149].contains("r249 was not applied"), "{}", reply.problems[149]);
        }
    }
}
