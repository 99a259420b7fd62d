//! The TLS side of the control plane: the identity of the other end of a connection.
//!
//! The server presents its own SPIFFE certificate with the root, so that a joining sidecar can compare the root with
//! its token's fingerprint. A client certificate is optional at the handshake, because a joining sidecar has none yet;
//! each service requires the certificate that it needs from [`Peer`].

mod grace;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use rcgen::KeyPair;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tonic::Status;
use tonic::transport::server::Connected;
use weft_core::identity::SpiffeId;
use weft_identity::certificate::{spiffe_id, validity};
use weft_identity::provider;
use weft_identity::verify::{Domains, roots};
use weft_listen::admission::Admission;

use crate::identity::ca::{Ca, SignedCertificate};
use crate::identity::rates::Rates;
use crate::identity::refusals::Refusals;
use weft_world::Peering;

/// Lifetime of the control plane's own certificate; it is renewed at half of it.
const OWN_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The content of a verified client certificate.
#[derive(Debug, Clone)]
pub struct PeerCertificate {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// Services that it may register, or the name of a grant ([`crate::identity::grants`]).
    pub services: Vec<String>,
    /// Its expiry.
    pub not_after: SystemTime,
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub remote: IpAddr,
    /// Its certificate, verified against the root; `None` if it presented none.
    pub certified: Option<Arc<PeerCertificate>>,
}

impl Peer {
    /// The peer of a request.
    ///
    /// # Errors
    /// Never on the control plane's own listeners.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Peer, Status> {
        request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("no peer information"))
    }

    /// Its certificate.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` if it presented none, or the certificate has expired.
    pub fn certified(&self) -> Result<Arc<PeerCertificate>, Status> {
        let certified = self.renewable()?;
        if certified.not_after <= SystemTime::now() {
            return Err(Status::unauthenticated(format!("the certificate of {} has expired", certified.id)));
        }
        Ok(certified)
    }

    /// Its certificate, for its renewal: also one that expired within the grace time, which is valid for nothing else.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` if it presented none.
    pub fn renewable(&self) -> Result<Arc<PeerCertificate>, Status> {
        self.certified.clone().ok_or_else(|| {
            Status::unauthenticated("a client certificate is required; join first with a token (Identity.Sign)")
        })
    }
}

