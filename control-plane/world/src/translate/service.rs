//! `Service`: ports, routes, and a cluster for each of their destinations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_proto::v1::{self, http_route};

use super::{
    audience::{Audience, List},
    defaults::Defaults,
    gateway, names,
    rules::Rules,
};
use crate::attach;
use crate::world::ports::{self, PortView};
use crate::world::{GATEWAY, Host, Scope, World};
use weft_policy::MESH_SUFFIX;
use weft_policy::{
    Action, ConnectionMatch, Destination, Document, Forward, Object, Resolution, Route, VirtualService, canonical,
};

/// All that a client's request to `host` (canonical) needs except the addresses.
pub fn service(world: &World, client: &Scope, host: &str) -> Option<v1::Service> {
    if host.starts_with(GATEWAY) {
        return gateway::service(world, client, world.host(host)?);
    }
    let host = world.definition(client, host)?;
    if host.alias().is_some() {
        return Some(alias(world, client, host));
    }
    let mut clusters = Clusters::new(world, client, None);
    let routes = world.policies().routes(client, &host.name);
    let exported = world.is_exported(&host.name);
    let named = if routes.is_none() { attach::named_ports(world, host) } else { Vec::new() };
    let seen = |port: &PortView| port.number == 0 || world.sees(client, host, Some(port.number));
    let ports = ports::of(world, host).into_iter().flat_map(|port| with_matched(port, routes, &named));
    let mut routed_by_address = false;
    let ports = ports.filter(seen).map(|port| {
        let cluster = clusters.of(host, &port, "");
        let http = !matches!(port.protocol, v1::Protocol::Tcp | v1::Protocol::Tls);
        let declared_http = http && port.protocol != v1::Protocol::Unknown;
        let connection_routes = match routes {
            _ if declared_http => Vec::new(),
            Some(document) => clusters.connection_routes(document, &port),
            None => {
                let documents = attach::streams_of_service(world, client, host, port.number, &port.name);
                clusters.attached_streams(&documents, port.number)
            }
        };
        let routes = match routes {
            _ if !http => Vec::new(),
            Some(document) => clusters.routes(document, port.number),
            None => {
                let matches = attach::of_service(world, client, host, port.number, &port.name);
                routed_by_address |= !matches.is_empty();
                clusters.attached(&matches, port.number)
            }
        };
        if exported {
            clusters.all_subsets(host, &port);
        }
        let protocol = port.protocol.into();
        let retry = clusters.defaults.retry().filter(|_| http && routes.is_empty()).cloned();
        v1::Port { number: port.number, name: port.name, protocol, cluster, routes, connection_routes, retry }
    });
    let ports = ports.collect();
    Some(v1::Service {
        ports,
        routed_by_address,
        host: host.name.clone(),
        namespace: host.namespace.clone(),
        addresses: world.addresses_of(host).iter().map(ToString::to_string).collect(),
        names: names::of(world, client, host),
        clusters: clusters.clusters,
        external: ports::entry(host).is_some_and(|entry| entry.external),
        exported,
        external_name: String::new(),
    })
}

/// The service of an alias of a host outside the mesh: its address is that host's, and it has no other settings.
fn alias(world: &World, client: &Scope, host: &Host) -> v1::Service {
    v1::Service {
        host: host.name.clone(),
        namespace: host.namespace.clone(),
        names: names::of(world, client, host),
        external_name: host.alias().unwrap_or_default().to_owned(),
        ..v1::Service::default()
    }
}

/// A port, and for port 0 also the ports that matches of `routes` name, and `named`: each has routes of its own.
fn with_matched(port: PortView, routes: Option<&Arc<Document>>, named: &[u32]) -> Vec<PortView> {
    let mut numbers: BTreeSet<u32> = named.iter().copied().filter(|_| port.number == 0).collect();
    if port.number == 0
        && let Some(Object::VirtualService(service)) = routes.map(|document| &document.object)
    {
        let matches = service.http.iter().flat_map(|route| &route.matches);
        numbers.extend(matches.map(|one| one.http.port).filter(|number| *number != 0));
    }
    let views = numbers.into_iter().map(|number| PortView { number, ..port.clone() });
    let mut ports: Vec<PortView> = views.collect();
    ports.push(port);
    ports
}

/// The clusters of one `Service`, each once.
pub(super) struct Clusters<'a> {
    pub(super) world: &'a World,
    pub(super) defaults: Defaults<'a>,
    client: &'a Scope,
    /// Namespace and name of the gateway that it is for; `None`: for sidecars.
    gateway: Option<(&'a str, &'a str)>,
    clusters: Vec<v1::Cluster>,
    index: BTreeMap<String, u32>,
}

impl<'a> Clusters<'a> {
    pub(super) fn new(world: &'a World, client: &'a Scope, gateway: Option<(&'a str, &'a str)>) -> Self {
        let defaults = Defaults::of(world);
        Clusters { world, defaults, client, gateway, clusters: Vec::new(), index: BTreeMap::new() }
    }

