//! The store for several control planes: etcd, version 3.4 or later, under a prefix of its own.
//!
//! etcd's revisions, transactions, leases and watches are used as they are. The addition is a watch that continues over
//! broken connections, and ends only when etcd has compacted the history that it missed. [`connect`] reaches the
//! servers.

mod connect;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use weft_core::backoff::jittered;
use weft_proto::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use weft_proto::etcd::kv_client::KvClient;
use weft_proto::etcd::lease_client::LeaseClient;
use weft_proto::etcd::mvccpb::event::EventType;
use weft_proto::etcd::mvccpb::{Event, KeyValue};
use weft_proto::etcd::request_op::Request as Do;
use weft_proto::etcd::response_op::Response as Done;
use weft_proto::etcd::watch_client::WatchClient;
use weft_proto::etcd::watch_request::RequestUnion;
use weft_proto::etcd::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, PutRequest,
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, WatchCreateRequest, WatchRequest,
    WatchResponse,
};

use super::batch::Limits;
use super::health::Health;
use super::{Change, Changes, Condition, Error, MAX_OPS, Op, Record, Store, Table, Watch};
pub use connect::Access;
use connect::{Servers, Session};

/// Timeout of a server, after which the next one is tried: one that lost its leader answers late or never.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time after which a repeatable request has failed: an election takes a second or two.
const PERSISTENCE: Duration = Duration::from_secs(8);
/// Pause before a request is repeated or a broken watch is restored.
const RETRY: Duration = Duration::from_millis(200);
/// etcd accepts 128 operations (`--max-txn-ops`) and 1.5 MiB (`--max-request-bytes`) a request by default.
const LIMITS: Limits = Limits { ops: MAX_OPS, bytes: 1 << 20 };
/// Pause between attempts to write while etcd refuses.
const RECOVERY: Duration = Duration::from_secs(2);
/// Life of the lease that such an attempt requests, seconds.
const PROBE_TTL: i64 = 5;
/// The remedy for etcd's NOSPACE alarm.
const NO_SPACE: &str = "its alarm NOSPACE refuses every write until its data are below --quota-backend-bytes again: \
                        compact and defragment it, or raise the quota, then run `etcdctl alarm disarm`";
/// Bound on the changes that wait for a watcher before etcd has to wait.
const QUEUE: usize = 1024;
/// Records of one page of a listing.
const PAGE: i64 = 1000;
/// Largest message: a page of the largest records.
const MAX_MESSAGE: usize = 512 << 20;

/// A handle on the store; clones share it.
#[derive(Clone)]
pub struct Etcd {
    servers: Arc<Servers>,
    prefix: String,
    health: Arc<Health>,
}

impl Etcd {
    /// Connects to `etcd://host:port[,host:port...][/prefix]`.
    ///
    /// # Errors
    /// If the address is invalid, a file cannot be read, or no server answers.
    pub async fn connect(url: &str, access: &Access) -> Result<Etcd> {
        let (servers, prefix) = parse(url)?;
        let names = servers.join(", ");
        let etcd = Etcd { servers: Arc::new(Servers::new(servers, access)?), prefix, health: Arc::default() };
        // Connections are made when they are first used: an unreachable server must be reported now.
        etcd.get(Table::Secrets, "ca").await.with_context(|| format!("cannot use etcd at {names}"))?;
        tokio::spawn(recover(etcd.clone()));
        Ok(etcd)
    }

    fn path(&self, table: Table, key: &str) -> Vec<u8> {
        format!("{}{}", self.prefix, table.path(key)).into_bytes()
    }

    /// The record of a key, if the key has this store's prefix.
    fn record(&self, kv: &KeyValue) -> Option<(Table, Record)> {
        let path = std::str::from_utf8(&kv.key).ok()?;
        let (table, key) = Table::split(path.strip_prefix(&self.prefix)?)?;
        let record = Record {
            key: key.to_owned(),
            value: kv.value.clone(),
            created: unsigned(kv.create_revision),
            modified: unsigned(kv.mod_revision),
            lease: unsigned(kv.lease),
        };
        Some((table, record))
    }

