//! Service selection for a request or connection of an application, and the inspection that it requires.
//!
//! A sidecar looks names up on demand, and each answer may take a while; `weftctl route` has all answers at hand. The
//! decisions that depend on the answers are made here, for both.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::endpoint::{Endpoint, find};
use crate::names::{normalise, split_port};
use crate::policy::{Cluster, Protocol};
use crate::route::{Connection, Routed};
use crate::service::{Port, Service};

/// The name to look up for a request's authority; `None`: it is an address or invalid, so that the original destination
/// decides.
pub fn name(authority: &str) -> Option<Cow<'_, str>> {
    let host = normalise(authority);
    (!host.is_empty() && host.parse::<IpAddr>().is_err()).then_some(host)
}

/// The service port of a request: that of the original destination (`None`: the proxy itself was addressed), otherwise
/// the authority's, otherwise HTTP's default.
pub fn port(authority: &str, original: Option<SocketAddr>) -> u16 {
    original.map(|original| original.port()).or(split_port(authority).1).unwrap_or(80)
}

/// Whether the service named by the authority accepts the request: without the port, the original destination decides
/// instead, if there is one.
pub fn accepts(service: &Service, port: u16, original: Option<SocketAddr>) -> bool {
    // An alias of a host outside the mesh has no ports.
    service.port(port).is_some() || (original.is_none() && service.external_name.is_none())
}

/// Whether the service that was dialed may receive a request instead of `named`, the one that its authority names: it was
/// dialed to none of that service's addresses.
pub fn is_dialed_elsewhere(named: &Service, original: SocketAddr) -> bool {
    !named.addresses.is_empty() && !named.addresses.contains(&original.ip())
}

/// Whether the service that was dialed receives a request that names another one: routes of the Gateway API are for the
/// address, not for the host (MeshClusterIPMatching), and those of either service would be passed by otherwise.
pub fn prefers_dialed(named: &Service, dialed: &Service, original: SocketAddr) -> bool {
    is_dialed_elsewhere(named, original)
        && (named.routed_by_address || dialed.routed_by_address)
        && dialed.addresses.contains(&original.ip())
        && dialed.port(original.port()).is_some()
}

/// Role of an address in the service that it was looked up for.
#[derive(Debug, Clone)]
pub enum Address {
    /// One of its virtual IPs.
    Service,
    /// The address of an endpoint of the cluster at this index: the application balances itself, and its choice is
    /// respected.
    Endpoint(usize, Arc<Endpoint>),
    /// Neither of these.
    Other,
}

/// The role of `dialed` in `service`. `subsets`: include the clusters of subsets; `find` looks the address up among the
/// endpoints of the cluster at an index.
pub fn address(
    service: &Service,
    original: SocketAddr,
    subsets: bool,
    find: impl Fn(usize) -> Option<Arc<Endpoint>>,
) -> Address {
    if service.addresses.contains(&original.ip()) {
        return Address::Service;
    }
    let clusters = service.clusters.iter().enumerate().filter(|(_, cluster)| subsets || cluster.subset.is_empty());
    let mut matches = clusters.filter_map(|(at, _)| Some(Address::Endpoint(at, find(at)?)));
    matches.next().unwrap_or(Address::Other)
}

/// The endpoint of a headless service that the application chose: the original destination, otherwise the hostname in
/// `authority` in front of one of the service's `names`. `None`: it chose none, so that requests are balanced.
pub fn headless_endpoint<'a>(
    cluster: &Cluster,
    endpoints: &'a [Arc<Endpoint>],
    original: Option<SocketAddr>,
    authority: &str,
    names: &[Arc<str>],
) -> Option<&'a Arc<Endpoint>> {
    if !cluster.headless {
        return None;
    }
    let at = original.and_then(|original| find(cluster, endpoints, original));
    at.or_else(|| endpoints_by_hostname(endpoints, &normalise(authority), names).next())
}

/// The endpoints of a headless service with the hostname of `host`, such as `pod-0.db.shop`.
pub fn endpoints_by_hostname<'a>(
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

