//! Dry run of a document: it is translated alone and compiled by the function that the sidecar runs. An error that the
//! decoders miss, such as an unknown variable in a header template, is then reported to the author, not in the log of
//! every sidecar.

use std::{collections::BTreeMap, sync::Arc};

use weft_core::compile::{self, CompileError};
use weft_proto::v1;

use super::{
    endpoints, inbound,
    service::{Clusters, service},
};
use crate::world::{Scope, World};
use weft_policy::{
    Action, Code, Destination, Document, Forward, HttpRule, Object, Parsed, Place, Problem, Route, RouteMatch,
    Settings, Severity,
};

/// Reads every document of a text, as [`weft_policy::parse`] does, and compiles each as a sidecar would: one that
/// sidecars would refuse has an error.
pub fn parse_policies(file: &str, text: &str) -> Parsed {
    let mut parsed = weft_policy::parse(file, text);
    let mut refusals = Vec::new();
    parsed.documents.retain(|document| {
        let found = dry_run(document);
        let accepted = found.is_empty();
        refusals.extend(found.into_iter().map(|(place, refusal)| Problem {
            file: file.to_owned(),
            place: place.unwrap_or(Place { line: document.line, column: 1 }),
            severity: Severity::Error,
            code: Code::Refused,
            path: String::new(),
            text: format!("sidecars would refuse this: {refusal}"),
        }));
        accepted
    });
    if !refusals.is_empty() {
        parsed.problems.extend(refusals);
        parsed.sort_problems();
    }
    parsed
}

/// The parts of `document` that sidecars would refuse, with a place if it is more exact than the document's.
fn dry_run(document: &Document) -> Vec<(Option<Place>, CompileError)> {
    let refused = match &document.object {
        Object::DestinationRule(rule) => {
            let subsets = rule.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref());
            let policies = rule.traffic_policy.iter().chain(subsets);
            let settings = policies.flat_map(|policy| policy.ports.values().chain([&policy.settings]));
            settings.map(|settings| (None, compiled(&cluster(settings)))).collect::<Vec<_>>()
        }
        Object::VirtualService(virtual_service) => {
            let world = World::new("", 1);
            let client = Scope::of(&document.namespace);
            let route = |route: &Route| {
                // Matches are compiled whatever clients they are for.
                let of_all = |one: &RouteMatch| RouteMatch { http: one.http.clone(), ..RouteMatch::default() };
                let mut route = Route { matches: route.matches.iter().map(of_all).collect(), ..route.clone() };
                if let Action::Delegate(delegate) = route.action {
                    // The destinations are irrelevant here.
                    let destinations = vec![Destination::to("dry-run", route.place)];
                    route.action = Action::Forward(Forward { destinations, ..delegate.rest });
                }
                let mut clusters = Clusters::new(&world, &client, None);
                let routes = clusters.route(document, &route, 80).into_iter().collect();
                with_routes(routes, clusters)
            };
            virtual_service.http.iter().map(|r| (Some(r.place), compiled(&route(r)))).collect()
        }
        Object::HTTPRoute(content) | Object::GRPCRoute(content) => of_rules(document, &content.rules),
        Object::ServiceEntry(_) | Object::Service(_) => {
            let world = alone(document);
            let client = Scope::of(&document.namespace);
            // The hosts of one document differ only in their names, which the decoder has checked.
            let hosts = || world.hosts().take(1);
            let services = hosts().filter_map(|host| service(&world, &client, &host.name));
            let addresses = hosts().map(|host| endpoints(&world, host));
            let services = services.map(|service| (None, compiled(&service)));
            services.chain(addresses.map(|e| (None, compile::endpoints(&e).map(drop)))).collect()
        }
        Object::PeerAuthentication(_) | Object::Gateway(_) | Object::Sidecar(_) => {
            let labels = match &document.object {
                Object::Gateway(gateway) => gateway.selector.clone(),
                Object::Sidecar(sidecar) => sidecar.selector.clone(),
                _ => BTreeMap::new(),
            };
            let inbound = inbound(&alone(document), &document.namespace, &labels, &[]);
            vec![(None, compile::inbound(&inbound).map(drop))]
        }
        Object::IstioOperator(config) => {
            let Some(config) = config else { return Vec::new() };
            let settings = Settings {
                connection_pool: config.connection_pool,
                outlier_detection: config.outlier_detection.clone(),
                load_balancer: Some(v1::LoadBalancer { locality: config.locality.clone(), ..Default::default() }),
                ..Settings::default()
            };
            let port = v1::Port { number: 80, retry: config.retry.clone(), ..v1::Port::default() };
            vec![(None, compiled(&v1::Service { ports: vec![port], ..cluster(&settings) }))]
        }
        // An endpoint of any ServiceEntry that selects it; the decoder has checked all of its fields.
        Object::WorkloadEntry(_) | Object::WorkloadGroup(_) | Object::ServiceExport(_) => Vec::new(),
        // Nothing of them is compiled alone.
        Object::TLSRoute(_)
        | Object::TCPRoute(_)
        | Object::BackendTLSPolicy(_)
        | Object::KubernetesGateway(_)
        | Object::GatewayClass(_)
        | Object::Namespace(_)
        | Object::ReferenceGrant(_) => Vec::new(),
    };
    // Only the part of the path that the author knows: the messages around it are internal.
    let problem = |error: CompileError| {
        let field = ["ports[0].routes[0].", "ports[0].", "clusters[0]."]
            .into_iter()
            .find_map(|around| error.field.strip_prefix(around));
        CompileError { field: field.unwrap_or(&error.field).to_owned(), ..error }
    };
    refused.into_iter().filter_map(|(place, result)| Some((place, problem(result.err()?)))).collect()
}

