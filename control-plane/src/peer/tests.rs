//! Which client certificates come how far.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::time::Instant;
use tonic::Code;

use super::grace::WithinGrace;
use super::{Peer, read_certificate};
use crate::ca::Ca;
use crate::identity::Refusals;

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
    let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), super::provider()).build().unwrap();
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
    let named = refusals.status(Instant::now());
    assert_eq!((named[0].identity.as_str(), named[0].times), (ID, 1));
    assert!(named[0].reason.starts_with("its certificate ended 8 days ago"), "{}", named[0].reason);
}
