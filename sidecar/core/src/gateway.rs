//! Selection of a gateway's server and host for a connection.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::names::specificity;
use crate::policy::Cluster;

/// Cipher suites of TLS 1.2 to which a gateway can be limited: OpenSSL's names, as in Envoy and Istio, and IANA's
/// numbers. All have forward secrecy and authenticated encryption. The suites of TLS 1.3 are always enabled, as in
/// Envoy.
pub const CIPHER_SUITES: &[(&str, u16)] = &[
    ("ECDHE-ECDSA-AES128-GCM-SHA256", 0xc02b),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", 0xc02c),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", 0xcca9),
    ("ECDHE-RSA-AES128-GCM-SHA256", 0xc02f),
    ("ECDHE-RSA-AES256-GCM-SHA384", 0xc030),
    ("ECDHE-RSA-CHACHA20-POLY1305", 0xcca8),
];

/// One server of a Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `Gateway/<namespace>/<name>[/<server>]`
    pub name: Arc<str>,
    /// Listening address; `None`: all.
    pub bind: Option<IpAddr>,
    /// Listening port.
    pub port: u16,
    /// Protocol of the port.
    pub protocol: ServerProtocol,
    /// Set with [`ServerProtocol::Https`].
    pub tls: Option<TlsTermination>,
    /// Redirect requests to the same address under https.
    pub https_redirect: bool,
    /// Accepted server names: exact, a wildcard or `*`.
    pub hosts: Vec<Arc<str>>,
    /// Domains and the services that hold their routes.
    pub virtual_hosts: Vec<(Arc<str>, Arc<str>)>,
    /// With [`ServerProtocol::Tls`]: the server name identifies an exported service, see [`MeshServerName`].
    pub auto_passthrough: bool,
    /// Hosts of other servers of the port, whose requests are refused here, see [`is_misdirected`].
    pub hosts_elsewhere: Vec<Arc<str>>,
}

impl Server {
    /// Listening address; for all addresses IPv6's unspecified one, which accepts IPv4 too.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.bind.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), self.port)
    }

    /// Whether TLS uses the mesh's certificates.
    pub fn is_of_mesh(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.certificate == ServerCertificate::Mesh)
    }
}

/// Protocol of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerProtocol {
    /// HTTP/1 and 2.
    Http,
    /// HTTP in TLS that is terminated by the gateway.
    Https,
    /// TLS that is passed through.
    Tls,
    /// Opaque bytes.
    Tcp,
}

/// TLS termination of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsTermination {
    /// The server's certificate.
    pub certificate: ServerCertificate,
    /// Accepted names in client certificates, as a URI or a host; empty: any.
    pub client_names: Vec<String>,
}

/// Source of the certificate for TLS termination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerCertificate {
    /// The mesh's certificates, on both sides (ISTIO_MUTUAL).
    Mesh,
    /// PEM files of the gateway.
    Files(Termination),
}

/// TLS termination with the gateway's own PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Termination {
    /// At least one; chosen by the client's capabilities.
    pub certificates: Vec<Certificate>,
    /// CA of the client certificates that are required; `None`: none are requested.
    pub authority: Option<Authority>,
    /// Accepted versions of TLS.
    pub versions: Versions,
    /// Numbers from [`CIPHER_SUITES`], the preferred first; empty: all.
    pub cipher_suites: Vec<u16>,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Certificate {
    /// Two files.
    Files {
        /// The chain, starting with the server's own certificate.
        certificate: Arc<str>,
        /// The private key.
        key: Arc<str>,
    },
    /// Name of a credential folder of the gateway.
    Credential(Arc<str>),
}

/// Source of the CA for client certificates.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// Files.
    Files {
        /// The CA.
        ca: Arc<str>,
        /// Certificate revocation list; `None`: none.
        crl: Option<Arc<str>>,
    },
    /// Name of a credential folder of the gateway.
    Credential(Arc<str>),
}

