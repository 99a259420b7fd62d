//! The mesh's root certificate in every namespace, where pods mount it: it is how a sidecar knows the control plane before it
//! has a certificate.
//!
//! A pod waits in ContainerCreating until the ConfigMap is there, so a new namespace gets it at once. One that is edited or
//! deleted is written again. Every control plane writes, and all write the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use weft_core::backoff::Backoff;
use weft_injection::{ROOT_FILE as KEY, ROOT_MAP as NAME};

use crate::sleep_until;
use crate::watch::cause;

/// Namespaces without workloads of users.
const WITHOUT: [&str; 3] = ["kube-public", "kube-node-lease", "local-path-storage"];
/// Owner of the fields that are written (server-side apply).
pub(crate) const MANAGER: &str = "weft-control-plane";
/// First and longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The ConfigMaps that the cluster has.
#[derive(Debug, Default)]
struct Roots {
    pem: String,
    /// Certificates by namespace.
    found: BTreeMap<String, String>,
    /// During a list: those listed so far.
    listed: BTreeMap<String, String>,
}

impl Roots {
    fn apply(&mut self, event: Event<ConfigMap>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => self.listed.extend([certificate(&object)]),
            Event::InitDone => self.found = std::mem::take(&mut self.listed),
            Event::Apply(object) => self.found.extend([certificate(&object)]),
            Event::Delete(object) => drop(self.found.remove(&certificate(&object).0)),
        }
    }

    /// Namespaces whose ConfigMap has to be written.
    fn missing<'a>(&self, namespaces: &'a BTreeSet<String>) -> Vec<&'a str> {
        let is_missing = |name: &&String| {
            !WITHOUT.contains(&name.as_str()) && self.found.get(*name).is_none_or(|found| *found != self.pem)
        };
        namespaces.iter().filter(is_missing).map(String::as_str).collect()
    }
}

/// Namespace and certificate of a ConfigMap.
fn certificate(object: &ConfigMap) -> (String, String) {
    let pem = object.data.as_ref().and_then(|data| data.get(KEY)).cloned();
    (object.metadata.namespace.clone().unwrap_or_default(), pem.unwrap_or_default())
}

/// Keeps the root certificates `pem` in the ConfigMap of each of `namespaces`, for as long as these are sent.
pub async fn keep(client: Client, pem: String, mut namespaces: watch::Receiver<BTreeSet<String>>) {
    let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut events = Box::pin(watcher::watcher(Api::<ConfigMap>::all(client.clone()), config));
    let mut roots = Roots { pem, ..Roots::default() };
    let (mut watch_pauses, mut write_pauses) = (Backoff::new(PAUSES.0, PAUSES.1), Backoff::new(PAUSES.0, PAUSES.1));
    // When the watch is asked again after a failure, and when writes are made again.
    let (mut watch_again, mut write_again) = (None::<Instant>, None::<Instant>);
    let mut failure = String::new();
    loop {
        let next = async {
            if watch_again.is_some() {
                sleep_until(watch_again).await;
            }
            events.next().await
        };
        let watched = tokio::select! {
            event = next => match event {
                Some(Ok(event)) => {
                    watch_again = None;
                    let is_partial = matches!(event, Event::Init | Event::InitApply(_));
                    roots.apply(event);
                    if is_partial {
                        continue;
                    }
                    watch_pauses.reset();
                    Ok(())
                }
                // The version is too old: the watcher lists again.
                Some(Err(watcher::Error::WatchError(status))) if status.code == 410 => continue,
                Some(Err(error)) => {
                    watch_again = Some(Instant::now() + watch_pauses.pause(rand::random()));
                    Err(refusal(cause(&error)))
                }
                None => return,
            },
            changed = namespaces.changed() => match changed {
                Ok(()) => Ok(()),
                Err(_) => return,
            },
            () = sleep_until(write_again) => Ok(()),
        };
        let result = match watched {
            Ok(()) => {
                let wanted = namespaces.borrow_and_update().clone();
                let written = write(&client, &mut roots, &wanted).await;
                write_again = match written {
                    Ok(()) => None,
                    Err(_) => Some(Instant::now() + write_pauses.pause(rand::random())),
                };
                written
            }
            failed => failed,
        };
        match result {
            Ok(()) => {
                write_pauses.reset();
                failure.clear();
            }
            Err(Some(error)) if error != failure => {
                tracing::warn!(
                    "Kubernetes: the ConfigMap {NAME} with the mesh's root certificate cannot be kept in all namespaces, and \
                     pods of those without it do not start: {error}"
                );
                failure = error;
            }
            Err(_) => {}
        }
    }
}

/// Writes what is missing, and returns the first failure: one namespace that takes no more objects concerns no other.
async fn write(client: &Client, roots: &mut Roots, namespaces: &BTreeSet<String>) -> Result<(), Option<String>> {
    let mut result = Ok(());
    for namespace in roots.missing(namespaces) {
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": NAME, "labels": { "weft.dev/config": "true" } },
            "data": { KEY: roots.pem },
        });
        let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
        let written = api.patch(NAME, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object)).await;
        match written {
            Ok(_) => drop(roots.found.insert(namespace.to_owned(), roots.pem.clone())),
            // The namespace is gone, or about to be.
            Err(kube::Error::Api(status))
                if status.code == 404 || status.reason == "Forbidden" && is_ending(&status) => {}
            Err(error) => {
                let failure = Err(refusal(Some(&error)).map(|text| format!("{namespace}: {text}")));
                result = result.and(failure);
            }
        }
    }
    result
}

/// The text of a refusal; `None`: the API server does not answer, which the watches of other kinds report.
fn refusal(error: Option<&kube::Error>) -> Option<String> {
    match error {
        Some(kube::Error::Api(status)) => Some(status.message.clone()),
        _ => None,
    }
}

/// Whether a refusal is that of a namespace that is being terminated.
fn is_ending(status: &kube::core::Status) -> bool {
    status.message.contains("because it is being terminated")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(namespace: &str, pem: &str) -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": NAME}, "data": {KEY: pem}})).unwrap()
    }

    #[test]
    fn the_root_is_missing_where_it_is_absent_edited_or_deleted() {
        let namespaces: BTreeSet<String> = ["shop", "kube-public", "default"].map(str::to_owned).into();
        let mut roots = Roots { pem: "root".into(), ..Roots::default() };
        assert_eq!(roots.missing(&namespaces), ["default", "shop"], "nothing of users runs in kube-public");
        for event in [Event::Init, Event::InitApply(object("shop", "root")), Event::InitDone] {
            roots.apply(event);
        }
        assert_eq!(roots.missing(&namespaces), ["default"]);
        roots.apply(Event::Apply(object("default", "another")));
        assert_eq!(roots.missing(&namespaces), ["default"]);
        roots.apply(Event::Apply(object("default", "root")));
        assert!(roots.missing(&namespaces).is_empty());
        roots.apply(Event::Delete(object("shop", "root")));
        assert_eq!(roots.missing(&namespaces), ["shop"]);
        // A list after an outage has all that there is.
        for event in [Event::Init, Event::InitDone] {
            roots.apply(event);
        }
        assert_eq!(roots.missing(&namespaces), ["default", "shop"]);
    }
}
