//! The writer's side of the directory: everything that is held, and what is wanted.

mod publish;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use prost::Message;
use tokio::sync::{mpsc, oneshot, watch};
use weft_core::compile;
use weft_core::endpoint::EndpointConfig;
use weft_core::inbound::Inbound;
use weft_core::locality::Location;
use weft_core::service::Service;
use weft_proto::envoy::{DeltaDiscoveryResponse, Resource};
use weft_proto::{ENDPOINTS_TYPE, INBOUND_TYPE, SERVICE_TYPE, v1};

use super::{Command, Directory, ServiceView};
use crate::upstream::resolution::Resolution;

/// A name that was not used for this long is dropped.
const UNUSED_FOR: Duration = Duration::from_secs(3600);
/// Names known at once. Beyond that new ones are taken as unknown: a program that calls random hosts must not make us
/// (or the control plane) grow.
const MAX_NAMES: usize = 10_000;
/// How long after a reconnect removals of everything are held back: a control plane that has just lost its state must not empty
/// the sidecar.
const DISTRUST_EMPTY: Duration = Duration::from_secs(60);
/// The name of the workload's inbound policy.
pub(super) const SELF: &str = "self";
/// How long the absence of a name is cached; its creation is pushed at once.
const ABSENT_FOR: Duration = Duration::from_secs(30);

/// One resource as it came.
pub(super) struct Cached<T> {
    pub(super) version: String,
    pub(super) bytes: bytes::Bytes,
    pub(super) compiled: T,
}

/// The writer's side: resources, and the names that are wanted.
pub struct Writer {
    directory: Arc<Directory>,
    /// Where this proxy is.
    location: Arc<Location>,
    /// Whether its configuration has the locality, and not its pod.
    is_placed: bool,
    commands: mpsc::Receiver<Command>,
    /// Names that the application used (and preloaded ones) and, once known, their meanings.
    pub(super) wanted: BTreeMap<Arc<str>, Wanted>,
    pub(super) services: BTreeMap<String, Cached<Arc<Service>>>,
    pub(super) endpoints: BTreeMap<String, Cached<Vec<Arc<EndpointConfig>>>>,
    /// Hosts without endpoints: a complete answer too.
    no_endpoints: BTreeSet<String>,
    pub(super) inbound: Option<Cached<Arc<Inbound>>>,
    views: HashMap<String, Arc<ServiceView>>,
    pub(super) saved: Option<PathBuf>,
    pub(super) unsaved: bool,
    pub(super) saving: Option<tokio::task::JoinHandle<()>>,
    distrust_empty_until: Option<Instant>,
    /// Changes that are held back until then, by type and name; `None`: a removal.
    withheld: BTreeMap<(&'static str, String), Option<Resource>>,
    /// Of names among the endpoints.
    resolution: Option<Resolution>,
}

pub(super) struct Wanted {
    pub(super) host: Option<Option<String>>,
    pub(super) since: Instant,
    pub(super) waiters: Vec<oneshot::Sender<()>>,
    pub(super) preload: bool,
}

/// A change of the subscriptions.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Type URL.
    pub kind: &'static str,
    /// Names to subscribe to.
    pub subscribe: Vec<String>,
    /// Names to drop.
    pub unsubscribe: Vec<String>,
}

/// A directory of a proxy at `place`, and its writer. `saved`: the file that it survives a restart in. `preload`: names to
/// ask for at once.
pub fn new(location: Location, saved: Option<PathBuf>, preload: &[String]) -> (Arc<Directory>, Writer) {
    let (sender, commands) = mpsc::channel(1024);
    let directory = Arc::new(Directory {
        snapshot: ArcSwap::default(),
        commands: sender,
        connected: AtomicBool::new(false),
        ready: watch::Sender::new(false),
        inbound: watch::Sender::new(None),
        start: Instant::now(),
    });
    let wanted = preload.iter().map(|name| {
        let wanted = Wanted { host: None, since: Instant::now(), waiters: Vec::new(), preload: true };
        (Arc::from(name.as_str()), wanted)
    });
    let mut writer = Writer {
        directory: directory.clone(),
        is_placed: !location.locality.is_empty(),
        location: Arc::new(location),
        commands,
        wanted: wanted.collect(),
        services: BTreeMap::new(),
        endpoints: BTreeMap::new(),
        no_endpoints: BTreeSet::new(),
        inbound: None,
        views: HashMap::new(),
        saved,
        unsaved: false,
        saving: None,
        distrust_empty_until: None,
        withheld: BTreeMap::new(),
        resolution: None,
    };
    writer.load();
    (directory, writer)
}

