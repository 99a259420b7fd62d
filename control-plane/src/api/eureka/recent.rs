//! Recent changes: Eureka's clients fetch everything once, then the changes of the last three minutes.
//!
//! No state is kept while no client reads: each read compares the registry with its state at the last read, and a
//! change counts from the read that finds it. For the first read everything is new, which is harmless; a client that
//! missed a change detects by the hash that it has to fetch everything again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weft_registry_api::eureka::instance::Action;

use super::Stamp;
use super::instance::Row;
use weft_world::InstanceKey;

/// How long a change is reported: Eureka's `retentionTimeInMSInDeltaQueue`.
const RETENTION: Duration = Duration::from_secs(180);

struct Change {
    at: Instant,
    action: Action,
    row: Row,
}

/// As large as the registry, and its changes within the retention.
#[derive(Default)]
pub(super) struct Recent {
    stamp: Stamp,
    known: BTreeMap<InstanceKey, Row>,
    changes: BTreeMap<InstanceKey, Change>,
}

impl Recent {
    /// Compares with the current state; an older state than the known one is ignored.
    pub(super) fn follow(&mut self, rows: &[Row], stamp: Stamp, now: Instant) {
        self.changes.retain(|_, change| now.duration_since(change.at) < RETENTION);
        if stamp <= self.stamp {
            return;
        }
        self.stamp = stamp;
        let mut before = std::mem::take(&mut self.known);
        for row in rows {
            let key = row.instance.key();
            match before.remove(&key) {
                Some(old) if old == *row => {}
                Some(_) => self.note(&key, Action::Modified, row, now),
                None => self.note(&key, Action::Added, row, now),
            }
            self.known.insert(key, row.clone());
        }
        for (key, row) in before {
            self.note(&key, Action::Deleted, &row, now);
        }
    }

    /// Changes by their keys.
    pub(super) fn changes(&self) -> impl Iterator<Item = (&Row, Action)> {
        self.changes.values().map(|change| (&change.row, change.action))
    }

    fn note(&mut self, key: &InstanceKey, action: Action, row: &Row, now: Instant) {
        // Clients ignore an addition of an existing instance, and a modification adds a missing one: a modification is
        // right whatever they received before.
        let again = action == Action::Added && self.changes.contains_key(key);
        let action = if again { Action::Modified } else { action };
        self.changes.insert(key.clone(), Change { at: now, action, row: row.clone() });
    }
}

impl PartialEq for Row {
    fn eq(&self, other: &Row) -> bool {
        self.node_out == other.node_out
            && (std::sync::Arc::ptr_eq(&self.instance, &other.instance) || self.instance == other.instance)
    }
}
