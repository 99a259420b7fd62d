//! Backup and restore of the store: one file that holds everything but what is bound to a lease.
//!
//! The file is a line that names its form, the records (each with its length before it, as protobuf delimits messages),
//! and at the end the SHA-256 of all before, so that half a file is never restored. It holds the keys of the certificate
//! authority: it is written readable by its owner alone.

pub mod automatic;

use std::collections::HashSet;

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use prost::Message;
use weft_proto::v1::SnapshotRecord;

use crate::store::batch::{self, Interrupted};
use crate::store::{self, Op, Record, Shared, Table};

/// First line of a file.
const FORM: &[u8] = b"weft-snapshot-1\n";
/// Largest file that is restored, bytes: it is checked as a whole before anything is changed.
pub const MAX_FILE: usize = 1 << 30;

/// What there is in a store, as a file.
///
/// # Errors
/// When the store cannot be read.
pub async fn save(store: &Shared) -> Result<Vec<u8>, store::Error> {
    Ok(encode(store.watch().await?.records))
}

fn encode(records: Vec<(Table, Record)>) -> Vec<u8> {
    let mut file = FORM.to_vec();
    for (table, record) in records.into_iter().filter(|(_, record)| record.lease == 0) {
        let record = SnapshotRecord { table: table.name().into(), key: record.key, value: record.value };
        file.extend(record.encode_length_delimited_to_vec());
    }
    let sum = digest(&SHA256, &file);
    file.extend_from_slice(sum.as_ref());
    file
}

/// The records of a file.
///
/// # Errors
/// When it is no snapshot, or damaged; in words for whoever gave it.
pub fn decode(file: &[u8]) -> Result<Vec<(Table, String, Vec<u8>)>, String> {
    let body_at = file.len().checked_sub(SHA256_OUTPUT_LEN).filter(|at| *at >= FORM.len() && file.starts_with(FORM));
    let (body, sum) = file.split_at(body_at.ok_or("this is not a snapshot of Weft")?);
    if digest(&SHA256, body).as_ref() != sum {
        return Err("the snapshot is damaged: its checksum is another".into());
    }
    let mut left = body.get(FORM.len()..).unwrap_or_default();
    let mut records = Vec::new();
    while !left.is_empty() {
        let record =
            SnapshotRecord::decode_length_delimited(&mut left).map_err(|e| format!("a damaged record: {e}"))?;
        let table = Table::ALL.into_iter().find(|table| table.name() == record.table);
        let table =
            table.ok_or_else(|| format!("a record of the kind {:?}, which this Weft does not know", record.table))?;
        records.push((table, record.key, record.value));
    }
    Ok(records)
}

/// What a restore has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Records that the store has now.
    pub records: usize,
    /// Secrets are others now, which control planes take up when they are restarted.
    pub secrets: bool,
}

/// Replaces the content of the store by `records`; other records are removed, except those bound to a lease. It is one transaction
/// where the store takes one of that size.
///
/// # Errors
/// When the store refuses; how far it came.
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
    async fn what_was_saved_is_restored_and_nothing_else() {
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
        assert_eq!(to.watch().await.unwrap().revision, revision, "what is the same is not written");
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let record = |key: &str| Record { key: key.into(), value: b"v".to_vec(), created: 2, modified: 2, lease: 0 };
        let file = encode(vec![(Table::Kv, record("a")), (Table::Sessions, record("b"))]);
        assert_eq!(decode(&file).unwrap().len(), 2);
        assert!(
            decode(b"").is_err() && decode(b"weft-snapshot-1\n").is_err() && decode(&file[..file.len() - 1]).is_err()
        );
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert!(decode(&damaged).is_err(), "byte {at}");
        }
    }
}
