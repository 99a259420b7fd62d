//! A disk that fails and recovers, and a file that is damaged.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicI32, Ordering};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use super::super::*;
use super::{open, put};

/// Storage whose writes fail with an error of the system while there is one.
#[derive(Debug)]
struct Faulty {
    file: FileBackend,
    error: Arc<AtomicI32>,
}

impl Faulty {
    fn check(&self) -> io::Result<()> {
        match self.error.load(Ordering::SeqCst) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

fn faulty(dir: &Path, error: &Arc<AtomicI32>) -> Embedded {
    let error = error.clone();
    let storage: Storage = Box::new(move |builder, file: File| {
        builder.create_with_backend(Faulty { file: FileBackend::new(file)?, error: error.clone() })
    });
    Embedded::open_with(dir, storage).unwrap()
}

async fn until_recovered(store: &Embedded) {
    let end = Instant::now() + Duration::from_secs(20);
    while store.health().problem().is_some() {
        assert!(Instant::now() < end, "{:?}", store.health().problem());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_store_recovers_when_the_disk_does() {
    let dir = tempfile::tempdir().unwrap();
    let error = Arc::<AtomicI32>::default();
    let store = faulty(dir.path(), &error);
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let mut watch = store.watch().await.unwrap();
    let mut acknowledged = vec!["a".to_owned()];
    store.txn(vec![], vec![put("a", "1")]).await.unwrap();
    // No space, a file system that turned read-only, an input/output error.
    for (number, text) in [(28, "No space left"), (30, "Read-only file system"), (5, "Input/output error")] {
        error.store(number, Ordering::SeqCst);
        let refused = store.txn(vec![], vec![put("lost", "1")]).await.unwrap_err().to_string();
        assert!(refused.contains("weft.redb") && refused.contains(text), "{refused}");
        let problem = store.health().problem().unwrap();
        assert!(problem.reason.contains(text), "{problem:?}");
        assert!(store.txn(vec![], vec![put("lost", "2")]).await.is_err());
        assert!(store.keep_alive(lease).await.unwrap(), "leases live in memory");
        error.store(0, Ordering::SeqCst);
        until_recovered(&store).await;
        let key = format!("after-{number}");
        store.txn(vec![], vec![put(&key, "1")]).await.unwrap();
        acknowledged.push(key);
    }
    assert!(store.health().failures() >= 6, "{}", store.health().failures());
    store.txn(vec![], vec![Op::put_leased(Table::Policies, "leased", "x", lease)]).await.unwrap();
    acknowledged.push("leased".into());
    while let Some(changes) = watch.changes.recv().await {
        assert!(changes.changes.iter().all(|change| change.key != "lost"), "a watcher saw a write that failed");
        if changes.changes.iter().any(|change| change.key == "leased") {
            break;
        }
    }
    drop((store, watch));
    let mut found: Vec<String> =
        open(dir.path()).watch().await.unwrap().records.into_iter().map(|(_, record)| record.key).collect();
    acknowledged.sort();
    found.sort();
    assert_eq!(found, acknowledged);
}

/// A store of some hundred records, as left by a kill or an orderly end: its file, the file of the last revision, and
/// the records of each revision.
struct Sample {
    file: Vec<u8>,
    last: Vec<u8>,
    states: Vec<Vec<(String, Vec<u8>)>>,
}

fn sample(killed: bool) -> Sample {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weft.redb");
    let (mut states, mut file) = (vec![Vec::new()], Vec::new());
    runtime.block_on(async {
        let store = open(dir.path());
        for number in 0..40_u32 {
            let value = number.to_string().repeat(200);
            store.txn(vec![], (0..5).map(|n| put(&format!("{number}-{n}"), &value)).collect()).await.unwrap();
            states.push(state(&store).await);
        }
        file = std::fs::read(&path).unwrap();
    });
    // The database ends with its last handle and is closed by its thread then.
    drop(runtime);
    if !killed {
        drop(open_plain(dir.path()));
        file = std::fs::read(&path).unwrap();
    }
    Sample { file, last: std::fs::read(dir.path().join("weft.redb.last")).unwrap(), states }
}

fn open_plain(dir: &Path) -> Database {
    let end = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        match Database::open(dir.join("weft.redb")) {
            Ok(db) => return db,
            Err(e) if std::time::Instant::now() > end => panic!("{e}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

async fn state(store: &Embedded) -> Vec<(String, Vec<u8>)> {
    let records = store.watch().await.unwrap().records;
    records.into_iter().map(|(_, record)| (record.key, record.value)).collect()
}

#[derive(Debug, Clone)]
enum Damage {
    FlipAt(usize),
    Emptied,
    Flip(prop::sample::Index, u8),
    Zero(prop::sample::Index),
    Cut(prop::sample::Index),
    Garbage(prop::sample::Index, Vec<u8>),
}

fn damages() -> impl Strategy<Value = (bool, Damage)> {
    let index = any::<prop::sample::Index>;
    let damage = prop_oneof![
        (index(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        index().prop_map(Damage::Zero),
        index().prop_map(Damage::Cut),
        (index(), prop::collection::vec(any::<u8>(), 1..600)).prop_map(|(at, bytes)| Damage::Garbage(at, bytes)),
    ];
    (any::<bool>(), damage)
}

impl Damage {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Damage::FlipAt(at) => file[*at] ^= 1,
            Damage::Emptied => file.clear(),
            Damage::Flip(at, bit) => {
                let at = at.index(file.len());
                file[at] ^= 1 << bit;
            }
            Damage::Zero(at) => {
                let page = at.index(file.len() / 4096) * 4096;
                file[page..page + 4096].fill(0);
            }
            Damage::Cut(at) => file.truncate(at.index(file.len())),
            Damage::Garbage(at, bytes) => {
                let at = at.index(file.len() - bytes.len());
                file[at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
    }
}

/// The result must be a complete state, that of an earlier commit and a count of the repair, or an error with the
/// remedy.
fn check_damage(sample: &Sample, damage: &Damage) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let mut file = sample.file.clone();
    damage.apply(&mut file);
    std::fs::write(dir.path().join("weft.redb"), file).unwrap();
    std::fs::write(dir.path().join("weft.redb.last"), &sample.last).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = match Embedded::open(dir.path()) {
            Ok(store) => store,
            Err(e) => {
                let text = format!("{e:#}");
                let has_remedy = text.contains("weft.redb: it is damaged") || text.contains("another release");
                prop_assert!(has_remedy, "{}", text);
                prop_assert!(text.contains("weftctl snapshot restore") || !text.contains("damaged"), "{}", text);
                return Ok(());
            }
        };
        let found = state(&store).await;
        let at = sample.states.iter().rposition(|state| *state == found);
        prop_assert!(at.is_some(), "the state is that of no commit: {} records", found.len());
        let lost = at != Some(sample.states.len() - 1);
        prop_assert_eq!(store.health().repairs() > 0, lost, "a loss is reported, and nothing else");
        store.txn(vec![], vec![put("new", "1")]).await.unwrap();
        Ok(())
    })
}

#[test]
fn damage_leads_to_a_complete_state_a_reported_repair_or_an_error_with_a_remedy() {
    let samples = [sample(false), sample(true)];
    let mut runner = TestRunner::new(ProptestConfig { cases: 150, ..ProptestConfig::default() });
    runner.run(&damages(), |(killed, damage)| check_damage(&samples[usize::from(killed)], &damage)).unwrap();
    // The header names the last commit: a bit of each byte.
    for at in 0..320 {
        check_damage(&samples[1], &Damage::FlipAt(at)).unwrap_or_else(|e| panic!("byte {at}: {e}"));
    }
    check_damage(&samples[0], &Damage::Emptied).unwrap();
}
