//! Lists and watches the objects of a cluster.
//!
//! Each kind has a watch of its own: a list in pages, then a watch from the list's version, with bookmarks. A version that
//! the API has forgotten (410) is listed again at once; other errors are retried after 0.8 to 30 s with jitter, and the
//! mesh stays as it was meanwhile. A kind that the cluster does not have counts as empty, and is looked for again.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIGroup;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Config};
use tokio::sync::mpsc;
use weft_core::backoff::Backoff;
use weft_policy::Kind;

use crate::{Change, Resource};

/// Bound on changes that are not applied yet: beyond it the watches wait.
const QUEUE: usize = 1024;
/// First and longest pause after errors, each drawn between half and all of it.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1600), Duration::from_secs(30));
/// Pause until a kind that the cluster does not have is looked for again.
const ABSENT: Duration = Duration::from_secs(10);
/// Longest wait for a connection to the API.
const TIMEOUT: Duration = Duration::from_secs(15);
/// End of a watch, as other clients have it; the watch goes on from its last version.
const WATCH_S: u32 = 290;

/// A change of an object of one kind.
pub type Changed = (Resource, Change);

/// A client of the cluster that this process runs in, or of the one that a kubeconfig names.
///
/// # Errors
/// If there is no such configuration, or its certificates cannot be read.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(file, &options).await;
            config.with_context(|| format!("the kubeconfig {} cannot be used", path.display()))?
        }
        None => Config::infer()
            .await
            .context("there is no cluster around this process, and no kubeconfig: give one with --kubeconfig")?,
    };
    config.connect_timeout = Some(TIMEOUT);
    // A watch is silent for as long as nothing happens; everything else answers sooner.
    config.read_timeout = Some(Duration::from_secs(u64::from(WATCH_S) + 15));
    Client::try_from(config).context("the client of the Kubernetes API cannot be made")
}

/// The kinds that are watched.
fn resources() -> Vec<Resource> {
    let core = [Resource::Service, Resource::EndpointSlice, Resource::Pod, Resource::Node];
    let policies = Kind::ALL.iter().copied().filter(|kind| is_watched(*kind)).map(Resource::Policy);
    core.into_iter().chain(policies).collect()
}

/// Whether a kind of policy is an object of a cluster that is read as a document. A Service is read as an object of its own,
/// and mesh-wide settings are no object of a cluster.
fn is_watched(kind: Kind) -> bool {
    !matches!(kind, Kind::Service | Kind::IstioOperator)
}

/// Watches all kinds, and names them. Each begins with a [`Change::Reset`].
pub fn start(client: &Client) -> (Vec<Resource>, mpsc::Receiver<Changed>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let resources = resources();
    let failures = Arc::new(Failures::default());
    for resource in &resources {
        tokio::spawn(watch(client.clone(), *resource, sender.clone(), failures.clone()));
    }
    (resources, receiver)
}

/// The type of a kind in the API of this cluster; `None`: the cluster does not have it.
pub(crate) async fn api_resource(client: &Client, resource: Resource) -> Result<Option<ApiResource>, kube::Error> {
    let fixed = |group: &str, kind: &str, plural: &str| {
        Ok(Some(ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural)))
    };
    let kind = match resource {
        Resource::Service => return fixed("", "Service", "services"),
        Resource::EndpointSlice => return fixed("discovery.k8s.io", "EndpointSlice", "endpointslices"),
        Resource::Pod => return fixed("", "Pod", "pods"),
        Resource::Node => return fixed("", "Node", "nodes"),
        Resource::Policy(kind) => kind,
    };
    let descriptor = kind.descriptor();
    if descriptor.group.is_empty() {
        return fixed("", kind.written(), descriptor.plural);
    }
    let group = match client.list_api_groups().await?.groups.into_iter().find(|group| group.name == descriptor.group) {
        Some(group) => group,
        None => return Ok(None),
    };
    // The versions have one schema: any that the cluster serves will do, the newest first.
    for version in descriptor.versions.iter().filter(|version| serves(&group, version)) {
        let listed = client.list_api_group_resources(&format!("{}/{version}", descriptor.group)).await?;
        if listed.resources.iter().any(|one| one.name == descriptor.plural) {
            let kind = GroupVersionKind::gvk(descriptor.group, version, kind.written());
            return Ok(Some(ApiResource::from_gvk_with_plural(&kind, descriptor.plural)));
        }
    }
    Ok(None)
}

fn serves(group: &APIGroup, version: &str) -> bool {
    group.versions.iter().any(|one| one.version == version)
}

