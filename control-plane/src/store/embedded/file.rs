//! The file of the embedded store: how it is opened and checked, and the errors of a damaged one.
//!
//! Every page's checksum is verified at each open, which reads the whole file (gigabytes a second): otherwise a flipped
//! bit is found whenever its page is read, or never. The database can fall back to the commit before the last, and does
//! so after a kill in the middle of a commit as well; a second file with the revision of the last acknowledged write
//! decides whether an acknowledged write was lost. It is written after each commit and never synced: it outlives a
//! kill, and after a power failure it is at most older than the database, which proves nothing and causes no false
//! alarm.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, ReadableTable, StorageError, TableDefinition};
use tokio::time::Instant;

use super::{Lease, decode};
use crate::store::health::Health;
use crate::store::snapshot::automatic;

/// Records by `<table>/<key>`.
pub(super) const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// Times to live by lease, milliseconds.
pub(super) const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
/// `revision`: that of the last change; `time`: its time, seconds since 1970.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Written and removed again to test whether the disk accepts writes.
const PROBE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("probe");
/// Bytes of that: a disk with less space would fail the next write of a large record.
const PROBE_SIZE: usize = 256 << 10;

/// Name of the database in the data folder.
const NAME: &str = "weft.redb";
/// Name of the file with the last acknowledged revision.
const LAST: &str = "weft.redb.last";

/// Opens the database in a file. Tests insert storage that fails.
pub(super) type Storage = Box<dyn Fn(&Builder, File) -> Result<Database, DatabaseError> + Send>;

/// The file itself.
pub(super) fn plain() -> Storage {
    Box::new(|builder, file| builder.create_with_backend(FileBackend::new(file)?))
}

/// The folder of the database, and how it is opened.
pub(super) struct Place {
    dir: PathBuf,
    path: PathBuf,
    storage: Storage,
    last: Option<File>,
    health: Arc<Health>,
}

/// An open database and its initial content.
pub(super) struct Opened {
    pub(super) db: Database,
    pub(super) revision: u64,
    pub(super) leases: HashMap<u64, Lease>,
}

/// The last acknowledged write: its revision and its time, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Last {
    revision: u64,
    time: u64,
}

impl Last {
    /// Its form has a fixed length, so that it is overwritten in place, which a full disk allows.
    fn text(self) -> String {
        format!("revision {:020} unix {:020}\n", self.revision, self.time)
    }

    fn parse(text: &str) -> Option<Last> {
        let (revision, time) = text.strip_prefix("revision ")?.strip_suffix('\n')?.split_once(" unix ")?;
        Some(Last { revision: revision.parse().ok()?, time: time.parse().ok()? })
    }
}

/// The reason why a database was not opened.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("another process has it open: is another control plane running on this data folder?")]
    InUse,
    #[error("{0}")]
    Refused(String),
    #[error("it is damaged: {0}")]
    Damaged(String),
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Failure {
        use std::io::ErrorKind::{InvalidData, UnexpectedEof};
        match error {
            DatabaseError::DatabaseAlreadyOpen => Failure::InUse,
            DatabaseError::UpgradeRequired(version) => {
                Failure::Refused(format!("its format, version {version}, belongs to another release of Weft"))
            }
            DatabaseError::Storage(StorageError::Io(e)) if !matches!(e.kind(), InvalidData | UnexpectedEof) => {
                Failure::Refused(e.to_string())
            }
            other => Failure::Damaged(other.to_string()),
        }
    }
}

