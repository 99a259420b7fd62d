//! Consul's key-value pairs: stored by the store, read from memory, and locked by [`crate::state::locks`].
//!
//! Each namespace has its own. Keys of the store are `<namespace>/<key>`.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use prost::Message;
use weft_core::backoff::jittered;
use weft_proto::v1::StoredPair;

use crate::identity::bounds::{self, Account, Accounts, Exceeded};
use crate::identity::caller::Writer;
use crate::state::kv::budgets::{Reserved, growth};
use crate::state::{Mesh, RETRY, Refusal, State, Topic};
use crate::store::batch::Interrupted;
use crate::store::{Condition, Op, Record, Table};

/// Largest value; Consul's `kv_max_value_size`.
pub const MAX_VALUE: usize = 512 << 10;
/// Longest key with its namespace; etcd and redb accept longer ones.
const MAX_KEY: usize = 1024;
/// Bounds of the pairs of all namespaces, in number and bytes: they are in memory.
const MAX_PAIRS: usize = 200_000;
const MAX_BYTES: usize = 256 << 20;
/// Bound on the deleted keys whose index is kept by name.
const TOMBSTONES: usize = 10_000;
/// Attempts of a change that conflicts with others.
pub(in crate::state) const TRIES: usize = 20;

/// One pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Its value.
    pub value: Vec<u8>,
    /// For the application.
    pub flags: u64,
    /// Number of times that it was locked.
    pub lock_index: u64,
    /// Session that holds its lock; empty: none.
    pub session: String,
    /// The identity that wrote it last; empty: a program without a sidecar.
    pub writer: String,
    /// Revision that created it.
    pub create_index: u64,
    /// Revision that changed it last.
    pub modify_index: u64,
}

impl Pair {
    pub(in crate::state) fn stored(&self) -> StoredPair {
        let Pair { value, flags, lock_index, session, writer, .. } = self.clone();
        StoredPair { value, flags, lock_index, session, writer }
    }

    /// Its bytes with its key in the store.
    pub(super) fn size(&self, path: &str) -> usize {
        path.len() + self.value.len()
    }
}

/// All pairs, by `<namespace>/<key>`.
#[derive(Debug, Default)]
pub struct Pairs {
    pairs: BTreeMap<String, Pair>,
    /// Bytes of all keys and values.
    bytes: usize,
    /// The pairs that each identity has written, and writes now.
    pub(super) written: Accounts,
    /// Revision at which a key was deleted.
    tombstones: BTreeMap<String, u64>,
    /// The highest such revision of pruned tombstones, or the revision at the start of the store.
    pruned: u64,
}

/// The condition of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Only {
    /// No condition.
    Always,
    /// The pair's `modify_index` is this; 0: there is no such pair.
    IfIndex(u64),
}

impl Pairs {
    /// An empty store; `revision` is its first.
    pub(in crate::state) fn new(revision: u64) -> Pairs {
        Pairs { pruned: revision, ..Pairs::default() }
    }

    /// One pair.
    pub fn get(&self, namespace: &str, key: &str) -> Option<&Pair> {
        self.pairs.get(&path(namespace, key))
    }

