//! The sidecar's identity: a key that never leaves it, the certificate for it, and the TLS configurations made of both.
//!
//! Credentials are one immutable value behind an `ArcSwap`: a renewal replaces the whole, and a handshake takes what is
//! current when it starts. TLS 1.3 only: both ends are ours. The chain is verified by rustls; what it does not know is
//! SPIFFE, so that the names in certificates are compared here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use arc_swap::ArcSwapOption;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use weft_core::identity::SpiffeId;

/// ALPN names between sidecars: they say that this is mesh TLS and what is inside.
pub mod alpn {
    /// HTTP/1.x inside.
    pub const HTTP1: &[u8] = b"weft-http/1.1";
    /// HTTP/2 inside.
    pub const HTTP2: &[u8] = b"weft-h2";
    /// Any bytes inside.
    pub const TCP: &[u8] = b"weft-tcp";
    /// All of them.
    pub const ALL: [&[u8]; 3] = [HTTP1, HTTP2, TCP];
}

/// Workload names of the control plane's own identity.
const CONTROL_PLANE: (&str, &str) = ("weft-system", "weft-control-plane");

/// What a join token says to its holder. Its signature is for the control plane alone.
#[derive(Debug, Clone, Deserialize)]
pub struct TokenClaims {
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// Namespace of the workload.
    pub namespace: String,
    /// Service account of the workload.
    pub service_account: String,
    /// Services that it may register.
    pub services: Vec<String>,
    /// End, seconds since 1970.
    pub expires: u64,
    /// Hex SHA-256 of the root certificate.
    pub root: String,
}

impl TokenClaims {
    /// Reads the claims of a token.
    ///
    /// # Errors
    /// When it is not a token.
    pub fn read(token: &str) -> Result<TokenClaims> {
        let claims = token.trim().strip_prefix("weft1.").and_then(|t| t.split_once('.')).map(|(claims, _)| claims);
        let claims = claims.context("not a join token (it should look like weft1.….…)")?;
        let json = URL_SAFE_NO_PAD.decode(claims).context("the join token is damaged")?;
        serde_json::from_slice(&json).context("the join token is damaged")
    }

    fn fingerprint(&self) -> Result<[u8; 32]> {
        let bytes = (0..self.root.len()).step_by(2).map(|i| u8::from_str_radix(self.root.get(i..i + 2)?, 16).ok());
        let bytes: Option<Vec<u8>> = bytes.collect();
        let bytes = bytes.and_then(|b| <[u8; 32]>::try_from(b).ok());
        bytes.context("the join token's root fingerprint is damaged")
    }
}

/// Credentials as they are kept on disk (mode 0600), so that a restart needs no control plane.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredCredentials {
    chain_der: Vec<Vec<u8>>,
    roots_der: Vec<Vec<u8>>,
    key_pkcs8: Vec<u8>,
    services: Vec<String>,
}

/// A certificate, its key and what they allow.
pub struct Credentials {
    /// Our identity.
    pub id: SpiffeId,
    /// Services that we may register.
    pub services: Vec<String>,
    /// Validity of the certificate.
    pub not_before: SystemTime,
    /// Its end.
    pub not_after: SystemTime,
    server: Arc<rustls::ServerConfig>,
    client_http1: Arc<rustls::ClientConfig>,
    client_http2: Arc<rustls::ClientConfig>,
    client_tcp: Arc<rustls::ClientConfig>,
    control: Arc<rustls::ClientConfig>,
    stored: StoredCredentials,
}

