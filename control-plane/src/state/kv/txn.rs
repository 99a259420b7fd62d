//! Consul's transactions: operations on pairs, and writes of the catalog, all of them or none.
//!
//! An operation sees the effects of those before it; the state that it depends on becomes conditions of one transaction
//! of the store, which is evaluated again after a concurrent write.

use std::collections::BTreeMap;

use crate::identity::bounds::Account;
use crate::identity::caller::Writer;
use crate::state::catalog::{Entry, Removal};
use crate::state::kv::budgets::growth;
use crate::state::pairs::{Pair, TRIES, after_conflict, path, put, unchanged};
use crate::state::{Mesh, Refusal, State};
use crate::store::{Condition, Op, Table};

/// An operation on a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairOp {
    /// Its key; for trees the prefix.
    pub key: String,
    /// The operation.
    pub verb: Verb,
}

/// The kinds of operations. `index` is the pair's modify index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// Sets it.
    Set(Put),
    /// Sets it if its index is this; 0: if it does not exist.
    Cas(Put, u64),
    /// Sets it and locks it for a session.
    Lock(Put, String),
    /// Sets it and releases its lock.
    Unlock(Put, String),
    /// Reads it; it must exist.
    Get,
    /// Reads it, whether it exists or not.
    GetOrEmpty,
    /// Reads all keys with the prefix.
    GetTree,
    /// Its index must be this.
    CheckIndex(u64),
    /// This session must hold its lock.
    CheckSession(String),
    /// It must not exist.
    CheckNotExists,
    /// Deletes it.
    Delete,
    /// Deletes all keys with the prefix.
    DeleteTree,
    /// Deletes it if its index is this.
    DeleteCas(u64),
}

/// The new content of a pair.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Put {
    /// Its value.
    pub value: Vec<u8>,
    /// For the application.
    pub flags: u64,
}

/// The result of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairResult {
    /// Its key.
    pub key: String,
    /// The pair after the transaction.
    pub pair: Pair,
    /// Whether the value is part of the result.
    pub read: bool,
    /// Whether it does not exist.
    pub absent: bool,
}

/// The failure of an operation: its number and Consul's text.
pub type Failure = (usize, String);

/// A transaction.
#[derive(Debug, Default)]
pub struct Transaction {
    /// Operations on pairs, with their numbers.
    pub pairs: Vec<(usize, PairOp)>,
    /// Writes to nodes of the catalog.
    pub entries: Vec<Entry>,
    /// Removals from the catalog: the node and the object.
    pub removals: Vec<(String, Removal)>,
}

/// The pairs as changed by a transaction.
struct Overlay<'a> {
    state: &'a State,
    namespace: &'a str,
    /// The identity of its writer.
    identity: &'a str,
    /// By key in the store.
    changed: BTreeMap<String, Option<Pair>>,
    conditions: BTreeMap<(Table, String), u64>,
}

