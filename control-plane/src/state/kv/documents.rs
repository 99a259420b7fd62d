//! Small JSON documents of Consul's API that the store keeps and that do not act in the mesh themselves: prepared
//! queries, events, and config entries, from which policies are made.
//!
//! Each namespace has its own. Keys of the store are `<namespace>/<id>`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::identity::bounds::{self, Accounts, Budget, Exceeded};
use crate::identity::caller::Writer;
use crate::state::kv::budgets::{Reserved, growth};
use crate::state::pairs::{Step, TRIES, path};
use crate::state::{Mesh, Refusal, State, Topic};
use crate::store::{Condition, Op, Record, Table};
use weft_policy::Document;

/// Prepared queries of all namespaces.
const MAX_QUERIES: usize = 10_000;
/// Config entries of all namespaces.
const MAX_CONFIG_ENTRIES: usize = 10_000;
/// Stored events of a namespace: Consul's agents keep as many.
const MAX_EVENTS: usize = 256;

/// The field of a stored document that names its writer. Documents are objects; a field of this name that a client sends
/// is dropped, or its document would count for another identity.
const WRITER: &str = "$writer";

/// A document as stored.
fn stored_text(value: &Value, writer: &str) -> String {
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.remove(WRITER);
        if !writer.is_empty() {
            fields.insert(WRITER.into(), writer.into());
        }
    }
    value.to_string()
}

/// One document.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredDocument {
    /// Its content.
    pub value: Value,
    /// The identity that wrote it last; empty: a program without a sidecar.
    pub writer: String,
    /// Its bytes in the store, with its key.
    pub bytes: usize,
    /// Revision that created it.
    pub create_index: u64,
    /// Revision that changed it last.
    pub modify_index: u64,
}

/// The documents of one table.
#[derive(Debug, Default)]
pub struct Documents {
    all: BTreeMap<String, StoredDocument>,
    /// The documents that each identity has written, and writes now.
    pub(super) written: Accounts,
    index: u64,
}

impl Documents {
    pub(in crate::state) fn new(revision: u64) -> Documents {
        Documents { index: revision, ..Documents::default() }
    }

    /// One of them.
    pub fn get(&self, namespace: &str, id: &str) -> Option<&StoredDocument> {
        self.all.get(&path(namespace, id))
    }

    /// The documents of a namespace, the oldest first.
    pub fn list(&self, namespace: &str) -> Vec<(&str, &StoredDocument)> {
        let of = |key: &'_ String| key.strip_prefix(namespace).is_some_and(|rest| rest.starts_with('/'));
        let ours = self.all.iter().filter(|(key, _)| of(key));
        let mut all: Vec<_> = ours.map(|(key, stored)| (&key[namespace.len() + 1..], stored)).collect();
        all.sort_by_key(|(_, stored)| stored.create_index);
        all
    }

    /// Revision of the last change.
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
        if let Some(old) = self.all.remove(&path) {
            self.written.subtract(&old.writer, 1, old.bytes);
        }
        let Some(record) = record else { return Ok(()) };
        let mut value: Value = serde_json::from_slice(&record.value).map_err(|e| e.to_string())?;
        let writer = value.as_object_mut().and_then(|fields| fields.remove(WRITER));
        let writer = writer.and_then(|writer| writer.as_str().map(str::to_owned)).unwrap_or_default();
        let bytes = path.len() + record.value.len();
        if !writer.is_empty() {
            self.written.add(&writer, 1, bytes);
        }
        let stored =
            StoredDocument { value, writer, bytes, create_index: record.created, modify_index: record.modified };
        self.all.insert(path, stored);
        Ok(())
    }
}

/// The bounds of the documents of a table.
struct Kind {
    budget: Budget,
    /// Bytes of one.
    most: usize,
    documents: fn(&State) -> &Documents,
    accounts: fn(&mut State) -> &mut Accounts,
}

