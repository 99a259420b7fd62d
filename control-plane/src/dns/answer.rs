//! What is answered: a question and the registry in, a packet out. Randomness is an argument.
//!
//! An instance whose checks are critical, or that drains, is not named. All the same name exists only while something of
//! it can be named: Consul's clients take "no such name" for "none is healthy".

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, NS, PTR, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use rand::Rng;
use rand::seq::SliceRandom;
use weft_proto::v1::Health;

use super::Settings;
use super::names::{self, Subject, Thing};
use super::packet::{Query, Transport};
use super::view::View;
use crate::world::Instance;

/// Bytes of the smallest records, an IPv4 address and a target such as `a.node.b.consul`, with their owners as pointers:
/// they say how many an answer can hold at most, so that a large service costs no more than a packet.
const SMALLEST_ADDRESS: usize = 16;
const SMALLEST_SRV: usize = 35;
/// Times of the domain's SOA in seconds, as Consul has them: refresh, retry, expire.
const SOA_TIMES: (i32, i32, i32) = (3600, 600, 86400);

/// What was found.
enum Found {
    /// The name exists; those of its records that were asked for, and what a client will ask for next.
    Records { answers: Vec<RData>, additionals: Vec<Record> },
    /// There is no such name.
    NoSuchName,
}

/// Who asks, and what the answer is drawn from.
pub struct Asking<'a, V> {
    /// The registry.
    pub view: &'a V,
    /// The caller's namespace.
    pub namespace: &'a str,
    /// How to answer.
    pub settings: &'a Settings,
    /// How the query came.
    pub transport: Transport,
}

