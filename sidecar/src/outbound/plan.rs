//! Phases 1 and 2: which service a request means, and which route and cluster of it.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use rand::Rng;
use weft_core::endpoint::{Endpoint, find};
use weft_core::filter::{self, Effect, End};
use weft_core::gateway;
use weft_core::hash::{HashOutcome, request_hash};
use weft_core::headers::HeaderOps;
use weft_core::http1;
use weft_core::names;
use weft_core::reply::Reason;
use weft_core::request::RequestView;
use weft_core::route::{Action, Destination, DirectResponse, Forward, Redirect, Route};
use weft_core::target::{self, is_virtual};

use super::{Downstream, Entrance};
use crate::control::directory::{Lookup, ServiceView};
use crate::http::body::ResponseBody;
use crate::http::{Asks, authority};
use crate::proxy::Proxy;
use crate::upstream::cluster::ClusterView;
use crate::upstream::endpoints;

/// Of a route whose rewrite makes no path.
const NO_REWRITTEN_PATH: &str = "the rewritten path is not a path, or is too long";

/// The decision about a request.
pub(super) enum Decision {
    /// It is sent.
    Send(Plan),
    /// Its route, or a filter of it, answers it.
    Answer(Arc<ServiceView>, Arc<Route>, Box<Response<ResponseBody>>, Option<Box<Effect>>),
    /// It is to come again by https.
    Secure(Box<Response<ResponseBody>>),
    /// It is refused, on behalf of a policy unless its name is empty.
    Refuse(Option<Arc<ServiceView>>, Reason, Arc<str>),
}

/// Where a request is sent, and how.
pub(super) struct Plan {
    pub(super) cluster: Arc<ClusterView>,
    /// Where there is no choice.
    pub(super) fixed: Option<Arc<Endpoint>>,
    pub(super) hash: HashOutcome,
    /// A forward, and the index of the destination that was drawn.
    route: Option<(Arc<Route>, usize)>,
    pub(super) rewritten: Option<Box<http1::Target>>,
    /// It goes to its original destination, not to the one that its authority names: a target in absolute-form stays one, since the
    /// destination may be a proxy that the application chose.
    pub(super) keeps_form: bool,
    /// The result of the route's filters.
    pub(super) effect: Option<Box<Effect>>,
    /// Clusters that get a copy of this request.
    pub(super) mirrors: Vec<Target>,
}

/// A cluster, and which endpoint of it a request's hash means.
pub(super) struct Target {
    pub(super) cluster: Arc<ClusterView>,
    pub(super) hash: Option<u64>,
}

impl Plan {
    fn fixed(cluster: Arc<ClusterView>, endpoint: Arc<Endpoint>) -> Plan {
        let hash = HashOutcome::default();
        let mirrors = Vec::new();
        let fixed = Some(endpoint);
        Plan { cluster, fixed, hash, route: None, rewritten: None, keeps_form: true, effect: None, mirrors }
    }

    /// The route's forward action; `None`: the application chose the endpoint itself.
    pub(super) fn forward(&self) -> Option<(&Forward, &Destination)> {
        let (route, at) = self.route.as_ref()?;
        match &*route.action {
            Action::Forward(forward) => Some((forward, &forward.destinations[*at])),
            _ => None,
        }
    }

    /// The policy that the route is of; empty: none is.
    pub(super) fn route_policy(&self) -> &str {
        self.route.as_ref().map_or("", |(route, _)| policy_of(route))
    }

    /// The route's name.
    pub(super) fn route_name(&self) -> Option<&Arc<str>> {
        self.route.as_ref().map(|(route, _)| &route.name)
    }

    /// Header changes, level after level.
    pub(super) fn header_operations(&self) -> &[HeaderOps] {
        self.forward().map(|(_, destination)| &destination.headers[..]).unwrap_or_default()
    }
}

/// Where a request goes.
enum Place {
    /// To a service, by its routes: one that the authority names (`true`), or the address that was dialed.
    Service(Arc<ServiceView>, u16, bool),
    /// To this endpoint of a service, by the application's own choice.
    Pinned(Arc<ClusterView>, Arc<Endpoint>),
    /// To where it was dialed.
    Passthrough(SocketAddr),
    /// To the same address under https.
    Https,
    /// Nowhere.
    None(Reason),
}

