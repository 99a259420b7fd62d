//! TLS towards services outside the mesh: DestinationRule's `tls.mode` SIMPLE and MUTUAL.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use weft_agent::trust::{AnyCertificate, system_roots};
use weft_core::policy::Origination;

use crate::identity::alpn;

/// Configurations that are kept at once; policies name few.
const MAX_KNOWN: usize = 1000;

/// Configurations by what they are made of, so that sessions are resumed.
#[derive(Default)]
pub struct Originations(Mutex<HashMap<(Arc<Origination>, Inside), Known>>);

/// What is spoken in it, as ALPN has it outside the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Inside {
    Http1,
    Http2,
    Bytes,
}

struct Known {
    files: Files,
    config: Arc<ClientConfig>,
}

/// Files, and when they were last changed.
type Files = Vec<(PathBuf, Option<SystemTime>)>;

impl Originations {
    /// The configuration for a new connection; `inside`: the mesh's name of what will be spoken. Files that have changed
    /// are read again; while they make no sense it stays as it was.
    ///
    /// # Errors
    /// When a file cannot be read or makes no sense.
    pub fn config(&self, origination: &Arc<Origination>, inside: &[u8]) -> Result<Arc<ClientConfig>> {
        let inside = match inside {
            alpn::HTTP1 => Inside::Http1,
            alpn::HTTP2 => Inside::Http2,
            _ => Inside::Bytes,
        };
        let changed = |path: &str| std::fs::metadata(path).and_then(|found| found.modified()).ok();
        let client = origination.client.iter().flat_map(|(certificate, key)| [certificate, key]);
        let files = origination.ca.iter().chain(client).map(|path| (PathBuf::from(&**path), changed(path)));
        let files: Files = files.collect();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (origination.clone(), inside);
        if let Some(known) = known.get(&key)
            && known.files == files
        {
            return Ok(known.config.clone());
        }
        let config = match (made(origination, inside), known.get(&key)) {
            (Ok(config), _) => Arc::new(config),
            (Err(e), Some(before)) => {
                tracing::error!(
                    "files of TLS to {} cannot be used, it stays as it was: {e:#}",
                    origination.server_name
                );
                before.config.clone()
            }
            (Err(e), None) => return Err(e),
        };
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(key, Known { files, config: config.clone() });
        Ok(config)
    }
}

fn made(origination: &Origination, inside: Inside) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier(origination, provider)?);
    let mut config = match &origination.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let private =
                PrivateKeyDer::from_pem_file(&**key).with_context(|| format!("cannot read the key in {key}"))?;
            let chain = certificates(Path::new(&**certificate))?;
            builder
                .with_client_auth_cert(chain, private)
                .with_context(|| format!("{certificate} and {key} do not belong together"))?
        }
    };
    config.alpn_protocols = match inside {
        Inside::Http1 => vec![b"http/1.1".to_vec()],
        Inside::Http2 => vec![b"h2".to_vec()],
        Inside::Bytes => Vec::new(),
    };
    Ok(config)
}

fn verifier(origination: &Origination, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>> {
    if origination.skip_verify {
        return Ok(Arc::new(AnyCertificate(provider.signature_verification_algorithms)));
    }
    let roots = match &origination.ca {
        None => system_roots(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(Path::new(&**file))? {
                roots.add(root).with_context(|| format!("{file} holds no CA"))?;
            }
            Arc::new(roots)
        }
    };
    ensure!(!roots.is_empty(), "this system trusts no certificate authority: give `caCertificates`");
    if origination.subject_alt_names.is_empty() {
        return Ok(WebPkiServerVerifier::builder_with_provider(roots, provider).build()?);
    }
    Ok(Arc::new(Named { roots, names: origination.subject_alt_names.clone(), provider }))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let read: Vec<_> = read.with_context(|| format!("cannot read the certificates in {}", path.display()))?;
    ensure!(!read.is_empty(), "{} holds no certificate", path.display());
    Ok(read)
}

/// A server whose certificate has one of some names, whichever was asked for.
#[derive(Debug)]
struct Named {
    roots: Arc<RootCertStore>,
    names: Vec<String>,
    provider: Arc<CryptoProvider>,
}

impl Named {
    fn has_name(&self, leaf: &CertificateDer<'_>, parsed: &ParsedCertificate<'_>) -> bool {
        let uris: Vec<String> = webpki::EndEntityCert::try_from(leaf)
            .map(|leaf| leaf.valid_uri_names().map(str::to_owned).collect())
            .unwrap_or_default();
        self.names.iter().any(|name| {
            let host = ServerName::try_from(name.as_str());
            uris.contains(name) || host.is_ok_and(|host| verify_server_name(parsed, &host).is_ok())
        })
    }
}

impl ServerCertVerifier for Named {
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
        if self.has_name(end_entity, &parsed) {
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

#[cfg(test)]
mod tests;
