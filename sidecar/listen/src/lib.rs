//! What every listener of the mesh needs, in a sidecar and in the control plane.
//!
//! The guards: [`idle`] limits silent connections, [`admission`] TLS handshakes, [`clients`] the requests of one client, and
//! [`page`] turns requests of web pages away. [`server`] serves the registry's APIs behind them. [`address`] knows the addresses
//! of this machine, and [`counts`] what was turned away.

pub mod address;
pub mod admission;
pub mod clients;
pub mod counts;
pub mod idle;
pub mod page;
pub mod server;
