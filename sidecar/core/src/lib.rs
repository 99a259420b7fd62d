//! The decisions of Weft, without I/O: the meaning of policies, routing, load balancing, limits, retries and outlier
//! ejection.
//!
//! Pure by design: time (`now`) and randomness (`random`) are arguments, so that every decision is tested and fuzzed
//! without a socket, and the control plane dry-runs policies with the same [`compile`] as the sidecar.
//!
//! The path of a request: [`names`] (service), [`route`] (route and destination), [`filter`], [`limits`], [`hash`] and [`balance`]
//! (endpoint), [`outcome`] (result of the attempt), [`outlier`], [`retry`] and, for local replies, [`reply`].

pub mod backoff;
pub mod balance;
pub mod clock;
pub mod compile;
pub mod dns;
pub mod endpoint;
pub mod failover;
pub mod filter;
pub mod first_bytes;
pub mod flag;
pub mod gateway;
pub mod hash;
pub mod headers;
pub mod hex;
pub mod http1;
pub mod identity;
pub mod inbound;
pub mod limits;
pub mod locality;
pub mod names;
pub mod outcome;
pub mod outlier;
pub mod path;
pub mod policy;
pub mod pool;
pub mod protocol;
pub mod proxy_protocol;
pub mod re2;
pub mod renewal;
pub mod reply;
pub mod request;
pub mod retry;
pub mod route;
pub mod service;
pub mod sniff;
pub mod string_match;
pub mod subnet;
pub mod target;
pub mod tls_hello;
pub mod tunnel;
pub mod windowed_count;
