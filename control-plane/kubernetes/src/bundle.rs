//! The root certificate in the configurations of admission webhooks (`caBundle`), by which the API server verifies the
//! control plane.
//!
//! Only configurations with the label [`LABEL`] are written, only this field of them, and only where it differs: the rest
//! is the installation's. It is written again when something else sets it back, for example an upgrade.

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
use weft_core::backoff::Backoff;

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
    let mut is_reported = false;
    while let Some(event) = events.next().await {
        let result = match event {
            Ok(Event::Apply(found) | Event::InitApply(found)) => write(&api, &found, root).await,
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        let Err(error) = result else {
            pauses.reset();
            is_reported = false;
            continue;
        };
        // One line for an outage.
        if !is_reported {
            tracing::warn!("no root certificate in each {kind} with the label {LABEL}: {error}; it is tried again");
        }
        is_reported = true;
        tokio::time::sleep(pauses.pause(rand::random())).await;
        // All are listed again: the write that failed has no further event.
        events = watch();
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
