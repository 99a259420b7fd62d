//! HTTP/1 connections, both sides: [`serve`] for clients, [`Client`] for endpoints. What the bytes mean is
//! `weft_core::http1`'s; here they are read and written.
//!
//! A connection is driven by whoever has use for it, not by a task of its own: a request's task reads the request, asks
//! the endpoint and writes the answer, so that nothing is handed from task to task, and an idle connection is a socket and
//! little else. A connection is shared by those who drive it (the server or the lease) and the body that is read from it;
//! the lock is theirs alone, and never waited for on one worker.

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
