//! Sessions of sidecars: a registration lives as long as the stream, plus a lease.
//!
//! A registration is limited by the certificate of the stream: its services are those of the join token, its address is
//! the one that the stream comes from, its identity is the certificate's.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_core::clock;
use weft_proto::v1::registry_request::Kind;
use weft_proto::v1::registry_server::Registry;
use weft_proto::v1::{self, RegistryReply, RegistryRequest};
use weft_registry_api::registration::group_member;

use crate::discovery::Discovery;
use crate::identity::bounds::{self, Exceeded, Pace};
use crate::identity::grants::{Grants, Names};
use crate::identity::peer::{Peer, PeerCertificate};
use crate::state::{Mesh, Node, Refusal};

const CUT_OFF: &str = "this control plane has lost its store";
/// Bound on the requests of a session that wait for the current one.
const QUEUE: usize = 16;
/// Bound on the stored ejected endpoints of one sidecar.
const MAX_EJECTED: usize = 1000;

/// The registry service.
pub struct RegistryService {
    /// The registry.
    pub mesh: Arc<Mesh>,
    /// Waits for the acknowledgement of a removal.
    pub discovery: Arc<Discovery>,
    /// Services that certificates grant.
    pub grants: Arc<Grants>,
    /// Rate of the requests of an identity.
    pub pace: Arc<Pace>,
}

#[tonic::async_trait]
impl Registry for RegistryService {
    type SessionStream = ReceiverStream<Result<RegistryReply, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<RegistryRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = Peer::of(&request)?;
        let certified = peer.certified()?;
        if self.mesh.cut_off().borrow().is_some() {
            return Err(Status::unavailable(CUT_OFF));
        }
        let (replies, stream) = mpsc::channel(16);
        let session = Session {
            mesh: self.mesh.clone(),
            discovery: self.discovery.clone(),
            grants: self.grants.clone(),
            granted: None,
            pace: self.pace.clone(),
            peer,
            certified,
            open: None,
            registered: BTreeSet::new(),
        };
        tokio::spawn(session.run(request.into_inner(), replies));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Waits until this control plane has lost its store.
async fn is_cut_off(cut_off: &mut watch::Receiver<Option<Instant>>) {
    if cut_off.wait_for(Option::is_some).await.is_err() {
        std::future::pending().await
    }
}

/// The next request; those that arrived meanwhile come first.
async fn next(
    waiting: &mut VecDeque<Result<RegistryRequest, Status>>,
    requests: &mut Streaming<RegistryRequest>,
) -> Option<Result<RegistryRequest, Status>> {
    match waiting.pop_front() {
        Some(request) => Some(request),
        None => requests.next().await,
    }
}

struct Session {
    mesh: Arc<Mesh>,
    discovery: Arc<Discovery>,
    grants: Arc<Grants>,
    /// Services of the certificate; read with the first registration.
    granted: Option<Names>,
    pace: Arc<Pace>,
    peer: Peer,
    certified: Arc<PeerCertificate>,
    /// Node name and session number, after hello.
    open: Option<(String, u64)>,
    registered: BTreeSet<String>,
}

impl Session {
    async fn run(
        mut self,
        mut requests: Streaming<RegistryRequest>,
        replies: mpsc::Sender<Result<RegistryReply, Status>>,
    ) {
        let left = self.certified.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let expiry = tokio::time::sleep(left);
        tokio::pin!(expiry);
        let identity: Arc<str> = self.certified.id.to_string().into();
        let mut waiting = VecDeque::new();
        let mut cut_off = self.mesh.cut_off();
        loop {
            let request = tokio::select! {
                request = next(&mut waiting, &mut requests) => request,
                () = is_cut_off(&mut cut_off) => {
                    // The peer may have gone.
                    let _ = replies.send(Err(Status::unavailable(CUT_OFF))).await;
                    break;
                }
                () = &mut expiry => {
                    let status = Status::unauthenticated("the certificate of this stream has expired; reconnect");
                    // The peer may have gone.
                    let _ = replies.send(Err(status)).await;
                    break;
                }
            };
            let Some(Ok(request)) = request else { break };
            let id = request.id;
            self.pace.keep(&identity).await;
            let handled = self.handle_attentively(request, &mut waiting, &mut requests).await;
            if matches!(handled, Err(Refusal::Exceeded(_))) {
                self.mesh.out_of_bounds.fetch_add(1, Ordering::Relaxed);
            }
            let mut reply = match handled {
                Ok(reply) => reply,
                Err(Refusal::Because(error) | Refusal::Exceeded(Exceeded(error))) => {
                    tracing::warn!(peer = %self.certified.id, address = %self.peer.remote, "refused: {error}");
                    RegistryReply { error, ..Default::default() }
                }
                Err(Refusal::SessionOver) => {
                    tracing::info!(peer = %self.certified.id, "ending a superseded session");
                    let _ = replies.send(Err(Status::aborted(Refusal::SessionOver.to_string()))).await;
                    break;
                }
                Err(Refusal::Store(e)) => {
                    // The request is valid: the sidecar returns, or connects to another control plane, and registers
                    // everything again.
                    tracing::error!(peer = %self.certified.id, "its session ends: {e}");
                    let _ = replies.send(Err(Status::unavailable(e.to_string()))).await;
                    break;
                }
            };
            reply.id = id;
            if replies.send(Ok(reply)).await.is_err() {
                break;
            }
        }
        if let Some((node, session)) = &self.open {
            self.mesh.disconnected(node, *session).await;
        }
    }

