//! What a gateway does with what arrives at its ports: which server, which host.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::names::specificity;
use crate::policy::Cluster;

/// Cipher suites of TLS 1.2 that a gateway can be limited to: OpenSSL's names, as Envoy and Istio have them, and IANA's numbers. All
/// have forward secrecy and authenticated encryption. Those of TLS 1.3 are always on, as in Envoy.
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
    /// The address that it listens at; `None`: all.
    pub bind: Option<IpAddr>,
    /// Where it listens.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Speaks,
    /// With [`Speaks::Https`].
    pub tls: Option<Ending>,
    /// Requests are sent to the same address under https.
    pub https_redirect: bool,
    /// Server names that it is for: exact, a wildcard or `*`.
    pub hosts: Vec<Arc<str>>,
    /// Domains and the services that hold their routes.
    pub virtual_hosts: Vec<(Arc<str>, Arc<str>)>,
    /// With [`Speaks::Tls`]: the server name says which exported service is meant, see [`Inside`].
    pub auto_passthrough: bool,
}

impl Server {
    /// Where it listens; all addresses are IPv6's unspecified one, which takes IPv4 too.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.bind.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), self.port)
    }

    /// Its TLS is the mesh's own.
    pub fn is_of_mesh(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.shown == Shown::Mesh)
    }
}

/// What is spoken to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1 and 2.
    Http,
    /// The same in TLS that ends here.
    Https,
    /// TLS that is passed through.
    Tls,
    /// Bytes.
    Tcp,
}

/// How TLS ends at a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// What the server shows.
    pub shown: Shown,
    /// A caller's certificate has to have one of these names, as a URI or a host; empty: any will do.
    pub callers: Vec<String>,
}

/// By which certificates TLS ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// The mesh's own, on both sides (ISTIO_MUTUAL).
    Mesh,
    /// Files of the gateway.
    Files(Termination),
}

/// How TLS ends by the gateway's own files, which are PEM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Termination {
    /// At least one; the client's abilities decide between several.
    pub certificates: Vec<Certificate>,
    /// Client certificates are required, and proved by this.
    pub authority: Option<Authority>,
    /// Which versions of TLS.
    pub versions: Versions,
    /// Of [`CIPHER_SUITES`], by number, the preferred first; empty: all.
    pub cipher_suites: Vec<u16>,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Certificate {
    /// Their files.
    Files {
        /// Of the chain, the server's own certificate first.
        certificate: Arc<str>,
        /// Of the key.
        key: Arc<str>,
    },
    /// A folder among the gateway's credentials.
    Credential(Arc<str>),
}

/// Where the CA of callers is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// Files.
    Files {
        /// Of the CA.
        ca: Arc<str>,
        /// Of what it revoked; `None`: nothing.
        crl: Option<Arc<str>>,
    },
    /// A folder among the gateway's credentials.
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

/// What a server name of the mesh's own TLS says, `outbound_.<port>_.<subset>_.<host>`, as Istio writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inside<'a> {
    /// The service's port; 0: it has none declared.
    pub port: u16,
    /// Empty: all of the service.
    pub subset: &'a str,
    /// Canonical name.
    pub host: &'a str,
}

impl<'a> Inside<'a> {
    /// Reads a server name in lower case.
    pub fn parse(server_name: &'a str) -> Option<Inside<'a>> {
        let (port, rest) = server_name.strip_prefix("outbound_.")?.split_once("_.")?;
        let (subset, host) = rest.split_once("_.")?;
        // `parse` would take a sign.
        let port = port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().ok()).flatten()?;
        (!host.is_empty()).then_some(Inside { port, subset, host })
    }

