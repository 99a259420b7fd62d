//! The means by which a sidecar joins before it has a certificate: a join token, or in Kubernetes the token of its pod's
//! service account. Each comes with a root of the mesh, so that the first contact is authenticated in both directions.
//!
//! Files are read at each use: the kubelet replaces both token and roots.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use weft_core::identity::{self, SCHEME, SpiffeId};
use weft_identity::certificate::fingerprint;
use weft_identity::provider;
use weft_identity::token::{JoinClaims, decode};
use weft_identity::verify::{Domains, ServerVerifier, Trust};

/// Bytes of a token: it is sent as a header, and headers have 16 KiB.
const MAX_TOKEN: usize = 12 << 10;
/// Subject of the token of a service account (Kubernetes, "Managing Service Accounts").
const SUBJECT: &str = "system:serviceaccount:";

/// The files that a sidecar is introduced with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Introduction {
    /// A join token of `weftctl token create`, which has the fingerprint of the root.
    JoinToken(PathBuf),
    /// A token of the pod's service account for the mesh's audience, and the mesh's roots, PEM.
    ServiceAccount {
        /// The projected token.
        token: PathBuf,
        /// The root certificates.
        roots: PathBuf,
    },
}

/// The entitlement that the files name. It is not verified: it only tells whether the certificate of an earlier run is
/// still the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The SPIFFE ID.
    pub uri: String,
    /// Services that the workload may register; `None`: the control plane decides.
    pub services: Option<Vec<String>>,
    /// SHA-256 of the mesh's roots.
    pub roots: Vec<[u8; 32]>,
}

/// The claims of a service account's token that its holder reads.
#[derive(Deserialize)]
struct Subject {
    sub: String,
}

impl Introduction {
    /// The entitlement that the files name, unless they cannot be read: a sidecar that has a certificate does not need
    /// them.
    pub fn claimed(&self) -> Option<Claimed> {
        match self {
            Introduction::JoinToken(file) => {
                let text = std::fs::read_to_string(file).ok()?;
                let read = JoinClaims::read(&text).and_then(|claims| Claimed::of_join_token(&claims));
                read.map_err(|e| tracing::warn!("ignoring the join token: {e:#}")).ok()
            }
            Introduction::ServiceAccount { token, roots } => {
                let read = token_of(token).and_then(|text| Claimed::of_service_account(&text, &Roots::read(roots)?));
                read.map_err(|e| tracing::warn!("ignoring the service account: {e:#}")).ok()
            }
        }
    }

    /// The token, and TLS towards a control plane of which nothing is known but the root that came with the token.
    ///
    /// # Errors
    /// If a file cannot be read or is damaged; the text names it.
    pub fn present(&self) -> Result<(String, Arc<ClientConfig>)> {
        match self {
            Introduction::JoinToken(file) => {
                let token = token_of(file)?;
                let claims = JoinClaims::read(&token)?;
                let trust = Trust::Fingerprint(claims.fingerprint()?);
                Ok((token, first_contact(trust, &claims.trust_domain)?))
            }
            Introduction::ServiceAccount { token, roots } => {
                let (token, roots) = (token_of(token)?, Roots::read(roots)?);
                let mut domains = Domains::default();
                domains.add(&roots.trust_domain, &roots.der)?;
                Ok((token, first_contact(Trust::Domains(Arc::new(domains)), &roots.trust_domain)?))
            }
        }
    }
}

impl Claimed {
    fn of_join_token(claims: &JoinClaims) -> Result<Claimed> {
        let roots = vec![claims.fingerprint()?];
        Ok(Claimed { uri: claims.uri(), services: Some(claims.services.clone()), roots })
    }

    /// `token`: a JSON Web Token (RFC 7519), whose payload is its second part.
    fn of_service_account(token: &str, roots: &Roots) -> Result<Claimed> {
        let payload = token.split('.').nth(1).context("it is not a JSON Web Token")?;
        let Subject { sub } = decode(payload).context("its payload has no subject")?;
        let account = sub.strip_prefix(SUBJECT).and_then(|account| account.split_once(':'));
        let (namespace, account) =
            account.with_context(|| format!("its subject is {sub}, not that of a service account"))?;
        Ok(Claimed {
            uri: identity::uri(&roots.trust_domain, namespace, account),
            services: None,
            roots: roots.der.iter().map(|root| fingerprint(root)).collect(),
        })
    }
}

/// The roots of a mesh.
struct Roots {
    trust_domain: String,
    der: Vec<CertificateDer<'static>>,
}

