//! HTTP/1 connections, both sides: [`serve`] for downstreams, [`Client`] for endpoints. `weft_core::http1` parses and encodes;
//! the reading and writing is here.
//!
//! A connection is driven by its users, not by a task of its own: a request's task reads the request, sends it to the endpoint
//! and writes the response, so that nothing is handed from task to task, and an idle connection is a socket and little else.
//! A connection is shared by its driver (the server or the lease) and the body that is read from it; the lock is theirs
//! alone, and never contended on one worker.

mod client;
mod conn;
mod outgoing;
mod server;

#[cfg(test)]
mod tests;

pub(crate) use client::waits_for_continue;
pub use client::{Client, ExchangeError, Failure};
pub use conn::{ReadError, Source};
pub use server::{ServeError, Service, Unread, serve};
