//! The mesh as the control plane knows it, without I/O: no clock, no store, no socket.
//!
//! [`World`] holds policies, instances and the indexes between them. `attach` decides which routes of the Gateway API apply
//! where. [`translate`] makes the messages for sidecars, and [`explain`] explains the path of a request.

mod attach;
pub mod explain;
pub mod translate;
mod world;

pub use attach::conditions;
pub use translate::parse_policies;
pub use world::{
    Allocation, Changed, DEFAULT_DATACENTER, Host, Instance, InstanceKey, Keep, Member, Membership, Origin, Peering,
    Pod, Presence, QUARANTINE_S, RemoteHost, Scope, VirtualIps, World, derive_labels, has_all, sound,
};