impl Place {
    pub(super) fn new(dir: &Path, storage: Storage, health: Arc<Health>) -> Result<Place> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make the data folder {}", dir.display()))?;
        Ok(Place { dir: dir.to_owned(), path: dir.join(NAME), storage, last: None, health })
    }

    /// Opens the database, created if the data folder has none, and verifies all of it.
    ///
    /// # Errors
    /// If it cannot be opened; the error has the file, the cause, and for a damaged file the remedy.
    pub(super) fn open(&mut self) -> Result<Opened> {
        let last = self.read_last();
        let written = last.filter(|last| last.revision > 1);
        let size = std::fs::metadata(&self.path).map_or(0, |file| file.len());
        if let (0, Some(last)) = (size, written) {
            let text = format!("it is empty or missing, and had revision {} of {}", last.revision, time(last.time));
            return Err(self.error(&Failure::Damaged(text)));
        }
        let (db, fell_back) = self.database().map_err(|failure| self.error(&failure))?;
        // Content that passes its checksums and is still invalid is damage as well.
        let read = catch_unwind(AssertUnwindSafe(|| read(&db)));
        let read = read.unwrap_or_else(|panic| Err(anyhow::anyhow!("{}", words(panic.as_ref()))));
        let (kept, leases) = read.map_err(|e| self.error(&Failure::Damaged(format!("{e:#}"))))?;
        self.report_repair(fell_back, kept, last);
        self.open_last();
        self.note(kept.revision, kept.time);
        Ok(Opened { db, revision: kept.revision, leases })
    }

    /// The database, and whether it is that of the commit before the last.
    fn database(&self) -> Result<(Database, bool), Failure> {
        // The file contains keys: it is created with its final mode, and the mode of an existing one is restricted
        // before use.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&self.path);
        let private = file.and_then(|file| {
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
            Ok(file)
        });
        let file = private.map_err(|e| Failure::Refused(e.to_string()))?;
        let fell_back = Rc::new(Cell::new(false));
        let callback = fell_back.clone();
        let mut builder = Builder::new();
        builder.set_check_integrity_on_open(true);
        // The database reports the progress of a repair: between its start and its second pass only if the last commit
        // does not verify and the one before is tried.
        builder.set_repair_callback(move |repair| {
            if (0.2..0.5).contains(&repair.progress()) {
                callback.set(true);
            }
        });
        // A file that another program has written may violate assumptions of the database.
        let opened = catch_unwind(AssertUnwindSafe(|| (self.storage)(&builder, file)));
        let db = opened.map_err(|panic| Failure::Damaged(words(panic.as_ref())))??;
        Ok((db, fell_back.get()))
    }

    fn report_repair(&self, fell_back: bool, restored: Last, last: Option<Last>) {
        let file = self.path.display();
        let (kept_at, restored) = (time(restored.time), restored.revision);
        match last {
            Some(last) if last.revision > restored => {
                self.health.count_repair();
                let lost = time(last.time);
                tracing::error!(
                    "the store {file} was damaged and is back at its last whole state, revision {restored} of {kept_at}: \
                     acknowledged writes up to revision {} of {lost} are lost; {}",
                    last.revision,
                    self.way_back()
                );
            }
            Some(_) if fell_back => {
                tracing::info!("the store {file}: an unfinished write was undone, all acknowledged writes are kept");
            }
            None if fell_back => {
                self.health.count_repair();
                tracing::warn!(
                    "the store {file} was repaired and is back at revision {restored} of {kept_at}: one write may be lost"
                );
            }
            _ => {}
        }
    }

    fn way_back(&self) -> String {
        match automatic::newest(&self.dir) {
            Some(snapshot) => format!("the newest automatic snapshot is {}", snapshot.display()),
            None => "there is no automatic snapshot".into(),
        }
    }

    fn error(&self, failure: &Failure) -> anyhow::Error {
        let file = self.path.display();
        let Failure::Damaged(_) = failure else { return anyhow::anyhow!("cannot open the store {file}: {failure}") };
        let dir = self.dir.display();
        let snapshot = automatic::newest(&self.dir);
        let snapshot = snapshot.as_ref().map_or_else(|| "SNAPSHOT".into(), |path| path.display().to_string());
        anyhow::anyhow!(
            "cannot open the store {file}: {failure}. To go on from a snapshot ({}): move {file}* out of {dir}, start the \
             control plane, run `weftctl snapshot restore {snapshot}`, and start the control plane once more",
            self.way_back()
        )
    }

    fn read_last(&self) -> Option<Last> {
        let path = self.dir.join(LAST);
        let text = std::fs::read_to_string(&path).ok()?;
        let last = Last::parse(&text);
        if last.is_none() {
            tracing::warn!("{} is damaged: a write that the store has lost cannot be detected", path.display());
        }
        last
    }

    /// A disk without space for it may have space for the database.
    fn open_last(&mut self) {
        let path = self.dir.join(LAST);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        if let Err(e) = &file {
            tracing::warn!("cannot open {}: {e}; a write that the store loses cannot be noticed", path.display());
        }
        self.last = file.ok();
    }

    /// Writes the revision of the last acknowledged write.
    pub(super) fn note(&self, revision: u64, time: u64) {
        let Some(last) = &self.last else { return };
        if let Err(e) = last.write_all_at(Last { revision, time }.text().as_bytes(), 0) {
            // The write itself is safe; without this a later loss of it would not be detected.
            tracing::debug!("cannot write {}: {e}", self.dir.join(LAST).display());
        }
    }

    /// The text of a failed write for the log and `weftctl status`.
    pub(super) fn write_failure(&self, error: &anyhow::Error) -> String {
        format!("cannot write {}: {error:#}", self.path.display())
    }
}

