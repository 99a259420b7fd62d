//! DNS for sidecars, over the connection that they have: the caller's certificate names its namespace.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_proto::v1::DnsMessage;
use weft_proto::v1::dns_server::Dns as DnsApi;

use super::Dns;
use super::packet::Transport;
use crate::peer::Peer;

/// No query is longer.
const MAX_QUERY: usize = 4096;

/// The service.
pub struct DnsService(pub Arc<Dns>);

#[tonic::async_trait]
impl DnsApi for DnsService {
    async fn query(&self, request: Request<DnsMessage>) -> Result<Response<DnsMessage>, Status> {
        let certified = Peer::of(&request)?.certified()?;
        let DnsMessage { packet, tcp } = request.into_inner();
        if packet.len() > MAX_QUERY {
            return Err(Status::invalid_argument(format!(
                "a DNS query of {} bytes ({MAX_QUERY} at most)",
                packet.len()
            )));
        }
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        // Other names a sidecar asks of its own name servers.
        let reply = self.0.handle(&packet, transport, certified.id.namespace(), false).await;
        let packet = reply.ok_or_else(|| Status::invalid_argument("the packet is no DNS query"))?;
        Ok(Response::new(DnsMessage { packet, tcp }))
    }
}
