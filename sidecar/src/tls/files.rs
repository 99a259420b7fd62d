//! Certificates that an operator configured as CAs and that a peer presents as its own: `openssl req -x509` makes such.
//! Webpki refuses a CA as a peer's certificate (`CaUsedAsEndEntity`); Envoy and curl accept the very certificate that was
//! configured, and so does this, while it is valid.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

/// Whether a certificate has the name of a peer: the leaf, in DER and parsed, and the expected name.
pub type HasName = Box<dyn Fn(&CertificateDer<'_>, &ParsedCertificate<'_>, &ServerName<'_>) -> bool + Send + Sync>;

/// Accepts a server whose certificate is one of the configured ones and has the right name; verifies others by `inner`.
pub struct Server {
    /// The certificates given as CAs.
    pub given: Vec<CertificateDer<'static>>,
    /// Whether a certificate has the right name.
    pub has_name: HasName,
    /// Verifies other certificates.
    pub inner: Arc<dyn ServerCertVerifier>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("given::Server").field("given", &self.given.len()).field("inner", &self.inner).finish()
    }
}

/// Accepts a client whose certificate is one of the configured ones; verifies others by `inner`.
#[derive(Debug)]
pub struct Client {
    /// The certificates given as CAs.
    pub given: Vec<CertificateDer<'static>>,
    /// Verifies other certificates.
    pub inner: Arc<dyn ClientCertVerifier>,
}

/// Whether `leaf` is one of the certificates that were given, and valid now.
///
/// # Errors
/// When it is one of them and not valid now.
fn is_given(given: &[CertificateDer<'_>], leaf: &CertificateDer<'_>, now: UnixTime) -> Result<bool, rustls::Error> {
    if !given.contains(leaf) {
        return Ok(false);
    }
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| ASN1Time::from_timestamp(now).ok());
    let now = now.ok_or(CertificateError::BadEncoding)?;
    if now < parsed.validity().not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > parsed.validity().not_after {
        return Err(CertificateError::Expired.into());
    }
    Ok(true)
}

impl ServerCertVerifier for Server {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !is_given(&self.given, leaf, now)? {
            return self.inner.verify_server_cert(leaf, intermediates, name, ocsp, now);
        }
        if (self.has_name)(leaf, &ParsedCertificate::try_from(leaf)?, name) {
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
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Client {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match is_given(&self.given, leaf, now)? {
            true => Ok(ClientCertVerified::assertion()),
            false => self.inner.verify_client_cert(leaf, intermediates, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
