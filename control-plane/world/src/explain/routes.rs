//! The matching route of a VirtualService, and the reasons why those before it do not match. The compiled table of the
//! sidecar decides; its entries are found again in the document.

use std::sync::Arc;

use weft_core::policy::Protocol;
use weft_core::request::RequestView;
use weft_core::route::{Connection, Routed};
use weft_core::service::Port;

use super::facts::AttachedRoute;
use super::report::{Routes, SkippedRoute, TakenRoute};
use super::settings;
use crate::translate::{Audience, Bar, List, RouteEntry};
use weft_policy::{Action, Document, Object};

/// A route of the document, in the order of evaluation.
struct DocumentRoute<'d> {
    list: List,
    at: usize,
    name: &'d str,
    /// For each of its matches, the reason why it does not apply to the caller; `None`: it applies.
    bars: Vec<Option<String>>,
    /// Whether it has an action.
    leads_somewhere: bool,
}

/// Routes of requests; `None`: the document has none.
pub(super) fn http(
    document: &Document,
    audience: &Audience<'_>,
    port: &Port,
    view: &RequestView<'_>,
) -> Option<Routes> {
    let Object::VirtualService(service) = &document.object else { return None };
    if matches!(port.protocol, Protocol::Tcp | Protocol::Tls) {
        return None;
    }
    let number = u32::from(port.number);
    let bar = |one: &weft_policy::RouteMatch| {
        let other =
            Some(one.http.port).filter(|wanted| *wanted != 0 && *wanted != number && audience.gateway.is_none());
        let of_port = other.map(|wanted| format!("it is for port {wanted}"));
        of_port.or_else(|| audience.bar(document, one).map(in_words))
    };
    let document_routes = service.http.iter().enumerate().map(|(at, route)| DocumentRoute {
        list: List::Http,
        at,
        name: &route.name,
        bars: route.matches.iter().map(bar).collect(),
        leads_somewhere: !matches!(route.action, Action::Delegate(_)),
    });
    let table = port.routes.routes();
    let taken = port.routes.find(view).and_then(|found| table.iter().position(|route| Arc::ptr_eq(route, found)));
    let unmet = |entry: usize| table.get(entry)?.matcher.unmet(view).map(|unmet| unmet.in_words(view));
    let kept = audience.http(document, number);
    let takes_all = |kept: &RouteEntry| weft_policy::takes_all(&service.http[kept.route]);
    if audience.gateway.is_some() && kept.iter().rev().skip(1).any(takes_all) {
        // A gateway evaluates it last, so that the table has another order.
        return None;
    }
    report(document, document_routes.collect(), &kept, taken, &unmet)
}

/// Rules of the Gateway API, `entries` of the compiled table; `None`: it has none.
pub(super) fn attached(entries: &[AttachedRoute], port: &Port, view: &RequestView<'_>) -> Option<Routes> {
    let first = entries.first()?;
    let table = port.routes.routes();
    let taken = port.routes.find(view).and_then(|found| table.iter().position(|route| Arc::ptr_eq(route, found)));
    let place = |entry: &AttachedRoute| format!("rules[{}]", entry.at.0);
    let passed = entries.iter().zip(table).take(taken.unwrap_or(entries.len()));
    let passed_over = passed.map(|(entry, route)| SkippedRoute {
        route: format!("{} {}", entry.policy, place(entry)),
        name: entry.name.clone(),
        because: route.matcher.unmet(view).map(|unmet| unmet.in_words(view)).into_iter().collect(),
    });
    let passed_over = passed_over.collect();
    let taken = taken.and_then(|at| entries.get(at));
    Some(Routes {
        policy: taken.unwrap_or(first).policy.clone(),
        delegates: false,
        taken: taken.map(|entry| TakenRoute {
            route: place(entry),
            name: entry.name.clone(),
            matched: Some(entry.at.1),
        }),
        passed_over,
    })
}