impl Overlay<'_> {
    fn get(&mut self, key: &str) -> Option<Pair> {
        let path = path(self.namespace, key);
        let stored = self.state.pairs.by_path(&path);
        let condition = unchanged(&path, stored);
        self.conditions.insert((condition.table, condition.key), condition.modified);
        match self.changed.get(&path) {
            Some(changed) => changed.clone(),
            None => stored.cloned(),
        }
    }

    /// All keys with the prefix, with their changes.
    fn tree(&self, prefix: &str) -> Vec<(String, Pair)> {
        let stored = self.state.pairs.list(self.namespace, prefix).map(|(key, pair)| (key.to_owned(), pair.clone()));
        let mut all: BTreeMap<String, Pair> = stored.collect();
        for (path, changed) in &self.changed {
            let key = path.get(self.namespace.len() + 1..).unwrap_or_default();
            match changed {
                Some(pair) if key.starts_with(prefix) => drop(all.insert(key.to_owned(), pair.clone())),
                _ => drop(all.remove(key)),
            }
        }
        all.into_iter().collect()
    }

    /// Sets a pair, with the given lock and lock index.
    fn put(&mut self, key: &str, to: &Put, session: String, lock_index: u64) -> Result<Pair, String> {
        let old = self.get(key);
        let path = path(self.namespace, key);
        self.state.pairs.check(&path, &to.value).map_err(|e| e.to_string())?;
        // The revision is known after the transaction.
        let (create_index, modify_index) = (old.map_or(0, |old| old.create_index), 0);
        let (value, writer) = (to.value.clone(), self.identity.to_owned());
        let pair = Pair { value, flags: to.flags, lock_index, session, writer, create_index, modify_index };
        self.changed.insert(path, Some(pair.clone()));
        Ok(pair)
    }

    fn delete(&mut self, key: &str) {
        self.get(key);
        self.changed.insert(path(self.namespace, key), None);
    }

    /// Does one operation.
    fn apply(&mut self, PairOp { key, verb }: &PairOp) -> Result<Vec<PairResult>, String> {
        let result = |pair: Pair, read: bool| vec![PairResult { key: key.clone(), pair, read, absent: false }];
        let lock_of =
            |old: &Option<Pair>| old.as_ref().map_or((String::new(), 0), |p| (p.session.clone(), p.lock_index));
        let index = |old: &Option<Pair>| old.as_ref().map_or(0, |old| old.modify_index);
        let old = if matches!(verb, Verb::GetTree | Verb::DeleteTree) { None } else { self.get(key) };
        Ok(match verb {
            Verb::Cas(_, wanted) if index(&old) != *wanted => {
                return Err(format!("failed to set key {key:?}, index is stale"));
            }
            Verb::Set(to) | Verb::Cas(to, _) => {
                let (session, lock_index) = lock_of(&old);
                result(self.put(key, to, session, lock_index)?, false)
            }
            Verb::Lock(to, session) => result(self.lock(key, to, session, old)?, false),
            Verb::Unlock(to, session) => match lock_of(&old) {
                (holder, lock_index) if holder == *session && !holder.is_empty() => {
                    result(self.put(key, to, String::new(), lock_index)?, false)
                }
                _ => {
                    return Err(format!(
                        "failed to unlock key {key:?}, lock isn't held, or is held by another session"
                    ));
                }
            },
            Verb::Get => result(old.ok_or_else(|| format!("key {key:?} doesn't exist"))?, true),
            Verb::GetOrEmpty => {
                let absent = old.is_none();
                vec![PairResult { key: key.clone(), pair: old.unwrap_or_else(nothing), read: true, absent }]
            }
            Verb::GetTree => self
                .tree(key)
                .into_iter()
                .map(|(key, pair)| PairResult { key, pair, read: true, absent: false })
                .collect(),
            Verb::CheckIndex(wanted) => match old {
                None => return Err(format!("key {key:?} doesn't exist")),
                Some(old) if old.modify_index == *wanted => result(old, false),
                Some(old) => {
                    let current = old.modify_index;
                    return Err(format!(
                        "failed index check for key {key:?}, current modify index {current} != {wanted}"
                    ));
                }
            },
            Verb::CheckSession(wanted) => match old {
                None => return Err(format!("failed to check session, key {key:?} doesn't exist")),
                Some(old) if old.session == *wanted => result(old, false),
                Some(old) => {
                    let current = old.session;
                    return Err(format!(
                        "failed session check for key {key:?}, current session {current:?} != {wanted:?}"
                    ));
                }
            },
            Verb::CheckNotExists if old.is_some() => return Err(format!("key {key:?} exists")),
            Verb::CheckNotExists => Vec::new(),
            Verb::DeleteCas(wanted) if index(&old) != *wanted => {
                return Err(format!("failed to delete key {key:?}, index is stale"));
            }
            Verb::Delete | Verb::DeleteCas(_) => {
                self.delete(key);
                Vec::new()
            }
            Verb::DeleteTree => {
                self.tree(key).iter().for_each(|(key, _)| self.delete(key));
                Vec::new()
            }
        })
    }

    fn lock(&mut self, key: &str, to: &Put, session: &str, old: Option<Pair>) -> Result<Pair, String> {
        let holder = path(self.namespace, session);
        let modified = self.state.locks.get(self.namespace, session);
        let modified = modified.ok_or_else(|| format!("invalid session {session:?}"))?.modify_index;
        let again = old.as_ref().is_some_and(|old| old.session == session);
        let taken = old.as_ref().is_some_and(|old| !old.session.is_empty() && !again);
        let at = path(self.namespace, key);
        if taken || (!again && self.state.delays.contains(&at)) {
            return Err(format!("failed to lock key {key:?}, lock is already held"));
        }
        self.conditions.insert((Table::Sessions, holder), modified);
        if !again {
            self.conditions.insert((Table::LockDelays, at), 0);
        }
        let lock_index = old.map_or(0, |old| old.lock_index) + u64::from(!again);
        self.put(key, to, session.to_owned(), lock_index)
    }

    fn ops(&self) -> Vec<Op> {
        let op = |(path, changed): (&String, &Option<Pair>)| match changed {
            Some(pair) => put(path, &pair.stored()),
            None => Op::delete(Table::Kv, path.clone()),
        };
        self.changed.iter().map(op).collect()
    }

    /// The growth of the writer's account. Deletions count once they are done.
    fn growth(&self) -> Account {
        let written = self.changed.iter().filter_map(|(path, pair)| Some((path, pair.as_ref()?)));
        written.fold(Account::default(), |sum, (path, pair)| {
            let old = self.state.pairs.by_path(path).map(|old| (old.writer.as_str(), old.size(path)));
            let more = growth(self.identity, pair.size(path), old);
            Account { count: sum.count + more.count, bytes: sum.bytes + more.bytes }
        })
    }
}