/// A TLS connection with the properties of its peer.
pub struct PeerStream {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connected for PeerStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl tokio::io::AsyncRead for PeerStream {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for PeerStream {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A certificate of the control plane's own, renewed in the background.
#[derive(Debug)]
pub(crate) struct OwnCertificate(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl OwnCertificate {
    /// A certificate that `sign` signs for a new key and the given lifetime, and again at half of that, until `stop`.
    pub(crate) fn renewing(
        ca: Arc<Ca>,
        sign: impl Fn(&Ca, &KeyPair, Duration) -> Result<SignedCertificate> + Send + 'static,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Arc<OwnCertificate>> {
        let issue = move || -> Result<CertifiedKey> {
            let key = KeyPair::generate()?;
            let mut chain = sign(&ca, &key, OWN_LIFETIME)?.chain;
            chain.push(ca.root().clone());
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            Ok(CertifiedKey::new(chain, rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?))
        };
        let own = Arc::new(OwnCertificate(ArcSwap::from_pointee(issue()?)));
        let kept = own.clone();
        tokio::spawn(async move {
            tokio::pin!(stop);
            loop {
                tokio::select! {
                    () = tokio::time::sleep(OWN_LIFETIME / 2) => {}
                    () = &mut stop => return,
                }
                match issue() {
                    Ok(new) => kept.0.store(Arc::new(new)),
                    Err(e) => tracing::error!("cannot renew a certificate of the control plane's own: {e:#}"),
                }
            }
        });
        Ok(own)
    }
}

/// The control plane's own certificate, renewed for the life of the process.
///
/// # Errors
/// If the CA cannot issue it.
pub(crate) fn own_certificate(ca: &Arc<Ca>) -> Result<Arc<OwnCertificate>> {
    let id = SpiffeId::control_plane(ca.trust_domain())?.to_string();
    let sign = move |ca: &Ca, key: &KeyPair, lifetime| ca.sign_key(key, &id, &[], SystemTime::now(), lifetime);
    OwnCertificate::renewing(ca.clone(), sign, std::future::pending())
}

/// Accepts TLS connections of sidecars on `listener` for as long as the receiver exists. A new sidecar has no
/// certificate; one that expired within `grace` is accepted by [`Peer::renewable`] only.
///
/// # Errors
/// If the CA cannot issue the server's own certificate.
pub fn accept(
    ca: &Arc<Ca>,
    listener: TcpListener,
    grace: Duration,
    refusals: Arc<Refusals>,
) -> Result<mpsc::Receiver<std::io::Result<PeerStream>>> {
    let inner = WebPkiClientVerifier::builder_with_provider(roots([ca.root()])?, provider())
        .allow_unauthenticated()
        .build()
        .context("cannot verify clients")?;
    let verifier = Arc::new(grace::WithinGrace { inner, grace, refusals });
    accept_verified(ca, listener, verifier, vec![ca.trust_domain().to_owned()])
}

/// Accepts TLS connections of other data centres, whose certificates are verified by the root of their own trust
/// domain.
///
/// # Errors
/// If the CA cannot issue the server's own certificate, or a root is invalid.
pub fn accept_peers(
    ca: &Arc<Ca>,
    listener: TcpListener,
    peers: &[Peering],
) -> Result<mpsc::Receiver<std::io::Result<PeerStream>>> {
    let mut verifier = Domains::default();
    for peer in peers {
        verifier.add(&peer.trust_domain, [&peer.root_der])?;
    }
    let domains = peers.iter().map(|peer| peer.trust_domain.clone()).collect();
    accept_verified(ca, listener, Arc::new(verifier), domains)
}

/// `domains`: the allowed trust domains of clients.
fn accept_verified(
    ca: &Arc<Ca>,
    listener: TcpListener,
    verifier: Arc<dyn ClientCertVerifier>,
    domains: Vec<String>,
) -> Result<mpsc::Receiver<std::io::Result<PeerStream>>> {
    let (sender, receiver) = mpsc::channel(64);
    let own = own_certificate(ca)?;
    let domains = Arc::new(domains);
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(own);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (config, admission) = (Arc::new(config), Arc::new(Admission::default()));
    // If many fail, one line for each would be a load of its own.
    let lines = Arc::new(Rates::new(10, Duration::from_secs(10)));
    tokio::spawn(async move {
        loop {
            let (stream, remote) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, remote)) => (stream, remote.ip().to_canonical()),
                    Err(e) => {
                        // Probably out of descriptors: only waiting helps.
                        tracing::warn!("cannot accept a connection: {e}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = sender.closed() => return,
            };
            let (config, admission, lines) = (config.clone(), admission.clone(), lines.clone());
            let (sender, domains) = (sender.clone(), domains.clone());
            tokio::spawn(async move {
                let stream = admission.handshake(stream, remote, config).await;
                match stream.and_then(|stream| PeerStream::new(stream, remote, &domains)) {
                    // The receiver is gone only when the server stops.
                    Ok(stream) => drop(sender.send(Ok(stream)).await),
                    Err(e) if lines.take(remote, tokio::time::Instant::now()).is_ok() => {
                        tracing::warn!("TLS handshake with {remote} failed: {e:#}");
                    }
                    Err(e) => tracing::debug!("TLS handshake with {remote} failed: {e:#}"),
                }
            });
        }
    });
    Ok(receiver)
}

impl PeerStream {
    /// `domains`: the allowed trust domains of clients.
    fn new(stream: TlsStream<TcpStream>, remote: IpAddr, domains: &[String]) -> Result<PeerStream> {
        let certified = match stream.get_ref().1.peer_certificates() {
            Some([leaf, ..]) => {
                let certified = read_certificate(leaf)?;
                let (id, known) = (&certified.id, domains.iter().any(|domain| domain == certified.id.trust_domain()));
                anyhow::ensure!(known, "{id} is not in the trust domain {}", domains.join(" or "));
                Some(Arc::new(certified))
            }
            _ => None,
        };
        Ok(PeerStream { stream, peer: Peer { remote, certified } })
    }
}

/// The claims of a certificate: true once it is verified by the root of the trust domain that it names.
pub(crate) fn read_certificate(leaf: &CertificateDer<'_>) -> Result<PeerCertificate> {
    use x509_parser::extensions::GeneralName;
    let (id, (_, not_after)) = (spiffe_id(leaf)?, validity(leaf)?);
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).context("the client certificate cannot be read")?;
    let names = leaf.subject_alternative_name()?.context("the client certificate has no names")?;
    let services = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(service) => Some((*service).to_owned()),
        _ => None,
    });
    Ok(PeerCertificate { id, services: services.collect(), not_after })
}

#[cfg(test)]
mod tests;
