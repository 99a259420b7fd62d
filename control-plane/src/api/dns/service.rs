//! DNS for sidecars, over their existing connection: the caller's certificate has its namespace.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_proto::v1::DnsMessage;
use weft_proto::v1::dns_server::Dns as DnsApi;

use super::Dns;
use super::packet::Transport;
use super::view::View;
use crate::identity::bounds::Pace;
use crate::identity::peer::Peer;

/// No query is longer.
pub(crate) const MAX_QUERY: usize = 4096;

/// The service.
pub struct DnsService {
    /// Answers.
    pub dns: Arc<Dns>,
    /// Rate of the requests of each identity.
    pub pace: Arc<Pace>,
}

#[tonic::async_trait]
impl DnsApi for DnsService {
    async fn query(&self, request: Request<DnsMessage>) -> Result<Response<DnsMessage>, Status> {
        let peer = Peer::of(&request)?;
        let certified = peer.certified()?;
        let message = request.into_inner();
        let length = message.packet.len();
        if length > MAX_QUERY {
            return Err(Status::invalid_argument(format!("a DNS query of {} bytes (at most {MAX_QUERY})", length)));
        }
        self.pace.keep(&certified.id.to_string().into()).await;
        answer(&self.dns, message, certified.id.namespace()).await
    }
}

/// Answers a caller of a namespace. The sidecar forwards names outside the served zones to its own name servers.
pub(crate) async fn answer<V: View>(
    dns: &Dns<V>,
    message: DnsMessage,
    namespace: &str,
) -> Result<Response<DnsMessage>, Status> {
    let DnsMessage { packet, tcp } = message;
    let transport = if tcp { Transport::Tcp } else { Transport::Udp };
    let reply = dns.handle(&packet, transport, namespace, false).await;
    let packet = reply.ok_or_else(|| Status::invalid_argument("the packet is not a DNS query"))?;
    Ok(Response::new(DnsMessage { packet, tcp }))
}
