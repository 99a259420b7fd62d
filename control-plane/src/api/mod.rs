//! The APIs of programs: Consul's HTTP API and DNS, and Eureka's REST API.
//!
//! [`access`] reads the token of a request. [`listener`] serves programs, [`catalog`] the sidecars that pass the requests
//! of their programs on. [`remote`] is the seam to other data centres, which the federation implements.

pub mod access;
pub mod catalog;
pub mod consul;
pub mod dns;
pub mod eureka;
pub mod listener;
pub mod remote;
