//! The thread that writes the embedded store, and its recovery after a write that the disk refuses.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use redb::{Database, ReadableDatabase, ReadableTable, Table as RedbTable};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::file::{self, LEASES, META, Opened, Place, RECORDS};
use super::{Db, Lease, Leases, QUEUE, Request, closed, decode, encode, unavailable};
use crate::store::health::Health;
use crate::store::{Change, Changes, Condition, Error, Op, Record, Table, Watch};

/// The thread that writes.
pub(super) struct Writer {
    db: Arc<Db>,
    place: Place,
    leases: Arc<Leases>,
    revision: u64,
    watchers: Vec<mpsc::Sender<Changes>>,
    health: Arc<Health>,
}

/// Answers a caller; the error is that of the batch as a whole.
type Answer = Box<dyn FnOnce(Option<&Error>) + Send>;

/// The effects of a batch once it is on disk.
#[derive(Default)]
struct Effects {
    notifications: Vec<Changes>,
    /// Path, previous lease and current lease.
    bound: Vec<(String, u64, u64)>,
    granted: Vec<(u64, Duration)>,
    ended: Vec<u64>,
    answers: Vec<Answer>,
}

/// The tables of one write transaction.
struct Tables<'t> {
    records: RedbTable<'t, &'static str, &'static [u8]>,
    leases: RedbTable<'t, u64, u64>,
}

