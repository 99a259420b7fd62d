//! The bytes of nodes and instances that each identity has registered, as stored.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::identity::bounds::{self, Accounts, Exceeded};
use crate::store::Table;

/// The account of a record: that of the identity, or if there is none, of the catalog of a namespace.
pub(super) fn account<'a>(identity: &'a str, namespace: &str) -> Cow<'a, str> {
    if identity.is_empty() { format!("the catalog of {namespace}").into() } else { identity.into() }
}

/// The usage of all identities.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// Identity and bytes of each record.
    records: HashMap<(Table, String), (String, usize)>,
    accounts: Accounts,
}

impl Usage {
    /// Adds or replaces a record of an identity, with its bytes.
    pub(super) fn put(&mut self, table: Table, key: &str, identity: &str, bytes: usize) {
        self.remove(table, key);
        self.accounts.add(identity, usize::from(table == Table::Nodes), bytes);
        self.records.insert((table, key.to_owned()), (identity.to_owned(), bytes));
    }

    /// Removes a record.
    pub(super) fn remove(&mut self, table: Table, key: &str) {
        if let Some((identity, bytes)) = self.records.remove(&(table, key.to_owned())) {
            self.accounts.subtract(&identity, usize::from(table == Table::Nodes), bytes);
        }
    }

    /// Whether an identity may write a record of this size.
    ///
    /// # Errors
    /// If a budget is exceeded; the error names it.
    pub(super) fn admit(&self, table: Table, key: &str, identity: &str, bytes: usize) -> Result<(), Exceeded> {
        let held = self.accounts.of(identity);
        let old = self.records.get(&(table, key.to_owned())).filter(|(of, _)| of == identity);
        let more = bytes.saturating_sub(old.map_or(0, |(_, bytes)| *bytes));
        if more > 0 && held.bytes + more > bounds::REGISTERED {
            let (held, most) = (held.bytes, bounds::REGISTERED);
            return Err(Exceeded(format!(
                "{identity} has registered {held} bytes, and {more} more are too many: {most} at most"
            )));
        }
        if table == Table::Nodes && old.is_none() && held.count >= bounds::NODES {
            return Err(Exceeded(format!("{identity} has {} nodes, {} at most", held.count, bounds::NODES)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registration_budget_is_per_identity() {
        let mut registered = Usage::default();
        let half = bounds::REGISTERED / 2;
        registered.put(Table::Nodes, "n1", "a", 100);
        registered.put(Table::Registrations, "default/n1/i", "a", half);
        assert_eq!(registered.admit(Table::Registrations, "default/n1/j", "a", half - 100), Ok(()));
        let refused = registered.admit(Table::Registrations, "default/n1/j", "a", half).unwrap_err().0;
        assert!(refused.contains("a has registered 16777316 bytes"), "{refused}");
        // A replacement counts with the additional bytes.
        assert_eq!(registered.admit(Table::Registrations, "default/n1/i", "a", 2 * half - 100), Ok(()));
        assert_eq!(registered.admit(Table::Registrations, "default/n2/j", "b", half), Ok(()));
        registered.remove(Table::Registrations, "default/n1/i");
        assert_eq!(registered.admit(Table::Registrations, "default/n1/j", "a", half), Ok(()));
        registered.put(Table::Nodes, "n1", "b", 100);
        assert_eq!(registered.accounts.of("a"), bounds::Account::default());
        for n in 0..bounds::NODES {
            registered.put(Table::Nodes, &format!("m{n}"), "a", 1);
        }
        assert!(registered.admit(Table::Nodes, "more", "a", 1).unwrap_err().0.contains("20000 nodes"));
        assert_eq!(registered.admit(Table::Nodes, "m7", "a", 1), Ok(()));
    }
}
