//! The registration stream: the pod's services are announced upstream, and announced again after every reconnect.
//!
//! [`Registrations`] is the wanted state; the stream's task brings the control plane to it. A refused registration is reported
//! to its caller, and dropped.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use weft_core::backoff::Backoff;
use weft_core::clock::unix_ms;
use weft_proto::v1::registry_client::RegistryClient;
use weft_proto::v1::registry_request::Kind;
use weft_proto::v1::{
    Check, CheckUpdate, Deregister, Ejected, Heartbeat, Hello, Instance, RegistryReply, RegistryRequest, Synced,
};
use weft_registry_api::registration::digest;

use weft_agent::datacenter::Datacenter;

use crate::control::connection::Control;
use crate::control::directory::Directory;
use crate::upstream::cluster::ClusterView;

/// Requests that may wait for the stream.
const QUEUE: usize = 256;
/// Ejected endpoints that are reported.
const MAX_EJECTED: usize = 1000;
/// Longest wait for the control plane's answer to a registration.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The pod's registrations, by service id, and checks of the node by check id.
#[derive(Default)]
struct Wanted {
    instances: BTreeMap<String, Instance>,
    node_checks: BTreeMap<String, Check>,
    /// Refusals of registrations that were made while the control plane was away, by service id.
    refused: BTreeMap<String, String>,
}

/// The handle by which the rest of the sidecar registers.
pub struct Registrations {
    wanted: Mutex<Wanted>,
    commands: mpsc::Sender<Command>,
    connected: watch::Receiver<bool>,
}

struct Command {
    kind: Kind,
    done: oneshot::Sender<RegistryReply>,
}

/// The session's side.
pub struct Session {
    registrations: Arc<Registrations>,
    commands: mpsc::Receiver<Command>,
    connected: watch::Sender<bool>,
    directory: Arc<Directory>,
    datacenter: Datacenter,
}

/// A pair of handle and stream. Ejections of the directory's endpoints are reported upstream; the name of the data centre comes
/// from there.
pub fn new(directory: Arc<Directory>, datacenter: Datacenter) -> (Arc<Registrations>, Session) {
    let (sender, commands) = mpsc::channel(QUEUE);
    let (connected, watch) = watch::channel(false);
    let registrations = Arc::new(Registrations { wanted: Mutex::default(), commands: sender, connected: watch });
    (registrations.clone(), Session { registrations, commands, connected, directory, datacenter })
}

impl Registrations {
    /// Registers an instance or changes it. Without a control plane it is kept and announced when one answers.
    ///
    /// # Errors
    /// The control plane's reason for refusing it.
    pub async fn register(&self, instance: Instance) -> Result<(), String> {
        let id = instance.service_id.clone();
        let previous = {
            let mut wanted = self.lock();
            wanted.refused.remove(&id);
            wanted.instances.insert(id.clone(), instance.clone())
        };
        let reply = self.ask(Kind::Register(instance)).await;
        match reply {
            Some(reply) if !reply.error.is_empty() => {
                // A refused registration is not announced again.
                let mut wanted = self.lock();
                match previous {
                    Some(previous) => wanted.instances.insert(id, previous),
                    None => wanted.instances.remove(&id),
                };
                Err(reply.error)
            }
            _ => Ok(()),
        }
    }

    /// Takes an instance back. `wait`: until the sidecars that use it have acknowledged, this long at most. Returns how
    /// many have, and how many there are.
    pub async fn deregister(&self, service_id: &str, wait: Duration) -> Option<(u32, u32)> {
        {
            let mut wanted = self.lock();
            wanted.refused.remove(service_id);
            wanted.instances.remove(service_id)?;
        }
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let reply = self.ask_within(
            Kind::Deregister(Deregister { service_id: service_id.to_owned(), wait_ms }),
            wait + ANSWER_TIMEOUT,
        );
        Some(reply.await.map_or((0, 0), |r| (r.acknowledged, r.subscribers)))
    }

    /// Takes all instances back, as [`Registrations::deregister`].
    pub async fn deregister_all(&self, wait: Duration) -> (u32, u32) {
        self.lock().instances.clear();
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let all = Kind::Deregister(Deregister { service_id: String::new(), wait_ms });
        self.ask_within(all, wait + Duration::from_secs(1)).await.map_or((0, 0), |r| (r.acknowledged, r.subscribers))
    }

