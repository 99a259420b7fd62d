//! Identities of the mesh, as sidecars and the control plane both read and verify them.
//!
//! [`certificate`] reads the SPIFFE ID of a certificate, [`verify`] verifies certificates in TLS handshakes by the roots of the
//! trust domain that they name, [`token`] is the form of join tokens, and [`grant`] names lists of services that are too long
//! for a token or a certificate. The SPIFFE ID itself is [`weft_core::identity`]'s.

pub mod certificate;
pub mod grant;
pub mod token;
pub mod verify;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// The cryptography of all TLS connections.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
