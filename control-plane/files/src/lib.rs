//! Files that the control plane and `weftctl` both read: policy folders and snapshots.

pub mod policies;
pub mod snapshot;