    /// Changes or (with `removed`) removes a check of an instance, or of the node where it names no service.
    pub async fn check(&self, check: Check, removed: bool) {
        {
            let mut wanted = self.lock();
            if check.service_id.is_empty() {
                if removed {
                    wanted.node_checks.remove(&check.check_id);
                } else {
                    wanted.node_checks.insert(check.check_id.clone(), check.clone());
                }
            } else if let Some(instance) = wanted.instances.get_mut(&check.service_id) {
                instance.checks.retain(|c| c.check_id != check.check_id);
                if !removed {
                    instance.checks.push(check.clone());
                }
            }
        }
        // A refusal means that the instance has gone meanwhile.
        self.ask(Kind::Check(CheckUpdate { check: Some(check), removed })).await;
    }

    /// The registered services.
    pub fn instances(&self) -> Vec<Instance> {
        self.lock().instances.values().cloned().collect()
    }

    /// Registrations that were accepted while the control plane was away and that it refuses now: service id and reason.
    pub fn refused(&self) -> Vec<(String, String)> {
        self.lock().refused.iter().map(|(id, why)| (id.clone(), why.clone())).collect()
    }

    /// Waits until a session is up, `limit` at most.
    pub async fn wait_connected(&self, limit: Duration) -> bool {
        let mut connected = self.connected.clone();
        tokio::time::timeout(limit, connected.wait_for(|c| *c)).await.is_ok_and(|r| r.is_ok())
    }

    async fn ask(&self, kind: Kind) -> Option<RegistryReply> {
        self.ask_within(kind, ANSWER_TIMEOUT).await
    }

    /// `None`: there is no session now; the next one begins with all that is wanted.
    async fn ask_within(&self, kind: Kind, limit: Duration) -> Option<RegistryReply> {
        if !*self.connected.borrow() {
            return None;
        }
        let (done, answer) = oneshot::channel();
        self.commands.send(Command { kind, done }).await.ok()?;
        tokio::time::timeout(limit, answer).await.ok()?.ok()
    }

    /// The whole wanted state as messages; registrations with their service ids.
    fn all(&self) -> Vec<(Option<String>, Kind)> {
        let mut wanted = self.lock();
        wanted.refused.clear();
        let instances = wanted.instances.iter().map(|(id, i)| (Some(id.clone()), Kind::Register(i.clone())));
        let checks =
            wanted.node_checks.values().map(|check| CheckUpdate { check: Some(check.clone()), removed: false });
        let checks = checks.map(|update| (None, Kind::Check(update)));
        instances.chain(checks).chain([(None, Kind::Synced(Synced {}))]).collect()
    }