/// Whether a connection to an endpoint's own address at this port follows the routes of its headless service.
pub fn is_routed(service: &Service, port: u16) -> bool {
    service.port(port).is_some_and(|port| service.cluster(port.cluster).headless)
}

/// Inspection of a connection's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inspection {
    /// None: bytes are passed through.
    Pass,
    /// The server name of the ClientHello.
    ServerName,
    /// HTTP requests; other bytes are passed through.
    Http,
    /// Protocol detection.
    Unknown,
}

/// The inspection of a connection to `port` of the dialed service; `None`: the address belongs to no service.
pub fn inspection(service: Option<&Service>, port: u16) -> Inspection {
    match service.and_then(|service| service.port(port)).map_or(Protocol::Unknown, |port| port.protocol) {
        Protocol::Tls if wants_server_name(service, port) => Inspection::ServerName,
        Protocol::Tcp | Protocol::Tls => Inspection::Pass,
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => Inspection::Http,
        Protocol::Unknown => Inspection::Unknown,
    }
}

/// Whether the server name of TLS influences the destination: the address belongs to no service, or routes or the
/// endpoints themselves depend on the server name.
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

/// The cluster for a connection to a service's port; `None`: no route matches its server name.
pub fn cluster(port: &Port, connection: &Connection<'_>, random: u64) -> Option<usize> {
    match port.connection_routes.find(connection) {
        Routed::To(route) => Some(route.forward.choose(random).cluster),
        Routed::Default => Some(port.cluster),
        Routed::Nowhere => None,
    }
}

/// Whether an address is in the range from which the control plane assigns virtual IPs: no host has it.
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
    fn name_and_port_are_taken_from_the_authority() {
        assert_eq!(name("Order.Test:80").as_deref(), Some("order.test"));
        assert_eq!((name("10.0.0.1:80"), name("[::1]"), name("")), (None, None, None));
        let original = Some(SocketAddr::from(([10, 0, 0, 1], 81)));
        assert_eq!((port("a:82", original), port("a:82", None), port("a", None)), (81, 82, 80));
        let service = service(v1::Protocol::Http, false);
        assert!(accepts(&service, 443, original) && !accepts(&service, 80, original) && accepts(&service, 80, None));
    }

    #[test]
    fn inspection_depends_on_the_declared_protocol() {
        use v1::Protocol as P;
        for (protocol, dynamic, want) in [
            (P::Tcp, false, Inspection::Pass),
            (P::Tls, false, Inspection::Pass),
            (P::Tls, true, Inspection::ServerName),
            (P::Http, false, Inspection::Http),
            (P::Unknown, false, Inspection::Unknown),
        ] {
            assert_eq!(inspection(Some(&service(protocol, dynamic)), 443), want, "{protocol:?} {dynamic}");
        }
        assert!(wants_server_name(None, 443) && !wants_server_name(Some(&service(P::Tls, false)), 443));
        assert!(wants_server_name(Some(&service(P::Unknown, true)), 443), "it names the endpoints");
        assert_eq!(inspection(None, 443), Inspection::Unknown);
        // A route may lead to a dynamic DNS cluster.
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
        assert_eq!(inspection(Some(&crate::compile::service(&message).unwrap()), 443), Inspection::ServerName);
    }

    #[test]
    fn addresses_are_virtual_ips_endpoints_or_others() {
        let service = service(v1::Protocol::Http, false);
        let none = |_| None;
        let at = |ip: [u8; 4]| SocketAddr::from((ip, 443));
        assert!(matches!(address(&service, at([240, 240, 0, 1]), true, none), Address::Service));
        assert!(matches!(address(&service, at([10, 0, 0, 1]), true, none), Address::Other));
        assert!(is_virtual([240, 240, 3, 4].into()) && !is_virtual([240, 241, 0, 1].into()));
    }

    #[test]
    fn headless_endpoints_are_chosen_by_address_then_by_hostname() {
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
        let chosen = |original: &str, authority: &str| {
            let original = (!original.is_empty()).then(|| original.parse().unwrap());
            headless_endpoint(&headless, &endpoints, original, authority, &names)
                .map(|endpoint| endpoint.key.to_string())
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
            super::headless_endpoint(
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
