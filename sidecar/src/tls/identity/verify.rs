//! TLS peer verification: rustls verifies a chain by the roots of the trust domain that its certificate names.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use weft_core::identity::SpiffeId;

use super::{provider, spiffe_id};

/// Trust domains and the roots that prove their identities.
#[derive(Debug, Default)]
pub(super) struct Domains(BTreeMap<String, (Arc<RootCertStore>, Arc<dyn ClientCertVerifier>)>);

impl Domains {
    /// # Errors
    /// When a root cannot be read.
    pub(super) fn add(&mut self, domain: &str, roots_der: &[Vec<u8>]) -> Result<()> {
        let mut roots = RootCertStore::empty();
        for root in roots_der {
            roots.add(CertificateDer::from(root.clone())).context("a root certificate cannot be read")?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build()?;
        self.0.insert(domain.to_owned(), (roots, clients));
        Ok(())
    }

    /// The verifier of the identity that a certificate claims.
    fn of(
        &self,
        leaf: &CertificateDer<'_>,
    ) -> Result<&(Arc<RootCertStore>, Arc<dyn ClientCertVerifier>), rustls::Error> {
        let id = spiffe_id(leaf).map_err(|e| rustls::Error::General(format!("{e:#}")))?;
        self.0.get(id.trust_domain()).ok_or_else(|| CertificateError::UnknownIssuer.into())
    }
}

/// Callers, each by the roots of the trust domain that it claims to be of.
impl ClientCertVerifier for Domains {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.of(end_entity)?.1.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not used in the mesh".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[derive(Debug)]
pub(super) enum Trust {
    Domains(Arc<Domains>),
    /// SHA-256 of a root that the server sends along.
    Fingerprint([u8; 32]),
}

/// Verifies a server's chain and, where one is expected, its SPIFFE ID. For calls to workloads the expected ID differs
/// by endpoint: the dialer compares it right after the handshake, before it sends anything.
#[derive(Debug)]
pub(super) struct MeshVerifier {
    trust: Trust,
    expected: Option<SpiffeId>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl MeshVerifier {
    pub(super) fn new(trust: Trust, expected: Option<SpiffeId>) -> Self {
        MeshVerifier { trust, expected, algorithms: provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for MeshVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let sent;
        let roots = match &self.trust {
            Trust::Domains(domains) => domains.of(end_entity)?.0.as_ref(),
            Trust::Fingerprint(fingerprint) => {
                let root = intermediates.iter().find(|c| crate::files::sha256(c) == *fingerprint);
                let root = root.ok_or_else(|| {
                    rustls::Error::General("the control plane's root is not the one that the join token names".into())
                })?;
                let mut store = RootCertStore::empty();
                store.add(root.clone().into_owned())?;
                sent = store;
                &sent
            }
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, self.algorithms.all)?;
        if let Some(expected) = &self.expected {
            let found = spiffe_id(end_entity).map_err(|e| rustls::Error::General(e.to_string()))?;
            if found != *expected {
                return Err(CertificateError::NotValidForName.into());
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not used in the mesh".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
