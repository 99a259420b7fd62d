use super::*;

fn named() -> v1::Cluster {
    v1::Cluster { name: "a".into(), host: "a".into(), ..v1::Cluster::default() }
}

#[test]
fn a_connection_that_says_whose_it_is_has_one_stream() {
    let with = |number| cluster(&v1::Cluster { proxy_protocol: number, ..named() });
    let of = |number| with(number).map(|found| (found.proxy_protocol, found.pool.max_concurrent_streams));
    assert_eq!(of(0).unwrap(), (None, i32::MAX as u32));
    assert_eq!(of(1).unwrap(), (Some(Version::V1), 1));
    assert_eq!(of(2).unwrap(), (Some(Version::V2), 1));
    assert_eq!(of(3).unwrap_err().field, "proxy_protocol");
}

#[test]
fn a_tunnel_has_an_authority() {
    let of = |host: &str, port, post| {
        let tunnel = Some(v1::Tunnel { post, host: host.into(), port });
        cluster(&v1::Cluster { tunnel, ..named() }).map(|found| found.tunnel)
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