    /// The first key after all those with the prefix, which ends with a slash.
    fn end(&self) -> Vec<u8> {
        let mut end = self.prefix.clone().into_bytes();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        end
    }

    async fn range(&self, range: RangeRequest) -> Result<RangeResponse, Error> {
        self.ask(|session| {
            let range = range.clone();
            async move { kv(&session).range(session.request(range)).await }
        })
        .await
    }

    /// All records under the prefix, at one revision.
    async fn list(&self) -> Result<(i64, Vec<(Table, Record)>), Error> {
        let (mut records, mut key, mut revision) = (Vec::new(), self.prefix.clone().into_bytes(), 0);
        loop {
            let range = RangeRequest { key, range_end: self.end(), limit: PAGE, revision };
            let page = self.range(range).await?;
            if revision == 0 {
                revision = revision_of(page.header);
            }
            records.extend(page.kvs.iter().filter_map(|kv| self.record(kv)));
            match page.kvs.last() {
                Some(last) if page.more => key = [last.key.as_slice(), &[0]].concat(),
                _ => return Ok((revision, records)),
            }
        }
    }

    /// Makes a repeatable request, until a server answers.
    async fn ask<T, F>(&self, request: impl Fn(Session) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let end = tokio::time::Instant::now() + PERSISTENCE;
        loop {
            let pause = jittered(2 * RETRY, rand::random());
            match self.ask_once(&request).await {
                Err(Error::Unknown(_)) if tokio::time::Instant::now() + pause < end => tokio::time::sleep(pause).await,
                other => return other,
            }
        }
    }

    /// Makes a request to one server, with a timeout; after a failure of the server the next one is used.
    async fn ask_once<T, F>(&self, request: impl FnOnce(Session) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let work = async {
            let session = self.servers.session().await?;
            request(session).await
        };
        let result = tokio::time::timeout(PATIENCE, work).await;
        let status = match result {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded(format!("none in {} s", PATIENCE.as_secs())),
        };
        if status.message().contains("lease not found") {
            return Err(Error::LeaseEnded);
        }
        if status.message().contains("database space exceeded") {
            let reason = format!("etcd: {}: {NO_SPACE}", status.message());
            self.health.report_failure(&reason, 1);
            return Err(Error::Unavailable(reason));
        }
        // A request that one server refuses as invalid would be refused by any other.
        let refused = matches!(status.code(), Code::InvalidArgument | Code::PermissionDenied | Code::ResourceExhausted);
        if refused {
            return Err(Error::Unavailable(status.message().to_owned()));
        }
        self.servers.leave();
        Err(Error::Unknown(status.message().to_owned()))
    }

