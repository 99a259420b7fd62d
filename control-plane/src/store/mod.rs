//! Records that survive the process: small, each with a revision, changed by conditional transactions and followed by a
//! watch.
//!
//! The whole control plane uses this one form. State is in memory and follows the watch, so one control plane over
//! [`embedded`] and several over [`etcd`] run the same code. The revision of a record is the index in Consul's API.
//! Heartbeats and results of probes are never written, only changes of state; a record that must end with its writer is
//! bound to a lease.

pub mod batch;
pub mod embedded;
pub mod etcd;
pub mod health;
pub mod snapshot;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

/// One kind of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Registered instances, by `<namespace>/<node>/<service id>`.
    Registrations,
    /// Sidecars and other registrants, by node name.
    Nodes,
    /// The session that is responsible for a node, by node name; leased.
    Alive,
    /// Policies applied through the API, by `<kind>/<namespace>/<name>`.
    Policies,
    /// The CA's key and roots, the key that signs tokens.
    Secrets,
    /// Hosts by their virtual IP.
    VirtualIps,
    /// Consul's key-value pairs.
    Kv,
    /// Consul's sessions, by id.
    Sessions,
    /// Sessions with a time to live, by id; leased.
    SessionAlive,
    /// Keys in their lock delay; leased.
    LockDelays,
    /// Exports of other data centres, by their names.
    Remotes,
    /// Consul's prepared queries, by `<namespace>/<id>`.
    Queries,
    /// Consul's events, by `<namespace>/<id>`.
    Events,
    /// Consul's config entries, by `<namespace>/<kind>/<name>`.
    ConfigEntries,
    /// Services of tokens with many of them, by the grant's name.
    Grants,
}

impl Table {
    /// All of them.
    pub const ALL: [Table; 15] = [
        Table::Registrations,
        Table::Nodes,
        Table::Alive,
        Table::Policies,
        Table::Secrets,
        Table::VirtualIps,
        Table::Kv,
        Table::Sessions,
        Table::SessionAlive,
        Table::LockDelays,
        Table::Remotes,
        Table::Queries,
        Table::Events,
        Table::ConfigEntries,
        Table::Grants,
    ];

    /// Its name, the prefix of its keys.
    pub fn name(self) -> &'static str {
        match self {
            Table::Registrations => "registrations",
            Table::Nodes => "nodes",
            Table::Alive => "alive",
            Table::Policies => "policies",
            Table::Secrets => "secrets",
            Table::VirtualIps => "virtual-ips",
            Table::Kv => "kv",
            Table::Sessions => "sessions",
            Table::SessionAlive => "session-alive",
            Table::LockDelays => "lock-delays",
            Table::Remotes => "remotes",
            Table::Queries => "queries",
            Table::Events => "events",
            Table::ConfigEntries => "config-entries",
            Table::Grants => "grants",
        }
    }

    /// Splits `<table>/<key>`; `None` for other forms.
    fn split(path: &str) -> Option<(Table, &str)> {
        let (name, key) = path.split_once('/')?;
        Table::ALL.into_iter().find(|table| table.name() == name).map(|table| (table, key))
    }

    fn path(self, key: &str) -> String {
        format!("{}/{key}", self.name())
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its key within its table.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// Revision that created it.
    pub created: u64,
    /// Revision that changed it last.
    pub modified: u64,
    /// The lease that it ends with; 0: none.
    pub lease: u64,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Its table.
    pub table: Table,
    /// Its key.
    pub key: String,
    /// Revision of its last change; 0: there is no such record.
    pub modified: u64,
}

impl Condition {
    /// The record does not exist.
    pub fn absent(table: Table, key: impl Into<String>) -> Condition {
        Condition { table, key: key.into(), modified: 0 }
    }

    /// The record is unchanged since that revision.
    pub fn unchanged(table: Table, key: impl Into<String>, modified: u64) -> Condition {
        Condition { table, key: key.into(), modified }
    }
}

/// A change to one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Create or replace.
    Put {
        /// Its table.
        table: Table,
        /// Its key.
        key: String,
        /// Its value.
        value: Vec<u8>,
        /// The lease that it ends with; 0: none.
        lease: u64,
    },
    /// Removes a record, whether or not it exists.
    Delete(Table, String),
}

impl Op {
    /// Creates or replaces a permanent record.
    pub fn put(table: Table, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Op {
        Op::Put { table, key: key.into(), value: value.into(), lease: 0 }
    }

    /// Creates or replaces a record that ends with `lease`.
    pub fn put_leased(table: Table, key: impl Into<String>, value: impl Into<Vec<u8>>, lease: u64) -> Op {
        Op::Put { table, key: key.into(), value: value.into(), lease }
    }

    /// Removes a record.
    pub fn delete(table: Table, key: impl Into<String>) -> Op {
        Op::Delete(table, key.into())
    }
}

/// Conditions and operations of one transaction that every store takes: etcd's own limit is 128.
pub const MAX_OPS: usize = 100;

/// A change of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its table.
    pub table: Table,
    /// Its key.
    pub key: String,
    /// The new record; `None`: it was removed.
    pub record: Option<Record>,
}

/// The changes of one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Its revision.
    pub revision: u64,
    /// At least one.
    pub changes: Vec<Change>,
}

/// All records at one revision, and every change after it, in order.
#[derive(Debug)]
pub struct Watch {
    /// The revision of `records`.
    pub revision: u64,
    /// All records.
    pub records: Vec<(Table, Record)>,
    /// The following changes. It ends when changes were lost (etcd's history was compacted meanwhile) or the store has
    /// stopped: watch again and compare.
    pub changes: mpsc::Receiver<Changes>,
}

/// The reason why a store did not do a request. Nothing was changed then, except with [`Error::Unknown`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The lease for a record has ended.
    #[error("the lease has ended")]
    LeaseEnded,
    /// The disk or the servers refuse.
    #[error("the store refuses: {0}")]
    Unavailable(String),
    /// There was no answer: it may or may not have been done.
    #[error("no answer from the store: {0}")]
    Unknown(String),
}

/// The operations of a store.
#[tonic::async_trait]
pub trait Store: Send + Sync + 'static {
    /// One record.
    async fn get(&self, table: Table, key: &str) -> Result<Option<Record>, Error>;

    /// Does all of `ops` or none, and returns when they are durable. Returns the revision, 0 if there was nothing to
    /// change; `None` if a condition does not hold. Bounded by [`Store::limits`].
    async fn txn(&self, conditions: Vec<Condition>, ops: Vec<Op>) -> Result<Option<u64>, Error>;

    /// A new lease: unless it is renewed within `ttl` it ends, and with it the records that are bound to it. The store
    /// may make it longer, to whole seconds. Timers restart with the store.
    async fn grant(&self, ttl: Duration) -> Result<u64, Error>;

    /// Renews a lease. False: it has ended.
    async fn keep_alive(&self, lease: u64) -> Result<bool, Error>;

    /// Ends a lease now.
    async fn revoke(&self, lease: u64) -> Result<(), Error>;

    /// All records and every following change.
    async fn watch(&self) -> Result<Watch, Error>;

    /// The bounds of one transaction.
    fn limits(&self) -> batch::Limits;

    /// Whether writes are accepted.
    fn health(&self) -> Arc<health::Health>;
}

/// A store that is shared.
pub type Shared = Arc<dyn Store>;
