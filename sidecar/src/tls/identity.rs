//! The sidecar's identity: a key that never leaves the process, the certificate for it, and the TLS configurations made of
//! both.
//!
//! Credentials are one immutable value behind an `ArcSwap`: a renewal replaces the whole, and a handshake takes the value
//! that is current when it starts. TLS 1.3 only: both ends are sidecars. [`weft_identity::verify`] verifies
//! the other end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use weft_core::identity::SpiffeId;
use weft_core::renewal::Renewal;
use weft_identity::certificate::{fingerprint, spiffe_id, validity};
use weft_identity::verify::{Domains, ServerVerifier, Trust};
use weft_identity::{grant, provider};

use crate::tls::clock::Clock;
use crate::tls::introduction::Claimed;
use crate::tls::origination::Originations;
use anyhow::{Context, Result, bail, ensure};
use arc_swap::ArcSwapOption;
use rustls::client::Resumption;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use weft_agent::connect::Leaf;
use weft_agent::files::write_private;

/// ALPN names between sidecars: they mark mesh TLS and name the protocol inside.
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

/// How the identity that a sidecar is introduced as differs from the certificate of an earlier one; `None`: both entitle to
/// the same.
fn difference(claimed: &Claimed, held: &Credentials) -> Option<String> {
    if claimed.uri != held.id.as_str() {
        return Some(format!("the identity {}, not {}", claimed.uri, held.id));
    }
    if let Some(services) = &claimed.services
        && !grant::are_same(services, &held.services)
    {
        let (claimed, held) = (grant::shown(services), grant::shown(&held.services));
        return Some(format!("the services {claimed}, not {held}"));
    }
    let is_root = |der: &Vec<u8>| claimed.roots.contains(&fingerprint(der));
    (!held.stored.roots_der.iter().any(is_root)).then(|| "another root: that of another mesh".to_owned())
}

/// Credentials as they are kept on disk (mode 0600), so that a restart needs no control plane.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredCredentials {
    chain_der: Vec<Vec<u8>>,
    roots_der: Vec<Vec<u8>>,
    key_pkcs8: Vec<u8>,
    services: Vec<String>,
}

/// A certificate, its key and the services that they allow.
pub struct Credentials {
    /// The workload's identity.
    pub id: SpiffeId,
    /// Services that the workload may register.
    pub services: Vec<String>,
    /// Validity of the certificate.
    pub not_before: SystemTime,
    /// Its end.
    pub not_after: SystemTime,
    server: Arc<rustls::ServerConfig>,
    gateway: Arc<rustls::ServerConfig>,
    client_http1: Arc<rustls::ClientConfig>,
    client_http2: Arc<rustls::ClientConfig>,
    client_tcp: Arc<rustls::ClientConfig>,
    control: Arc<rustls::ClientConfig>,
    /// Trust bundles of other trust domains.
    federated: Bundles,
    stored: StoredCredentials,
}

/// Roots (DER) of other trust domains, by domain.
pub type Bundles = BTreeMap<String, Vec<Vec<u8>>>;

impl Credentials {
    /// Builds the TLS configurations of a chain and its key. Identities of the own trust domain are verified by the roots that
    /// came with the chain, those of a federated trust domain by its own roots.
    ///
    /// # Errors
    /// If they do not fit together or are not SPIFFE certificates.
    pub fn new(stored: StoredCredentials, federated: Bundles) -> Result<Credentials> {
        let chain: Vec<CertificateDer<'static>> = stored.chain_der.iter().cloned().map(CertificateDer::from).collect();
        let leaf = chain.first().context("no certificate in the chain")?;
        let id = spiffe_id(leaf)?;
        let (not_before, not_after) = validity(leaf)?;
        let mut domains = Domains::default();
        for (domain, roots) in &federated {
            ensure!(domain != id.trust_domain(), "another root for the own trust domain {domain} is refused");
            domains.add(domain, roots).with_context(|| format!("the roots of {domain}"))?;
        }
        let mut own = Domains::default();
        own.add(id.trust_domain(), &stored.roots_der).context("roots of the own trust domain")?;
        domains.add(id.trust_domain(), &stored.roots_der)?;
        let domains = Arc::new(domains);
        let key = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(stored.key_pkcs8.clone()));

