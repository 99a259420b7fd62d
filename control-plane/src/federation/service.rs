//! The API for other data centres. Callers are their control planes, authenticated by the exchanged root, and see
//! exports only.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Method;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use weft_core::identity::SpiffeId;
use weft_proto::v1::federation_server::Federation as FederationApi;
use weft_proto::v1::{Answer, DnsMessage, PeerDns, PeerGateway, PeerQuestion, Summaries, WatchRequest};

use super::{Federation, link};
use crate::api::catalog;
use crate::api::consul::{self, Consul};
use crate::api::dns::Dns;
use crate::api::dns::service::{MAX_QUERY, answer as answer_dns};
use crate::api::dns::view::ExportedView;
use crate::identity::caller::{Caller, Rights};
use crate::identity::peer::Peer;

/// Longest pause between two messages.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Changes within this time are sent together.
const GATHER: Duration = Duration::from_millis(250);
/// Changes outside the world (such as a new gateway) are noticed within this time.
const LOOK: Duration = Duration::from_secs(1);

/// The service.
pub struct FederationService {
    federation: Arc<Federation>,
    consul: Arc<Consul>,
    dns: Arc<Dns<ExportedView>>,
    gateways: Vec<PeerGateway>,
}

impl FederationService {
    pub(super) fn new(
        federation: Arc<Federation>,
        consul: Arc<Consul>,
        dns: Arc<Dns<ExportedView>>,
        gateways: Vec<PeerGateway>,
    ) -> FederationService {
        FederationService { federation, consul, dns, gateways }
    }

    /// The data centre of a request.
    fn asking<T>(&self, request: &Request<T>) -> Result<(Peer, String), Status> {
        let peer = Peer::of(request)?;
        let certified = peer.certified()?;
        let known = self
            .federation
            .links
            .iter()
            .map(|link| link.peering())
            .find(|peering| SpiffeId::control_plane(&peering.trust_domain).is_ok_and(|id| id == certified.id));
        let known = known.ok_or_else(|| {
            Status::permission_denied(format!("{} is not a control plane of another data centre", certified.id))
        })?;
        Ok((peer, known.datacenter.clone()))
    }
}

#[tonic::async_trait]
impl FederationApi for FederationService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Summaries, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (peer, datacenter) = self.asking(&request)?;
        link::same_name(&request.get_ref().datacenter, &datacenter)
            .map_err(|e| Status::failed_precondition(e.to_string()))?;
        tracing::info!(datacenter, address = %peer.remote, "another data centre has connected");
        let (replies, stream) = mpsc::channel(1);
        let left = peer.certified()?.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let (consul, gateways) = (self.consul.clone(), self.gateways.clone());
        tokio::spawn(async move {
            let outcome = tokio::time::timeout(left, tell(consul, gateways, replies.clone())).await;
            if outcome.is_err() {
                let status = Status::unauthenticated("the certificate of this stream has expired; reconnect");
                // The peer may have gone.
                let _ = replies.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn ask(&self, request: Request<PeerQuestion>) -> Result<Response<Answer>, Status> {
        let (peer, _) = self.asking(&request)?;
        let PeerQuestion { question, namespace, read } = request.into_inner();
        let question = question.ok_or_else(|| Status::invalid_argument("no question"))?;
        let passed = catalog::request_of(question)?;
        if *passed.method() != Method::GET || !consul::is_forwarded(passed.uri().path()) {
            return Err(Status::invalid_argument("only reads of catalog and health are supported across data centres"));
        }
        let rights = Rights::Peer(Arc::new(read));
        let caller = Caller { namespace, identity: String::new(), address: peer.remote, rights };
        let answered = consul::answer(&self.consul, &caller, passed).await;
        Ok(Response::new(catalog::answer_of(answered)))
    }

    async fn resolve(&self, request: Request<PeerDns>) -> Result<Response<DnsMessage>, Status> {
        self.asking(&request)?;
        let PeerDns { message, namespace } = request.into_inner();
        let message = message.ok_or_else(|| Status::invalid_argument("no question"))?;
        if message.packet.len() > MAX_QUERY {
            return Err(Status::invalid_argument(format!("a DNS query has at most {MAX_QUERY} bytes")));
        }
        answer_dns(&self.dns, message, &namespace).await
    }
}

/// Sends all exports at once, and again when they have changed, and heartbeats otherwise.
async fn tell(consul: Arc<Consul>, gateways: Vec<PeerGateway>, replies: mpsc::Sender<Result<Summaries, Status>>) {
    let mut version = consul.mesh.version();
    let mut last_sent: Option<(Summaries, tokio::time::Instant)> = None;
    loop {
        version.mark_unchanged();
        let now = consul.mesh.summaries(&gateways);
        let due = last_sent.as_ref().is_none_or(|(last, at)| *last != now || at.elapsed() >= HEARTBEAT);
        if due {
            if replies.send(Ok(now.clone())).await.is_err() {
                return;
            }
            last_sent = Some((now, tokio::time::Instant::now()));
        }
        tokio::select! {
            changed = version.changed() => match changed {
                Ok(()) => tokio::time::sleep(GATHER).await,
                Err(_) => return,
            },
            () = tokio::time::sleep(LOOK) => {}
            () = replies.closed() => return,
        }
    }
}