impl Roots {
    fn read(file: &Path) -> Result<Roots> {
        let read = || {
            let pem = std::fs::read(file)?;
            let der = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>()?;
            let trust_domain = trust_domain_of(der.first().context("it has no certificate")?)?;
            anyhow::Ok(Roots { trust_domain, der })
        };
        read().with_context(|| format!("cannot read the mesh's root certificates {}", file.display()))
    }
}

/// The trust domain of a root: its name is `spiffe://<trust domain>` (SPIFFE X509-SVID, section 3.1).
fn trust_domain_of(root: &CertificateDer<'_>) -> Result<String> {
    let parsed = webpki::EndEntityCert::try_from(root).context("a root certificate cannot be read")?;
    let domain = parsed.valid_uri_names().find_map(|uri| uri.strip_prefix(SCHEME));
    let domain = domain.context("the root certificate names no trust domain: it is not a control plane's root.pem")?;
    Ok(domain.trim_end_matches('/').to_owned())
}

fn token_of(file: &Path) -> Result<String> {
    let token = std::fs::read_to_string(file).with_context(|| format!("cannot read the token {}", file.display()))?;
    ensure!(
        token.len() <= MAX_TOKEN,
        "the token {} has {} bytes, and a control plane takes {MAX_TOKEN} at most: make a new one with \
         `weftctl token create`, which keeps long lists of services in the store",
        file.display(),
        token.len()
    );
    Ok(token.trim().to_owned())
}

fn first_contact(trust: Trust, trust_domain: &str) -> Result<Arc<ClientConfig>> {
    let verifier = ServerVerifier::new(trust, Some(SpiffeId::control_plane(trust_domain)?));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};
    use serde_json::json;
    use weft_identity::token::encode;

    use super::*;

    fn token(payload: serde_json::Value) -> String {
        format!("e30.{}.c2ln", encode(&payload))
    }

    fn root(uri: Option<&str>) -> (String, Vec<u8>) {
        let mut params = CertificateParams::default();
        params.subject_alt_names.extend(uri.map(|uri| SanType::URI(uri.try_into().unwrap())));
        let root = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        (root.pem(), root.der().to_vec())
    }

    #[test]
    fn the_token_of_a_service_account_names_the_identity_and_the_root_its_trust_domain() {
        let dir = tempfile::tempdir().unwrap();
        let (file, roots) = (dir.path().join("token"), dir.path().join("root-cert.pem"));
        let introduction = Introduction::ServiceAccount { token: file.clone(), roots: roots.clone() };
        assert_eq!(introduction.claimed(), None, "no files yet: the kubelet makes them");
        let (pem, der) = root(Some("spiffe://mesh.example"));
        std::fs::write(&roots, pem).unwrap();
        std::fs::write(&file, token(json!({"aud": ["weft-ca"], "sub": "system:serviceaccount:shop:order"}))).unwrap();
        let uri = "spiffe://mesh.example/ns/shop/sa/order".to_owned();
        assert_eq!(introduction.claimed(), Some(Claimed { uri, services: None, roots: vec![fingerprint(&der)] }));
        let (sent, _) = introduction.present().unwrap();
        assert_eq!(sent, std::fs::read_to_string(&file).unwrap());
    }

    #[test]
    fn damaged_files_of_an_introduction_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (file, roots) = (dir.path().join("token"), dir.path().join("root-cert.pem"));
        let introduction = Introduction::ServiceAccount { token: file.clone(), roots: roots.clone() };
        let error = |token: &str, pem: &str| {
            std::fs::write(&file, token).unwrap();
            std::fs::write(&roots, pem).unwrap();
            assert_eq!(introduction.claimed(), None);
            introduction.present().map(drop).map_err(|e| format!("{e:#}"))
        };
        let (pem, _) = root(Some("spiffe://one"));
        for (pem, reason) in [("", "it has no certificate"), (&root(None).0, "names no trust domain")] {
            let error = error("t", pem).unwrap_err();
            assert!(error.contains(reason) && error.contains("root-cert.pem"), "{error}");
        }
        assert!(error(&"t".repeat(MAX_TOKEN + 1), &pem).unwrap_err().contains("bytes"));
        // The control plane judges the token.
        for token in ["nonsense", &token(json!({})), &token(json!({"sub": "system:node:n"}))] {
            error(token, &pem).unwrap();
        }
    }

    #[test]
    fn an_unreadable_join_token_claims_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let introduction = Introduction::JoinToken(dir.path().join("token"));
        assert_eq!(introduction.claimed(), None);
        std::fs::write(dir.path().join("token"), "nonsense").unwrap();
        assert_eq!(introduction.claimed(), None);
    }
}
