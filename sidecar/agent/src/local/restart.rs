//! Persistence of registrations across restarts of the sidecar: when the file, whose format is in
//! [`super::super::persistence`], is read and written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::persistence::{Moment, SavedState};
use super::{Local, Writing};
use crate::checks::Definition;

/// Minimum interval between saves of the state of checks.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

impl Local {
    /// Registers the content of the file again, except services that are registered already. A service of the command
    /// line is restored only if its id is `command_line`: another one is obsolete, since the command line has changed.
    pub async fn restore(self: &Arc<Self>, command_line: Option<&str>) {
        let Some(file) = &self.file else { return };
        let writing = self.writer.lock().await;
        let (services, checks) = SavedState::read(file).take(Moment::now(), self.own());
        let (mut of_services, mut of_node) = (BTreeMap::<String, Vec<Definition>>::new(), Vec::new());
        {
            let mut registrations = self.lock();
            for (definition, left) in checks {
                registrations.saved_checks.insert(definition.id.clone(), left);
                if definition.service_id.is_empty() {
                    of_node.push(definition);
                } else {
                    of_services.entry(definition.service_id.clone()).or_default().push(definition);
                }
            }
        }
        for service in services {
            let id = service.service.service_id.clone();
            let given_up = service.command_line && command_line != Some(id.as_str());
            if given_up || self.lock().services.contains_key(&id) {
                continue;
            }
            let checks = of_services.remove(&id).unwrap_or_default();
            match self.put(&writing, service, checks, false).await {
                Ok(()) => tracing::info!(service_id = id, "registered again after a restart"),
                Err(e) => tracing::warn!(service_id = id, "not registered again after the restart: {}", e.text),
            }
        }
        for check in of_node {
            let id = check.id.clone();
            let there = self.lock().checks.contains_key(&id);
            if !there && let Err(e) = self.put_check(&writing, check).await {
                tracing::warn!(check_id = id, "not registered again after the restart: {}", e.text);
            }
        }
        self.save(&writing).await;
    }

    /// Saves the state of checks after changes, until aborted.
    pub async fn keep_saved(self: Arc<Self>) {
        loop {
            self.unsaved.notified().await;
            {
                let writing = self.writer.lock().await;
                self.save(&writing).await;
            }
            tokio::time::sleep(SAVE_INTERVAL).await;
        }
    }

    pub(super) async fn save(&self, _: &Writing<'_>) {
        let Some(file) = self.file.clone().filter(|_| !*self.handed_over.borrow()) else { return };
        let saved = {
            let registrations = self.lock();
            SavedState::of(registrations.services.values(), registrations.checks.values(), Moment::now())
        };
        // Writing to disk may block, and this thread serves other tasks.
        if let Ok(Err(e)) = tokio::task::spawn_blocking(move || saved.write(&file)).await {
            tracing::warn!("cannot save the registrations, they will be lost at a restart: {e:#}");
        }
    }
}
