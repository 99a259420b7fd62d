//! Registration, reports and removal of checks, including maintenance mode.

use std::sync::Arc;

use http::StatusCode;
use tokio::time::Instant;
use weft_registry_api::error::ApiError;

use super::super::definitions;
use super::super::entry::{new_state, wire};
use super::{LIMIT, Local, Writing};
use crate::checks::state::{State, Status};
use crate::checks::{Definition, Kind};

/// Consul's text if no reason is given.
const NO_REASON: &str =
    "Maintenance mode is enabled for this service, but no reason was provided. This is a default message.";

impl Local {
    /// Registers or changes a check of a service or of the node.
    ///
    /// # Errors
    /// If the service does not exist, or there are too many checks.
    pub async fn register_check(self: &Arc<Self>, definition: Definition) -> Result<(), ApiError> {
        let writing = self.writer.lock().await;
        self.put_check(&writing, definition).await?;
        self.save(&writing).await;
        Ok(())
    }

    /// Refuses a script check where programs may not be run.
    pub(super) fn may_run(&self, check: &Definition) -> Result<(), ApiError> {
        match self.sockets.no_scripts().filter(|_| matches!(check.kind, Kind::Script(_))) {
            Some(why) => Err(ApiError::bad_request(format!("Invalid check: {why}"))),
            None => Ok(()),
        }
    }

    pub(super) async fn put_check(self: &Arc<Self>, _: &Writing<'_>, definition: Definition) -> Result<(), ApiError> {
        self.may_run(&definition)?;
        let now = Instant::now();
        let (check, moved) = {
            let mut registrations = self.lock();
            if !definition.service_id.is_empty() && !registrations.services.contains_key(&definition.service_id) {
                let text = format!("ServiceID {:?} does not exist", definition.service_id);
                return Err(ApiError::new(StatusCode::NOT_FOUND, text));
            }
            let mut state = new_state(&definition, now);
            let mut moved = None;
            if let Some(old) = registrations.checks.get(&definition.id) {
                if old.definition.service_id == definition.service_id {
                    state.resume(&old.state);
                } else {
                    moved = Some(old.wire());
                }
            } else if registrations.checks.len() >= LIMIT {
                return Err(ApiError::bad_request(format!("one agent holds at most {LIMIT} checks")));
            } else if let Some(left) = registrations.saved_checks.remove(&definition.id) {
                left.restore_into(&mut state, now);
            }
            state.record_update(now);
            let check = wire(&definition, &state);
            match registrations.checks.get_mut(&definition.id) {
                Some(old) if *old.definition == definition => old.state.rearm(now),
                _ => self.start(&mut registrations, definition, state),
            }
            (check, moved)
        };
        if let Some(moved) = moved {
            self.upstream.check(moved, true).await;
        }
        self.upstream.check(check, false).await;
        self.touch();
        Ok(())
    }

    /// Deregisters a check.
    ///
    /// # Errors
    /// If it does not exist.
    pub async fn deregister_check(&self, id: &str) -> Result<(), ApiError> {
        let writing = self.writer.lock().await;
        let gone = self.lock().checks.remove(id).ok_or_else(|| ApiError::unknown_check(id))?;
        self.save(&writing).await;
        self.upstream.check(gone.wire(), true).await;
        self.touch();
        Ok(())
    }

    /// Applies the application's report for a TTL check.
    ///
    /// # Errors
    /// If there is no TTL check with this id.
    pub async fn report_ttl(&self, id: &str, status: Status, output: String) -> Result<(), ApiError> {
        self.reported(id, |state, now| state.reported(status, output, now)).await
    }

    /// Applies a renewal of a lease, see [`State::renewed`].
    ///
    /// # Errors
    /// If there is no TTL check with this id.
    pub async fn renew(&self, id: &str, status: Status, output: &str) -> Result<(), ApiError> {
        self.reported(id, |state, now| state.renewed(status, output.to_owned(), now)).await
    }

    async fn reported(&self, id: &str, take: impl FnOnce(&mut State, Instant) -> bool) -> Result<(), ApiError> {
        let _writing = self.writer.lock().await;
        let check = {
            let mut registrations = self.lock();
            let entry = registrations.checks.get_mut(id).ok_or_else(|| ApiError::unknown_check(id))?;
            let now = Instant::now();
            if !take(&mut entry.state, now) {
                let text = format!("CheckID {id:?} does not have associated TTL");
                return Err(ApiError::bad_request(text));
            }
            entry.due(now)
        };
        if let Some(check) = check {
            self.upstream.check(check, false).await;
        }
        self.unsaved.notify_one();
        self.touch();
        Ok(())
    }

    /// Takes a service out of use for `reason`, or with `None` back into use.
    ///
    /// # Errors
    /// If it does not exist.
    pub async fn maintenance(self: &Arc<Self>, service_id: &str, reason: Option<&str>) -> Result<(), ApiError> {
        if !service_id.is_empty() {
            self.service(service_id)?;
        }
        let id = definitions::maintenance_id(service_id);
        let there = self.lock().checks.contains_key(&id);
        match reason {
            // Like Consul, keeps the first reason.
            Some(_) if there => Ok(()),
            None if !there => Ok(()),
            None => self.deregister_check(&id).await,
            Some(reason) => {
                let notes = if reason.is_empty() { NO_REASON } else { reason };
                self.register_check(definitions::maintenance(service_id, notes)).await
            }
        }
    }
}
