//! The forms of Consul's HTTP API and of Eureka's, as an agent and the control plane both read and write them. No sockets and
//! no clock: everything here maps values to values.
//!
//! [`query`], [`decode`] and [`service`] read requests, [`filter`] is Consul's filter language, [`path`] normalises paths like
//! Consul's server; [`shapes`], [`reply`] and [`error`] make responses; [`eureka`] has the documents and paths of Eureka.
//! [`registration`] has what a sidecar and the control plane agree on about the services of a node.

pub mod decode;
pub mod error;
pub mod eureka;
pub mod filter;
pub mod path;
pub mod query;
pub mod registration;
pub mod reply;
pub mod service;
pub mod shapes;
