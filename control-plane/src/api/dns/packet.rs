//! Queries as packets, and answers as packets that fit: bytes in, bytes out, no sockets.
//!
//! Of a query that is odd beyond its question only the question is used: it must not be unanswerable for that.

use std::collections::HashSet;

use hickory_proto::op::{Edns, Header, HeaderCounts, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// What every client takes over UDP without saying so (RFC 1035, 2.3.4).
const UDP_SIZE: u16 = 512;
/// The largest answer over UDP that is offered and sent.
const EDNS_SIZE: u16 = 4096;

/// How a query travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In one packet.
    Udp,
    /// In a stream, with lengths.
    Tcp,
}

/// What a packet turned out to be.
#[derive(Debug)]
pub enum Packet {
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
    metadata: Metadata,
    question: hickory_proto::op::Query,
    edns: Option<Edns>,
}

/// Reads a packet.
pub fn parse(packet: &[u8]) -> Packet {
    let mut decoder = BinDecoder::new(packet);
    let Ok(header) = Header::read(&mut decoder) else { return Packet::Nothing };
    // Answers to answers would go back and forth for ever.
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
    /// The name, in the case that it was asked in.
    pub fn name(&self) -> &Name {
        self.question.name()
    }

    /// What is asked for.
    pub fn kind(&self) -> RecordType {
        self.question.query_type()
    }

    /// Whether others may be asked.
    pub fn wants_recursion(&self) -> bool {
        self.metadata.recursion_desired
    }

    /// An answer without records, the question repeated as it came: some clients compare the case (0x20).
    pub fn response(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata.recursion_desired = self.metadata.recursion_desired;
        message.metadata.response_code = code;
        message.add_query(self.question.clone());
        if let Some(asked) = &self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(EDNS_SIZE).set_dnssec_ok(asked.flags().dnssec_ok);
            if let Some(EdnsOption::Subnet(subnet)) = asked.option(EdnsCode::Subnet) {
                // RFC 7871, 7.2.1: the answer is for everybody.
                let everybody = ClientSubnet::new(subnet.addr(), subnet.source_prefix(), 0);
                edns.options_mut().insert(EdnsOption::Subnet(everybody));
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
        let asked = theirs.queries.first()?.name().clone();
        let mut message = self.response(ResponseCode::NoError);
        message.metadata.authoritative = true;
        message.metadata.truncation = theirs.metadata.truncation;
        let renamed = theirs.answers.into_iter().map(|mut record| {
            if record.name == asked {
                record.name = self.name().clone();
            }
            record.ttl = ttl.unwrap_or(record.ttl);
            record
        });
        message.add_answers(renamed);
        message.add_additionals(theirs.additionals);
        self.pack(message, transport)
    }

    /// Whether the client said nothing of how much it takes.
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

    /// The answer as bytes, as much of it as fits. What is left out of the answers is said so by TC, over TCP too: a client
    /// must not take a part for the whole. What is left out of the additional records is not (RFC 2181, 9).
    pub fn pack(&self, mut message: Message, transport: Transport) -> Option<Vec<u8>> {
        let limit = self.limit(transport);
        let fits = |message: &Message| {
            let bytes = message.to_vec().ok()?;
            // The encoder says TC by itself where even 64 KiB are too little.
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

/// Leaves each record once.
pub(super) fn remove_repeated(records: &mut Vec<Record>) {
    let mut seen: HashSet<(Name, RData)> = HashSet::new();
    records.retain(|record| seen.insert((record.name.clone(), record.data.clone())));
}

/// What `make` gives for the largest number up to `all` for which it gives something; it does for every smaller one.
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
