//! Follows a Kubernetes cluster: its objects become instances and documents of the mesh, and its policies get a status.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc;
use tokio::time::Instant;
use weft_kubernetes::watch::{self, Changed};
use weft_kubernetes::{Change, Client, Cluster, roots, status};

use crate::identity::ca::Ca;
use crate::state::Mesh;

/// Changes are collected for this long, so that a rollout or the end of a node is a few changes of the mesh, and not one
/// for each object.
const BATCH: Duration = Duration::from_millis(100);
/// Pause between the lines of the log while the first list of a kind is awaited.
const REPORT: Duration = Duration::from_secs(10);

/// Reads all objects, and follows them from then on. It returns once every kind is listed: a mesh without a part of them
/// would take endpoints away from sidecars that still have them from before.
///
/// # Errors
/// If the watches end. An API server that does not answer is waited for.
pub async fn follow(mesh: Arc<Mesh>, client: Client, ca: &Ca) -> Result<()> {
    let (resources, mut changes) = watch::start(&client);
    let mut cluster = Cluster::new(ca.trust_domain());
    let mut missing: BTreeSet<_> = resources.into_iter().collect();
    let mut report = Instant::now() + REPORT;
    while !missing.is_empty() {
        let Ok(received) = tokio::time::timeout_at(report, changes.recv()).await else {
            let names: Vec<&str> = missing.iter().map(|resource| watch::name(*resource)).collect();
            tracing::warn!("waiting for the Kubernetes API to list {}", names.join(", "));
            report = Instant::now() + REPORT;
            continue;
        };
        let Some((resource, change)) = received else { anyhow::bail!("the watches of the Kubernetes API have ended") };
        if matches!(change, Change::Reset(_)) {
            missing.remove(&resource);
        }
        cluster.apply(resource, change);
    }
    mesh.set_kubernetes(cluster.take_delta());
    let (statuses, reports) = mpsc::channel(1);
    tokio::spawn(status::write(client.clone(), reports));
    let (namespaces, known) = tokio::sync::watch::channel(names(&cluster));
    tokio::spawn(roots::keep(client, ca.root_pem(), known));
    tokio::spawn(run(mesh, cluster, changes, statuses, namespaces));
    Ok(())
}

/// Applies changes in batches, for as long as the watches run.
async fn run(
    mesh: Arc<Mesh>,
    mut cluster: Cluster,
    mut changes: mpsc::Receiver<Changed>,
    statuses: mpsc::Sender<Vec<status::Report>>,
    namespaces: tokio::sync::watch::Sender<BTreeSet<String>>,
) {
    loop {
        let received = tokio::select! {
            received = changes.recv() => received,
            // A writer that is behind gets them when it has caught up.
            permit = statuses.reserve(), if cluster.has_reports() => {
                let Ok(permit) = permit else { return };
                permit.send(mesh.read(|world| cluster.take_reports(world)));
                continue;
            }
        };
        let Some((resource, change)) = received else { return };
        cluster.apply(resource, change);
        let end = Instant::now() + BATCH;
        while let Ok(received) = tokio::time::timeout_at(end, changes.recv()).await {
            let Some((resource, change)) = received else { return };
            cluster.apply(resource, change);
        }
        namespaces.send_if_modified(|known| {
            let now = names(&cluster);
            std::mem::replace(known, now) != *known
        });
        let delta = cluster.take_delta();
        if !delta.is_empty() {
            mesh.set_kubernetes(delta);
        }
    }
}

/// The namespaces that pods may run in.
fn names(cluster: &Cluster) -> BTreeSet<String> {
    cluster.namespaces().keys().cloned().collect()
}