impl Writer {
    /// From now on the names of endpoints are resolved.
    pub fn resolve_with(&mut self, resolution: Resolution) {
        self.resolution = Some(resolution);
        self.publish();
    }

    /// The stream is up or down.
    pub fn set_connected(&mut self, connected: bool) {
        self.directory.connected.store(connected, Ordering::Relaxed);
        if connected {
            // An empty directory cannot be emptied.
            self.distrust_empty_until = (!self.services.is_empty()).then(|| Instant::now() + DISTRUST_EMPTY);
        } else {
            // Look-ups do not wait for a control plane that is away.
            for wanted in self.wanted.values_mut() {
                wanted.waiters.clear();
            }
            while let Ok(Command::Lookup(_, waiter)) = self.commands.try_recv() {
                drop(waiter);
            }
            self.wanted.retain(|_, w| w.host.is_some() || w.preload);
        }
    }

    /// All that is wanted, and the versions that are held: how a stream begins.
    pub fn initial(&self) -> [(Interest, HashMap<String, String>); 3] {
        let subscribe = |kind, names: Vec<String>| Interest { kind, subscribe: names, unsubscribe: Vec::new() };
        let names = self.wanted.keys().map(|n| n.to_string()).collect();
        // Under the names that the application uses too, so that known resources are not sent again.
        let known = self.wanted.iter().filter_map(|(name, w)| {
            let held = self.services.get(w.host.as_ref()?.as_ref()?)?;
            Some((name.to_string(), held.version.clone()))
        });
        let held = self.services.iter().map(|(host, held)| (host.clone(), held.version.clone()));
        let versions = held.chain(known).collect();
        let endpoint_versions =
            self.endpoints.iter().map(|(host, held)| (host.clone(), held.version.clone())).collect();
        let hosts = self.hosts().into_iter().collect();
        let own = self.inbound.iter().map(|held| (SELF.to_owned(), held.version.clone())).collect();
        [
            (subscribe(INBOUND_TYPE, vec![SELF.to_owned()]), own),
            (subscribe(SERVICE_TYPE, names), versions),
            (subscribe(ENDPOINTS_TYPE, hosts), endpoint_versions),
        ]
    }

    /// Waits for the next name that the application asks about, or until a name of an endpoint has other addresses.
    pub async fn next_interest(&mut self) -> Option<Interest> {
        let resolved = async {
            match &mut self.resolution {
                Some(resolution) => resolution.changed().await,
                None => std::future::pending().await,
            }
        };
        let command = tokio::select! {
            command = self.commands.recv() => command?,
            () = resolved => {
                self.publish();
                return Some(Interest::default());
            }
        };
        let Command::Lookup(name, waiter) = command;
        if let Some(wanted) = self.wanted.get_mut(&name) {
            // Another look-up has subscribed meanwhile. Dropping the waiter is the answer: at once when it is there already.
            if !self.directory.snapshot.load().names.contains_key(&name) {
                wanted.waiters.push(waiter);
            }
            return Some(Interest::default());
        }
        if self.wanted.len() >= MAX_NAMES {
            tracing::warn!(%name, "{MAX_NAMES} names are known already, this one is taken as foreign");
            return Some(Interest::default());
        }
        // The canonical name of a resource that is held under another name: the control plane need not send it again.
        let known = self.services.contains_key(&*name);
        let host = known.then(|| Some(name.to_string()));
        let wanted = Wanted { host, since: Instant::now(), waiters: vec![waiter], preload: false };
        self.wanted.insert(name.clone(), wanted);
        if known {
            self.publish();
        }
        Some(Interest { kind: SERVICE_TYPE, subscribe: vec![name.to_string()], unsubscribe: Vec::new() })
    }

