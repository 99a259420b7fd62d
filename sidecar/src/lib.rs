//! The proxy beside each service.
//!
//! Two readable paths: [`outbound`] for what our application calls, [`inbound`] for what others call of it; each is the
//! list of its phases, in order. [`run`] puts everything together.

pub mod access_log;
pub mod admin;
pub mod ads;
pub mod agent;
pub mod body;
pub mod call;
pub mod children;
pub mod claim;
pub mod clock;
pub mod cluster;
pub mod connect;
pub mod control;
pub mod date;
pub mod dialed;
pub mod directory;
pub mod dns;
pub mod exec;
pub mod gateway;
pub mod given;
pub mod group;
pub mod hello;
pub mod hot_restart;
pub mod http;
pub mod http1;
pub mod http2;
pub mod identity;
pub mod inbound;
pub mod incoming;
pub mod labels;
pub mod listen;
pub mod lookup;
pub mod metrics;
pub mod named;
pub mod notify;
pub mod origination;
pub mod outbound;
pub mod pod;
pub mod pool;
pub mod proxy;
pub mod redirect;
pub mod relay;
pub mod resolution;
pub mod resolv;
pub mod run;
pub mod script;
pub mod session;
pub mod sockets;
pub mod stream;
pub mod tcp;
pub mod tunnel;
pub mod upstream;

pub use weft_agent::files;
