//! Registrations of this pod and their health: the only place where the agent's services and checks change.
//!
//! A change is sent to the control plane first: a change that it refuses is refused here too. Writers are serialised, so that
//! the control plane receives changes in their order; a probe's result does not wait, it is marked and sent later.
//!
//! A registration is saved before its client gets a response; the state of checks is saved within a second.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use weft_proto::v1::{self, Instance};
use weft_registry_api::error::ApiError;

use super::entry::{Entry, RegisteredService, Task, is_same, new_state, wire};
use super::persistence::SavedCheckState;
use super::upstream::Upstream;
use crate::checks::state::{State, Status, Update};
use crate::checks::target::Own;
use crate::checks::{self, Definition, Kind, Sink, Sockets};

/// Maximum number of services of one agent, and of checks.
const LIMIT: usize = 1000;
/// Maximum wait until callers have acknowledged the removal of an instance; an application that exits afterwards gets
/// no more requests.
const ACK_WAIT: Duration = Duration::from_secs(2);
/// Interval at which delayed output updates and services that have been critical too long are handled.
const TICK: Duration = Duration::from_secs(15);
/// Pause before the mesh is queried again whether a check may expire.
const LAPSE_POLL: Duration = Duration::from_secs(1);

mod health;
mod restart;

#[derive(Default)]
struct Registrations {
    services: BTreeMap<String, RegisteredService>,
    checks: BTreeMap<String, Entry>,
    /// Checks with pending updates.
    dirty: BTreeSet<String>,
    /// State of checks from before a restart that are not registered again yet.
    saved_checks: BTreeMap<String, SavedCheckState>,
}

/// Guard that serialises writers.
type Writing<'a> = tokio::sync::MutexGuard<'a, ()>;

/// The agent's services and checks.
pub struct Local {
    upstream: Arc<dyn Upstream>,
    sockets: Arc<dyn Sockets>,
    file: Option<PathBuf>,
    registrations: Mutex<Registrations>,
    writer: tokio::sync::Mutex<()>,
    wake: Notify,
    unsaved: Notify,
    changed: watch::Sender<u64>,
    closed: AtomicBool,
    /// Set when another process has taken over the registrations.
    handed_over: watch::Sender<bool>,
}

impl Local {
    /// Starts without registrations; `file`: where they are saved across restarts. The caller spawns [`Local::report`]
    /// and [`Local::keep_saved`].
    pub fn new(upstream: Arc<dyn Upstream>, sockets: Arc<dyn Sockets>, file: Option<PathBuf>) -> Arc<Local> {
        Arc::new(Local {
            upstream,
            sockets,
            file,
            registrations: Mutex::default(),
            writer: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            unsaved: Notify::new(),
            changed: watch::Sender::new(0),
            closed: AtomicBool::new(false),
            handed_over: watch::Sender::new(false),
        })
    }

