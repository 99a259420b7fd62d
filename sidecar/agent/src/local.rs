//! What is registered in this pod and how it fares: the one place where the agent's services and checks change.
//!
//! The control plane is asked first: what it refuses is not taken here either. Writers take turns, so that it hears of
//! changes in the order in which they were made; a probe's result never waits for one, it is marked and told later.
//!
//! What is registered is in a file before the one who registered it has an answer; how checks fare follows in a second.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use weft_proto::v1::{self, Instance};

use super::entry::{Entry, Held, Task, is_same, new_state, wire};
use super::refused::Refused;
use super::saved::Left;
use super::upstream::Upstream;
use crate::checks::state::{State, Status, Tell};
use crate::checks::target::Own;
use crate::checks::{self, Definition, Kind, Sink, Sockets};

/// Services of one agent, and checks.
const LIMIT: usize = 1000;
/// Longest wait until callers have acknowledged that an instance is gone; an application that ends after that is missed
/// by nobody.
const ACK_WAIT: Duration = Duration::from_secs(2);
/// How often output that may wait, and services that have been critical too long, are looked at.
const TICK: Duration = Duration::from_secs(15);
/// Pause before it is asked again whether a check may lapse.
const LAPSE_POLL: Duration = Duration::from_secs(1);

mod health;
mod restart;

#[derive(Default)]
struct Registered {
    services: BTreeMap<String, Held>,
    checks: BTreeMap<String, Entry>,
    /// Checks whose status the mesh has not heard of.
    dirty: BTreeSet<String>,
    /// How checks fared before the restart that are not registered again yet.
    left: BTreeMap<String, Left>,
}

/// Whose turn it is to write.
type Writing<'a> = tokio::sync::MutexGuard<'a, ()>;

/// The agent's services and checks.
pub struct Local {
    upstream: Arc<dyn Upstream>,
    sockets: Arc<dyn Sockets>,
    file: Option<PathBuf>,
    held: Mutex<Registered>,
    writer: tokio::sync::Mutex<()>,
    wake: Notify,
    unsaved: Notify,
    changed: watch::Sender<u64>,
    closed: AtomicBool,
    /// Another process has all of this by now.
    handed_over: watch::Sender<bool>,
}

impl Local {
    /// Nothing registered yet; `file`: where it is to survive restarts. [`Local::report`] and [`Local::keep_saved`] are to
    /// be spawned.
    pub fn new(upstream: Arc<dyn Upstream>, sockets: Arc<dyn Sockets>, file: Option<PathBuf>) -> Arc<Local> {
        Arc::new(Local {
            upstream,
            sockets,
            file,
            held: Mutex::default(),
            writer: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            unsaved: Notify::new(),
            changed: watch::Sender::new(0),
            closed: AtomicBool::new(false),
            handed_over: watch::Sender::new(false),
        })
    }

