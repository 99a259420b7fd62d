//! The content of a certificate of the mesh: true once the certificate is verified by the root of the trust domain that it
//! names.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use weft_core::identity::SpiffeId;

/// The SPIFFE ID of a certificate: its one URI name.
///
/// # Errors
/// If it has none, several, or another kind of URI.
pub fn spiffe_id(certificate: &CertificateDer<'_>) -> Result<SpiffeId> {
    let parsed = webpki::EndEntityCert::try_from(certificate).context("the certificate cannot be read")?;
    let mut uris = parsed.valid_uri_names();
    let id = uris.next().context("the certificate has no SPIFFE ID")?;
    ensure!(uris.next().is_none(), "the certificate has more than one URI name");
    Ok(id.parse()?)
}

/// Begin and end of a certificate's validity.
///
/// # Errors
/// If the certificate cannot be read.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).context("the certificate cannot be read")?;
    let time = |t: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(t).unwrap_or(0));
    Ok((time(parsed.validity().not_before.timestamp()), time(parsed.validity().not_after.timestamp())))
}

/// SHA-256 of a certificate (DER).
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, certificate).as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    #[test]
    fn a_certificate_has_one_spiffe_id() {
        let of = |uris: &[&str]| {
            let mut params = CertificateParams::new(vec!["order".to_owned()]).unwrap();
            params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
            params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
        };
        let id = "spiffe://one/ns/default/sa/order";
        assert_eq!(spiffe_id(&of(&[id])).unwrap().as_str(), id);
        for (uris, reason) in [
            (&[][..], "has no SPIFFE ID"),
            (&[id, "spiffe://one/ns/default/sa/payment"], "more than one URI name"),
            (&["https://one/"], "not an identity"),
        ] {
            let error = format!("{:#}", spiffe_id(&of(uris)).unwrap_err());
            assert!(error.contains(reason), "{uris:?}: {error}");
        }
        assert!(spiffe_id(&CertificateDer::from(&b"no certificate"[..])).is_err());
    }
}
