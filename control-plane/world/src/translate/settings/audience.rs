//! The routes of a VirtualService that apply to a client, with those of their matches that do. Translations are made of
//! them, and explanations find the places of routes in documents by them.

use std::collections::BTreeMap;

use weft_proto::v1;

use crate::world::{Scope, has_all};
use weft_policy::is_unconditional;
use weft_policy::{Action, ConnectionMatch, Document, MESH, Object, Route, RouteMatch};

/// The clients of a translation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Audience<'a> {
    /// The client.
    pub(crate) client: &'a Scope,
    /// Namespace and name of the gateway that is used; `None`: the client's own sidecar.
    pub(crate) gateway: Option<(&'a str, &'a str)>,
}

/// A route that applies to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RouteEntry {
    /// Its list.
    pub(crate) list: List,
    /// Its place there.
    pub(crate) route: usize,
    /// The places of the matches that apply to the client; empty: the route has no matches.
    pub(crate) matches: Vec<usize>,
}

/// A list of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum List {
    Http,
    Tls,
    Tcp,
}

impl List {
    /// Its name in documents.
    pub(crate) fn name(self) -> &'static str {
        match self {
            List::Http => "http",
            List::Tls => "tls",
            List::Tcp => "tcp",
        }
    }

    /// Whether a port with this protocol uses routes of this list.
    pub(crate) fn is_of(self, protocol: v1::Protocol) -> bool {
        match self {
            List::Http => !matches!(protocol, v1::Protocol::Tcp | v1::Protocol::Tls),
            List::Tls => protocol != v1::Protocol::Tcp,
            List::Tcp => protocol != v1::Protocol::Tls,
        }
    }
}

impl Audience<'_> {
    /// The `http` routes of a port, up to one that takes every request. Port 0 stands for the undeclared ports of a
    /// host without declared ports, except those that matches name. Gateways compare the port of each request.
    pub(crate) fn http(&self, document: &Document, port: u32) -> Vec<RouteEntry> {
        let Object::VirtualService(service) = &document.object else { return Vec::new() };
        let mut entries = Vec::new();
        for (at, route) in service.http.iter().enumerate() {
            let port = Some(port).filter(|_| self.gateway.is_none());
            let Some(matches) = self.matches(document, route, port) else { continue };
            let takes_all = matches.is_empty() || matches.iter().any(|at| is_unconditional(&route.matches[*at].http));
            entries.push(RouteEntry { list: List::Http, route: at, matches });
            if takes_all && self.gateway.is_none() {
                // Later routes are unreachable; gateways move this one behind all others.
                break;
            }
        }
        entries
    }

    /// The places of a route's matches that apply to the client; `None`: the route does not apply, or its delegate does
    /// not exist. `port`: only matches for it; absent: matches for any port.
    pub(crate) fn matches(&self, document: &Document, route: &Route, port: Option<u32>) -> Option<Vec<usize>> {
        let of_port = |one: &RouteMatch| one.http.port == 0 || port.is_none_or(|port| port == one.http.port);
        let applies = |one: &&RouteMatch| of_port(one) && self.bar(document, one).is_none();
        match route.action {
            Action::Delegate(_) => None,
            _ => places(&route.matches, applies),
        }
    }

    /// The routes of connections to a port: by server name first, as Envoy prefers the most specific.
    pub(crate) fn connections(&self, document: &Document, port: u32, protocol: v1::Protocol) -> Vec<RouteEntry> {
        let Object::VirtualService(service) = &document.object else { return Vec::new() };
        let applies = |one: &&ConnectionMatch| {
            one.port.is_none_or(|wanted| wanted == port || port == 0) && self.is_for_connections(document, one)
        };
        let of_tls = service.tls.iter().enumerate().filter(|_| List::Tls.is_of(protocol));
        let of_bytes = service.tcp.iter().enumerate().filter(|_| List::Tcp.is_of(protocol));
        let all = of_tls.map(|found| (List::Tls, found)).chain(of_bytes.map(|found| (List::Tcp, found)));
        let entries = all.filter_map(|(list, (at, route))| {
            places(&route.matches, applies).map(|matches| RouteEntry { list, route: at, matches })
        });
        entries.collect()
    }

    /// Whether a match is for connections of this client, through this gateway or none.
    pub(crate) fn is_for_connections(&self, document: &Document, one: &ConnectionMatch) -> bool {
        self.bar_of_connections(document, one).is_none()
    }

    /// The reason why a match does not apply to requests of this client; `None`: it does.
    pub(crate) fn bar<'m>(&self, document: &Document, one: &'m RouteMatch) -> Option<Bar<'m>> {
        self.bar_of(document, &one.gateways, &one.source_namespace, &one.source_labels)
    }

    /// The reason why a match does not apply to connections of this client; `None`: it does.
    pub(crate) fn bar_of_connections<'m>(&self, document: &Document, one: &'m ConnectionMatch) -> Option<Bar<'m>> {
        self.bar_of(document, &one.gateways, &one.source_namespace, &one.source_labels)
    }

    fn bar_of<'m>(
        &self,
        document: &Document,
        gateways: &'m [String],
        source_namespace: &'m str,
        source_labels: &'m BTreeMap<String, String>,
    ) -> Option<Bar<'m>> {
        let gateway = |name: &String| match self.gateway {
            None => name == MESH,
            Some(gateway) => name != MESH && name.split_once('/').unwrap_or((&document.namespace, name)) == gateway,
        };
        if !gateways.is_empty() && !gateways.iter().any(gateway) {
            Some(Bar::Gateways(gateways))
        } else if !source_namespace.is_empty() && source_namespace != self.client.namespace {
            Some(Bar::Namespace(source_namespace))
        } else if !has_all(&self.client.labels, source_labels) {
            Some(Bar::Labels(source_labels))
        } else {
            None
        }
    }
}

/// The callers that a match applies to instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bar<'m> {
    /// Callers through these gateways.
    Gateways(&'m [String]),
    /// Workloads of this namespace.
    Namespace(&'m str),
    /// Workloads with these labels.
    Labels(&'m BTreeMap<String, String>),
}

/// The places of the matches that apply; `None`: no match applies.
fn places<T>(matches: &[T], applies: impl Fn(&&T) -> bool) -> Option<Vec<usize>> {
    let kept: Vec<usize> = matches.iter().enumerate().filter(|(_, one)| applies(one)).map(|(at, _)| at).collect();
    (!kept.is_empty() || matches.is_empty()).then_some(kept)
}
