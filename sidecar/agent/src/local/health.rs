//! Checks: registered, reported on, removed; maintenance mode is one of them.

use std::sync::Arc;

use http::StatusCode;
use tokio::time::Instant;

use super::super::definitions;
use super::super::entry::{new_state, wire};
use super::super::refused::Refused;
use super::{LIMIT, Local, Writing};
use crate::checks::state::{State, Status};
use crate::checks::{Definition, Kind};

/// Consul's words where no reason is given.
const NO_REASON: &str =
    "Maintenance mode is enabled for this service, but no reason was provided. This is a default message.";

impl Local {
    /// Registers a check of a service, or of the node, or changes it.
    ///
    /// # Errors
    /// When there is no such service, or too many checks.
    pub async fn register_check(self: &Arc<Self>, definition: Definition) -> Result<(), Refused> {
        let writing = self.writer.lock().await;
        self.put_check(&writing, definition).await?;
        self.save(&writing).await;
        Ok(())
    }

    /// Refuses a program where none may be run.
    pub(super) fn may_run(&self, check: &Definition) -> Result<(), Refused> {
        match self.sockets.no_scripts().filter(|_| matches!(check.kind, Kind::Script(_))) {
            Some(why) => Err(Refused::bad(format!("Invalid check: {why}"))),
            None => Ok(()),
        }
    }

    pub(super) async fn put_check(self: &Arc<Self>, _: &Writing<'_>, definition: Definition) -> Result<(), Refused> {
        self.may_run(&definition)?;
        let now = Instant::now();
        let (check, moved) = {
            let mut held = self.lock();
            if !definition.service_id.is_empty() && !held.services.contains_key(&definition.service_id) {
                let text = format!("ServiceID {:?} does not exist", definition.service_id);
                return Err(Refused::new(StatusCode::NOT_FOUND, text));
            }
            let mut state = new_state(&definition, now);
            let mut moved = None;
            if let Some(old) = held.checks.get(&definition.id) {
                if old.definition.service_id == definition.service_id {
                    state.resume(&old.state);
                } else {
                    moved = Some(old.wire());
                }
            } else if held.checks.len() >= LIMIT {
                return Err(Refused::bad(format!("one agent holds {LIMIT} checks at most")));
            } else if let Some(left) = held.left.remove(&definition.id) {
                left.continue_in(&mut state, now);
            }
            state.told(now);
            let check = wire(&definition, &state);
            match held.checks.get_mut(&definition.id) {
                Some(old) if *old.definition == definition => old.state.rearm(now),
                _ => self.start(&mut held, definition, state),
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

    /// Takes a check back.
    ///
    /// # Errors
    /// When there is none.
    pub async fn deregister_check(&self, id: &str) -> Result<(), Refused> {
        let writing = self.writer.lock().await;
        let gone = self.lock().checks.remove(id).ok_or_else(|| Refused::unknown_check(id))?;
        self.save(&writing).await;
        self.upstream.check(gone.wire(), true).await;
        self.touch();
        Ok(())
    }

    /// Takes the application's report on a TTL check.
    ///
    /// # Errors
    /// When there is none of that id.
    pub async fn report_ttl(&self, id: &str, status: Status, output: String) -> Result<(), Refused> {
        self.reported(id, |state, now| state.reported(status, output, now)).await
    }

    /// Takes a renewal of a lease, as [`State::renewed`].
    ///
    /// # Errors
    /// When there is no check of that id with a time to live.
    pub async fn renew(&self, id: &str, status: Status, output: &str) -> Result<(), Refused> {
        self.reported(id, |state, now| state.renewed(status, output.to_owned(), now)).await
    }

    async fn reported(&self, id: &str, take: impl FnOnce(&mut State, Instant) -> bool) -> Result<(), Refused> {
        let _writing = self.writer.lock().await;
        let check = {
            let mut held = self.lock();
            let entry = held.checks.get_mut(id).ok_or_else(|| Refused::unknown_check(id))?;
            let now = Instant::now();
            if !take(&mut entry.state, now) {
                let text = format!("CheckID {id:?} does not have associated TTL");
                return Err(Refused::bad(text));
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

    /// Takes a service out of use for `reason`, or with `None` back in.
    ///
    /// # Errors
    /// When there is none of that id.
    pub async fn maintenance(self: &Arc<Self>, service_id: &str, reason: Option<&str>) -> Result<(), Refused> {
        if !service_id.is_empty() {
            self.service(service_id)?;
        }
        let id = definitions::maintenance_id(service_id);
        let there = self.lock().checks.contains_key(&id);
        match reason {
            // Consul leaves the first reason.
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