/// Revision, time and leases of a database; missing tables are created.
fn read(db: &Database) -> Result<(Last, HashMap<u64, Lease>)> {
    let txn = db.begin_write()?;
    let mut leases = HashMap::new();
    let (last, fresh);
    {
        let records = txn.open_table(RECORDS)?;
        for lease in txn.open_table(LEASES)?.iter()? {
            let (id, ttl) = lease?;
            let ttl = Duration::from_millis(ttl.value());
            leases.insert(id.value(), Lease { ttl, ends: Instant::now() + ttl, paths: BTreeSet::new() });
        }
        for record in records.iter()? {
            let (path, bytes) = record?;
            let record = decode("", bytes.value()).with_context(|| format!("the record {} is cut", path.value()))?;
            if let Some(lease) = leases.get_mut(&record.lease) {
                lease.paths.insert(path.value().to_owned());
            }
        }
        let mut meta = txn.open_table(META)?;
        let number = |key| -> Result<Option<u64>> { Ok(meta.get(key)?.map(|number| number.value())) };
        // Revision 1 is that of a store without records: for clients an index of 0 means none.
        let found = number("revision")?;
        fresh = found.is_none();
        last = Last { revision: found.unwrap_or(1), time: number("time")?.unwrap_or(0) };
        if fresh {
            meta.insert("revision", last.revision)?;
        }
    }
    // Reading must not write to a full disk.
    if fresh {
        txn.commit()?;
    } else {
        txn.abort()?;
    }
    Ok((last, leases))
}

/// Tests whether the disk accepts a write of some size.
pub(super) fn probe(db: &Database) -> Result<()> {
    let txn = db.begin_write()?;
    // Not zeroes, for which some file systems allocate nothing.
    txn.open_table(PROBE)?.insert("probe", vec![0x5a; PROBE_SIZE].as_slice())?;
    txn.commit()?;
    let txn = db.begin_write()?;
    txn.delete_table(PROBE)?;
    txn.commit()?;
    Ok(())
}

/// Seconds since 1970, as the log shows them.
fn time(unix: u64) -> String {
    if unix == 0 {
        return "an unknown time".into();
    }
    let at = i64::try_from(unix).ok().and_then(|unix| time::OffsetDateTime::from_unix_timestamp(unix).ok());
    let text = at.and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok());
    text.unwrap_or_else(|| format!("{unix} s since 1970"))
}

/// The text of a panic.
pub(super) fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("the database panicked").to_owned()
}

/// Now, in seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