    /// Pairs whose key begins with `prefix`, in order.
    pub fn list<'a>(&'a self, namespace: &'a str, prefix: &str) -> impl Iterator<Item = (&'a str, &'a Pair)> {
        let start = path(namespace, prefix);
        let with = start.clone();
        let range = self.pairs.range::<String, _>((Bound::Included(start), Bound::Unbounded));
        range
            .take_while(move |(path, _)| path.starts_with(&with))
            .filter_map(move |(path, pair)| Some((path.get(namespace.len() + 1..)?, pair)))
    }

    /// Consul's index of one key: it grows when the pair changes or is deleted.
    pub fn index(&self, namespace: &str, key: &str) -> u64 {
        let path = path(namespace, key);
        let of_pair = self.pairs.get(&path).map(|pair| pair.modify_index);
        of_pair.or_else(|| self.tombstones.get(&path).copied()).unwrap_or(self.pruned)
    }

    /// The index of all keys that begin with `prefix`.
    pub fn prefix_index(&self, namespace: &str, prefix: &str) -> u64 {
        let start = path(namespace, prefix);
        let tombstones = self.tombstones.range::<String, _>((Bound::Included(&start), Bound::Unbounded));
        let tombstones = tombstones.take_while(|(path, _)| path.starts_with(&start)).map(|(_, index)| *index);
        let there = self.list(namespace, prefix).map(|(_, pair)| pair.modify_index);
        tombstones.chain(there).max().unwrap_or(self.pruned).max(self.pruned)
    }

    /// Pairs that a session has locked, by their key in the store.
    pub(in crate::state) fn held_by(&self, session: &str) -> Vec<(String, Pair)> {
        let held = self.pairs.iter().filter(|(_, pair)| pair.session == session);
        held.map(|(path, pair)| (path.clone(), pair.clone())).collect()
    }

    /// One pair, by its key in the store.
    pub(in crate::state) fn by_path(&self, path: &str) -> Option<&Pair> {
        self.pairs.get(path)
    }

    /// Keys in the store.
    pub(in crate::state) fn paths(&self) -> impl Iterator<Item = &String> {
        self.pairs.keys()
    }

    /// Applies a change of the store.
    pub(in crate::state) fn follow(
        &mut self,
        path: String,
        record: Option<Record>,
        revision: u64,
    ) -> Result<(), String> {
        let Some(record) = record else {
            if let Some(old) = self.pairs.remove(&path) {
                self.forget(&path, &old);
            }
            self.tombstones.insert(path, revision);
            if self.tombstones.len() > TOMBSTONES {
                // All at once: it is rare, and an index that is too high only wakes a waiter once.
                self.tombstones.clear();
                self.pruned = self.pruned.max(revision);
            }
            return Ok(());
        };
        let stored = StoredPair::decode(record.value.as_slice()).map_err(|e| e.to_string())?;
        self.tombstones.remove(&path);
        let pair = Pair {
            value: stored.value,
            flags: stored.flags,
            lock_index: stored.lock_index,
            session: stored.session,
            writer: stored.writer,
            create_index: record.created,
            modify_index: record.modified,
        };
        if let Some(old) = self.pairs.remove(&path) {
            self.forget(&path, &old);
        }
        self.bytes += pair.size(&path);
        if !pair.writer.is_empty() {
            self.written.add(&pair.writer, 1, pair.size(&path));
        }
        self.pairs.insert(path, pair);
        Ok(())
    }

    fn forget(&mut self, path: &str, old: &Pair) {
        self.bytes -= old.size(path);
        self.written.subtract(&old.writer, 1, old.size(path));
    }

    pub(in crate::state) fn check(&self, path: &str, value: &[u8]) -> Result<(), Exceeded> {
        if path.len() > MAX_KEY {
            let text = format!("a key of {} bytes is too long: {MAX_KEY} at most with its namespace", path.len());
            return Err(Exceeded(text));
        }
        if value.len() > MAX_VALUE {
            return Err(Exceeded(format!("Value for key is too large ({} > {MAX_VALUE} bytes)", value.len())));
        }
        let old = self.pairs.get(path);
        let more = (path.len() + value.len()).saturating_sub(old.map_or(0, |old| old.size(path)));
        if (old.is_none() && self.pairs.len() >= MAX_PAIRS) || (more > 0 && self.bytes + more > MAX_BYTES) {
            let (most, mib) = (MAX_PAIRS, MAX_BYTES >> 20);
            return Err(Exceeded(format!("the key-value store is full: {most} pairs, {mib} MiB; delete keys")));
        }
        Ok(())
    }
}

pub(in crate::state) fn path(namespace: &str, key: &str) -> String {
    format!("{namespace}/{key}")
}

