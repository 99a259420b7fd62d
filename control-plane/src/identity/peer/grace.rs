//! Recently expired certificates, with which a sidecar may return after an outage.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::read_certificate;
use crate::identity::refusals::Refusals;

/// Verifies as `inner` does, and also accepts a certificate that was valid until it expired, at most `grace` ago.
/// Services decide what it may be used for ([`super::Peer`]).
#[derive(Debug)]
pub(super) struct WithinGrace {
    pub inner: Arc<dyn ClientCertVerifier>,
    pub grace: Duration,
    /// Sidecars that come too late, by identity.
    pub refusals: Arc<Refusals>,
}

impl ClientCertVerifier for WithinGrace {
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
    ) -> Result<ClientCertVerified, Error> {
        let refused = match self.inner.verify_client_cert(leaf, intermediates, now) {
            Err(Error::InvalidCertificate(
                e @ (CertificateError::Expired | CertificateError::ExpiredContext { .. }),
            )) => e,
            verified => return verified,
        };
        let certificate = read_certificate(leaf).map_err(|e| Error::General(format!("{e:#}")))?;
        let ended = certificate.not_after.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // Verified at its last second: whether it was otherwise valid.
        let last = UnixTime::since_unix_epoch(ended.saturating_sub(Duration::from_secs(1)));
        let verified = self.inner.verify_client_cert(leaf, intermediates, last)?;
        let since = Duration::from_secs(now.as_secs()).saturating_sub(ended);
        if since <= self.grace {
            return Ok(verified);
        }
        let (days, grace) = (since.as_secs() / 86_400, self.grace.as_secs());
        self.refusals.add(
            &certificate.id.to_string(),
            None,
            format!(
                "its certificate ended {days} days ago, more than --renewal-grace ({grace} s): it needs a join token \
                 (weftctl token create)"
            ),
        );
        Err(Error::InvalidCertificate(refused))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
