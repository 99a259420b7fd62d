//! The discovery stream of one sidecar: its subscriptions, and the changes sent to it.

mod send;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::{Status, Streaming};
use weft_proto::envoy::{DeltaDiscoveryRequest, Node};
use weft_proto::{ENDPOINTS_TYPE, INBOUND_TYPE, SERVICE_TYPE};

use super::names::{Name, first_label};
use super::streams::Stream;
use super::subscription::Subscription;
use super::{Discovery, Reply, Version, short};
use crate::identity::bounds;
use crate::identity::peer::PeerCertificate;
use weft_world::translate;
use weft_world::{Changed, Instance, Pod, Scope, World};

/// The status of a stream that should move to another control plane.
pub(super) const CUT_OFF: &str = "this control plane has lost its store, and its state is stale";
/// Bound on the stored bytes of a refusal's reason.
const MAX_REASON: usize = 1024;
/// The name under which a sidecar subscribes to its own inbound policy.
const SELF: &str = "self";

/// Type of a response, and its hosts, each with the version and the version of the world that it was translated from.
type InFlight = (&'static str, Vec<(Name, Version, u64)>);

pub(super) struct Session {
    id: u64,
    discovery: Arc<Discovery>,
    certified: Arc<PeerCertificate>,
    address: String,
    node: String,
    labels: BTreeMap<String, String>,
    services: Subscription,
    endpoints: Subscription,
    inbound: Option<Version>,
    wants_inbound: bool,
    /// Hosts whose changes concern its own instances.
    own: BTreeSet<Name>,
    /// Bytes of its subscribed names, on the account of its identity.
    subscribed_bytes: usize,
    /// The client's properties that decide its translations, as of the last update.
    scope: Scope,
    /// Responses that were not acknowledged yet: nonce -> type and resources.
    in_flight: HashMap<u64, InFlight>,
    nonce: u64,
    replies: mpsc::Sender<Reply>,
}

impl Session {
    pub(super) fn new(
        id: u64,
        discovery: Arc<Discovery>,
        certified: Arc<PeerCertificate>,
        address: String,
        replies: mpsc::Sender<Reply>,
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
            subscribed_bytes: 0,
            scope: Scope::default(),
            in_flight: HashMap::new(),
            nonce: 0,
            replies,
        }
    }

    pub(super) async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let mut inbox = self.discovery.router().open(self.id);
        let mut cut_off = self.discovery.mesh.cut_off();
        // A stream that began during a loss of the store is better than none.
        cut_off.mark_unchanged();
        let stream = Stream {
            node: String::new(),
            version: String::new(),
            identity: self.certified.id.to_string(),
            address: self.address.clone(),
            since: Instant::now(),
            resources: HashMap::new(),
        };
        self.discovery.lock().open(self.id, stream);
        let left = self.certified.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let identity: Arc<str> = self.certified.id.to_string().into();
        let expiry = tokio::time::sleep(left);
        tokio::pin!(expiry);
        let result = loop {
            // Boxed: the handlers take memory only while they run.
            let step = tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => {
                        self.discovery.pace.keep(&identity).await;
                        Box::pin(self.request(request)).await
                    }
                    _ => break Ok(()),
                },
                changed = inbox.changed() => Box::pin(self.changed(&changed)).await,
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
            // The peer may have gone.
            let _ = self.replies.send(Box::new(Err(status))).await;
        }
        self.end();
    }

    /// Releases the resources of the stream.
    fn end(&mut self) {
        self.discovery.lock().close(self.id);
        let own = std::mem::take(&mut self.own);
        let (services, endpoints) = (std::mem::take(&mut self.services), std::mem::take(&mut self.endpoints));
        let mut router = self.discovery.router();
        for (name, host) in services.names.iter().chain(&endpoints.names) {
            router.unwatch_name(self.id, name);
            host.iter().for_each(|host| router.unwatch(self.id, host));
        }
        for host in &own {
            router.unwatch(self.id, host);
            router.unwatch_name(self.id, host);
        }
        router.set_node(self.id, &self.node, "");
        router.close(self.id);
        drop(router);
        self.discovery.release(&self.certified.id, self.subscribed_bytes);
    }

    async fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if let Some(node) = request.node {
            self.introduce(node)?;
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
                let known = request.initial_resource_versions.get(SELF).and_then(|text| version_of(text));
                self.inbound = known.or(self.inbound);
                return self.send_inbound().await;
            }
            return Ok(());
        }
        let (subscribe, versions) = (&request.resource_names_subscribe, &request.initial_resource_versions);
        let admitted = self.subscription(kind).admit(subscribe.iter(), versions.iter());
        admitted.map_err(|e| self.discovery.refuse(&self.certified.id, &e.0))?;
        for (host, version) in versions {
            if let Some(version) = version_of(version) {
                let host = self.discovery.names.of(host);
                self.subscription(kind).sent.insert(host, version);
            }
        }
        self.unsubscribe(kind, &request.resource_names_unsubscribe);
        if !request.resource_names_subscribe.is_empty() {
            self.subscribe(kind, request.resource_names_subscribe).await?;
        }
        self.subscription(kind).forget_versions();
        Ok(())
    }

    /// Takes the node's name and labels from the first request.
    fn introduce(&mut self, node: Node) -> Result<(), Status> {
        let labels = node.metadata.and_then(|m| m.fields.get("LABELS").cloned());
        let checked = bounds::text("node.id", &node.id, bounds::NAME)
            .and_then(|()| bounds::text("node.user_agent_version", &node.user_agent_version, bounds::NAME));
        checked.map_err(|e| self.discovery.refuse(&self.certified.id, &e.0))?;
        if let Some(prost_types::value::Kind::StructValue(labels)) = labels.and_then(|labels| labels.kind) {
            let text = |v: prost_types::Value| match v.kind {
                Some(prost_types::value::Kind::StringValue(s)) => Some(s),
                _ => None,
            };
            self.labels = labels.fields.into_iter().filter_map(|(k, v)| Some((k, text(v)?))).collect();
            bounds::labels(self.labels.iter()).map_err(|e| self.discovery.refuse(&self.certified.id, &e.0))?;
        }
        self.discovery.router().set_node(self.id, &self.node, &node.id);
        self.node = node.id;
        self.discovery.lock().name(self.id, &self.node, &node.user_agent_version);
        Ok(())
    }

    fn unsubscribe(&mut self, kind: &'static str, names: &[String]) {
        let (mut dropped, mut left) = (Vec::new(), 0);
        let subscription = if kind == ENDPOINTS_TYPE { &mut self.endpoints } else { &mut self.services };
        let mut router = self.discovery.router();
        for name in names {
            // A repeated subscription is answered again.
            subscription.sent.remove(name.as_str());
            if !subscription.names.contains_key(name.as_str()) {
                continue;
            }
            if let Some(host) = subscription.remove(name) {
                if !subscription.hosts.contains_key(&host) {
                    subscription.sent.remove(&host);
                    dropped.push(host.clone());
                }
                router.unwatch(self.id, &host);
            }
            router.unwatch_name(self.id, name);
            left += name.len();
        }
        drop(router);
        self.subscribed_bytes -= left;
        self.discovery.accounts().subtract(&self.certified.id.to_string(), 0, left);
        self.discovery.lock().dropped(self.id, kind, &dropped);
    }

    async fn subscribe(&mut self, kind: &'static str, names: Vec<String>) -> Result<(), Status> {
        // Existing subscriptions are sent again after a change that made it another client.
        self.look_at_self();
        let subscribed_bytes: BTreeSet<Name> = names.iter().map(|name| self.discovery.names.of(name)).collect();
        let known = &self.subscription(kind).names;
        let new: Vec<Name> = subscribed_bytes.iter().filter(|name| !known.contains_key(*name)).cloned().collect();
        let bytes = new.iter().map(|name| name.len()).sum();
        self.discovery.take(&self.certified.id, bytes)?;
        self.subscribed_bytes += bytes;
        // Before the look-up, so that no later change is missed.
        {
            let mut router = self.discovery.router();
            new.iter().for_each(|name| router.watch_name(self.id, name));
        }
        let resolved: Vec<(Name, Option<String>)> = self.discovery.mesh.read(|world| {
            subscribed_bytes
                .into_iter()
                .map(|name| (name.clone(), translate::resolve(world, &self.scope, &name)))
                .collect()
        });
        let mut hosts: BTreeMap<Name, Vec<Name>> = BTreeMap::new();
        let mut absent = Vec::new();
        for (name, host) in resolved {
            let host = host.map(|host| self.discovery.names.of(&host));
            match &host {
                Some(host) => hosts.entry(host.clone()).or_default().push(name.clone()),
                None => absent.push(name.clone()),
            }
            self.mean(kind, name, host);
        }
        self.send(kind, hosts, absent).await
    }

    fn acknowledged(&mut self, kind: &'static str, nonce: &str, refused: Option<String>) {
        let nonce = nonce.parse().unwrap_or_default();
        let Some((_, resources)) = self.in_flight.remove(&nonce) else { return };
        if self.in_flight.is_empty() {
            self.in_flight.shrink_to_fit();
        }
        let refused = refused.map(|reason| cut(&reason, MAX_REASON).to_owned());
        if let Some(reason) = &refused {
            tracing::warn!(node = self.node, kind = short(kind), "refused by the sidecar: {reason}");
        }
        self.discovery.lock().answered(self.id, kind, resources, refused.as_deref());
    }

    /// Its labels: those of the sidecar, of its pod in Kubernetes, and of its registrations.
    fn labels(&self, world: &World) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        labels.extend(self.pod(world).into_iter().flat_map(|pod| pod.labels.clone()));
        for instance in self.instances(world) {
            labels.extend(world.labels_of(instance).clone());
        }
        labels
    }

    fn pod<'a>(&self, world: &'a World) -> Option<&'a Pod> {
        world.pod(self.certified.id.namespace(), &self.node, self.certified.id.as_str())
    }

    fn instances<'a>(&'a self, world: &'a World) -> impl Iterator<Item = &'a Arc<Instance>> {
        let identity = self.certified.id.to_string();
        let all = world.instances_of_node(self.certified.id.namespace(), &self.node);
        all.filter(move |instance| instance.identity == identity)
    }

    /// Updates its scope; returns whether it has become another client for translations.
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
            let mut hosts: BTreeMap<Name, Vec<Name>> = BTreeMap::new();
            let mut absent = Vec::new();
            let touched = self.subscription(kind).touched(changed, other);
            if !touched.is_empty() {
                let resolved: Vec<(Name, Option<String>)> = discovery.mesh.read(|world| {
                    let now = |name: Name| {
                        let host = translate::resolve(world, &scope, &name);
                        (name, host)
                    };
                    touched.into_iter().map(now).collect()
                });
                for (name, host) in resolved {
                    let before = self.subscription(kind).names.get(&name);
                    if before.is_some_and(|before| before.as_deref() == host.as_deref()) {
                        continue;
                    }
                    let host = host.map(|host| discovery.names.of(&host));
                    match &host {
                        Some(host) => hosts.entry(host.clone()).or_default().push(name.clone()),
                        None => absent.push(name.clone()),
                    }
                    self.mean(kind, name, host);
                }
            }
            for host in self.subscription(kind).hosts.keys() {
                if changed.all || other || changed.hosts.contains(&**host) {
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

    /// Whether the inbound policy of its own instances may have changed.
    fn is_of_own(&self, changed: &Changed) -> bool {
        let touched = || self.own.iter().any(|host| changed.hosts.contains(&**host));
        // A host of that name in another namespace changes the host of short names.
        let renamed = |host: &String| self.own.iter().any(|own| first_label(own) == first_label(host));
        changed.all
            || changed.names
            || changed.nodes.contains(&self.node)
            || touched()
            || changed.renamed.iter().any(renamed)
    }

    /// Sets the host of a name, and subscribes to the host's changes.
    fn mean(&mut self, kind: &'static str, name: Name, host: Option<Name>) {
        let new = host.clone();
        let before = self.subscription(kind).set(name, host);
        let mut router = self.discovery.router();
        new.iter().for_each(|host| router.watch(self.id, host));
        before.iter().for_each(|host| router.unwatch(self.id, host));
    }

    /// Sets the hosts whose changes concern its own instances.
    fn set_own(&mut self, own: BTreeSet<Name>) {
        let before = std::mem::replace(&mut self.own, own);
        let mut router = self.discovery.router();
        for host in self.own.difference(&before) {
            router.watch(self.id, host);
            router.watch_name(self.id, host);
        }
        for host in before.difference(&self.own) {
            router.unwatch(self.id, host);
            router.unwatch_name(self.id, host);
        }
    }

    fn subscription(&mut self, kind: &'static str) -> &mut Subscription {
        if kind == ENDPOINTS_TYPE { &mut self.endpoints } else { &mut self.services }
    }
}

/// A version in its form on the wire.
pub(super) fn version_text(version: Version) -> String {
    format!("{version:016x}")
}

/// The version with this text; `None`: it was not sent by a control plane of this program.
fn version_of(text: &str) -> Option<Version> {
    Version::from_str_radix(text, 16).ok()
}

/// The beginning of a text, at most `most` bytes.
fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or_default()).unwrap_or_default()
}

fn known(type_url: &str) -> Option<&'static str> {
    [SERVICE_TYPE, ENDPOINTS_TYPE, INBOUND_TYPE].into_iter().find(|t| *t == type_url)
}
