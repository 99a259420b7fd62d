//! The mesh's certificate authority: one self-signed root, created at the first start and kept in the store.
//!
//! It signs the authenticated identity of the caller, never the one that a request names: of a certificate signing
//! request only the public key is used. Time is an argument, so that expiry is tested without waiting.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use weft_core::clock::TOLERANCE;
use weft_core::identity::SCHEME;
use weft_identity::certificate::fingerprint;

/// How long a root is valid.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The CA as stored. It contains the private key.
#[derive(Serialize, Deserialize)]
pub struct CaRecord {
    trust_domain: String,
    root_der: Vec<u8>,
    key_pkcs8: Vec<u8>,
}

/// The authority. Its key is in memory and in the store, nowhere else.
pub struct Ca {
    trust_domain: String,
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A signed leaf.
#[derive(Debug)]
pub struct SignedCertificate {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its expiry.
    pub not_after: SystemTime,
}

impl Ca {
    /// Creates a new root for `trust_domain`, and its record for the store.
    ///
    /// # Errors
    /// If the system provides no randomness.
    pub fn create(trust_domain: &str, now: SystemTime) -> Result<(Ca, CaRecord)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain);
        params.distinguished_name.push(DnType::CommonName, "Weft root");
        params.subject_alt_names.push(SanType::URI(format!("{SCHEME}{trust_domain}").try_into()?));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - TOLERANCE).into();
        params.not_after = (now + ROOT_LIFETIME).into();
        let root = params.self_signed(&key)?;
        let record = CaRecord {
            trust_domain: trust_domain.to_owned(),
            root_der: root.der().to_vec(),
            key_pkcs8: key.serialize_der(),
        };
        Ok((Ca::load(&record)?, record))
    }

    /// The CA of a record.
    ///
    /// # Errors
    /// If the record is damaged.
    pub fn load(record: &CaRecord) -> Result<Ca> {
        let pkcs8 = PrivatePkcs8KeyDer::from(record.key_pkcs8.clone());
        let key = KeyPair::try_from(&PrivateKeyDer::Pkcs8(pkcs8)).context("the stored CA key cannot be read")?;
        let root = CertificateDer::from(record.root_der.clone());
        let issuer = Issuer::from_ca_cert_der(&root, key).context("the stored root certificate cannot be read")?;
        Ok(Ca { trust_domain: record.trust_domain.clone(), root, issuer })
    }

    /// "cluster.local" unless another one was chosen at the first start.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The root certificate as PEM.
    pub fn root_pem(&self) -> String {
        pem::encode_config(
            &pem::Pem::new("CERTIFICATE", self.root.to_vec()),
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        )
    }

    /// SHA-256 of the root certificate, which is part of join tokens.
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.root)
    }

    /// Signs the public key of `csr_der` for `spiffe_id`, valid for `lifetime` from `now`. `services`, the ones that
    /// the holder may register, become DNS names of the certificate, so that a renewal keeps them.
    ///
    /// # Errors
    /// If the request is not a certificate signing request or not signed by its own key.
    pub fn sign_request(
        &self,
        csr_der: &[u8],
        spiffe_id: &str,
        services: &[String],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<SignedCertificate> {
        let csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
            .context("not a certificate signing request")?;
        self.sign_key(&csr.public_key, spiffe_id, services, now, lifetime)
    }

    /// As [`Ca::sign_request`], for an available key.
    ///
    /// # Errors
    /// If `spiffe_id` is invalid in a certificate.
    pub fn sign_key(
        &self,
        key: &impl PublicKeyData,
        spiffe_id: &str,
        services: &[String],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<SignedCertificate> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names.push(SanType::URI(spiffe_id.try_into()?));
        for service in services {
            params.subject_alt_names.push(SanType::DnsName(service.as_str().try_into()?));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let not_after = now + lifetime;
        // Small compared to the lifetime: the holder renews at half of the certificate's validity.
        params.not_before = (now - TOLERANCE.min(lifetime / 10)).into();
        params.not_after = not_after.into();
        let leaf = params.signed_by(key, &self.issuer)?;
        Ok(SignedCertificate { chain: vec![leaf.der().clone()], not_after })
    }

    /// Signs a key for a server of these names and addresses, for clients outside the mesh. The certificate has no
    /// SPIFFE ID and is not a client's: it authenticates nothing inside the mesh.
    ///
    /// # Errors
    /// If a name is invalid in a certificate.
    pub fn sign_server(
        &self,
        key: &impl PublicKeyData,
        names: &[String],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<SignedCertificate> {
        let mut params = CertificateParams::new(names).context("no name of a server")?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let not_after = now + lifetime;
        params.not_before = (now - TOLERANCE.min(lifetime / 10)).into();
        params.not_after = not_after.into();
        let leaf = params.signed_by(key, &self.issuer)?;
        Ok(SignedCertificate { chain: vec![leaf.der().clone()], not_after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_the_key_and_ignores_the_names_of_a_request() {
        let now = SystemTime::now();
        let (created, record) = Ca::create("cluster.local", now).unwrap();
        let ca = Ca::load(&record).unwrap();
        assert_eq!(ca.fingerprint(), created.fingerprint());
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::new(["order-service.evil".to_owned()]).unwrap().serialize_request(&key).unwrap();
        let id = "spiffe://cluster.local/ns/default/sa/frontend";
        let signed = ca.sign_request(csr.der(), id, &["frontend".into()], now, Duration::from_secs(60)).unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(&signed.chain[0]).unwrap();
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        use x509_parser::extensions::GeneralName;
        assert_eq!(names.value.general_names, [GeneralName::URI(id), GeneralName::DNSName("frontend")]);
        assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
        let (_, root) = x509_parser::parse_x509_certificate(ca.root()).unwrap();
        leaf.verify_signature(Some(root.public_key())).unwrap();
        assert!(ca.sign_request(b"garbage", id, &[], now, Duration::from_secs(60)).is_err());
    }
}
