//! Which of a server's certificates a client is shown: one that it can use and that is for the name that it asks for, of an
//! ECDSA key before one of RSA, as in Envoy; else the one that is named first.

use std::cmp::Reverse;
use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::ServerName;
use weft_core::gateway::Versions;

/// Certificates, at least one.
#[derive(Debug)]
pub(super) struct Choice {
    keys: Vec<Arc<CertifiedKey>>,
    /// Suites of TLS 1.2, and the signatures of their handshakes.
    tls12: Vec<(CipherSuite, &'static [SignatureScheme])>,
    tls13: Vec<CipherSuite>,
}

impl Choice {
    pub(super) fn new(keys: Vec<Arc<CertifiedKey>>, provider: &CryptoProvider, versions: Versions) -> Choice {
        let suites = &provider.cipher_suites;
        let tls12 = suites.iter().filter_map(|suite| match suite {
            rustls::SupportedCipherSuite::Tls12(suite) => Some((suite.common.suite, suite.sign)),
            rustls::SupportedCipherSuite::Tls13(_) => None,
        });
        let tls13 = suites.iter().filter(|suite| suite.tls13().is_some()).map(|suite| suite.suite());
        Choice {
            keys,
            tls12: if versions == Versions::Only13 { Vec::new() } else { tls12.collect() },
            tls13: if versions == Versions::Only12 { Vec::new() } else { tls13.collect() },
        }
    }

    /// The best for a client that offers these; `None`: there is no certificate.
    fn best(
        &self,
        name: Option<&str>,
        schemes: &[SignatureScheme],
        suites: &[CipherSuite],
    ) -> Option<&Arc<CertifiedKey>> {
        let [_, _, ..] = self.keys[..] else { return self.keys.first() };
        let name = name.and_then(|name| ServerName::try_from(name).ok());
        let rank = |key: &&Arc<CertifiedKey>| {
            let has_name = name.as_ref().is_some_and(|name| {
                let leaf = key.cert.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
                leaf.is_some_and(|leaf| verify_server_name(&leaf, name).is_ok())
            });
            (self.can_use(key, schemes, suites), has_name, key.key.algorithm() == SignatureAlgorithm::ECDSA)
        };
        // The first of equals.
        self.keys.iter().min_by_key(|key| Reverse(rank(key)))
    }

    /// Whether the client can use a key: it knows a signature of it, and speaks TLS 1.3 or a suite of 1.2 that is signed so.
    fn can_use(&self, key: &CertifiedKey, schemes: &[SignatureScheme], suites: &[CipherSuite]) -> bool {
        let signs = |offered: &[SignatureScheme]| key.key.choose_scheme(offered).is_some();
        let tls13 = || suites.iter().any(|suite| self.tls13.contains(suite));
        let tls12 = || self.tls12.iter().any(|(suite, signed)| suites.contains(suite) && signs(signed));
        signs(schemes) && (tls13() || tls12())
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.best(hello.server_name(), hello.signature_schemes(), hello.cipher_suites()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls_pki_types::PrivateKeyDer;

    fn key(algorithm: &'static rcgen::SignatureAlgorithm, host: &str) -> Arc<CertifiedKey> {
        let pair = KeyPair::generate_for(algorithm).unwrap();
        let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().self_signed(&pair).unwrap();
        let private = PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
        Arc::new(CertifiedKey::from_der(vec![certificate.der().clone()], private, &default_provider()).unwrap())
    }

    #[test]
    fn the_certificate_fits_the_clients_signature_algorithms() {
        let (rsa, ecdsa) = (key(&PKCS_RSA_SHA256, "a.example.com"), key(&PKCS_ECDSA_P256_SHA256, "a.example.com"));
        let other = key(&PKCS_ECDSA_P256_SHA256, "b.example.com");
        let keys = vec![rsa, ecdsa, other];
        let (old, new) = (CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, CipherSuite::TLS13_AES_128_GCM_SHA256);
        let old_ecdsa = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
        let (by_rsa, by_ecdsa) = (SignatureScheme::RSA_PSS_SHA256, SignatureScheme::ECDSA_NISTP256_SHA256);
        for (versions, name, schemes, suites, want) in [
            (Versions::Both, Some("a.example.com"), &[by_rsa, by_ecdsa][..], &[new][..], 1),
            (Versions::Both, Some("a.example.com"), &[by_rsa], &[new], 0),
            (Versions::Both, Some("b.example.com"), &[by_rsa, by_ecdsa], &[new], 2),
            // The name does not help a client that cannot verify it.
            (Versions::Both, Some("b.example.com"), &[by_rsa], &[new], 0),
            (Versions::Both, None, &[by_rsa, by_ecdsa], &[new], 1),
            // TLS 1.2: the suite implies the kind of key.
            (Versions::Both, Some("a.example.com"), &[by_rsa, by_ecdsa], &[old], 0),
            (Versions::Both, Some("a.example.com"), &[by_rsa, by_ecdsa], &[old, old_ecdsa], 1),
            (Versions::Only12, Some("a.example.com"), &[by_rsa, by_ecdsa], &[new, old], 0),
            (Versions::Only13, Some("a.example.com"), &[by_rsa, by_ecdsa], &[new, old], 1),
            (Versions::Both, Some("a.example.com"), &[], &[], 1),
        ] {
            let choice = Choice::new(keys.clone(), &default_provider(), versions);
            let found = choice.best(name, schemes, suites).unwrap();
            let found = keys.iter().position(|key| Arc::ptr_eq(key, found));
            assert_eq!(found, Some(want), "{versions:?} {name:?} {schemes:?} {suites:?}");
        }
    }
}
