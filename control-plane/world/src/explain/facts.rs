//! The part of the world that a decision needs, copied at one moment, so that the world is not locked while the
//! decision is made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_core::names::normalise;
use weft_proto::v1;

use super::{Client, Query};
use crate::attach::{self, Attached};
use crate::translate::{self, Elsewhere, Meaning};
use crate::world::{GATEWAY, Host, Scope, World};
use weft_policy::{Action, Document, Kind, Object};

/// The resources that a sidecar would receive for a request.
#[derive(Debug)]
pub struct Facts {
    /// The client's properties for translations.
    pub(super) scope: Scope,
    /// Whether all registrations are known.
    pub(super) complete: bool,
    /// The address that is dialed; `None`: only the client's own DNS has it.
    pub(super) original: Option<SocketAddr>,
    /// The host of the address.
    pub(super) by_address: Option<Referent>,
    /// The host of the authority.
    pub(super) by_authority: Option<Referent>,
    /// The host of the server name of the client's own TLS.
    pub(super) by_server_name: Option<Referent>,
    /// The gateway, if the request arrives through one.
    pub(super) gateway: Option<GatewayFacts>,
    /// Whether requests to unknown hosts pass, and the Sidecar that decides it.
    pub(super) passes: Option<(bool, String)>,
    /// For an unknown name: similar known names.
    pub(super) hint: String,
}

/// A gateway, as its proxy receives it.
#[derive(Debug)]
pub(super) struct GatewayFacts {
    /// Namespace and name of the Gateway.
    pub(super) key: (String, String),
    /// Whether a Gateway of this name exists.
    pub(super) exists: bool,
    /// The servers of all Gateways that select its workloads.
    pub(super) servers: Vec<v1::GatewayServer>,
    /// The services behind its hosts, by name.
    pub(super) behind: BTreeMap<String, Referent>,
}

/// The host that a name or an address stands for.
#[derive(Debug)]
pub(super) struct Referent {
    /// The name, or the address with its port.
    pub(super) query: String,
    pub(super) by: Meaning,
    pub(super) host: Arc<HostFacts>,
}

/// The resources of a host for a client.
#[derive(Debug)]
pub(super) struct HostFacts {
    /// The documents and registrations that define it.
    pub(super) sources: Vec<String>,
    pub(super) service: v1::Service,
    /// By host of a cluster.
    pub(super) endpoints: BTreeMap<String, v1::Endpoints>,
    /// The mTLS modes of the endpoints' sidecars, by host of a cluster and the endpoint's own address and port.
    pub(super) accepts: BTreeMap<(String, String), String>,
    /// The document with its routes, delegates joined.
    pub(super) routes: Option<Arc<Document>>,
    /// Whether some of the routes are other documents'.
    pub(super) delegates: bool,
    /// By port, the entries of the compiled table, if they are rules of the Gateway API.
    pub(super) attached: BTreeMap<u32, Vec<AttachedRoute>>,
}

/// An entry of a compiled table that is a match of a rule of the Gateway API.
#[derive(Debug)]
pub(super) struct AttachedRoute {
    /// `HTTPRoute/<namespace>/<name>`
    pub(super) policy: String,
    /// The places of rule and match.
    pub(super) at: (usize, usize),
    /// The rule's name; empty: none.
    pub(super) name: String,
}

impl Facts {
    /// Gathers the facts for a query. `complete`: all registrations are known.
    pub fn gather(world: &World, client: &Client, query: &Query, complete: bool) -> Facts {
        let scope = world.scope(&client.namespace, &client.labels);
        let original = address(world, &scope, query);
        let authority = normalise(&query.authority);
        let is_name = |name: &str| !name.is_empty() && name.parse::<IpAddr>().is_err();
        // Mostly all of them stand for the same host.
        let mut facts_by_host: BTreeMap<String, Arc<HostFacts>> = BTreeMap::new();
        let mut lookup = |name: &str| {
            let (host, by) = translate::lookup(world, &scope, name)?;
            let host = match facts_by_host.get(&host.name) {
                Some(facts_by_host) => facts_by_host.clone(),
                None => facts_by_host
                    .entry(host.name.clone())
                    .or_insert(Arc::new(HostFacts::of(world, &scope, host, complete)?))
                    .clone(),
            };
            Some(Referent { query: name.to_owned(), by, host })
        };
        let gateway = client.gateway.as_ref().map(|key| GatewayFacts::of(world, key, query, &mut lookup));
        let server_name = query.server_name.as_deref().filter(|name| is_name(name));
        let outbound = world.policies().sidecar(&client.namespace, &client.labels);
        let passes = outbound.and_then(|(document, sidecar)| match sidecar.outbound {
            v1::OutboundPolicy::OutboundUnset => None,
            policy => Some((policy == v1::OutboundPolicy::AllowAny, document.reference())),
        });
        Facts {
            complete,
            original,
            by_address: original.and_then(|address| lookup(&address.to_string())),
            by_authority: Some(authority).filter(|name| is_name(name)).and_then(|name| lookup(&name)),
            by_server_name: server_name.and_then(&mut lookup),
            passes,
            gateway,
            hint: hint(world, &scope, &normalise(&query.authority)),
            scope,
        }
    }
}