    /// Handles a request, and receives others meanwhile: a slow store must not make the sidecar look silent.
    async fn handle_attentively(
        &mut self,
        request: RegistryRequest,
        waiting: &mut VecDeque<Result<RegistryRequest, Status>>,
        requests: &mut Streaming<RegistryRequest>,
    ) -> Result<RegistryReply, Refusal> {
        let (open, mesh) = (self.open.clone(), self.mesh.clone());
        let handling = self.handle(request);
        tokio::pin!(handling);
        loop {
            tokio::select! {
                handled = &mut handling => return handled,
                Some(request) = requests.next(), if waiting.len() < QUEUE => {
                    if let Some((node, session)) = &open {
                        mesh.heard(node, *session);
                    }
                    waiting.push_back(request);
                }
            }
        }
    }

    async fn handle(&mut self, request: RegistryRequest) -> Result<RegistryReply, Refusal> {
        let kind = request.kind.ok_or("an empty request")?;
        if let Kind::Hello(hello) = kind {
            return self.hello(hello).await;
        }
        let (node, session) = self.open.clone().ok_or("hello must come first")?;
        match kind {
            Kind::Hello(_) => {}
            Kind::Heartbeat(mut heartbeat) => {
                heartbeat.ejected.truncate(MAX_EJECTED);
                heartbeat.ejected.retain(|ejected| ejected.host.len() + ejected.address.len() <= 512);
                let now_ms = clock::unix_ms(SystemTime::now());
                // Sidecars of earlier versions do not report their time.
                let said = Some(heartbeat.now_ms).filter(|ms| *ms > 0);
                let ahead_ms = said.and_then(|ms| clock::ahead_ms(ms, ms, now_ms)).unwrap_or_default();
                self.mesh.set_reported(&node, session, heartbeat.ejected, ahead_ms);
                if !self.mesh.renew(&node, session).await {
                    return Err(Refusal::SessionOver);
                }
                return Ok(RegistryReply { held: self.mesh.registrations_digest(&node), now_ms, ..Default::default() });
            }
            Kind::Register(instance) => {
                self.check(&instance).await?;
                let id = instance.service_id.clone();
                self.mesh.register(&node, session, instance).await?;
                self.registered.insert(id);
            }
            Kind::Check(update) => {
                update.check.as_ref().map_or(Ok(()), bounds::check)?;
                self.mesh.update_check(&node, session, update).await?;
            }
            Kind::Synced(_) => {
                let ids: Vec<String> = self.registered.iter().cloned().collect();
                self.mesh.keep_only(&node, session, &ids).await?;
            }
            Kind::Deregister(deregister) => {
                let hosts = self.mesh.deregister(&node, session, &deregister.service_id).await?;
                if deregister.service_id.is_empty() {
                    self.registered.clear();
                } else {
                    self.registered.remove(&deregister.service_id);
                }
                if deregister.wait_ms > 0 {
                    let wait = Duration::from_millis(deregister.wait_ms.min(60_000));
                    let (acknowledged, subscribers) = self.discovery.wait_current(&hosts, wait).await;
                    return Ok(RegistryReply { subscribers, acknowledged, ..Default::default() });
                }
            }
        }
        Ok(RegistryReply::default())
    }

