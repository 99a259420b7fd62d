//! Gateways: the servers of a workload, and the `Service` behind each of their hosts.

use std::{collections::BTreeMap, sync::Arc};

use weft_core::names::is_within;
use weft_proto::v1::{self, http_route};

use super::service::{Clusters, undefined};
use crate::attach::{self, listeners::ListenerState};
use crate::world::{GATEWAY, Host, Scope, World, gateway_host, has_all, listener_host};
use weft_policy::is_catch_all;
use weft_policy::{ConnectionMatch, ConnectionRoute, Document, Gateway, Object, ObjectRef, Server, VirtualService};

/// The label of the proxies that serve a Gateway of the Gateway API, with its name: Istio's convention.
pub(crate) const NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// The servers of the Gateways that select a workload with `labels`.
pub(crate) fn servers(world: &World, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<v1::GatewayServer> {
    let mut found = labels.get(NAME_LABEL).map(|name| of_listeners(world, namespace, name)).unwrap_or_default();
    for document in world.policies().gateways() {
        let Object::Gateway(gateway) = &document.object else { continue };
        if has_all(labels, &gateway.selector) {
            found.extend(gateway.servers.iter().map(|server| of_server(world, document, gateway, server)));
        }
    }
    found
}

/// The servers of the listeners of a Gateway of the Gateway API.
fn of_listeners(world: &World, namespace: &str, name: &str) -> Vec<v1::GatewayServer> {
    let Some(document) = world.policies().gateway_api().gateway(namespace, name) else { return Vec::new() };
    let all = attach::listeners::listeners(world, document);
    let server = |state: &ListenerState<'_>| {
        let listener = state.listener;
        let credential = |of: &ObjectRef| v1::GatewayCertificate { credential: of.name.clone(), ..Default::default() };
        let certificates = listener.certificates.iter().map(credential).collect();
        let protocol = state.protocol?;
        let tls = protocol == v1::GatewayProtocol::GatewayHttps;
        let domains = attach::listeners::domains(world, document, &all, state);
        let virtual_host = |domain: String| {
            let service = listener_host(namespace, name, &listener.name, &domain);
            v1::VirtualHost { domain, service }
        };
        Some(v1::GatewayServer {
            name: format!("{}/{}", document.reference(), listener.name),
            port: listener.port,
            protocol: protocol.into(),
            tls: tls.then(|| v1::GatewayTls { certificates, ..Default::default() }),
            hosts: vec![state.hostname().to_owned()],
            hosts_elsewhere: if tls { elsewhere(&all, state) } else { Vec::new() },
            virtual_hosts: domains.into_iter().map(virtual_host).collect(),
            ..v1::GatewayServer::default()
        })
    };
    all.iter().filter(|state| state.is_programmed()).filter_map(server).collect()
}

