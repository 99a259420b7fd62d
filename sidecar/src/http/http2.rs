//! HTTP/2 connections, both sides: [`serve`] for clients, [`Client`] for endpoints. Frames, HPACK and flow control are
//! the `h2` crate's; here messages are matched with bodies.
//!
//! A connection is driven by one task, and each request by one task: the client's side spawns it, and everything that
//! becomes of the request, up to the endpoint's connection, happens in it. Only frames wait for another task.

mod client;
mod outgoing;
mod server;
mod tunnel;

#[cfg(test)]
mod tests;

pub use client::{Client, Driver, open};
pub use server::serve;
pub use tunnel::Tunnel;

/// Bytes that a peer may send on one stream before they are read.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes that a peer may send on all streams of a connection before they are read.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes that a stream may hold while the peer takes none.
const SEND_BUFFER: usize = 256 * 1024;
/// Requests in progress on one connection of a client.
const MAX_STREAMS: u32 = 1000;