/// Waits for the change that conflicted with a transaction: it arrives here in a moment. Drawn, so that two control planes
/// do not conflict again.
pub(in crate::state) async fn after_conflict() {
    tokio::time::sleep(jittered(RETRY / 25, rand::random())).await;
}

/// The condition that a pair is unchanged since it was read.
pub(in crate::state) fn unchanged(path: &str, pair: Option<&Pair>) -> Condition {
    Condition::unchanged(Table::Kv, path, pair.map_or(0, |pair| pair.modify_index))
}

pub(in crate::state) fn put(path: &str, pair: &StoredPair) -> Op {
    Op::put(Table::Kv, path, pair.encode_to_vec())
}

/// The decision on a change of a pair.
pub(in crate::state) enum Step {
    /// It is refused: Consul's `false`.
    No,
    /// It is done if these conditions hold.
    Do(Vec<Condition>, Vec<Op>),
}

impl Mesh {
    /// Reads the pairs.
    pub fn read_pairs<T>(&self, f: impl FnOnce(&Pairs) -> T) -> T {
        f(&self.lock().pairs)
    }

    /// Sets a pair; its lock stays. False: `only` does not hold.
    ///
    /// # Errors
    /// If key or value is too large, or the store refuses.
    pub async fn put_pair<'a>(
        &self,
        writer: impl Into<Writer<'a>>,
        key: &str,
        value: &[u8],
        flags: u64,
        only: Only,
    ) -> Result<bool, Refusal> {
        let writer = writer.into();
        let path = path(writer.namespace, key);
        let _reserved = self.reserve_pair(writer.identity, &path, value)?;
        self.change(|state| {
            let old = state.pairs.by_path(&path);
            state.pairs.check(&path, value)?;
            if let Only::IfIndex(index) = only
                && index != old.map_or(0, |old| old.modify_index)
            {
                return Ok(Step::No);
            }
            let (lock_index, session) = old.map_or((0, String::new()), |old| (old.lock_index, old.session.clone()));
            let (value, writer) = (value.to_vec(), writer.identity.to_owned());
            let pair = StoredPair { value, flags, lock_index, session, writer };
            Ok(Step::Do(vec![unchanged(&path, old)], vec![put(&path, &pair)]))
        })
        .await
    }

    /// Deletes a pair. False: `only` does not hold. Deleting a missing one succeeds.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn delete_pair(&self, namespace: &str, key: &str, only: Only) -> Result<bool, Refusal> {
        let path = path(namespace, key);
        self.change(|state| {
            let old = state.pairs.by_path(&path);
            if let Only::IfIndex(index) = only
                && index != old.map_or(0, |old| old.modify_index)
            {
                return Ok(Step::No);
            }
            Ok(Step::Do(vec![unchanged(&path, old)], vec![Op::delete(Table::Kv, path.clone())]))
        })
        .await
    }

    /// Deletes all pairs whose key begins with `prefix`.
    ///
    /// # Errors
    /// If the store refuses, with the number of deleted pairs.
    pub async fn delete_pairs(&self, namespace: &str, prefix: &str) -> Result<(), Interrupted> {
        let all = |pairs: &Pairs| -> Vec<Op> {
            pairs.list(namespace, prefix).map(|(key, _)| Op::delete(Table::Kv, path(namespace, key))).collect()
        };
        self.write_batch(self.read_pairs(all)).await
    }

    /// Reserves the bytes of a pair that an identity writes.
    pub(super) fn reserve_pair(
        &self,
        identity: &str,
        path: &str,
        value: &[u8],
    ) -> Result<Option<Reserved<'_>>, Exceeded> {
        self.reserve_pairs(identity, |state| {
            let old = state.pairs.by_path(path).map(|old| (old.writer.as_str(), old.size(path)));
            growth(identity, path.len() + value.len(), old)
        })
    }

    pub(super) fn reserve_pairs(
        &self,
        identity: &str,
        growth: impl FnOnce(&State) -> Account,
    ) -> Result<Option<Reserved<'_>>, Exceeded> {
        self.reserve(&bounds::PAIRS, |state| &mut state.pairs.written, identity, growth)
    }

    /// Applies the decision of `step` for the current state, and repeats it after a conflict.
    pub(in crate::state) async fn change(
        &self,
        step: impl Fn(&State) -> Result<Step, Refusal>,
    ) -> Result<bool, Refusal> {
        for _ in 0..TRIES {
            let next = step(&self.lock())?;
            match next {
                Step::No => return Ok(false),
                Step::Do(conditions, ops) => {
                    if self.write(conditions, ops).await? {
                        return Ok(true);
                    }
                }
            }
            after_conflict().await;
        }
        Err("too many concurrent changes".into())
    }

    /// Waits until the index of a key, or with `prefix` of the keys that begin with it, differs from `index`; at most
    /// for `wait`.
    pub async fn wait_for_pairs(&self, namespace: &str, key: &str, prefix: bool, index: u64, wait: Duration) {
        let topics = if prefix { [Topic::Pairs] } else { [Topic::Pair(path(namespace, key))] };
        let index_of = |state: &State| match prefix {
            true => state.pairs.prefix_index(namespace, key),
            false => state.pairs.index(namespace, key),
        };
        self.wait_until_not(&topics, index, wait, index_of).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: &str, created: u64, modified: u64) -> Option<Record> {
        let value = StoredPair { value: value.as_bytes().to_vec(), ..Default::default() }.encode_to_vec();
        Some(Record { key: String::new(), value, created, modified, lease: 0 })
    }

    #[test]
    fn an_index_grows_only_with_changes_of_its_keys() {
        let mut pairs = Pairs::new(10);
        assert_eq!((pairs.index("n", "a"), pairs.prefix_index("n", "")), (10, 10));
        pairs.follow("n/a/x".into(), record("1", 11, 11), 11).unwrap();
        pairs.follow("n/b".into(), record("22", 12, 12), 12).unwrap();
        pairs.follow("m/a/y".into(), record("3", 13, 13), 13).unwrap();
        assert_eq!((pairs.index("n", "a/x"), pairs.index("n", "b"), pairs.index("n", "c")), (11, 12, 10));
        assert_eq!((pairs.prefix_index("n", "a/"), pairs.prefix_index("n", "")), (11, 12));
        let keys: Vec<_> = pairs.list("n", "").map(|(key, _)| key).collect();
        assert_eq!(keys, ["a/x", "b"]);
        assert_eq!(pairs.list("n", "a").count(), 1);
        pairs.follow("n/a/x".into(), None, 14).unwrap();
        assert_eq!((pairs.index("n", "a/x"), pairs.prefix_index("n", "a/"), pairs.index("n", "b")), (14, 14, 12));
        assert_eq!(pairs.bytes, 3 + "n/b".len() + "m/a/y".len());
        pairs.follow("n/a/x".into(), record("1", 15, 15), 15).unwrap();
        assert_eq!(pairs.index("n", "a/x"), 15);
        // Pruned tombstones: no index decreases.
        for n in 0..=TOMBSTONES as u64 {
            pairs.follow(format!("n/t{n}"), None, 20 + n).unwrap();
        }
        assert_eq!(pairs.index("n", "t0"), 20 + TOMBSTONES as u64);
        assert!(pairs.prefix_index("n", "a/") >= 15);
    }

    #[test]
    fn oversized_keys_and_values_are_refused() {
        let mut pairs = Pairs::new(1);
        assert!(pairs.check("n/a", &[0; MAX_VALUE]).is_ok());
        assert!(pairs.check("n/a", &[0; MAX_VALUE + 1]).is_err());
        assert!(pairs.check(&"k".repeat(MAX_KEY + 1), b"").is_err());
        pairs.bytes = MAX_BYTES - 4;
        assert!(pairs.check("n/a", b"1").is_ok() && pairs.check("n/a", b"12").is_err());
    }
}
