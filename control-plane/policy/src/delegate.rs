//! Delegates: a VirtualService without hosts holds routes that others include by `delegate`. They are joined before
//! policies are applied, so that no other module handles delegates.
//!
//! As in Istio, a route of the delegate is for the requests that match both its own condition and that of the
//! delegating route. Its own settings take precedence over those of the delegating route. If the two conditions
//! contradict each other, the route is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_proto::v1::{self, string_match::Kind as Text};

use super::{
    Action, Code, Delegate, Document, Forward, MESH, Mirror, Object, Place, Problem, Route, RouteMatch, Severity,
    VirtualService, canonical,
};
use crate::kinds::virtual_service::covers;

/// `documents` with delegates joined into those that name them.
pub fn join(documents: Vec<Arc<Document>>) -> Vec<Arc<Document>> {
    let delegates = Delegates::of(documents.iter().map(Arc::as_ref));
    let joined: Vec<Option<Document>> =
        documents.iter().map(|document| delegates.joined(document, &mut Vec::new())).collect();
    documents.into_iter().zip(joined).map(|(document, joined)| joined.map_or(document, Arc::new)).collect()
}

/// Problems between delegates and the VirtualServices that name them.
pub(super) fn check(documents: &[&Document]) -> Vec<Problem> {
    let delegates = Delegates::of(documents.iter().copied());
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    for document in documents {
        delegates.joined(document, &mut problems);
        if let Object::VirtualService(service) = &document.object {
            used.extend(service.http.iter().filter_map(|route| match &route.action {
                Action::Delegate(delegate) => Some(delegate.key(&document.namespace)),
                _ => None,
            }));
        }
    }
    for (key, (document, _)) in &delegates.0 {
        if !used.contains(key) {
            let text = "it has no `hosts`, and no VirtualService here delegates to it: it has no effect";
            let place = Place { line: document.line, column: 1 };
            problems.push(problem(document, place, Severity::Warning, text.to_owned()));
        }
    }
    problems
}

fn problem(document: &Document, place: Place, severity: Severity, text: String) -> Problem {
    let path = String::new();
    Problem { file: document.file.clone(), place, severity, code: Code::Delegate, path, text }
}

/// VirtualServices without hosts, by namespace and name.
struct Delegates<'a>(BTreeMap<(String, String), (&'a Document, &'a VirtualService)>);

impl<'a> Delegates<'a> {
    fn of(documents: impl Iterator<Item = &'a Document>) -> Self {
        let found = documents.filter_map(|document| match &document.object {
            Object::VirtualService(service) if service.hosts.is_empty() => {
                Some(((document.namespace.clone(), document.name.clone()), (document, service)))
            }
            _ => None,
        });
        Delegates(found.collect())
    }

    /// `document` with the routes of its delegates; `None`: it has none.
    fn joined(&self, document: &Document, problems: &mut Vec<Problem>) -> Option<Document> {
        let Object::VirtualService(service) = &document.object else { return None };
        let delegates = service.http.iter().any(|route| matches!(route.action, Action::Delegate(_)));
        if service.hosts.is_empty() || !delegates {
            return None;
        }
        let mut http = Vec::new();
        for route in &service.http {
            match &route.action {
                Action::Delegate(delegate) => http.extend(self.routes(document, route, delegate, problems)),
                _ => http.push(route.clone()),
            }
        }
        let object = Object::VirtualService(VirtualService { http, ..service.clone() });
        Some(Document { object, yaml: String::new(), ..document.clone() })
    }

