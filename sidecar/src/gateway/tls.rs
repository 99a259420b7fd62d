//! Certificates of a gateway: read from its own disk, and again when they have changed there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use weft_core::gateway::{Authority, Certificate, Termination, Versions};

use super::choice::Choice;
use crate::tls::files;
use crate::tls::origination::{certificates, revoked};

/// The files of a termination, and when they were last changed; `None`: they are not there.
type Read = Vec<(PathBuf, Option<SystemTime>)>;

/// The files as they were read.
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
        let files = Files::of(termination, &self.credentials);
        let changed = |path: &Path| std::fs::metadata(path).and_then(|found| found.modified()).ok();
        let read: Read = files.all().map(|path| (path.clone(), changed(path))).collect();
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
}

/// Where the files of a termination are.
struct Files {
    /// Certificates and their keys.
    certificates: Vec<(PathBuf, PathBuf)>,
    authority: Option<Callers>,
}

/// Files that prove callers.
struct Callers {
    ca: PathBuf,
    /// Revocation lists of the CA.
    crl: Option<PathBuf>,
    /// A credential may come without a list.
    crl_is_optional: bool,
}

impl Files {
    fn of(termination: &Termination, credentials: &Path) -> Files {
        let certificate = |certificate: &Certificate| match certificate {
            Certificate::Files { certificate, key } => (PathBuf::from(&**certificate), PathBuf::from(&**key)),
            Certificate::Credential(name) => {
                let folder = credentials.join(&**name);
                (folder.join("tls.crt"), folder.join("tls.key"))
            }
        };
        let authority = termination.authority.as_ref().map(|authority| match authority {
            Authority::Files { ca, crl } => {
                Callers { ca: PathBuf::from(&**ca), crl: crl.as_deref().map(PathBuf::from), crl_is_optional: false }
            }
            Authority::Credential(name) => {
                let folder = credentials.join(&**name);
                Callers { ca: folder.join("ca.crt"), crl: Some(folder.join("ca.crl")), crl_is_optional: true }
            }
        });
        Files { certificates: termination.certificates.iter().map(certificate).collect(), authority }
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        let certificates = self.certificates.iter().flat_map(|(certificate, key)| [certificate, key]);
        let authority = self.authority.iter().flat_map(|callers| std::iter::once(&callers.ca).chain(&callers.crl));
        certificates.chain(authority)
    }
}

fn load(files: &Files, termination: &Termination) -> Result<rustls::ServerConfig> {
    let provider = Arc::new(provider(&termination.cipher_suites));
    let versions: &[&rustls::SupportedProtocolVersion] = match termination.versions {
        Versions::Both => rustls::ALL_VERSIONS,
        Versions::Only12 => &[&rustls::version::TLS12],
        Versions::Only13 => &[&rustls::version::TLS13],
    };
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
    let builder = match &files.authority {
        None => builder.with_no_client_auth(),
        Some(callers) => builder.with_client_cert_verifier(verifier(callers, provider.clone())?),
    };
    let keys = files.certificates.iter().map(|(certificate, key)| certified(certificate, key, &provider));
    let choice = Choice::new(keys.collect::<Result<_>>()?, &provider, termination.versions);
    let mut config = builder.with_cert_resolver(Arc::new(choice));
    // The list is in order of preference.
    config.ignore_client_order = !termination.cipher_suites.is_empty();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Cryptography with all suites of TLS 1.3 and, of TLS 1.2, those of the list, or all where it is empty.
fn provider(cipher_suites: &[u16]) -> CryptoProvider {
    let mut provider = default_provider();
    if !cipher_suites.is_empty() {
        let rank = |suite: &rustls::SupportedCipherSuite| {
            cipher_suites.iter().position(|wanted| *wanted == u16::from(suite.suite()))
        };
        provider.cipher_suites.retain(|suite| suite.tls13().is_some() || rank(suite).is_some());
        provider.cipher_suites.sort_by_key(|suite| rank(suite).map_or(0, |rank| rank + 1));
    }
    provider
}

fn certified(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>> {
    let private = PrivateKeyDer::from_pem_file(key);
    let private = private.with_context(|| format!("cannot read the key in {}", key.display()))?;
    let certified = CertifiedKey::from_der(certificates(certificate)?, private, provider)
        .with_context(|| format!("{} and {} do not belong together", certificate.display(), key.display()))?;
    Ok(Arc::new(certified))
}

/// The verifier of client certificates. With revocation lists there must be a valid one of each CA in the chain, as in Envoy.
fn verifier(callers: &Callers, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>> {
    let given = certificates(&callers.ca)?;
    let mut roots = RootCertStore::empty();
    for root in &given {
        roots.add(root.clone()).with_context(|| format!("{} holds no CA", callers.ca.display()))?;
    }
    let crl = callers.crl.as_deref().filter(|path| !callers.crl_is_optional || path.exists());
    let crls = crl.map(revoked).transpose()?.unwrap_or_default();
    // A certificate that is its own CA is on no other's list: with one, the chain decides.
    let given = if crls.is_empty() { given } else { Vec::new() };
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let inner = builder.with_crls(crls).enforce_revocation_expiration().build()?;
    Ok(Arc::new(files::Client { given, inner }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn termination(credential: &str) -> Termination {
        Termination {
            certificates: vec![Certificate::Credential(credential.into())],
            authority: None,
            versions: Versions::Both,
            cipher_suites: Vec::new(),
        }
    }

    #[test]
    fn cipher_suites_limit_tls_1_2_in_their_order() {
        let of = |numbers: &[u16]| -> Vec<u16> {
            let suites = provider(numbers).cipher_suites;
            suites.iter().filter(|suite| suite.tls13().is_none()).map(|suite| u16::from(suite.suite())).collect()
        };
        assert_eq!(of(&[0xcca8, 0xc02f]), [0xcca8, 0xc02f]);
        assert_eq!(of(&[0xc02f, 0xcca8]), [0xc02f, 0xcca8]);
        let all: Vec<u16> = weft_core::gateway::CIPHER_SUITES.iter().map(|(_, number)| *number).collect();
        assert_eq!(of(&all), all, "each suite of the table is there");
        assert_eq!(of(&[]).len(), all.len(), "and no other");
        assert!(provider(&[0xc02f]).cipher_suites.iter().any(|suite| suite.tls13().is_some()));
    }

    #[test]
    fn a_changed_certificate_is_reloaded_and_an_invalid_one_is_not() {
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