/// Phases 1 and 2.
pub(super) async fn decide(down: &Downstream, parts: &Parts, view: &RequestView<'_>, asks: Asks) -> Decision {
    let place = place(down, parts).await;
    // The application may ask a proxy that it chose itself for a tunnel; the mesh's services are not proxies, unless CONNECT is
    // allowed (Envoy's `upgrade_type: CONNECT`).
    let chosen = matches!(place, Place::Passthrough(_)) && down.original.is_some();
    if asks == Asks::Connect && !chosen && !down.proxy.settings.allows_connect() {
        return Decision::Refuse(None, Reason::ConnectRefused, Arc::default());
    }
    match place {
        Place::None(reason) => Decision::Refuse(None, reason, Arc::default()),
        Place::Https => Decision::Secure(Box::new(secure(view))),
        Place::Passthrough(to) => {
            // Addressed as an HTTP proxy, each request may go elsewhere: no connection is kept for the next one.
            if down.original.is_none() {
                let plan = Plan::fixed(Arc::new(ClusterView::passthrough(1)), endpoints::passthrough(to));
                return Decision::Send(Plan { keeps_form: false, ..plan });
            }
            let (cluster, endpoint) = down.passthrough.unknown(to);
            Decision::Send(Plan::fixed(cluster, endpoint))
        }
        Place::Pinned(cluster, endpoint) => Decision::Send(Plan::fixed(cluster, endpoint)),
        Place::Service(service, port, by_name) => by_route(down, view, service, port, by_name),
    }
}

/// Phase 1.
async fn place(down: &Downstream, parts: &Parts) -> Place {
    if let Some(entrance) = &down.gateway {
        return entered(down, entrance, parts).await;
    }
    let directory = &down.proxy.directory;
    let port = target::port(authority(parts), down.original);
    // An address as authority names no service; the original destination may.
    if let Some(host) = target::name(authority(parts))
        && let Lookup::Service(view) = directory.lookup(&host).await
        && target::accepts(&view.service, port, down.original)
    {
        if let Some(original) = down.original.filter(|original| target::is_dialed_elsewhere(&view.service, *original))
            && let Lookup::Service(dialed) = directory.lookup(&original.to_string()).await
            && target::prefers_dialed(&view.service, &dialed.service, original)
        {
            return Place::Service(dialed, original.port(), false);
        }
        return Place::Service(view, port, true);
    }
    let Some(original) = down.original.or_else(|| authority(parts).parse().ok()) else {
        return Place::None(Reason::UnknownHost);
    };
    by_original_destination(down, original).await
}

/// The destination of a request at a gateway, by its authority.
async fn entered(down: &Downstream, entrance: &Entrance, parts: &Parts) -> Place {
    let host = names::normalise(authority(parts));
    if gateway::is_misdirected(&entrance.servers, &host) {
        return Place::None(Reason::Misdirected);
    }
    let Some((server, service)) = gateway::service(&entrance.servers, &host) else {
        let redirect = entrance.servers.iter().any(|server| server.https_redirect);
        return if redirect { Place::Https } else { Place::None(Reason::NoRoute) };
    };
    if server.https_redirect {
        return Place::Https;
    }
    match down.proxy.directory.lookup(service).await {
        Lookup::Service(view) => Place::Service(view, 0, true),
        _ => Place::None(Reason::NoRoute),
    }
}

/// The destination of a request by the connection's original destination.
async fn by_original_destination(down: &Downstream, original: SocketAddr) -> Place {
    if let Lookup::Service(view) = down.proxy.directory.lookup(&original.to_string()).await {
        if view.service.addresses.contains(&original.ip()) {
            return Place::Service(view, original.port(), down.original.is_none());
        }
        // An endpoint's own address: the application balances by itself, and its choice stands.
        let find = |at: usize| find(&view.clusters[at].config, &view.clusters[at].endpoints, original).cloned();
        if let target::Address::Endpoint(at, endpoint) = target::address(&view.service, original, false, find) {
            return Place::Pinned(view.clusters[at].clone(), endpoint);
        }
    }
    if may_pass(&down.proxy, original) { Place::Passthrough(original) } else { Place::None(Reason::UnknownHost) }
}

/// Whether an unknown destination is dialed as addressed. A virtual IP belongs to no machine.
pub fn may_pass(proxy: &Proxy, original: SocketAddr) -> bool {
    !is_virtual(original.ip()) && proxy.passes_unknown()
}

/// Phase 2.
fn by_route(
    down: &Downstream,
    view: &RequestView<'_>,
    service: Arc<ServiceView>,
    port: u16,
    by_name: bool,
) -> Decision {
    let Some(route) = service.service.port(port).and_then(|port| port.routes.find(view)).cloned() else {
        return Decision::Refuse(Some(service), Reason::NoRoute, Arc::default());
    };
    let effect = filter::apply(&route.filters, view, rand::random);
    let response = match (&*route.action, effect.as_deref().and_then(|effect| effect.end.as_ref())) {
        (_, Some(End::Respond(headers))) => filter_response(headers.clone()),
        // Refused where its cluster is known, for log and metrics.
        (Action::Forward(forward), _) => {
            return match forwarded(down, view, &service, &route, forward) {
                Ok(plan) => Decision::Send(Plan { keeps_form: !by_name, effect, ..plan }),
                Err((reason, policy)) => Decision::Refuse(Some(service), reason, policy),
            };
        }
        (_, Some(End::Refuse(reason))) => {
            return Decision::Refuse(Some(service), reason.clone(), policy_of(&route).into());
        }
        (Action::Redirect(redirect), None) => redirected(down, view, &route, redirect),
        (Action::DirectResponse(direct), None) => direct_response(direct),
    };
    Decision::Answer(service, route, Box::new(response), effect)
}