    /// Digest of the wanted registrations.
    fn digest(&self) -> u64 {
        let wanted = self.lock();
        digest(wanted.instances.keys().filter(|id| !wanted.refused.contains_key(*id)).map(String::as_str))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Keeps a session up for ever; `reconnect` as in [`crate::control::discovery::run`].
    pub async fn run(mut self, control: Arc<Control>, hello: Hello, mut reconnect: watch::Receiver<u64>) {
        let mut backoff = Backoff::default();
        loop {
            let (started, turn) = (tokio::time::Instant::now(), control.turn());
            let result = self.session(&control, &hello, &mut reconnect).await;
            self.connected.send_replace(false);
            // Waiting callers end as their channels are dropped.
            while self.commands.try_recv().is_ok() {}
            match result {
                Ok(()) => {
                    backoff.reset();
                    continue;
                }
                Err(e) => tracing::warn!("no registry session: {e:#}"),
            }
            control.leave(turn);
            if started.elapsed() > Duration::from_secs(30) {
                backoff.reset();
            }
            tokio::time::sleep(backoff.pause(rand::random())).await;
        }
    }

    async fn session(&mut self, control: &Control, hello: &Hello, reconnect: &mut watch::Receiver<u64>) -> Result<()> {
        reconnect.mark_unchanged();
        let channel = control.connect().await?;
        let (requests, outgoing) = mpsc::channel(QUEUE);
        let mut client = RegistryClient::new(channel);
        let mut stream = Outgoing { requests, last: 0 };
        stream.send(Kind::Hello(hello.clone())).await?;
        let mut replies = client.session(ReceiverStream::new(outgoing)).await?.into_inner();
        let first = replies.next().await.context("the control plane ended the session")??;
        anyhow::ensure!(first.error.is_empty(), "the control plane refused this sidecar: {}", first.error);
        if !first.datacenter.is_empty() {
            self.datacenter.set(&first.datacenter);
        }
        let mut beat: Option<Beat> = None;
        let mut heartbeat = tokio::time::interval(Duration::from_secs(u64::from(first.heartbeat_s.max(1))));
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);

        // The whole wanted state again. A program that registered meanwhile does not wait for a refusal: it is logged, and shown by the
        // agent API.
        let all = self.registrations.all();
        // From here on registrations go by this session.
        self.connected.send_replace(true);
        let mut again = stream.send_all(all).await?;

        let mut waiting: HashMap<u64, oneshot::Sender<RegistryReply>> = HashMap::new();
        loop {
            tokio::select! {
                reply = replies.next() => {
                    let reply = reply.context("the control plane ended the session")??;
                    let answered = beat.take_if(|beat| beat.id == reply.id);
                    if let Some(beat) = &answered {
                        control.identity.clock.measured(beat.sent, reply.now_ms);
                    }
                    let wanted = answered.and_then(|beat| beat.wanted);
                    if wanted.zip(reply.held).is_some_and(|(wanted, held)| wanted != held) {
                        tracing::warn!("the registry holds other services of this node than it wants: all are registered anew");
                        again.extend(stream.send_all(self.registrations.all()).await?);
                    }
                    if let Some(name) = again.remove(&reply.id)
                        && !reply.error.is_empty()
                    {
                        tracing::error!(service_id = name, "registration refused: {}", reply.error);
                        let mut wanted = self.registrations.lock();
                        // Taken back meanwhile, perhaps.
                        if wanted.instances.contains_key(&name) {
                            wanted.refused.insert(name, reply.error.clone());
                        }
                    }
                    if let Some(done) = waiting.remove(&reply.id) {
                        // A caller that gave up needs no answer.
                        let _ = done.send(reply);
                    }
                }
                command = self.commands.recv() => {
                    let Command { kind, done } = command.context("the proxy stops")?;
                    let id = stream.send(kind).await?;
                    waiting.retain(|_, done| !done.is_closed());
                    waiting.insert(id, done);
                }
                _ = heartbeat.tick() => {
                    let ejected = ejected(&self.directory);
                    let sent = SystemTime::now();
                    let id = stream.send(Kind::Heartbeat(Heartbeat { ejected, now_ms: unix_ms(sent) })).await?;
                    // While registrations are on their way both may be right.
                    waiting.retain(|_, done| !done.is_closed());
                    let settled = waiting.is_empty() && again.is_empty();
                    beat = Some(Beat { id, sent, wanted: settled.then(|| self.registrations.digest()) });
                }
                changed = reconnect.changed() => return changed.context("the proxy stops"),
            }
        }
    }
}

/// Endpoints that are ejected now, each once for a service.
fn ejected(directory: &Directory) -> Vec<Ejected> {
    let snapshot = directory.snapshot();
    let of = |cluster: &Arc<ClusterView>| -> Vec<(String, String)> {
        let gone = cluster.endpoints.iter().filter(|endpoint| endpoint.is_ejected());
        gone.map(|endpoint| (cluster.config.host.to_string(), endpoint.key.to_string())).collect()
    };
    // Subsets share their endpoints.
    let all: BTreeSet<(String, String)> = snapshot.clusters().flat_map(of).take(MAX_EJECTED).collect();
    all.into_iter().map(|(host, address)| Ejected { host, address }).collect()
}

/// A heartbeat that has no answer yet.
struct Beat {
    id: u64,
    sent: SystemTime,
    /// Digest of the wanted registrations; `None`: registrations were in progress.
    wanted: Option<u64>,
}

/// The session's requests.
struct Outgoing {
    requests: mpsc::Sender<RegistryRequest>,
    /// Number of the last one.
    last: u64,
}

impl Outgoing {
    /// Sends a request and gives its number.
    async fn send(&mut self, kind: Kind) -> Result<u64> {
        self.last += 1;
        let request = RegistryRequest { id: self.last, kind: Some(kind) };
        self.requests.send(request).await.map_err(|_| anyhow::anyhow!("the session has ended"))?;
        Ok(self.last)
    }

    /// Sends everything that is wanted; gives the numbers of the registrations with their service ids.
    async fn send_all(&mut self, all: Vec<(Option<String>, Kind)>) -> Result<HashMap<u64, String>> {
        let mut registrations = HashMap::new();
        for (service_id, kind) in all {
            let id = self.send(kind).await?;
            registrations.extend(service_id.map(|service_id| (id, service_id)));
        }
        Ok(registrations)
    }
}
