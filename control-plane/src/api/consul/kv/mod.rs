//! Consul's key-value store, with its sessions and transactions.

pub(in crate::api::consul) mod pairs;
pub(in crate::api::consul) mod sessions;
pub(in crate::api::consul) mod txn;