    /// Applies a response. Returns new subscriptions, and the refused resources with the reasons; their last versions stay.
    pub fn apply(&mut self, response: DeltaDiscoveryResponse) -> (Vec<Interest>, Option<String>) {
        let mut refused = Vec::new();
        let before = self.hosts();
        match response.type_url.as_str() {
            SERVICE_TYPE => self.apply_services(response, &mut refused),
            ENDPOINTS_TYPE => self.apply_endpoints(response, &mut refused),
            INBOUND_TYPE => {
                for resource in response.resources {
                    if let Err(e) = self.apply_inbound(resource) {
                        refused.push(e);
                    }
                }
            }
            other => refused.push(format!("the type {other:?} is not known here")),
        }
        let interest = self.endpoint_interest(&before);
        self.publish();
        self.unsaved = true;
        let refused = (!refused.is_empty()).then(|| refused.join("; "));
        if let Some(reason) = &refused {
            tracing::error!("refusing resources of the control plane, the last good state stays: {reason}");
        }
        (interest, refused)
    }

    /// Drops names that have not been used for long. To be called from time to time.
    pub fn sweep(&mut self) -> Vec<Interest> {
        let mut interest = self.take_withheld();
        interest.extend(self.drop_unused());
        interest
    }

    /// Applies the changes that were held back: a control plane that has not corrected them since means them.
    fn take_withheld(&mut self) -> Vec<Interest> {
        if self.distrusts_empty() || self.withheld.is_empty() {
            return Vec::new();
        }
        let mut interest = Vec::new();
        let withheld = std::mem::take(&mut self.withheld);
        for kind in [SERVICE_TYPE, ENDPOINTS_TYPE] {
            let mut response = DeltaDiscoveryResponse { type_url: kind.to_owned(), ..Default::default() };
            for ((of, name), resource) in &withheld {
                match resource {
                    _ if *of != kind => {}
                    Some(resource) => response.resources.push(resource.clone()),
                    None => response.removed_resources.push(name.clone()),
                }
            }
            // It was compiled before, with the same refusals.
            interest.extend(self.apply(response).0);
        }
        interest
    }

    fn drop_unused(&mut self) -> Vec<Interest> {
        let snapshot = self.directory.snapshot.load_full();
        let now = self.directory.start.elapsed();
        let unused = |name: &Arc<str>, wanted: &Wanted| {
            if wanted.preload {
                return false;
            }
            let used = snapshot.names.get(name).map(|e| Duration::from_secs(e.used.load(Ordering::Relaxed)));
            let idle = used.map_or(wanted.since.elapsed(), |used| now.saturating_sub(used));
            match &wanted.host {
                Some(Some(_)) => idle > UNUSED_FOR,
                _ => wanted.since.elapsed() > ABSENT_FOR,
            }
        };
        let gone: Vec<Arc<str>> = self.wanted.iter().filter(|(n, w)| unused(n, w)).map(|(n, _)| n.clone()).collect();
        if gone.is_empty() {
            return Vec::new();
        }
        let before = self.hosts();
        for name in &gone {
            self.wanted.remove(name);
        }
        let used: BTreeSet<String> = self.wanted.values().filter_map(|w| w.host.clone().flatten()).collect();
        self.services.retain(|host, _| used.contains(host));
        let mut interest = self.endpoint_interest(&before);
        interest.push(Interest {
            kind: SERVICE_TYPE,
            subscribe: Vec::new(),
            unsubscribe: gone.iter().map(|n| n.to_string()).collect(),
        });
        self.publish();
        self.unsaved = true;
        interest
    }

    fn apply_services(&mut self, response: DeltaDiscoveryResponse, refused: &mut Vec<String>) {
        for resource in response.resources {
            let host = resource.name.clone();
            for name in resource.aliases.iter().chain([&host]) {
                self.withheld.remove(&(SERVICE_TYPE, name.clone()));
            }
            match compile_resource::<v1::Service, _>(&resource, compile::service) {
                Ok(held) => {
                    let held = Cached { compiled: Arc::new(held.compiled), version: held.version, bytes: held.bytes };
                    self.services.insert(host.clone(), held);
                }
                Err(e) => {
                    refused.push(e);
                    if !self.services.contains_key(&host) {
                        // There is nothing to serve: waiting look-ups end at once.
                        self.dismiss(resource.aliases.iter().chain([&host]));
                        continue;
                    }
                }
            }
            for alias in resource.aliases.iter().chain([&host]) {
                if let Some(wanted) = self.wanted.get_mut(alias.as_str()) {
                    wanted.host = Some(Some(host.clone()));
                    wanted.since = Instant::now();
                }
            }
        }
        let keep = self.distrusts_empty();
        for name in response.removed_resources {
            if let Some(wanted) = self.wanted.get_mut(name.as_str()) {
                if keep && matches!(wanted.host, Some(Some(_))) {
                    tracing::warn!(name, "keeping the service: the control plane reconnected less than a minute ago");
                    self.withheld.insert((SERVICE_TYPE, name), None);
                    continue;
                }
                wanted.host = Some(None);
                wanted.since = Instant::now();
            } else if !keep {
                self.services.remove(&name);
            }
        }
    }