/// Versions of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Versions {
    /// 1.2 and 1.3.
    Both,
    /// 1.2 alone.
    Only12,
    /// 1.3 alone.
    Only13,
}

/// A server name of the mesh's mutual TLS between data centres, `outbound_.<port>_.<subset>_.<host>`, in Istio's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeshServerName<'a> {
    /// The service's port; 0: the service declares none.
    pub port: u16,
    /// Empty: the whole service.
    pub subset: &'a str,
    /// Canonical name.
    pub host: &'a str,
}

impl<'a> MeshServerName<'a> {
    /// Parses a server name in lower case.
    pub fn parse(server_name: &'a str) -> Option<MeshServerName<'a>> {
        let (port, rest) = server_name.strip_prefix("outbound_.")?.split_once("_.")?;
        let (subset, host) = rest.split_once("_.")?;
        // `u16::parse` would accept a sign.
        let port = port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().ok()).flatten()?;
        (!host.is_empty()).then_some(MeshServerName { port, subset, host })
    }

    /// Index of the cluster: that of the port, otherwise that of the logical port 0. The subset is compared without
    /// case, because server names have none (RFC 6066, 3).
    pub fn cluster(&self, clusters: &[Arc<Cluster>]) -> Option<usize> {
        let of = |port: u16| {
            let meant = |c: &Arc<Cluster>| {
                *c.host == *self.host && c.subset.eq_ignore_ascii_case(self.subset) && c.port == port
            };
            clusters.iter().position(meant)
        };
        of(self.port).or_else(|| of(0))
    }
}

/// The service with the routes of `host` (lower case, without port), among all servers of a port: the exact domain,
/// otherwise the longest `*.suffix`, otherwise `*` (Envoy's search of virtual hosts). Of equal matches the first wins.
pub fn service<'a>(
    servers: impl IntoIterator<Item = &'a Arc<Server>>,
    host: &str,
) -> Option<(&'a Arc<Server>, &'a Arc<str>)> {
    let all = servers.into_iter().flat_map(|server| {
        server
            .virtual_hosts
            .iter()
            .filter_map(move |(domain, service)| Some((specificity(domain, host)?, server, service)))
    });
    let mut best: Option<(usize, &Arc<Server>, &Arc<str>)> = None;
    for found in all {
        if best.is_none_or(|best| found.0 > best.0) {
            best = Some(found);
        }
    }
    best.map(|(_, server, service)| (server, service))
}

/// Whether a request for `host` belongs to another server of the port than the one that its connection was opened for (421,
/// RFC 9110, 15.5.20).
pub fn is_misdirected(servers: &[Arc<Server>], host: &str) -> bool {
    let best = |hosts: &[Arc<str>]| hosts.iter().filter_map(|own| specificity(own, host)).max();
    servers.iter().any(|server| best(&server.hosts_elsewhere) > best(&server.hosts))
}

/// The server of a port for a TLS server name; `""`: the client sent none, which only `*` matches. The hosts of an
/// AUTO_PASSTHROUGH server match the service inside the server name, as in Istio.
pub fn by_server_name<'a>(servers: &'a [Arc<Server>], name: &str) -> Option<&'a Arc<Server>> {
    let host = MeshServerName::parse(name).map_or(name, |service| service.host);
    let of = |server: &&Arc<Server>| {
        let name = if server.auto_passthrough { host } else { name };
        server.hosts.iter().filter_map(|host| specificity(host, name)).max()
    };
    let mut best: Option<(usize, &Arc<Server>)> = None;
    for server in servers {
        if let Some(exact) = of(&server)
            && best.is_none_or(|(least, _)| exact > least)
        {
            best = Some((exact, server));
        }
    }
    best.map(|(_, server)| server)
}

