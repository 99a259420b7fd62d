//! The proxy beside each service.
//!
//! Each folder may use only the folders above it in this list (`tests/src/layers.rs` checks it):
//!
//! | folder | holds |
//! |---|---|
//! | [`net`] | sockets, byte streams and the relay between them |
//! | [`tls`] | the workload's identity, mutual TLS and TLS origination |
//! | [`resolve`] | name servers and look-ups of endpoints' names |
//! | [`telemetry`] | metrics and the access log |
//! | [`host`] | network namespaces, nftables, child processes, systemd |
//! | [`http`] | HTTP/1 and HTTP/2 on the wire, bodies, heads |
//! | [`upstream`] | clusters, connection pools, connecting to endpoints |
//! | [`control`] | streams to the control plane, and the directory that they fill |
//! | [`dns`] | the name server for captured queries |
//! | [`proxy`] | the state that all connections share |
//! | [`exchange`] | one request, or one byte stream, from arrival to its last byte |
//! | [`outbound`] | connections and requests of the application |
//! | [`inbound`] | connections and requests to the application |
//! | [`gateway`] | connections of downstreams without a sidecar |
//! | [`commands`] | `run`, `gateway` and `exec` |

pub mod commands;
pub mod control;
pub mod dns;
pub mod exchange;
pub mod gateway;
pub mod host;
pub mod http;
pub mod inbound;
pub mod net;
pub mod outbound;
pub mod proxy;
pub mod resolve;
pub mod telemetry;
pub mod tls;
pub mod upstream;