impl Credentials {
    /// Builds the TLS configurations of a chain and its key.
    ///
    /// # Errors
    /// When they do not fit together or are not SPIFFE certificates.
    pub fn new(stored: StoredCredentials) -> Result<Credentials> {
        let chain: Vec<CertificateDer<'static>> = stored.chain_der.iter().cloned().map(CertificateDer::from).collect();
        let leaf = chain.first().context("no certificate in the chain")?;
        let id = spiffe_id(leaf)?;
        let (not_before, not_after) = validity(leaf)?;
        let mut roots = RootCertStore::empty();
        for root in &stored.roots_der {
            roots.add(CertificateDer::from(root.clone())).context("a root certificate cannot be read")?;
        }
        let roots = Arc::new(roots);
        let key = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(stored.key_pkcs8.clone()));

        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build()?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key())?;
        server.alpn_protocols = alpn::ALL.iter().map(|a| a.to_vec()).collect();
        server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;

        let client = |verifier: Arc<MeshVerifier>, alpn: &[u8], resumption: Resumption| -> Result<_> {
            let mut config = rustls::ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_client_auth_cert(chain.clone(), key())?;
            config.alpn_protocols = vec![alpn.to_vec()];
            config.resumption = resumption;
            Ok(Arc::new(config))
        };
        let peers = Arc::new(MeshVerifier::new(Trust::Roots(roots.clone()), None));
        let control_id = SpiffeId::new(id.trust_domain(), CONTROL_PLANE.0, CONTROL_PLANE.1)?;
        let control = Arc::new(MeshVerifier::new(Trust::Roots(roots), Some(control_id)));
        let sessions = || Resumption::in_memory_sessions(256);
        Ok(Credentials {
            server: Arc::new(server),
            client_http1: client(peers.clone(), alpn::HTTP1, sessions())?,
            client_http2: client(peers.clone(), alpn::HTTP2, sessions())?,
            client_tcp: client(peers, alpn::TCP, sessions())?,
            control: client(control, b"h2", Resumption::disabled())?,
            services: stored.services.clone(),
            id,
            not_before,
            not_after,
            stored,
        })
    }

    /// For connections that arrive.
    pub fn server(&self) -> Arc<rustls::ServerConfig> {
        self.server.clone()
    }

    /// For connections to a sidecar, by what is inside.
    pub fn client(&self, alpn: &[u8]) -> Arc<rustls::ClientConfig> {
        match alpn {
            alpn::HTTP1 => self.client_http1.clone(),
            alpn::HTTP2 => self.client_http2.clone(),
            _ => self.client_tcp.clone(),
        }
    }

    /// For connections to the control plane.
    pub fn control(&self) -> Arc<rustls::ClientConfig> {
        self.control.clone()
    }

    /// When to renew: at half life.
    pub fn renew_at(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life / 2
    }
}

/// The current credentials; none before the first join.
#[derive(Default)]
pub struct Identity {
    current: ArcSwapOption<Credentials>,
    file: Option<PathBuf>,
}

impl Identity {
    /// An identity kept in `data_dir`, with the credentials that an earlier run left there if they are still good.
    pub fn open(data_dir: Option<&Path>) -> Identity {
        let file = data_dir.map(|dir| dir.join("identity.json"));
        let identity = Identity { current: ArcSwapOption::empty(), file };
        match identity.load() {
            Ok(Some(saved)) if saved.not_after > SystemTime::now() => {
                tracing::info!(id = %saved.id, "found a saved certificate");
                identity.current.store(Some(Arc::new(saved)));
            }
            Ok(Some(saved)) => tracing::warn!(id = %saved.id, "the saved certificate has expired"),
            Ok(None) => {}
            Err(e) => tracing::warn!("ignoring the saved certificate: {e:#}"),
        }
        identity
    }

    fn load(&self) -> Result<Option<Credentials>> {
        let Some(file) = &self.file else { return Ok(None) };
        let json = match std::fs::read(file) {
            Ok(json) => json,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
        };
        let stored = serde_json::from_slice(&json).with_context(|| format!("{} is damaged", file.display()))?;
        Credentials::new(stored).map(Some)
    }