/// The policy that a route is of; empty: none is.
fn policy_of(route: &Route) -> &str {
    if route.name.contains('/') { &route.name } else { "" }
}

/// The response of a filter.
fn filter_response(headers: HeaderMap) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.headers_mut() = headers;
    response
}

/// The plan of a request whose route forwards it.
///
/// # Errors
/// The reason of a refusal, and the policy whose rule it is.
fn forwarded(
    down: &Downstream,
    view: &RequestView<'_>,
    service: &ServiceView,
    route: &Arc<Route>,
    forward: &Forward,
) -> Result<Plan, (Reason, Arc<str>)> {
    let at = drawn(forward);
    let cluster = service.clusters[forward.destinations[at].cluster].clone();
    let hash = request_hash(&forward.hash, view);
    let rewritten = route.rewritten_path(forward, view).map(|path| http1::Target::parse(path.into()).map(Box::new));
    let rewritten = rewritten
        .transpose()
        .map_err(|_| (Reason::BadRequest { detail: NO_REWRITTEN_PATH }, policy_of(route).into()))?;
    let fixed = fixed(down, view, service, &cluster, &forward.destinations[at])
        .map_err(|reason| (reason, cluster.config.policy.clone()))?;
    let mirrors = mirrors(forward, service, view);
    let route = Some((route.clone(), at));
    Ok(Plan { cluster, fixed, hash, route, rewritten, keeps_form: false, effect: None, mirrors })
}

/// The response of a route that redirects.
fn redirected(down: &Downstream, view: &RequestView<'_>, route: &Route, redirect: &Redirect) -> Response<ResponseBody> {
    let entered = down.gateway.as_ref().map(|_| down.ends.destination);
    let port = entered.or(down.original).map_or(80, |o| o.port());
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = redirect.status;
    let scheme = down.gateway.as_ref().map_or("http", |entrance| entrance.scheme);
    if let Ok(location) = HeaderValue::from_str(&redirect.location(&route.matcher, view, scheme, port)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// The endpoint of a cluster that the request itself chose, by the address that it was dialed to or by its authority.
fn fixed(
    down: &Downstream,
    view: &RequestView<'_>,
    service: &ServiceView,
    cluster: &Arc<ClusterView>,
    destination: &Destination,
) -> Result<Option<Arc<Endpoint>>, Reason> {
    let config = &cluster.config;
    if config.dynamic_dns {
        // A route that gives the request another authority means that one.
        let rewritten = destination.authority.as_ref();
        return cluster.dynamic_endpoint(rewritten.map_or(view.authority, |authority| authority.as_str())).map(Some);
    }
    if config.headless {
        let names = &service.service.names;
        return Ok(target::headless_endpoint(config, &cluster.endpoints, down.original, view.authority, names).cloned());
    }
    let original = config.original_destination.then_some(down.original).flatten();
    Ok(original.map(|to| down.passthrough.endpoint_of(cluster, to)))
}

/// A gateway's `httpsRedirect`: as Envoy, 301, and the port is that of https.
fn secure(view: &RequestView<'_>) -> Response<ResponseBody> {
    let (host, _) = names::split_port(view.authority);
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&format!("https://{host}{}", view.path_and_query)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn direct_response(direct: &DirectResponse) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(direct.body.clone()));
    *response.status_mut() = direct.status;
    if !direct.body.is_empty() {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

/// The destination of a request, by weight.
fn drawn(forward: &Forward) -> usize {
    let chosen = forward.choose(rand::rng().next_u64());
    forward.destinations.iter().position(|d| std::ptr::eq(d, chosen)).unwrap_or(0)
}

/// Clusters that get a copy of this request, drawn by their shares.
fn mirrors(forward: &Forward, service: &ServiceView, view: &RequestView<'_>) -> Vec<Target> {
    let drawn = forward.mirrors.iter().filter(|mirror| mirror.share.hits(rand::random()));
    let targets = drawn.map(|mirror| {
        let cluster = service.clusters[mirror.cluster].clone();
        let hash = request_hash(cluster.config.load_balancer.hash_policies(), view).hash;
        Target { cluster, hash }
    });
    targets.collect()
}
