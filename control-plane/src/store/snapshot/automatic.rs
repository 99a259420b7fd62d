//! Automatic snapshots, so that a damaged store can be restored without preparation.
//!
//! They are beside the store, in a folder that only its owner can read, under names that sort by their time. One is
//! made when the newest is older than the interval and something has changed since; the oldest are removed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use time::OffsetDateTime;
use time::macros::format_description;

use super::encode;
use crate::store::Shared;
use weft_core::backoff::jittered;

/// Folder of the snapshots in the data folder.
const FOLDER: &str = "snapshots";
/// Suffix of the names.
const ENDING: &str = ".snapshot";
/// Maximum pause after a failed one.
const RETRY: Duration = Duration::from_secs(60);

/// The interval of snapshots and their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Time between two; zero: none are made.
    pub interval: Duration,
    /// Number of snapshots that are kept, at least one.
    pub keep: usize,
}

/// Counters of snapshots.
#[derive(Debug, Default)]
pub struct Counts {
    /// Snapshots made since the start.
    pub written: AtomicU64,
    /// Snapshots that failed since the start.
    pub failed: AtomicU64,
}

/// The newest snapshot of a data folder.
pub fn newest(data_dir: &Path) -> Option<PathBuf> {
    list(&data_dir.join(FOLDER)).pop()
}

/// The snapshots of a folder, the oldest first.
fn list(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = paths.filter(|path| path.to_string_lossy().ends_with(ENDING)).collect();
    found.sort();
    found
}

/// Makes snapshots for the life of the process. To be spawned.
pub async fn keep(store: Shared, data_dir: PathBuf, settings: Settings, counts: Arc<Counts>) {
    let folder = data_dir.join(FOLDER);
    let age = newest(&data_dir).and_then(|path| path.metadata().ok()?.modified().ok()?.elapsed().ok());
    // Without an earlier one the first is made at once: a mesh has its keys from the start.
    let mut pause = age.map_or(Duration::ZERO, |age| settings.interval.saturating_sub(age));
    let mut saved = None;
    loop {
        tokio::time::sleep(pause).await;
        pause = settings.interval;
        match save(&store, &folder, settings.keep, &mut saved).await {
            Ok(None) => {}
            Ok(Some(path)) => {
                counts.written.fetch_add(1, Ordering::Relaxed);
                tracing::info!("wrote the snapshot {}", path.display());
            }
            Err(e) => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!("no automatic snapshot in {}: {e:#}", folder.display());
                // Several control planes may write to one folder or disk.
                pause = jittered((2 * RETRY).min(settings.interval), rand::random());
            }
        }
    }
}

/// Makes one, unless the store is still at the revision of the last one.
async fn save(store: &Shared, folder: &Path, keep: usize, saved: &mut Option<u64>) -> Result<Option<PathBuf>> {
    let watch = store.watch().await?;
    let revision = watch.revision;
    if *saved == Some(revision) {
        return Ok(None);
    }
    let (folder, records) = (folder.to_owned(), watch.records);
    drop(watch.changes);
    let written = tokio::task::spawn_blocking(move || {
        let file = encode(records);
        let path = write(&folder, &name(SystemTime::now()), &file)?;
        prune(&folder, keep);
        anyhow::Ok(path)
    });
    let path = written.await.context("the thread that writes it has panicked")??;
    *saved = Some(revision);
    Ok(Some(path))
}

fn name(now: SystemTime) -> String {
    let form = format_description!("weft-[year][month][day]T[hour][minute][second]Z");
    let stem = OffsetDateTime::from(now).format(form).unwrap_or_else(|_| "weft".into());
    format!("{stem}{ENDING}")
}

/// Writes a complete file, or leaves none.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let disk = rustix::fs::statvfs(folder)?;
    let (free, size) = (disk.f_bavail.saturating_mul(disk.f_frsize), bytes.len() as u64);
    // The store needs the space more than its copy does.
    ensure!(free / 2 >= size, "it needs {size} bytes and would leave less than that free ({free} bytes are free)");
    let (path, unfinished) = (folder.join(name), folder.join("unfinished"));
    let written = (|| {
        // A file that an earlier process left.
        let _ = std::fs::remove_file(&unfinished);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, &path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    written?;
    Ok(path)
}

/// Removes the oldest beyond `keep`.
fn prune(folder: &Path, keep: usize) {
    let found = list(folder);
    for path in found.iter().take(found.len().saturating_sub(keep.max(1))) {
        if let Err(e) = std::fs::remove_file(path) {
            tracing::warn!("cannot remove the old snapshot {}: {e}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::store::embedded::Embedded;
    use crate::store::snapshot::decode;
    use crate::store::{Op, Table};

    #[tokio::test]
    async fn snapshot_is_made_after_a_change_and_only_then() {
        let dir = tempfile::tempdir().unwrap();
        let store: Shared = Arc::new(Embedded::open(dir.path()).unwrap());
        store.txn(Vec::new(), vec![Op::put(Table::Kv, "a", "1")]).await.unwrap();
        let (folder, mut saved) = (dir.path().join(FOLDER), None);
        let path = save(&store, &folder, 2, &mut saved).await.unwrap().unwrap();
        assert_eq!(save(&store, &folder, 2, &mut saved).await.unwrap(), None);
        assert_eq!(newest(dir.path()), Some(path.clone()));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(decode(&std::fs::read(path).unwrap()).unwrap(), [(Table::Kv, "a".to_owned(), b"1".to_vec())]);
    }

    #[test]
    fn oldest_snapshots_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> =
            (1..=4).map(|n| name(SystemTime::UNIX_EPOCH + Duration::from_secs(n * 86_400))).collect();
        for name in &names {
            write(dir.path(), name, b"x").unwrap();
        }
        prune(dir.path(), 2);
        assert_eq!(list(dir.path()), [dir.path().join("weft-19700104T000000Z.snapshot"), dir.path().join(&names[3])]);
    }
}
