//! TLS to the control plane of another data centre: the exchanged root and the identity authenticate it, not a DNS
//! name.

use std::sync::Arc;

use anyhow::Result;
use rustls::client::Resumption;
use weft_core::identity::SpiffeId;
use weft_identity::provider;
use weft_identity::verify::{Domains, ServerVerifier, Trust};
use weft_world::Peering;

use crate::identity::peer::OwnCertificate;

/// Client TLS with the own certificate, and the verification of a peer's server.
pub(crate) fn client(peering: &Peering, own: Arc<OwnCertificate>) -> Result<rustls::ClientConfig> {
    let mut domains = Domains::default();
    domains.add(&peering.trust_domain, [&peering.root_der])?;
    let id = SpiffeId::control_plane(&peering.trust_domain)?;
    let verifier = ServerVerifier::new(Trust::Domains(Arc::new(domains)), Some(id));
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(own);
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}
