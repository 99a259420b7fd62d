//! Other data centres. Each has control planes and a store of its own; only summaries of exported services
//! ([`weft_world::translate::summaries`]), and single queries that name the other data centre (`?dc=`,
//! `svc.service.dc2.consul`), cross between them.
//!
//! [`peering`] configures the peers, [`tls`] authenticates both ends, [`link`] connects to one of them, [`service`]
//! answers them. No local write waits for another data centre, and no query is forwarded to a third.

pub mod link;
pub mod peering;
pub mod service;
#[cfg(test)]
mod tests;
pub(crate) mod tls;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use weft_core::failover::Delays;
use weft_proto::v1::federation_server::FederationServer;
use weft_proto::v1::{Answer, PeerDns, PeerGateway, PeerQuestion};

use crate::api::consul::Consul;
use crate::api::dns::Dns;
use crate::api::dns::view::ExportedView;
use crate::api::remote::{NoAnswer, RemoteReads};
use crate::identity::ca::Ca;
use crate::identity::peer;
use crate::sockets;
use crate::state::Mesh;
use crate::state::remotes::Shares;
use link::Link;
use peering::PeerAddress;
use weft_world::{DEFAULT_DATACENTER, Peering};

/// Concurrent streams on a connection of another data centre: its blocking queries.
const STREAMS: u32 = 1024;
/// Time for which the local share of a service must have been lower before some of its requests move; if there is no
/// local endpoint, all move at once.
const AWAY: Duration = Duration::from_secs(10);
/// Changes within this time are handled together.
const SETTLE: Duration = Duration::from_millis(50);

/// Settings of the federation.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of this one.
    pub datacenter: String,
    /// The others, the preferred one first.
    pub peers: Vec<PeerAddress>,
    /// Listener for other control planes.
    pub listen: std::net::SocketAddr,
    /// Addresses through which sidecars of other data centres reach local gateways; none: the connected gateways' own
    /// addresses.
    pub gateways: Vec<PeerGateway>,
    /// Time for which a service must have been available locally before its requests return.
    pub failback: Duration,
    /// Time for which the last summary of a disconnected data centre is kept.
    pub keep: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            datacenter: DEFAULT_DATACENTER.to_owned(),
            peers: Vec::new(),
            listen: ([0, 0, 0, 0], 15022).into(),
            gateways: Vec::new(),
            failback: Duration::from_secs(30),
            keep: Duration::from_secs(24 * 3600),
        }
    }
}

/// This data centre among the others.
pub struct Federation {
    datacenter: String,
    links: Vec<Arc<Link>>,
}

/// The state of another data centre.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its name.
    pub datacenter: String,
    /// Address of its control plane.
    pub address: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Time of its last message; `None`: never.
    pub last_message: Option<SystemTime>,
    /// Number of services that it exports, as far as is known.
    pub services: usize,
    /// The reason why it is not connected.
    pub error: String,
}

impl Federation {
    /// Connects to the peers, and decides the shares of requests.
    ///
    /// # Errors
    /// If a peer is invalid: its root cannot be read, or is that of a trust domain in use.
    pub async fn start(settings: &Settings, mesh: &Arc<Mesh>, ca: &Arc<Ca>) -> Result<Arc<Federation>> {
        let peers = peering::read(&settings.datacenter, ca.trust_domain(), &settings.peers)?;
        mesh.set_peers(&settings.datacenter, peers.iter().map(|(peering, _)| peering.clone()).collect());
        let strangers: Vec<String> = mesh.read(|world| {
            let known = |name: &str| world.peers().iter().any(|peer| peer.datacenter == name);
            world.remote_summaries().map(|(name, ..)| name.to_owned()).filter(|name| !known(name)).collect()
        });
        for datacenter in strangers {
            tracing::info!(datacenter, "it is not a peer any more: its summary is deleted");
            mesh.forget_remote(&datacenter).await?;
        }
        let mut links = Vec::new();
        if !peers.is_empty() {
            let own = peer::own_certificate(ca)?;
            for (peering, address) in peers {
                let link = Link::new(&settings.datacenter, peering, address, own.clone())?;
                tokio::spawn(link.clone().listen(mesh.clone(), settings.keep));
                links.push(link);
            }
            tokio::spawn(fail_over(mesh.clone(), Delays { away: AWAY, back: settings.failback }));
        }
        Ok(Arc::new(Federation { datacenter: settings.datacenter.clone(), links }))
    }

    fn link(&self, datacenter: &str) -> Result<&Arc<Link>, NoAnswer> {
        self.links.iter().find(|link| link.datacenter() == datacenter).ok_or(NoAnswer::Unknown)
    }