    /// The pod is being shut down: nothing is registered any more. What is registered stays so in the file: a restart
    /// brings it back.
    pub async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let writing = self.writer.lock().await;
        self.save(&writing).await;
    }

    /// Leaves what is registered to another process, which reads it from the file: the mesh is told of nothing. No check is made
    /// here any more.
    pub async fn hand_over(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let writing = self.writer.lock().await;
        self.save(&writing).await;
        self.handed_over.send_replace(true);
        self.lock().checks.clear();
    }

    /// Waits until another process has what is registered.
    pub async fn handed_over(&self) {
        // Never closed: this has the sender.
        let _ = self.handed_over.subscribe().wait_for(|over| *over).await;
    }

    /// Whose addresses are registered and checked here.
    pub fn own(&self) -> Own {
        self.sockets.own()
    }

    /// Counts changes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The registered services.
    pub fn services(&self) -> Vec<Instance> {
        self.lock().services.values().map(|held| held.service.clone()).collect()
    }

    /// One of them.
    pub fn service(&self, id: &str) -> Result<Instance, Refused> {
        let held = self.lock();
        held.services.get(id).map(|held| held.service.clone()).ok_or_else(|| Refused::unknown_service(id))
    }

    /// Checks that their applications report: all of them, and those whose report is overdue.
    pub fn late_reports(&self, now: Instant) -> (usize, usize) {
        let held = self.lock();
        let all = held.checks.values().filter(|entry| matches!(entry.definition.kind, Kind::Ttl(_)));
        let overdue = all.clone().filter(|entry| entry.state.due().is_some_and(|due| due <= now)).count();
        (all.count(), overdue)
    }

    /// The registered checks as the mesh has them; and one more for each service that the mesh does not have, because it
    /// was registered while the control plane was away and is refused by it now.
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

    /// Registers the service of the command line, unless the application has registered itself by now.
    ///
    /// # Errors
    /// The control plane's reason for refusing it.
    pub async fn register_command_line(
        self: &Arc<Self>,
        service: Instance,
        check: Option<Definition>,
    ) -> Result<(), Refused> {
        let writing = self.writer.lock().await;
        let same = self.lock().services.values().any(|held| !held.command_line && is_same(&held.service, &service));
        if same {
            tracing::info!(service = service.service, "registered by the application already");
            return Ok(());
        }
        self.put(&writing, Held { service, command_line: true }, check.into_iter().collect(), false).await?;
        self.save(&writing).await;
        Ok(())
    }

    /// Registers a service or changes it. Checks that it had and `checks` does not name stay, unless `replace_checks`.
    ///
    /// # Errors
    /// The control plane's reason for refusing it, or ours.
    pub async fn register(
        self: &Arc<Self>,
        mut service: Instance,
        mut checks: Vec<Definition>,
        replace_checks: bool,
    ) -> Result<(), Refused> {
        let writing = self.writer.lock().await;
        // The same port given on the command line is the same endpoint: this registration says more of it.
        let replaced = {
            let held = self.lock();
            let found = held.services.values().find(|held| held.command_line && is_same(&held.service, &service));
            found.map(|found| {
                let id = found.service.service_id.clone();
                let protocol = found.service.meta.get("protocol").cloned();
                let own = held.checks.values().filter(|e| e.definition.service_id == id);
                let own: Vec<Definition> = own.map(|e| Definition::clone(&e.definition)).collect();
                (id, protocol, own)
            })
        };
        let id = service.service_id.clone();
        // Where it says nothing of protocol and health, what the command line said of them stays.
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
        self.put(&writing, Held { service, command_line: false }, checks, replace_checks).await?;
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
        new: Held,
        checks: Vec<Definition>,
        replace_checks: bool,
    ) -> Result<(), Refused> {
        if self.closed.load(Ordering::Relaxed) {
            let text = "this pod is being shut down; nothing can be registered any more";
            return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, text));
        }
        checks.iter().try_for_each(|check| self.may_run(check))?;
        self.upstream.may_register(&new.service.service).map_err(Refused::upstream)?;
        let id = new.service.service_id.clone();
        let now = Instant::now();
        let given: BTreeMap<String, Definition> = checks.into_iter().map(|c| (c.id.clone(), c)).collect();
        let mut instance = new.service.clone();
        let (mut fresh, gone) = {
            let mut held = self.lock();
            let more = given.keys().filter(|id| !held.checks.contains_key(*id)).count();
            if held.checks.len() + more > LIMIT || (!held.services.contains_key(&id) && held.services.len() >= LIMIT) {
                return Err(Refused::bad(format!("one agent holds {LIMIT} services and {LIMIT} checks at most")));
            }
            if let Some(other) =
                given.keys().find(|c| held.checks.get(*c).is_some_and(|e| e.definition.service_id != id))
            {
                return Err(Refused::bad(format!("the check ID {other:?} is in use by another service")));
            }
            let own = held.checks.values().filter(|e| e.definition.service_id == id);
            let (stay, gone): (Vec<_>, Vec<_>) =
                own.partition(|e| given.contains_key(&e.definition.id) || !replace_checks || e.is_maintenance());
            instance.checks = stay.iter().filter(|e| !given.contains_key(&e.definition.id)).map(|e| e.wire()).collect();
            let gone: Vec<String> = gone.iter().map(|e| e.definition.id.clone()).collect();
            let mut fresh = Vec::new();
            for (check_id, definition) in given {
                match held.checks.get_mut(&check_id) {
                    // Left running: else one who registers every few seconds would never be probed.
                    Some(entry) if *entry.definition == definition => {
                        entry.state.rearm(now);
                        instance.checks.push(entry.wire());
                    }
                    old => {
                        let mut state = new_state(&definition, now);
                        if let Some(old) = old {
                            state.resume(&old.state);
                        } else if let Some(left) = held.left.remove(&check_id) {
                            left.continue_in(&mut state, now);
                        }
                        instance.checks.push(wire(&definition, &state));
                        state.told(now);
                        fresh.push((definition, state));
                    }
                }
            }
            (fresh, gone)
        };
        self.upstream.register(instance).await?;
        let mut held = self.lock();
        held.services.insert(id, new);
        for gone in gone {
            held.checks.remove(&gone);
        }
        for (definition, mut state) in fresh.drain(..) {
            if let Some(old) = held.checks.get(&definition.id) {
                // A result may have come meanwhile.
                state.resume(&old.state);
            }
            self.start(&mut held, definition, state);
        }
        drop(held);
        self.touch();
        Ok(())
    }

    /// Takes a service back.
    ///
    /// # Errors
    /// When there is none.
    pub async fn deregister(&self, id: &str) -> Result<(), Refused> {
        let writing = self.writer.lock().await;
        if !self.remove(id) {
            return Err(Refused::unknown_service(id));
        }
        self.save(&writing).await;
        self.upstream.deregister(id, ACK_WAIT).await;
        Ok(())
    }

    /// Removes a service and its checks here.
    fn remove(&self, id: &str) -> bool {
        let mut held = self.lock();
        let there = held.services.remove(id).is_some();
        if there {
            held.checks.retain(|_, entry| entry.definition.service_id != id);
        }
        drop(held);
        self.touch();
        there
    }

    /// Tells the mesh what checks found, and takes back services that have been critical too long, for ever.
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
            let mut held = self.lock();
            let waiting = held.checks.iter().filter(|(_, entry)| entry.state.tell() != Tell::No);
            let waiting: Vec<String> = waiting.map(|(id, _)| id.clone()).collect();
            held.dirty.extend(waiting);
            let dead = held.checks.values().filter(|entry| {
                entry.definition.deregister_after.is_some_and(|limit| entry.state.critical_for(limit, now))
            });
            dead.map(|entry| entry.definition.service_id.clone()).filter(|id| !id.is_empty()).collect()
        };
        for id in dead {
            tracing::warn!(service_id = id, "critical for too long: deregistering it");
            // Its owner may have been faster.
            let _ = self.deregister(&id).await;
        }
    }

    fn start(self: &Arc<Self>, held: &mut Registered, definition: Definition, state: State) {
        let definition = Arc::new(definition);
        let (local, run) = (self.clone(), definition.clone());
        let task = tokio::spawn(async move { checks::run(&run, &*local.sockets, &*local).await });
        let task = Task(task.abort_handle());
        if state.tell() == Tell::Now {
            held.dirty.insert(definition.id.clone());
            self.wake.notify_one();
        }
        held.checks.insert(definition.id.clone(), Entry { definition, state, task });
    }

    fn touch(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Registered> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
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
        let held = self.lock();
        if !held.services.contains_key(service_id) {
            return (Status::Critical, format!("Service {service_id} could not be found"));
        }
        let of = |entry: &&Entry| entry.definition.service_id == service_id && entry.definition.id != except;
        let worst = held.checks.values().filter(of).max_by_key(|entry| entry.state.status());
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
        let mut held = self.lock();
        let Some(entry) = held.checks.get_mut(check_id) else { return };
        let before = entry.state.status();
        change(&mut entry.state);
        let after = entry.state.status();
        if before != after {
            self.touch();
            // The first line says it; bodies can be pages.
            let output: String = entry.state.output().lines().next().unwrap_or_default().chars().take(200).collect();
            tracing::info!(check_id, output, "a check went from {} to {}", before.as_str(), after.as_str());
            self.unsaved.notify_one();
        }
        if entry.state.tell() == Tell::Now {
            held.dirty.insert(check_id.to_owned());
            self.wake.notify_one();
        }
    }
}