        let mut server = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(domains.clone())
            .with_single_cert(chain.clone(), key())?;
        server.alpn_protocols = alpn::ALL.iter().map(|a| a.to_vec()).collect();
        server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        // A workload's certificate may be in the hands of a program that is no sidecar and offers HTTP's own names.
        let mut gateway = server.clone();
        gateway.alpn_protocols.extend([b"h2".to_vec(), b"http/1.1".to_vec()]);

        let client = |verifier: Arc<ServerVerifier>, alpn: &[u8], resumption: Resumption| -> Result<_> {
            let mut config = rustls::ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_client_auth_cert(chain.clone(), key())?;
            config.alpn_protocols = vec![alpn.to_vec()];
            config.resumption = resumption;
            Ok(Arc::new(config))
        };
        let peers = Arc::new(ServerVerifier::new(Trust::Domains(domains), None));
        let control_id = SpiffeId::control_plane(id.trust_domain())?;
        let control = Arc::new(ServerVerifier::new(Trust::Domains(Arc::new(own)), Some(control_id)));
        let sessions = || Resumption::in_memory_sessions(256);
        Ok(Credentials {
            server: Arc::new(server),
            gateway: Arc::new(gateway),
            client_http1: client(peers.clone(), alpn::HTTP1, sessions())?,
            client_http2: client(peers.clone(), alpn::HTTP2, sessions())?,
            client_tcp: client(peers, alpn::TCP, sessions())?,
            control: client(control, b"h2", Resumption::disabled())?,
            services: stored.services.clone(),
            id,
            not_before,
            not_after,
            federated,
            stored,
        })
    }

    /// The same with other trust bundles. Sessions of before are not resumed.
    ///
    /// # Errors
    /// If a root cannot be read, or is for the own trust domain.
    fn with_federated(&self, federated: Bundles) -> Result<Credentials> {
        Credentials::new(self.stored.clone(), federated)
    }

    /// Whether the roots of this trust domain are known.
    pub fn trusts_domain(&self, trust_domain: &str) -> bool {
        trust_domain == self.id.trust_domain() || self.federated.contains_key(trust_domain)
    }

    /// For connections that arrive.
    pub fn server(&self) -> Arc<rustls::ServerConfig> {
        self.server.clone()
    }

    /// For connections that arrive at a gateway's ISTIO_MUTUAL servers.
    pub fn gateway(&self) -> Arc<rustls::ServerConfig> {
        self.gateway.clone()
    }

    /// The configuration for connections to a sidecar, by the protocol inside.
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

    /// How long the certificate lasts.
    pub fn life(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }
}

/// The current credentials; none before the first join.
#[derive(Default)]
pub struct Identity {
    current: ArcSwapOption<Credentials>,
    /// When to renew them.
    renewal: Mutex<Option<Renewal>>,
    file: Option<PathBuf>,
    /// This machine's clock beside the control plane's.
    pub clock: Clock,
    /// Trust bundles of new credentials; locked while they are put in place.
    federated: Mutex<Bundles>,
    /// TLS that is not the mesh's.
    pub outside: Originations,
    /// An earlier run here had another identity: its cache of the mesh is useless to this one.
    pub replaces_another: bool,
}

impl Identity {
    /// The identity kept in `data_dir`, with the credentials of an earlier run if they are still valid and match those
    /// that it is introduced with.
    /// `credentials`: the folder of credentials that are not the mesh's.
    pub fn open(data_dir: Option<&Path>, credentials: &Path, claimed: Option<&Claimed>) -> Identity {
        let file = data_dir.map(|dir| dir.join("identity.json"));
        let outside = Originations::new(credentials.to_owned());
        let mut identity = Identity { file, outside, ..Identity::default() };
        let loaded = identity.load();
        if let (Some(claimed), Ok(Some(saved))) = (claimed, &loaded)
            && let Some(difference) = difference(claimed, saved)
        {
            tracing::warn!("the token names {difference}: the saved certificate is set aside, joining anew");
            identity.replaces_another = true;
            return identity;
        }
        match loaded {
            Ok(Some(saved)) => {
                let (now, wall) = (Instant::now().into_std(), SystemTime::now());
                match saved.not_after > wall {
                    true => tracing::info!(id = %saved.id, "found a saved certificate"),
                    false => {
                        tracing::warn!(id = %saved.id, "the saved certificate has expired: it is to be renewed first")
                    }
                }
                let renewal = Renewal::of_stored(now, wall, saved.not_before, saved.not_after);
                identity.renewal = Mutex::new(Some(renewal));
                identity.current.store(Some(Arc::new(saved)));
            }
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
        Credentials::new(stored, Bundles::new()).map(Some)
    }

    /// The current credentials.
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.current.load_full()
    }

