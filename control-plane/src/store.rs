//! The embedded store: what must survive the process, in one redb file that only its owner can read.
//!
//! State lives in memory and is rebuilt from here at start; only changes are written, never heartbeats. All writes go
//! through one thread that commits what has queued up together, so that a burst of registrations costs one fsync and
//! not one each. An acknowledged write is on disk.

use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};

/// One kind of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Registered instances, by `<namespace>/<node>/<service id>`.
    Registrations,
    /// Policies given through the API, by `<kind>/<namespace>/<name>`.
    Policies,
    /// The CA's key and roots, the key that signs tokens.
    Secrets,
    /// Virtual IPs by canonical host.
    VirtualIps,
}

impl Table {
    fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        TableDefinition::new(match self {
            Table::Registrations => "registrations",
            Table::Policies => "policies",
            Table::Secrets => "secrets",
            Table::VirtualIps => "virtual-ips",
        })
    }
}

/// A change to one record.
#[derive(Debug, Clone)]
pub enum Op {
    /// Create or replace.
    Put(Table, String, Vec<u8>),
    /// Remove, whether or not it exists.
    Delete(Table, String),
}

struct Commit {
    ops: Vec<Op>,
    done: oneshot::Sender<Result<(), String>>,
}

/// Commits that may wait for the writer before callers wait in turn.
const QUEUE: usize = 1024;

/// A handle on the store; clones share it.
#[derive(Clone)]
pub struct Store {
    db: Arc<Database>,
    writer: mpsc::Sender<Commit>,
}

impl Store {
    /// Opens or creates the store in `dir`.
    ///
    /// # Errors
    /// When the folder cannot be made, or the file is another process's, damaged or not ours.
    pub fn open(dir: &Path) -> Result<Store> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make the data folder {}", dir.display()))?;
        let path = dir.join("weft.redb");
        let context = || format!("cannot open the store {}", path.display());
        // The file holds keys: it is created with its final mode, and one left too open is closed before use.
        let file =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        file.and_then(|f| f.set_permissions(std::fs::Permissions::from_mode(0o600))).with_context(context)?;
        let db = Arc::new(Database::create(&path).with_context(context)?);
        let txn = db.begin_write().with_context(context)?;
        for table in [Table::Registrations, Table::Policies, Table::Secrets, Table::VirtualIps] {
            txn.open_table(table.definition()).with_context(context)?;
        }
        txn.commit().with_context(context)?;
        let (writer, queue) = mpsc::channel(QUEUE);
        let for_writer = db.clone();
        std::thread::Builder::new().name("store".into()).spawn(move || write_loop(&for_writer, queue))?;
        Ok(Store { db, writer })
    }

    /// All records of a table, by key.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn list(&self, table: Table) -> Result<Vec<(String, Vec<u8>)>> {
        let txn = self.db.begin_read()?;
        let open = txn.open_table(table.definition())?;
        let mut records = Vec::new();
        for entry in open.iter()? {
            let (key, value) = entry?;
            records.push((key.value().to_owned(), value.value().to_vec()));
        }
        Ok(records)
    }

    /// Applies all of `ops` or none, and returns when they are on disk.
    ///
    /// # Errors
    /// When the disk refuses; nothing was changed then.
    pub async fn commit(&self, ops: Vec<Op>) -> Result<()> {
        let (done, result) = oneshot::channel();
        self.writer.send(Commit { ops, done }).await.map_err(|_| anyhow::anyhow!("the store has stopped"))?;
        result.await.map_err(|_| anyhow::anyhow!("the store has stopped"))?.map_err(|e| anyhow::anyhow!(e))
    }
}

fn write_loop(db: &Database, mut queue: mpsc::Receiver<Commit>) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < QUEUE {
            match queue.try_recv() {
                Ok(next) => batch.push(next),
                Err(_) => break,
            }
        }
        let result = write(db, &batch).map_err(|e| format!("cannot write to the store: {e:#}"));
        for commit in batch {
            // A caller that gave up does not mind.
            let _ = commit.done.send(result.clone());
        }
    }
}

fn write(db: &Database, batch: &[Commit]) -> Result<()> {
    let txn = db.begin_write()?;
    for op in batch.iter().flat_map(|c| &c.ops) {
        match op {
            Op::Put(table, key, value) => {
                txn.open_table(table.definition())?.insert(key.as_str(), value.as_slice())?;
            }
            Op::Delete(table, key) => {
                txn.open_table(table.definition())?.remove(key.as_str())?;
            }
        }
    }
    txn.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn acknowledged_writes_are_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let put = |k: &str, v: &str| Op::Put(Table::Policies, k.into(), v.into());
        store.commit(vec![put("a", "1"), put("b", "2")]).await.unwrap();
        store.commit(vec![Op::Delete(Table::Policies, "a".into()), put("b", "3")]).await.unwrap();
        drop(store);
        // The writer thread holds the file until its queue closes.
        let store = loop {
            match Store::open(dir.path()) {
                Ok(store) => break store,
                Err(_) => std::thread::yield_now(),
            }
        };
        assert_eq!(store.list(Table::Policies).unwrap(), [("b".to_owned(), b"3".to_vec())]);
        assert_eq!(store.list(Table::Secrets).unwrap(), []);
        let mode = std::fs::metadata(dir.path().join("weft.redb")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
