//! Routes of the listeners of Gateways: which listeners a gateway serves, which routes may attach to each, and for which
//! hostnames.
//!
//! Listeners of one port are isolated: a request belongs to the one with the most specific hostname, and only routes that are
//! attached to it apply.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_core::names::is_within;
use weft_proto::v1;

use super::{Attached, Rejection, order};
use crate::world::World;
use weft_policy::{
    AllowedNamespaces, Document, GATEWAY_API, Kind, KubernetesGateway, Listener, Object, ParentRef, protocol_of,
};

/// A listener with its state.
#[derive(Debug)]
pub(crate) struct ListenerState<'a> {
    pub(crate) listener: &'a Listener,
    /// `None`: it is not supported.
    pub(crate) protocol: Option<v1::GatewayProtocol>,
    /// The kinds of routes that may attach.
    pub(crate) kinds: Vec<Kind>,
    /// Whether its protocol is supported.
    pub(crate) accepted: Result<(), Rejection>,
    /// Another listener claims its port or its hostname.
    pub(crate) conflicted: Option<Rejection>,
    /// Whether its certificates may be used and its kinds of routes are known.
    pub(crate) references: Result<(), Rejection>,
}

impl ListenerState<'_> {
    /// Whether a gateway serves it. A wrong kind of route leaves the others.
    pub(crate) fn is_programmed(&self) -> bool {
        let usable =
            self.references.as_ref().err().is_none_or(|wrong| wrong.reason == INVALID_KINDS && !self.kinds.is_empty());
        self.accepted.is_ok() && self.conflicted.is_none() && usable
    }

    /// Its hostname, `*` if it has none.
    pub(crate) fn hostname(&self) -> &str {
        if self.listener.hostname.is_empty() { "*" } else { &self.listener.hostname }
    }
}

const INVALID_KINDS: &str = "InvalidRouteKinds";

/// The content of a Gateway of a class that is served here.
pub(crate) fn gateway<'a>(world: &World, document: &'a Document) -> Option<&'a KubernetesGateway> {
    match &document.object {
        Object::KubernetesGateway(gateway) if world.policies().gateway_api().serves(&gateway.class) => Some(gateway),
        _ => None,
    }
}

/// The listeners of a Gateway; none: its class is not served here.
pub(crate) fn listeners<'a>(world: &World, document: &'a Document) -> Vec<ListenerState<'a>> {
    let all = gateway(world, document).map(|gateway| &gateway.listeners[..]).unwrap_or_default();
    let state = |listener: &'a Listener| {
        let protocol = protocol_of(listener);
        let supported = supported_kinds(protocol);
        let named =
            |kind: &Kind| listener.kinds.iter().any(|(group, name)| group == GATEWAY_API && name == kind.written());
        let kinds: Vec<Kind> =
            supported.iter().copied().filter(|kind| listener.kinds.is_empty() || named(kind)).collect();
        let accepted = accepted(listener, protocol);
        let references = certificates(world, document, listener).and_then(|()| known_kinds(listener, supported));
        ListenerState { listener, protocol, kinds, accepted, conflicted: conflict(all, listener), references }
    };
    all.iter().map(state).collect()
}

/// The kinds of routes for a protocol.
fn supported_kinds(protocol: Option<v1::GatewayProtocol>) -> &'static [Kind] {
    match protocol {
        Some(v1::GatewayProtocol::GatewayHttp | v1::GatewayProtocol::GatewayHttps) => {
            &[Kind::HTTPRoute, Kind::GRPCRoute]
        }
        Some(v1::GatewayProtocol::GatewayTls) => &[Kind::TLSRoute],
        Some(v1::GatewayProtocol::GatewayTcp) => &[Kind::TCPRoute],
        None => &[],
    }
}

fn accepted(listener: &Listener, protocol: Option<v1::GatewayProtocol>) -> Result<(), Rejection> {
    match protocol {
        None => {
            let text = format!("protocol `{}` is not supported: HTTP, HTTPS, TLS and TCP are", listener.protocol);
            Err(Rejection::new("UnsupportedProtocol", text))
        }
        Some(v1::GatewayProtocol::GatewayTls) if !listener.passthrough => {
            let text =
                "TLS that ends at the gateway has HTTP inside, with protocol HTTPS: otherwise write mode Passthrough";
            Err(Rejection::new("UnsupportedValue", text))
        }
        Some(_) => Ok(()),
    }
}

