//! Identity and TLS: the workload certificate, mutual TLS between sidecars, TLS origination and files that operators provide.

pub mod client_hello;
pub mod clock;
pub mod files;
pub mod identity;
pub mod introduction;
pub mod origination;