impl Writer {
    pub(super) fn new(db: Arc<Db>, place: Place, leases: Arc<Leases>, revision: u64, health: Arc<Health>) -> Writer {
        Writer { db, place, leases, revision, watchers: Vec::new(), health }
    }

    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
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
        let (mut work, mut watching, mut recover) = (Vec::new(), Vec::new(), false);
        for request in batch {
            match request {
                Request::Watch(done) => watching.push(done),
                Request::Recover => recover = true,
                other => work.push(other),
            }
        }
        if recover && self.health.problem().is_some() {
            self.recover();
        }
        self.work(work);
        for watching in watching {
            let watch = self.watch();
            // The caller may have gone.
            let _ = watching.send(watch);
        }
    }

    fn work(&mut self, work: Vec<Request>) {
        if work.is_empty() {
            return;
        }
        let mut effects = Effects::default();
        let (time, db) = (file::now(), self.db.clone());
        let db = db.read().unwrap_or_else(PoisonError::into_inner);
        let writes = work.len();
        let failure = match db.as_ref() {
            None => {
                self.health.count_refused(writes);
                effects.answers.extend(work.into_iter().map(Request::refuse));
                Some(closed(&self.health))
            }
            // A file that another program has written meanwhile may violate assumptions of the database.
            Some(open) => match catch_unwind(AssertUnwindSafe(|| self.write(open, work, time, &mut effects))) {
                Ok(Ok(())) => None,
                Ok(Err(e)) => {
                    drop(db);
                    Some(self.failed(&e, writes))
                }
                Err(panic) => {
                    drop(db);
                    Some(self.failed(&anyhow::anyhow!("{}", file::words(panic.as_ref())), writes))
                }
            },
        };
        if failure.is_none() {
            self.take_effect(&mut effects);
            self.place.note(self.revision, time);
        }
        for answer in effects.answers {
            answer(failure.as_ref());
        }
    }

    /// Reports a batch of writes that the disk refused, and undoes its partial effects by reopening the database.
    fn failed(&mut self, error: &anyhow::Error, writes: usize) -> Error {
        let reason = self.place.write_failure(error);
        self.health.report_failure(&reason, writes);
        let before = self.revision;
        match self.reopen() {
            Ok(revision) if revision <= before => Error::Unavailable(reason),
            // It exists, or cannot be looked up.
            Ok(_) | Err(_) => Error::Unknown(reason),
        }
    }

    /// Reopens the database if needed, and reports recovery once it accepts a write.
    fn recover(&mut self) {
        let closed = self.db.read().unwrap_or_else(PoisonError::into_inner).is_none();
        if closed && let Err(e) = self.reopen() {
            self.health.report_failure(&format!("{e:#}"), 0);
            return;
        }
        let probe = || {
            let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
            file::probe(db.as_ref().context("it is closed")?)
        };
        let probed = catch_unwind(AssertUnwindSafe(probe));
        match probed.unwrap_or_else(|panic| Err(anyhow::anyhow!("{}", file::words(panic.as_ref())))) {
            Ok(()) => self.health.report_recovery(),
            Err(e) => {
                self.failed(&e, 0);
            }
        }
    }

    /// Closes the database and opens it, which undoes the effects of a failed write. Returns the revision on disk.
    fn reopen(&mut self) -> Result<u64> {
        let db = self.db.clone();
        let mut db = db.write().unwrap_or_else(PoisonError::into_inner);
        *db = None;
        let Opened { db: opened, revision, leases } = self.place.open()?;
        *db = Some(opened);
        drop(db);
        let mut leases_by_id = self.leases.lock();
        let known = std::mem::replace(&mut *leases_by_id, leases);
        for (id, lease) in leases_by_id.iter_mut() {
            if let Some(known) = known.get(id) {
                lease.ends = known.ends;
            }
        }
        drop(leases_by_id);
        self.leases.added.notify_one();
        if revision != self.revision {
            // Watchers compare their state with the store, and continue from there.
            self.watchers.clear();
            self.revision = revision.max(self.revision);
        }
        Ok(revision)
    }

    fn write(&self, db: &Database, work: Vec<Request>, time: u64, effects: &mut Effects) -> Result<()> {
        let mut work = work.into_iter();
        let result = self.write_all(db, &mut work, time, effects);
        // Requests that were not reached are answered like the rest of the batch.
        effects.answers.extend(work.map(Request::refuse));
        result
    }

    fn write_all(
        &self,
        db: &Database,
        work: &mut impl Iterator<Item = Request>,
        time: u64,
        effects: &mut Effects,
    ) -> Result<()> {
        let txn = db.begin_write()?;
        let mut revision = self.revision;
        {
            let mut tables = Tables { records: txn.open_table(RECORDS)?, leases: txn.open_table(LEASES)? };
            for request in work {
                let (answer, result) = self.request(&mut tables, request, &mut revision, effects);
                effects.answers.push(answer);
                result?;
            }
            let mut meta = txn.open_table(META)?;
            meta.insert("revision", revision)?;
            meta.insert("time", time)?;
        }
        txn.commit()?;
        Ok(())
    }

    /// Does one request; the error is the disk's.
    fn request(
        &self,
        tables: &mut Tables<'_>,
        request: Request,
        revision: &mut u64,
        effects: &mut Effects,
    ) -> (Answer, Result<()>) {
        match request {
            Request::Txn(conditions, ops, done) => {
                settle(done, self.one(&mut tables.records, &conditions, ops, revision, effects))
            }
            Request::Grant(ttl, done) => {
                let id = rand::random::<u64>() >> 1 | 1;
                let granted = tables.leases.insert(id, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
                effects.granted.push((id, ttl));
                settle(done, granted.map(|_| Ok(id)).map_err(Into::into))
            }
            Request::End(id, anyway, done) => settle(done, self.end(tables, id, anyway, revision, effects).map(Ok)),
            other @ (Request::Watch(_) | Request::Recover) => (other.refuse(), Ok(())),
        }
    }

    /// Ends a lease: always, or only if it has expired.
    fn end(
        &self,
        tables: &mut Tables<'_>,
        id: u64,
        anyway: bool,
        revision: &mut u64,
        effects: &mut Effects,
    ) -> Result<()> {
        let due = |lease: &Lease| anyway || lease.ends <= Instant::now();
        let paths = self.leases.lock().get(&id).filter(|lease| due(lease)).map(|lease| lease.paths.clone());
        let Some(paths) = paths else { return Ok(()) };
        // Records that this batch bound to the lease end with it too.
        let fresh = effects.bound.iter().filter(|(.., to)| *to == id).map(|(path, ..)| path.clone());
        let all: BTreeSet<String> = paths.into_iter().chain(fresh).collect();
        let changes = end(&mut tables.records, id, &all)?;
        tables.leases.remove(id)?;
        effects.ended.push(id);
        if !changes.is_empty() {
            *revision += 1;
            effects.notifications.push(Changes { revision: *revision, changes });
        }
        Ok(())
    }

    /// One transaction; the outer error is the disk's.
    fn one(
        &self,
        records: &mut RedbTable<'_, &str, &[u8]>,
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
        effects.notifications.push(Changes { revision: next, changes });
        Ok(Ok(Some(next)))
    }

    fn knows(&self, lease: u64, effects: &Effects) -> bool {
        self.leases.lock().contains_key(&lease) || effects.granted.iter().any(|(id, _)| *id == lease)
    }

    /// Applies the effects of a batch on disk to memory and watchers.
    fn take_effect(&mut self, effects: &mut Effects) {
        let mut leases_by_id = self.leases.lock();
        for (id, ttl) in effects.granted.drain(..) {
            leases_by_id.insert(id, Lease { ttl, ends: Instant::now() + ttl, paths: BTreeSet::new() });
            self.leases.added.notify_one();
        }
        for (path, from, to) in effects.bound.drain(..) {
            if let Some(lease) = leases_by_id.get_mut(&from) {
                lease.paths.remove(&path);
            }
            if let Some(lease) = leases_by_id.get_mut(&to) {
                lease.paths.insert(path);
            }
        }
        for id in effects.ended.drain(..) {
            leases_by_id.remove(&id);
        }
        drop(leases_by_id);
        for changes in effects.notifications.drain(..) {
            self.revision = changes.revision;
            self.watchers.retain(|watcher| watcher.blocking_send(changes.clone()).is_ok());
        }
    }

    fn watch(&mut self) -> Result<Watch, Error> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let records = list(db.as_ref().ok_or_else(|| closed(&self.health))?).map_err(unavailable)?;
        drop(db);
        let (watcher, changes) = mpsc::channel(QUEUE);
        self.watchers.retain(|watcher| !watcher.is_closed());
        self.watchers.push(watcher);
        Ok(Watch { revision: self.revision, records, changes })
    }
}

