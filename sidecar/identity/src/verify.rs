//! Verification of certificates in TLS handshakes of the mesh: rustls verifies a chain by the roots of the trust domain that
//! its certificate names, and the SPIFFE ID is compared here, because rustls does not know SPIFFE. TLS 1.3 only: both ends are
//! parts of the mesh.

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

use crate::certificate::{fingerprint, spiffe_id};
use crate::provider;

/// The store of these roots (DER).
///
/// # Errors
/// If a root cannot be read.
pub fn roots(der: impl IntoIterator<Item: AsRef<[u8]>>) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for root in der {
        roots.add(CertificateDer::from(root.as_ref().to_vec())).context("a root certificate cannot be read")?;
    }
    Ok(Arc::new(roots))
}

/// Trust domains and the roots that prove their identities. As a verifier of clients it takes each by the roots of the trust
/// domain that its certificate claims, and by no other's.
#[derive(Debug)]
pub struct Domains {
    by_name: BTreeMap<String, (Arc<RootCertStore>, Arc<dyn ClientCertVerifier>)>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Default for Domains {
    fn default() -> Domains {
        Domains { by_name: BTreeMap::new(), algorithms: provider().signature_verification_algorithms }
    }
}

impl Domains {
    /// Trusts these roots (DER) for the identities of `domain`.
    ///
    /// # Errors
    /// If a root cannot be read.
    pub fn add(&mut self, domain: &str, roots_der: impl IntoIterator<Item: AsRef<[u8]>>) -> Result<()> {
        let roots = roots(roots_der)?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build()?;
        self.by_name.insert(domain.to_owned(), (roots, clients));
        Ok(())
    }

    /// The verifier of the identity that a certificate claims.
    fn of(
        &self,
        leaf: &CertificateDer<'_>,
    ) -> Result<&(Arc<RootCertStore>, Arc<dyn ClientCertVerifier>), rustls::Error> {
        let id = spiffe_id(leaf).map_err(|e| rustls::Error::General(format!("{e:#}")))?;
        self.by_name.get(id.trust_domain()).ok_or_else(|| CertificateError::UnknownIssuer.into())
    }
}

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
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The roots of a server.
#[derive(Debug)]
pub enum Trust {
    /// Those of the trust domain that its certificate claims.
    Domains(Arc<Domains>),
    /// The root with this SHA-256, which the server sends along.
    Fingerprint([u8; 32]),
}

/// Verifies a server's chain and, where one is expected, its SPIFFE ID. For calls to workloads the expected ID differs
/// by endpoint: the dialer compares it right after the handshake, before it sends anything.
#[derive(Debug)]
pub struct ServerVerifier {
    trust: Trust,
    expected: Option<SpiffeId>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    /// `expected`: the one identity that is accepted; `None`: any, which the caller compares.
    pub fn new(trust: Trust, expected: Option<SpiffeId>) -> Self {
        ServerVerifier { trust, expected, algorithms: provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for ServerVerifier {
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
            Trust::Fingerprint(expected) => {
                let root = intermediates.iter().find(|c| fingerprint(c) == *expected);
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

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

    use super::*;

    struct Authority {
        root: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn authority() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Authority { root, issuer: Issuer::new(params, key) }
    }

    impl Authority {
        fn leaf(&self, id: &SpiffeId) -> CertificateDer<'static> {
            let mut params = CertificateParams::default();
            params.subject_alt_names.push(SanType::URI(id.as_str().try_into().unwrap()));
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().clone()
        }

        fn domains(&self) -> Domains {
            let mut domains = Domains::default();
            domains.add("one", [&self.root]).unwrap();
            domains
        }
    }

    /// `sent`: the root that the server sends along.
    fn verify(
        trust: Trust,
        leaf: &CertificateDer<'_>,
        sent: Option<&CertificateDer<'static>>,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let expected = SpiffeId::control_plane("one").unwrap();
        let name = ServerName::try_from("a").unwrap();
        ServerVerifier::new(trust, Some(expected)).verify_server_cert(
            leaf,
            sent.map_or(&[], std::slice::from_ref),
            &name,
            &[],
            UnixTime::now(),
        )
    }

    #[test]
    fn a_server_proves_the_expected_identity_by_the_root_of_its_domain() {
        let (one, two) = (authority(), authority());
        let id = SpiffeId::control_plane("one").unwrap();
        let trust = || Trust::Domains(Arc::new(one.domains()));
        verify(trust(), &one.leaf(&id), None).unwrap();
        let workload = SpiffeId::new("one", "default", "order").unwrap();
        let error = verify(trust(), &one.leaf(&workload), None).unwrap_err();
        assert_eq!(error, CertificateError::NotValidForName.into());
        assert!(verify(trust(), &two.leaf(&id), None).is_err(), "another root");
        let of_other_domain = one.leaf(&SpiffeId::control_plane("two").unwrap());
        assert_eq!(verify(trust(), &of_other_domain, None).unwrap_err(), CertificateError::UnknownIssuer.into());
    }

    #[test]
    fn the_first_contact_is_verified_by_the_fingerprint_of_the_root() {
        let (one, two) = (authority(), authority());
        let leaf = one.leaf(&SpiffeId::control_plane("one").unwrap());
        let trust = |authority: &Authority| Trust::Fingerprint(fingerprint(&authority.root));
        verify(trust(&one), &leaf, Some(&one.root)).unwrap();
        assert!(verify(trust(&one), &leaf, None).is_err(), "the root is not sent");
        assert!(verify(trust(&two), &leaf, Some(&one.root)).is_err(), "another root is expected");
        assert!(verify(trust(&two), &leaf, Some(&two.root)).is_err(), "the expected root has not signed it");
        let workload = one.leaf(&SpiffeId::new("one", "default", "order").unwrap());
        assert!(verify(trust(&one), &workload, Some(&one.root)).is_err(), "a workload is no control plane");
    }

    #[test]
    fn a_client_is_verified_by_the_root_of_the_domain_that_it_claims() {
        let (one, two) = (authority(), authority());
        let mut domains = one.domains();
        domains.add("two", [&two.root]).unwrap();
        let verify = |leaf: &CertificateDer<'_>| domains.verify_client_cert(leaf, &[], UnixTime::now());
        let id = |domain: &str| SpiffeId::new(domain, "default", "order").unwrap();
        verify(&one.leaf(&id("one"))).unwrap();
        verify(&two.leaf(&id("two"))).unwrap();
        for (leaf, reason) in [
            (two.leaf(&id("one")), "its root is trusted for another domain"),
            (one.leaf(&id("two")), "its root is trusted for another domain"),
            (one.leaf(&id("three")), "its domain is unknown"),
        ] {
            assert!(verify(&leaf).is_err(), "{reason}");
        }
        assert!(domains.add("three", [b"no certificate"]).is_err());
    }
}