/// Watches a kind for as long as its changes are received.
async fn watch(client: Client, resource: Resource, changes: mpsc::Sender<Changed>, failures: Arc<Failures>) {
    let mut pauses = Backoff::new(PAUSES.0, PAUSES.1);
    let mut is_absent = false;
    while !changes.is_closed() {
        let found = api_resource(&client, resource).await;
        let kind = match found {
            Ok(Some(kind)) => kind,
            Ok(None) => {
                if !is_absent {
                    let _ = changes.send((resource, Change::Reset(Vec::new()))).await;
                }
                is_absent = true;
                tokio::time::sleep(ABSENT).await;
                continue;
            }
            Err(error) => {
                failures.add(resource, &watcher::Error::InitialListFailed(error));
                tokio::time::sleep(pauses.pause(rand::random())).await;
                continue;
            }
        };
        is_absent = false;
        follow(&client, resource, &kind, &changes, &mut pauses, &failures).await;
    }
}

/// Lists and watches a kind until the cluster does not have it any more, or `changes` are no longer received.
async fn follow(
    client: &Client,
    resource: Resource,
    kind: &ApiResource,
    changes: &mpsc::Sender<Changed>,
    pauses: &mut Backoff,
    failures: &Failures,
) {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), kind);
    let config = watcher::Config { timeout: Some(WATCH_S), ..watcher::Config::default() };
    let mut events = Box::pin(watcher::watcher(api, config));
    let mut listed = Vec::new();
    while let Some(event) = events.next().await {
        let change = match event {
            Ok(Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listed.push(slim(object));
                continue;
            }
            Ok(Event::InitDone) => Change::Reset(std::mem::take(&mut listed)),
            Ok(Event::Apply(object)) => Change::Apply(Box::new(slim(object))),
            Ok(Event::Delete(object)) => Change::Delete(Box::new(slim(object))),
            // The version is too old: the watcher lists again.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => continue,
            Err(error) if is_gone(&error) => return,
            Err(error) => {
                failures.add(resource, &error);
                tokio::time::sleep(pauses.pause(rand::random())).await;
                continue;
            }
        };
        pauses.reset();
        failures.remove(resource);
        if changes.send((resource, change)).await.is_err() {
            return;
        }
    }
}

/// Without the bookkeeping that would be kept for nothing.
fn slim(mut object: DynamicObject) -> DynamicObject {
    object.metadata.managed_fields = None;
    object
}

/// Whether the kind is not there any more.
fn is_gone(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause)) = error else {
        return false;
    };
    matches!(cause, kube::Error::Api(status) if status.code == 404)
}

/// The log of failures. While the API server does not answer there is one line for all kinds, and one when it is back; a refusal
/// of a kind is one line until that kind is watched.
#[derive(Debug, Default)]
struct Failures {
    is_away: AtomicBool,
    refused: Mutex<BTreeSet<Resource>>,
}

impl Failures {
    fn add(&self, resource: Resource, error: &watcher::Error) {
        let is_refusal = matches!(cause(error), Some(kube::Error::Api(_)));
        let text = text(error);
        if !is_refusal {
            if !self.is_away.swap(true, Ordering::Relaxed) {
                tracing::warn!("the Kubernetes API is not available, and the mesh stays as it is: {text}");
            }
            return;
        }
        if self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(resource) {
            let remedy = match text.contains("forbidden") {
                true => "grant list and watch of it to the control plane's service account",
                false => "it is tried again, and the mesh stays as it is",
            };
            tracing::warn!("the Kubernetes API refuses to list or watch {}: {text}; {remedy}", name(resource));
        }
    }

    fn remove(&self, resource: Resource) {
        if self.is_away.swap(false, Ordering::Relaxed) {
            tracing::info!("the Kubernetes API answers again");
        }
        if self.refused.lock().unwrap_or_else(PoisonError::into_inner).remove(&resource) {
            tracing::info!("{} is watched", name(resource));
        }
    }
}

/// The error of the client behind one of a watch.
pub(crate) fn cause(error: &watcher::Error) -> Option<&kube::Error> {
    match error {
        watcher::Error::InitialListFailed(cause)
        | watcher::Error::WatchStartFailed(cause)
        | watcher::Error::WatchFailed(cause) => Some(cause),
        _ => None,
    }
}

/// An error with its causes.
pub(crate) fn text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(one) = cause {
        // An error of a client often has the text of its cause.
        let own = one.to_string();
        if !text.contains(&own) {
            text = format!("{text}: {own}");
        }
        cause = one.source();
    }
    text
}

/// A kind's name.
pub fn name(resource: Resource) -> &'static str {
    match resource {
        Resource::Service => "Service",
        Resource::EndpointSlice => "EndpointSlice",
        Resource::Pod => "Pod",
        Resource::Node => "Node",
        Resource::Policy(kind) => kind.name(),
    }
}