/// The servers whose hosts a client may request after TLS was terminated at `server`: that one, and with the mesh's TLS
/// every mesh server of the port, since a sidecar's server name is that of the gateway's service and not of a host
/// behind it.
pub fn reachable_servers(servers: &[Arc<Server>], server: &Arc<Server>, name: &str) -> Vec<Arc<Server>> {
    if !server.is_of_mesh() || MeshServerName::parse(name).is_none() {
        return vec![server.clone()];
    }
    servers.iter().filter(|server| server.is_of_mesh()).cloned().collect()
}

/// The mesh server for a sidecar whose server name matches no server, see [`reachable_servers`].
pub fn mesh_server<'a>(servers: &'a [Arc<Server>], name: &str) -> Option<&'a Arc<Server>> {
    MeshServerName::parse(name).and_then(|_| servers.iter().find(|server| server.is_of_mesh()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str, hosts: &[&str], domains: &[(&str, &str)]) -> Arc<Server> {
        Arc::new(Server {
            name: name.into(),
            bind: None,
            port: 443,
            protocol: ServerProtocol::Tls,
            tls: None,
            https_redirect: false,
            hosts: hosts.iter().map(|host| Arc::from(*host)).collect(),
            auto_passthrough: false,
            hosts_elsewhere: Vec::new(),
            virtual_hosts: domains.iter().map(|(d, s)| (Arc::from(*d), Arc::from(*s))).collect(),
        })
    }

    #[test]
    fn a_request_of_another_servers_host_is_misdirected() {
        let of = |own: &[&str], elsewhere: &[&str]| {
            let elsewhere = elsewhere.iter().map(|host| Arc::from(*host)).collect();
            vec![Arc::new(Server { hosts_elsewhere: elsewhere, ..Arc::unwrap_or_clone(server("s", own, &[])) })]
        };
        for (own, elsewhere, host, wanted) in [
            ("a.example", "b.example", "b.example", true),
            ("a.example", "b.example", "a.example", false),
            ("a.example", "b.example", "c.example", false),
            ("*", "*.example", "b.example", true),
            ("*.example", "*", "b.example", false),
        ] {
            assert_eq!(is_misdirected(&of(&[own], &[elsewhere]), host), wanted, "{own} {elsewhere} {host}");
        }
        assert!(!is_misdirected(&of(&["a.example"], &[]), "b.example"));
    }

    #[test]
    fn mesh_server_names_are_parsed() {
        for (name, want) in [
            ("outbound_.80_._.order.default.svc.cluster.local", Some((80, "", "order.default.svc.cluster.local"))),
            ("outbound_.0_.v2_.order.shop", Some((0, "v2", "order.shop"))),
            ("outbound_.80_.v_1_.a", Some((80, "v_1", "a"))),
            ("outbound_.80_._.", None),
            ("outbound_.80_.a", None),
            ("outbound_.+80_._.a", None),
            ("outbound_.70000_._.a", None),
            ("outbound_._._.a", None),
            ("inbound_.80_._.a", None),
            ("order.default", None),
            ("", None),
        ] {
            let parsed = MeshServerName::parse(name).map(|inside| (inside.port, inside.subset, inside.host));
            assert_eq!(parsed, want, "{name}");
        }
    }

    #[test]
    fn the_cluster_of_a_port_precedes_that_of_any_port() {
        let cluster = |port, subset: &str, host: &str| {
            let one = crate::endpoint::tests::cluster(crate::policy::LoadBalancer::Random, None);
            Arc::new(Cluster { port, subset: subset.into(), host: host.into(), ..one })
        };
        let declared = [cluster(80, "", "a"), cluster(81, "", "a"), cluster(80, "v2", "a"), cluster(80, "", "b")];
        let logical = [cluster(0, "", "a"), cluster(0, "v2", "a")];
        let cased = [cluster(80, "Canary", "a")];
        for (clusters, name, want) in [
            (&declared[..], "outbound_.81_._.a", Some(1)),
            (&declared[..], "outbound_.80_.v2_.a", Some(2)),
            (&declared[..], "outbound_.81_.v2_.a", None),
            (&declared[..], "outbound_.82_._.a", None),
            (&declared[..], "outbound_.80_._.c", None),
            (&logical[..], "outbound_.80_.v2_.a", Some(1)),
            (&cased[..], "outbound_.80_.canary_.a", Some(0)),
            (&logical[..], "outbound_.0_._.a", Some(0)),
        ] {
            assert_eq!(MeshServerName::parse(name).unwrap().cluster(clusters), want, "{name}");
        }
    }

    #[test]
    fn sidecars_reach_all_mesh_servers_by_the_gateway_services_name() {
        let with = |name: &str, hosts: &[&str], certificate: ServerCertificate| {
            let tls = Some(TlsTermination { certificate, client_names: Vec::new() });
            Arc::new(Server { tls, protocol: ServerProtocol::Https, ..Arc::unwrap_or_clone(server(name, hosts, &[])) })
        };
        let files = ServerCertificate::Files(Termination {
            certificates: Vec::new(),
            authority: None,
            versions: Versions::Both,
            cipher_suites: Vec::new(),
        });
        let outside = with("outside", &["*.example.com"], files);
        let (one, two) = (
            with("one", &["a.example.org"], ServerCertificate::Mesh),
            with("two", &["b.example.org"], ServerCertificate::Mesh),
        );
        let all = [outside.clone(), one.clone(), two.clone()];
        let sidecars = "outbound_.443_._.egress.default.svc.cluster.local";
        assert!(by_server_name(&all, sidecars).is_none());
        assert_eq!(mesh_server(&all, sidecars), Some(&one));
        assert!(mesh_server(&all, "egress.default").is_none() && mesh_server(&all[..1], sidecars).is_none());
        assert_eq!(reachable_servers(&all, &one, sidecars), [one.clone(), two]);
        assert_eq!(reachable_servers(&all, &one, "a.example.org"), [one]);
        // Never a server with other certificates.
        assert_eq!(reachable_servers(&all, &outside, sidecars), [outside]);
    }

    #[test]
    fn the_most_specific_host_wins_in_any_order() {
        let one = server("one", &["*"], &[("*", "any"), ("*.example.com", "wild"), ("*-b.example.com", "part")]);
        let two = server("two", &["*.example.com"], &[("a.example.com", "a"), ("*.b.example.com", "b"), ("*", "late")]);
        let all = [one, two];
        for (host, want) in [
            ("a.example.com", "a"),
            ("c.example.com", "wild"),
            ("c-b.example.com", "part"),
            ("-b.example.com", "wild"),
            ("x.b.example.com", "b"),
            ("example.com", "any"),
            (".example.com", "any"),
            ("", "any"),
        ] {
            assert_eq!(service(&all, host).map(|(_, service)| &**service), Some(want), "{host}");
        }
        for (name, want) in [("a.example.com", "two"), ("example.org", "one"), ("", "one")] {
            assert_eq!(by_server_name(&all, name).map(|server| &*server.name), Some(want), "{name}");
        }
        assert!(by_server_name(&all[1..], "example.org").is_none() && by_server_name(&all[1..], "").is_none());
        assert!(service(&[], "a").is_none());
        let passing = |host: &str| {
            let server = server("pass", &[host], &[]);
            Arc::new(Server { auto_passthrough: true, ..Arc::unwrap_or_clone(server) })
        };
        let (order, local) = (passing("order.shop.svc.cluster.local"), passing("*.local"));
        for (server, name, want) in [
            (&order, "outbound_.80_.v2_.order.shop.svc.cluster.local", true),
            (&order, "outbound_.80_._.cart.shop.svc.cluster.local", false),
            (&local, "outbound_.80_._.cart.shop.svc.cluster.local", true),
            (&local, "example.org", false),
        ] {
            assert_eq!(by_server_name(std::slice::from_ref(server), name).is_some(), want, "{name}");
        }
    }
}
