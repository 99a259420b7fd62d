//! What a gateway does with what arrives at its ports: which server, which host.

use std::sync::Arc;

use crate::policy::Cluster;

/// One server of a Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `Gateway/<namespace>/<name>[/<server>]`
    pub name: Arc<str>,
    /// Where it listens.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Speaks,
    /// With [`Speaks::Https`].
    pub tls: Option<Termination>,
    /// Requests are sent to the same address under https.
    pub https_redirect: bool,
    /// Server names that it is for: exact, `*.suffix` or `*`.
    pub hosts: Vec<Arc<str>>,
    /// Domains and the services that hold their routes.
    pub virtual_hosts: Vec<(Arc<str>, Arc<str>)>,
    /// With [`Speaks::Tls`]: the server name says which exported service is meant, see [`Inside`].
    pub auto_passthrough: bool,
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

/// How TLS ends at a server. Files are PEM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Termination {
    /// Client certificates are required.
    pub mutual: bool,
    /// File of the certificate.
    pub certificate: Arc<str>,
    /// File of its key.
    pub key: Arc<str>,
    /// File of the callers' CA.
    pub ca: Arc<str>,
    /// Folder among the gateway's credentials, instead of files; empty: files.
    pub credential: Arc<str>,
    /// No TLS 1.2.
    pub tls13_only: bool,
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

/// How exactly a pattern covers a host: `None`: not at all; more is more exact.
fn exactness(pattern: &str, host: &str) -> Option<usize> {
    match pattern.strip_prefix('*') {
        None => (pattern == host).then_some(usize::MAX),
        Some(suffix) => (host.len() > suffix.len() && host.ends_with(suffix)).then_some(suffix.len()),
    }
    .or_else(|| (pattern == "*").then_some(0))
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
            .filter_map(move |(domain, service)| Some((exactness(domain, host)?, server, service)))
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
        server.hosts.iter().filter_map(|host| exactness(host, name)).max()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str, hosts: &[&str], domains: &[(&str, &str)]) -> Arc<Server> {
        Arc::new(Server {
            name: name.into(),
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
    fn the_most_exact_host_wins_whatever_the_order() {
        let one = server("one", &["*"], &[("*", "any"), ("*.example.com", "wild")]);
        let two = server("two", &["*.example.com"], &[("a.example.com", "a"), ("*.b.example.com", "b"), ("*", "late")]);
        let all = [one, two];
        for (host, want) in [
            ("a.example.com", "a"),
            ("c.example.com", "wild"),
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
