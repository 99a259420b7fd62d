//! Choice of the HTTP version of a request.

use http::{Method, Version};

use crate::policy::{Cluster, H2Upgrade, Protocol};

/// Properties of a request for the choice.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a Method,
    /// The downstream's version.
    pub version: Version,
    /// Whether it is gRPC, which requires HTTP/2.
    pub grpc: bool,
}

impl Request<'_> {
    fn is_http2(self) -> bool {
        self.version == Version::HTTP_2
    }
}

/// Whether a request to an endpoint of the cluster is sent as HTTP/2: as configured for the port or by policy,
/// otherwise in the downstream's version. A port declared as HTTP/1 gets HTTP/1, as in Istio, except for gRPC. So does
/// a port without declared protocol for requests through a gateway: browsers use HTTP/2 with every server, which says
/// nothing about the services behind it.
pub fn upstream_is_http2(cluster: &Cluster, request: Request<'_>, by_gateway: bool) -> bool {
    let pool = &cluster.pool;
    let downstream = request.is_http2();
    match cluster.protocol {
        _ if *request.method == Method::CONNECT => false,
        Protocol::Http2 | Protocol::Grpc => true,
        _ if pool.use_client_protocol => downstream,
        _ if pool.h2_upgrade == H2Upgrade::Upgrade => true,
        Protocol::Http => downstream && request.grpc,
        Protocol::Unknown if by_gateway => downstream && request.grpc,
        _ => downstream,
    }
}

/// Whether a request is delivered to the application as HTTP/2: if its port is declared so, or if the port has no
/// declared protocol and the client used HTTP/2. `declared`: the protocol of the port in the inbound policy.
/// `from_http1`: the client used HTTP/1 to its own sidecar.
pub fn delivery_is_http2(declared: Option<Protocol>, request: Request<'_>, from_http1: bool) -> bool {
    if !request.is_http2() || *request.method == Method::CONNECT {
        return false;
    }
    match declared {
        Some(Protocol::Http2 | Protocol::Grpc) => true,
        Some(Protocol::Http) => request.grpc,
        _ => request.grpc || !from_http1,
    }
}

/// Whether endpoints of the protocol accept HTTP/2 only.
pub fn is_http2_only(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Http2 | Protocol::Grpc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::ConnectionPool;

    fn cluster(protocol: Protocol, pool: ConnectionPool) -> Cluster {
        Cluster { protocol, ..Cluster::original_destination("c", "c", pool) }
    }

    fn request(version: Version, grpc: bool) -> Request<'static> {
        Request { method: &Method::GET, version, grpc }
    }

    #[test]
    fn upstream_version_follows_port_policy_then_downstream() {
        use Protocol::{Grpc, Http, Http2, Unknown};
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        for (protocol, version, grpc, by_gateway, expected) in [
            (Http2, one, false, false, true),
            (Grpc, one, false, true, true),
            (Http, two, false, false, false),
            (Http, two, true, false, true),
            (Unknown, two, false, false, true),
            (Unknown, one, false, false, false),
            (Unknown, two, false, true, false),
            (Unknown, two, true, true, true),
        ] {
            let found =
                upstream_is_http2(&cluster(protocol, ConnectionPool::default()), request(version, grpc), by_gateway);
            assert_eq!(found, expected, "{protocol:?} {version:?} grpc {grpc} gateway {by_gateway}");
        }
        let upgrade = ConnectionPool { h2_upgrade: H2Upgrade::Upgrade, ..Default::default() };
        assert!(upstream_is_http2(&cluster(Http, upgrade.clone()), request(one, false), false));
        let connect = Request { method: &Method::CONNECT, ..request(two, false) };
        assert!(!upstream_is_http2(&cluster(Http2, upgrade), connect, false));
        let client = ConnectionPool { use_client_protocol: true, ..Default::default() };
        assert!(upstream_is_http2(&cluster(Http, client.clone()), request(two, false), false));
        assert!(!upstream_is_http2(&cluster(Http, client), request(one, false), false));
    }

    #[test]
    fn delivery_uses_http2_if_the_port_or_the_client_does() {
        let two = request(Version::HTTP_2, false);
        assert!(delivery_is_http2(Some(Protocol::Http2), two, true));
        assert!(!delivery_is_http2(Some(Protocol::Http), two, false));
        assert!(delivery_is_http2(Some(Protocol::Http), Request { grpc: true, ..two }, false));
        assert!(delivery_is_http2(None, two, false) && !delivery_is_http2(None, two, true));
        assert!(!delivery_is_http2(Some(Protocol::Http2), request(Version::HTTP_11, false), false));
    }
}