    /// Its audience.
    pub(super) fn audience(&self) -> Audience<'a> {
        Audience { client: self.client, gateway: self.gateway }
    }

    /// The clusters in the order of the indexes that the routes use.
    pub(super) fn into_clusters(self) -> Vec<v1::Cluster> {
        self.clusters
    }

    fn routes(&mut self, document: &Document, request_port: u32) -> Vec<v1::HttpRoute> {
        let Object::VirtualService(VirtualService { http, .. }) = &document.object else { return Vec::new() };
        let kept = self.audience().http(document, request_port);
        kept.iter()
            .filter_map(|kept| self.route_with(document, &http[kept.route], &kept.matches, request_port))
            .collect()
    }

    /// A route for this client; `None`: it does not apply to the client.
    pub(super) fn route(&mut self, document: &Document, route: &Route, request_port: u32) -> Option<v1::HttpRoute> {
        let matches = self.audience().matches(document, route, None)?;
        self.route_with(document, route, &matches, request_port)
    }

    fn route_with(
        &mut self,
        document: &Document,
        route: &Route,
        matches: &[usize],
        request_port: u32,
    ) -> Option<v1::HttpRoute> {
        let matches = matches.iter().map(|at| route.matches[*at].http.clone()).collect();
        let action = match &route.action {
            Action::Forward(forward) => {
                http_route::Action::Forward(self.forward(&document.namespace, forward, request_port))
            }
            // A route with a delegate that does not exist.
            Action::Delegate(_) => return None,
            Action::Redirect(redirect) => http_route::Action::Redirect(redirect.clone()),
            Action::Respond(response) => http_route::Action::DirectResponse(response.clone()),
        };
        let separator = if route.name.is_empty() { "" } else { "/" };
        Some(v1::HttpRoute {
            name: format!("{}{separator}{}", document.reference(), route.name),
            matches,
            action: Some(action),
            headers: route.headers.clone(),
            cors: route.cors.clone(),
        })
    }

    fn forward(&mut self, namespace: &str, forward: &Forward, request_port: u32) -> v1::Forward {
        v1::Forward {
            destinations: self.weighted(namespace, &forward.destinations, request_port),
            timeout_ms: forward.timeout_ms,
            rewrite: forward.rewrite.clone(),
            retry: forward.retry.as_ref().or(self.defaults.retry()).cloned(),
            fault: forward.fault,
            mirrors: self.mirrors(namespace, forward, request_port),
            cluster_not_found_response_code: 0,
        }
    }

    fn mirrors(&mut self, namespace: &str, forward: &Forward, request_port: u32) -> Vec<v1::Mirror> {
        let used = forward.mirrors.iter().filter(|mirror| mirror.percent > 0.0);
        let mirrors = used.map(|mirror| v1::Mirror {
            cluster: self.destination(namespace, &mirror.destination, request_port),
            percent: mirror.percent,
        });
        mirrors.collect()
    }

    fn connection_routes(&mut self, document: &Document, port: &PortView) -> Vec<v1::ConnectionRoute> {
        let Object::VirtualService(service) = &document.object else { return Vec::new() };
        let kept = self.audience().connections(document, port.number, port.protocol);
        let routes = kept.iter().map(|kept| {
            let route = if kept.list == List::Tls { &service.tls[kept.route] } else { &service.tcp[kept.route] };
            v1::ConnectionRoute {
                name: document.reference(),
                matches: kept.matches.iter().map(|at| connection_match(&route.matches[*at])).collect(),
                destinations: self.weighted(&document.namespace, &route.destinations, port.number),
            }
        });
        routes.collect()
    }

    pub(super) fn weighted(
        &mut self,
        namespace: &str,
        destinations: &[Destination],
        request_port: u32,
    ) -> Vec<v1::WeightedCluster> {
        let alone = destinations.len() == 1;
        let weighted = destinations.iter().map(|destination| v1::WeightedCluster {
            cluster: self.destination(namespace, destination, request_port),
            // A single destination gets every request, whatever its weight.
            weight: if alone { destination.weight.max(1) } else { destination.weight },
            headers: destination.headers.clone(),
        });
        weighted.collect()
    }

    /// The cluster of a route's destination. Without a port it is the host's only one, else the request's. A wildcard
    /// stands for the ServiceEntry of exactly this host.
    pub(super) fn destination(&mut self, namespace: &str, destination: &Destination, request_port: u32) -> u32 {
        let name = canonical(&destination.host, namespace);
        let target = match name.starts_with('*') {
            true => self.world.definition(self.client, &name).filter(|host| host.entry.is_some()),
            false => self.world.definition_or_wildcard(self.client, &name),
        };
        // An alias of a host outside the mesh has no endpoints.
        let target = target.and_then(|host| self.world.behind(self.client, host));
        let Some(host) = target.filter(|host| host.reaches(&self.client.namespace) && host.alias().is_none()) else {
            return self.undefined(&name, destination.port.unwrap_or(request_port), &destination.subset);
        };
        let mut ports = ports::of(self.world, host);
        let wanted = destination.port.unwrap_or(request_port);
        let at = match &ports[..] {
            [only] if destination.port.is_none() || only.number == 0 => Some(0),
            _ => ports.iter().position(|port| port.number == wanted),
        };
        let Some(at) = at else { return self.undefined(&name, wanted, &destination.subset) };
        let mut port = ports.swap_remove(at);
        if port.number == 0
            && let Some(number) = destination.port
        {
            // A service without declared ports has any port.
            (port.number, port.policy_number) = (number, number);
        }
        self.of(host, &port, &destination.subset)
    }

    /// Other data centres use the subset names of the host's own namespace.
    fn all_subsets(&mut self, host: &Host, port: &PortView) {
        let subsets: Vec<String> =
            Rules::of(self.world, self.client, host).subsets().map(|subset| subset.name.clone()).collect();
        for subset in subsets {
            self.of(host, port, &subset);
        }
    }

    fn undefined(&mut self, host: &str, port: u32, subset: &str) -> u32 {
        self.add(undefined(host, port, subset))
    }

    fn of(&mut self, host: &Host, port: &PortView, subset: &str) -> u32 {
        let rules = Rules::of(self.world, self.client, host);
        let labels = match rules.subset(subset) {
            Some(clusters) => clusters.labels.clone(),
            None if subset.is_empty() => BTreeMap::new(),
            None => return self.undefined(&host.name, port.number, subset),
        };
        let decided = rules.decide(port, subset);
        // The address of a host outside the mesh that only a VirtualService names is the caller's DNS's.
        let documented = host.service.is_some() || host.entry.is_some();
        let unknown = !host.registered && !documented && !self.world.is_imported(&host.name);
        let resolution = ports::entry(host).map(|entry| entry.resolution);
        let original_destination = decided.passthrough()
            || resolution == Some(Resolution::None)
            || unknown && !host.name.ends_with(MESH_SUFFIX);
        let mut settings = decided.settings;
        // A DestinationRule's `tls` takes precedence.
        let backend_tls = attach::backend_tls(self.world, host, &port.name).filter(|_| settings.tls.is_none());
        let mut tls = settings.tls.unwrap_or_default();
        let refused = matches!(backend_tls, Some((_, Err(_))));
        if let Some((_, Ok(origination))) = backend_tls {
            (tls.mode, tls.origination) = (v1::Tls::Originate, Some(origination));
        }
        if let (Some(origination), Some(entry)) = (&mut tls.origination, ports::entry(host))
            && origination.subject_alt_names.is_empty()
        {
            origination.subject_alt_names.clone_from(&entry.subject_alt_names);
        }
        if let Some(budget) = settings.retry_budget {
            settings.connection_pool.get_or_insert_default().retry_budget = Some(budget);
        }
        self.add(v1::Cluster {
            name: cluster_name(port.number, subset, &host.name),
            host: host.name.clone(),
            port: port.number,
            subset: subset.to_owned(),
            labels: labels.into_iter().collect(),
            target_port: port.target,
            target_port_name: port.target_name.clone(),
            protocol: port.protocol.into(),
            load_balancer: settings.load_balancer,
            connection_pool: settings.connection_pool,
            outlier_detection: settings.outlier_detection,
            tls: tls.mode.into(),
            tls_origination: tls.origination,
            tunnel: settings.tunnel,
            proxy_protocol: settings.proxy_protocol.unwrap_or_default().into(),
            policy: decided.policy,
            undefined: unknown && !original_destination || refused,
            original_destination,
            dynamic_dns: resolution == Some(Resolution::DynamicDns) && !original_destination,
            // Callers of a gateway dial no endpoint directly.
            headless: host.is_headless() && self.gateway.is_none() && !original_destination,
        })
    }

    pub(super) fn add(&mut self, cluster: v1::Cluster) -> u32 {
        if let Some(index) = self.index.get(&cluster.name) {
            return *index;
        }
        let index = u32::try_from(self.clusters.len()).unwrap_or(u32::MAX);
        self.index.insert(cluster.name.clone(), index);
        self.clusters.push(cluster);
        index
    }
}

fn connection_match(one: &ConnectionMatch) -> v1::ConnectionMatch {
    v1::ConnectionMatch {
        server_names: one.server_names.clone(),
        destination_subnets: one.destinations.clone(),
        source_subnet: one.source.clone(),
    }
}

/// A cluster of an undefined host, port or subset.
pub(super) fn undefined(host: &str, port: u32, subset: &str) -> v1::Cluster {
    v1::Cluster {
        name: cluster_name(port, subset, host),
        host: host.to_owned(),
        port,
        subset: subset.to_owned(),
        undefined: true,
        ..v1::Cluster::default()
    }
}

fn cluster_name(port: u32, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}
