//! Consul's key-value pairs, with the locks, transactions and small documents beside them.

mod budgets;
pub mod documents;
pub mod locks;
pub mod pairs;
pub mod txn;
