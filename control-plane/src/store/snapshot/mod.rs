//! Backup and restore of the store: one file with every record that is not bound to a lease. [`weft_files::snapshot`]
//! has the form of the file.

pub mod automatic;

use std::collections::HashSet;

use weft_files::snapshot;
use weft_proto::v1::SnapshotRecord;

use crate::store::batch::{self, Interrupted};
use crate::store::{self, Op, Record, Shared, Table};

/// The content of a store, as a file.
///
/// # Errors
/// If the store cannot be read.
pub async fn save(store: &Shared) -> Result<Vec<u8>, store::Error> {
    Ok(encode(store.watch().await?.records))
}

fn encode(records: Vec<(Table, Record)>) -> Vec<u8> {
    let kept = records.into_iter().filter(|(_, record)| record.lease == 0);
    snapshot::encode(kept.map(|(table, record)| SnapshotRecord {
        table: table.name().into(),
        key: record.key,
        value: record.value,
    }))
}

/// The records of a file.
///
/// # Errors
/// If it is not a snapshot, is damaged, or has records of an unknown table.
pub fn decode(file: &[u8]) -> Result<Vec<(Table, String, Vec<u8>)>, String> {
    let known = |record: SnapshotRecord| {
        let table = Table::ALL.into_iter().find(|table| table.name() == record.table);
        let table = table.ok_or_else(|| {
            format!("a record of the kind {:?}, which this version of Weft does not support", record.table)
        })?;
        Ok((table, record.key, record.value))
    };
    snapshot::decode(file)?.into_iter().map(known).collect()
}

/// The result of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Number of records in the store now.
    pub records: usize,
    /// Whether secrets have changed, which control planes read again only at a restart.
    pub secrets: bool,
}

/// Replaces the content of the store by `records`; other records are removed, except those bound to a lease. It is one
/// transaction if the store accepts one of that size.
///
/// # Errors
/// If the store refuses, with the progress.
pub async fn restore(store: &Shared, records: Vec<(Table, String, Vec<u8>)>) -> Result<Restored, Interrupted> {
    let unread = |error| Interrupted { done: 0, unknown: 0, total: 0, error };
    let now = store.watch().await.map_err(unread)?.records;
    let wanted: HashSet<(Table, &str)> = records.iter().map(|(table, key, _)| (*table, key.as_str())).collect();
    let surplus = now.iter().filter(|(table, record)| record.lease == 0 && !wanted.contains(&(*table, &record.key)));
    let mut ops: Vec<Op> = surplus.map(|(table, record)| Op::delete(*table, record.key.clone())).collect();
    drop(wanted);
    let count = records.len();
    let held: std::collections::HashMap<(Table, &str), &Record> =
        now.iter().map(|(table, record)| ((*table, record.key.as_str()), record)).collect();
    for (table, key, value) in records {
        let same = held.get(&(table, key.as_str())).is_some_and(|held| held.value == value && held.lease == 0);
        if !same {
            ops.push(Op::put(table, key, value));
        }
    }
    let table = |op: &Op| match op {
        Op::Put { table, .. } | Op::Delete(table, _) => *table,
    };
    let secrets = ops.iter().any(|op| table(op) == Table::Secrets);
    batch::write(ops, store.limits(), |part| async { store.txn(Vec::new(), part).await.map(drop) }).await?;
    Ok(Restored { records: count, secrets })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::store::MAX_OPS;
    use crate::store::embedded::Embedded;

    #[tokio::test]
    async fn a_restore_replaces_the_content_of_the_store() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let from: Shared = Arc::new(Embedded::open(one.path()).unwrap());
        let to: Shared = Arc::new(Embedded::open(two.path()).unwrap());
        let lease = from.grant(Duration::from_secs(60)).await.unwrap();
        let many = (0..250).map(|n| Op::put(Table::Kv, format!("default/{n}"), format!("{n}")));
        for ops in many.collect::<Vec<_>>().chunks(MAX_OPS) {
            from.txn(vec![], ops.to_vec()).await.unwrap();
        }
        from.txn(vec![], vec![Op::put(Table::Secrets, "ca", "key"), Op::put_leased(Table::Alive, "n", "", lease)])
            .await
            .unwrap();
        to.txn(vec![], vec![Op::put(Table::Kv, "default/surplus", ""), Op::put(Table::Kv, "default/7", "other")])
            .await
            .unwrap();
        let file = save(&from).await.unwrap();
        let done = restore(&to, decode(&file).unwrap()).await.unwrap();
        assert_eq!(done, Restored { records: 251, secrets: true });
        assert_eq!(save(&to).await.unwrap(), file);
        assert_eq!(to.get(Table::Kv, "default/surplus").await.unwrap(), None);
        let again = restore(&to, decode(&file).unwrap()).await.unwrap();
        assert!(!again.secrets, "nothing is another now");
        let revision = to.watch().await.unwrap().revision;
        restore(&to, decode(&file).unwrap()).await.unwrap();
        assert_eq!(to.watch().await.unwrap().revision, revision, "unchanged records are not written");
    }

    #[test]
    fn a_record_of_an_unknown_table_is_refused() {
        let record = SnapshotRecord { table: "later".into(), key: "a".into(), value: Vec::new() };
        assert!(decode(&snapshot::encode([record])).unwrap_err().contains("\"later\""));
    }
}