    /// Stops accepting registrations, because the pod is shutting down. The file keeps the existing ones, and a restart
    /// restores them.
    pub async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let writing = self.writer.lock().await;
        self.save(&writing).await;
    }

    /// Leaves the registrations to another process, which reads them from the file; the mesh is not notified. Checks
    /// stop here.
    pub async fn hand_over(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let writing = self.writer.lock().await;
        self.save(&writing).await;
        self.handed_over.send_replace(true);
        self.lock().checks.clear();
    }

    /// Waits until another process has taken over the registrations.
    pub async fn handed_over(&self) {
        // The channel is open as long as `self`, which owns the sender.
        let _ = self.handed_over.subscribe().wait_for(|over| *over).await;
    }

    /// Addresses that are registered and checked here.
    pub fn own(&self) -> Own {
        self.sockets.own()
    }

    /// A version counter of changes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The registered services.
    pub fn services(&self) -> Vec<Instance> {
        self.lock().services.values().map(|one| one.service.clone()).collect()
    }

    /// A registered service.
    pub fn service(&self, id: &str) -> Result<Instance, ApiError> {
        let registrations = self.lock();
        registrations.services.get(id).map(|one| one.service.clone()).ok_or_else(|| ApiError::unknown_service(id))
    }

    /// Number of checks that their applications report, and of those with an overdue report.
    pub fn late_reports(&self, now: Instant) -> (usize, usize) {
        let registrations = self.lock();
        let all = registrations.checks.values().filter(|entry| matches!(entry.definition.kind, Kind::Ttl(_)));
        let overdue = all.clone().filter(|entry| entry.state.due().is_some_and(|due| due <= now)).count();
        (all.count(), overdue)
    }

    /// The registered checks in the mesh's form, with an additional one for each service that was registered while the
    /// control plane was unavailable and is refused by it now.
    pub fn checks(&self) -> Vec<v1::Check> {
        let mut checks: Vec<v1::Check> = self.lock().checks.values().map(Entry::wire).collect();
        checks.extend(self.upstream.refused().into_iter().map(|(service_id, why)| v1::Check {
            check_id: format!("_registration:{service_id}"),
            name: "Registration in the mesh".into(),
            status: Status::Critical.as_str().into(),
            output: format!("refused by the control plane: {why}"),
            service_id,
            ..Default::default()
        }));
        checks
    }

    /// Registers the service of the command line, unless the application has registered itself already.
    ///
    /// # Errors
    /// The control plane's reason for refusing it.
    pub async fn register_command_line(
        self: &Arc<Self>,
        service: Instance,
        check: Option<Definition>,
    ) -> Result<(), ApiError> {
        let writing = self.writer.lock().await;
        let same = self.lock().services.values().any(|one| !one.command_line && is_same(&one.service, &service));
        if same {
            tracing::info!(service = service.service, "registered by the application already");
            return Ok(());
        }
        self.put(&writing, RegisteredService { service, command_line: true }, check.into_iter().collect(), false)
            .await?;
        self.save(&writing).await;
        Ok(())
    }

    /// Registers a service or changes it. Its existing checks that are not among `checks` stay, unless
    /// `replace_checks`.
    ///
    /// # Errors
    /// The reason for refusing it.
    pub async fn register(
        self: &Arc<Self>,
        mut service: Instance,
        mut checks: Vec<Definition>,
        replace_checks: bool,
    ) -> Result<(), ApiError> {
        let writing = self.writer.lock().await;
        // The same port on the command line is the same endpoint; this registration has more details.
        let replaced = {
            let registrations = self.lock();
            let found = registrations.services.values().find(|one| one.command_line && is_same(&one.service, &service));
            found.map(|found| {
                let id = found.service.service_id.clone();
                let protocol = found.service.meta.get("protocol").cloned();
                let own = registrations.checks.values().filter(|e| e.definition.service_id == id);
                let own: Vec<Definition> = own.map(|e| Definition::clone(&e.definition)).collect();
                (id, protocol, own)
            })
        };
        let id = service.service_id.clone();
        // Protocol and health check of the command line stay if this registration has none.
        if let Some((old, protocol, old_checks)) = &replaced {
            if let Some(protocol) = protocol {
                service.meta.entry("protocol".into()).or_insert_with(|| protocol.clone());
            }
            if checks.is_empty() && *old != id {
                let moved = |check: &Definition| Definition {
                    id: format!("service:{id}"),
                    service_id: id.clone(),
                    ..check.clone()
                };
                checks.extend(old_checks.iter().filter(|c| !matches!(c.kind, Kind::Maintenance)).map(moved));
            }
        }
        self.put(&writing, RegisteredService { service, command_line: false }, checks, replace_checks).await?;
        if let Some((old, ..)) = replaced.filter(|(old, ..)| *old != id) {
            self.remove(&old);
            self.upstream.deregister(&old, Duration::ZERO).await;
        }
        self.save(&writing).await;
        Ok(())
    }

    async fn put(
        self: &Arc<Self>,
        _writing: &Writing<'_>,
        new: RegisteredService,
        checks: Vec<Definition>,
        replace_checks: bool,
    ) -> Result<(), ApiError> {
        if self.closed.load(Ordering::Relaxed) {
            let text = "this pod is shutting down and accepts no registrations";
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text));
        }
        checks.iter().try_for_each(|check| self.may_run(check))?;
        self.upstream.may_register(&new.service.service).map_err(ApiError::upstream)?;
        let id = new.service.service_id.clone();
        let now = Instant::now();
        let given: BTreeMap<String, Definition> = checks.into_iter().map(|c| (c.id.clone(), c)).collect();
        let mut instance = new.service.clone();
        let (mut fresh, gone) = {
            let mut registrations = self.lock();
            let more = given.keys().filter(|id| !registrations.checks.contains_key(*id)).count();
            if registrations.checks.len() + more > LIMIT
                || (!registrations.services.contains_key(&id) && registrations.services.len() >= LIMIT)
            {
                return Err(ApiError::bad_request(format!(
                    "one agent holds at most {LIMIT} services and {LIMIT} checks"
                )));
            }
            if let Some(other) =
                given.keys().find(|c| registrations.checks.get(*c).is_some_and(|e| e.definition.service_id != id))
            {
                return Err(ApiError::bad_request(format!("the check ID {other:?} is in use by another service")));
            }
            let own = registrations.checks.values().filter(|e| e.definition.service_id == id);
            let (stay, gone): (Vec<_>, Vec<_>) =
                own.partition(|e| given.contains_key(&e.definition.id) || !replace_checks || e.is_maintenance());
            instance.checks = stay.iter().filter(|e| !given.contains_key(&e.definition.id)).map(|e| e.wire()).collect();
            let gone: Vec<String> = gone.iter().map(|e| e.definition.id.clone()).collect();
            let mut fresh = Vec::new();
            for (check_id, definition) in given {
                match registrations.checks.get_mut(&check_id) {
                    // SavedCheckState running: otherwise a client that registers every few seconds would prevent every probe.
                    Some(entry) if *entry.definition == definition => {
                        entry.state.rearm(now);
                        instance.checks.push(entry.wire());
                    }
                    old => {
                        let mut state = new_state(&definition, now);
                        if let Some(old) = old {
                            state.resume(&old.state);
                        } else if let Some(left) = registrations.saved_checks.remove(&check_id) {
                            left.restore_into(&mut state, now);
                        }
                        instance.checks.push(wire(&definition, &state));
                        state.record_update(now);
                        fresh.push((definition, state));
                    }
                }
            }
            (fresh, gone)
        };
        self.upstream.register(instance).await?;
        let mut registrations = self.lock();
        registrations.services.insert(id, new);
        for gone in gone {
            registrations.checks.remove(&gone);
        }
        for (definition, mut state) in fresh.drain(..) {
            if let Some(old) = registrations.checks.get(&definition.id) {
                // A result may have arrived in the meantime.
                state.resume(&old.state);
            }
            self.start(&mut registrations, definition, state);
        }
        drop(registrations);
        self.touch();
        Ok(())
    }

    /// Deregisters a service.
    ///
    /// # Errors
    /// If it does not exist.
    pub async fn deregister(&self, id: &str) -> Result<(), ApiError> {
        let writing = self.writer.lock().await;
        if !self.remove(id) {
            return Err(ApiError::unknown_service(id));
        }
        self.save(&writing).await;
        self.upstream.deregister(id, ACK_WAIT).await;
        Ok(())
    }

    /// Removes a service and its checks locally.
    fn remove(&self, id: &str) -> bool {
        let mut registrations = self.lock();
        let there = registrations.services.remove(id).is_some();
        if there {
            registrations.checks.retain(|_, entry| entry.definition.service_id != id);
        }
        drop(registrations);
        self.touch();
        there
    }

    /// Sends check updates to the mesh, and deregisters services that have been critical too long, until aborted.
    pub async fn report(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                _ = tick.tick() => self.reap().await,
            }
            let dirty = std::mem::take(&mut self.lock().dirty);
            for id in dirty {
                let _writing = self.writer.lock().await;
                let check = self.lock().checks.get_mut(&id).and_then(|entry| entry.due(Instant::now()));
                if let Some(check) = check {
                    self.upstream.check(check, false).await;
                }
            }
        }
    }

    async fn reap(&self) {
        let now = Instant::now();
        let dead: BTreeSet<String> = {
            let mut registrations = self.lock();
            let waiting =
                registrations.checks.iter().filter(|(_, entry)| entry.state.pending_update() != Update::Unneeded);
            let waiting: Vec<String> = waiting.map(|(id, _)| id.clone()).collect();
            registrations.dirty.extend(waiting);
            let dead = registrations.checks.values().filter(|entry| {
                entry.definition.deregister_after.is_some_and(|limit| entry.state.critical_for(limit, now))
            });
            dead.map(|entry| entry.definition.service_id.clone()).filter(|id| !id.is_empty()).collect()
        };
        for id in dead {
            tracing::warn!(service_id = id, "critical for too long: deregistering it");
            // Its owner may have deregistered it in the meantime.
            let _ = self.deregister(&id).await;
        }
    }

    fn start(self: &Arc<Self>, registrations: &mut Registrations, definition: Definition, state: State) {
        let definition = Arc::new(definition);
        let (local, run) = (self.clone(), definition.clone());
        let task = tokio::spawn(async move { checks::run(&run, &*local.sockets, &*local).await });
        let task = Task(task.abort_handle());
        if state.pending_update() == Update::Now {
            registrations.dirty.insert(definition.id.clone());
            self.wake.notify_one();
        }
        registrations.checks.insert(definition.id.clone(), Entry { definition, state, task });
    }

    fn touch(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Registrations> {
        self.registrations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Local {
    fn probed(&self, check_id: &str, status: Status, output: String) {
        self.update(check_id, |state| {
            state.probed(status, output, Instant::now());
        });
    }

    fn expire(&self, check_id: &str) -> Option<Instant> {
        let now = Instant::now();
        let due = self.lock().checks.get(check_id).and_then(|entry| entry.state.due());
        if due.is_some_and(|due| due <= now) && !self.upstream.may_lapse() {
            return Some(now + LAPSE_POLL);
        }
        self.update(check_id, |state| state.expire(now));
        self.lock().checks.get(check_id).and_then(|entry| entry.state.due())
    }

    fn worst(&self, service_id: &str, except: &str) -> (Status, String) {
        let registrations = self.lock();
        if !registrations.services.contains_key(service_id) {
            return (Status::Critical, format!("Service {service_id} could not be found"));
        }
        let of = |entry: &&Entry| entry.definition.service_id == service_id && entry.definition.id != except;
        let worst = registrations.checks.values().filter(of).max_by_key(|entry| entry.state.status());
        match worst {
            None => (Status::Passing, "No checks found.".into()),
            Some(entry) if entry.state.status() == Status::Passing => (Status::Passing, "All checks passing.".into()),
            Some(entry) => {
                let output = format!("Aliased check {:?} failing: {}", entry.definition.name, entry.state.output());
                (entry.state.status(), output)
            }
        }
    }

    fn changed(&self) -> watch::Receiver<u64> {
        Local::changed(self)
    }
}

impl Local {
    fn update(&self, check_id: &str, change: impl FnOnce(&mut State)) {
        let mut registrations = self.lock();
        let Some(entry) = registrations.checks.get_mut(check_id) else { return };
        let before = entry.state.status();
        change(&mut entry.state);
        let after = entry.state.status();
        if before != after {
            self.touch();
            // Logs the first line only, because output can be a whole page.
            let output: String = entry.state.output().lines().next().unwrap_or_default().chars().take(200).collect();
            tracing::info!(check_id, output, "a check went from {} to {}", before.as_str(), after.as_str());
            self.unsaved.notify_one();
        }
        if entry.state.pending_update() == Update::Now {
            registrations.dirty.insert(check_id.to_owned());
            self.wake.notify_one();
        }
    }
}
