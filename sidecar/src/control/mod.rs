//! The control plane's side of the sidecar: the connection, the discovery and registration streams, and the directory that
//! discovery fills.

pub mod agent;
pub mod connection;
pub mod directory;
pub mod discovery;
pub mod group;
pub mod registration;
