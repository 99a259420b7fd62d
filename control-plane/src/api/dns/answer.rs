//! Answers: a question and the registry in, a packet out. Randomness is an argument.
//!
//! The additional section follows Consul's rules: one address per SRV record, so that clients that take them in turn
//! (HAProxy) have one for each; the metadata of the node (`node_meta_txt`); the address of a name whose other types are
//! queried.
//!
//! A draining instance, or one with a critical check, is not listed. The name exists only while one instance is listed:
//! Consul's clients read "no such name" as "none is healthy".

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use rand::Rng;
use rand::seq::SliceRandom;
use weft_proto::v1::Health;

use super::Settings;
use super::names::{self, Subject, Thing};
use super::packet::{self, Query, Transport};
use super::view::{NodeEntry, View};
use weft_world::Instance;

/// Bytes of the smallest records, an IPv4 address and a target such as `a.node.b.consul`, with their owners as
/// pointers: they bound the number of records in an answer, so that a large service costs no more than a packet.
const SMALLEST_ADDRESS: usize = 16;
const SMALLEST_SRV: usize = 35;
/// Times of the domain's SOA in seconds, as in Consul: refresh, retry, expire.
const SOA_TIMES: (i32, i32, i32) = (3600, 600, 86400);

/// The result of a look-up.
enum LookUp {
    /// The name exists; its records of the requested type, and those that a client will need next.
    Records { answers: Vec<RData>, authorities: Vec<Record>, additionals: Vec<Record> },
    /// The same, with a time to live in seconds.
    WithTtl(Box<LookUp>, u32),
    /// There is no such name.
    NoSuchName,
}

/// A query's context: the caller, and the data for the answer.
pub struct Asking<'a, V> {
    /// The registry.
    pub view: &'a V,
    /// The caller's namespace.
    pub namespace: &'a str,
    /// Options of answers.
    pub settings: &'a Settings,
    /// The transport of the query.
    pub transport: Transport,
}

