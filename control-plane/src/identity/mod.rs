//! Identities and what they may do: certificates, tokens, and the bounds of requests.
//!
//! [`ca`] signs and [`service`] decides for whom; [`peer`] verifies the other end of a connection; [`token`] and [`grants`] hold
//! what an identity may register. [`caller`] is the sender of an API request with its rights, [`bounds`] and [`rates`] limit what
//! an identity may send.

pub mod bounds;
pub mod ca;
pub mod caller;
pub mod grants;
pub(crate) mod pattern;
pub mod peer;
pub mod rates;
pub mod refusals;
pub mod service;
pub mod token;