    async fn hello(&mut self, hello: v1::Hello) -> Result<RegistryReply, Refusal> {
        if self.open.is_some() {
            return Err("hello must come only once".into());
        }
        let plain = |s: &str| !s.is_empty() && s.len() <= 253 && s.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if !plain(&hello.node) {
            let text = format!("{:?} is not a node name (1 to 253 printable characters without /)", hello.node);
            return Err(text.into());
        }
        bounds::hello(&hello)?;
        for claimed in hello.addresses.iter().take(16) {
            if claimed.parse().ok() != Some(self.peer.remote) {
                tracing::debug!(node = hello.node, "ignoring the claimed address {claimed}");
            }
        }
        let id = &self.certified.id;
        let node = Node {
            workload: hello.workload,
            locality: hello.locality,
            labels: hello.labels.into_iter().collect(),
            ..Node::new(id.namespace(), id.to_string(), self.peer.remote)
        };
        let session = self.mesh.begin_session(&hello.node, node).await?;
        self.open = Some((hello.node, session));
        let heartbeat_s = u32::try_from(self.mesh.lease.as_secs() / 3).unwrap_or(u32::MAX).max(1);
        let datacenter = self.mesh.read(|world| world.datacenter().to_owned());
        Ok(RegistryReply { heartbeat_s, datacenter, ..Default::default() })
    }

    async fn check(&mut self, instance: &v1::Instance) -> Result<(), Refusal> {
        if !instance.group.is_empty() {
            return Ok(joins(instance)?);
        }
        let service = &instance.service;
        let granted = match &self.granted {
            Some(granted) => granted.clone(),
            None => self.grants.names(&self.certified.services).await.map_err(|e| e.to_string())?,
        };
        self.granted = Some(granted.clone());
        if !granted.contains(&service.to_ascii_lowercase()) {
            let (id, named) = (&self.certified.id, &self.certified.services);
            let count =
                if granted.len() > named.len() { format!(" ({} services)", granted.len()) } else { String::new() };
            let text = format!("{id} may not register the service {service:?}: its token names {named:?}{count}");
            return Err(text.into());
        }
        super::fits(instance)?;
        bounds::instance(instance)?;
        if self.registered.len() >= bounds::INSTANCES && !self.registered.contains(&instance.service_id) {
            return Err(Exceeded(format!("one sidecar may register at most {} instances", bounds::INSTANCES)).into());
        }
        Ok(())
    }
}

/// Checks that a WorkloadGroup member sets only the group and one check. Membership is decided whenever the group
/// changes (`world/groups.rs`), and sent with the inbound policy of the sidecar.
///
/// # Errors
/// If it sets another field; the error names it.
fn joins(instance: &v1::Instance) -> Result<(), String> {
    if instance.group.len() > 253 || !instance.group.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("{:?} is not the name of a WorkloadGroup", instance.group));
    }
    let plain = v1::Instance { checks: instance.checks.clone(), ..group_member(&instance.group) };
    if *instance != plain || instance.checks.len() > 1 {
        return Err(
            "a WorkloadGroup member may set only the group and one check: the WorkloadGroup has all other fields"
                .into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_member_sets_only_the_group_and_one_check() {
        let member = group_member("vms");
        let check = v1::Check::default();
        assert_eq!(joins(&member), Ok(()));
        assert_eq!(joins(&v1::Instance { checks: vec![check.clone()], ..member.clone() }), Ok(()));
        for wrong in [
            v1::Instance { service: "order".into(), ..member.clone() },
            v1::Instance { service_id: "another".into(), ..member.clone() },
            v1::Instance { port: 80, ..member.clone() },
            v1::Instance { address: "10.0.0.1".into(), ..member.clone() },
            v1::Instance { meta: [("version".to_owned(), "v1".to_owned())].into(), ..member.clone() },
            v1::Instance { checks: vec![check.clone(), check], ..member },
            group_member("a b"),
            group_member(&"a".repeat(254)),
        ] {
            assert!(joins(&wrong).is_err(), "{wrong:?}");
        }
    }
}
