//! The root certificate in the configurations of admission webhooks (`caBundle`), by which the API server verifies the
//! control plane.
//!
//! Only configurations with the label [`LABEL`] are written, only this field of them, and only where it differs: the rest
//! is the installation's. It is written again when something else sets it back, for example an upgrade.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;
use weft_core::backoff::Backoff;

use crate::sleep_until;

/// Label of the configurations that are written; its value is `true`.
pub const LABEL: &str = "weft.dev/ca-bundle";
/// Writer of the field, for others who look at `managedFields`.
const MANAGER: &str = "weft-ca-bundle";
/// First and longest pause after errors.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1600), Duration::from_secs(30));

/// Keeps the field up to date in all of these configurations, for ever. `root`: PEM.
pub async fn keep(client: Client, root: String) {
    tokio::join!(
        keep_kind::<MutatingWebhookConfiguration>(client.clone(), &root),
        keep_kind::<ValidatingWebhookConfiguration>(client, &root)
    );
}

/// A kind of configuration.
trait Configuration: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {
    /// Names of its webhooks, and their bundles.
    fn bundles(&self) -> Vec<(&str, Option<&ByteString>)>;
}

impl Configuration for MutatingWebhookConfiguration {
    fn bundles(&self) -> Vec<(&str, Option<&ByteString>)> {
        let all = self.webhooks.iter().flatten();
        all.map(|webhook| (&*webhook.name, webhook.client_config.ca_bundle.as_ref())).collect()
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    fn bundles(&self) -> Vec<(&str, Option<&ByteString>)> {
        let all = self.webhooks.iter().flatten();
        all.map(|webhook| (&*webhook.name, webhook.client_config.ca_bundle.as_ref())).collect()
    }
}

/// The webhooks that need the root, as a strategic merge patch: a list item by its name; `None`: none does.
fn patch(configuration: &impl Configuration, root: &str) -> Option<Value> {
    let root = ByteString(root.as_bytes().to_vec());
    let different = configuration.bundles().into_iter().filter(|(_, bundle)| *bundle != Some(&root));
    let webhooks: Vec<Value> =
        different.map(|(name, _)| json!({ "name": name, "clientConfig": { "caBundle": root } })).collect();
    (!webhooks.is_empty()).then(|| json!({ "webhooks": webhooks }))
}

async fn keep_kind<K: Configuration>(client: Client, root: &str) {
    let api: Api<K> = Api::all(client);
    let kind = K::kind(&());
    let watch = || {
        let config = watcher::Config::default().labels(&format!("{LABEL}=true"));
        Box::pin(watcher::watcher(api.clone(), config))
    };
    let (mut events, mut pauses) = (watch(), Backoff::new(PAUSES.0, PAUSES.1));
    let mut again = None;
    // Names of objects whose failure has a line in the log, and of the watch: an outage has one.
    let mut reported = BTreeSet::new();
    let mut report = |name: &str, error: Option<String>| match error {
        Some(error) if reported.insert(name.to_owned()) => {
            tracing::warn!("no root certificate in {kind} {name} (label {LABEL}): {error}; it is tried again");
        }
        Some(_) => {}
        None => drop(reported.remove(name)),
    };
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            // All are listed again: a write that failed has no further event.
            () = sleep_until(again) => {
                (events, again) = (watch(), None);
                continue;
            }
        };
        match event {
            Some(Ok(Event::Apply(found) | Event::InitApply(found))) => {
                // One that cannot be written, perhaps another revision's, keeps no other from it.
                let error = write(&api, &found, root).await.err();
                if error.is_some() && again.is_none() {
                    again = Some(Instant::now() + pauses.pause(rand::random()));
                }
                report(&found.name_any(), error);
            }
            Some(Ok(Event::InitDone)) => {
                report("all", None);
                if again.is_none() {
                    pauses.reset();
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                report("all", Some(error.to_string()));
                tokio::time::sleep(pauses.pause(rand::random())).await;
                events = watch();
            }
            None => return,
        }
    }
}

async fn write<K: Configuration>(api: &Api<K>, found: &K, root: &str) -> Result<(), String> {
    let Some(patch) = patch(found, root) else { return Ok(()) };
    let (kind, name) = (K::kind(&()), found.name_any());
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(&name, &parameters, &Patch::Strategic(patch)).await.map_err(|error| format!("{name}: {error}"))?;
    tracing::info!("{kind} {name} has the root certificate");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_webhooks_with_another_root_are_written() {
        let webhook = |name: &str, bundle: &str| {
            json!({
                "name": name,
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "clientConfig": { "url": "https://a/inject", "caBundle": ByteString(bundle.as_bytes().to_vec()) },
            })
        };
        let object = |webhooks: Vec<Value>| -> MutatingWebhookConfiguration {
            serde_json::from_value(json!({ "metadata": { "name": "weft" }, "webhooks": webhooks })).unwrap()
        };
        assert_eq!(patch(&object(vec![webhook("a", "root")]), "root"), None);
        assert_eq!(patch(&object(Vec::new()), "root"), None);
        let written = patch(&object(vec![webhook("a", "root"), webhook("b", "old")]), "root").unwrap();
        assert_eq!(written, json!({ "webhooks": [{ "name": "b", "clientConfig": { "caBundle": "cm9vdA==" } }] }));
    }
}
