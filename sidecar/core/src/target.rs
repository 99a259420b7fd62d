//! Which service a request or a connection of an application means, and what of it is looked at to find out.
//!
//! A sidecar looks names up as it needs them, and each answer may take a while; `weftctl route` has all answers at hand. What
//! follows from the answers is decided here, for both.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::endpoint::{Endpoint, find};
use crate::names::{normalise, split_port};
use crate::policy::{Cluster, Port, Protocol, Service};
use crate::route::{Connection, Routed};

/// The name to look up of a request's authority; `None`: it is an address, or none, and the address that was dialed says
/// more.
pub fn name(authority: &str) -> Option<Cow<'_, str>> {
    let host = normalise(authority);
    (!host.is_empty() && host.parse::<IpAddr>().is_err()).then_some(host)
}

/// The port of the service that a request is for: that which was dialed (`None`: the proxy was addressed itself), else the
/// authority's, else HTTP's.
pub fn port(authority: &str, dialed: Option<SocketAddr>) -> u16 {
    dialed.map(|dialed| dialed.port()).or(split_port(authority).1).unwrap_or(80)
}

/// Whether the service that the authority names takes the request: one without the port leaves it to the address that was
/// dialed, if one was.
pub fn takes(service: &Service, port: u16, dialed: Option<SocketAddr>) -> bool {
    // What stands for a host outside the mesh takes none.
    service.port(port).is_some() || (dialed.is_none() && service.external_name.is_none())
}

/// What an address is to the service that it was looked up as.
#[derive(Debug, Clone)]
pub enum Address {
    /// One of its virtual IPs.
    Service,
    /// That of an endpoint of the cluster at this index: the application balances by itself, and its choice stands.
    Endpoint(usize, Arc<Endpoint>),
    /// Neither.
    Other,
}

/// What `dialed` is to `service`. `subsets`: endpoints are looked for in clusters of subsets too; `find` looks for the
/// address among the endpoints of the cluster at an index.
pub fn address(
    service: &Service,
    dialed: SocketAddr,
    subsets: bool,
    find: impl Fn(usize) -> Option<Arc<Endpoint>>,
) -> Address {
    if service.addresses.contains(&dialed.ip()) {
        return Address::Service;
    }
    let clusters = service.clusters.iter().enumerate().filter(|(_, cluster)| subsets || cluster.subset.is_empty());
    let mut found = clusters.filter_map(|(at, _)| Some(Address::Endpoint(at, find(at)?)));
    found.next().unwrap_or(Address::Other)
}

/// The endpoint of a headless service that the application chose: the one that it dialed, else the one that `authority` names
/// before one of the service's `names`. `None`: it chose none of them, so that they are balanced.
pub fn chosen<'a>(
    cluster: &Cluster,
    endpoints: &'a [Arc<Endpoint>],
    dialed: Option<SocketAddr>,
    authority: &str,
    names: &[Arc<str>],
) -> Option<&'a Arc<Endpoint>> {
    if !cluster.headless {
        return None;
    }
    let at = dialed.and_then(|dialed| find(cluster, endpoints, dialed));
    at.or_else(|| named(endpoints, &normalise(authority), names).next())
}

/// The endpoints of a headless service that `host` names one by one, as `pod-0.db.shop` does.
pub fn named<'a>(
    endpoints: &'a [Arc<Endpoint>],
    host: &str,
    names: &[Arc<str>],
) -> impl Iterator<Item = &'a Arc<Endpoint>> {
    let own = !names.iter().any(|name| **name == *host);
    let split = host.split_once('.').filter(|(_, rest)| own && names.iter().any(|name| **name == **rest));
    let label = split.map(|(label, _)| label);
    endpoints.iter().filter(move |endpoint| {
        label.is_some_and(|label| endpoint.config.hostnames.iter().any(|name| **name == *label))
    })
}

/// Whether a connection to an endpoint's own address at this port goes by the routes of the service, which is headless.
pub fn is_routed(service: &Service, port: u16) -> bool {
    service.port(port).is_some_and(|port| service.cluster(port.cluster).headless)
}

/// What a connection's first bytes are needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nothing: they are passed on as they come.
    Pass,
    /// The server name of their TLS.
    ServerName,
    /// Requests: whatever is not HTTP is passed on.
    Http,
    /// To find out what they are.
    Unknown,
}

/// What is looked at of a connection to `port` of the service that was dialed; `None`: the address is of no service.
pub fn look(service: Option<&Service>, port: u16) -> Look {
    match service.and_then(|service| service.port(port)).map_or(Protocol::Unknown, |port| port.protocol) {
        Protocol::Tls if wants_server_name(service, port) => Look::ServerName,
        Protocol::Tcp | Protocol::Tls => Look::Pass,
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => Look::Http,
        Protocol::Unknown => Look::Unknown,
    }
}

/// Whether the server name of TLS says more about where a connection goes: the address is of no service, or routes or the
/// endpoints themselves are named by it.
pub fn wants_server_name(service: Option<&Service>, port: u16) -> bool {
    let Some(service) = service else { return true };
    let is_named = |cluster: usize| service.cluster(cluster).dynamic_dns;
    let of_port = |port: &Port| {
        let routes = port.connection_routes.routes();
        let mut to = routes.iter().flat_map(|route| &route.forward.destinations).map(|to| to.cluster);
        port.connection_routes.wants_server_name() || is_named(port.cluster) || to.any(is_named)
    };
    service.port(port).is_some_and(of_port)
}

/// The cluster that a connection to a service's port goes to; `None`: no route is for its server name.
pub fn cluster(port: &Port, connection: &Connection<'_>, random: u64) -> Option<usize> {
    match port.connection_routes.find(connection) {
        Routed::To(route) => Some(route.forward.choose(random).cluster),
        Routed::Default => Some(port.cluster),
        Routed::Nowhere => None,
    }
}