const QUERIES: Kind = Kind {
    budget: bounds::QUERIES,
    most: bounds::QUERY,
    documents: |state| &state.queries,
    accounts: |state| &mut state.queries.written,
};

const CONFIG_ENTRIES: Kind = Kind {
    budget: bounds::CONFIG_ENTRIES,
    most: bounds::CONFIG_ENTRY,
    documents: |state| &state.config_entries,
    accounts: |state| &mut state.config_entries.written,
};

impl Mesh {
    /// Reserves the bytes of a document that an identity writes; `None`: it is deleted.
    fn reserve_document(
        &self,
        kind: &Kind,
        identity: &str,
        key: &str,
        text: Option<&str>,
    ) -> Result<Option<Reserved<'_>>, Exceeded> {
        let Some(text) = text else { return Ok(None) };
        let (bytes, most) = (text.len(), kind.most);
        if bytes > most {
            let name = kind.budget.name;
            return Err(Exceeded(format!(
                "{bytes} bytes are too many for one of the {name}, at most {most} are allowed"
            )));
        }
        self.reserve(&kind.budget, kind.accounts, identity, |state| {
            let old = (kind.documents)(state).all.get(key).map(|old| (old.writer.as_str(), old.bytes));
            growth(identity, key.len() + bytes, old)
        })
    }

    /// Reads the prepared queries.
    pub fn read_queries<T>(&self, f: impl FnOnce(&Documents) -> T) -> T {
        f(&self.lock().queries)
    }

    /// Waits until the index of prepared queries differs from `index`; at most for `wait`.
    pub async fn wait_for_queries(&self, index: u64, wait: Duration) {
        self.wait_until_not(&[Topic::Queries], index, wait, |state| state.queries.index()).await;
    }

    /// Writes a prepared query; `None`: deletes it. False: there is none of that id to change.
    ///
    /// # Errors
    /// If its name is in use, it is too large, there are too many, or the store refuses.
    pub async fn put_query<'a>(
        &self,
        writer: impl Into<Writer<'a>>,
        id: &str,
        value: Option<&Value>,
        is_new: bool,
    ) -> Result<bool, Refusal> {
        let Writer { namespace, identity } = writer.into();
        let key = path(namespace, id);
        let text = value.map(|value| stored_text(value, identity));
        let _reserved = self.reserve_document(&QUERIES, identity, &key, text.as_deref())?;
        self.change(|state: &State| {
            let held = state.queries.get(namespace, id);
            if held.is_some() == is_new {
                return Ok(Step::No);
            }
            let condition = Condition::unchanged(Table::Queries, &key, held.map_or(0, |held| held.modify_index));
            let (Some(value), Some(text)) = (value, &text) else {
                return Ok(Step::Do(vec![condition], vec![Op::delete(Table::Queries, key.clone())]));
            };
            if is_new && state.queries.all.len() >= MAX_QUERIES {
                return Err(format!("there are {MAX_QUERIES} prepared queries already").into());
            }
            let name = value["Name"].as_str().unwrap_or_default();
            let mut others = state.queries.list(namespace).into_iter().filter(|(other, _)| *other != id);
            let is_same = |other: &str| other.eq_ignore_ascii_case(name);
            if !name.is_empty() && others.any(|(_, other)| other.value["Name"].as_str().is_some_and(is_same)) {
                return Err(format!("name {name:?} aliases an existing query name").into());
            }
            Ok(Step::Do(vec![condition], vec![Op::put(Table::Queries, key.clone(), text.clone())]))
        })
        .await
    }

    /// Reads the config entries.
    pub fn read_config<T>(&self, f: impl FnOnce(&Documents) -> T) -> T {
        f(&self.lock().config_entries)
    }

    /// Waits until the index of config entries differs from `index`; at most for `wait`.
    pub async fn wait_for_config(&self, index: u64, wait: Duration) {
        self.wait_until_not(&[Topic::ConfigEntries], index, wait, |state| state.config_entries.index()).await;
    }

    /// Writes a config entry, `None`: deletes it, together with the policies that result from the service's entries:
    /// `put` and `delete`. `only`: if its index is this, 0: if there is none. False: it is not.
    ///
    /// # Errors
    /// If it is too large, there are too many, or the store refuses.
    pub async fn put_config<'a>(
        &self,
        writer: impl Into<Writer<'a>>,
        id: &str,
        value: Option<&Value>,
        only: Option<u64>,
        (put, delete): (Vec<Document>, &[Document]),
    ) -> Result<bool, Refusal> {
        let Writer { namespace, identity } = writer.into();
        let key = path(namespace, id);
        let text = value.map(|value| stored_text(value, identity));
        let _reserved = self.reserve_document(&CONFIG_ENTRIES, identity, &key, text.as_deref())?;
        let policies = self.policy_ops(put, delete);
        self.change(|state: &State| {
            let modified = state.config_entries.get(namespace, id).map_or(0, |held| held.modify_index);
            if only.is_some_and(|only| only != modified) {
                return Ok(Step::No);
            }
            if modified == 0 && text.is_some() && state.config_entries.all.len() >= MAX_CONFIG_ENTRIES {
                return Err(format!("there are {MAX_CONFIG_ENTRIES} config entries already").into());
            }
            let condition = Condition::unchanged(Table::ConfigEntries, &key, modified);
            let op = match &text {
                Some(text) => Op::put(Table::ConfigEntries, key.clone(), text.clone()),
                None => Op::delete(Table::ConfigEntries, key.clone()),
            };
            Ok(Step::Do(vec![condition], std::iter::once(op).chain(policies.iter().cloned()).collect()))
        })
        .await
    }

    /// Reads the events.
    pub fn read_events<T>(&self, f: impl FnOnce(&Documents) -> T) -> T {
        f(&self.lock().events_fired)
    }

    /// Waits until the index of events differs from `index`; at most for `wait`.
    pub async fn wait_for_events(&self, index: u64, wait: Duration) {
        self.wait_until_not(&[Topic::Events], index, wait, |state| state.events_fired.index()).await;
    }

    /// Stores an event, and drops the oldest beyond the bound.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn fire_event(&self, namespace: &str, id: &str, value: &Value) -> Result<(), Refusal> {
        let key = path(namespace, id);
        for _ in 0..TRIES {
            let mut ops = vec![Op::put(Table::Events, key.clone(), value.to_string())];
            self.read_events(|events| {
                let held = events.list(namespace);
                let too_many = (held.len() + 1).saturating_sub(MAX_EVENTS);
                ops.extend(held.iter().take(too_many).map(|(id, _)| Op::delete(Table::Events, path(namespace, id))));
            });
            if self.write(vec![Condition::absent(Table::Events, key.clone())], ops).await? {
                return Ok(());
            }
        }
        Err("too many concurrent changes".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: &str, created: u64, modified: u64) -> Option<Record> {
        Some(Record { key: String::new(), value: value.as_bytes().to_vec(), created, modified, lease: 0 })
    }

    #[test]
    fn documents_are_of_their_namespace_and_in_order() {
        let mut all = Documents::new(5);
        all.follow("n/b".into(), record(r#"{"a":1}"#, 6, 6), 6).unwrap();
        all.follow("n/a".into(), record("2", 7, 8), 8).unwrap();
        all.follow("nn/a".into(), record("3", 9, 9), 9).unwrap();
        assert_eq!(all.list("n").iter().map(|(id, _)| *id).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!((all.get("n", "b").unwrap().value["a"].as_u64(), all.index()), (Some(1), 9));
        assert!(all.follow("n/c".into(), record("{", 10, 10), 10).is_err());
        all.follow("n/b".into(), None, 11).unwrap();
        assert_eq!((all.list("n").len(), all.get("n", "b"), all.index()), (1, None, 11));
    }
}
