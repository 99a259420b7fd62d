//! The mesh as the control plane knows it, without I/O: no clock, no store, no socket.
//!
//! [`World`] holds policies, instances and the indexes between them. [`translate`] makes the messages for sidecars out
//! of it, and [`explain`] explains the path of a request.

pub mod explain;
pub mod translate;
mod world;

pub use translate::parse_policies;
pub use world::{
    Allocation, Changed, DEFAULT_DATACENTER, Host, Instance, InstanceKey, Keep, Member, Membership, Origin, Peering,
    Pod, Presence, QUARANTINE_S, RemoteHost, Scope, VirtualIps, World, derive_labels, has_all, sound,
};