    async fn open_watch(&self, from: i64) -> Result<(mpsc::Sender<WatchRequest>, Streaming<WatchResponse>), Error> {
        let create =
            WatchCreateRequest { key: self.prefix.clone().into_bytes(), range_end: self.end(), start_revision: from };
        let (requests, stream) = mpsc::channel(1);
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // The channel is empty.
        let _ = requests.try_send(create);
        let ask = |session: Session| async move {
            let mut client = WatchClient::new(session.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
            client.watch(session.request(ReceiverStream::new(stream))).await
        };
        Ok((requests, self.ask_once(ask).await?))
    }

    /// Forwards changes from revision `next`, until the receiver is gone or history is lost.
    async fn follow(self, mut next: i64, changes: mpsc::Sender<Changes>) {
        while let WatchEnd::Broken(why) = self.follow_once(&mut next, &changes).await {
            tracing::warn!("the watch of etcd broke off and is taken up again: {why}");
            self.servers.leave();
            tokio::select! {
                () = tokio::time::sleep(jittered(2 * RETRY, rand::random())) => {}
                () = changes.closed() => return,
            }
        }
    }

    async fn follow_once(&self, next: &mut i64, changes: &mpsc::Sender<Changes>) -> WatchEnd {
        // The watch ends with the sender of requests.
        let (_requests, mut stream) = match self.open_watch(*next).await {
            Ok(stream) => stream,
            Err(e) => return WatchEnd::Broken(e.to_string()),
        };
        loop {
            let response = tokio::select! {
                response = stream.message() => response,
                () = changes.closed() => return WatchEnd::Ended,
            };
            let response = match response {
                Ok(Some(response)) => response,
                Ok(None) => return WatchEnd::Broken("the server ended it".into()),
                Err(status) => return WatchEnd::Broken(status.message().to_owned()),
            };
            if response.compact_revision > 0 {
                tracing::warn!("etcd has compacted changes that this control plane missed: reading everything again");
                return WatchEnd::Ended;
            }
            if response.canceled {
                return WatchEnd::Broken(response.cancel_reason);
            }
            // Events come in the order of their revisions; one revision is one transaction.
            for events in response.events.chunk_by(|a, b| revision_of_event(a) == revision_of_event(b)) {
                let revision = events.first().map_or(0, revision_of_event);
                let changed = events.iter().filter_map(|event| self.change(event));
                let message = Changes { revision: unsigned(revision), changes: changed.collect() };
                if changes.send(message).await.is_err() {
                    return WatchEnd::Ended;
                }
                *next = revision + 1;
            }
        }
    }

    fn change(&self, event: &Event) -> Option<Change> {
        let (table, record) = self.record(event.kv.as_ref()?)?;
        let gone = event.r#type() == EventType::Delete;
        Some(Change { table, key: record.key.clone(), record: (!gone).then_some(record) })
    }
}

/// The reason why a watch ends.
enum WatchEnd {
    Ended,
    Broken(String),
}

#[tonic::async_trait]
impl Store for Etcd {
    async fn get(&self, table: Table, key: &str) -> Result<Option<Record>, Error> {
        let range = RangeRequest { key: self.path(table, key), ..Default::default() };
        let found = self.range(range).await?;
        Ok(found.kvs.first().and_then(|kv| self.record(kv)).map(|(_, record)| record))
    }

    async fn txn(&self, conditions: Vec<Condition>, ops: Vec<Op>) -> Result<Option<u64>, Error> {
        let compare = conditions.iter().map(|condition| Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: self.path(condition.table, &condition.key),
            target_union: Some(TargetUnion::ModRevision(signed(condition.modified))),
        });
        let compare = compare.collect();
        let puts = ops.iter().any(|op| matches!(op, Op::Put { .. }));
        let success = ops.into_iter().map(|op| match op {
            Op::Put { table, key, value, lease } => {
                Do::RequestPut(PutRequest { key: self.path(table, &key), value, lease: signed(lease) })
            }
            Op::Delete(table, key) => Do::RequestDeleteRange(DeleteRangeRequest { key: self.path(table, &key) }),
        });
        let success = success.map(|request| RequestOp { request: Some(request) }).collect();
        let txn = TxnRequest { compare, success };
        // A conditional transaction that was done without an answer would be refused the second time.
        let once = !txn.compare.is_empty();
        let ask = |session: Session| {
            let txn = txn.clone();
            async move { kv(&session).txn(session.request(txn)).await }
        };
        let done = if once { self.ask_once(ask).await? } else { self.ask(ask).await? };
        if !done.succeeded {
            return Ok(None);
        }
        let mut gone = done.responses.iter().filter_map(|r| match &r.response {
            Some(Done::ResponseDeleteRange(deleted)) => Some(deleted.deleted > 0),
            _ => None,
        });
        let changed = puts || gone.any(|gone| gone);
        Ok(Some(if changed { unsigned(revision_of(done.header)) } else { 0 }))
    }

