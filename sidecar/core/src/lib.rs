//! The decisions of Weft, without I/O: what a policy means, which route a request takes, which endpoint serves it, when
//! it is refused, retried or an endpoint ejected.
//!
//! Pure on purpose: time (`now`) and randomness (`random`) are arguments, so that every decision is tested and fuzzed
//! without a socket, and the control plane dry-runs policies with the very [`compile`] that the sidecar runs.
//!
//! A request walks through: [`names`] (which service), [`route`] (which route and destination), [`limits`], [`hash`] and
//! [`balance`] (which endpoint), [`outcome`] (what became of the attempt), [`outlier`], [`retry`] and, where the sidecar
//! answers by itself, [`reply`].

pub mod balance;
pub mod clock;
pub mod compile;
pub mod cors;
pub mod dns;
pub mod endpoint;
pub mod failover;
pub mod fault;
pub mod flag;
pub mod gateway;
pub mod hash;
pub mod headers;
pub mod http1;
pub mod identity;
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
pub mod recent;
pub mod renewal;
pub mod reply;
pub mod request;
pub mod retry;
pub mod route;
pub mod silent;
pub mod sniff;
pub mod subnet;
pub mod target;
pub mod tls_hello;
pub mod tunnel;
