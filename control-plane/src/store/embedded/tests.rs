use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::store::Change;

#[path = "faults.rs"]
mod faults;

fn put(key: &str, value: &str) -> Op {
    Op::put(Table::Policies, key, value)
}

/// Opens it again; the thread of a dropped one holds the file until its queue closes.
pub(crate) fn open(dir: &Path) -> Embedded {
    let end = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        match Embedded::open(dir) {
            Ok(store) => return store,
            Err(e) if std::time::Instant::now() > end => panic!("{e:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[tokio::test]
async fn acknowledged_writes_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.txn(vec![], vec![put("a", "1"), put("b", "2")]).await.unwrap();
    store.txn(vec![], vec![Op::delete(Table::Policies, "a"), put("b", "3")]).await.unwrap();
    drop(store);
    let store = open(dir.path());
    let watch = store.watch().await.unwrap();
    let record = Record { key: "b".into(), value: b"3".to_vec(), created: 2, modified: 3, lease: 0 };
    assert_eq!((watch.revision, watch.records), (3, vec![(Table::Policies, record)]));
    assert_eq!(store.get(Table::Policies, "a").await, Ok(None));
    let mode = std::fs::metadata(dir.path().join("weft.redb")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn lease_timers_restart_with_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let lease = store.grant(Duration::from_millis(50)).await.unwrap();
    store.txn(vec![], vec![Op::put_leased(Table::Alive, "a", "x", lease)]).await.unwrap();
    drop(store);
    let store = open(dir.path());
    assert!(store.keep_alive(lease).await.unwrap(), "it is known, and lives from now");
    let mut watch = store.watch().await.unwrap();
    assert_eq!(watch.records.len(), 1);
    let ended = watch.changes.recv().await.unwrap();
    assert_eq!(ended.changes, [Change { table: Table::Alive, key: "a".into(), record: None }]);
    assert!(!store.keep_alive(lease).await.unwrap());
}