/// Listeners of one port have one protocol, or TLS with and without its end at the gateway, and different hostnames.
fn conflict(all: &[Listener], listener: &Listener) -> Option<Rejection> {
    let of_port = || all.iter().filter(|other| other.port == listener.port && other.name != listener.name);
    if let Some(other) = of_port().find(|other| layer(other) != layer(listener)) {
        let text = format!("listener `{}` has another protocol at port {}", other.name, other.port);
        return Some(Rejection::new("ProtocolConflict", text));
    }
    let other = of_port().find(|other| other.hostname == listener.hostname)?;
    let text = format!("listener `{}` has the same hostname at port {}", other.name, other.port);
    Some(Rejection::new("HostnameConflict", text))
}

/// The protocol by which the connections of a port begin.
fn layer(listener: &Listener) -> &str {
    if listener.protocol == "HTTPS" { "TLS" } else { &listener.protocol }
}

fn certificates(world: &World, document: &Document, listener: &Listener) -> Result<(), Rejection> {
    if listener.protocol != "HTTPS" {
        return Ok(());
    }
    let invalid = |text: String| Err(Rejection::new("InvalidCertificateRef", text));
    if listener.passthrough {
        return invalid("an HTTPS listener terminates TLS: mode Passthrough belongs to protocol TLS".to_owned());
    }
    if listener.certificates.is_empty() {
        return invalid("an HTTPS listener needs a `tls.certificateRefs`".to_owned());
    }
    for of in &listener.certificates {
        if !of.group.is_empty() || of.kind != "Secret" {
            return invalid(format!("a certificate is a Secret, not `{}` of group `{}`", of.kind, of.group));
        }
        if !world.policies().gateway_api().permits(GATEWAY_API, "Gateway", &document.namespace, of) {
            let text = format!(
                "no ReferenceGrant of namespace {} permits the reference to Secret `{}`",
                of.namespace, of.name
            );
            return Err(Rejection::new("RefNotPermitted", text));
        }
    }
    Ok(())
}

fn known_kinds(listener: &Listener, supported: &[Kind]) -> Result<(), Rejection> {
    let known =
        |(group, name): &&(String, String)| group == GATEWAY_API && supported.iter().any(|kind| kind.written() == name);
    match listener.kinds.iter().find(|kind| !known(kind)) {
        Some((group, name)) => {
            let text =
                format!("routes of kind `{name}` of group `{group}` cannot attach to protocol {}", listener.protocol);
            Err(Rejection::new(INVALID_KINDS, text))
        }
        None => Ok(()),
    }
}

/// The hostnames of a route at a listener, by those of its parentRefs that are for it; none: it is not attached.
pub(crate) fn hostnames(
    world: &World,
    gateway: &Document,
    state: &ListenerState<'_>,
    document: &Document,
) -> BTreeSet<String> {
    let of = |parent: &ParentRef| match is_of(parent, gateway) {
        true => attach_to(world, gateway, state, document, parent).unwrap_or_default(),
        false => Vec::new(),
    };
    document.object.parents().iter().flat_map(of).collect()
}

fn is_of(parent: &ParentRef, gateway: &Document) -> bool {
    let object = &parent.object;
    object.is_gateway() && object.namespace == gateway.namespace && object.name == gateway.name
}

/// The hostnames with which a route attaches to a listener.
fn attach_to(
    world: &World,
    gateway: &Document,
    state: &ListenerState<'_>,
    document: &Document,
    parent: &ParentRef,
) -> Result<Vec<String>, Rejection> {
    let listener = state.listener;
    let meant = (parent.section.is_empty() || parent.section == listener.name)
        && parent.port.is_none_or(|port| port == listener.port);
    if !meant {
        return Err(Rejection::new("NoMatchingParent", "the Gateway has no listener of this name and port"));
    }
    if !state.kinds.contains(&document.kind()) {
        let text = format!("no {} may attach to listener `{}`", document.kind().written(), listener.name);
        return Err(Rejection::new("NotAllowedByListeners", text));
    }
    let namespace = &document.namespace;
    let allowed = match &listener.namespaces {
        AllowedNamespaces::All => true,
        AllowedNamespaces::Same => *namespace == gateway.namespace,
        AllowedNamespaces::Selector(selector) => selector.selects(&labels(world, namespace)),
    };
    if !allowed {
        let text = format!("listener `{}` does not allow routes of namespace {namespace}", listener.name);
        return Err(Rejection::new("NotAllowedByListeners", text));
    }
    let hostnames = listener.hostnames(document.object.hosts());
    if hostnames.is_empty() {
        let text = format!("no hostname is one of listener `{}`, which has `{}`", listener.name, listener.hostname);
        return Err(Rejection::new("NoMatchingListenerHostname", text));
    }
    Ok(hostnames)
}

