//! Terminated TLS: the handshake, and the identity that the client has proved.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use http::HeaderValue;
use rustls::server::ParsedCertificate;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use weft_core::gateway::{ServerCertificate, Termination, TlsTermination};
use weft_core::headers::Tls;
use weft_core::hex;
use weft_core::identity::SpiffeId;
use weft_identity::certificate::{fingerprint, spiffe_id};

use super::{PATIENCE, certificate};
use crate::net::stream::{ReadAhead, Rewind};
use crate::proxy::Proxy;
use crate::tls::identity::alpn;
use crate::tls::origination::has_one_of;

/// A connection whose TLS is terminated here.
pub(super) struct TerminatedTls {
    pub(super) stream: TlsStream<ReadAhead<Rewind<TcpStream>>>,
    pub(super) http2: bool,
    /// The client's certificate as Envoy forwards it to the application.
    pub(super) certificate: Option<HeaderValue>,
    leaf: Option<CertificateDer<'static>>,
    /// By the mesh's own TLS.
    workload: Option<Workload>,
}

/// A caller of the mesh.
struct Workload {
    id: SpiffeId,
    /// It is of another trust domain.
    federated: bool,
}

/// Terminates TLS.
///
/// # Errors
/// The cause, for example a client identity that is not allowed.
pub(super) async fn accept(
    proxy: &Proxy,
    ending: &TlsTermination,
    terminations: &HashMap<Termination, Arc<rustls::ServerConfig>>,
    stream: Rewind<TcpStream>,
) -> Result<TerminatedTls> {
    match &ending.certificate {
        ServerCertificate::Files(termination) => {
            let config = terminations.get(termination).context("no certificate yet")?;
            let (stream, leaf) = handshake(config, stream).await?;
            let certificate = leaf.as_ref().and_then(|leaf| HeaderValue::try_from(hash(leaf)).ok());
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Ok(TerminatedTls { stream, http2, certificate, leaf, workload: None })
        }
        ServerCertificate::Mesh => {
            let credentials = proxy.identity.current().context("no identity yet")?;
            let (stream, leaf) = handshake(&credentials.gateway(), stream).await?;
            let leaf = leaf.context("no client certificate")?;
            let id = spiffe_id(&leaf)?;
            // The trust bundle may have been removed since the handshake.
            ensure!(credentials.trusts_domain(id.trust_domain()), "{id} is of another trust domain");
            let federated = id.trust_domain() != credentials.id.trust_domain();
            let text = format!("By={};{};Subject=\"\";URI={id}", credentials.id, hash(&leaf));
            let certificate = Some(HeaderValue::try_from(text).context("the identity is no header's value")?);
            let http2 = matches!(stream.get_ref().1.alpn_protocol(), Some(b"h2" | alpn::HTTP2));
            Ok(TerminatedTls {
                stream,
                http2,
                certificate,
                leaf: Some(leaf),
                workload: Some(Workload { id, federated }),
            })
        }
    }
}

type Handshake = (TlsStream<ReadAhead<Rewind<TcpStream>>>, Option<CertificateDer<'static>>);

async fn handshake(config: &Arc<rustls::ServerConfig>, stream: Rewind<TcpStream>) -> Result<Handshake> {
    let accept = TlsAcceptor::from(config.clone()).accept(ReadAhead::new(stream));
    let tls = tokio::time::timeout(PATIENCE, accept).await.context("it takes too long")??;
    let leaf = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|leaf| leaf.clone().into_owned());
    Ok((tls, leaf))
}

fn hash(leaf: &CertificateDer<'_>) -> String {
    format!("Hash={}", hex::encode(&fingerprint(leaf)))
}

impl TerminatedTls {
    /// Values for header formatters. `server_name`: the client's.
    pub(super) fn tls(&self, server_name: &str) -> Tls {
        certificate::tls(self.stream.get_ref().1, server_name, self.leaf.as_ref())
    }

    /// Whether the caller may call a server at which TLS ends so.
    pub(super) fn is_let_in(&self, ending: &TlsTermination) -> bool {
        match &self.workload {
            Some(workload) => is_named(&workload.id, workload.federated, &ending.client_names),
            None if ending.client_names.is_empty() => true,
            None => self.leaf.as_ref().is_some_and(|leaf| {
                ParsedCertificate::try_from(leaf).is_ok_and(|parsed| has_one_of(&ending.client_names, leaf, &parsed))
            }),
        }
    }
}

/// Whether a workload is one of `callers`, or, where the server names none, of the own trust domain: a workload of another mesh may
/// call only servers that name it, and a server without names is for this mesh.
fn is_named(id: &SpiffeId, federated: bool, callers: &[String]) -> bool {
    if callers.is_empty() { !federated } else { callers.iter().any(|caller| *caller == id.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_of_another_mesh_are_allowed_by_name_alone() {
        let id = SpiffeId::new("mesh", "default", "front").unwrap();
        let (callers_with_id, other) = (vec![id.to_string()], vec!["spiffe://mesh/ns/default/sa/fro".to_owned()]);
        for (federated, callers, want) in [
            (false, &[][..], true),
            (true, &[], false),
            (false, &callers_with_id, true),
            (true, &callers_with_id, true),
            (false, &other, false),
        ] {
            assert_eq!(is_named(&id, federated, callers), want, "{federated} {callers:?}");
        }
    }
}