    async fn grant(&self, ttl: Duration) -> Result<u64, Error> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
        let request = LeaseGrantRequest { ttl: seconds };
        let granted =
            self.ask(|session| async move { lease(&session).lease_grant(session.request(request)).await }).await?;
        if granted.error.is_empty() { Ok(unsigned(granted.id)) } else { Err(Error::Unavailable(granted.error)) }
    }

    async fn keep_alive(&self, id: u64) -> Result<bool, Error> {
        let ask = |session: Session| async move {
            let once = tokio_stream::once(LeaseKeepAliveRequest { id: signed(id) });
            let mut answers = lease(&session).lease_keep_alive(session.request(once)).await?.into_inner();
            let answer = answers.message().await?;
            Ok(tonic::Response::new(answer.is_some_and(|left| left.ttl > 0)))
        };
        self.ask(ask).await
    }

    async fn revoke(&self, id: u64) -> Result<(), Error> {
        let request = LeaseRevokeRequest { id: signed(id) };
        match self.ask(|session| async move { lease(&session).lease_revoke(session.request(request)).await }).await {
            Ok(_) | Err(Error::LeaseEnded) => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn watch(&self) -> Result<Watch, Error> {
        let (revision, records) = self.list().await?;
        let (sender, changes) = mpsc::channel(QUEUE);
        tokio::spawn(self.clone().follow(revision + 1, sender));
        Ok(Watch { revision: unsigned(revision), records, changes })
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn health(&self) -> Arc<Health> {
        self.health.clone()
    }
}

/// Tests whether etcd accepts writes again, after each refused one. A lease is refused like a record, and leaves
/// nothing behind.
async fn recover(etcd: Etcd) {
    loop {
        etcd.health.failure().await;
        while etcd.health.problem().is_some() {
            tokio::time::sleep(jittered(RECOVERY, rand::random())).await;
            let request = LeaseGrantRequest { ttl: PROBE_TTL };
            let granted = etcd.ask_once(|s| async move { lease(&s).lease_grant(s.request(request)).await }).await;
            if granted.is_ok_and(|granted| granted.error.is_empty()) {
                etcd.health.report_recovery();
            }
        }
    }
}

fn kv(session: &Session) -> KvClient<tonic::transport::Channel> {
    KvClient::new(session.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
}

fn lease(session: &Session) -> LeaseClient<tonic::transport::Channel> {
    LeaseClient::new(session.channel.clone())
}

fn revision_of(header: Option<ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

fn revision_of_event(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// etcd's numbers are signed and never negative.
fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or_default()
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Servers and prefix of `etcd://host:port[,host:port...][/prefix]`.
fn parse(url: &str) -> Result<(Vec<String>, String)> {
    let wrong = || format!("{url:?} is not a store: it is etcd://host:port[,host:port...][/prefix]");
    let rest = url.strip_prefix("etcd://").with_context(wrong)?;
    let (servers, prefix) = rest.split_once('/').unwrap_or((rest, "weft"));
    let servers: Vec<String> = servers.split(',').map(str::to_owned).collect();
    let sound =
        |s: &String| s.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    anyhow::ensure!(servers.iter().all(sound), wrong());
    let prefix = prefix.trim_matches('/');
    anyhow::ensure!(!prefix.is_empty(), wrong());
    Ok((servers, format!("/{prefix}/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let (servers, prefix) = parse("etcd://a:2379,10.0.0.1:2380").unwrap();
        assert_eq!((servers, prefix.as_str()), (vec!["a:2379".to_owned(), "10.0.0.1:2380".to_owned()], "/weft/"));
        assert_eq!(parse("etcd://a:1/mesh/one/").unwrap().1, "/mesh/one/");
        for bad in ["redb://a", "etcd://a", "etcd://", "etcd://a:x", "etcd://a:1,", "etcd://a:1/"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