/// The rules of a route of the Gateway API, each alone.
fn of_rules(document: &Document, rules: &[HttpRule]) -> Vec<(Option<Place>, Result<(), CompileError>)> {
    let world = World::new("", 1);
    let client = Scope::of(&document.namespace);
    let rule = |rule: &HttpRule| {
        let mut clusters = Clusters::new(&world, &client, None);
        let matches = rule.matches.iter().map(|one| one.http.clone()).collect();
        let routes = vec![clusters.rule(document, rule, matches, 80)];
        compiled(&with_routes(routes, clusters))
    };
    rules.iter().map(|one| (Some(one.place), rule(one))).collect()
}

fn compiled(service: &v1::Service) -> Result<(), CompileError> {
    compile::service(service).map(drop)
}

fn alone(document: &Document) -> World {
    let mut world = World::new("cluster.local", 1);
    world.set_policies(vec![Arc::new(document.clone())], 0);
    world
}

fn placeholder_service() -> v1::Service {
    v1::Service { host: "dry-run".to_owned(), ..v1::Service::default() }
}

/// A port with `routes`. Its own cluster exists whatever its routes are.
fn with_routes(routes: Vec<v1::HttpRoute>, clusters: Clusters<'_>) -> v1::Service {
    let own = cluster(&Settings::default()).clusters;
    let found = clusters.into_clusters();
    let port = v1::Port { number: 80, routes, cluster: found.len() as u32, ..v1::Port::default() };
    v1::Service { ports: vec![port], clusters: [found, own].concat(), ..placeholder_service() }
}

fn cluster(settings: &Settings) -> v1::Service {
    let cluster = v1::Cluster {
        name: "dry-run".to_owned(),
        host: "dry-run".to_owned(),
        load_balancer: settings.load_balancer.clone(),
        connection_pool: settings.connection_pool,
        outlier_detection: settings.outlier_detection.clone(),
        tls: settings.tls.as_ref().map(|tls| tls.mode).unwrap_or_default().into(),
        tls_origination: settings.tls.as_ref().and_then(|tls| tls.origination.clone()),
        tunnel: settings.tunnel.clone(),
        proxy_protocol: settings.proxy_protocol.unwrap_or_default().into(),
        ..v1::Cluster::default()
    };
    v1::Service { clusters: vec![cluster], ..placeholder_service() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compilation in the sidecar finds errors that decoding does not; they are reported to the author of the document.
    #[test]
    fn a_document_that_sidecars_refuse_has_an_error() {
        let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  \
                    {hosts: [a], http: [{name: first, route: [{destination: {host: a}}]},\n\
                    {headers: {request: {set: {x-a: '%NOTHING%'}}}, route: [{destination: {host: a}}]}]}\n";
        let parsed = parse_policies("f.yaml", text);
        let got: Vec<String> = parsed.problems.iter().map(ToString::to_string).collect();
        assert!(got.len() == 1 && got[0].starts_with("f.yaml:6:"), "{got:?}");
        assert!(got[0].contains("sidecars would refuse this: headers.request.set[0].value: "), "{got:?}");
        assert!(parsed.documents.is_empty() && parsed.has_errors());
    }
}