impl<V: View> Asking<'_, V> {
    /// The answer as a packet; `Err`: the name is outside the served zones.
    pub fn answer(&self, query: &Query, rng: &mut impl Rng) -> Result<Option<Vec<u8>>, NotServed> {
        let found = self.find(query, rng)?;
        let settings = self.settings;
        let mut message = query.response(ResponseCode::NoError);
        message.metadata.authoritative = true;
        message.metadata.recursion_available = !settings.recursors.is_empty();
        let mut truncated = false;
        let (found, ttl) = match found {
            LookUp::WithTtl(found, ttl) => (*found, ttl),
            found => (found, settings.service_ttl),
        };
        match found {
            // It is unwrapped above, and never nested.
            LookUp::WithTtl(..) => {}
            LookUp::NoSuchName => message.metadata.response_code = ResponseCode::NXDomain,
            LookUp::Records { mut answers, authorities, mut additionals } => {
                let limit = settings.udp_answer_limit;
                if limit > 0 && query.is_plain(self.transport) && answers.len() > limit {
                    answers.truncate(limit);
                    additionals.retain(|record| answers.iter().any(|data| leads_to(data, &record.name)));
                    packet::remove_repeated(&mut additionals);
                    truncated = true;
                }
                let owner = query.name();
                message.add_authorities(authorities);
                message.add_answers(answers.into_iter().map(|data| Record::from_rdata(owner.clone(), ttl, data)));
                message.add_additionals(additionals);
            }
        }
        message.metadata.truncation = truncated;
        if message.answers.is_empty() {
            // RFC 2308: its minimum is the time to live of negative answers.
            let soa = self.soa();
            message.add_authorities(
                soa.map(|(domain, soa)| Record::from_rdata(domain, settings.negative_ttl, RData::SOA(soa))),
            );
        }
        Ok(query.pack(message, self.transport))
    }

    fn find(&self, query: &Query, rng: &mut impl Rng) -> Result<LookUp, NotServed> {
        let kind = query.kind();
        let (datacenter, thing) = match names::subject(query.name()) {
            Subject::Outside => return Err(NotServed),
            Subject::Reverse(address) => return self.reverse(kind, address),
            Subject::Apex => return Ok(self.apex(kind)),
            Subject::NameServer => return Ok(records(of_kind(kind, self.settings.address))),
            Subject::Of(datacenter, thing) => (datacenter, thing),
        };
        // Another data centre was queried before this, if it is reachable.
        if datacenter.is_some_and(|datacenter| datacenter != self.settings.datacenter) {
            return Ok(LookUp::NoSuchName);
        }
        let limit = query.limit(self.transport);
        Ok(match thing {
            Thing::Nothing => LookUp::NoSuchName,
            Thing::Between => records(Vec::new()),
            Thing::Service { name, tag } => self.service(kind, &name, tag.as_deref(), limit, rng),
            Thing::Connect(name) => {
                let mut usable = self.usable(&name);
                // Instances with an identity accept mutual TLS.
                usable.retain(|instance| !instance.identity.is_empty());
                self.instances(kind, usable, limit, rng)
            }
            Thing::Virtual(name) => match self.view.virtual_ips(self.namespace, &name) {
                none if none.is_empty() => LookUp::NoSuchName,
                addresses => self.addresses(kind, query.name(), &addresses),
            },
            Thing::Node(name) => match self.view.node(self.namespace, &name) {
                Some(node) => self.node(kind, query.name(), &node),
                None => LookUp::NoSuchName,
            },
            Thing::Query(name) => self.prepared(kind, &name, limit, rng),
            Thing::Address(address) => self.addresses(kind, query.name(), &[address]),
        })
    }

    fn service(&self, kind: RecordType, name: &str, tag: Option<&str>, limit: usize, rng: &mut impl Rng) -> LookUp {
        let mut usable = self.usable(name);
        if let Some(tag) = tag {
            usable.retain(|instance| instance.tags.iter().any(|own| own.eq_ignore_ascii_case(tag)));
        }
        self.instances(kind, usable, limit, rng)
    }

    /// The local result of a prepared query; if it is empty, other data centres were queried before this.
    fn prepared(&self, kind: RecordType, name: &str, limit: usize, rng: &mut impl Rng) -> LookUp {
        let Some(found) = self.view.prepared(self.namespace, name, &[]) else { return LookUp::NoSuchName };
        let records = self.instances(kind, found.instances, limit, rng);
        match found.ttl {
            Some(ttl) => LookUp::WithTtl(Box::new(records), ttl),
            None => records,
        }
    }

    /// The listed instances of a service.
    fn usable(&self, service: &str) -> Vec<Arc<Instance>> {
        let mut instances = self.view.instances(self.namespace, service);
        // An instance of unknown health lost its lease together with too many others, which is the control plane's
        // fault.
        instances.retain(|instance| matches!(instance.health(), Health::Healthy | Health::Unknown));
        if self.settings.only_passing {
            instances.retain(|instance| instance.checks.iter().all(|check| check.status == "passing"));
            let names: Vec<&str> = instances.iter().map(|instance| instance.node.as_str()).collect();
            let nodes = self.view.nodes(&names);
            let mut passing = nodes.into_iter().map(|node| node.is_none_or(|node| node.passing));
            instances.retain(|_| passing.next().unwrap_or(true));
        }
        instances
    }

    /// The records of instances, as many as might fit in `limit` bytes, in an order that is drawn anew for each query.
    fn instances(&self, kind: RecordType, mut all: Vec<Arc<Instance>>, limit: usize, rng: &mut impl Rng) -> LookUp {
        if all.is_empty() {
            return LookUp::NoSuchName;
        }
        all.shuffle(rng);
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        let addresses = all.iter().map(|instance| instance.address).filter(|address| seen.insert(*address));
        answers
            .extend(addresses.filter_map(|address| address_record(kind, address)).take(limit / SMALLEST_ADDRESS + 1));
        if matches!(kind, RecordType::SRV | RecordType::ANY) {
            let mut seen = BTreeSet::new();
            all.retain(|instance| seen.insert((instance.address, instance.port)));
            all.truncate(limit / SMALLEST_SRV + 1);
            let names: Vec<&str> = all.iter().map(|instance| instance.node.as_str()).collect();
            let nodes = self.view.nodes(&names);
            let mut metadata = BTreeMap::new();
            for (instance, node) in all.iter().zip(&nodes) {
                let node = node.as_ref();
                let name_of = |node: &NodeEntry| self.under(&node.name, "node");
                // At its node's own address it is named by the node, if the node's name is valid in DNS.
                let of_node = node.filter(|node| node.address == instance.address).and_then(name_of);
                let of_address = || names::address_name(instance.address, &self.settings.datacenter);
                let Some(target) = of_node.or_else(of_address) else { continue };
                let weight = u16::try_from(instance.weight.max(1)).unwrap_or(u16::MAX);
                answers.push(RData::SRV(SRV::new(1, weight, instance.port, target.clone())));
                additionals.extend(self.additional_address(&target, instance.address));
                if let Some((node, name)) = node.and_then(|node| Some((node, name_of(node)?))) {
                    metadata.entry(name).or_insert(&node.meta);
                }
            }
            // After the addresses: records that do not fit are removed from the end.
            let ttl = self.settings.service_ttl;
            let texts = metadata.into_iter().flat_map(|(name, meta)| meta.iter().map(move |pair| (name.clone(), pair)));
            additionals.extend(texts.map(|(name, (key, value))| Record::from_rdata(name, ttl, text(key, value))));
        }
        LookUp::Records { answers, authorities: Vec::new(), additionals }
    }

    /// The addresses of the requested type; for other types they are additional.
    fn addresses(&self, kind: RecordType, name: &Name, addresses: &[IpAddr]) -> LookUp {
        let mut found = records(of_kind(kind, addresses.iter().copied()));
        if let LookUp::Records { answers, additionals, .. } = &mut found
            && answers.is_empty()
        {
            additionals.extend(addresses.iter().filter_map(|address| self.additional_address(name, *address)));
        }
        found
    }

    /// The address of a node, and its metadata as TXT: the type that was not requested is additional.
    fn node(&self, kind: RecordType, name: &Name, node: &NodeEntry) -> LookUp {
        let texts = node.meta.iter().map(|(key, value)| text(key, value));
        let mut answers = of_kind(kind, [node.address]);
        let mut additionals = Vec::new();
        match kind {
            RecordType::ANY => answers.extend(texts),
            RecordType::TXT => {
                answers.extend(texts);
                additionals.extend(self.additional_address(name, node.address));
            }
            _ => {
                let ttl = self.settings.service_ttl;
                additionals.extend(texts.map(|data| Record::from_rdata(name.clone(), ttl, data)));
            }
        }
        LookUp::Records { answers, authorities: Vec::new(), additionals }
    }

    fn additional_address(&self, name: &Name, address: IpAddr) -> Option<Record> {
        let data = address_record(RecordType::ANY, address)?;
        Some(Record::from_rdata(name.clone(), self.settings.service_ttl, data))
    }

    /// Nodes first, as in Consul: an address has one name, and a node's is more lasting.
    fn reverse(&self, kind: RecordType, address: IpAddr) -> Result<LookUp, NotServed> {
        let under = |kind| move |name: &String| self.under(name, kind);
        let mut names: Vec<Name> =
            self.view.nodes_at(self.namespace, address).iter().filter_map(under("node")).collect();
        if names.is_empty() {
            names = self.view.services_at(self.namespace, address).iter().filter_map(under("service")).collect();
        }
        if names.is_empty() {
            return Err(NotServed);
        }
        let is_pointer = matches!(kind, RecordType::PTR | RecordType::ANY);
        Ok(records(names.into_iter().filter(|_| is_pointer).map(|name| RData::PTR(PTR(name))).collect()))
    }

    fn apex(&self, kind: RecordType) -> LookUp {
        let (mut answers, mut authorities, mut additionals) = (Vec::new(), Vec::new(), Vec::new());
        if matches!(kind, RecordType::SOA | RecordType::ANY) {
            answers.extend(self.soa().map(|(_, soa)| RData::SOA(soa)));
        }
        if matches!(kind, RecordType::NS | RecordType::SOA | RecordType::ANY)
            && let Some(server) = name_server()
        {
            let address = self.settings.address;
            additionals.extend(address.and_then(|address| self.additional_address(&server, address)));
            let data = RData::NS(NS(server));
            // A client that asks for the SOA asks for the domain's name servers next (RFC 1034, 4.3.2).
            match (kind, self.soa()) {
                (RecordType::SOA, Some((domain, _))) => {
                    authorities.push(Record::from_rdata(domain, self.settings.service_ttl, data));
                }
                _ => answers.push(data),
            }
        }
        LookUp::Records { answers, authorities, additionals }
    }

    /// The domain and its SOA.
    fn soa(&self) -> Option<(Name, SOA)> {
        let domain = Name::from_ascii(format!("{}.", names::DOMAIN)).ok()?;
        let mailbox = Name::from_ascii(format!("hostmaster.{}.", names::DOMAIN)).ok()?;
        // Serial numbers wrap around (RFC 1982).
        #[allow(clippy::cast_possible_truncation)]
        let serial = self.view.version() as u32;
        let (refresh, retry, expire) = SOA_TIMES;
        let soa = SOA::new(name_server()?, mailbox, serial, refresh, retry, expire, self.settings.negative_ttl);
        Some((domain, soa))
    }

    fn under(&self, name: &str, kind: &str) -> Option<Name> {
        names::under(name, kind, &self.settings.datacenter)
    }
}