    /// The routes that replace `route` of `root`.
    fn routes(&self, root: &Document, route: &Route, to: &Delegate, problems: &mut Vec<Problem>) -> Vec<Route> {
        let key = to.key(&root.namespace);
        let mut warn = |severity, text| problems.push(problem(root, route.place, severity, text));
        let delegate_name = format!("VirtualService/{}/{}", key.0, key.1);
        let Some((document, service)) = self.0.get(&key).filter(|(document, _)| document.reaches(&root.namespace))
        else {
            let text = format!(
                "{delegate_name}, to which this delegates, does not exist, or has `hosts`, or is not exported here"
            );
            warn(Severity::Warning, format!("{text}: no request matches this route"));
            return Vec::new();
        };
        let mut joined = Vec::new();
        for own in &service.http {
            let line = own.place.line;
            match route_of(root, route, &to.rest, document, own) {
                Ok(route) => joined.push(route),
                Err(None) => {
                    let text = format!(
                        "the route at line {line} of {delegate_name} delegates itself: only one level is allowed"
                    );
                    warn(Severity::Error, text);
                }
                Err(Some(field)) => {
                    let text = format!(
                        "the route at line {line} of {delegate_name} is left out: its `match` is not within the one here, by {field}"
                    );
                    warn(Severity::Warning, text);
                }
            }
        }
        joined
    }
}

/// The delegate's route `own` within `route` of `root`; an error names the contradicting fields of their matches, or is
/// empty if `own` delegates itself.
fn route_of(
    root: &Document,
    route: &Route,
    rest: &Forward,
    document: &Document,
    own: &Route,
) -> Result<Route, Option<&'static str>> {
    let action = match &own.action {
        Action::Delegate(_) => return Err(None),
        Action::Forward(forward) => Action::Forward(filled(forward, rest, &document.namespace)),
        other => other.clone(),
    };
    let name = match (&*route.name, &*own.name) {
        ("", name) | (name, "") => name.to_owned(),
        (outer, inner) => format!("{outer}-{inner}"),
    };
    Ok(Route {
        name,
        matches: matches_of(root, &route.matches, document, &own.matches).map_err(Some)?,
        action,
        headers: own.headers.clone().or_else(|| route.headers.clone()),
        cors: own.cors.clone().or_else(|| route.cors.clone()),
        place: own.place,
    })
}

/// Settings absent in the delegate are the delegating route's. Short host names are resolved in the delegate's
/// namespace.
fn filled(own: &Forward, rest: &Forward, namespace: &str) -> Forward {
    let mut forward = own.clone();
    let mirrors = forward.mirrors.iter_mut().map(|mirror: &mut Mirror| &mut mirror.destination);
    for destination in forward.destinations.iter_mut().chain(mirrors) {
        destination.host = canonical(&destination.host, namespace);
    }
    if forward.timeout_ms == 0 {
        forward.timeout_ms = rest.timeout_ms;
    }
    if forward.mirrors.is_empty() {
        forward.mirrors = rest.mirrors.clone();
    }
    forward.rewrite = forward.rewrite.or_else(|| rest.rewrite.clone());
    forward.retry = forward.retry.or_else(|| rest.retry.clone());
    forward.fault = forward.fault.or(rest.fault);
    forward
}

/// The conjunctions of every match of the delegate with every match of the delegating route, without the contradicting
/// ones.
fn matches_of(
    root: &Document,
    outer: &[RouteMatch],
    document: &Document,
    inner: &[RouteMatch],
) -> Result<Vec<RouteMatch>, &'static str> {
    let delegate_name = |one: &RouteMatch, document: &Document| {
        let mut one = one.clone();
        for gateway in one.gateways.iter_mut().filter(|gateway| *gateway != MESH && !gateway.contains('/')) {
            *gateway = format!("{}/{gateway}", document.namespace);
        }
        one
    };
    let outer: Vec<RouteMatch> = outer.iter().map(|one| delegate_name(one, root)).collect();
    let inner: Vec<RouteMatch> = inner.iter().map(|one| delegate_name(one, document)).collect();
    if outer.is_empty() || inner.is_empty() {
        return Ok([outer, inner].concat());
    }
    let mut both = Vec::new();
    for own in &inner {
        let before = both.len();
        let mut contradiction = "";
        for around in &outer {
            match within(around, own) {
                Ok(one) => both.push(one),
                Err(field) => contradiction = field,
            }
        }
        if both.len() == before {
            return Err(contradiction);
        }
    }
    Ok(both)
}

