//! Certificates of a CA outside the mesh.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    PKCS_RSA_SHA256, RevokedCertParams, SerialNumber, date_time_ymd,
};

/// A CA's file, and files of certificate and key by it for each name.
pub(crate) struct Certificates {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    pub(crate) fn new(dir: &Path) -> Result<Certificates> {
        std::fs::create_dir_all(dir)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "the test's CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        std::fs::write(dir.join("ca.crt"), params.self_signed(&key)?.pem())?;
        Ok(Certificates { dir: dir.to_owned(), issuer: Issuer::new(params, key) })
    }

    pub(crate) fn ca(&self) -> String {
        self.path("ca.crt")
    }

    pub(crate) fn path(&self, file: &str) -> String {
        self.dir.join(file).to_string_lossy().into_owned()
    }

    /// `<folder>/tls.crt` and `tls.key` for a host.
    pub(crate) fn leaf(&self, folder: &str, host: &str) -> Result<()> {
        self.leaf_of(folder, host, &KeyPair::generate()?)
    }

    /// The same with a key of RSA.
    pub(crate) fn rsa_leaf(&self, folder: &str, host: &str) -> Result<()> {
        self.leaf_of(folder, host, &KeyPair::generate_for(&PKCS_RSA_SHA256)?)
    }

    fn leaf_of(&self, folder: &str, host: &str, key: &KeyPair) -> Result<()> {
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, host);
        params.serial_number = Some(serial(folder));
        let leaf = params.signed_by(key, &self.issuer)?;
        let folder = self.dir.join(folder);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("tls.crt"), leaf.pem())?;
        Ok(std::fs::write(folder.join("tls.key"), key.serialize_pem())?)
    }

    /// `<folder>/tls.crt`, `tls.key` and `ca.crt` of a certificate that is its own CA, as `openssl req -x509` makes it.
    pub(crate) fn own_ca(&self, folder: &str, host: &str) -> Result<()> {
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, host);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        let folder = self.dir.join(folder);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("tls.crt"), &certificate)?;
        std::fs::write(folder.join("ca.crt"), &certificate)?;
        Ok(std::fs::write(folder.join("tls.key"), key.serialize_pem())?)
    }

    /// A list of revoked leaves, by their folders, in a file.
    pub(crate) fn revoke(&self, file: &str, folders: &[&str]) -> Result<()> {
        let revoked = |folder: &&str| RevokedCertParams {
            serial_number: serial(folder),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: folders.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        // Replaced atomically: a partial list is invalid.
        let temporary = self.dir.join("new.crl");
        std::fs::write(&temporary, params.signed_by(&self.issuer)?.pem()?)?;
        Ok(std::fs::rename(temporary, self.dir.join(file))?)
    }
}

/// The serial number of the leaf in a folder: the folder's name, at most twenty bytes (RFC 5280, 4.1.2.2).
fn serial(folder: &str) -> SerialNumber {
    SerialNumber::from_slice(folder.as_bytes())
}
