use std::time::Duration;

use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// An authority of its own in a folder of its own.
struct Authority {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let dir = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // A revocation list is matched to its authority by name.
    params.distinguished_name.push(DnType::CommonName, dir.path().to_string_lossy());
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
    Authority { dir, issuer }
}

impl Authority {
    fn path(&self, file: &str) -> String {
        self.dir.path().join(file).to_string_lossy().into_owned()
    }

    /// A leaf for names (or a URI), written as `<file>.pem` and `<file>.key`.
    fn leaf(&self, file: &str, names: &[&str]) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(file.as_bytes()));
        for name in names {
            params.subject_alt_names.push(match name.contains("://") {
                true => SanType::URI((*name).try_into().unwrap()),
                false => SanType::DnsName((*name).try_into().unwrap()),
            });
        }
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{file}.pem")), leaf.pem()).unwrap();
        std::fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
        (leaf.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// A list of these leaves, good until `year`, in a file of this name.
    fn revoke(&self, list: &str, files: &[&str], year: i32) {
        let revoked = |file: &&str| RevokedCertParams {
            serial_number: SerialNumber::from_slice(file.as_bytes()),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(year, 1, 2),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: files.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        std::fs::write(self.path(list), params.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
    }

    /// `asks`: clients have to show a certificate of this authority.
    fn server(&self, names: &[&str], asks: bool) -> Arc<rustls::ServerConfig> {
        let (leaf, key) = self.leaf("server", names);
        let provider = provider();
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = match asks {
            false => builder.with_no_client_auth(),
            true => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap(),
            ),
        };
        let mut config = builder.with_single_cert(vec![leaf], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

fn simple(ca: &Authority) -> Origination {
    Origination {
        server_name: "api.example".into(),
        subject_alt_names: Vec::new(),
        ca: Some(ca.path("ca.pem").into()),
        client: None,
        crl: None,
        credential: None,
        skip_verify: false,
    }
}

/// The negotiated protocol, and whether the server saw a client certificate.
async fn shake(
    known: &Originations,
    origination: &Origination,
    inside: &[u8],
    server: Arc<rustls::ServerConfig>,
) -> Result<(Option<Vec<u8>>, bool)> {
    let config = known.config(&Arc::new(origination.clone()), inside)?;
    let (near, far) = tokio::io::duplex(65536);
    let accepted = tokio::spawn(async move { TlsAcceptor::from(server).accept(far).await });
    let name = ServerName::try_from(origination.server_name.to_string())?;
    let mut stream = TlsConnector::from(config).connect(name, near).await?;
    let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    let accepted = accepted.await??;
    tokio::io::AsyncWriteExt::flush(&mut stream).await?;
    Ok((alpn, accepted.get_ref().1.peer_certificates().is_some()))
}

#[tokio::test]
async fn servers_are_verified_by_name_and_ca() {
    let (ca, other) = (authority(), authority());
    let known = Originations::default();
    let with_names = |names: &[&str]| Origination {
        subject_alt_names: names.iter().map(|name| name.to_string()).collect(),
        ..simple(&ca)
    };
    let spiffe = "spiffe://example/api";
    for (origination, names, fine) in [
        (simple(&ca), &["api.example"][..], true),
        (simple(&ca), &["other.example"], false),
        (simple(&other), &["api.example"], false),
        (with_names(&["other.example"]), &["other.example"], true),
        (with_names(&["a.example", spiffe]), &[spiffe], true),
        (with_names(&["a.example"]), &["api.example"], false),
        (
            Origination { ca: Some(other.path("ca.pem").into()), ..with_names(&["api.example"]) },
            &["api.example"],
            false,
        ),
        (Origination { skip_verify: true, ..simple(&other) }, &["other.example"], true),
    ] {
        let done = shake(&known, &origination, alpn::HTTP1, ca.server(names, false)).await;
        assert_eq!(done.is_ok(), fine, "{origination:?} {names:?}: {done:?}");
    }
}

#[tokio::test]
async fn alpn_is_negotiated() {
    let ca = authority();
    let known = Originations::default();
    for (inside, want) in [(alpn::HTTP1, Some(&b"http/1.1"[..])), (alpn::HTTP2, Some(b"h2")), (alpn::TCP, None)] {
        let (alpn, _) = shake(&known, &simple(&ca), inside, ca.server(&["api.example"], false)).await.unwrap();
        assert_eq!(alpn.as_deref(), want);
    }
}

#[tokio::test]
async fn a_client_certificate_is_presented_and_reloaded_when_it_changes() {
    let ca = authority();
    ca.leaf("client", &["client.example"]);
    let pair = (ca.path("client.pem").into(), ca.path("client.key").into());
    let mutual = Origination { client: Some(pair), ..simple(&ca) };
    let known = Originations::default();
    let server = ca.server(&["api.example"], true);
    assert!(shake(&known, &simple(&ca), alpn::TCP, server.clone()).await.is_err(), "none is shown");
    assert!(shake(&known, &mutual, alpn::TCP, server.clone()).await.unwrap().1);
    let config = || known.config(&Arc::new(mutual.clone()), alpn::TCP).unwrap();
    let first = config();
    assert!(Arc::ptr_eq(&first, &config()), "sessions are resumed");
    let later = SystemTime::now() + Duration::from_secs(5);
    let write = |text: &str| {
        let path = ca.path("client.pem");
        std::fs::write(&path, text).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    };
    write("nonsense");
    assert!(Arc::ptr_eq(&first, &config()), "an invalid file changes nothing");
    ca.leaf("client", &["client.example"]);
    assert!(!Arc::ptr_eq(&first, &config()));
    let missing = Origination { ca: Some(ca.path("none.pem").into()), ..simple(&ca) };
    let e = known.config(&Arc::new(missing), alpn::TCP).unwrap_err();
    assert!(format!("{e:#}").contains("none.pem"), "{e:#}");
}

/// A certificate as `openssl req -x509` makes it: a CA that is the server's own certificate.
fn self_signed(ca: &Authority, names: &[&str], years: (i32, i32)) -> Arc<rustls::ServerConfig> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.not_before, params.not_after) = (date_time_ymd(years.0, 1, 1), date_time_ymd(years.1, 1, 1));
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(ca.path("own.pem"), certificate.pem()).unwrap();
    let provider = provider();
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    Arc::new(builder.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap())
}

#[tokio::test]
async fn a_self_signed_certificate_given_as_its_own_ca_verifies_by_exact_match() {
    let ca = authority();
    let known = Originations::default();
    let own = |names: &[&str]| Origination {
        ca: Some(ca.path("own.pem").into()),
        subject_alt_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..simple(&ca)
    };
    let server = self_signed(&ca, &["api.example", "other.example"], (2020, 2100));
    shake(&known, &own(&[]), alpn::TCP, server.clone()).await.unwrap();
    shake(&known, &own(&["other.example"]), alpn::TCP, server.clone()).await.unwrap();
    let refused = |e: anyhow::Error| format!("{e:?}");
    let by_name = shake(&known, &own(&["third.example"]), alpn::TCP, server.clone()).await.unwrap_err();
    assert!(refused(by_name).contains("NotValidForName"));
    // Another one with the same name and a key of its own.
    let given = std::fs::read(ca.path("own.pem")).unwrap();
    let other = self_signed(&ca, &["api.example"], (2020, 2100));
    std::fs::write(ca.path("own.pem"), given).unwrap();
    shake(&Originations::default(), &own(&[]), alpn::TCP, other).await.unwrap_err();
    let expired = self_signed(&ca, &["api.example"], (2020, 2021));
    let expired = shake(&Originations::default(), &own(&[]), alpn::TCP, expired).await.unwrap_err();
    assert!(refused(expired).contains("Expired"));
}

#[tokio::test]
async fn revoked_certificates_are_refused() {
    let (ca, other) = (authority(), authority());
    ca.revoke("none.crl", &["another"], 2100);
    ca.revoke("server.crl", &["another", "server"], 2100);
    ca.revoke("old.crl", &[], 2026);
    other.revoke("other.crl", &[], 2100);
    std::fs::write(ca.path("empty.crl"), "").unwrap();
    let by = |file: String| Origination { crl: Some(file.as_str().into()), ..simple(&ca) };
    let known = Originations::default();
    for (file, want) in [
        (ca.path("none.crl"), Ok(())),
        (ca.path("server.crl"), Err("Revoked")),
        (ca.path("old.crl"), Err("revocation list expired")),
        // As in Envoy: with revocation lists there must be one of each CA.
        (other.path("other.crl"), Err("UnknownRevocationStatus")),
        (ca.path("empty.crl"), Err("holds no certificate revocation list")),
    ] {
        let with_names = Origination { subject_alt_names: vec!["api.example".into()], ..by(file.clone()) };
        for origination in [by(file.clone()), with_names] {
            let done = shake(&known, &origination, alpn::TCP, ca.server(&["api.example"], false)).await;
            match (done, want) {
                (Ok(_), Ok(())) => {}
                (Err(e), Err(want)) => assert!(format!("{e:?}").contains(want), "{origination:?}: {e:?}"),
                (done, want) => panic!("{origination:?}: {done:?}, not {want:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_credential_name_is_a_folder() {
    let ca = authority();
    let shop = ca.dir.path().join("shop");
    std::fs::create_dir(&shop).unwrap();
    ca.leaf("client", &["client.example"]);
    for (from, to) in [("ca.pem", "ca.crt"), ("client.pem", "tls.crt"), ("client.key", "tls.key")] {
        std::fs::copy(ca.path(from), shop.join(to)).unwrap();
    }
    let known = Originations::new(ca.dir.path().to_owned());
    let by = |shown| {
        let credential = Some(weft_core::policy::Credential { name: "shop".into(), shown });
        Origination { ca: None, credential, ..simple(&ca) }
    };
    let server = |asks| ca.server(&["api.example"], asks);
    assert!(shake(&known, &by(true), alpn::TCP, server(true)).await.unwrap().1, "it is shown");
    assert!(shake(&known, &by(false), alpn::TCP, server(true)).await.is_err(), "it is not shown");
    shake(&known, &by(false), alpn::TCP, server(false)).await.unwrap();
    ca.revoke("shop/ca.crl", &["server"], 2100);
    let revoked = shake(&known, &by(false), alpn::TCP, server(false)).await.unwrap_err();
    assert!(format!("{revoked:?}").contains("Revoked"), "a list that came later: {revoked:?}");
    std::fs::remove_file(shop.join("ca.crl")).unwrap();
    shake(&known, &by(false), alpn::TCP, server(false)).await.unwrap();
}