/// `own` within `around`; an error names the fields by which `own` reaches beyond it.
fn within(around: &RouteMatch, own: &RouteMatch) -> Result<RouteMatch, &'static str> {
    let (outer, inner) = (&around.http, &own.http);
    if outer.uri.is_some() && inner.uri.is_some() && outer.ignore_uri_case != inner.ignore_uri_case {
        return Err("ignoreUriCase");
    }
    if outer.port != 0 && inner.port != 0 && outer.port != inner.port {
        return Err("port");
    }
    if !around.source_namespace.is_empty()
        && !own.source_namespace.is_empty()
        && around.source_namespace != own.source_namespace
    {
        return Err("sourceNamespace");
    }
    let mut source_labels = around.source_labels.clone();
    for (name, value) in &own.source_labels {
        if source_labels.insert(name.clone(), value.clone()).is_some_and(|outer| outer != *value) {
            return Err("sourceLabels");
        }
    }
    let beyond = |gateway: &String| !around.gateways.contains(gateway);
    if !around.gateways.is_empty() && own.gateways.iter().any(beyond) {
        return Err("gateways");
    }
    let http = v1::HttpMatch {
        uri: text("uri", &outer.uri, &inner.uri)?,
        ignore_uri_case: if inner.uri.is_some() { inner.ignore_uri_case } else { outer.ignore_uri_case },
        method: text("method", &outer.method, &inner.method)?,
        authority: text("authority", &outer.authority, &inner.authority)?,
        scheme: text("scheme", &outer.scheme, &inner.scheme)?,
        headers: texts("headers", &outer.headers, &inner.headers)?,
        without_headers: [&outer.without_headers[..], &inner.without_headers].concat(),
        query_params: texts("queryParams", &outer.query_params, &inner.query_params)?,
        port: if inner.port == 0 { outer.port } else { inner.port },
        path_separated_prefix: String::new(),
    };
    let source_namespace = if own.source_namespace.is_empty() { around } else { own }.source_namespace.clone();
    let gateways = if own.gateways.is_empty() { around } else { own }.gateways.clone();
    Ok(RouteMatch { http, source_labels, source_namespace, gateways })
}

/// The inner condition, if it is within the outer one; if only one is given, that one.
fn text(
    field: &'static str,
    outer: &Option<v1::StringMatch>,
    inner: &Option<v1::StringMatch>,
) -> Result<Option<v1::StringMatch>, &'static str> {
    let kind = |one: &Option<v1::StringMatch>| one.as_ref().and_then(|one| one.kind.clone());
    let is_within = match (kind(outer), kind(inner)) {
        (None | Some(Text::Present(_)), _) | (_, None) => true,
        (Some(outer), Some(inner)) => covers(&outer, &inner),
    };
    if is_within { Ok(inner.clone().or_else(|| outer.clone())) } else { Err(field) }
}

/// The conditions of both, by name.
fn texts(
    field: &'static str,
    outer: &[v1::NamedMatch],
    inner: &[v1::NamedMatch],
) -> Result<Vec<v1::NamedMatch>, &'static str> {
    let mut both: Vec<v1::NamedMatch> = outer.to_vec();
    for own in inner {
        match both.iter_mut().find(|one| one.name.eq_ignore_ascii_case(&own.name)) {
            Some(one) => one.value = text(field, &one.value, &own.value)?,
            None => both.push(own.clone()),
        }
    }
    Ok(both)
}

impl Delegate {
    /// Namespace and name, as resolved for a document in `namespace`.
    pub(super) fn key(&self, namespace: &str) -> (String, String) {
        let namespace = if self.namespace.is_empty() { namespace } else { &self.namespace };
        (namespace.to_owned(), self.name.clone())
    }
}

#[cfg(test)]
mod tests;