    /// Which of a service's clusters is meant: that of the port, else that of the logical port, which stands for any. A
    /// subset is found whatever its case: server names have none (RFC 6066, 3).
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

/// The service that holds the routes of `host` (lower case, without port), of all the servers of a port: the exact domain,
/// else the longest `*.suffix`, else `*` (as Envoy searches virtual hosts). Of equals the first.
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

/// The server for a TLS server name, of all those of a port; `""`: the client named none, which only `*` takes. The hosts
/// of AUTO_PASSTHROUGH are those of services, inside the name, as in Istio.
pub fn by_server_name<'a>(servers: &'a [Arc<Server>], name: &str) -> Option<&'a Arc<Server>> {
    let inside = Inside::parse(name).map_or(name, |inside| inside.host);
    let of = |server: &&Arc<Server>| {
        let name = if server.auto_passthrough { inside } else { name };
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

/// The servers whose hosts a connection may ask for, once its TLS has ended at `server`: this one, and for the mesh's own TLS
/// from a sidecar all of the port that end that. Its server name is that of the gateway's service, not of a host behind it.
pub fn entered(servers: &[Arc<Server>], server: &Arc<Server>, name: &str) -> Vec<Arc<Server>> {
    if !server.is_of_mesh() || Inside::parse(name).is_none() {
        return vec![server.clone()];
    }
    servers.iter().filter(|server| server.is_of_mesh()).cloned().collect()
}

/// The server at which the TLS of a sidecar ends whose server name no server is for, see [`entered`].
pub fn of_mesh<'a>(servers: &'a [Arc<Server>], name: &str) -> Option<&'a Arc<Server>> {
    Inside::parse(name).and_then(|_| servers.iter().find(|server| server.is_of_mesh()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str, hosts: &[&str], domains: &[(&str, &str)]) -> Arc<Server> {
        Arc::new(Server {
            name: name.into(),
            bind: None,
            port: 443,
            protocol: Speaks::Tls,
            tls: None,
            https_redirect: false,
            hosts: hosts.iter().map(|host| Arc::from(*host)).collect(),
            auto_passthrough: false,
            virtual_hosts: domains.iter().map(|(d, s)| (Arc::from(*d), Arc::from(*s))).collect(),
        })
    }

    #[test]
    fn server_names_of_the_mesh() {
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
            let parsed = Inside::parse(name).map(|inside| (inside.port, inside.subset, inside.host));
            assert_eq!(parsed, want, "{name}");
        }
    }

    #[test]
    fn the_cluster_of_a_port_is_before_that_of_any() {
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
            assert_eq!(Inside::parse(name).unwrap().cluster(clusters), want, "{name}");
        }
    }

    #[test]
    fn sidecars_reach_all_servers_of_the_mesh_by_the_name_of_the_gateways_service() {
        let with = |name: &str, hosts: &[&str], shown: Shown| {
            let tls = Some(Ending { shown, callers: Vec::new() });
            Arc::new(Server { tls, protocol: Speaks::Https, ..Arc::unwrap_or_clone(server(name, hosts, &[])) })
        };
        let files = Shown::Files(Termination {
            certificates: Vec::new(),
            authority: None,
            versions: Versions::Both,
            cipher_suites: Vec::new(),
        });
        let outside = with("outside", &["*.example.com"], files);
        let (one, two) = (with("one", &["a.example.org"], Shown::Mesh), with("two", &["b.example.org"], Shown::Mesh));
        let all = [outside.clone(), one.clone(), two.clone()];
        let sidecars = "outbound_.443_._.egress.default.svc.cluster.local";
        assert!(by_server_name(&all, sidecars).is_none());
        assert_eq!(of_mesh(&all, sidecars), Some(&one));
        assert!(of_mesh(&all, "egress.default").is_none() && of_mesh(&all[..1], sidecars).is_none());
        assert_eq!(entered(&all, &one, sidecars), [one.clone(), two]);
        assert_eq!(entered(&all, &one, "a.example.org"), [one]);
        // Never one whose TLS ends by other certificates.
        assert_eq!(entered(&all, &outside, sidecars), [outside]);
    }

    #[test]
    fn the_most_exact_host_wins_whatever_the_order() {
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