    /// The current credentials, if they have not expired.
    ///
    /// # Errors
    /// If there are none yet, or they have expired.
    pub fn valid(&self) -> Result<Arc<Credentials>> {
        let current = self.current().context("no certificate yet: the control plane has not been reached")?;
        if current.not_after <= SystemTime::now() {
            let clock = self.clock.problem(current.life()).map(|problem| format!("; {problem}")).unwrap_or_default();
            bail!("the workload certificate ({}) has expired and could not be renewed{clock}", current.id);
        }
        Ok(current)
    }

    /// How long until the certificate is to be renewed; zero: it is, or there is none.
    pub fn renewal_due_in(&self) -> Duration {
        let renewal = *self.renewal.lock().unwrap_or_else(PoisonError::into_inner);
        renewal.map_or(Duration::ZERO, |renewal| renewal.due_in(Instant::now().into_std(), SystemTime::now()))
    }

    /// Why handshakes with certificates of the mesh fail here, where this machine's clock is the reason.
    pub fn clock_problem(&self) -> Option<String> {
        self.clock.problem(self.current()?.life())
    }

    /// Takes new credentials, and saves them.
    pub async fn install(&self, credentials: Credentials) {
        let stored = credentials.stored.clone();
        let renewal = Renewal::after_receipt(Instant::now().into_std(), SystemTime::now(), credentials.life());
        *self.renewal.lock().unwrap_or_else(PoisonError::into_inner) = Some(renewal);
        {
            let federated = self.federated.lock().unwrap_or_else(PoisonError::into_inner);
            let believing = credentials.with_federated(federated.clone()).unwrap_or_else(|e| {
                tracing::error!("no other trust domain is trusted: {e:#}");
                credentials
            });
            self.current.store(Some(Arc::new(believing)));
        }
        let Some(file) = self.file.clone() else { return };
        let write = move || write_private(&file, &serde_json::to_vec(&stored)?);
        // A disk may take its time, and others wait for this thread.
        if let Ok(Err(e)) = tokio::task::spawn_blocking(write).await {
            tracing::warn!("the certificate could not be saved, a restart will need the control plane: {e:#}");
        }
    }

    /// Replaces the trust bundles of other trust domains.
    ///
    /// # Errors
    /// If a root cannot be read, or is for the own trust domain: then nothing changes.
    pub fn set_trust_bundles(&self, bundles: &Bundles) -> Result<()> {
        let mut federated = self.federated.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = self.current()
            && current.federated != *bundles
        {
            self.current.store(Some(Arc::new(current.with_federated(bundles.clone())?)));
        }
        federated.clone_from(bundles);
        Ok(())
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

    /// The credentials of this key and the certificate that was signed for it.
    ///
    /// # Errors
    /// If the response is not for this key or cannot be read.
    pub fn finish(self, signed: weft_proto::v1::SignResponse) -> Result<Credentials> {
        let stored = StoredCredentials {
            chain_der: signed.chain_der,
            roots_der: signed.roots_der,
            key_pkcs8: self.key.serialize_der(),
            services: signed.services,
        };
        Credentials::new(stored, Bundles::new())
    }

    /// The same for a program, which gets the key.
    ///
    /// # Errors
    /// When the answer cannot be read.
    pub fn finish_leaf(self, signed: &weft_proto::v1::SignResponse) -> Result<Leaf> {
        let first = signed.chain_der.first().context("no certificate in the chain")?;
        let first = CertificateDer::from(first.as_slice());
        let (_, parsed) = x509_parser::parse_x509_certificate(&first).context("the certificate cannot be read")?;
        let (not_before, not_after) = validity(&first)?;
        let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        let chain: Vec<pem::Pem> =
            signed.chain_der.iter().map(|der| pem::Pem::new("CERTIFICATE", der.as_slice())).collect();
        Ok(Leaf {
            serial: parsed.raw_serial_as_string(),
            certificate_pem: pem::encode_many_config(&chain, lines),
            private_key_pem: pem::encode_config(&pem::Pem::new("PRIVATE KEY", self.key.serialize_der()), lines),
            uri: spiffe_id(&first)?.to_string(),
            not_before,
            not_after,
        })
    }
}

#[cfg(test)]
mod tests;
