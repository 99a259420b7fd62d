use super::*;

fn minimal_cluster() -> v1::Cluster {
    v1::Cluster { name: "a".into(), host: "a".into(), ..v1::Cluster::default() }
}

#[test]
fn proxy_protocol_limits_connections_to_one_stream() {
    let with = |number| cluster(&v1::Cluster { proxy_protocol: number, ..minimal_cluster() });
    let of = |number| with(number).map(|compiled| (compiled.proxy_protocol, compiled.pool.max_concurrent_streams));
    assert_eq!(of(0).unwrap(), (None, i32::MAX as u32));
    assert_eq!(of(1).unwrap(), (Some(Version::V1), 1));
    assert_eq!(of(2).unwrap(), (Some(Version::V2), 1));
    assert_eq!(of(3).unwrap_err().field, "proxy_protocol");
}

#[test]
fn retry_budget_accepts_an_interval() {
    let of = |budget_interval_ms| {
        let budget = v1::RetryBudget { percent: 20.0, min_retry_concurrency: 3, budget_interval_ms };
        let pool = v1::ConnectionPool { retry_budget: Some(budget), ..Default::default() };
        connection_pool(Some(&pool)).unwrap().retry_budget.unwrap().interval
    };
    assert_eq!((of(0), of(10_000)), (None, Some(Duration::from_secs(10))));
}

#[test]
fn tunnel_requires_a_valid_authority() {
    let of = |host: &str, port, post| {
        let tunnel = Some(v1::Tunnel { post, host: host.into(), port });
        cluster(&v1::Cluster { tunnel, ..minimal_cluster() }).map(|compiled| compiled.tunnel)
    };
    let want = |post, authority: &str| Some(Tunnel { post, authority: authority.into() });
    assert_eq!(of("DB.example.com", 5432, false).unwrap(), want(false, "db.example.com:5432"));
    assert_eq!(of("10.0.0.1", 80, true).unwrap(), want(true, "10.0.0.1:80"));
    assert_eq!(of("2001:db8::1", 80, false).unwrap(), want(false, "[2001:db8::1]:80"));
    assert_eq!(of("a", 0, false).unwrap_err().field, "tunnel.port");
    for host in ["", "a b", "a\r\nhost: b"] {
        assert_eq!(of(host, 1, false).unwrap_err().field, "tunnel.host", "{host:?}");
    }
}

#[test]
fn tls_origination_takes_files_or_a_credential() {
    let of = |tls: v1::TlsOrigination| {
        let cluster = v1::Cluster { tls: v1::Tls::Originate.into(), tls_origination: Some(tls), ..minimal_cluster() };
        super::cluster(&cluster).map(|compiled| match compiled.tls {
            Tls::Originate(origination) => origination,
            other => panic!("{other:?}"),
        })
    };
    let files = of(v1::TlsOrigination { ca_crl: "/a.crl".into(), ..Default::default() }).unwrap();
    assert_eq!((files.crl.as_deref(), &files.credential), (Some("/a.crl"), &None));
    let by_credential = |name: &str| v1::TlsOrigination { credential_name: name.into(), ..Default::default() };
    let shown = of(v1::TlsOrigination { show_credential: true, ..by_credential("shop") }).unwrap();
    assert_eq!(shown.credential, Some(Credential { name: "shop".into(), shown: true }));
    for wrong in [
        by_credential("../a"),
        by_credential(".."),
        by_credential("a/b"),
        v1::TlsOrigination { ca_crl: "/a.crl".into(), ..by_credential("shop") },
    ] {
        assert_eq!(of(wrong.clone()).unwrap_err().field, "tls_origination.credential_name", "{wrong:?}");
    }
}
