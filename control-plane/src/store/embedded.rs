//! The embedded store: one redb file that only its owner can read.
//!
//! All writes go through one thread that commits the queued ones together, so that a burst of registrations costs one
//! fsync and not one each. An acknowledged write is on disk, and watchers are notified before it is acknowledged.
//!
//! After a write that the disk refuses, the database accepts no other until it is reopened. The writer reopens it at
//! once, and repeats that until a write of some size succeeds: a full disk costs the writes made meanwhile and no
//! restart.

mod file;
mod writer;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Result;
use redb::{Database, ReadableDatabase};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::batch::Limits;
use super::health::Health;
use super::{Condition, Error, Op, Record, Store, Table, Watch};
use file::{Place, RECORDS, Storage};
use writer::Writer;

/// Bound on the requests that wait for the writer before callers have to wait, and on the changes for a watcher before
/// the writer has to.
const QUEUE: usize = 1024;

/// A handle on the store; clones share it.
#[derive(Clone)]
pub struct Embedded {
    db: Arc<Db>,
    requests: mpsc::Sender<Request>,
    leases: Arc<Leases>,
    health: Arc<Health>,
}

/// The database; `None` while it cannot be opened. Only the writer replaces it.
type Db = RwLock<Option<Database>>;

enum Request {
    Txn(Vec<Condition>, Vec<Op>, oneshot::Sender<Result<Option<u64>, Error>>),
    Grant(Duration, oneshot::Sender<Result<u64, Error>>),
    /// Ends a lease: always, or only if it has expired.
    End(u64, bool, oneshot::Sender<Result<(), Error>>),
    Watch(oneshot::Sender<Result<Watch, Error>>),
    /// Tests whether the disk accepts writes again.
    Recover,
}

/// Bounds of one transaction, which is in memory until it is on disk: more than the whole state of any mesh.
const LIMITS: Limits = Limits { ops: 1_000_000, bytes: 1 << 30 };
/// Pause between attempts to write, which doubles up to the longest: each verifies the whole file (2 ms a megabyte).
const RETRY: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(8);

/// Leases with their ends and keys. Only the writer adds and removes them.
#[derive(Default)]
struct Leases {
    leases_by_id: Mutex<HashMap<u64, Lease>>,
    added: Notify,
}

struct Lease {
    ttl: Duration,
    ends: Instant,
    paths: BTreeSet<String>,
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Lease>> {
        self.leases_by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Embedded {
    /// Opens or creates the store in `dir`. Within a tokio runtime.
    ///
    /// # Errors
    /// If the folder cannot be created, or the file is in use by another process, damaged or not a store.
    pub fn open(dir: &Path) -> Result<Embedded> {
        Embedded::open_with(dir, file::plain())
    }

    fn open_with(dir: &Path, storage: Storage) -> Result<Embedded> {
        let health = Arc::<Health>::default();
        let mut place = Place::new(dir, storage, health.clone())?;
        let opened = place.open()?;
        let db = Arc::new(RwLock::new(Some(opened.db)));
        let leases = Arc::new(Leases { leases_by_id: Mutex::new(opened.leases), added: Notify::new() });
        let (requests, queue) = mpsc::channel(QUEUE);
        let writer = Writer::new(db.clone(), place, leases.clone(), opened.revision, health.clone());
        std::thread::Builder::new().name("store".into()).spawn(move || writer.run(queue))?;
        tokio::spawn(end_leases(leases.clone(), requests.downgrade()));
        tokio::spawn(recover(health.clone(), requests.downgrade()));
        Ok(Embedded { db, requests, leases, health })
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request) -> Result<T, Error> {
        let stopped = || Error::Unavailable("it has stopped".into());
        let (done, answer) = oneshot::channel();
        self.requests.send(request(done)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

#[tonic::async_trait]
impl Store for Embedded {
    async fn get(&self, table: Table, key: &str) -> Result<Option<Record>, Error> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = db.as_ref() else { return Err(closed(&self.health)) };
        let read = || -> Result<Option<Record>> {
            let records = db.begin_read()?.open_table(RECORDS)?;
            let found = records.get(table.path(key).as_str())?;
            Ok(found.and_then(|bytes| decode(key, bytes.value())))
        };
        read().map_err(unavailable)
    }

    async fn txn(&self, conditions: Vec<Condition>, ops: Vec<Op>) -> Result<Option<u64>, Error> {
        self.ask(|done| Request::Txn(conditions, ops, done)).await
    }

    async fn grant(&self, ttl: Duration) -> Result<u64, Error> {
        self.ask(|done| Request::Grant(ttl, done)).await
    }

    async fn keep_alive(&self, lease: u64) -> Result<bool, Error> {
        let mut leases_by_id = self.leases.lock();
        let Some(lease) = leases_by_id.get_mut(&lease) else { return Ok(false) };
        lease.ends = Instant::now() + lease.ttl;
        Ok(true)
    }

    async fn revoke(&self, lease: u64) -> Result<(), Error> {
        self.ask(|done| Request::End(lease, true, done)).await
    }

    async fn watch(&self) -> Result<Watch, Error> {
        self.ask(Request::Watch).await
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn health(&self) -> Arc<Health> {
        self.health.clone()
    }
}

/// Ends expired leases, for as long as the store exists.
async fn end_leases(leases: Arc<Leases>, requests: mpsc::WeakSender<Request>) {
    loop {
        let next = leases.lock().iter().min_by_key(|(_, lease)| lease.ends).map(|(id, lease)| (*id, lease.ends));
        let Some((id, ends)) = next else {
            leases.added.notified().await;
            continue;
        };
        if ends > Instant::now() {
            tokio::select! {
                () = tokio::time::sleep_until(ends) => {}
                () = leases.added.notified() => {}
            }
            continue;
        }
        let Some(requests) = requests.upgrade() else { return };
        let (done, ended) = oneshot::channel();
        let sent = requests.send(Request::End(id, false, done)).await;
        drop(requests);
        if sent.is_err() || !matches!(ended.await, Ok(Ok(()))) {
            // The disk refuses: it is repeated.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Makes the writer try again while writes fail, for as long as the store exists.
async fn recover(health: Arc<Health>, requests: mpsc::WeakSender<Request>) {
    let mut pause = *RETRY.start();
    loop {
        if health.problem().is_none() {
            pause = *RETRY.start();
            health.failure().await;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(*RETRY.end());
        let Some(requests) = requests.upgrade() else { return };
        if requests.send(Request::Recover).await.is_err() {
            return;
        }
    }
}

/// The error of a request while the database is closed.
fn closed(health: &Health) -> Error {
    Error::Unavailable(health.problem().map_or_else(|| "its file is being opened".into(), |problem| problem.reason))
}

fn unavailable(error: anyhow::Error) -> Error {
    Error::Unavailable(format!("{error:#}"))
}

/// Created, modified and lease before the value, 8 bytes each.
const HEADER: usize = 24;

fn encode(record: &Record) -> Vec<u8> {
    let header = [record.created, record.modified, record.lease].map(u64::to_be_bytes);
    [header.as_flattened(), &record.value].concat()
}

fn decode(key: &str, bytes: &[u8]) -> Option<Record> {
    let (header, value) = bytes.split_at_checked(HEADER)?;
    let number = |at: usize| header.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
    Some(Record {
        key: key.to_owned(),
        value: value.to_vec(),
        created: number(0)?,
        modified: number(8)?,
        lease: number(16)?,
    })
}

#[cfg(test)]
mod tests;