    fn apply_endpoints(&mut self, response: DeltaDiscoveryResponse, refused: &mut Vec<String>) {
        let keep = self.distrusts_empty();
        let has_some = |held: Option<&Cached<Vec<Arc<EndpointConfig>>>>| held.is_some_and(|h| !h.compiled.is_empty());
        for resource in response.resources {
            let host = resource.name.clone();
            self.withheld.remove(&(ENDPOINTS_TYPE, host.clone()));
            match compile_resource::<v1::Endpoints, _>(&resource, compile::endpoints) {
                Ok(held) if keep && held.compiled.is_empty() && has_some(self.endpoints.get(&host)) => {
                    tracing::warn!(
                        host,
                        "endpoints kept for now: the control plane has only just come back without any"
                    );
                    self.withheld.insert((ENDPOINTS_TYPE, host), Some(resource));
                }
                Ok(held) => {
                    self.no_endpoints.remove(&host);
                    self.endpoints.insert(host, held);
                }
                Err(e) => {
                    refused.push(e);
                    let waits = |w: &Wanted| w.host.as_ref().and_then(Option::as_ref) == Some(&host);
                    self.wanted.values_mut().filter(|w| waits(w)).for_each(|w| w.waiters.clear());
                }
            }
        }
        for host in response.removed_resources {
            if keep && has_some(self.endpoints.get(&host)) {
                self.withheld.insert((ENDPOINTS_TYPE, host), None);
            } else {
                self.endpoints.remove(&host);
                self.no_endpoints.insert(host);
            }
        }
    }

    fn apply_inbound(&mut self, resource: Resource) -> Result<(), String> {
        let held = compile_resource::<v1::Inbound, _>(&resource, compile::inbound)?;
        let locality = &held.compiled.locality;
        if !self.is_placed && self.location.locality != *locality {
            self.location = Arc::new(Location { locality: locality.clone(), labels: self.location.labels.clone() });
        }
        self.inbound = Some(Cached { compiled: Arc::new(held.compiled), version: held.version, bytes: held.bytes });
        Ok(())
    }

    /// Ends the look-ups that wait for these names.
    fn dismiss<'a>(&mut self, names: impl Iterator<Item = &'a String>) {
        for name in names {
            if let Some(wanted) = self.wanted.get_mut(name.as_str()) {
                wanted.waiters.clear();
            }
        }
    }

    fn distrusts_empty(&self) -> bool {
        self.distrust_empty_until.is_some_and(|until| Instant::now() < until)
    }

    /// Hosts whose endpoints are needed.
    fn hosts(&self) -> BTreeSet<String> {
        let clusters = self.services.values().flat_map(|held| &held.compiled.clusters);
        clusters.filter(|c| c.has_endpoints()).map(|c| c.host.to_string()).collect()
    }

    fn endpoint_interest(&mut self, before: &BTreeSet<String>) -> Vec<Interest> {
        let after = self.hosts();
        let subscribe: Vec<String> = after.difference(before).cloned().collect();
        let unsubscribe: Vec<String> = before.difference(&after).cloned().collect();
        for host in &unsubscribe {
            self.endpoints.remove(host);
            self.no_endpoints.remove(host);
        }
        if subscribe.is_empty() && unsubscribe.is_empty() {
            return Vec::new();
        }
        vec![Interest { kind: ENDPOINTS_TYPE, subscribe, unsubscribe }]
    }
}

fn compile_resource<M: Message + Default, T>(
    resource: &Resource,
    compile: impl Fn(&M) -> Result<T, compile::CompileError>,
) -> Result<Cached<T>, String> {
    let any = resource.resource.as_ref().ok_or_else(|| format!("{} has no content", resource.name))?;
    let message = M::decode(any.value.as_ref()).map_err(|e| format!("{}: {e}", resource.name))?;
    let compiled = compile(&message).map_err(|e| format!("{}: {e}", resource.name))?;
    Ok(Cached { version: resource.version.clone(), bytes: any.value.clone(), compiled })
}

#[cfg(test)]
mod tests;