impl<V: View> Asking<'_, V> {
    /// The answer as a packet; `Err`: the name is not ours to answer.
    pub fn answer(&self, query: &Query, rng: &mut impl Rng) -> Result<Option<Vec<u8>>, Foreign> {
        let found = self.find(query, rng)?;
        let settings = self.settings;
        let mut message = query.response(ResponseCode::NoError);
        message.metadata.authoritative = true;
        message.metadata.recursion_available = !settings.recursors.is_empty();
        let mut truncated = false;
        let ttl = settings.service_ttl;
        match found {
            Found::NoSuchName => message.metadata.response_code = ResponseCode::NXDomain,
            Found::Records { mut answers, mut additionals } => {
                let limit = settings.udp_answer_limit;
                if limit > 0 && query.is_plain(self.transport) && answers.len() > limit {
                    answers.truncate(limit);
                    additionals.retain(|record| answers.iter().any(|data| leads_to(data, &record.name)));
                    truncated = true;
                }
                let owner = query.name();
                message.add_answers(answers.into_iter().map(|data| Record::from_rdata(owner.clone(), ttl, data)));
                message.add_additionals(additionals);
            }
        }
        message.metadata.truncation = truncated;
        if message.answers.is_empty() {
            // RFC 2308: it says how long to remember that there is nothing.
            let soa = self.soa();
            message.add_authorities(
                soa.map(|(domain, soa)| Record::from_rdata(domain, settings.negative_ttl, RData::SOA(soa))),
            );
        }
        Ok(query.pack(message, self.transport))
    }

    fn find(&self, query: &Query, rng: &mut impl Rng) -> Result<Found, Foreign> {
        let kind = query.kind();
        let (datacenter, thing) = match names::subject(query.name()) {
            Subject::Foreign => return Err(Foreign),
            Subject::Reverse(address) => return self.reverse(kind, address),
            Subject::Apex => return Ok(self.apex(kind)),
            Subject::NameServer => return Ok(self.addresses(kind, self.settings.address)),
            Subject::Of(datacenter, thing) => (datacenter, thing),
        };
        // Another one has been asked before this, if there is a way to it.
        if datacenter.is_some_and(|datacenter| datacenter != self.settings.datacenter) {
            return Ok(Found::NoSuchName);
        }
        let limit = query.limit(self.transport);
        Ok(match thing {
            Thing::Nothing => Found::NoSuchName,
            Thing::Between => self.addresses(kind, []),
            Thing::Service { name, tag } => self.service(kind, &name, tag.as_deref(), limit, rng),
            Thing::Connect(name) => {
                let mut usable = self.usable(&name);
                // Whoever has an identity takes mutual TLS.
                usable.retain(|instance| !instance.identity.is_empty());
                self.instances(kind, usable, limit, rng)
            }
            Thing::Virtual(name) => match self.view.virtual_ips(self.namespace, &name) {
                none if none.is_empty() => Found::NoSuchName,
                addresses => self.addresses(kind, addresses),
            },
            Thing::Node(name) => match self.view.node(self.namespace, &name) {
                Some(node) => self.addresses(kind, [node.address]),
                None => Found::NoSuchName,
            },
            Thing::Address(address) => self.addresses(kind, [address]),
        })
    }

    fn service(&self, kind: RecordType, name: &str, tag: Option<&str>, limit: usize, rng: &mut impl Rng) -> Found {
        let mut usable = self.usable(name);
        if let Some(tag) = tag {
            usable.retain(|instance| instance.tags.iter().any(|own| own.eq_ignore_ascii_case(tag)));
        }
        self.instances(kind, usable, limit, rng)
    }

    /// Instances that may be named.
    fn usable(&self, service: &str) -> Vec<Arc<Instance>> {
        let mut instances = self.view.instances(self.namespace, service);
        // One of unknown health lost its lease together with too many others: that is our fault.
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
    fn instances(&self, kind: RecordType, mut all: Vec<Arc<Instance>>, limit: usize, rng: &mut impl Rng) -> Found {
        if all.is_empty() {
            return Found::NoSuchName;
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
            let mut targets = BTreeSet::new();
            for (instance, node) in all.iter().zip(self.view.nodes(&names)) {
                // At its node's own address it is found by the node's name, where that is a name of DNS.
                let of_node = node.filter(|node| node.address == instance.address);
                let of_node = of_node.and_then(|node| self.under(&node.name, "node"));
                let of_address = || names::address_name(instance.address, &self.settings.datacenter);
                let Some(target) = of_node.or_else(of_address) else { continue };
                let weight = u16::try_from(instance.weight.max(1)).unwrap_or(u16::MAX);
                answers.push(RData::SRV(SRV::new(1, weight, instance.port, target.clone())));
                if targets.insert(target.clone())
                    && let Some(data) = address_record(RecordType::ANY, instance.address)
                {
                    additionals.push(Record::from_rdata(target, self.settings.service_ttl, data));
                }
            }
        }
        Found::Records { answers, additionals }
    }

    /// Of addresses those that are asked for: there is such a name, whatever is asked.
    fn addresses(&self, kind: RecordType, addresses: impl IntoIterator<Item = IpAddr>) -> Found {
        let answers = addresses.into_iter().filter_map(|address| address_record(kind, address)).collect();
        Found::Records { answers, additionals: Vec::new() }
    }

    /// Nodes first, as Consul does: an address has one name, and a node's is the one that it keeps.
    fn reverse(&self, kind: RecordType, address: IpAddr) -> Result<Found, Foreign> {
        let under = |kind| move |name: &String| self.under(name, kind);
        let mut names: Vec<Name> =
            self.view.nodes_at(self.namespace, address).iter().filter_map(under("node")).collect();
        if names.is_empty() {
            names = self.view.services_at(self.namespace, address).iter().filter_map(under("service")).collect();
        }
        if names.is_empty() {
            return Err(Foreign);
        }
        let asked = matches!(kind, RecordType::PTR | RecordType::ANY);
        let answers = names.into_iter().filter(|_| asked).map(|name| RData::PTR(PTR(name))).collect();
        Ok(Found::Records { answers, additionals: Vec::new() })
    }

    fn apex(&self, kind: RecordType) -> Found {
        let mut answers = Vec::new();
        let mut additionals = Vec::new();
        if matches!(kind, RecordType::SOA | RecordType::ANY) {
            answers.extend(self.soa().map(|(_, soa)| RData::SOA(soa)));
        }
        if matches!(kind, RecordType::NS | RecordType::ANY)
            && let Some(server) = name_server()
        {
            answers.push(RData::NS(NS(server.clone())));
            let address = self.settings.address.and_then(|address| address_record(RecordType::ANY, address));
            additionals.extend(address.map(|data| Record::from_rdata(server, self.settings.service_ttl, data)));
        }
        Found::Records { answers, additionals }
    }

    /// The domain and its SOA.
    fn soa(&self) -> Option<(Name, SOA)> {
        let domain = Name::from_ascii(format!("{}.", names::DOMAIN)).ok()?;
        let mailbox = Name::from_ascii(format!("hostmaster.{}.", names::DOMAIN)).ok()?;
        // Serial numbers go round (RFC 1982).
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

/// The name is not ours to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign;

fn leads_to(data: &RData, name: &Name) -> bool {
    matches!(data, RData::SRV(srv) if srv.target == *name)
}

fn name_server() -> Option<Name> {
    Name::from_ascii(format!("ns.{}.", names::DOMAIN)).ok()
}

/// The record by which an address is told, if that kind was asked for.
fn address_record(kind: RecordType, address: IpAddr) -> Option<RData> {
    match address {
        IpAddr::V4(v4) if matches!(kind, RecordType::A | RecordType::ANY) => Some(RData::A(A(v4))),
        IpAddr::V6(v6) if matches!(kind, RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(v6))),
        _ => None,
    }
}