    /// The states of the peers.
    pub fn status(&self, mesh: &Mesh) -> Vec<PeerStatus> {
        let summaries: Vec<(String, u64, usize)> = mesh.read(|world| {
            world.remote_summaries().map(|(name, at, services)| (name.to_owned(), at, services)).collect()
        });
        let status = |link: &Arc<Link>| {
            let summaries = summaries.iter().find(|(name, ..)| name == link.datacenter());
            let stored = summaries.map(|(_, received, _)| SystemTime::UNIX_EPOCH + Duration::from_secs(*received));
            let (connected, last_message, error) = link.state();
            PeerStatus {
                datacenter: link.datacenter().to_owned(),
                address: link.address().to_owned(),
                connected,
                last_message: last_message.or(stored),
                services: summaries.map_or(0, |(.., services)| *services),
                error,
            }
        };
        self.links.iter().map(status).collect()
    }

    /// Answers the peers for the life of the process.
    ///
    /// # Errors
    /// If the address is unavailable.
    pub async fn serve(
        self: &Arc<Self>,
        settings: &Settings,
        ca: &Arc<Ca>,
        consul: Arc<Consul>,
        dns: Arc<Dns<ExportedView>>,
    ) -> Result<()> {
        if self.links.is_empty() {
            return Ok(());
        }
        let listener = sockets::listen(settings.listen);
        let listener =
            listener.with_context(|| format!("cannot listen on {} for other data centres", settings.listen))?;
        tracing::info!(address = %settings.listen, datacenter = self.datacenter, "listening for other data centres");
        self.answer(listener, settings.gateways.clone(), ca, consul, dns)
    }

    fn answer(
        self: &Arc<Self>,
        listener: TcpListener,
        gateways: Vec<PeerGateway>,
        ca: &Arc<Ca>,
        consul: Arc<Consul>,
        dns: Arc<Dns<ExportedView>>,
    ) -> Result<()> {
        let peers: Vec<Peering> = self.links.iter().map(|link| link.peering().clone()).collect();
        let incoming = peer::accept_peers(ca, listener, &peers)?;
        let service = service::FederationService::new(self.clone(), consul, dns, gateways);
        let server = Server::builder()
            .max_concurrent_streams(STREAMS)
            .http2_keepalive_interval(Some(Duration::from_secs(5)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .add_service(FederationServer::new(service))
            .serve_with_incoming(ReceiverStream::new(incoming));
        tokio::spawn(async move {
            if let Err(e) = server.await {
                tracing::error!("other data centres are not answered any more: {e}");
            }
        });
        Ok(())
    }
}

#[tonic::async_trait]
impl RemoteReads for Federation {
    fn datacenter(&self) -> &str {
        &self.datacenter
    }

    fn datacenters(&self) -> Vec<&str> {
        std::iter::once(self.datacenter.as_str()).chain(self.links.iter().map(|link| link.datacenter())).collect()
    }

    async fn ask(&self, datacenter: &str, question: PeerQuestion) -> Result<Answer, NoAnswer> {
        self.link(datacenter)?.ask(question).await
    }

    async fn resolve(&self, datacenter: &str, question: PeerDns) -> Result<Vec<u8>, NoAnswer> {
        self.link(datacenter)?.resolve(question).await
    }
}

/// Decides the shares of requests whenever anything has changed, or enough time has passed.
async fn fail_over(mesh: Arc<Mesh>, delays: Delays) {
    let mut events = mesh.events();
    let mut shares = Shares::new();
    let mut touched = None;
    let look = (delays.back / 10).clamp(SETTLE, Duration::from_secs(1));
    loop {
        let waiting = mesh.fail_over(&mut shares, touched.as_ref(), Instant::now(), delays);
        let first = if waiting {
            // Shares also depend on time.
            tokio::time::timeout(look, events.recv()).await.ok()
        } else {
            Some(events.recv().await)
        };
        tokio::time::sleep(SETTLE).await;
        touched = Some(BTreeSet::new());
        let mut next = first;
        while let Some(event) = next {
            match (event, &mut touched) {
                (Ok(changed), Some(hosts)) if !changed.all => hosts.extend(changed.hosts.iter().cloned()),
                (Err(RecvError::Closed), _) => return,
                _ => touched = None,
            }
            next = match events.try_recv() {
                Ok(changed) => Some(Ok(changed)),
                Err(TryRecvError::Lagged(n)) => Some(Err(RecvError::Lagged(n))),
                Err(_) => None,
            };
        }
    }
}
