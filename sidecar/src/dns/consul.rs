//! Consul's names (`consul.`), resolved by the control plane, with a cache for when it is away.
//!
//! An answer is cached for its TTL, and kept for an hour more: names that stop resolving because the control plane restarts
//! would break every application that uses them (RFC 8767). Clients with different packet sizes get different answers, so
//! sizes are rounded down to few; id, case of the question and options differ between clients with the same question, and are
//! set here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, RecordType};
use rand::seq::SliceRandom;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::Status;
use weft_proto::v1::DnsMessage;
use weft_proto::v1::dns_client::DnsClient;

use super::answer::Query;
use crate::control::connection::Control;
use crate::resolve::forward::Transport;

/// Answers that are remembered, and their bytes.
const ANSWERS: usize = 1024;
const BYTES: usize = 1 << 20;
/// Queries in progress: each is a stream of the one connection to the control plane, which others share.
const ASKING: usize = 32;
/// Longest wait for an answer; clients ask again after 5 s (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(2);
/// Time after a failure during which cached answers are used at once (RFC 8767, 5: the failure recheck timer).
const RECHECK: Duration = Duration::from_secs(2);
/// Shortest and longest time for which an answer is cached.
const KEPT: std::ops::RangeInclusive<u32> = 1..=3600;
/// How much older than its TTL an answer may be while there is no other.
const STALE: Duration = Duration::from_secs(3600);
/// TTL of such an answer in seconds.
const STALE_TTL: u32 = 5;
/// Sizes of UDP answers that are distinguished, in bytes.
const SIZES: [u16; 3] = [4096, 1232, 512];

/// The source of answers.
pub trait Source: Send + Sync + 'static {
    /// Asks once; `tcp`: the answer may have 64 KiB.
    fn ask(&self, packet: Vec<u8>, tcp: bool) -> BoxFuture<'_, Result<Vec<u8>, Status>>;
}

impl Source for Arc<Control> {
    fn ask(&self, packet: Vec<u8>, tcp: bool) -> BoxFuture<'_, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            let answer = DnsClient::new(self.channel()).query(DnsMessage { packet, tcp }).await;
            if answer.is_err() {
                // The certificate of the connection may have expired: the next connection presents the current one.
                self.forget_channel();
            }
            answer.map(|answer| answer.into_inner().packet)
        })
    }
}

/// The key of the cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// In lower case.
    name: String,
    kind: RecordType,
    class: DNSClass,
    dnssec: bool,
    /// One of [`SIZES`]; `None`: over TCP.
    size: Option<u16>,
}

struct Remembered {
    at: Instant,
    ttl: Duration,
    packet: Vec<u8>,
    /// Whether it holds records: others are forgotten first, or made-up names would push out all that is of use.
    holds: bool,
}

#[derive(Default)]
struct Memory {
    answers: HashMap<Key, Remembered>,
    bytes: usize,
}

/// The source and the memory of its answers.
pub struct Consul {
    source: Box<dyn Source>,
    memory: Mutex<Memory>,
    asking: Semaphore,
    /// Until when the control plane counts as away.
    away: Mutex<Option<Instant>>,
}

impl Consul {
    /// With an empty memory.
    pub fn new(source: impl Source) -> Arc<Consul> {
        let (memory, away) = (Mutex::default(), Mutex::default());
        Arc::new(Consul { source: Box::new(source), memory, asking: Semaphore::new(ASKING), away })
    }

