//! Admission of client certificates.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tonic::Code;
use weft_identity::provider;

use super::grace::WithinGrace;
use super::{Peer, accept, own_certificate, read_certificate};
use crate::federation;
use crate::identity::ca::Ca;
use crate::identity::refusals::Refusals;
use weft_world::Peering;

const ID: &str = "spiffe://cluster.local/ns/default/sa/order";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn leaf(ca: &Ca, ago: Duration, lifetime: Duration) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    ca.sign_key(&key, ID, &["order".to_owned()], SystemTime::now() - ago, lifetime).unwrap().chain[0].clone()
}

#[test]
fn a_certificate_that_ended_within_the_grace_time_is_good_for_its_renewal_alone() {
    let (ca, _) = Ca::create("cluster.local", SystemTime::now() - 30 * DAY).unwrap();
    let (other, _) = Ca::create("cluster.local", SystemTime::now() - 30 * DAY).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.root().clone()).unwrap();
    let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
    let refusals = Arc::new(Refusals::default());
    let verifier = WithinGrace { inner, grace: 7 * DAY, refusals: refusals.clone() };
    let verify = |leaf: &CertificateDer<'_>| verifier.verify_client_cert(leaf, &[], UnixTime::now());

    verify(&leaf(&ca, Duration::ZERO, DAY)).unwrap();
    let ended = leaf(&ca, 7 * DAY, DAY);
    verify(&ended).unwrap();
    let certified = Some(Arc::new(read_certificate(&ended).unwrap()));
    let peer = Peer { remote: [10, 0, 0, 7].into(), certified };
    assert_eq!(peer.renewable().unwrap().services, ["order"]);
    let refused = peer.certified().unwrap_err();
    assert!(refused.code() == Code::Unauthenticated && refused.message().contains("has expired"), "{refused}");

    assert!(verify(&leaf(&other, 7 * DAY, DAY)).is_err(), "of another mesh");
    assert!(verify(&leaf(&other, Duration::ZERO, DAY)).is_err());
    assert!(refusals.status(Instant::now()).is_empty(), "only an identity that was proved is named");
    verify(&leaf(&ca, 9 * DAY, DAY)).unwrap_err();
    let status = refusals.status(Instant::now());
    assert_eq!((status[0].identity.as_str(), status[0].times, refusals.count.load(Ordering::Relaxed)), (ID, 1, 1));
    assert!(status[0].reason.starts_with("its certificate ended 8 days ago"), "{}", status[0].reason);
}

/// From an address of the loopback interface.
async fn connect(from: u8, to: std::net::SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, from], 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Neither silent connections nor incomplete handshakes.
#[tokio::test]
async fn unauthenticated_connections_do_not_block_others() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    // Both ends of each connection are in this process.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit }).unwrap();
    let ca = Arc::new(Ca::create("cluster.local", SystemTime::now()).unwrap().0);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let mut accepted = accept(&ca, listener, DAY, Arc::default()).unwrap();
    let root_der = ca.root().to_vec();
    let peering = Peering { datacenter: "dc1".into(), trust_domain: "cluster.local".into(), root_der };
    let client = federation::tls::client(&peering, own_certificate(&ca).unwrap()).unwrap();
    let connector = TlsConnector::from(Arc::new(client));
    let mut let_in = async |from: u8| {
        let begun = Instant::now();
        let name = std::net::IpAddr::from([127, 0, 0, 1]).into();
        let mut stream = connector.connect(name, connect(from, at).await).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        accepted.recv().await.unwrap().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    };
    let mut silent = Vec::new();
    for _ in 0..700 {
        silent.push(connect(2, at).await);
    }
    let_in(2).await;
    let_in(3).await;
    // The oldest of them was closed, and no other.
    for (number, goes) in [(0, true), (100, true), (699, false)] {
        let read = tokio::time::timeout(Duration::from_millis(200), silent[number].read(&mut [0])).await;
        assert_eq!(read.is_ok(), goes, "{number}: {read:?}");
    }
    // A ClientHello each, and then nothing: one address gets half of the slots.
    let mut hello = Vec::new();
    let config = rustls::ClientConfig::builder_with_provider(provider());
    let config = config.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = std::net::IpAddr::from([127, 0, 0, 1]).into();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut hello).unwrap();
    for _ in 0..300 {
        let mut stream = connect(2, at).await;
        stream.write_all(&hello).await.unwrap();
        silent.push(stream);
    }
    let_in(3).await;
}
