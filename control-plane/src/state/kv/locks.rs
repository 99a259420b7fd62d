//! Consul's sessions, and the locks on pairs that they hold.
//!
//! A session ends with its node, with one of its checks, or if it is not renewed in time; the last is a leased record,
//! so that any control plane can renew it and all see it end. Its locks end with the session, and cannot be taken
//! during the lock delay, because a disconnected holder may still act as their holder.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use prost::Message;
use tokio::sync::Notify;
use weft_core::backoff::jittered;
use weft_proto::v1::{self, StoredPair, StoredSession};

use crate::identity::bounds::{self, Accounts};
use crate::identity::caller::Writer;
use crate::state::kv::budgets::growth;
use crate::state::pairs::{Step, after_conflict, path, put, unchanged};
use crate::state::{Mesh, RETRY, Refusal, State, Topic};
use crate::store::{self, Condition, MAX_OPS, Op, Record, Table};

/// The check that every node has in Consul's API: that it is alive.
pub const SERF_HEALTH: &str = "serfHealth";
/// Sessions of all namespaces.
const MAX_SESSIONS: usize = 50_000;
/// A session expires after twice its time to live, as in Consul, which only promises "not sooner".
const TTL_FACTOR: u32 = 2;
/// Interval of the checks of sessions' nodes and checks.
const TICK: Duration = Duration::from_secs(1);

/// One session.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    /// As stored.
    pub stored: StoredSession,
    /// Revision that created it.
    pub create_index: u64,
    /// Revision that changed it last.
    pub modify_index: u64,
    /// Whether it has been renewed in time until now.
    pub renewed: bool,
}

/// All sessions, by `<namespace>/<id>`.
#[derive(Debug, Default)]
pub struct Sessions {
    all: BTreeMap<String, Session>,
    /// The sessions that each identity has created, and creates now.
    pub(super) written: Accounts,
    /// Revision of the last change.
    index: u64,
}

impl Sessions {
    pub(in crate::state) fn new(revision: u64) -> Sessions {
        Sessions { index: revision, ..Sessions::default() }
    }

    /// One of them.
    pub fn get(&self, namespace: &str, id: &str) -> Option<&Session> {
        self.all.get(&path(namespace, id))
    }

    /// The sessions of a namespace, with their ids.
    pub fn list<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a str, &'a Session)> {
        let of = move |path: &'a String| path.strip_prefix(namespace)?.strip_prefix('/');
        self.all.iter().filter_map(move |(path, session)| Some((of(path)?, session)))
    }

    /// Consul's index of all of them.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Keys in the store.
    pub(in crate::state) fn paths(&self) -> impl Iterator<Item = &String> {
        self.all.keys()
    }

    pub(in crate::state) fn follow(
        &mut self,
        path: String,
        record: Option<Record>,
        revision: u64,
    ) -> Result<(), String> {
        self.index = self.index.max(revision);
        if let Some(Session { stored, .. }) = self.all.remove(&path) {
            self.written.subtract(&stored.writer, 1, stored.encoded_len());
        }
        let Some(record) = record else { return Ok(()) };
        let stored = StoredSession::decode(record.value.as_slice()).map_err(|e| e.to_string())?;
        if !stored.writer.is_empty() {
            self.written.add(&stored.writer, 1, stored.encoded_len());
        }
        let session = Session { stored, create_index: record.created, modify_index: record.modified, renewed: true };
        self.all.insert(path, session);
        Ok(())
    }

    /// Records that the leased record of a session was added or removed.
    pub(in crate::state) fn alive(&mut self, path: &str, alive: bool) {
        if let Some(session) = self.all.get_mut(path) {
            session.renewed = alive;
        }
    }
}

impl State {
    /// Whether a dependency of a session has failed.
    fn is_over(&self, namespace: &str, session: &Session) -> bool {
        let stored = &session.stored;
        let Some(node) = self.nodes.get(&stored.node) else { return true };
        let critical = |id: &String| {
            let of_node = node.checks.get(id).into_iter();
            let of_services = self.world.instances_of_node(namespace, &stored.node).flat_map(|i| &i.checks);
            let mut checks = of_node.chain(of_services.filter(|check| check.check_id == *id));
            checks.any(|check: &v1::Check| check.status == "critical")
        };
        (stored.ttl_ms > 0 && !session.renewed) || stored.checks.iter().any(critical)
    }
}

impl Mesh {
    /// Reads the sessions.
    pub fn read_sessions<T>(&self, f: impl FnOnce(&Sessions) -> T) -> T {
        f(&self.lock().locks)
    }

    /// Waits until the index of sessions differs from `index`; at most for `wait`.
    pub async fn wait_for_sessions(&self, index: u64, wait: Duration) {
        self.wait_until_not(&[Topic::Sessions], index, wait, |state| state.locks.index()).await;
    }

