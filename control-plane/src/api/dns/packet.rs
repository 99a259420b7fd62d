//! Queries as packets, and answers as packets that fit: bytes in, bytes out, no sockets.
//!
//! Unusual parts of a query besides its question are ignored: they must not prevent an answer.

use std::collections::HashSet;

use hickory_proto::op::{Edns, Header, HeaderCounts, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// The size that every client accepts over UDP (RFC 1035, 2.3.4).
const UDP_SIZE: u16 = 512;
/// The largest offered and sent answer over UDP.
const EDNS_SIZE: u16 = 4096;

/// The transport of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In one packet.
    Udp,
    /// In a stream, with lengths.
    Tcp,
}

/// The result of parsing a packet.
#[derive(Debug)]
pub enum Packet {
    /// Not answered.
    Nothing,
    /// Answered with this error.
    Refused(Vec<u8>),
    /// A question.
    Query(Box<Query>),
}

/// One question.
#[derive(Debug)]
pub struct Query {
    metadata: Metadata,
    question: hickory_proto::op::Query,
    edns: Option<Edns>,
}

/// Reads a packet.
pub fn parse(packet: &[u8]) -> Packet {
    let mut decoder = BinDecoder::new(packet);
    let Ok(header) = Header::read(&mut decoder) else { return Packet::Nothing };
    // Answering answers would create loops.
    if header.metadata.message_type == MessageType::Response {
        return Packet::Nothing;
    }
    let refuse = |code| {
        let mut message = Message::error_msg(header.metadata.id, header.metadata.op_code, code);
        message.metadata.recursion_desired = header.metadata.recursion_desired;
        // An error without a question can always be written.
        message.to_vec().map_or(Packet::Nothing, Packet::Refused)
    };
    if header.metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let HeaderCounts { queries: 1, .. } = header.counts else { return refuse(ResponseCode::FormErr) };
    let Ok(question) = hickory_proto::op::Query::read(&mut decoder) else { return refuse(ResponseCode::FormErr) };
    let edns = Message::from_vec(packet).ok().and_then(|message| message.edns);
    let query = Query { metadata: header.metadata, question, edns };
    let refused = |code| query.pack(query.response(code), Transport::Udp).map_or(Packet::Nothing, Packet::Refused);
    // RFC 6891, 6.1.3.
    if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return refused(ResponseCode::BADVERS);
    }
    let of_internet = matches!(query.question.query_class(), DNSClass::IN | DNSClass::ANY);
    if !of_internet || matches!(query.kind(), RecordType::AXFR | RecordType::IXFR) {
        return refused(ResponseCode::Refused);
    }
    Packet::Query(Box::new(query))
}

impl Query {
    /// The name, in the case of the query.
    pub fn name(&self) -> &Name {
        self.question.name()
    }

    /// The requested type.
    pub fn kind(&self) -> RecordType {
        self.question.query_type()
    }

    /// Whether the query may be forwarded.
    pub fn wants_recursion(&self) -> bool {
        self.metadata.recursion_desired
    }

