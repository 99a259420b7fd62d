//! Connections to etcd's servers: one at a time, to the first that answers; after a failure the next one is used.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use weft_identity::provider;
use weft_proto::etcd::AuthenticateRequest;
use weft_proto::etcd::auth_client::AuthClient;

/// Timeout of a connection attempt.
const CONNECT: Duration = Duration::from_secs(2);
/// A broken connection is detected within this time.
const PING: Duration = Duration::from_secs(3);

/// The settings of the connection to etcd.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// PEM file of the CA that signs etcd's certificates; enables TLS.
    pub ca: Option<PathBuf>,
    /// PEM files of this control plane's certificate and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// User and password.
    pub user: Option<(String, String)>,
}

/// The servers, and the connection to one of them.
pub(super) struct Servers {
    addresses: Vec<String>,
    tls: Option<Arc<rustls::ClientConfig>>,
    user: Option<(String, String)>,
    next: Arc<AtomicUsize>,
    current: Mutex<Option<Session>>,
}

/// A connection, and its token of authentication.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) channel: Channel,
    token: Option<MetadataValue<Ascii>>,
}

impl Session {
    /// A request with the token.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }
}

impl Servers {
    pub(super) fn new(addresses: Vec<String>, access: &Access) -> Result<Servers> {
        let tls = access.ca.as_ref().map(|ca| client_config(ca, access.certificate.as_ref())).transpose()?;
        Ok(Servers {
            addresses,
            tls: tls.map(Arc::new),
            user: access.user.clone(),
            next: Arc::default(),
            current: Mutex::default(),
        })
    }

    /// The current connection, or a new one.
    pub(super) async fn session(&self) -> Result<Session, Status> {
        if let Some(session) = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(session);
        }
        let channel = self.connect();
        let token = match &self.user {
            None => None,
            Some((name, password)) => {
                let request = AuthenticateRequest { name: name.clone(), password: password.clone() };
                let token = AuthClient::new(channel.clone()).authenticate(request).await?.into_inner().token;
                Some(token.parse().map_err(|_| Status::internal("etcd's token is invalid"))?)
            }
        };
        let session = Session { channel, token };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(session.clone());
        Ok(session)
    }

    /// Drops the current server after a failure: the next request uses another.
    pub(super) fn leave(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.next.fetch_add(1, Ordering::Relaxed);
    }

    fn connect(&self) -> Channel {
        let (addresses, tls, next) = (self.addresses.clone(), self.tls.clone(), self.next.clone());
        let connector = tower::service_fn(move |_| {
            let (addresses, tls, next) = (addresses.clone(), tls.clone(), next.clone());
            async move {
                let mut last = std::io::Error::other("no address of etcd is given");
                for _ in 0..addresses.len() {
                    let at = next.load(Ordering::Relaxed) % addresses.len();
                    let address = addresses.get(at).map_or("", String::as_str);
                    match tokio::time::timeout(CONNECT, open(address, tls.clone())).await {
                        Ok(Ok(stream)) => return Ok(TokioIo::new(stream)),
                        Ok(Err(e)) => last = std::io::Error::new(e.kind(), format!("{address}: {e}")),
                        Err(_) => {
                            last = std::io::Error::new(std::io::ErrorKind::TimedOut, format!("{address}: no answer"))
                        }
                    }
                    next.fetch_add(1, Ordering::Relaxed);
                }
                Err(last)
            }
        });
        Endpoint::from_static("http://etcd")
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connector)
    }
}

/// Plain or TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn open(address: &str, tls: Option<Arc<rustls::ClientConfig>>) -> std::io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
    Ok(Box::new(TlsConnector::from(tls).connect(name, stream).await?))
}

fn client_config(ca: &Path, own: Option<&(PathBuf, PathBuf)>) -> Result<rustls::ClientConfig> {
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>> {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        read.with_context(|| format!("cannot read the certificates in {}", path.display()))
    };
    let mut roots = RootCertStore::empty();
    for root in certificates(ca)? {
        roots.add(root).with_context(|| format!("{} holds no CA", ca.display()))?;
    }
    let provider = provider();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match own {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let private = PrivateKeyDer::from_pem_file(key);
            let private = private.with_context(|| format!("cannot read the key in {}", key.display()))?;
            config.with_client_auth_cert(certificates(certificate)?, private)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