/// The part of a transaction that concerns pairs.
struct PairOps {
    conditions: Vec<Condition>,
    ops: Vec<Op>,
    results: Vec<(usize, PairResult)>,
    growth: Account,
}

fn nothing() -> Pair {
    let (value, session, writer) = (Vec::new(), String::new(), String::new());
    Pair { value, flags: 0, lock_index: 0, session, writer, create_index: 0, modify_index: 0 }
}

impl Mesh {
    /// Does a transaction; returns the results of its operations, by their numbers.
    ///
    /// # Errors
    /// If it is too large, the writer's budget is exceeded, or the store refuses; the inner error has the failures of all operations, in which case
    /// nothing was done.
    pub async fn transact<'a>(
        &self,
        writer: impl Into<Writer<'a>>,
        transaction: &Transaction,
    ) -> Result<Result<Vec<(usize, PairResult)>, Vec<Failure>>, Refusal> {
        let writer = writer.into();
        let namespace = writer.namespace;
        for _ in 0..TRIES {
            let PairOps { mut conditions, mut ops, results: mut found, growth } =
                match self.pair_ops(writer, &transaction.pairs) {
                    Ok(done) => done,
                    Err(failed) => return Ok(Err(failed)),
                };
            let _reserved = self.reserve_pairs(writer.identity, |_| growth)?;
            for entry in &transaction.entries {
                let (more, writes) = self.catalog_ops(entry)?;
                conditions.extend(more);
                ops.extend(writes);
            }
            for (node, what) in &transaction.removals {
                let Some((condition, writes)) = self.removal_ops(node, namespace, what)? else { continue };
                conditions.push(condition);
                ops.extend(writes);
            }
            if ops.is_empty() {
                return Ok(Ok(found));
            }
            let most = self.store.limits().ops;
            if conditions.len() > most || ops.len() > most {
                return Err(format!("the transaction touches more than {most} records: nothing was changed").into());
            }
            if let Some(revision) = self.write_at(conditions, ops).await? {
                let new = |found: &PairResult| found.pair.modify_index == 0 && !found.absent;
                for (_, PairResult { pair, .. }) in found.iter_mut().filter(|(_, found)| new(found)) {
                    pair.modify_index = revision;
                    pair.create_index = if pair.create_index == 0 { revision } else { pair.create_index };
                }
                return Ok(Ok(found));
            }
            after_conflict().await;
        }
        Err("too many concurrent changes".into())
    }

    fn pair_ops(&self, writer: Writer<'_>, pairs: &[(usize, PairOp)]) -> Result<PairOps, Vec<Failure>> {
        let Writer { namespace, identity } = writer;
        let state = self.lock();
        let (changed, conditions) = (BTreeMap::new(), BTreeMap::new());
        let mut overlay = Overlay { state: &state, namespace, identity, changed, conditions };
        let (mut results, mut failures) = (Vec::new(), Vec::new());
        for (number, op) in pairs {
            match overlay.apply(op) {
                Ok(of_op) => results.extend(of_op.into_iter().map(|one| (*number, one))),
                Err(why) => failures.push((*number, why)),
            }
        }
        if !failures.is_empty() {
            return Err(failures);
        }
        let (ops, growth) = (overlay.ops(), overlay.growth());
        let conditions = overlay.conditions.into_iter();
        let conditions = conditions.map(|((table, key), modified)| Condition::unchanged(table, key, modified));
        Ok(PairOps { conditions: conditions.collect(), ops, results, growth })
    }
}
