//! Connections and requests of the application: the phases of a request, in order.
//!
//! 1. Which service: by authority, then by the original destination; else the destination is unknown and passes through
//!    (`plan`).
//! 2. Which route of it, and so which cluster; redirects and direct responses end here (`plan`).
//! 3. Admission: the route's fault, the cluster's limits (`request`).
//! 4. Attempts: pick an endpoint, get a connection, send, classify the outcome; again while the policy says so (`attempts`).
//! 5. The response goes back; its body holds the connection and the permits until it has ended (`request`).

mod attempts;
pub mod connection;
mod headers;
mod mirror;
mod passthrough;
mod plan;
mod request;

use std::net::SocketAddr;
use std::sync::Arc;

use weft_core::gateway::Server;
use weft_core::headers::Tls;
use weft_core::proxy_protocol::ConnectionAddresses;

use crate::proxy::Proxy;
pub use passthrough::Passthrough;
pub use plan::may_pass;
pub use request::{refuse, serve};

/// A connection of the application, or of a downstream of a gateway.
pub struct Downstream {
    /// The proxy.
    pub proxy: Arc<Proxy>,
    /// The worker that serves it.
    pub worker: u16,
    /// The application's side, and the original destination: the proxy's own listener when the connection was not redirected.
    pub ends: ConnectionAddresses,
    /// The original destination, when the connection was redirected.
    pub original: Option<SocketAddr>,
    /// The gateway's servers of the port by which a downstream without a sidecar came in.
    pub gateway: Option<Arc<Entrance>>,
    /// The endpoint at the original destination.
    pub passthrough: Passthrough,
}

/// The servers behind one port of a gateway, for one connection.
pub struct Entrance {
    /// Its servers; with TLS the one that the client's server name chose.
    pub servers: Vec<Arc<Server>>,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The TLS that has ended here.
    pub tls: Option<Tls>,
}