/// The labels of a namespace: those of its document, and the one with its name that Kubernetes adds.
fn labels(world: &World, namespace: &str) -> BTreeMap<String, String> {
    let mut labels = world.policies().gateway_api().labels(namespace).cloned().unwrap_or_default();
    labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
    labels
}

/// Whether a route is attached to a listener of its parent, a Gateway; `None`: the Gateway is not this mesh's.
pub(super) fn attach(world: &World, document: &Document, parent: &ParentRef) -> Option<Result<(), Rejection>> {
    let (namespace, name) = (&parent.object.namespace, &parent.object.name);
    let of = world.policies().gateway_api().gateway(namespace, name)?;
    gateway(world, of)?;
    // The reason of the listener that comes nearest.
    let order = ["NoMatchingParent", "NotAllowedByListeners", "NoMatchingListenerHostname"];
    let mut nearest = Rejection::new("NoMatchingParent", format!("Gateway `{namespace}/{name}` has no listener"));
    for state in listeners(world, of) {
        match attach_to(world, of, &state, document, parent) {
            Ok(_) => return Some(Ok(())),
            Err(rejection) => {
                let place = |one: &Rejection| order.iter().position(|reason| *reason == one.reason);
                if place(&rejection) >= place(&nearest) {
                    nearest = rejection;
                }
            }
        }
    }
    Some(Err(nearest))
}

/// The routes that are attached to a listener.
pub(crate) fn attached<'a>(world: &'a World, gateway: &Document, state: &ListenerState<'_>) -> Vec<&'a Arc<Document>> {
    let all = world.policies().gateway_api().of_gateway(&gateway.namespace, &gateway.name).iter();
    all.filter(|document| !hostnames(world, gateway, state, document).is_empty()).collect()
}

/// The domains of a listener: its own hostname and those of its routes, without those that belong to a listener of the same
/// port with a more specific hostname.
pub(crate) fn domains(
    world: &World,
    gateway: &Document,
    all: &[ListenerState<'_>],
    state: &ListenerState<'_>,
) -> BTreeSet<String> {
    let own = state.hostname();
    let of_routes =
        attached(world, gateway, state).into_iter().flat_map(|document| hostnames(world, gateway, state, document));
    let others: Vec<&str> = all
        .iter()
        .filter(|other| other.listener.port == state.listener.port && other.is_programmed())
        .map(ListenerState::hostname)
        .filter(|other| *other != own && (own == "*" || is_within(other, own)))
        .collect();
    let is_elsewhere = |domain: &String| others.iter().any(|other| is_within(domain, other));
    [own.to_owned()].into_iter().chain(of_routes).filter(|domain| !is_elsewhere(domain)).collect()
}

/// The matches that apply to requests for a domain of a listener, in order: those of all routes whose hostnames cover it.
pub(crate) fn of_listener<'a>(world: &'a World, gateway: &Document, listener: &str, domain: &str) -> Vec<Attached<'a>> {
    order::ordered(covering(world, gateway, listener, domain).into_iter())
}

/// The TLSRoutes or TCPRoutes that apply to connections for a domain of a listener, the first one to each.
pub(crate) fn streams_of_listener<'a>(
    world: &'a World,
    gateway: &Document,
    listener: &str,
    domain: &str,
) -> Vec<&'a Arc<Document>> {
    let mut all = covering(world, gateway, listener, domain);
    // The sort is stable, and the oldest comes first.
    all.sort_by_key(|(_, hostname)| Reverse(*hostname));
    all.into_iter().map(|(document, _)| document).collect()
}

/// The attached routes whose hostnames cover a domain, with the most specific one of each: whether it is exact, and its
/// characters.
fn covering<'a>(
    world: &'a World,
    gateway: &Document,
    listener: &str,
    domain: &str,
) -> Vec<(&'a Arc<Document>, (bool, usize))> {
    let states = listeners(world, gateway);
    let Some(state) = states.iter().find(|state| state.listener.name == listener && state.is_programmed()) else {
        return Vec::new();
    };
    let covering = |document: &'a Arc<Document>| {
        let own = hostnames(world, gateway, state, document);
        let covers = own.iter().filter(|own| *own == "*" || is_within(domain, own));
        let best = covers.map(|own| (!own.starts_with('*'), own.len())).max()?;
        Some((document, best))
    };
    attached(world, gateway, state).into_iter().filter_map(covering).collect()
}
