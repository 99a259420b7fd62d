//! What a query asks and how it is answered: bytes in, bytes out, no sockets.
//!
//! Only the header and the question are read: what else a query carries (options of newer kinds, cookies) concerns the
//! name server that it is forwarded to, and must not make it unanswerable here.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, HeaderCounts, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::forward::Transport;

/// What every client takes over UDP without saying so.
const UDP_SIZE: u16 = 512;
/// What passes any network in one piece.
const EDNS_SIZE: u16 = 1232;

/// What a packet turned out to be.
#[derive(Debug)]
pub enum Asked {
    /// Nothing that deserves an answer.
    Nothing,
    /// Something that is answered with an error; this one.
    Refused(Vec<u8>),
    /// A question.
    Query(Box<Query>),
}

/// One question.
#[derive(Debug)]
pub struct Query {
    header: Header,
    question: hickory_proto::op::Query,
    /// The name as names are compared: lower case, no trailing dot.
    name: String,
    /// Largest answer over UDP, where the client said so.
    edns_size: Option<u16>,
}

/// What there is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Say {
    /// These addresses, to be kept for so many seconds; those that were not asked for are left out.
    Addresses(Vec<IpAddr>, u32),
    /// There is no such name.
    NoSuchName,
    /// Not now.
    ServerFailure,
}

/// Reads a packet.
pub fn parse(packet: &[u8]) -> Asked {
    let mut decoder = BinDecoder::new(packet);
    let Ok(header) = Header::read(&mut decoder) else { return Asked::Nothing };
    // Answers to answers would go back and forth for ever.
    if header.metadata.message_type == MessageType::Response {
        return Asked::Nothing;
    }
    let refuse = |code| {
        let mut message = Message::error_msg(header.metadata.id, header.metadata.op_code, code);
        message.metadata.recursion_desired = header.metadata.recursion_desired;
        // An error without a question can always be written.
        message.to_vec().map_or(Asked::Nothing, Asked::Refused)
    };
    if header.metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let HeaderCounts { queries: 1, .. } = header.counts else { return refuse(ResponseCode::FormErr) };
    let Ok(question) = hickory_proto::op::Query::read(&mut decoder) else { return refuse(ResponseCode::FormErr) };
    let edns = Message::from_vec(packet).ok().and_then(|message| message.edns);
    let mut name = question.name().to_ascii();
    name.make_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name).to_owned();
    Asked::Query(Box::new(Query { header, question, name, edns_size: edns.map(|e| e.max_payload()) }))
}

impl Query {
    /// The name, if it can be a service's: not one of the Internet's tables, and written as host names are.
    pub fn host(&self) -> Option<&str> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let usual = !self.name.is_empty() && self.name.bytes().all(fine) && !self.name.ends_with(".arpa");
        (usual && self.question.query_class() == DNSClass::IN).then_some(self.name.as_str())
    }

    /// Whether the answer is an address, or something that leads to one past us.
    pub fn leads_to_address(&self) -> bool {
        use RecordType::{A, AAAA, ANY, CNAME, HTTPS, SVCB};
        matches!(self.question.query_type(), A | AAAA | ANY | CNAME | HTTPS | SVCB)
    }

    /// The answer as bytes; `None` where it cannot be written.
    pub fn reply(&self, say: &Say, transport: Transport) -> Option<Vec<u8>> {
        let mut message = Message::response(self.header.metadata.id, OpCode::Query);
        message.metadata.recursion_desired = self.header.metadata.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.header.metadata.checking_disabled;
        message.add_query(self.question.clone());
        if self.edns_size.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(EDNS_SIZE);
            message.set_edns(edns);
        }
        match say {
            Say::NoSuchName => message.metadata.response_code = ResponseCode::NXDomain,
            Say::ServerFailure => message.metadata.response_code = ResponseCode::ServFail,
            Say::Addresses(addresses, ttl) => {
                let records = addresses.iter().filter_map(|address| self.record(*address));
                message.add_answers(records.map(|data| Record::from_rdata(self.question.name().clone(), *ttl, data)));
            }
        }
        let bytes = message.to_vec().ok()?;
        let limit = match transport {
            Transport::Udp => self.edns_size.unwrap_or(UDP_SIZE).clamp(UDP_SIZE, EDNS_SIZE),
            Transport::Tcp => u16::MAX,
        };
        if bytes.len() > usize::from(limit) { message.truncate().to_vec().ok() } else { Some(bytes) }
    }

    /// The record by which an address is told, if that kind was asked for.
    fn record(&self, address: IpAddr) -> Option<RData> {
        let kind = self.question.query_type();
        match address {
            IpAddr::V4(v4) if matches!(kind, RecordType::A | RecordType::ANY) => Some(RData::A(A(v4))),
            IpAddr::V6(v6) if matches!(kind, RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(v6))),
            _ => None,
        }
    }
}
