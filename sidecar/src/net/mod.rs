//! Sockets and byte streams.

pub mod connect;
pub mod pod;
pub mod relay;
pub mod sockets;
pub mod stream;
pub mod transport;
