//! Addresses of names outside the mesh.
//!
//! By `/etc/hosts`, by the name servers, and then by the system's other sources. The name servers are queried by sockets that
//! the redirection leaves alone: the C library's queries would be captured by the proxy's own DNS, which knows the name as a
//! host of the mesh and answers with its virtual IP.

pub mod on_demand;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use rand::seq::IndexedRandom;

use crate::resolve::forward::{Forwarder, Transport};
use crate::resolve::resolv;
use weft_core::target::is_virtual;

/// Addresses, sorted, and their time to live.
pub type Found = (Vec<IpAddr>, Duration);

/// Time to live of an answer without a useful one (from a file or the system's resolver): Istio's `dnsRefreshRate`.
const REFRESH: Duration = Duration::from_secs(60);
/// A time to live counts within these.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);

/// Where to dial `name`: at one of its addresses, drawn, as name servers that list them in turn would have it.
///
/// # Errors
/// When it has no address.
pub async fn socket_address(name: &str, port: u16) -> io::Result<SocketAddr> {
    let found = addresses(name).await.and_then(|(found, _)| found.choose(&mut rand::rng()).copied());
    let address = found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{name} has no address")))?;
    Ok(SocketAddr::new(address, port))
}

/// The addresses of `name`; `None`: no source has any. For names in policies: the system's own look-up may occupy a thread for
/// any time.
pub async fn addresses(name: &str) -> Option<Found> {
    if let Some(found) = listed(name).await {
        return Some(found);
    }
    let found = tokio::net::lookup_host((name, 0)).await.ok()?;
    // The proxy's own DNS may have answered: a virtual IP is not the address of an endpoint.
    let found: BTreeSet<IpAddr> = found.map(|address| address.ip()).filter(|ip| !is_virtual(*ip)).collect();
    (!found.is_empty()).then(|| (found.into_iter().collect(), REFRESH))
}

/// The answer of `/etc/hosts` or of the name servers.
async fn listed(name: &str) -> Option<Found> {
    // One machine, one set of name servers; the file is read again when it changes.
    static SERVERS: LazyLock<Forwarder> = LazyLock::new(|| Forwarder::new(resolv::RESOLV_CONF));
    if let Ok(text) = tokio::fs::read_to_string(resolv::HOSTS).await {
        let found = resolv::addresses_of(&text, name);
        if !found.is_empty() {
            return Some((found, REFRESH));
        }
    }
    for kind in [RecordType::A, RecordType::AAAA] {
        let Some(query) = query(name, kind) else { break };
        let mut answer = SERVERS.ask(&query, Transport::Udp).await;
        if answer.as_deref().is_some_and(weft_core::dns::is_truncated) {
            answer = SERVERS.ask(&query, Transport::Tcp).await;
        }
        if let Some(found) = answer.and_then(|answer| answered(&answer)) {
            return Some(found);
        }
    }
    None
}

fn query(name: &str, kind: RecordType) -> Option<Vec<u8>> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    message.to_vec().ok()
}

/// The addresses of an answer, whichever name the question led to, for as long as the shortest of its records lasts.
fn answered(answer: &[u8]) -> Option<Found> {
    let message = Message::from_vec(answer).ok()?;
    if message.metadata.response_code != ResponseCode::NoError {
        return None;
    }
    let found: BTreeSet<IpAddr> = message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(a) => Some(IpAddr::V6(a.0)),
            _ => None,
        })
        .collect();
    let ttl = message.answers.iter().map(|record| record.ttl).min()?;
    let ttl = Duration::from_secs(ttl.into()).clamp(SHORTEST, LONGEST);
    (!found.is_empty()).then(|| (found.into_iter().collect(), ttl))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Record, rdata};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn answers_have_addresses_and_a_ttl() {
        let name = Name::from_ascii("db.test.").unwrap();
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        let other = Name::from_ascii("real.test.").unwrap();
        message.answers.push(Record::from_rdata(name, 300, RData::CNAME(rdata::CNAME(other.clone()))));
        assert_eq!(answered(&message.to_vec().unwrap()), None);
        for (ttl, last) in [(20, 2), (40, 1)] {
            let address = rdata::A(std::net::Ipv4Addr::new(10, 0, 0, last));
            message.answers.push(Record::from_rdata(other.clone(), ttl, RData::A(address)));
        }
        let both = vec![ip("10.0.0.1"), ip("10.0.0.2")];
        assert_eq!(answered(&message.to_vec().unwrap()), Some((both.clone(), Duration::from_secs(20))));
        message.answers[0].ttl = 0;
        assert_eq!(answered(&message.to_vec().unwrap()), Some((both, SHORTEST)));
        message.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(answered(&message.to_vec().unwrap()), None);
        assert_eq!(answered(b"nonsense"), None);
    }
}
