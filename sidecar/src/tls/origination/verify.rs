//! Verification of servers outside the mesh: by one of the expected names, by CAs, by revocation lists.
//!
//! With revocation lists there must be a valid one of each CA in the chain, as in Envoy.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder,
};
use weft_agent::trust::{AnyCertificate, system_roots};
use weft_core::policy::Origination;

use super::certificates;
use super::files::Files;
use crate::tls::files::{self, HasName};

/// The verifier of an origination's servers.
pub(super) fn verifier(
    origination: &Origination,
    files: &Files,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>> {
    if origination.skip_verify {
        return Ok(Arc::new(AnyCertificate(provider.signature_verification_algorithms)));
    }
    let given = files.ca.as_deref().map(certificates).transpose()?.unwrap_or_default();
    let roots = match &files.ca {
        None => system_roots(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for root in &given {
                roots.add(root.clone()).with_context(|| format!("{} holds no CA", file.display()))?;
            }
            Arc::new(roots)
        }
    };
    ensure!(!roots.is_empty(), "this system trusts no certificate authority: give `caCertificates`");
    let crls = files.crl.as_deref().map(revoked).transpose()?.unwrap_or_default();
    // A certificate that is its own CA is on no other's list: with one, the chain decides.
    let given = if crls.is_empty() { given } else { Vec::new() };
    let names = origination.subject_alt_names.clone();
    if names.is_empty() {
        let builder = WebPkiServerVerifier::builder_with_provider(roots, provider);
        let inner = builder.with_crls(crls).enforce_revocation_expiration().build()?;
        let has_name: HasName = Box::new(|_, parsed, name| verify_server_name(parsed, name).is_ok());
        return Ok(Arc::new(files::Server { given, has_name, inner }));
    }
    let parsed = crls.iter().map(|crl| OwnedCertRevocationList::from_der(crl).map(Into::into));
    let crls = parsed.collect::<Result<_, _>>().context("a certificate revocation list cannot be read")?;
    let inner = Arc::new(AnyName { roots, crls, names: names.clone(), provider });
    let has_name: HasName = Box::new(move |leaf, parsed, _| has_one_of(&names, leaf, parsed));
    Ok(Arc::new(files::Server { given, has_name, inner }))
}

/// Whether a certificate has one of `names`, as a URI or a host.
pub(crate) fn has_one_of(names: &[String], leaf: &CertificateDer<'_>, parsed: &ParsedCertificate<'_>) -> bool {
    let uris: Vec<String> = EndEntityCert::try_from(leaf)
        .map(|leaf| leaf.valid_uri_names().map(str::to_owned).collect())
        .unwrap_or_default();
    names.iter().any(|name| {
        let host = ServerName::try_from(name.as_str());
        uris.contains(name) || host.is_ok_and(|host| verify_server_name(parsed, &host).is_ok())
    })
}

/// The revocation lists in a PEM file, at least one.
///
/// # Errors
/// If the file cannot be read or has none.
pub(crate) fn revoked(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let read = CertificateRevocationListDer::pem_file_iter(path).and_then(Iterator::collect);
    let read: Vec<_> = read.with_context(|| format!("cannot read the revocation lists in {}", path.display()))?;
    ensure!(!read.is_empty(), "{} holds no certificate revocation list", path.display());
    Ok(read)
}

/// A server whose certificate has one of some names, whichever the connection names.
#[derive(Debug)]
struct AnyName {
    roots: Arc<RootCertStore>,
    crls: Vec<CertRevocationList<'static>>,
    names: Vec<String>,
    provider: Arc<CryptoProvider>,
}

impl AnyName {
    /// Rustls verifies chain and revocation together with one name alone.
    fn verify_unrevoked(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let crls: Vec<&CertRevocationList<'_>> = self.crls.iter().collect();
        // Without a list nothing was revoked.
        let Ok(revocation) = RevocationOptionsBuilder::new(&crls) else { return Ok(()) };
        let revocation = revocation.with_expiration_policy(ExpirationPolicy::Enforce).build();
        let algorithms = self.provider.signature_verification_algorithms.all;
        let (roots, usage) = (&self.roots.roots, KeyUsage::server_auth());
        EndEntityCert::try_from(leaf)?
            .verify_for_usage(algorithms, roots, intermediates, now, usage, Some(revocation), None)
            .map(drop)
    }
}

fn refused(error: webpki::Error) -> rustls::Error {
    match error {
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        webpki::Error::CrlExpired { time, next_update } => {
            CertificateError::ExpiredRevocationListContext { time, next_update }
        }
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
    .into()
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        self.verify_unrevoked(end_entity, intermediates, now).map_err(refused)?;
        if has_one_of(&self.names, end_entity, &parsed) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::NotValidForName.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
