//! The meaning of a query and the form of its answer: bytes in, bytes out, no sockets.
//!
//! Only the header and the question are read: the rest (options of newer kinds, cookies) concerns the name server that the
//! query is forwarded to, and must not make it unanswerable here.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, HeaderCounts, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use weft_core::names::SERVICE_SUFFIX;

use crate::resolve::forward::Transport;

/// Largest answer over UDP without EDNS.
const UDP_SIZE: u16 = 512;
/// Largest answer that passes any network in one piece.
const EDNS_SIZE: u16 = 1232;

/// Seconds for which it may be remembered that there is no such name: one that comes is found soon after.
const NO_SUCH_NAME_TTL: u32 = 5;
/// The zone of virtual IPs' names, 240.240.0.0/16.
const VIRTUAL_ZONE: &str = "240.240.in-addr.arpa";

/// A parsed packet.
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
    header: Header,
    question: hickory_proto::op::Query,
    /// The name as names are compared: lower case, no trailing dot.
    name: String,
    /// The client's EDNS options.
    edns: Option<Edns>,
}

/// The content of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Say {
    /// These addresses, with a time to live in seconds; those of another type than the query's are left out.
    Addresses(Vec<IpAddr>, u32),
    /// These places of a service's port, to be kept for so many seconds.
    Places(Vec<Place>, u32),
    /// An address's host name, to be kept for so many seconds.
    Name(String, u32),
    /// There is no such name.
    NoSuchName,
    /// Not now.
    ServerFailure,
}

/// Where a service's port is (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// A host name, whose addresses are additional records.
    pub target: String,
    /// The port there.
    pub port: u16,
    /// The addresses of `target`.
    pub addresses: Vec<IpAddr>,
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
    let mut name = question.name().to_ascii();
    name.make_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name).to_owned();
    Packet::Query(Box::new(Query { header, question, name, edns }))
}

