//! Delta discovery: each sidecar subscribes to the names that its application uses, and receives the resources again
//! whenever they change.
//!
//! There is one task per stream. A change names the hosts that it affects, and wakes the streams that subscribe to one
//! of them (`router`). Resources are translated and encoded once per change and kind of client ([`Scope`]), and shared
//! by all streams. A slow stream misses only intermediate states: it always receives the current one.
//!
//! Names: a client subscribes by the names that its application uses ("order-service", "240.240.0.7:80"); a resource is
//! sent under the canonical name of its host, with the subscribed names as aliases. `removed_resources` is the explicit
//! answer that a name resolves to nothing.

mod names;
mod router;
mod session;
mod streams;
mod subscription;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::Map;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_core::identity::SpiffeId;
use weft_proto::envoy::aggregated_discovery_service_server::AggregatedDiscoveryService;
use weft_proto::envoy::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_proto::v1;
use weft_proto::{ENDPOINTS_TYPE, OTHER_CONTROL_PLANES};

use crate::identity::bounds::{self, Accounts, Pace};
use crate::identity::peer::Peer;
use crate::state::Mesh;
use names::Names;
use router::Router;
use session::Session;
use streams::{Goal, Streams};
use weft_world::translate;
use weft_world::{Host, Scope, World};

/// Bound on the cached encodings.
const MAX_CACHED: usize = 100_000;

/// A version of a resource: a digest of it.
type Version = u64;

/// A resource, encoded once for all of its subscribers.
#[derive(Clone)]
struct Encoded {
    version: Version,
    bytes: Bytes,
    /// Version of the world that it was translated from.
    made_at: u64,
}

impl Encoded {
    fn new(message: &impl Message, made_at: u64) -> Encoded {
        let bytes = Bytes::from(message.encode_to_vec());
        // 0 is no version.
        Encoded { version: xxhash_rust::xxh64::xxh64(&bytes, 0).max(1), bytes, made_at }
    }
}

