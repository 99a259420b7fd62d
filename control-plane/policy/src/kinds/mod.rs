//! The kinds of documents, one module each: its type, its shape, and its decoder.

pub(crate) mod connection_pool;
pub(crate) mod destination_rule;
pub(crate) mod gateway;
pub(crate) mod kube_service;
pub mod mesh_config;
pub(crate) mod peer_authentication;
pub(crate) mod service_entry;
pub(crate) mod sidecar;
pub(crate) mod virtual_service;
pub(crate) mod workload_entry;
pub(crate) mod workload_group;