/// Routes of connections; `None`: the document has none.
pub(super) fn connections(
    document: &Document,
    audience: &Audience<'_>,
    port: &Port,
    connection: &Connection<'_>,
) -> Option<Routes> {
    let Object::VirtualService(service) = &document.object else { return None };
    if matches!(port.protocol, Protocol::Http | Protocol::Http2 | Protocol::Grpc) {
        return None;
    }
    let number = u32::from(port.number);
    let protocol = settings::wire(port.protocol);
    let of = |list: List| {
        let routes = if list == List::Tls { &service.tls } else { &service.tcp };
        let bar = move |one: &weft_policy::ConnectionMatch| {
            let other = one.port.filter(|wanted| *wanted != number && number != 0);
            let of_port = other.map(|wanted| format!("it is for port {wanted}"));
            of_port.or_else(|| audience.bar_of_connections(document, one).map(in_words))
        };
        routes.iter().enumerate().map(move |(at, route)| DocumentRoute {
            list,
            at,
            name: "",
            bars: route.matches.iter().map(bar).collect(),
            leads_somewhere: true,
        })
    };
    let looked_at = [List::Tls, List::Tcp].into_iter().filter(|list| list.is_of(protocol));
    let route_entries = audience.connections(document, number, protocol);
    // A route with several matches is compiled to one entry; here it has one entry for each match, as with requests.
    let table = port.connection_routes.routes();
    let counts = || route_entries.iter().map(|route| route.matches.len().max(1));
    let unmet = |mut at: usize| {
        for (route, count) in table.iter().zip(counts()) {
            if at < count {
                let wanted = route.matches.get(at)?;
                let unmet = wanted.unmet(connection).map(|unmet| unmet.in_words(wanted, connection));
                return unmet.or_else(|| Some("another route has a more specific server name".to_owned()));
            }
            at -= count;
        }
        None
    };
    let taken = match port.connection_routes.find(connection) {
        Routed::To(found) => table.iter().position(|route| std::ptr::eq(route, found)).map(|at| {
            let unfulfilled = found.matches.iter().take_while(|one| one.unmet(connection).is_some()).count();
            counts().take(at).sum::<usize>() + unfulfilled
        }),
        Routed::Default | Routed::Nowhere => None,
    };
    report(document, looked_at.flat_map(of).collect(), &route_entries, taken, &unmet)
}

/// `taken` and the argument of `unmet` are entries of the table, in which a route has one entry for each match that
/// applies to the caller, and one entry if it has no matches.
fn report(
    document: &Document,
    document_routes: Vec<DocumentRoute<'_>>,
    route_entries: &[RouteEntry],
    taken: Option<usize>,
    unmet: &dyn Fn(usize) -> Option<String>,
) -> Option<Routes> {
    if document_routes.is_empty() {
        return None;
    }
    let mut routes = Routes { policy: document.reference(), ..Routes::default() };
    let mut entry = 0;
    for one in document_routes {
        let route = format!("{}[{}]", one.list.name(), one.at);
        let name = one.name.to_owned();
        let applied = route_entries.iter().find(|entry| entry.list == one.list && entry.route == one.at);
        let entries = entry..entry + applied.map_or(0, |route| route.matches.len().max(1));
        entry = entries.end;
        if let Some(taken) = taken.filter(|taken| entries.contains(taken)) {
            let matched = applied.and_then(|route| route.matches.get(taken - entries.start)).copied();
            routes.taken = Some(TakenRoute { route, name, matched });
            break;
        }
        let mut entries = entries;
        let mut because: Vec<String> =
            one.bars.into_iter().filter_map(|bar| bar.or_else(|| entries.next().and_then(unmet))).collect();
        if !one.leads_somewhere {
            because = vec!["it delegates to a VirtualService that does not exist".to_owned()];
        }
        routes.passed_over.push(SkippedRoute { route, name, because });
    }
    Some(routes)
}

fn in_words(bar: Bar<'_>) -> String {
    match bar {
        Bar::Gateways(gateways) => format!("it is for callers through gateway {}", gateways.join(" or ")),
        Bar::Namespace(namespace) => format!("it is for callers of namespace {namespace}"),
        Bar::Labels(labels) => format!("it is for callers with the labels {}", settings::labels(labels)),
    }
}
