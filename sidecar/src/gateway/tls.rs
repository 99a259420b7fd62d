//! Certificates of a gateway: read from its own disk, and again when they have changed there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use http::HeaderValue;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weft_core::gateway::Termination;

use crate::given;

/// The files of a termination, and when they were last changed.
type Read = Vec<(PathBuf, Option<SystemTime>)>;

/// What was read.
pub(super) struct Keeper {
    credentials: PathBuf,
    known: HashMap<Termination, (Read, Arc<rustls::ServerConfig>)>,
}

impl Keeper {
    pub(super) fn new(credentials: PathBuf) -> Keeper {
        Keeper { credentials, known: HashMap::new() }
    }

    /// How TLS ends. While files that have changed make no sense, as they did before.
    pub(super) fn config(&mut self, termination: &Termination) -> Result<Arc<rustls::ServerConfig>> {
        let files = self.files(termination);
        let changed = |path: &Path| std::fs::metadata(path).and_then(|found| found.modified()).ok();
        let read: Read = files.iter().map(|path| (path.clone(), changed(path))).collect();
        if let Some((before, config)) = self.known.get(termination)
            && *before == read
        {
            return Ok(config.clone());
        }
        let made = load(&files, termination);
        match (made, self.known.get_mut(termination)) {
            (Ok(config), _) => {
                let config = Arc::new(config);
                self.known.insert(termination.clone(), (read, config.clone()));
                Ok(config)
            }
            (Err(e), Some((before, config))) => {
                tracing::error!("the certificate that was changed cannot be used, the old one serves: {e:#}");
                *before = read;
                Ok(config.clone())
            }
            (Err(e), None) => Err(e),
        }
    }

    /// Certificate, key and, where callers show theirs, their CA.
    fn files(&self, termination: &Termination) -> Vec<PathBuf> {
        let of = |file: &str, given: &str| match &*termination.credential {
            "" => PathBuf::from(given),
            name => self.credentials.join(name).join(file),
        };
        let mut files = vec![of("tls.crt", &termination.certificate), of("tls.key", &termination.key)];
        files.extend(termination.mutual.then(|| of("ca.crt", &termination.ca)));
        files
    }
}

fn load(files: &[PathBuf], termination: &Termination) -> Result<rustls::ServerConfig> {
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>> {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        let read: Vec<_> = read.with_context(|| format!("cannot read the certificates in {}", path.display()))?;
        anyhow::ensure!(!read.is_empty(), "{} holds no certificate", path.display());
        Ok(read)
    };
    let [certificate, key, rest @ ..] = files else { anyhow::bail!("a certificate and a key are needed") };
    let private = PrivateKeyDer::from_pem_file(key);
    let private = private.with_context(|| format!("cannot read the key in {}", key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: &[&rustls::SupportedProtocolVersion] =
        if termination.tls13_only { &[&rustls::version::TLS13] } else { rustls::ALL_VERSIONS };
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
    let builder = match rest.first() {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let given = certificates(ca)?;
            let mut roots = RootCertStore::empty();
            for root in &given {
                roots.add(root.clone()).with_context(|| format!("{} holds no CA", ca.display()))?;
            }
            let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(Arc::new(given::Client { given, inner }))
        }
    };
    let mut config = builder
        .with_single_cert(certificates(certificate)?, private)
        .with_context(|| format!("{} and {} do not belong together", certificate.display(), key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// What the application is told of a caller's certificate, as Envoy does.
pub(super) fn forwarded(leaf: &CertificateDer<'_>) -> HeaderValue {
    let hash = crate::files::sha256(leaf).iter().map(|b| format!("{b:02x}")).collect::<String>();
    // Hexadecimal digits are a header's value.
    HeaderValue::try_from(format!("Hash={hash}")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn termination(credential: &str) -> Termination {
        let none: Arc<str> = "".into();
        Termination {
            mutual: false,
            certificate: none.clone(),
            key: none.clone(),
            ca: none,
            credential: credential.into(),
            tls13_only: false,
        }
    }

    #[test]
    fn a_certificate_is_read_again_when_it_changes_and_kept_when_it_breaks() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("shop");
        let write = |when: u64| {
            let made = rcgen::generate_simple_self_signed(vec!["shop.example.com".into()]).unwrap();
            let files = [("tls.crt", made.cert.pem()), ("tls.key", made.signing_key.serialize_pem())];
            for (name, text) in files {
                std::fs::write(folder.join(name), text).unwrap();
                let file = std::fs::File::options().write(true).open(folder.join(name)).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(when)).unwrap();
            }
        };
        let mut keeper = Keeper::new(dir.path().to_owned());
        let missing = keeper.config(&termination("shop")).unwrap_err();
        assert!(format!("{missing:#}").contains("shop/tls.key"), "{missing:#}");
        std::fs::create_dir(&folder).unwrap();
        write(1);
        let first = keeper.config(&termination("shop")).unwrap();
        assert!(Arc::ptr_eq(&first, &keeper.config(&termination("shop")).unwrap()));
        write(2);
        let second = keeper.config(&termination("shop")).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        std::fs::write(folder.join("tls.crt"), "broken").unwrap();
        assert!(Arc::ptr_eq(&second, &keeper.config(&termination("shop")).unwrap()));
    }
}
