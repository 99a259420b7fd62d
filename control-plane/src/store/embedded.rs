//! The embedded store: one redb file that only its owner can read.
//!
//! All writes go through one thread that commits what has queued up together, so that a burst of registrations costs one
//! fsync and not one each. An acknowledged write is on disk, and is told to watchers before it is acknowledged.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::{Change, Changes, Condition, Error, Op, Record, Store, Table, Watch};

/// Records by `<table>/<key>`.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// Times to live by lease, milliseconds.
const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
/// `revision`: that of the last change.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Requests that may wait for the writer before callers wait in turn, and changes for a watcher before the writer does.
const QUEUE: usize = 1024;

/// A handle on the store; clones share it.
#[derive(Clone)]
pub struct Embedded {
    db: Arc<Database>,
    requests: mpsc::Sender<Request>,
    leases: Arc<Leases>,
}

enum Request {
    Txn(Vec<Condition>, Vec<Op>, oneshot::Sender<Result<Option<u64>, Error>>),
    Grant(Duration, oneshot::Sender<Result<u64, Error>>),
    /// Ends a lease whose time is up, or in any case.
    End(u64, bool, oneshot::Sender<Result<(), Error>>),
    Watch(oneshot::Sender<Result<Watch, Error>>),
}

/// What runs out when. Only the writer adds and removes leases and keys.
#[derive(Default)]
struct Leases {
    held: Mutex<HashMap<u64, Lease>>,
    added: Notify,
}

