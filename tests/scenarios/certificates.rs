//! Certificates that are not the mesh's.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

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
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, host);
        let leaf = params.signed_by(&key, &self.issuer)?;
        let folder = self.dir.join(folder);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("tls.crt"), leaf.pem())?;
        Ok(std::fs::write(folder.join("tls.key"), key.serialize_pem())?)
    }
}
