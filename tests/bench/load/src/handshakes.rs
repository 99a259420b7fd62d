//! A new mTLS connection for each request, with a full handshake or a resumed one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use weft_sidecar::control::connection::Control;
use weft_sidecar::tls::identity::{Identity, alpn};
use weft_sidecar::tls::introduction::Introduction;

#[derive(clap::Args)]
pub(crate) struct Options {
    to: SocketAddr,
    #[arg(long)]
    host: String,
    /// Join a mesh with this token, and be one of its workloads
    #[arg(long, requires = "control_plane")]
    token_file: Option<PathBuf>,
    #[arg(long)]
    control_plane: Option<String>,
    /// Folder with ca.pem, one.pem and one.key, for others
    #[arg(long, conflicts_with = "token_file")]
    certificates: Option<PathBuf>,
    /// Resume sessions
    #[arg(long)]
    resume: bool,
    #[arg(long, default_value_t = 16)]
    connections: u32,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// A certificate of the mesh.
pub(crate) async fn join(control_plane: String, token_file: PathBuf) -> Result<Control> {
    let control =
        Control::new(vec![control_plane], "", Some(Introduction::JoinToken(token_file)), Arc::new(Identity::default()));
    control.join().await?;
    Ok(control)
}

async fn config(options: &Options) -> Result<ClientConfig> {
    if let (Some(token), Some(control_plane)) = (&options.token_file, &options.control_plane) {
        let control = join(control_plane.clone(), token.clone()).await?;
        return Ok((*control.identity.valid()?.client(alpn::HTTP1)).clone());
    }
    let folder = options.certificates.as_ref().context("--token-file or --certificates is needed")?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem"))?)?;
    let chain = vec![CertificateDer::from_pem_file(folder.join("one.pem"))?];
    let key = PrivateKeyDer::from_pem_file(folder.join("one.key"))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

pub(crate) async fn run(options: Options) -> Result<Value> {
    let config = config(&options).await?;
    // One configuration each: rustls keeps eight tickets of a server, too few for all.
    let connector = || {
        let mut config = config.clone();
        config.resumption = if options.resume { Resumption::in_memory_sessions(16) } else { Resumption::disabled() };
        TlsConnector::from(Arc::new(config))
    };
    let request =
        Rc::new(format!("GET / HTTP/1.1\r\nHost: {}\r\nuser-id: 1\r\nConnection: close\r\n\r\n", options.host));
    let start = Instant::now();
    let end = start + Duration::from_secs(options.seconds);
    let local = tokio::task::LocalSet::new();
    let tasks: Vec<_> = (0..options.connections)
        .map(|_| {
            let (connector, request, to) = (connector(), request.clone(), options.to);
            local.spawn_local(async move {
                let (mut latencies, mut resumed, mut errors) = (Vec::new(), 0, 0);
                while Instant::now() < end {
                    let from = Instant::now();
                    match tokio::time::timeout(Duration::from_secs(10), one(&connector, to, &request)).await {
                        Ok(Ok(kind)) => {
                            latencies.push(u64::try_from(from.elapsed().as_nanos()).unwrap_or(u64::MAX));
                            resumed += u64::from(kind == HandshakeKind::Resumed);
                        }
                        problem => {
                            if errors == 0 {
                                eprintln!("{problem:?}");
                            }
                            errors += 1;
                        }
                    }
                }
                (latencies, resumed, errors)
            })
        })
        .collect();
    let (mut latencies, mut resumed, mut errors) = (Vec::new(), 0, 0);
    local
        .run_until(async {
            for task in tasks {
                if let Ok((more, r, e)) = task.await {
                    latencies.extend(more);
                    resumed += r;
                    errors += e;
                }
            }
        })
        .await;
    latencies.sort_unstable();
    let share = resumed as f64 / latencies.len().max(1) as f64;
    let all = latencies.len();
    ensure!(share > 0.95 || !options.resume, "only {resumed} of {all} handshakes were resumed; {errors} failed");
    let us = |share| super::percentile(&latencies, share) as f64 / 1000.0;
    Ok(json!({
        "requests": latencies.len(), "rps": latencies.len() as f64 / start.elapsed().as_secs_f64(), "errors": errors,
        "resumed": share, "p50_us": us(0.5), "p99_us": us(0.99),
    }))
}

async fn one(connector: &TlsConnector, to: SocketAddr, request: &str) -> Result<HandshakeKind> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut tls = connector.connect(ServerName::try_from("one.bench")?, stream).await?;
    tls.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(1024);
    // A missing close_notify is no error of the measurement.
    let ended = tls.read_to_end(&mut answer).await;
    ensure!(
        answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(&[b'x'; 128]),
        "{ended:?}: {}",
        String::from_utf8_lossy(&answer)
    );
    tls.get_ref().1.handshake_kind().context("no handshake")
}