impl Query {
    /// The name, if it can be a service's: not one of the Internet's tables, and written as host names are.
    pub fn host(&self) -> Option<&str> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let usual = !self.name.is_empty() && self.name.bytes().all(fine) && !self.name.ends_with(".arpa");
        (usual && self.question.query_class() == DNSClass::IN).then_some(self.name.as_str())
    }

    /// Whether the query is for an address, or for a record that leads past the proxy to one.
    pub fn leads_to_address(&self) -> bool {
        use RecordType::{A, AAAA, ANY, CNAME, HTTPS, SVCB};
        matches!(self.question.query_type(), A | AAAA | ANY | CNAME | HTTPS | SVCB)
    }

    /// The port and the name of its service, of a question for where a port is (`_port._tcp.service`, SRV). An empty port:
    /// that of another protocol than TCP, which no service has.
    pub fn port_of_service(&self) -> Option<(&str, &str)> {
        let name = self.host().filter(|_| self.question.query_type() == RecordType::SRV)?;
        let (port, rest) = name.strip_prefix('_')?.split_once('.')?;
        let (protocol, service) = rest.strip_prefix('_')?.split_once('.')?;
        Some((if protocol == "tcp" { port } else { "" }, service))
    }

    /// The answer as bytes; `None` where it cannot be written.
    pub fn reply(&self, say: &Say, transport: Transport) -> Option<Vec<u8>> {
        let mut message = Message::response(self.header.metadata.id, OpCode::Query);
        message.metadata.recursion_desired = self.header.metadata.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.header.metadata.checking_disabled;
        message.add_query(self.question.clone());
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(EDNS_SIZE);
            message.set_edns(edns);
        }
        match say {
            Say::NoSuchName => message.metadata.response_code = ResponseCode::NXDomain,
            Say::Places(..) => {}
            Say::ServerFailure => message.metadata.response_code = ResponseCode::ServFail,
            Say::Addresses(addresses, ttl) => {
                let records = addresses.iter().filter_map(|address| self.record(*address));
                message.add_answers(records.map(|data| Record::from_rdata(self.question.name().clone(), *ttl, data)));
            }
            Say::Name(host, ttl) => {
                let is_wanted = matches!(self.question.query_type(), RecordType::PTR | RecordType::ANY);
                let name = host_name(host).filter(|_| is_wanted).map(|name| RData::PTR(PTR(name)));
                message.add_answers(name.map(|data| Record::from_rdata(self.question.name().clone(), *ttl, data)));
            }
        }
        if let Say::Places(places, ttl) = say {
            self.add_places(&mut message, places, *ttl);
        }
        if message.answers.is_empty()
            && let Some(ttl) = negative_ttl(say)
        {
            message.add_authorities(self.authority(ttl));
        }
        let limit = match transport {
            Transport::Udp => self.udp_size().min(EDNS_SIZE),
            Transport::Tcp => u16::MAX,
        };
        if message.to_vec().ok()?.len() > usize::from(limit) {
            // Additional records are dropped first (RFC 2181, 9).
            message.additionals.clear();
        }
        fit(&message, limit)
    }

    /// The SOA of an answer without records: the zone, and for how long the answer holds (RFC 2308, 3). Without it
    /// resolvers remember nothing, and some ask the next server.
    fn authority(&self, ttl: u32) -> Option<Record> {
        let zone = host_name(self.zone())?;
        let of_zone = |label: &str| Name::from_ascii(label).ok()?.append_domain(&zone).ok();
        let soa = SOA::new(of_zone("ns.dns")?, of_zone("hostmaster")?, 1, 7200, 1800, 86_400, ttl);
        Some(Record::from_rdata(zone, ttl, RData::SOA(soa)))
    }

    /// The zone of the mesh that the name is in; of a name that is in none the name itself.
    fn zone(&self) -> &str {
        let zones = [&SERVICE_SUFFIX[1..], "consul", VIRTUAL_ZONE];
        let is_in =
            |zone: &&str| self.name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        zones.into_iter().find(|zone| is_in(zone)).unwrap_or(&self.name)
    }

    /// All of one priority, with the weights of CoreDNS: parts of 100.
    fn add_places(&self, message: &mut Message, places: &[Place], ttl: u32) {
        let weight = u16::try_from(100 / places.len().max(1)).unwrap_or(1).max(1);
        for place in places {
            let Some(target) = host_name(&place.target) else { continue };
            let data = RData::SRV(SRV::new(0, weight, place.port, target.clone()));
            message.add_answer(Record::from_rdata(self.question.name().clone(), ttl, data));
            message.add_additionals(place.addresses.iter().map(|address| {
                let data = match address {
                    IpAddr::V4(v4) => RData::A(A(*v4)),
                    IpAddr::V6(v6) => RData::AAAA(AAAA(*v6)),
                };
                Record::from_rdata(target.clone(), ttl, data)
            }));
        }
    }

    /// The question.
    pub fn question(&self) -> &hickory_proto::op::Query {
        &self.question
    }

    /// Its name as names are compared: lower case, no trailing dot.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the name is one of Consul's.
    pub fn is_of_consul(&self) -> bool {
        self.question.name().iter().next_back().is_some_and(|last| last.eq_ignore_ascii_case(b"consul"))
    }

    /// Whether the name is an address's.
    pub fn is_reverse(&self) -> bool {
        self.name.ends_with(".in-addr.arpa") || self.name.ends_with(".ip6.arpa")
    }

    /// The address of a reverse query (RFC 1035, 3.5; RFC 3596, 2.5).
    pub fn address(&self) -> Option<IpAddr> {
        let net = self.question.name().parse_arpa_name().ok()?;
        (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
    }

    /// Largest answer over UDP that the client takes.
    pub fn udp_size(&self) -> u16 {
        self.edns.as_ref().map_or(UDP_SIZE, |edns| edns.max_payload().max(UDP_SIZE))
    }

    /// Whether the client wants to know of signatures (DO, RFC 3225).
    pub fn dnssec_ok(&self) -> bool {
        self.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
    }

    /// The same question without the client's options, for answers of up to `size` bytes; `None` if it cannot be encoded.
    pub fn to_ask(&self, size: u16) -> Option<Vec<u8>> {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        let mut question = self.question.clone();
        question.set_name(self.question.name().to_lowercase());
        message.add_query(question);
        let mut edns = Edns::new();
        edns.set_max_payload(size).set_dnssec_ok(self.dnssec_ok());
        message.set_edns(edns);
        message.to_vec().ok()
    }

    /// The same question of another name; `None` where it cannot be written.
    pub fn to_ask_for(&self, name: &str) -> Option<Vec<u8>> {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        let mut question = self.question.clone();
        question.set_name(host_name(name)?);
        message.add_query(question);
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(self.udp_size()).set_dnssec_ok(self.dnssec_ok());
            message.set_edns(edns);
        }
        message.to_vec().ok()
    }

    /// The answer to [`Query::to_ask_for`] as one to this query, whose name is an alias of `target` (RFC 1034, 3.6.2).
    pub fn adopt_alias(&self, target: &str, answer: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let mut message = Message::from_vec(answer).ok()?;
        let ttl = message.answers.iter().map(|record| record.ttl).min().unwrap_or(super::TTL);
        let name = RData::CNAME(CNAME(host_name(target)?));
        message.answers.insert(0, Record::from_rdata(self.question.name().clone(), ttl, name));
        self.adopt(message, transport)
    }

    /// An answer to [`Query::to_ask`] as one to this very query.
    pub fn adopt(&self, mut message: Message, transport: Transport) -> Option<Vec<u8>> {
        message.metadata.id = self.header.metadata.id;
        message.metadata.recursion_desired = self.header.metadata.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.header.metadata.checking_disabled;
        message.queries = vec![self.question.clone()];
        let name = self.question.name();
        message.answers.iter_mut().filter(|record| record.name == *name).for_each(|record| record.name = name.clone());
        message.edns = message.edns.take().and_then(|mut answered| {
            let edns = self.edns.as_ref()?;
            if let Some(EdnsOption::Subnet(subnet)) = edns.option(EdnsCode::Subnet) {
                // RFC 7871, 7.2.1: the answer is for all subnets.
                let everybody = ClientSubnet::new(subnet.addr(), subnet.source_prefix(), 0);
                answered.options_mut().insert(EdnsOption::Subnet(everybody));
            }
            Some(answered)
        });
        fit(&message, if transport == Transport::Udp { self.udp_size() } else { u16::MAX })
    }

    /// The record of an address, if the query is for its type.
    fn record(&self, address: IpAddr) -> Option<RData> {
        let kind = self.question.query_type();
        match address {
            IpAddr::V4(v4) if matches!(kind, RecordType::A | RecordType::ANY) => Some(RData::A(A(v4))),
            IpAddr::V6(v6) if matches!(kind, RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(v6))),
            _ => None,
        }
    }
}

/// The time to live of an answer without records; `None`: it is not cached.
fn negative_ttl(say: &Say) -> Option<u32> {
    match say {
        Say::Addresses(_, ttl) | Say::Places(_, ttl) | Say::Name(_, ttl) => Some(*ttl),
        Say::NoSuchName => Some(NO_SUCH_NAME_TTL),
        Say::ServerFailure => None,
    }
}

fn host_name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// The message as bytes; without its records, and saying so, where it is longer than `limit`.
fn fit(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let bytes = message.to_vec().ok()?;
    if bytes.len() > usize::from(limit) { message.truncate().to_vec().ok() } else { Some(bytes) }
}
