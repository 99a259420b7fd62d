//! The directory on disk: a sidecar that restarts while the control plane is away serves from it.

use std::collections::HashMap;
use std::time::Instant;

use prost::Message;
use weft_proto::envoy::{Any, DeltaDiscoveryResponse, Resource};
use weft_proto::{ENDPOINTS_TYPE, INBOUND_TYPE, SERVICE_TYPE};

use super::writer::{SELF, Wanted, Writer};

impl Writer {
    /// Writes the state to disk, if it changed.
    pub fn save(&mut self) {
        let Some(path) = self.saved.as_ref().filter(|_| self.unsaved) else { return };
        let mut aliases: HashMap<&String, Vec<String>> = HashMap::new();
        for (name, wanted) in &self.wanted {
            if let Some(Some(host)) = &wanted.host {
                aliases.entry(host).or_default().push(name.to_string());
            }
        }
        let resource = |kind: &str, name: &str, version: &str, bytes: &bytes::Bytes, aliases: Vec<String>| Resource {
            version: version.to_owned(),
            name: name.to_owned(),
            aliases,
            resource: Some(Any { type_url: kind.to_owned(), value: bytes.clone() }),
        };
        let mut resources = Vec::new();
        for (host, h) in &self.services {
            let aliases = aliases.remove(host).unwrap_or_default();
            resources.push(resource(SERVICE_TYPE, host, &h.version, &h.bytes, aliases));
        }
        for (host, h) in &self.endpoints {
            resources.push(resource(ENDPOINTS_TYPE, host, &h.version, &h.bytes, Vec::new()));
        }
        resources.extend(self.inbound.iter().map(|h| resource(INBOUND_TYPE, SELF, &h.version, &h.bytes, Vec::new())));
        let saved = DeltaDiscoveryResponse { resources, ..Default::default() }.encode_to_vec();
        self.unsaved = false;
        let path = path.clone();
        // A disk may take its time, and requests wait for this task. One write at a time: the next waits for this one.
        let previous = self.saving.take();
        self.saving = Some(tokio::spawn(async move {
            if let Some(previous) = previous {
                // A write that panicked left the file as it was.
                let _ = previous.await;
            }
            let written = tokio::task::spawn_blocking(move || weft_agent::files::write_private(&path, &saved)).await;
            if let Ok(Err(e)) = written {
                tracing::warn!("the directory could not be saved: {e:#}");
            }
        }));
    }

    pub(super) fn load(&mut self) {
        let Some(path) = &self.saved else { return };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
            Err(e) => return tracing::warn!("cannot read {}: {e}", path.display()),
        };
        let saved = match DeltaDiscoveryResponse::decode(bytes.as_slice()) {
            Ok(saved) => saved,
            Err(e) => return tracing::warn!("{} is damaged: {e}", path.display()),
        };
        for kind in [SERVICE_TYPE, ENDPOINTS_TYPE, INBOUND_TYPE] {
            let of_kind = |r: &&Resource| r.resource.as_ref().is_some_and(|a| a.type_url == kind);
            let resources: Vec<Resource> = saved.resources.iter().filter(of_kind).cloned().collect();
            for alias in resources.iter().filter(|_| kind == SERVICE_TYPE).flat_map(|r| &r.aliases) {
                let wanted = Wanted { host: None, since: Instant::now(), waiters: Vec::new(), preload: false };
                self.wanted.entry(alias.as_str().into()).or_insert(wanted);
            }
            let _ = self.apply(DeltaDiscoveryResponse { resources, type_url: kind.to_owned(), ..Default::default() });
        }
        self.unsaved = false;
        tracing::info!(services = self.services.len(), "taken up what was known before the restart");
    }
}
