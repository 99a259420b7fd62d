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
