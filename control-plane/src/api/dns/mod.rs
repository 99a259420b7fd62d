//! Consul's DNS interface: the registry under `consul.`, over UDP and TCP, and for sidecars over their own connection.
//!
//! [`packet`] reads questions and writes answers, [`names`] parses names, [`answer`] answers from the registry as
//! [`view`] reads it: all without sockets. [`listen`] serves programs, [`service`] the sidecars, and [`recursors`]
//! forwards names outside `consul.`. Only the messages of hickory are used: its server is built around zones, which the
//! registry does not have.

pub mod answer;
pub mod listen;
pub mod names;
pub mod packet;
pub mod recursors;
pub mod service;
#[cfg(test)]
mod tests;
pub mod view;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use tokio::sync::Semaphore;

use weft_proto::v1::{DnsMessage, PeerDns};

use crate::api::remote::{Alone, RemoteReads};
use crate::state::Mesh;
use answer::Asking;
use names::Subject;
use packet::{Packet, Transport};
use view::{ExportedView, MeshView, View};

/// Options of answers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of this data centre.
    pub datacenter: String,
    /// Time to live of answers, seconds.
    pub service_ttl: u32,
    /// Time to live of negative answers, seconds.
    pub negative_ttl: u32,
    /// Whether instances in warning are left out.
    pub only_passing: bool,
    /// Maximum number of records over UDP for a client without EDNS; 0: as many as fit.
    pub udp_answer_limit: usize,
    /// Name servers for names outside the served zones; none: such names are refused.
    pub recursors: Vec<SocketAddr>,
    /// This server's own address, if other machines can reach it.
    pub address: Option<IpAddr>,
}

impl Default for Settings {
    /// Consul's TTL is 0. One second prevents caching resolvers (of a node or a runtime) from asking for every
    /// connection, and is shorter than the detection of a failed health check.
    fn default() -> Settings {
        Settings {
            datacenter: "dc1".into(),
            service_ttl: 1,
            negative_ttl: 1,
            only_passing: false,
            udp_answer_limit: 0,
            recursors: Vec::new(),
            address: None,
        }
    }
}

/// Answers packets.
pub struct Dns<V = MeshView> {
    view: V,
    settings: Settings,
    /// Asked for names of other data centres.
    federation: Arc<dyn RemoteReads>,
    /// Recursors that do not answer must not delay names of the mesh.
    recursing: Semaphore,
}

/// Concurrent queries to recursors; beyond that they fail.
const RECURSING: usize = 512;

impl Dns {
    /// Serves the registry of `mesh`.
    pub fn new(mesh: Arc<Mesh>, settings: Settings, federation: Arc<dyn RemoteReads>) -> Arc<Dns> {
        Arc::new(Dns { federation, ..Dns::over(MeshView::new(mesh), settings) })
    }
}

impl Dns<ExportedView> {
    /// Serves other data centres: the exported part of `mesh`.
    pub fn exported(mesh: Arc<Mesh>, settings: Settings) -> Arc<Dns<ExportedView>> {
        Arc::new(Dns::over(ExportedView::new(mesh), settings))
    }
}

impl<V: View> Dns<V> {
    fn over(view: V, settings: Settings) -> Dns<V> {
        Dns { view, settings, federation: Alone::shared(), recursing: Semaphore::new(RECURSING) }
    }

    /// The data centre that a query names, if it is another one.
    fn elsewhere(&self, query: &packet::Query) -> Option<String> {
        match names::subject(query.name()) {
            Subject::Of(Some(datacenter), _) if datacenter != self.settings.datacenter => Some(datacenter),
            _ => None,
        }
    }

    /// The answer of other data centres to a prepared query without a local result; `None`: it has one, or they have
    /// none either.
    async fn failover(&self, query: &packet::Query, transport: Transport, namespace: &str) -> Option<Vec<u8>> {
        let (datacenter, name) = match names::subject(query.name()) {
            Subject::Of(datacenter, names::Thing::Query(name)) => (datacenter, name),
            _ => return None,
        };
        if datacenter.is_some_and(|datacenter| datacenter != self.settings.datacenter) {
            return None;
        }
        let others: Vec<&str> =
            self.federation.datacenters().into_iter().filter(|other| *other != self.settings.datacenter).collect();
        let found = self.view.prepared(namespace, &name, &others).filter(|found| found.instances.is_empty())?;
        for other in &found.datacenters {
            let Some(packet) = query.of_service(&found.service, other) else { continue };
            let message = DnsMessage { packet, tcp: transport == Transport::Tcp };
            let question = PeerDns { message: Some(message), namespace: namespace.to_owned() };
            match self.federation.resolve(other, question).await {
                Ok(reply) => {
                    if let Some(reply) = query.adopt(&reply, transport, found.ttl) {
                        return Some(reply);
                    }
                }
                Err(error) => tracing::debug!(datacenter = other, "{error}"),
            }
        }
        None
    }

    /// The answer to a packet of a caller in `namespace`, if it deserves one. Names outside the served zones are
    /// forwarded to the recursors if `recurse` is set, else refused.
    async fn handle(&self, packet: &[u8], transport: Transport, namespace: &str, recurse: bool) -> Option<Vec<u8>> {
        let query = match packet::parse(packet) {
            Packet::Nothing => return None,
            Packet::Refused(reply) => return Some(reply),
            Packet::Query(query) => query,
        };
        if let Some(datacenter) = self.elsewhere(&query) {
            let message = DnsMessage { packet: packet.to_vec(), tcp: transport == Transport::Tcp };
            let question = PeerDns { message: Some(message), namespace: namespace.to_owned() };
            match self.federation.resolve(&datacenter, question).await {
                Ok(reply) => return Some(reply),
                // The answer below is that of Consul: there is no such name.
                Err(error) => tracing::debug!(datacenter, "{error}"),
            }
        }
        if let Some(reply) = self.failover(&query, transport, namespace).await {
            return Some(reply);
        }
        let asking = Asking { view: &self.view, namespace, settings: &self.settings, transport };
        if let Ok(reply) = asking.answer(&query, &mut rand::rng()) {
            return reply;
        }
        let code = if recurse && query.wants_recursion() && !self.settings.recursors.is_empty() {
            if let Ok(_permit) = self.recursing.try_acquire()
                && let Some(reply) = recursors::ask(&self.settings.recursors, packet, transport).await
            {
                return Some(reply);
            }
            ResponseCode::ServFail
        } else {
            ResponseCode::Refused
        };
        let mut message = query.response(code);
        message.metadata.recursion_available = recurse && !self.settings.recursors.is_empty();
        query.pack(message, transport)
    }
}
