use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// An authority that signs any request.
struct Authority {
    root: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap().der().to_vec();
    Authority { root, issuer: Issuer::new(params, key) }
}

impl Authority {
    /// The credentials of a workload of `domain` with the roots of `own`.
    fn signed(&self, domain: &str, own: &Authority) -> StoredCredentials {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let id = format!("spiffe://{domain}/ns/default/sa/order");
        params.subject_alt_names.push(SanType::URI(id.try_into().unwrap()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        StoredCredentials {
            chain_der: vec![leaf.der().to_vec()],
            roots_der: vec![own.root.clone()],
            key_pkcs8: key.serialize_der(),
            services: Vec::new(),
        }
    }
}

fn bundles(of: &[(&str, &Authority)]) -> Bundles {
    of.iter().map(|(domain, authority)| ((*domain).to_owned(), vec![authority.root.clone()])).collect()
}

/// Why `client` and `server` do not come together: the client's reason, the server's.
async fn refusals(client: &Credentials, server: &Credentials) -> (Option<String>, Option<String>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = rustls_pki_types::ServerName::try_from("a").unwrap();
    let accept = async {
        let mut tls = TlsAcceptor::from(server.server()).accept(far).await?;
        tokio::io::AsyncWriteExt::write_all(&mut tls, b"!").await?;
        tokio::io::AsyncWriteExt::shutdown(&mut tls).await
    };
    let connect = async {
        let mut tls = TlsConnector::from(client.client(alpn::HTTP2)).connect(name, near).await?;
        // A refused client notices when it reads.
        tokio::io::AsyncReadExt::read_u8(&mut tls).await.map(drop)
    };
    let (connected, accepted) = tokio::join!(connect, accept);
    (connected.err().map(|e| e.to_string()), accepted.err().map(|e| e.to_string()))
}

#[tokio::test]
async fn a_trust_domain_is_verified_by_its_own_roots_alone() {
    let (one, two) = (authority(), authority());
    let here = |federated: &[(&str, &Authority)]| Credentials::new(one.signed("one", &one), bundles(federated));
    let there = Credentials::new(two.signed("two", &two), bundles(&[("one", &one)])).unwrap();
    let believing = here(&[("two", &two)]).unwrap();
    assert!(believing.trusts_domain("one") && believing.trusts_domain("two") && !believing.trusts_domain("three"));
    assert_eq!(refusals(&believing, &there).await, (None, None));
    assert_eq!(refusals(&there, &believing).await, (None, None));
    // Without a trust bundle both sides refuse, each with its own reason.
    let alone = here(&[]).unwrap();
    let (client, _) = refusals(&alone, &there).await;
    assert!(client.unwrap().contains("UnknownIssuer"));
    let (_, server) = refusals(&there, &alone).await;
    assert!(server.unwrap().contains("UnknownIssuer"));
    // A root that is trusted for its own domain proves no identity of another.
    let liar = Credentials::new(two.signed("one", &one), bundles(&[("two", &two)])).unwrap();
    let (client, _) = refusals(&believing, &liar).await;
    assert!(client.unwrap().contains("invalid peer certificate"));
    let (_, server) = refusals(&liar, &believing).await;
    assert!(server.unwrap().contains("invalid peer certificate"));
    assert!(here(&[("one", &two)]).is_err(), "the own domain has its own roots");
    assert!(Credentials::new(one.signed("one", &one), [("two".to_owned(), vec![vec![1]])].into()).is_err());
}

#[tokio::test]
async fn trust_bundles_change_and_outlive_a_renewal() {
    let (one, two) = (authority(), authority());
    let identity = Identity::default();
    let renew = async || {
        let renewed = Credentials::new(one.signed("one", &one), Bundles::new()).unwrap();
        identity.install(renewed).await;
    };
    let there = Credentials::new(two.signed("two", &two), bundles(&[("one", &one)])).unwrap();
    let works = async || refusals(&identity.valid().unwrap(), &there).await.0.is_none();
    // Before there is a certificate.
    identity.set_trust_bundles(&bundles(&[("two", &two)])).unwrap();
    renew().await;
    assert!(works().await);
    renew().await;
    assert!(works().await);
    let before = identity.current().unwrap();
    identity.set_trust_bundles(&bundles(&[("two", &two)])).unwrap();
    assert!(Arc::ptr_eq(&before, &identity.current().unwrap()), "nothing has changed");
    assert!(identity.set_trust_bundles(&bundles(&[("one", &two)])).is_err());
    assert!(works().await, "an invalid bundle changes nothing");
    identity.set_trust_bundles(&Bundles::new()).unwrap();
    // Not even by a session of before.
    assert!(!works().await);
    renew().await;
    assert!(!works().await);
}

/// The entitlement of a certificate of [`Authority::signed`] in "one".
fn claimed(root: &Authority) -> Claimed {
    let uri = "spiffe://one/ns/default/sa/order".to_owned();
    Claimed { uri, services: Some(Vec::new()), roots: vec![fingerprint(&root.root)] }
}

#[test]
fn a_saved_certificate_must_match_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (authority(), authority());
    let saved = serde_json::to_vec(&one.signed("one", &one)).unwrap();
    std::fs::write(dir.path().join("identity.json"), saved).unwrap();
    let open = |claimed: Option<Claimed>| {
        let identity = Identity::open(Some(dir.path()), Path::new("/nowhere"), claimed.as_ref());
        (identity.current().is_some(), identity.replaces_another)
    };
    let same = || claimed(&one);
    // A token that has expired since is no reason to join anew.
    for kept in [None, Some(same()), Some(Claimed { services: None, ..same() })] {
        assert_eq!(open(kept), (true, false));
    }
    for other in [
        Claimed { uri: "spiffe://one/ns/default/sa/payment".into(), ..same() },
        Claimed { uri: "spiffe://two/ns/default/sa/order".into(), ..same() },
        Claimed { services: Some(vec!["cart".into()]), ..same() },
        claimed(&two),
    ] {
        let difference = format!("{other:?}");
        assert_eq!(open(Some(other)), (false, true), "{difference}");
    }
}