fn list(db: &Database) -> Result<Vec<(Table, Record)>> {
    let table = db.begin_read()?.open_table(RECORDS)?;
    let mut records = Vec::new();
    for record in table.iter()? {
        let (path, bytes) = record?;
        let (table, key) = Table::split(path.value()).context("a record of an unknown kind: made by a newer Weft?")?;
        records.push((table, decode(key, bytes.value()).context("a damaged record")?));
    }
    Ok(records)
}

impl Request {
    /// Answers with the error of the batch, which did not do it.
    fn refuse(self) -> Answer {
        let not_done = || Error::Unavailable("the batch failed before it".into());
        match self {
            Request::Txn(.., done) => answer(done, Err(not_done())),
            Request::Grant(_, done) => answer(done, Err(not_done())),
            Request::End(.., done) => answer(done, Err(not_done())),
            Request::Watch(done) => answer(done, Err(not_done())),
            Request::Recover => Box::new(|_| {}),
        }
    }
}

/// Removes the records bound to a lease.
fn end(records: &mut RedbTable<'_, &str, &[u8]>, lease: u64, paths: &BTreeSet<String>) -> Result<Vec<Change>> {
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

/// The answer to a request, and the disk's error.
fn settle<T: Send + 'static>(
    done: oneshot::Sender<Result<T, Error>>,
    result: Result<Result<T, Error>>,
) -> (Answer, Result<()>) {
    match result {
        Ok(result) => (answer(done, result), Ok(())),
        Err(e) => (answer(done, Err(Error::Unavailable(format!("{e:#}")))), Err(e)),
    }
}

/// Answers with `result`, unless the batch as a whole has failed.
fn answer<T: Send + 'static>(done: oneshot::Sender<Result<T, Error>>, result: Result<T, Error>) -> Answer {
    Box::new(move |failure| {
        // The caller may have gone.
        let _ = done.send(failure.map_or(result, |failure| Err(failure.clone())));
    })
}