    /// What is current.
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.current.load_full()
    }

    /// What is current, when it has not expired.
    ///
    /// # Errors
    /// Says which of the two is the case.
    pub fn valid(&self) -> Result<Arc<Credentials>> {
        let current = self.current().context("no certificate yet: the control plane has not been reached")?;
        if current.not_after <= SystemTime::now() {
            bail!("our certificate ({}) has expired and could not be renewed", current.id);
        }
        Ok(current)
    }

    /// Takes new credentials, and saves them.
    pub async fn install(&self, credentials: Credentials) {
        let stored = credentials.stored.clone();
        self.current.store(Some(Arc::new(credentials)));
        let Some(file) = self.file.clone() else { return };
        let write = move || crate::files::write_private(&file, &serde_json::to_vec(&stored)?);
        // A disk may take its time, and others wait for this thread.
        if let Ok(Err(e)) = tokio::task::spawn_blocking(write).await {
            tracing::warn!("the certificate could not be saved, a restart will need the control plane: {e:#}");
        }
    }

    /// TLS towards a control plane of which nothing is known but the fingerprint in `claims`.
    ///
    /// # Errors
    /// When the claims are damaged.
    pub fn first_contact(claims: &TokenClaims) -> Result<Arc<rustls::ClientConfig>> {
        let id = SpiffeId::new(&claims.trust_domain, CONTROL_PLANE.0, CONTROL_PLANE.1)?;
        let verifier = MeshVerifier::new(Trust::Fingerprint(claims.fingerprint()?), Some(id));
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

/// A fresh key and the request to sign it.
pub struct PendingKey {
    key: rcgen::KeyPair,
    /// DER of the certificate signing request.
    pub csr_der: Vec<u8>,
}

impl PendingKey {
    /// Makes a P-256 key.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<PendingKey> {
        let key = rcgen::KeyPair::generate()?;
        let csr = rcgen::CertificateParams::default().serialize_request(&key)?;
        Ok(PendingKey { csr_der: csr.der().to_vec(), key })
    }

    /// The credentials of this key and what was signed for it.
    ///
    /// # Errors
    /// When the answer is not for this key or cannot be read.
    pub fn finish(self, signed: weft_proto::v1::SignResponse) -> Result<Credentials> {
        Credentials::new(StoredCredentials {
            chain_der: signed.chain_der,
            roots_der: signed.roots_der,
            key_pkcs8: self.key.serialize_der(),
            services: signed.services,
        })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The SPIFFE ID of a certificate: its one URI name.
///
/// # Errors
/// When it has none, several, or another kind of URI.
pub fn spiffe_id(certificate: &CertificateDer<'_>) -> Result<SpiffeId> {
    let parsed = webpki::EndEntityCert::try_from(certificate).context("the certificate cannot be read")?;
    let mut uris = parsed.valid_uri_names();
    let id = uris.next().context("the certificate has no SPIFFE ID")?;
    if uris.next().is_some() {
        bail!("the certificate has more than one URI name");
    }
    Ok(id.parse()?)
}

fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).context("the certificate cannot be read")?;
    let time = |t: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(t).unwrap_or(0));
    Ok((time(parsed.validity().not_before.timestamp()), time(parsed.validity().not_after.timestamp())))
}

#[derive(Debug)]
enum Trust {
    Roots(Arc<RootCertStore>),
    /// SHA-256 of a root that the server sends along.
    Fingerprint([u8; 32]),
}

/// Verifies a server's chain and, where one is expected, its SPIFFE ID. For calls to workloads the expected ID differs
/// by endpoint: the dialer compares it right after the handshake, before it sends anything.
#[derive(Debug)]
struct MeshVerifier {
    trust: Trust,
    expected: Option<SpiffeId>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl MeshVerifier {
    fn new(trust: Trust, expected: Option<SpiffeId>) -> Self {
        MeshVerifier { trust, expected, algorithms: provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for MeshVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let sent;
        let roots = match &self.trust {
            Trust::Roots(roots) => roots.as_ref(),
            Trust::Fingerprint(fingerprint) => {
                let root = intermediates.iter().find(|c| crate::files::sha256(c) == *fingerprint);
                let root = root.ok_or_else(|| {
                    rustls::Error::General("the control plane's root is not the one that the join token names".into())
                })?;
                let mut store = RootCertStore::empty();
                store.add(root.clone().into_owned())?;
                sent = store;
                &sent
            }
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, self.algorithms.all)?;
        if let Some(expected) = &self.expected {
            let found = spiffe_id(end_entity).map_err(|e| rustls::Error::General(e.to_string()))?;
            if found != *expected {
                return Err(CertificateError::NotValidForName.into());
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not used in the mesh".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
