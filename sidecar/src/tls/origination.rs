//! TLS towards services outside the mesh: DestinationRule's `tls.mode` SIMPLE and MUTUAL.

mod files;
mod verify;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weft_core::policy::Origination;
use weft_identity::provider;

use crate::tls::identity::alpn;
use files::{Changes, Files};
use verify::verifier;
pub(crate) use verify::{has_one_of, revoked};

/// Configurations that are kept at once; policies name few.
const MAX_KNOWN: usize = 1000;

/// Configurations by their inputs, so that sessions are resumed.
#[derive(Default)]
pub struct Originations {
    /// Where the folders of named credentials are.
    credentials: PathBuf,
    known: Mutex<HashMap<(Arc<Origination>, Inside), Known>>,
}

/// The protocol inside, as ALPN outside the mesh names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Inside {
    Http1,
    Http2,
    Bytes,
}

struct Known {
    made_of: Changes,
    config: Arc<ClientConfig>,
}

impl Originations {
    /// With the folder of named credentials.
    pub fn new(credentials: PathBuf) -> Originations {
        Originations { credentials, known: Mutex::default() }
    }

    /// The configuration for a new connection; `inside`: the mesh's name of the protocol inside. Files that have changed are read
    /// again; while they are invalid the last configuration stays.
    ///
    /// # Errors
    /// If a file cannot be read or is invalid.
    pub fn config(&self, origination: &Arc<Origination>, inside: &[u8]) -> Result<Arc<ClientConfig>> {
        let inside = match inside {
            alpn::HTTP1 => Inside::Http1,
            alpn::HTTP2 => Inside::Http2,
            _ => Inside::Bytes,
        };
        let files = Files::of(origination, &self.credentials);
        let made_of = files.changes();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (origination.clone(), inside);
        if let Some(known) = known.get(&key)
            && known.made_of == made_of
        {
            return Ok(known.config.clone());
        }
        let config = match (build(origination, &files, inside), known.get(&key)) {
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
        known.insert(key, Known { made_of, config: config.clone() });
        Ok(config)
    }
}

fn build(origination: &Origination, files: &Files, inside: Inside) -> Result<ClientConfig> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier(origination, files, provider)?);
    let mut config = match &files.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let private = PrivateKeyDer::from_pem_file(key)
                .with_context(|| format!("cannot read the key in {}", key.display()))?;
            let chain = certificates(certificate)?;
            builder
                .with_client_auth_cert(chain, private)
                .with_context(|| format!("{} and {} do not belong together", certificate.display(), key.display()))?
        }
    };
    config.alpn_protocols = match inside {
        Inside::Http1 => vec![b"http/1.1".to_vec()],
        Inside::Http2 => vec![b"h2".to_vec()],
        Inside::Bytes => Vec::new(),
    };
    Ok(config)
}

/// The certificates in a PEM file, at least one.
///
/// # Errors
/// When it cannot be read or has none.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let read: Vec<_> = read.with_context(|| format!("cannot read the certificates in {}", path.display()))?;
    ensure!(!read.is_empty(), "{} holds no certificate", path.display());
    Ok(read)
}

#[cfg(test)]
mod tests;