/// The name is outside the served zones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotServed;

fn leads_to(data: &RData, name: &Name) -> bool {
    matches!(data, RData::SRV(srv) if srv.target == *name)
}

fn records(answers: Vec<RData>) -> LookUp {
    LookUp::Records { answers, authorities: Vec::new(), additionals: Vec::new() }
}

/// The address records of the requested type.
fn of_kind(kind: RecordType, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<RData> {
    addresses.into_iter().filter_map(|address| address_record(kind, address)).collect()
}

/// A pair of metadata in Consul's form: `key=value` by RFC 1464, or only the value if the key begins with `rfc1035-`.
fn text(key: &str, value: &str) -> RData {
    let text = if key.get(..RAW.len()).is_some_and(|start| start.eq_ignore_ascii_case(RAW)) {
        value.to_owned()
    } else {
        let key = key.replace('`', "``").replace('=', "`=");
        format!("{}={}", quoted_ends(&key), value.replace('`', "``"))
    };
    // A character-string has 255 bytes (RFC 1035, 3.3.14).
    let strings: Vec<&[u8]> = if text.is_empty() { vec![b""] } else { text.as_bytes().chunks(255).collect() };
    RData::TXT(TXT::from_bytes(strings))
}

/// Keys of metadata whose value is a whole record.
const RAW: &str = "rfc1035-";

/// Readers of RFC 1464 would drop blanks at either end of a key.
fn quoted_ends(key: &str) -> String {
    let blank = |c: char| c == ' ' || c == '\t';
    let middle = key.trim_matches(blank);
    let (before, after) = match key.find(middle).filter(|_| !middle.is_empty()) {
        Some(at) => (&key[..at], &key[at + middle.len()..]),
        None => (key, ""),
    };
    let quoted = |blanks: &str| blanks.chars().flat_map(|c| ['`', c]).collect::<String>();
    format!("{}{middle}{}", quoted(before), quoted(after))
}

fn name_server() -> Option<Name> {
    Name::from_ascii(format!("ns.{}.", names::DOMAIN)).ok()
}

/// The record of an address, if its type was requested.
fn address_record(kind: RecordType, address: IpAddr) -> Option<RData> {
    match address {
        IpAddr::V4(v4) if matches!(kind, RecordType::A | RecordType::ANY) => Some(RData::A(A(v4))),
        IpAddr::V6(v6) if matches!(kind, RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(v6))),
        _ => None,
    }
}