/// Whether an address is one of those that the control plane gives to services: no host has it.
pub fn is_virtual(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(ip) if ip.octets()[..2] == [240, 240])
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::v1;

    fn service(protocol: v1::Protocol, dynamic_dns: bool) -> Service {
        let cluster =
            v1::Cluster { name: "c".into(), host: "*.a.test".into(), port: 443, dynamic_dns, ..Default::default() };
        let port = v1::Port { number: 443, protocol: protocol.into(), ..Default::default() };
        let message = v1::Service {
            host: "*.a.test".into(),
            addresses: vec!["240.240.0.1".into()],
            ports: vec![port],
            clusters: vec![cluster],
            ..Default::default()
        };
        crate::compile::service(&message).unwrap()
    }

    #[test]
    fn the_name_and_port_of_an_authority() {
        assert_eq!(name("Order.Test:80").as_deref(), Some("order.test"));
        assert_eq!((name("10.0.0.1:80"), name("[::1]"), name("")), (None, None, None));
        let dialed = Some(SocketAddr::from(([10, 0, 0, 1], 81)));
        assert_eq!((port("a:82", dialed), port("a:82", None), port("a", None)), (81, 82, 80));
        let service = service(v1::Protocol::Http, false);
        assert!(takes(&service, 443, dialed) && !takes(&service, 80, dialed) && takes(&service, 80, None));
    }

    #[test]
    fn what_is_looked_at() {
        use v1::Protocol as P;
        for (protocol, dynamic, want) in [
            (P::Tcp, false, Look::Pass),
            (P::Tls, false, Look::Pass),
            (P::Tls, true, Look::ServerName),
            (P::Http, false, Look::Http),
            (P::Unknown, false, Look::Unknown),
        ] {
            assert_eq!(look(Some(&service(protocol, dynamic)), 443), want, "{protocol:?} {dynamic}");
        }
        assert!(wants_server_name(None, 443) && !wants_server_name(Some(&service(P::Tls, false)), 443));
        assert!(wants_server_name(Some(&service(P::Unknown, true)), 443), "the endpoints are named by it");
        assert_eq!(look(None, 443), Look::Unknown);
        // A route may lead to what is named so.
        let mut message = v1::Service { host: "a.test".into(), ..Default::default() };
        message.clusters.push(v1::Cluster { name: "a".into(), host: "a.test".into(), ..Default::default() });
        message.clusters.push(v1::Cluster {
            name: "b".into(),
            host: "*.b.test".into(),
            dynamic_dns: true,
            ..Default::default()
        });
        let to = v1::WeightedCluster { cluster: 1, weight: 1, ..Default::default() };
        let routes = vec![v1::ConnectionRoute { destinations: vec![to], ..Default::default() }];
        let protocol = P::Tls.into();
        message.ports.push(v1::Port { number: 443, protocol, connection_routes: routes, ..Default::default() });
        assert_eq!(look(Some(&crate::compile::service(&message).unwrap()), 443), Look::ServerName);
    }

    #[test]
    fn what_an_address_is() {
        let service = service(v1::Protocol::Http, false);
        let none = |_| None;
        let at = |ip: [u8; 4]| SocketAddr::from((ip, 443));
        assert!(matches!(address(&service, at([240, 240, 0, 1]), true, none), Address::Service));
        assert!(matches!(address(&service, at([10, 0, 0, 1]), true, none), Address::Other));
        assert!(is_virtual([240, 240, 3, 4].into()) && !is_virtual([240, 241, 0, 1].into()));
    }

    #[test]
    fn the_endpoint_of_a_headless_service_is_chosen_by_address_then_by_name() {
        use crate::endpoint::for_cluster;
        use crate::endpoint::tests::{cluster, config};
        let names: [Arc<str>; 2] = ["db.shop.svc.cluster.local".into(), "db".into()];
        let with = |address: &str, name: &str| {
            let hostnames = vec![name.into()];
            Arc::new(crate::endpoint::EndpointConfig { hostnames, ..config(address, 1) })
        };
        let configs = [with("10.0.0.1:8080", "db-0"), with("10.0.0.2:8080", "db-1")];
        let headless = Cluster { headless: true, ..cluster(crate::policy::LoadBalancer::LeastRequest, None) };
        let endpoints = for_cluster(&headless, &configs, &[]);
        let chosen = |dialed: &str, authority: &str| {
            let dialed = (!dialed.is_empty()).then(|| dialed.parse().unwrap());
            chosen(&headless, &endpoints, dialed, authority, &names).map(|endpoint| endpoint.key.to_string())
        };
        let (first, second) = (Some("10.0.0.1:8080".to_owned()), Some("10.0.0.2:8080".to_owned()));
        assert_eq!(chosen("10.0.0.1:80", "db"), first, "the Service's port stands for the instance's");
        assert_eq!(chosen("10.0.0.2:8080", "db-0.db"), second, "the address comes first");
        assert_eq!(chosen("", "DB-1.db:80"), second);
        assert_eq!(chosen("10.0.0.9:80", "db-1.db.shop.svc.cluster.local"), second);
        for none in ["db", "db-2.db", "db-1.other", "db-1"] {
            assert_eq!(chosen("", none), None, "{none}");
        }
        assert_eq!(chosen("10.0.0.1:81", "db"), None);
        assert!(
            super::chosen(
                &cluster(crate::policy::LoadBalancer::LeastRequest, None),
                &endpoints,
                Some("10.0.0.1:8080".parse().unwrap()),
                "db",
                &names
            )
            .is_none()
        );
    }
}