/// Translations by type, client (of endpoints the namespace that defines the host) and host.
type Cache = HashMap<(&'static str, Scope, String), Encoded>;

/// A message to the client. Boxed, because a channel reserves the space of 32.
type Reply = Box<Result<DeltaDiscoveryResponse, Status>>;

/// The discovery server's state, shared by its streams, by waits for the acknowledgement of a change, and by `weftctl
/// status`.
pub struct Discovery {
    mesh: Arc<Mesh>,
    cache: Mutex<Cache>,
    streams: Mutex<Streams>,
    router: Arc<Mutex<Router>>,
    next: AtomicU64,
    names: Names,
    /// Streams of each identity, and the bytes of the names that they subscribe to.
    accounts: Mutex<Accounts>,
    pace: Pace,
    /// Number of streams, and that at which further ones are sent to other control planes; 0: none are.
    open: AtomicUsize,
    most: usize,
}

impl Discovery {
    /// A server of `mesh`. It must be called within a runtime: it routes changes in the background. Above `most`
    /// streams, sidecars that know other control planes are sent there; 0: never.
    pub fn new(mesh: Arc<Mesh>, most: usize) -> Arc<Discovery> {
        let router = Arc::new(Mutex::new(Router::default()));
        tokio::spawn(router::run(router.clone(), mesh.events()));
        Arc::new(Discovery {
            mesh,
            cache: Mutex::default(),
            streams: Mutex::default(),
            router,
            next: AtomicU64::new(0),
            names: Names::default(),
            accounts: Mutex::default(),
            pace: Pace::default(),
            open: AtomicUsize::new(0),
            most,
        })
    }

    /// Counts the connected sidecars whose node matches, and their states.
    pub fn counts(&self, fits: impl Fn(&str) -> bool) -> Counts {
        let mut counts = Counts::default();
        for stream in self.lock().iter().filter(|stream| fits(&stream.node)) {
            let (refuses, is_behind) = state_of(stream);
            counts.sidecars += 1;
            counts.resources += stream.resources.len();
            counts.refusing += usize::from(refuses);
            counts.behind += usize::from(is_behind);
        }
        counts
    }

    /// Connected sidecars whose node matches, with their resources, `limit` after the first `offset`. If `is_odd` is
    /// given, only sidecars that refuse a resource (with the refused ones only), and those that are odd.
    pub fn status(
        &self,
        fits: impl Fn(&str) -> bool,
        is_odd: impl Fn(&str) -> Option<bool>,
        offset: usize,
        limit: usize,
    ) -> Vec<v1::SidecarStatus> {
        let streams = self.lock();
        let shown =
            streams.iter().filter(|stream| fits(&stream.node)).filter_map(|stream| match is_odd(&stream.node) {
                None => Some((stream, false)),
                Some(odd) => (odd || state_of(stream).0).then_some((stream, true)),
            });
        shown.skip(offset).take(limit).map(|(stream, refused)| status_of(stream, refused)).collect()
    }

    /// The reason why the sidecar of a node has refused the last resource of a host, if it has: it continues with the
    /// previous one.
    pub fn refused(&self, node: &str, host: &str) -> Option<String> {
        let streams = self.lock();
        let resources = streams.iter().filter(|stream| stream.node == node).flat_map(|stream| &stream.resources);
        let mut of_host = resources.filter(|((_, name), _)| **name == *host);
        of_host.find_map(|(_, delivery)| delivery.refused.as_deref().map(str::to_owned))
    }

    /// Waits until every stream with the endpoints of `hosts` has acknowledged or refused the current version, at most
    /// for `wait`. Returns the number of acknowledgements and of streams.
    pub async fn wait_current(&self, hosts: &[String], wait: Duration) -> (u32, u32) {
        let goals = hosts.iter().map(|host| self.goal(host)).collect();
        let (number, done) = self.lock().begin(goals);
        // It also ends when this future is dropped.
        let _waiting = Waiting { discovery: self, number };
        // The missing acknowledgements are counted below.
        let _ = tokio::time::timeout(wait, done.notified()).await;
        self.lock().progress(number)
    }

    /// The current endpoints of a host.
    fn goal(&self, host: &str) -> Goal {
        self.mesh.read_host(host, |world, changed_at| {
            let current = world.definitions(host).filter_map(|one| self.endpoints(world, changed_at, one));
            Goal { host: self.names.of(host), versions: current.map(|encoded| encoded.version).collect(), changed_at }
        })
    }

    /// The current encoding of a host's resource for a client.
    fn encoded(&self, kind: &'static str, client: &Scope, host: &str) -> Option<Encoded> {
        self.mesh.read_host(host, |world, changed_at| {
            if kind == ENDPOINTS_TYPE {
                return self.endpoints(world, changed_at, world.definition(client, host)?);
            }
            let key = (kind, client.clone(), host.to_owned());
            self.cached(key, changed_at, || {
                translate::service(world, client, host).map(|service| Encoded::new(&service, world.version()))
            })
        })
    }

    /// The endpoints of a host, the same for all clients with this definition of it.
    fn endpoints(&self, world: &World, changed_at: u64, host: &Host) -> Option<Encoded> {
        let key = (ENDPOINTS_TYPE, Scope::of(&host.namespace), host.name.clone());
        let version = world.version();
        self.cached(key, changed_at, || Some(Encoded::new(&translate::endpoints(world, host), version)))
    }

    /// The cached encoding, unless the host changed since.
    fn cached(
        &self,
        key: (&'static str, Scope, String),
        changed_at: u64,
        make: impl FnOnce() -> Option<Encoded>,
    ) -> Option<Encoded> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(encoded) = cache.get(&key).filter(|encoded| encoded.made_at >= changed_at) {
            return Some(encoded.clone());
        }
        let encoded = make();
        if cache.len() >= MAX_CACHED {
            // Encodings that are still needed are made again.
            cache.clear();
        }
        match &encoded {
            Some(encoded) => drop(cache.insert(key, encoded.clone())),
            None => drop(cache.remove(&key)),
        }
        encoded
    }

    /// Counts a new stream of an identity, whose sidecar can try `others` further control planes.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if the identity has too many, or this control plane has its share already.
    fn begin(&self, identity: &SpiffeId, others: usize) -> Result<(), Status> {
        // Under this lock, so that the streams that begin at once are counted exactly.
        let mut accounts = self.accounts();
        let (open, most) = (self.open.load(Ordering::Relaxed), self.most);
        if most > 0 && open >= most && others > 0 {
            let text = format!(
                "this control plane serves {open} streams, {most} are its share (--max-streams): the sidecar tries the \
                 next control plane of its list"
            );
            tracing::info!(%identity, "a stream is sent away: {text}");
            return Err(Status::resource_exhausted(text));
        }
        let held = accounts.of(&identity.to_string()).count;
        if held >= bounds::STREAMS {
            drop(accounts);
            return Err(self.refuse(
                identity,
                &format!("it has {held} discovery streams, at most {} are allowed", bounds::STREAMS),
            ));
        }
        accounts.add(&identity.to_string(), 1, 0);
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Releases what [`Discovery::begin`] and [`Discovery::take`] have counted for a stream.
    fn release(&self, identity: &SpiffeId, bytes: usize) {
        self.accounts().subtract(&identity.to_string(), 1, bytes);
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts the bytes of further names of an identity.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if they are too many.
    fn take(&self, identity: &SpiffeId, bytes: usize) -> Result<(), Status> {
        let mut accounts = self.accounts();
        let (held, most) = (accounts.of(&identity.to_string()).bytes, bounds::ASKED_BY_IDENTITY);
        if held + bytes > most {
            drop(accounts);
            let text = format!(
                "it asks for names of {held} bytes on its streams, and {bytes} more are too many: {most} at most"
            );
            return Err(self.refuse(identity, &text));
        }
        accounts.add(&identity.to_string(), 0, bytes);
        Ok(())
    }

    /// Reports an exceeded bound to the peer and in the log.
    fn refuse(&self, identity: &SpiffeId, why: &str) -> Status {
        tracing::warn!(%identity, "discovery refused: {why}");
        self.mesh.out_of_bounds.fetch_add(1, Ordering::Relaxed);
        Status::resource_exhausted(why)
    }

    fn accounts(&self) -> std::sync::MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn router(&self) -> std::sync::MutexGuard<'_, Router> {
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait, which ends when it is dropped.
struct Waiting<'a> {
    discovery: &'a Discovery,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.discovery.lock().end(self.number);
    }
}

/// The discovery service.
pub struct DiscoveryService(pub Arc<Discovery>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for DiscoveryService {
    type DeltaAggregatedResourcesStream =
        Map<ReceiverStream<Reply>, fn(Reply) -> Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = Peer::of(&request)?;
        let certified = peer.certified()?;
        // Time to find another control plane; a sidecar that comes back after that has found none.
        if self.0.mesh.cut_off().borrow().is_some_and(|since| since.elapsed() < ELSEWHERE) {
            return Err(Status::unavailable(session::CUT_OFF));
        }
        let others = request.metadata().get(OTHER_CONTROL_PLANES).and_then(|value| value.to_str().ok()?.parse().ok());
        self.0.begin(&certified.id, others.unwrap_or(0))?;
        let (replies, stream) = mpsc::channel(16);
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let session = Session::new(id, self.0.clone(), certified, peer.remote.to_string(), replies);
        tokio::spawn(session.run(request.into_inner()));
        let unboxed: fn(Reply) -> Result<DeltaDiscoveryResponse, Status> = |reply| *reply;
        Ok(Response::new(ReceiverStream::new(stream).map(unboxed)))
    }
}

/// Numbers of sidecars.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub sidecars: usize,
    /// Resources that were sent to them.
    pub resources: usize,
    /// Sidecars that refuse a resource.
    pub refusing: usize,
    /// Sidecars that have not yet answered an update.
    pub behind: usize,
}

/// Whether a sidecar refuses a resource, and whether an answer is outstanding.
fn state_of(stream: &streams::Stream) -> (bool, bool) {
    let refuses = stream.resources.values().any(|delivery| delivery.refused.is_some());
    let is_late = |delivery: &streams::Delivery| delivery.refused.is_none() && delivery.sent != delivery.acknowledged;
    (refuses, stream.resources.values().any(is_late))
}

/// `refused`: only the refused resources.
fn status_of(stream: &streams::Stream, refused: bool) -> v1::SidecarStatus {
    let text = |version: Version| if version == 0 { String::new() } else { session::version_text(version) };
    let resource = |((kind, name), delivery): (&streams::Resource, &streams::Delivery)| v1::ResourceStatus {
        r#type: short(kind).to_owned(),
        name: name.to_string(),
        sent: text(delivery.sent),
        acknowledged: text(delivery.acknowledged),
        refused: delivery.refused.as_deref().unwrap_or_default().to_owned(),
    };
    let shown = stream.resources.iter().filter(|(_, delivery)| !refused || delivery.refused.is_some());
    let mut resources: Vec<_> = shown.map(resource).collect();
    resources.sort_by(|a, b| (&a.r#type, &a.name).cmp(&(&b.r#type, &b.name)));
    v1::SidecarStatus {
        node: stream.node.clone(),
        identity: stream.identity.clone(),
        address: stream.address.clone(),
        version: stream.version.clone(),
        connected_s: stream.since.elapsed().as_secs(),
        group: String::new(),
        joined: String::new(),
        clock_ahead_ms: 0,
        resources,
    }
}

/// The time for which a control plane that lost its store accepts no streams.
const ELSEWHERE: std::time::Duration = std::time::Duration::from_secs(10);

/// A type without its package, for people.
fn short(type_url: &str) -> &str {
    type_url.rsplit('.').next().unwrap_or(type_url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn above_its_share_a_control_plane_sends_streams_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::state::tests_store(dir.path()).await;
        let mesh = Mesh::open(store, "cluster.local", Duration::from_secs(15)).await.unwrap();
        let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/web".parse().unwrap();
        let discovery = Discovery::new(mesh.clone(), 2);
        discovery.begin(&id, 1).unwrap();
        discovery.begin(&id, 1).unwrap();
        let refused = discovery.begin(&id, 1).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("serves 2 streams, 2 are its share"), "{refused}");
        // No sidecar is left without a control plane.
        discovery.begin(&id, 0).unwrap();
        discovery.release(&id, 0);
        discovery.release(&id, 0);
        discovery.begin(&id, 1).unwrap();
        let unlimited = Discovery::new(mesh, 0);
        assert!((0..9).all(|_| unlimited.begin(&id, 1).is_ok()));
    }
}