    /// The answer as a packet; `None`: the control plane is away and nothing is remembered.
    pub async fn answer(&self, query: &Query, transport: Transport) -> Option<Vec<u8>> {
        let key = Key {
            name: query.name().to_owned(),
            kind: query.question().query_type(),
            class: query.question().query_class(),
            dnssec: query.dnssec_ok(),
            size: match transport {
                Transport::Udp => Some(SIZES.into_iter().find(|size| *size <= query.udp_size()).unwrap_or(SIZES[2])),
                Transport::Tcp => None,
            },
        };
        let remembered = self.remembered(&key);
        if let Some((message, age, ttl)) = &remembered
            && age < ttl
        {
            return say(message.clone(), query, transport, |ttl| ttl.saturating_sub(seconds(*age)));
        }
        let stale = remembered.filter(|(_, age, ttl)| *age <= *ttl + STALE);
        if (stale.is_none() || !self.is_away())
            && let Some(message) = self.ask(query, &key).await
        {
            return query.adopt(message, transport);
        }
        let (message, ..) = stale?;
        say(message, query, transport, |_| STALE_TTL)
    }

    async fn ask(&self, query: &Query, key: &Key) -> Option<Message> {
        let packet = query.to_ask(key.size.unwrap_or(SIZES[0]))?;
        let asking = async {
            let _permit = self.asking.acquire().await.ok();
            self.source.ask(packet, key.size.is_none()).await
        };
        let failure = match tokio::time::timeout(PATIENCE, asking).await {
            Ok(Ok(packet)) => match Message::from_vec(&packet) {
                Ok(message) => {
                    *lock(&self.away) = None;
                    self.remember(key, &message, packet);
                    return Some(message);
                }
                Err(e) => format!("its answer cannot be read: {e}"),
            },
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        tracing::debug!(name = key.name, "the control plane does not answer a DNS query: {failure}");
        *lock(&self.away) = Some(Instant::now() + RECHECK);
        None
    }

    fn is_away(&self) -> bool {
        lock(&self.away).is_some_and(|until| Instant::now() < until)
    }

    /// An answer, its age and for how long it was to be kept.
    fn remembered(&self, key: &Key) -> Option<(Message, Duration, Duration)> {
        let memory = lock(&self.memory);
        let found = memory.answers.get(key)?;
        Some((Message::from_vec(&found.packet).ok()?, found.at.elapsed(), found.ttl))
    }

    fn remember(&self, key: &Key, message: &Message, packet: Vec<u8>) {
        // That it cannot answer is nothing to remember.
        if !matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return;
        }
        let minimum = |data: &RData| if let RData::SOA(soa) = data { soa.minimum } else { u32::MAX };
        let ttls = message.answers.iter().map(|record| record.ttl);
        let negative = message.authorities.iter().map(|record| record.ttl.min(minimum(&record.data)));
        let ttl = ttls.chain(negative).min().unwrap_or_default().clamp(*KEPT.start(), *KEPT.end());
        let ttl = Duration::from_secs(ttl.into());
        let new = Remembered { at: Instant::now(), ttl, packet, holds: !message.answers.is_empty() };
        let mut memory = lock(&self.memory);
        memory.forget(key);
        while memory.answers.len() >= ANSWERS || memory.bytes + new.packet.len() > BYTES {
            let least = memory.answers.iter().min_by_key(|(_, kept)| (kept.holds, kept.at)).map(|(key, _)| key.clone());
            let Some(least) = least else { break };
            memory.forget(&least);
        }
        memory.bytes += new.packet.len();
        memory.answers.insert(key.clone(), new);
    }
}

impl Memory {
    fn forget(&mut self, key: &Key) {
        if let Some(old) = self.answers.remove(key) {
            self.bytes -= old.packet.len();
        }
    }
}

/// A remembered answer, in another order each time, its TTLs by `ttl`.
fn say(mut message: Message, query: &Query, transport: Transport, ttl: impl Fn(u32) -> u32) -> Option<Vec<u8>> {
    // RFC 1034, 6.2.7: it is not the authority's word any more.
    message.metadata.authoritative = false;
    message.answers.shuffle(&mut rand::rng());
    for record in message.answers.iter_mut().chain(&mut message.authorities).chain(&mut message.additionals) {
        record.ttl = ttl(record.ttl);
    }
    query.adopt(message, transport)
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(super) mod tests;
