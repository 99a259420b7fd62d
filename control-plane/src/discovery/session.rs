//! One sidecar's stream: what it asks for, what it was sent, and what changes of that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::{Status, Streaming};
use weft_proto::envoy::{Any, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use weft_proto::{ENDPOINTS_TYPE, INBOUND_TYPE, SERVICE_TYPE};

use super::streams::Stream;
use super::{Discovery, Encoded, short};
use crate::peer::Certified;
use crate::translate;
use crate::world::{Changed, Instance, Scope, World};

/// Why a stream ends that could go on elsewhere.
pub(super) const CUT_OFF: &str = "this control plane has lost its store, and what it knows grows old";
/// Names that one sidecar may subscribe to, of each type.
const MAX_NAMES: usize = 20_000;
/// Responses that a sidecar may leave without an answer.
const MAX_UNACKNOWLEDGED: usize = 10_000;
/// The name under which a sidecar asks for its own inbound policy.
const SELF: &str = "self";

/// What a stream wants of one type.
#[derive(Default)]
struct Subscription {
    /// Name asked for -> canonical host; `None`: it means nothing, and the client was told.
    names: BTreeMap<String, Option<String>>,
    /// Hosts that names mean, and how many of them do.
    hosts: BTreeMap<String, u32>,
    /// Host -> version that the client has.
    sent: BTreeMap<String, String>,
}

impl Subscription {
    /// Has a name mean `host`; gives the host that it meant before.
    fn set(&mut self, name: String, host: Option<String>) -> Option<String> {
        if let Some(host) = &host {
            *self.hosts.entry(host.clone()).or_default() += 1;
        }
        let before = self.names.insert(name, host).flatten();
        self.forget(before)
    }

    /// A name is not asked for any more; gives the host that it meant.
    fn remove(&mut self, name: &str) -> Option<String> {
        let before = self.names.remove(name).flatten();
        self.forget(before)
    }

    fn forget(&mut self, host: Option<String>) -> Option<String> {
        let host = host?;
        if let Some(count) = self.hosts.get_mut(&host) {
            *count -= 1;
            if *count == 0 {
                self.hosts.remove(&host);
            }
        }
        Some(host)
    }

    /// Names that may mean something else than before; `all`: to another client.
    fn touched(&self, changed: &Changed, all: bool) -> Vec<String> {
        if all || changed.names || changed.all {
            return self.names.keys().cloned().collect();
        }
        // "10.0.0.1:80": names that begin so lie together.
        let at = |address: &IpAddr| {
            let prefix = match address {
                IpAddr::V4(address) => format!("{address}:"),
                IpAddr::V6(address) => format!("[{address}]:"),
            };
            let from = self.names.range(prefix.clone()..).map(|(name, _)| name);
            from.take_while(move |name| name.starts_with(&prefix)).cloned()
        };
        changed.addresses.iter().flat_map(at).collect()
    }
}

/// Type of a response, and the hosts in it, with version and the version of the world that they were made of.
type InFlight = (&'static str, Vec<(String, String, u64)>);

pub(super) struct Session {
    id: u64,
    discovery: Arc<Discovery>,
    certified: Arc<Certified>,
    address: String,
    node: String,
    labels: BTreeMap<String, String>,
    services: Subscription,
    endpoints: Subscription,
    inbound: Option<String>,
    wants_inbound: bool,
    /// Hosts whose changes concern its own instances.
    own: BTreeSet<String>,
    /// What of this client decides what it is told, as of the last look.
    scope: Scope,
    /// Responses that were not acknowledged yet: nonce -> type and resources.
    in_flight: HashMap<String, InFlight>,
    nonce: u64,
    replies: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Session {
    pub(super) fn new(
        id: u64,
        discovery: Arc<Discovery>,
        certified: Arc<Certified>,
        address: String,
        replies: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) -> Session {
        Session {
            id,
            discovery,
            certified,
            address,
            node: String::new(),
            labels: BTreeMap::new(),
            services: Subscription::default(),
            endpoints: Subscription::default(),
            inbound: None,
            wants_inbound: false,
            own: BTreeSet::new(),
            scope: Scope::default(),
            in_flight: HashMap::new(),
            nonce: 0,
            replies,
        }
    }

    pub(super) async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let mut inbox = self.discovery.router().open(self.id);
        let mut cut_off = self.discovery.mesh.cut_off();
        // One that began while it was cut off is better than none.
        cut_off.mark_unchanged();
        let stream = Stream {
            node: String::new(),
            version: String::new(),
            identity: self.certified.id.to_string(),
            address: self.address.clone(),
            since: Instant::now(),
            resources: BTreeMap::new(),
        };
        self.discovery.lock().open(self.id, stream);
        let left = self.certified.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let expiry = tokio::time::sleep(left);
        tokio::pin!(expiry);
        let result = loop {
            let step = tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.request(request).await,
                    _ => break Ok(()),
                },
                changed = inbox.changed() => self.changed(&changed).await,
                changed = cut_off.changed() => match changed {
                    Ok(()) if cut_off.borrow_and_update().is_some() => Err(Status::unavailable(CUT_OFF)),
                    _ => Ok(()),
                },
                () = &mut expiry => Err(Status::unauthenticated("the certificate of this stream has expired; reconnect")),
            };
            if step.is_err() {
                break step;
            }
        };
        if let Err(status) = result {
            // A peer that is gone does not mind.
            let _ = self.replies.send(Err(status)).await;
        }
        self.discovery.lock().close(self.id);
        self.discovery.router().close(self.id);
    }

    async fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if let Some(node) = request.node {
            self.node = node.id;
            if let Some(labels) = node.metadata.and_then(|m| m.fields.get("LABELS").cloned())
                && let Some(prost_types::value::Kind::StructValue(labels)) = labels.kind
            {
                let text = |v: prost_types::Value| match v.kind {
                    Some(prost_types::value::Kind::StringValue(s)) => Some(s),
                    _ => None,
                };
                self.labels = labels.fields.into_iter().filter_map(|(k, v)| Some((k, text(v)?))).collect();
            }
            self.discovery.lock().name(self.id, &self.node, &node.user_agent_version);
            self.discovery.router().set_node(self.id, &self.node);
        }
        let Some(kind) = known(&request.type_url) else {
            return Err(Status::invalid_argument(format!("the type {:?} is not served", request.type_url)));
        };
        if !request.response_nonce.is_empty() {
            self.acknowledged(kind, &request.response_nonce, request.error_detail.map(|e| e.message));
        }
        if kind == INBOUND_TYPE {
            if request.resource_names_subscribe.iter().any(|n| n == SELF) {
                self.wants_inbound = true;
                self.inbound = request.initial_resource_versions.get(SELF).cloned().or(self.inbound.take());
                return self.send_inbound().await;
            }
            return Ok(());
        }
        let subscription = self.subscription(kind);
        for (host, version) in request.initial_resource_versions {
            subscription.sent.insert(host, version);
        }
        let (mut dropped, mut unwatched, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for name in request.resource_names_unsubscribe {
            // Asked for again, it is answered again.
            subscription.sent.remove(&name);
            if !subscription.names.contains_key(&name) {
                continue;
            }
            if let Some(host) = subscription.remove(&name) {
                if !subscription.hosts.contains_key(&host) {
                    subscription.sent.remove(&host);
                    dropped.push(host.clone());
                }
                unwatched.push(host);
            }
            left.extend(address_of(&name));
        }
        {
            let mut router = self.discovery.router();
            unwatched.iter().for_each(|host| router.unwatch(self.id, host));
            left.into_iter().for_each(|address| router.unwatch_address(self.id, address));
        }
        self.discovery.lock().dropped(self.id, kind, &dropped);
        if request.resource_names_subscribe.is_empty() {
            return Ok(());
        }
        let subscription = self.subscription(kind);
        if subscription.names.len() + request.resource_names_subscribe.len() > MAX_NAMES {
            return Err(Status::resource_exhausted(format!("more than {MAX_NAMES} names on one stream")));
        }
        // What it has of before is told anew with the change that made it another client.
        self.look_at_self();
        let asked: BTreeSet<String> = request.resource_names_subscribe.into_iter().collect();
        // Before it is looked up: what changes from here on is heard of.
        let known = &self.subscription(kind).names;
        let new: Vec<IpAddr> =
            asked.iter().filter(|name| !known.contains_key(*name)).filter_map(|name| address_of(name)).collect();
        new.into_iter().for_each(|address| self.discovery.router().watch_address(self.id, address));
        let resolved: Vec<(String, Option<String>)> = self.discovery.mesh.read(|world| {
            asked.into_iter().map(|name| (name.clone(), translate::resolve(world, &self.scope, &name))).collect()
        });
        let mut hosts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut absent = Vec::new();
        for (name, host) in resolved {
            match &host {
                Some(host) => hosts.entry(host.clone()).or_default().push(name.clone()),
                None => absent.push(name.clone()),
            }
            self.mean(kind, name, host);
        }
        self.send(kind, hosts, absent).await
    }

    fn acknowledged(&mut self, kind: &'static str, nonce: &str, refused: Option<String>) {
        let Some((_, resources)) = self.in_flight.remove(nonce) else { return };
        if let Some(reason) = &refused {
            tracing::warn!(node = self.node, kind = short(kind), "refused by the sidecar: {reason}");
        }
        self.discovery.lock().answered(self.id, kind, resources, refused.as_deref());
    }

    /// Its labels: what the sidecar says of itself, and those of what it registered.
    fn labels(&self, world: &World) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        for instance in self.instances(world) {
            labels.extend(world.labels_of(instance).clone());
        }
        labels
    }

    fn instances<'a>(&'a self, world: &'a World) -> impl Iterator<Item = &'a Arc<Instance>> {
        let identity = self.certified.id.to_string();
        let all = world.instances_of_node(self.certified.id.namespace(), &self.node);
        all.filter(move |instance| instance.identity == identity)
    }

    /// Whether it has become another client for translations.
    fn look_at_self(&mut self) -> bool {
        let namespace = self.certified.id.namespace();
        let scope = self.discovery.mesh.read(|world| world.scope(namespace, &self.labels(world)));
        let moved = scope != self.scope;
        self.scope = scope;
        moved
    }

    async fn changed(&mut self, changed: &Changed) -> Result<(), Status> {
        let other = self.look_at_self();
        let (scope, discovery) = (self.scope.clone(), self.discovery.clone());
        for kind in [SERVICE_TYPE, ENDPOINTS_TYPE] {
            let mut hosts: BTreeMap<String, Vec<String>> = BTreeMap::new();
            let mut absent = Vec::new();
            let subscription = self.subscription(kind);
            let touched = subscription.touched(changed, other);
            if !touched.is_empty() {
                let resolved: Vec<(String, Option<String>)> = discovery.mesh.read(|world| {
                    let now = |name: String| {
                        let host = translate::resolve(world, &scope, &name);
                        (name, host)
                    };
                    touched.into_iter().map(now).collect()
                });
                let old = |name: &String| subscription.names.get(name);
                let moved: Vec<_> = resolved.into_iter().filter(|(name, new)| old(name) != Some(new)).collect();
                for (name, host) in moved {
                    match &host {
                        Some(host) => hosts.entry(host.clone()).or_default().push(name.clone()),
                        None => absent.push(name.clone()),
                    }
                    self.mean(kind, name, host);
                }
            }
            for host in self.subscription(kind).hosts.keys() {
                if changed.all || other || changed.hosts.contains(host) {
                    hosts.entry(host.clone()).or_default();
                }
            }
            if !hosts.is_empty() || !absent.is_empty() {
                self.send(kind, hosts, absent).await?;
            }
        }
        if self.wants_inbound && (other || self.is_of_own(changed)) {
            self.send_inbound().await?;
        }
        Ok(())
    }

    /// Whether what is said of its own instances may have changed.
    fn is_of_own(&self, changed: &Changed) -> bool {
        let touched = || changed.hosts.iter().any(|host| self.own.contains(host));
        changed.all || changed.names || changed.nodes.contains(&self.node) || touched()
    }

    /// Has a name mean a host, and hears of what changes of it.
    fn mean(&mut self, kind: &'static str, name: String, host: Option<String>) {
        let new = host.clone();
        let before = self.subscription(kind).set(name, host);
        let mut router = self.discovery.router();
        new.iter().for_each(|host| router.watch(self.id, host));
        before.iter().for_each(|host| router.unwatch(self.id, host));
    }

    /// Sends the hosts whose current version the client does not have, or whose names are new to it.
    async fn send(
        &mut self,
        kind: &'static str,
        hosts: BTreeMap<String, Vec<String>>,
        mut removed: Vec<String>,
    ) -> Result<(), Status> {
        let mut resources = Vec::new();
        let mut versions = Vec::new();
        for (host, aliases) in hosts {
            let Some(encoded) = self.discovery.encoded(kind, &self.scope, &host) else {
                removed.extend(aliases);
                removed.push(host);
                continue;
            };
            let subscription = self.subscription(kind);
            let known = subscription.sent.get(&host) == Some(&encoded.version);
            // A name that the client asked for is answered even when it has the resource under another; unless it said
            // at the stream's beginning that it knows this name with this version.
            if known && aliases.iter().all(|a| *a == host || subscription.sent.get(a) == Some(&encoded.version)) {
                self.discovery.lock().known(self.id, kind, &host, &encoded.version);
                continue;
            }
            subscription.sent.insert(host.clone(), encoded.version.clone());
            versions.push((host.clone(), encoded.version.clone(), encoded.made_at));
            resources.push(Resource {
                version: encoded.version,
                name: host,
                aliases,
                resource: Some(Any { type_url: kind.to_owned(), value: encoded.bytes }),
            });
        }
        if resources.is_empty() && removed.is_empty() {
            return Ok(());
        }
        removed.sort();
        removed.dedup();
        for name in &removed {
            self.subscription(kind).sent.remove(name);
        }
        self.discovery.lock().dropped(self.id, kind, &removed);
        self.deliver(kind, resources, versions, removed).await
    }

    async fn send_inbound(&mut self) -> Result<(), Status> {
        let own = |world: &World| self.instances(world).flat_map(|own| world.concerning(own)).collect::<BTreeSet<_>>();
        self.own = self.discovery.mesh.read(own);
        // Before it is looked up: what changes from here on is heard of.
        self.discovery.router().set_own(self.id, self.own.clone());
        let encoded = self.discovery.mesh.read(|world| {
            let keys: Vec<_> = self.instances(world).map(|i| i.key()).collect();
            let inbound = translate::inbound(world, self.certified.id.namespace(), &self.labels(world), &keys);
            Encoded::new(&inbound, world.version())
        });
        if self.inbound.as_ref() == Some(&encoded.version) {
            return Ok(());
        }
        self.inbound = Some(encoded.version.clone());
        let resource = Resource {
            version: encoded.version.clone(),
            name: SELF.to_owned(),
            aliases: Vec::new(),
            resource: Some(Any { type_url: INBOUND_TYPE.to_owned(), value: encoded.bytes }),
        };
        self.deliver(
            INBOUND_TYPE,
            vec![resource],
            vec![(SELF.to_owned(), encoded.version, encoded.made_at)],
            Vec::new(),
        )
        .await
    }

    async fn deliver(
        &mut self,
        kind: &'static str,
        resources: Vec<Resource>,
        versions: Vec<(String, String, u64)>,
        removed: Vec<String>,
    ) -> Result<(), Status> {
        if self.in_flight.len() >= MAX_UNACKNOWLEDGED {
            return Err(Status::resource_exhausted(format!(
                "{MAX_UNACKNOWLEDGED} responses were neither acknowledged nor refused"
            )));
        }
        self.nonce += 1;
        let nonce = format!("{}", self.nonce);
        self.discovery.lock().sent(self.id, kind, versions.iter().map(|(host, version, _)| (host, version)));
        self.in_flight.insert(nonce.clone(), (kind, versions));
        let response = DeltaDiscoveryResponse {
            system_version_info: self.discovery.mesh.read(World::version).to_string(),
            resources,
            type_url: kind.to_owned(),
            nonce,
            removed_resources: removed,
        };
        self.replies.send(Ok(response)).await.map_err(|_| Status::cancelled("the client has gone"))
    }

    fn subscription(&mut self, kind: &'static str) -> &mut Subscription {
        if kind == ENDPOINTS_TYPE { &mut self.endpoints } else { &mut self.services }
    }
}

/// The address of a name that is one with a port.
fn address_of(name: &str) -> Option<IpAddr> {
    name.parse::<SocketAddr>().ok().map(|address| address.ip())
}

fn known(type_url: &str) -> Option<&'static str> {
    [SERVICE_TYPE, ENDPOINTS_TYPE, INBOUND_TYPE].into_iter().find(|t| *t == type_url)
}
