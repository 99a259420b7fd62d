//! The administrator's API, which `weftctl` calls: policies, tokens, snapshots and the state of the mesh.

mod objects;
pub mod service;
mod status;