/// The hostnames of the other listeners of a listener's port.
fn elsewhere(all: &[ListenerState<'_>], state: &ListenerState<'_>) -> Vec<String> {
    let (port, name) = (state.listener.port, &state.listener.name);
    let others = all.iter().filter(|other| other.listener.port == port && other.listener.name != *name);
    others.filter(|other| other.is_programmed()).map(|other| other.hostname().to_owned()).collect()
}

/// The service behind a domain of a listener. Without a route its requests are answered 404.
fn of_listener(
    world: &World,
    client: &Scope,
    host: &Host,
    gateway: (&str, &str),
    listener: &str,
    domain: &str,
) -> v1::Service {
    let document = world.policies().gateway_api().gateway(gateway.0, gateway.1);
    let mut clusters = Clusters::new(world, client, Some(gateway));
    let streams = document.map(|document| attach::listeners::streams_of_listener(world, document, listener, domain));
    let stream = streams.iter().flatten().find_map(|document| Some((document, attach::stream(document)?)));
    if let Some((document, route)) = stream {
        let destinations = clusters.shares(document, &route.backends, 443);
        let forward = v1::Forward { destinations, ..v1::Forward::default() };
        let action = Some(http_route::Action::Forward(forward));
        let route = v1::HttpRoute { name: document.reference(), action, ..v1::HttpRoute::default() };
        return behind(host, clusters, vec![route], v1::Protocol::Tcp);
    }
    let matches = document.map(|document| attach::listeners::of_listener(world, document, listener, domain));
    let mut routes = clusters.attached(&matches.unwrap_or_default(), 80);
    if routes.is_empty() {
        let none = v1::DirectResponse { status: 404, body: Vec::new() };
        routes.push(v1::HttpRoute { action: Some(http_route::Action::DirectResponse(none)), ..Default::default() });
    }
    behind(host, clusters, routes, v1::Protocol::Http)
}

fn of_server(world: &World, document: &Document, _: &Gateway, server: &Server) -> v1::GatewayServer {
    let separator = if server.name.is_empty() { "" } else { "/" };
    let kind = match server.protocol {
        v1::GatewayProtocol::GatewayHttp | v1::GatewayProtocol::GatewayHttps => "http",
        v1::GatewayProtocol::GatewayTls => "tls",
        v1::GatewayProtocol::GatewayTcp => "tcp",
    };
    let prefix = gateway_host(&document.namespace, &document.name, kind, "");
    let mut virtual_hosts = Vec::new();
    for (host, services) in world.policies().gateway_hosts(&prefix) {
        let what = &host[prefix.len()..];
        let wanted = |(namespace, _): &&(Option<String>, String)| {
            let namespace = namespace.as_deref().map(|ns| if ns == "." { document.namespace.as_str() } else { ns });
            services.iter().any(|service| namespace.is_none_or(|namespace| namespace == service.namespace))
        };
        for (_, own) in server.hosts.iter().filter(wanted) {
            let domain = match kind {
                "tcp" if what == "0" || what == server.port.to_string() => Some("*"),
                "tcp" => None,
                // The more specific of the two.
                _ if is_within(what, own) => Some(what),
                _ if is_within(own, what) => Some(own.as_str()),
                _ => None,
            };
            virtual_hosts.extend(domain.map(|domain| v1::VirtualHost { domain: domain.into(), service: host.into() }));
        }
    }
    virtual_hosts.sort_by(|a, b| (&a.domain, &a.service).cmp(&(&b.domain, &b.service)));
    virtual_hosts.dedup();
    v1::GatewayServer {
        name: format!("{}{separator}{}", document.reference(), server.name),
        port: server.port,
        protocol: server.protocol.into(),
        tls: server.tls.clone(),
        https_redirect: server.https_redirect,
        hosts: server.hosts.iter().map(|(_, host)| host.clone()).collect(),
        virtual_hosts,
        auto_passthrough: server.auto_passthrough,
        bind: server.bind.map(|address| address.to_string()).unwrap_or_default(),
        hosts_elsewhere: Vec::new(),
    }
}

/// The service behind a host of a gateway: the routes of all its VirtualServices, oldest first, with routes that take
/// every request behind the others.
pub(super) fn service(world: &World, client: &Scope, host: &Host) -> Option<v1::Service> {
    let parts: Vec<&str> = host.name.strip_prefix(GATEWAY)?.splitn(4, ':').collect();
    let [namespace, name, kind, what] = parts.try_into().ok()?;
    if let Some(listener) = kind.strip_prefix("listener.") {
        return Some(of_listener(world, client, host, (namespace, name), listener, what));
    }
    let mut clusters = Clusters::new(world, client, Some((namespace, name)));
    let (mut routes, mut catch_all) = (Vec::new(), None);
    let seen = |document: &&Arc<Document>| document.reaches(&client.namespace);
    for document in world.policies().gateway_routes(&host.name).iter().filter(seen) {
        let Object::VirtualService(service) = &document.object else { continue };
        for route in all_routes(&mut clusters, document, service, kind, what) {
            if !is_catch_all(&route.matches) {
                routes.push(route);
            } else if catch_all.is_none() {
                catch_all = Some(route);
            }
        }
    }
    routes.extend(catch_all);
    let protocol = if kind == "http" { v1::Protocol::Http } else { v1::Protocol::Tcp };
    Some(behind(host, clusters, routes, protocol))
}

/// The service of a host with its routes.
fn behind(host: &Host, clusters: Clusters<'_>, routes: Vec<v1::HttpRoute>, protocol: v1::Protocol) -> v1::Service {
    let mut found = clusters.into_clusters();
    // No request uses it: one without a route is answered 404.
    let own = u32::try_from(found.len()).unwrap_or(u32::MAX);
    found.push(undefined(&host.name, 0, ""));
    let port = v1::Port { protocol: protocol.into(), cluster: own, routes, ..v1::Port::default() };
    v1::Service {
        host: host.name.clone(),
        namespace: host.namespace.clone(),
        ports: vec![port],
        clusters: found,
        ..v1::Service::default()
    }
}

fn all_routes(
    clusters: &mut Clusters<'_>,
    document: &Document,
    service: &VirtualService,
    kind: &str,
    what: &str,
) -> Vec<v1::HttpRoute> {
    let connections: Vec<&ConnectionRoute> = match kind {
        "http" => return service.http.iter().filter_map(|route| clusters.route(document, route, 80)).collect(),
        "tls" => {
            let applies = |one: &ConnectionMatch| one.server_names.iter().any(|name| name == what);
            let of = |route: &&ConnectionRoute| {
                route.matches.iter().any(|one| applies(one) && clusters.audience().is_for_connections(document, one))
            };
            service.tls.iter().filter(of).collect()
        }
        _ => {
            let port: u32 = what.parse().unwrap_or_default();
            let applies = |one: &ConnectionMatch| one.port.unwrap_or_default() == port;
            let of = |route: &&ConnectionRoute| {
                let any = || {
                    route
                        .matches
                        .iter()
                        .any(|one| applies(one) && clusters.audience().is_for_connections(document, one))
                };
                if route.matches.is_empty() { port == 0 } else { any() }
            };
            service.tcp.iter().filter(of).collect()
        }
    };
    let one = |route: &&ConnectionRoute| v1::HttpRoute {
        name: document.reference(),
        action: Some(http_route::Action::Forward(v1::Forward {
            destinations: clusters.weighted(&document.namespace, &route.destinations, 443),
            ..v1::Forward::default()
        })),
        ..v1::HttpRoute::default()
    };
    connections.iter().map(one).collect()
}