impl GatewayFacts {
    /// `lookup` finds a host by its name, as translated for the gateway's proxy.
    fn of(
        world: &World,
        key: &(String, String),
        query: &Query,
        lookup: &mut impl FnMut(&str) -> Option<Referent>,
    ) -> GatewayFacts {
        let document = world.document(Kind::Gateway, &key.0, &key.1);
        let listening = world.document(Kind::KubernetesGateway, &key.0, &key.1);
        let labels = match document.map(|document| &document.object) {
            Some(Object::Gateway(gateway)) => gateway.selector.clone(),
            _ => listening.map(|_| (translate::NAME_LABEL.to_owned(), key.1.clone())).into_iter().collect(),
        };
        let document = document.or(listening);
        let servers = if document.is_some() { translate::servers(world, &key.0, &labels) } else { Vec::new() };
        let here = servers.iter().filter(|server| server.port == u32::from(query.port));
        let names: BTreeSet<&str> = here.flat_map(|server| &server.virtual_hosts).map(|one| &*one.service).collect();
        let behind = names.into_iter().filter_map(|name| Some((name.to_owned(), lookup(name)?))).collect();
        GatewayFacts { key: key.clone(), exists: document.is_some(), behind, servers }
    }
}

impl HostFacts {
    fn of(world: &World, scope: &Scope, host: &Host, complete: bool) -> Option<HostFacts> {
        let service = translate::service(world, scope, &host.name)?;
        // Subsets share their endpoints.
        let hosts: BTreeSet<&str> = service.clusters.iter().map(|cluster| cluster.host.as_str()).collect();
        let endpoints = hosts.into_iter().filter_map(|host| Some((host.to_owned(), world.definition(scope, host)?)));
        let endpoints = endpoints.map(|(name, host)| (name, translate::endpoints(world, host)));
        let endpoints: BTreeMap<String, v1::Endpoints> = endpoints.collect();
        let mut accepts = BTreeMap::new();
        for (host, all) in &endpoints {
            for endpoint in all.endpoints.iter().filter(|endpoint| !world.owner_of(&endpoint.address).is_empty()) {
                let labels = endpoint.labels.clone().into_iter().collect();
                for port in endpoint.ports.values().chain([&endpoint.port]) {
                    let accepted = translate::accepted(world, &endpoint.namespace, &labels, *port);
                    accepts.insert((host.clone(), format!("{}:{port}", endpoint.address)), accepted);
                }
            }
        }
        let routes = match world.policies().gateway_routes(&host.name) {
            [] => world.policies().routes(scope, &host.name).cloned(),
            // Routes of several documents have only their names here.
            [only] => Some(only.clone()),
            _ => None,
        };
        let delegates = routes.as_ref().is_some_and(|document| {
            let written = world.document(Kind::VirtualService, &document.namespace, &document.name);
            written.is_some_and(|written| match &written.object {
                Object::VirtualService(service) => {
                    service.http.iter().any(|route| matches!(route.action, Action::Delegate(_)))
                }
                _ => false,
            })
        });
        let attached = match routes {
            Some(_) => BTreeMap::new(),
            None => attached(world, scope, host, &service),
        };
        let sources = sources(world, host, complete);
        Some(HostFacts { sources, service, endpoints, accepts, routes, delegates, attached })
    }
}

/// The matches behind a domain of a listener, by the key of its host.
fn of_listener<'a>(world: &'a World, key: &str) -> Vec<Attached<'a>> {
    let parts: Vec<&str> = key.splitn(4, ':').collect();
    let [namespace, name, kind, domain] = parts[..] else { return Vec::new() };
    let document = world.policies().gateway_api().gateway(namespace, name);
    match document.zip(kind.strip_prefix("listener.")) {
        Some((document, listener)) => attach::listeners::of_listener(world, document, listener, domain),
        None => Vec::new(),
    }
}

/// The entries of the tables of a service's ports that are rules of the Gateway API.
fn attached(world: &World, scope: &Scope, host: &Host, service: &v1::Service) -> BTreeMap<u32, Vec<AttachedRoute>> {
    let of = |port: &v1::Port| {
        let matches = match host.name.strip_prefix(GATEWAY) {
            Some(key) => of_listener(world, key),
            None => attach::of_service(world, scope, host, port.number, &port.name),
        };
        let entry = |one: Attached<'_>| AttachedRoute {
            policy: one.document.reference(),
            at: one.at,
            name: one.rule.name.clone(),
        };
        (port.number, matches.into_iter().map(entry).collect::<Vec<_>>())
    };
    service.ports.iter().filter(|port| !port.routes.is_empty()).map(of).collect()
}

/// The address that a client dials for the URL's host: its own, or the one that the mesh's DNS answers.
fn address(world: &World, scope: &Scope, query: &Query) -> Option<SocketAddr> {
    let address = match query.host.parse::<IpAddr>() {
        Ok(address) => Some(address),
        Err(_) => {
            let (host, _) = translate::lookup(world, scope, &normalise(&query.host))?;
            world.addresses_of(host).first().copied()
        }
    };
    address.map(|address| SocketAddr::new(address, query.port))
}

/// The documents and registrations that define a host.
fn sources(world: &World, host: &Host, complete: bool) -> Vec<String> {
    let documents = host.service.iter().chain(&host.entry).map(|document| document.reference());
    let registered = if host.registered { world.members_of(&host.name).count() } else { 0 };
    let instances = (complete && registered > 0).then(|| match registered {
        1 => "1 registered instance".to_owned(),
        n => format!("{n} registered instances"),
    });
    let elsewhere = world.remotes_of(&host.name).map(|remote| format!("data centre {}", remote.datacenter));
    documents.chain(instances).chain(elsewhere).collect()
}

/// Similar hosts: one that the client does not see, or those of other namespaces.
fn hint(world: &World, scope: &Scope, name: &str) -> String {
    if translate::lookup(world, scope, name).is_some() {
        return String::new();
    }
    if let Some(host) = translate::hidden_host(world, scope, name) {
        return format!(
            "there is `{}`, which the caller does not see because of its `exportTo` or the caller's Sidecar",
            host.name
        );
    }
    Elsewhere::of(world).hint(name).map(|hosts| format!("there is {hosts}")).unwrap_or_default()
}
