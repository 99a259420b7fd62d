//! Protocol names: of a port's prefix, an `appProtocol`, a ServiceEntry's `protocol` and a service's metadata.

use weft_proto::v1::Protocol;

/// Names of protocols, lower case: Istio's, and Kubernetes' standard ones.
pub(crate) const NAMES: &[(&str, Protocol)] = &[
    ("http", Protocol::Http),
    ("http1", Protocol::Http),
    ("http2", Protocol::Http2),
    ("grpc", Protocol::Grpc),
    ("grpc-web", Protocol::Http),
    ("https", Protocol::Tls),
    ("tls", Protocol::Tls),
    ("tcp", Protocol::Tcp),
    ("mongo", Protocol::Tcp),
    ("mysql", Protocol::Tcp),
    ("redis", Protocol::Tcp),
    ("kubernetes.io/h2c", Protocol::Http2),
    ("kubernetes.io/ws", Protocol::Http),
    ("kubernetes.io/wss", Protocol::Tls),
];

/// The protocol of `name`, whatever its case; `Unknown` if the name is none of [`NAMES`].
pub fn from_name(name: &str) -> Protocol {
    let name = name.to_ascii_lowercase();
    NAMES.iter().find(|(known, _)| *known == name).map_or(Protocol::Unknown, |(_, protocol)| *protocol)
}

/// Istio's rule for port names: `<protocol>` or `<protocol>-<anything>`.
pub fn from_port_name(name: &str) -> Protocol {
    let name = name.to_ascii_lowercase();
    if name == "grpc-web" || name.starts_with("grpc-web-") {
        return Protocol::Http;
    }
    from_name(name.split('-').next().unwrap_or_default())
}

/// Ports of protocols in which the server speaks first: sniffing them would wait for a client that waits for the
/// server.
pub fn of_well_known_port(number: u32) -> Protocol {
    match number {
        25 | 53 | 3306 | 27017 => Protocol::Tcp,
        _ => Protocol::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_prefixes() {
        for (name, want) in [
            ("http", Protocol::Http),
            ("http-web", Protocol::Http),
            ("HTTP2-api", Protocol::Http2),
            ("grpc", Protocol::Grpc),
            ("grpc-web-ui", Protocol::Http),
            ("https", Protocol::Tls),
            ("mysql-main", Protocol::Tcp),
            ("web-http", Protocol::Unknown),
            ("httpx", Protocol::Unknown),
            ("", Protocol::Unknown),
        ] {
            assert_eq!(from_port_name(name), want, "{name}");
        }
        assert_eq!(from_name("kubernetes.io/h2c"), Protocol::Http2);
    }
}
