//! Rules of the Gateway API's routes as routes of a `Service`.

use std::sync::Arc;
use weft_core::retry::DEFAULT_ATTEMPTS;

use weft_proto::v1::{self, http_route};

use super::service::{Clusters, undefined};
use crate::attach::{self, Attached};
use weft_policy::{BackendRef, Document, HttpRule, Kind};

/// Status of requests that no backend can serve.
const NO_BACKEND: u32 = 500;

impl Clusters<'_> {
    /// The routes of a port or a listener, in the order of their matches.
    pub(super) fn attached(&mut self, matches: &[Attached<'_>], port: u32) -> Vec<v1::HttpRoute> {
        matches.iter().map(|one| self.rule(one.document, one.rule, vec![one.one.http.clone()], port)).collect()
    }

    /// A rule with some of its matches.
    pub(super) fn rule(
        &mut self,
        document: &Document,
        rule: &HttpRule,
        matches: Vec<v1::HttpMatch>,
        port: u32,
    ) -> v1::HttpRoute {
        let action = match &rule.redirect {
            Some(redirect) => http_route::Action::Redirect(redirect.clone()),
            None => http_route::Action::Forward(self.forward_of(document, rule, port)),
        };
        let separator = if rule.name.is_empty() { "" } else { "/" };
        v1::HttpRoute {
            name: format!("{}{separator}{}", document.reference(), rule.name),
            matches,
            action: Some(action),
            headers: rule.headers.clone(),
            cors: rule.cors.clone(),
        }
    }

    fn forward_of(&mut self, document: &Document, rule: &HttpRule, port: u32) -> v1::Forward {
        let destinations = self.shares(document, &rule.backends, port);
        let mirrors = rule.mirrors.iter().filter(|mirror| mirror.percent > 0.0);
        let mirrors = mirrors.map(|mirror| v1::Mirror {
            cluster: self.backend(document, &mirror.backend, port),
            percent: mirror.percent,
        });
        let mirrors = mirrors.collect();
        let retry = rule.retry.as_ref().or(self.defaults.retry()).cloned();
        let (timeout_ms, retry) = timeouts(rule, retry);
        v1::Forward {
            destinations,
            timeout_ms,
            rewrite: rule.rewrite.clone(),
            retry,
            fault: None,
            mirrors,
            // gRPC's UNAVAILABLE is the 503 of HTTP.
            cluster_not_found_response_code: if document.kind() == Kind::GRPCRoute { 0 } else { NO_BACKEND },
        }
    }

    /// The shares of backends. Without any, all requests or connections fail.
    pub(super) fn shares(
        &mut self,
        document: &Document,
        backends: &[BackendRef],
        port: u32,
    ) -> Vec<v1::WeightedCluster> {
        let used = backends.iter().filter(|backend| backend.weight > 0);
        let weighted = used.map(|backend| v1::WeightedCluster {
            cluster: self.backend(document, backend, port),
            weight: backend.weight,
            headers: backend.headers.clone(),
        });
        let mut destinations: Vec<v1::WeightedCluster> = weighted.collect();
        if destinations.is_empty() {
            let cluster = self.add(undefined("no-backend.invalid", port, ""));
            destinations.push(v1::WeightedCluster { cluster, weight: 1, headers: None });
        }
        destinations
    }

    /// The routes of the connections to a port: TLSRoutes by server name, or TCPRoutes.
    pub(super) fn attached_streams(&mut self, documents: &[&Arc<Document>], port: u32) -> Vec<v1::ConnectionRoute> {
        let one = |document: &&Arc<Document>| {
            let route = attach::stream(document)?;
            let server_names = route.hostnames.clone();
            let by_name = v1::ConnectionMatch { server_names, ..v1::ConnectionMatch::default() };
            Some(v1::ConnectionRoute {
                name: document.reference(),
                matches: if route.hostnames.is_empty() { Vec::new() } else { vec![by_name] },
                destinations: self.shares(document, &route.backends, port),
            })
        };
        documents.iter().filter_map(one).collect()
    }

    /// The cluster of a backend; one that cannot be used is undefined.
    fn backend(&mut self, document: &Document, backend: &BackendRef, port: u32) -> u32 {
        let granted = self.audience().gateway.is_some();
        match attach::backend(self.world, document, backend, granted) {
            Ok(destination) => self.destination(&document.namespace, &destination, port),
            Err(_) => {
                let object = &backend.object;
                let host = format!("{}.{}.{}.invalid", object.name, object.namespace, object.kind.to_lowercase());
                self.add(undefined(&host, backend.port.unwrap_or(port), ""))
            }
        }
    }
}

/// The timeout of requests, and the retry policy with that of each attempt.
fn timeouts(rule: &HttpRule, retry: Option<v1::RetryPolicy>) -> (u64, Option<v1::RetryPolicy>) {
    let (timeout, attempt) = (rule.timeout_ms, rule.per_try_timeout_ms);
    if attempt == 0 {
        return (timeout, retry);
    }
    let retry = retry.unwrap_or(v1::RetryPolicy { attempts: DEFAULT_ATTEMPTS, ..v1::RetryPolicy::default() });
    match retry.attempts {
        // The only attempt is the whole request.
        0 => (if timeout == 0 { attempt } else { timeout.min(attempt) }, Some(retry)),
        _ => (timeout, Some(v1::RetryPolicy { per_try_timeout_ms: attempt, ..retry })),
    }
}
