//! The APIs of programs: Consul's HTTP API and DNS, and Eureka's REST API.
//!
//! [`access`] reads the token of a request. [`listener`] serves programs, [`catalog`] the sidecars that forward the
//! requests of their programs. [`remote`] is the interface to other data centres, which the federation implements.

pub mod access;
pub mod catalog;
pub mod consul;
pub mod dns;
pub mod eureka;
pub mod listener;
pub mod remote;