    /// Creates a session; `stored.lease` is set here. Returns its id.
    ///
    /// # Errors
    /// If its node or a check of it is missing or critical, a field or the writer's budget is exceeded, or the store
    /// refuses.
    pub async fn create_session<'a>(
        &self,
        writer: impl Into<Writer<'a>>,
        mut stored: StoredSession,
    ) -> Result<String, Refusal> {
        let Writer { namespace, identity } = writer.into();
        bounds::session(&stored)?;
        stored.writer = identity.to_owned();
        let size = growth(identity, stored.encoded_len(), None);
        let _reserved = self.reserve(&bounds::SESSIONS, |state| &mut state.locks.written, identity, |_| size)?;
        {
            let state = self.lock();
            if state.locks.all.len() >= MAX_SESSIONS {
                return Err(format!("there are {MAX_SESSIONS} sessions already").into());
            }
            if !state.nodes.contains_key(&stored.node) {
                return Err(format!("Missing node registration: {:?}", stored.node).into());
            }
            let known = |id: &&String| {
                let of_node = |node: &crate::state::Node| node.checks.contains_key(*id);
                let mut services = state.world.instances_of_node(namespace, &stored.node).flat_map(|i| &i.checks);
                *id == SERF_HEALTH
                    || state.nodes.get(&stored.node).is_some_and(of_node)
                    || services.any(|check| check.check_id == **id)
            };
            if let Some(unknown) = stored.checks.iter().find(|id| !known(id)) {
                return Err(format!("Missing check {unknown:?} registration").into());
            }
            let new = Session { stored: stored.clone(), create_index: 0, modify_index: 0, renewed: true };
            if state.is_over(namespace, &new) {
                return Err("Check is in critical state".into());
            }
        }
        let id = uuid();
        let key = path(namespace, &id);
        let mut ops = Vec::new();
        if stored.ttl_ms > 0 {
            stored.lease = self.store.grant(TTL_FACTOR * Duration::from_millis(stored.ttl_ms)).await?;
            ops.push(Op::put_leased(Table::SessionAlive, key.clone(), [], stored.lease));
        }
        ops.insert(0, Op::put(Table::Sessions, key.clone(), stored.encode_to_vec()));
        self.write(vec![Condition::absent(Table::Sessions, key)], ops).await?;
        Ok(id)
    }

    /// Renews a session. False: it does not exist any more.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn renew_session(&self, namespace: &str, id: &str) -> Result<bool, Refusal> {
        let lease = self.read_sessions(|all| all.get(namespace, id).map(|session| session.stored.lease));
        match lease {
            None => Ok(false),
            Some(0) => Ok(true),
            Some(lease) => Ok(self.store.keep_alive(lease).await?),
        }
    }

    /// Ends a session and releases its locks.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn destroy_session(&self, namespace: &str, id: &str) -> Result<(), Refusal> {
        let key = path(namespace, id);
        self.end_session(&key).await
    }

    /// Sets a pair and locks it for a session. False: another session holds it, or its lock delay has not ended.
    ///
    /// # Errors
    /// If there is no such session, key or value is too large, or the store refuses.
    pub async fn lock_pair<'a>(
        &self,
        writer: impl Into<Writer<'a>>,
        key: &str,
        value: &[u8],
        flags: u64,
        session: &str,
    ) -> Result<bool, Refusal> {
        let Writer { namespace, identity } = writer.into();
        let path = path(namespace, key);
        let _reserved = self.reserve_pair(identity, &path, value)?;
        let holder = crate::state::pairs::path(namespace, session);
        self.change(|state| {
            let held = state.locks.all.get(&holder);
            let modified = held.ok_or_else(|| format!("invalid session {session:?}"))?.modify_index;
            state.pairs.check(&path, value)?;
            let old = state.pairs.by_path(&path);
            if old.is_some_and(|old| !old.session.is_empty() && old.session != session) {
                return Ok(Step::No);
            }
            let again = old.is_some_and(|old| old.session == session);
            if !again && state.delays.contains(&path) {
                return Ok(Step::No);
            }
            let lock_index = old.map_or(0, |old| old.lock_index) + u64::from(!again);
            let (value, session, writer) = (value.to_vec(), session.to_owned(), identity.to_owned());
            let pair = StoredPair { value, flags, lock_index, session, writer };
            let mut conditions =
                vec![unchanged(&path, old), Condition::unchanged(Table::Sessions, holder.clone(), modified)];
            if !again {
                conditions.push(Condition::absent(Table::LockDelays, path.clone()));
            }
            Ok(Step::Do(conditions, vec![put(&path, &pair)]))
        })
        .await
    }

    /// Sets a pair and releases its lock. False: the session does not hold it.
    ///
    /// # Errors
    /// If key or value is too large, or the store refuses.
    pub async fn unlock_pair<'a>(
        &self,
        writer: impl Into<Writer<'a>>,
        key: &str,
        value: &[u8],
        flags: u64,
        session: &str,
    ) -> Result<bool, Refusal> {
        let Writer { namespace, identity } = writer.into();
        let path = path(namespace, key);
        let _reserved = self.reserve_pair(identity, &path, value)?;
        self.change(|state| {
            state.pairs.check(&path, value)?;
            let old = state.pairs.by_path(&path);
            let Some(held) = old.filter(|old| old.session == session) else { return Ok(Step::No) };
            let lock_index = held.lock_index;
            let (value, session, writer) = (value.to_vec(), String::new(), identity.to_owned());
            let pair = StoredPair { value, flags, lock_index, session, writer };
            Ok(Step::Do(vec![unchanged(&path, old)], vec![put(&path, &pair)]))
        })
        .await
    }

    async fn end_session(&self, key: &str) -> Result<(), Refusal> {
        loop {
            let session = self.lock().locks.all.get(key).cloned();
            let Some(session) = session else { return Ok(()) };
            let id = key.rsplit('/').next().unwrap_or_default();
            let mut locked = self.lock().pairs.held_by(id);
            // Only in its namespace.
            let namespace = key.split('/').next().unwrap_or_default();
            locked.retain(|(path, _)| path.split('/').next() == Some(namespace));
            // Two operations and a condition each, and the session's own.
            locked.truncate((MAX_OPS - 4) / 2);
            let last = locked.len() < (MAX_OPS - 4) / 2;
            let delay = Duration::from_millis(session.stored.lock_delay_ms);
            let lease = if delay.is_zero() || locked.is_empty() { 0 } else { self.store.grant(delay).await? };
            let mut conditions = vec![Condition::unchanged(Table::Sessions, key, session.modify_index)];
            let mut ops = Vec::new();
            for (path, pair) in &locked {
                conditions.push(unchanged(path, Some(pair)));
                ops.push(match session.stored.delete {
                    true => Op::delete(Table::Kv, path.clone()),
                    false => put(path, &StoredPair { session: String::new(), ..pair.stored() }),
                });
                if lease != 0 {
                    ops.push(Op::put_leased(Table::LockDelays, path.clone(), [], lease));
                }
            }
            if last {
                ops.push(Op::delete(Table::Sessions, key));
                ops.push(Op::delete(Table::SessionAlive, key));
            }
            let done = self.write(conditions, ops).await?;
            if done && last {
                if session.stored.lease != 0 {
                    // The record that it was bound to is deleted; the lease would expire anyway.
                    let _ = self.store.revoke(session.stored.lease).await;
                }
                return Ok(());
            }
            if !done {
                after_conflict().await;
            }
        }
    }

    /// Ends sessions whose dependencies have failed.
    async fn end_sessions(&self) -> Result<(), Refusal> {
        let over: Vec<String> = {
            let state = self.lock();
            let namespace = |key: &str| key.split('/').next().unwrap_or_default().to_owned();
            let over = state.locks.all.iter().filter(|(key, session)| state.is_over(&namespace(key), session));
            over.map(|(key, _)| key.clone()).collect()
        };
        for key in over {
            self.end_session(&key).await?;
        }
        Ok(())
    }
}

/// Ends such sessions for as long as the mesh is in use.
pub(in crate::state) async fn watch(mesh: Weak<Mesh>, changed: Arc<Notify>) {
    loop {
        // A node or a check may have changed as well.
        let _ = tokio::time::timeout(TICK, changed.notified()).await;
        let Some(mesh) = mesh.upgrade() else { return };
        match mesh.end_sessions().await {
            Ok(()) => {}
            Err(Refusal::Store(store::Error::LeaseEnded)) => {
                // The lease of a lock delay has ended before its use: a slow store, or one that lost its leases.
                tokio::time::sleep(jittered(RETRY, rand::random())).await;
                changed.notify_one();
            }
            Err(e) => tracing::error!("cannot end sessions that are over, tried again: {e}"),
        }
    }
}

/// A random UUID (RFC 9562, version 4).
pub(crate) fn uuid() -> String {
    let mut bytes = rand::random::<u128>();
    bytes = bytes & !(0xf << 76) | (4 << 76);
    bytes = bytes & !(0b11 << 62) | (0b10 << 62);
    let hex = format!("{bytes:032x}");
    let parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)];
    parts.map(|(from, to)| hex.get(from..to).unwrap_or_default()).join("-")
}

#[cfg(test)]
mod tests;
