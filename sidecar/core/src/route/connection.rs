//! Routes of TCP and TLS connections: by the server name of the ClientHello, and by addresses.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::names::specificity;
use crate::subnet::Subnet;

use super::Forward;

/// The connection routes of a port, in order.
#[derive(Debug, Clone, Default)]
pub struct ConnectionRoutes {
    routes: Vec<ConnectionRoute>,
}

/// A connection route.
#[derive(Debug, Clone)]
pub struct ConnectionRoute {
    /// `VirtualService/<namespace>/<name>`
    pub name: Arc<str>,
    /// Matches, any of which is sufficient; empty: every connection.
    pub matches: Vec<ConnectionMatch>,
    /// Weighted destinations; the other fields do not apply.
    pub forward: Arc<Forward>,
}

/// Conditions on a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionMatch {
    /// Server names of TLS: exact, a wildcard or `*`; empty: any.
    pub server_names: Vec<String>,
    /// Original destinations; empty: any.
    pub destinations: Vec<Subnet>,
    /// Source addresses.
    pub source: Option<Subnet>,
}

/// A condition that a connection does not meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmetByConnection {
    /// Its server name is another, or missing.
    ServerName,
    /// Its original destination is another.
    Destination,
    /// Its source is another.
    Source,
}

/// The routed properties of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// In lower case; `None`: it is not TLS, or has no server name.
    pub server_name: Option<&'a str>,
    /// Address of the client.
    pub source: SocketAddr,
    /// Original destination.
    pub destination: SocketAddr,
}

/// Result of routing a connection.
#[derive(Debug)]
pub enum Routed<'a> {
    /// The connection takes this route.
    To(&'a ConnectionRoute),
    /// The port's own cluster.
    Default,
    /// There are routes by server name, and none matches.
    Nowhere,
}

impl ConnectionRoutes {
    /// Takes the routes in order of precedence.
    pub fn new(routes: Vec<ConnectionRoute>) -> Self {
        ConnectionRoutes { routes }
    }

    /// Whether there are no routes.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// All routes in order, for administration.
    pub fn routes(&self) -> &[ConnectionRoute] {
        &self.routes
    }

    /// Whether routing needs the server name.
    pub fn wants_server_name(&self) -> bool {
        self.routes.iter().flat_map(|route| &route.matches).any(|one| !one.server_names.is_empty())
    }

    /// The matching route with the most specific server name, as Envoy chooses a filter chain; of equals the first. As
    /// in Istio, a TCP connection without a matching route goes to the service itself, and a TLS connection only if no
    /// route matches by server name.
    pub fn find(&self, connection: &Connection<'_>) -> Routed<'_> {
        let mut best: Option<(Option<usize>, &ConnectionRoute)> = None;
        for route in &self.routes {
            let met = route.matches.iter().filter(|one| one.unmet(connection).is_none());
            let specific = met.map(|one| one.specificity(connection)).max();
            let Some(specific) = specific.or(route.matches.is_empty().then_some(None)) else { continue };
            if best.is_none_or(|(least, _)| specific > least) {
                best = Some((specific, route));
            }
        }
        match best {
            Some((_, route)) => Routed::To(route),
            None if connection.server_name.is_some() && self.wants_server_name() => Routed::Nowhere,
            None => Routed::Default,
        }
    }
}

impl ConnectionMatch {
    /// Specificity of the server name that matches the connection; `None`: none does.
    fn specificity(&self, connection: &Connection<'_>) -> Option<usize> {
        let name = connection.server_name?;
        self.server_names.iter().filter_map(|own| specificity(own, name)).max()
    }

    /// The first condition that does not hold; `None`: all hold.
    pub fn unmet(&self, connection: &Connection<'_>) -> Option<UnmetByConnection> {
        let by_server_name = || self.specificity(connection).is_some();
        let is_destination = || self.destinations.iter().any(|own| own.contains(connection.destination.ip()));
        if !self.server_names.is_empty() && !by_server_name() {
            Some(UnmetByConnection::ServerName)
        } else if !self.destinations.is_empty() && !is_destination() {
            Some(UnmetByConnection::Destination)
        } else if self.source.is_some_and(|own| !own.contains(connection.source.ip())) {
            Some(UnmetByConnection::Source)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::tests::forward;

    fn route(name: &str, matches: Vec<ConnectionMatch>) -> ConnectionRoute {
        ConnectionRoute { name: name.into(), matches, forward: Arc::new(forward(&[1])) }
    }

    fn by_server_name(names: &[&str]) -> ConnectionMatch {
        ConnectionMatch { server_names: names.iter().map(|name| (*name).to_owned()).collect(), ..Default::default() }
    }

    fn route_name(routes: &ConnectionRoutes, server_name: Option<&str>, destination: &str) -> String {
        let connection = Connection {
            server_name,
            source: "10.1.0.9:4000".parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
        match routes.find(&connection) {
            Routed::To(route) => route.name.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn connections_are_routed_by_server_name_and_address() {
        let subnet = |text| Subnet::parse(text).unwrap();
        let to = |text| ConnectionMatch { destinations: vec![subnet(text)], ..Default::default() };
        // `sourceSubnet` of `tcp.match`
        let from = |text| ConnectionMatch { source: Some(subnet(text)), ..Default::default() };
        let routes = ConnectionRoutes::new(vec![
            route("exact", vec![by_server_name(&["a.example.com"])]),
            route("suffix", vec![by_server_name(&["b.test", "*.example.com"])]),
            route("near", vec![from("10.2.0.0/16"), to("10.0.0.0/8")]),
            route("six", vec![to("2001:db8::/32")]),
        ]);
        for (name, destination, want) in [
            (Some("a.example.com"), "192.0.2.1:443", "exact"),
            (Some("c.example.com"), "192.0.2.1:443", "suffix"),
            (Some("example.com"), "192.0.2.1:443", "Nowhere"),
            (Some("example.com"), "10.7.0.1:443", "near"),
            (None, "10.7.0.1:443", "near"),
            (None, "11.7.0.1:443", "Default"),
            (None, "[2001:db8:1::1]:443", "six"),
            (None, "[2001:db9:1::1]:443", "Default"),
        ] {
            assert_eq!(route_name(&routes, name, destination), want, "{name:?} {destination}");
        }
        assert!(routes.wants_server_name());
        // In any order, including wildcards within a label.
        let names = ["*", "*.example.com", "*-b.example.com", "a-b.example.com"];
        for order in [names, [names[3], names[1], names[0], names[2]]] {
            let routes =
                ConnectionRoutes::new(order.iter().map(|name| route(name, vec![by_server_name(&[name])])).collect());
            for (name, want) in [
                ("a-b.example.com", "a-b.example.com"),
                ("c-b.example.com", "*-b.example.com"),
                ("-b.example.com", "*.example.com"),
                ("example.com", "*"),
            ] {
                assert_eq!(route_name(&routes, Some(name), "192.0.2.1:443"), want, "{name} {order:?}");
            }
        }
        let bytes = ConnectionRoutes::new(vec![route("all", vec![])]);
        assert!(!bytes.wants_server_name() && route_name(&bytes, Some("x"), "10.0.0.1:1") == "all");
        assert_eq!(route_name(&ConnectionRoutes::default(), Some("x"), "10.0.0.1:1"), "Default");
    }
}
