//! Identities and their rights: certificates, tokens, and the bounds of requests.
//!
//! [`ca`] signs and [`service`] decides on requests for certificates; [`refusals`] records the refused ones; [`peer`]
//! verifies the other end of a connection; [`token`] and [`grants`] hold the services that an identity may register.
//! [`caller`] is the sender of an API request with its rights; [`bounds`] and [`rates`] limit requests.

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