    /// An answer without records, with the question repeated literally: some clients compare the case (0x20).
    pub fn response(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata.recursion_desired = self.metadata.recursion_desired;
        message.metadata.response_code = code;
        message.add_query(self.question.clone());
        if let Some(requested) = &self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(EDNS_SIZE).set_dnssec_ok(requested.flags().dnssec_ok);
            if let Some(EdnsOption::Subnet(subnet)) = requested.option(EdnsCode::Subnet) {
                // RFC 7871, 7.2.1: the answer does not depend on the client's network.
                let any_network = ClientSubnet::new(subnet.addr(), subnet.source_prefix(), 0);
                edns.options_mut().insert(EdnsOption::Subnet(any_network));
            }
            message.set_edns(edns);
        }
        message
    }

    /// The same question for a service of another data centre, as a packet.
    pub fn of_service(&self, service: &str, datacenter: &str) -> Option<Vec<u8>> {
        let name = Name::from_ascii(format!("{service}.service.{datacenter}.consul.")).ok()?;
        let mut message = Message::new(self.metadata.id, MessageType::Query, OpCode::Query);
        message.add_query(hickory_proto::op::Query::query(name, self.kind()));
        if let Some(edns) = &self.edns {
            message.set_edns(edns.clone());
        }
        message.to_vec().ok()
    }

    /// The answer to [`Query::of_service`] as one to this query; `None`: it has no records.
    pub fn adopt(&self, reply: &[u8], transport: Transport, ttl: Option<u32>) -> Option<Vec<u8>> {
        let theirs = Message::from_vec(reply).ok()?;
        if theirs.metadata.response_code != ResponseCode::NoError || theirs.answers.is_empty() {
            return None;
        }
        let name = theirs.queries.first()?.name().clone();
        let mut message = self.response(ResponseCode::NoError);
        message.metadata.authoritative = true;
        message.metadata.truncation = theirs.metadata.truncation;
        let renamed = theirs.answers.into_iter().map(|mut record| {
            if record.name == name {
                record.name = self.name().clone();
            }
            record.ttl = ttl.unwrap_or(record.ttl);
            record
        });
        message.add_answers(renamed);
        message.add_additionals(theirs.additionals);
        self.pack(message, transport)
    }

    /// Whether the client did not announce a size.
    pub fn is_plain(&self, transport: Transport) -> bool {
        transport == Transport::Udp && self.limit(transport) == usize::from(UDP_SIZE)
    }

    /// Largest answer, in bytes.
    pub fn limit(&self, transport: Transport) -> usize {
        match (transport, &self.edns) {
            (Transport::Udp, Some(edns)) => usize::from(edns.max_payload().clamp(UDP_SIZE, EDNS_SIZE)),
            (Transport::Udp, None) => usize::from(UDP_SIZE),
            (Transport::Tcp, _) => usize::from(u16::MAX),
        }
    }

    /// The answer as bytes, as much of it as fits. Missing answers are marked by TC, over TCP too: a client must not
    /// mistake a part for the whole. Missing additional records are not (RFC 2181, 9).
    pub fn pack(&self, mut message: Message, transport: Transport) -> Option<Vec<u8>> {
        let limit = self.limit(transport);
        let fits = |message: &Message| {
            let bytes = message.to_vec().ok()?;
            // The encoder sets TC itself if even 64 KiB are insufficient.
            let whole = message.metadata.truncation || !weft_core::dns::is_truncated(&bytes);
            (bytes.len() <= limit && whole).then_some(bytes)
        };
        if let Some(bytes) = fits(&message) {
            return Some(bytes);
        }
        // Consul repeats the address of a target for each of its records, until they do not fit.
        remove_repeated(&mut message.additionals);
        if let Some(bytes) = fits(&message) {
            return Some(bytes);
        }
        let additionals = std::mem::take(&mut message.additionals);
        if fits(&message).is_some() {
            return most(additionals.len(), |n| {
                message.additionals = additionals[..n].to_vec();
                fits(&message)
            });
        }
        message.metadata.truncation = true;
        message.authorities.clear();
        let answers = std::mem::take(&mut message.answers);
        most(answers.len(), |n| {
            message.answers = answers[..n].to_vec();
            fits(&message)
        })
    }
}

/// Keeps the first of equal records.
pub(super) fn remove_repeated(records: &mut Vec<Record>) {
    let mut seen: HashSet<(Name, RData)> = HashSet::new();
    records.retain(|record| seen.insert((record.name.clone(), record.data.clone())));
}

/// The result of `make` for the largest number up to `all` that has one; every smaller number has one too.
fn most<T>(all: usize, mut make: impl FnMut(usize) -> Option<T>) -> Option<T> {
    let mut best = make(0)?;
    let (mut low, mut high) = (0, all);
    while low < high {
        let middle = (low + high).div_ceil(2);
        match make(middle) {
            Some(made) => (best, low) = (made, middle),
            None => high = middle - 1,
        }
    }
    Some(best)
}