struct Lease {
    ttl: Duration,
    ends: Instant,
    paths: BTreeSet<String>,
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Lease>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Embedded {
    /// Opens or creates the store in `dir`. Within a tokio runtime.
    ///
    /// # Errors
    /// When the folder cannot be made, or the file is another process's, damaged or not ours.
    pub fn open(dir: &Path) -> Result<Embedded> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make the data folder {}", dir.display()))?;
        let path = dir.join("weft.redb");
        let context = || format!("cannot open the store {}", path.display());
        // The file holds keys: it is created with its final mode, and one left too open is closed before use.
        let file =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        file.and_then(|f| f.set_permissions(std::fs::Permissions::from_mode(0o600))).with_context(context)?;
        let db = Arc::new(Database::create(&path).with_context(context)?);
        let (revision, leases) = restore(&db).with_context(context)?;
        let leases = Arc::new(Leases { held: Mutex::new(leases), added: Notify::new() });
        let (requests, queue) = mpsc::channel(QUEUE);
        let writer = Writer { db: db.clone(), leases: leases.clone(), revision, watchers: Vec::new() };
        std::thread::Builder::new().name("store".into()).spawn(move || writer.run(queue))?;
        tokio::spawn(end_leases(leases.clone(), requests.downgrade()));
        Ok(Embedded { db, requests, leases })
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
        let read = || -> Result<Option<Record>> {
            let records = self.db.begin_read()?.open_table(RECORDS)?;
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
        let mut held = self.leases.lock();
        let Some(lease) = held.get_mut(&lease) else { return Ok(false) };
        lease.ends = Instant::now() + lease.ttl;
        Ok(true)
    }

    async fn revoke(&self, lease: u64) -> Result<(), Error> {
        self.ask(|done| Request::End(lease, true, done)).await
    }

    async fn watch(&self) -> Result<Watch, Error> {
        self.ask(Request::Watch).await
    }
}

/// Ends leases when their time is up, for as long as the store is there.
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
            // The disk refuses: it is tried again.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

fn restore(db: &Database) -> Result<(u64, HashMap<u64, Lease>)> {
    let txn = db.begin_write()?;
    let mut leases = HashMap::new();
    let revision;
    {
        let records = txn.open_table(RECORDS)?;
        for lease in txn.open_table(LEASES)?.iter()? {
            let (id, ttl) = lease?;
            let ttl = Duration::from_millis(ttl.value());
            leases.insert(id.value(), Lease { ttl, ends: Instant::now() + ttl, paths: BTreeSet::new() });
        }
        for record in records.iter()? {
            let (path, bytes) = record?;
            let lease = decode("", bytes.value()).map_or(0, |record| record.lease);
            if let Some(lease) = leases.get_mut(&lease) {
                lease.paths.insert(path.value().to_owned());
            }
        }
        // Revision 1 is that of a store without records: clients take an index of 0 for none.
        revision = txn.open_table(META)?.get("revision")?.map_or(1, |revision| revision.value());
    }
    txn.commit()?;
    Ok((revision, leases))
}

/// The thread that writes.
struct Writer {
    db: Arc<Database>,
    leases: Arc<Leases>,
    revision: u64,
    watchers: Vec<mpsc::Sender<Changes>>,
}

/// Answers a caller; the error is that of the batch as a whole.
type Answer = Box<dyn FnOnce(Option<&Error>) + Send>;

/// What a batch will have done once it is on disk.
#[derive(Default)]
struct Effects {
    told: Vec<Changes>,
    /// Path, the lease that it was bound to, and the one that it is bound to now.
    bound: Vec<(String, u64, u64)>,
    granted: Vec<(u64, Duration)>,
    ended: Vec<u64>,
    answers: Vec<Answer>,
    watching: Vec<oneshot::Sender<Result<Watch, Error>>>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < QUEUE {
                match queue.try_recv() {
                    Ok(next) => batch.push(next),
                    Err(_) => break,
                }
            }
            self.batch(batch);
        }
    }

    fn batch(&mut self, batch: Vec<Request>) {
        let mut effects = Effects::default();
        let failure = self.write(batch, &mut effects).err().map(unavailable);
        if failure.is_none() {
            self.take_effect(&mut effects);
        }
        for answer in effects.answers {
            answer(failure.as_ref());
        }
        for watching in effects.watching {
            let watch = self.watch().map_err(unavailable);
            // Who gave up does not mind.
            let _ = watching.send(watch);
        }
    }

    fn write(&self, batch: Vec<Request>, effects: &mut Effects) -> Result<()> {
        let mut work = Vec::new();
        for request in batch {
            match request {
                Request::Watch(done) => effects.watching.push(done),
                other => work.push(other),
            }
        }
        if work.is_empty() {
            return Ok(());
        }
        let txn = self.db.begin_write()?;
        let mut revision = self.revision;
        {
            let mut records = txn.open_table(RECORDS)?;
            let mut leases = txn.open_table(LEASES)?;
            for request in work {
                match request {
                    Request::Txn(conditions, ops, done) => {
                        let result = self.one(&mut records, &conditions, ops, &mut revision, effects)?;
                        effects.answers.push(answer(done, result));
                    }
                    Request::Grant(ttl, done) => {
                        let id = rand::random::<u64>() >> 1 | 1;
                        leases.insert(id, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?;
                        effects.granted.push((id, ttl));
                        effects.answers.push(answer(done, Ok(id)));
                    }
                    Request::End(id, anyway, done) => {
                        let due = |lease: &Lease| anyway || lease.ends <= Instant::now();
                        let paths = self.leases.lock().get(&id).filter(|l| due(l)).map(|l| l.paths.clone());
                        if let Some(paths) = paths {
                            // Those that this batch bound to it are its too.
                            let fresh =
                                effects.bound.iter().filter(|(.., to)| *to == id).map(|(path, ..)| path.clone());
                            let all: BTreeSet<String> = paths.into_iter().chain(fresh).collect();
                            let changes = end(&mut records, id, &all)?;
                            leases.remove(id)?;
                            effects.ended.push(id);
                            if !changes.is_empty() {
                                revision += 1;
                                effects.told.push(Changes { revision, changes });
                            }
                        }
                        effects.answers.push(answer(done, Ok(())));
                    }
                    Request::Watch(_) => {}
                }
            }
            txn.open_table(META)?.insert("revision", revision)?;
        }
        txn.commit()?;
        Ok(())
    }

    /// One transaction; the outer error is the disk's.
    fn one(
        &self,
        records: &mut redb::Table<'_, &str, &[u8]>,
        conditions: &[Condition],
        ops: Vec<Op>,
        revision: &mut u64,
        effects: &mut Effects,
    ) -> Result<Result<Option<u64>, Error>> {
        for condition in conditions {
            let found = records.get(condition.table.path(&condition.key).as_str())?;
            let modified = found.and_then(|bytes| decode("", bytes.value())).map_or(0, |record| record.modified);
            if modified != condition.modified {
                return Ok(Ok(None));
            }
        }
        for op in &ops {
            if let Op::Put { lease, .. } = op
                && *lease != 0
                && (effects.ended.contains(lease) || !self.knows(*lease, effects))
            {
                return Ok(Err(Error::LeaseEnded));
            }
        }
        let next = *revision + 1;
        let mut changes = Vec::new();
        for op in ops {
            match op {
                Op::Put { table, key, value, lease } => {
                    let path = table.path(&key);
                    let old = records.get(path.as_str())?.and_then(|bytes| decode("", bytes.value()));
                    let created = old.as_ref().map_or(next, |old| old.created);
                    let record = Record { key: key.clone(), value, created, modified: next, lease };
                    records.insert(path.as_str(), encode(&record).as_slice())?;
                    effects.bound.push((path, old.map_or(0, |old| old.lease), lease));
                    changes.push(Change { table, key, record: Some(record) });
                }
                Op::Delete(table, key) => {
                    let path = table.path(&key);
                    let old = records.remove(path.as_str())?.and_then(|bytes| decode("", bytes.value()));
                    if let Some(old) = old {
                        effects.bound.push((path, old.lease, 0));
                        changes.push(Change { table, key, record: None });
                    }
                }
            }
        }
        if changes.is_empty() {
            return Ok(Ok(Some(0)));
        }
        *revision = next;
        effects.told.push(Changes { revision: next, changes });
        Ok(Ok(Some(next)))
    }

    fn knows(&self, lease: u64, effects: &Effects) -> bool {
        self.leases.lock().contains_key(&lease) || effects.granted.iter().any(|(id, _)| *id == lease)
    }

    /// What is on disk now becomes so in memory, and for watchers.
    fn take_effect(&mut self, effects: &mut Effects) {
        let mut held = self.leases.lock();
        for (id, ttl) in effects.granted.drain(..) {
            held.insert(id, Lease { ttl, ends: Instant::now() + ttl, paths: BTreeSet::new() });
            self.leases.added.notify_one();
        }
        for (path, from, to) in effects.bound.drain(..) {
            if let Some(lease) = held.get_mut(&from) {
                lease.paths.remove(&path);
            }
            if let Some(lease) = held.get_mut(&to) {
                lease.paths.insert(path);
            }
        }
        for id in effects.ended.drain(..) {
            held.remove(&id);
        }
        drop(held);
        for changes in effects.told.drain(..) {
            self.revision = changes.revision;
            self.watchers.retain(|watcher| watcher.blocking_send(changes.clone()).is_ok());
        }
    }

    fn watch(&mut self) -> Result<Watch> {
        let table = self.db.begin_read()?.open_table(RECORDS)?;
        let mut records = Vec::new();
        for record in table.iter()? {
            let (path, bytes) = record?;
            let (table, key) =
                Table::split(path.value()).context("a record of an unknown kind: made by a newer Weft?")?;
            records.push((table, decode(key, bytes.value()).context("a damaged record")?));
        }
        let (watcher, changes) = mpsc::channel(QUEUE);
        self.watchers.retain(|watcher| !watcher.is_closed());
        self.watchers.push(watcher);
        Ok(Watch { revision: self.revision, records, changes })
    }
}

/// Removes what is bound to a lease.
fn end(records: &mut redb::Table<'_, &str, &[u8]>, lease: u64, paths: &BTreeSet<String>) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for path in paths {
        let bound = records.get(path.as_str())?.and_then(|bytes| decode("", bytes.value())).map(|record| record.lease);
        if bound == Some(lease)
            && let Some((table, key)) = Table::split(path)
        {
            records.remove(path.as_str())?;
            changes.push(Change { table, key: key.to_owned(), record: None });
        }
    }
    Ok(changes)
}

/// Answers with `result`, unless the batch as a whole has failed.
fn answer<T: Send + 'static>(done: oneshot::Sender<Result<T, Error>>, result: Result<T, Error>) -> Answer {
    Box::new(move |failure| {
        // Who gave up does not mind.
        let _ = done.send(failure.map_or(result, |failure| Err(failure.clone())));
    })
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
