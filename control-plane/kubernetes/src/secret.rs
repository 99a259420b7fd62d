//! The control plane's own secrets, its certificate authority above all, in a Secret of the cluster: they outlive its pods, and
//! all replicas share them without another store.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use weft_core::backoff::Backoff;

use crate::roots::MANAGER;
use crate::watch::text;

/// Attempts while other replicas write too.
const ATTEMPTS: usize = 10;
/// First and longest pause while the API server does not answer.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// The Secret of a control plane.
#[derive(Clone)]
pub struct Secrets {
    api: Api<Secret>,
    name: String,
}

impl Secrets {
    /// The Secret `name` of the client's own namespace.
    pub fn new(client: Client, name: &str) -> Secrets {
        Secrets { api: Api::default_namespaced(client), name: name.to_owned() }
    }

    /// The Secret, once the API server answers.
    async fn get(&self) -> Result<Option<Secret>, kube::Error> {
        let (mut pauses, mut is_reported) = (Backoff::new(PAUSES.0, PAUSES.1), false);
        loop {
            match self.api.get_opt(&self.name).await {
                Err(error) if !matches!(error, kube::Error::Api(_)) => {
                    if !std::mem::replace(&mut is_reported, true) {
                        tracing::warn!("waiting for the Kubernetes API: {}", text(&error));
                    }
                    tokio::time::sleep(pauses.pause(rand::random())).await;
                }
                answer => return answer,
            }
        }
    }

    /// The value of a key, if the Secret has one. An API server that does not answer is waited for.
    ///
    /// # Errors
    /// If the API server refuses; the text names the Secret.
    pub async fn find(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let found = self.get().await;
        let found = found.with_context(|| format!("cannot read {}: it needs get, create and patch", self.place()))?;
        let data = found.and_then(|mut secret| secret.data.as_mut().and_then(|data| data.remove(key)));
        Ok(data.map(|ByteString(bytes)| bytes))
    }

    fn place(&self) -> String {
        format!("the Secret {} of the control plane's namespace", self.name)
    }

    /// The value of a key: that of the Secret, else `value`, which is written. Of several replicas that write at once the
    /// first is obeyed by all. An API server that does not answer is waited for.
    ///
    /// # Errors
    /// If the API server refuses; the text names the Secret.
    pub async fn get_or_set(&self, key: &str, value: &[u8]) -> Result<Vec<u8>> {
        for _ in 0..ATTEMPTS {
            let found = self.get().await;
            let found =
                found.with_context(|| format!("cannot read {}: it needs get, create and patch", self.place()))?;
            let written = match &found {
                Some(secret) => {
                    if let Some(ByteString(bytes)) = secret.data.as_ref().and_then(|data| data.get(key)) {
                        return Ok(bytes.clone());
                    }
                    let patch = json!({
                        "metadata": { "resourceVersion": secret.metadata.resource_version },
                        "data": { key: ByteString(value.to_vec()) },
                    });
                    let patched = self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await;
                    patched.map(drop)
                }
                None => {
                    let object = serde_json::from_value(json!({
                        "metadata": { "name": self.name, "labels": { "app.kubernetes.io/managed-by": MANAGER } },
                        "data": { key: ByteString(value.to_vec()) },
                    }))?;
                    self.api.create(&PostParams::default(), &object).await.map(drop)
                }
            };
            match written {
                // Read again: the value may be another replica's.
                Ok(()) => {}
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error).with_context(|| format!("cannot write {}", self.place())),
            }
        }
        bail!("{} changes all the time: {key} could not be written in {ATTEMPTS} attempts", self.place())
    }
}
