//! Connections of health checks, plain and TLS, to this pod's own ports.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use weft_identity::provider;

use crate::trust::{AnyCertificate, system_roots};

use super::{Place, Sockets, Tls, target};

/// A plain or TLS connection.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// Opens a connection. `alpn`: the protocol that TLS must negotiate.
pub(super) async fn open(
    sockets: &dyn Sockets,
    place: &Place,
    alpn: Option<&[u8]>,
    timeout: Duration,
) -> Result<Box<dyn Duplex>, String> {
    let stream = connect(sockets, &place.host, place.port, timeout).await.map_err(|e| e.to_string())?;
    let Some(tls) = &place.tls else { return Ok(Box::new(stream)) };
    let name = if tls.server_name.is_empty() { target::bare(&place.host) } else { &tls.server_name };
    let name = ServerName::try_from(name.to_owned()).map_err(|_| format!("{name:?} is not a valid server name"))?;
    let mut config = client_config(tls)?;
    config.alpn_protocols.extend(alpn.map(<[u8]>::to_vec));
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| format!("TLS: {e}"))?;
    if let Some(alpn) = alpn
        && stream.get_ref().1.alpn_protocol().is_some_and(|agreed| agreed != alpn)
    {
        return Err(format!("TLS: the server does not speak {}", String::from_utf8_lossy(alpn)));
    }
    Ok(Box::new(stream))
}

async fn connect(sockets: &dyn Sockets, host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::other("no address");
    for to in sockets.own().resolve(host, port).await? {
        match sockets.connect(to, timeout).await {
            Ok(stream) => return Ok(stream),
            // On a host without IPv6, ::1 fails too; the error of 127.0.0.1 is more informative.
            Err(_) if to.is_ipv6() && last.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn client_config(tls: &Tls) -> Result<ClientConfig, String> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let verifier: Arc<dyn ServerCertVerifier> = if tls.skip_verify {
        Arc::new(AnyCertificate(algorithms))
    } else {
        let verifier = WebPkiServerVerifier::builder_with_provider(system_roots(), provider.clone()).build();
        verifier.map_err(|e| format!("TLS: the system's trust store is unusable: {e}"))?
    };
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| format!("TLS: {e}"))?;
    Ok(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::super::Kind;
    use super::super::probe::probe;
    use super::super::state::Status;
    use super::super::tests::Plain;
    use super::*;

    /// A server with a self-signed certificate.
    async fn server() -> u16 {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let provider = provider();
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // The handshake fails if the client rejects the certificate.
                let _ = acceptor.accept(stream).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn certificates_are_verified_unless_skip_verify_is_set() {
        let port = server().await;
        let tcp = |skip_verify| {
            let tls = Some(Tls { server_name: String::new(), skip_verify });
            Kind::Tcp(Place { host: "localhost".into(), port, tls })
        };
        let (status, output) = probe(&Plain, &tcp(true), Duration::from_secs(5)).await;
        assert_eq!(status, Status::Passing, "{output}");
        let (status, output) = probe(&Plain, &tcp(false), Duration::from_secs(5)).await;
        assert!(status == Status::Critical && output.contains("TLS: "), "{output}");
    }
}
