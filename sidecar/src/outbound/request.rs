//! One request of the application.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::SET_COOKIE;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use weft_core::balance::RetrySelection;
use weft_core::filter::{Effect, End};
use weft_core::flag::ResponseFlag;
use weft_core::headers::{Context, ResponseContext};
use weft_core::http1::{Limits, path_and_query};
use weft_core::limits::Permit;
use weft_core::outcome::Outcome;
use weft_core::reply::Reason;
use weft_core::request::RequestView;
use weft_core::retry::{RetryPolicy, request_overrides};
use weft_core::route::Route;

use super::Downstream;
use super::attempts::{Attempts, Failure, Sent};
use super::headers::{Original, Prepared};
use super::mirror::Mirrored;
use super::plan::{Decision, Plan, decide};
use crate::control::directory::ServiceView;
use crate::exchange::attempt::Outgoing;
use crate::exchange::{Exchange, Resources, Returning};
use crate::http::body::{Replay, ResponseBody};
use crate::http::http1::Unread;
use crate::http::incoming::{Incoming, Upgrade};
use crate::http::{Asks, address_response, admit, authority, ensure_request_id};
use crate::proxy::activity::Active;
use crate::proxy::{labels, proxy_context};
use crate::telemetry::labels::Pair;

/// Serves one request of the application.
// Inlined, so that the task's state is made where it stays: it is large, and would be copied there otherwise.
#[inline(always)]
pub fn serve(
    down: &Arc<Downstream>,
    request: Request<Incoming>,
) -> impl Future<Output = Response<ResponseBody>> + Send + '_ {
    let start = Instant::now();
    // A drain waits for a response that has not begun, too.
    let active = down.proxy.outbound.begin();
    // Taken apart before the task begins, which would have room for it twice otherwise.
    let (mut parts, mut incoming) = request.into_parts();
    async move {
        ensure_request_id(&mut parts.headers);
        let call = Call { down, start };
        let asks = match admit(&mut parts, Limits::OUTSIDE, incoming.may_upgrade(), &down.proxy.settings.upgrades) {
            Ok(asks) => asks,
            Err(reason) => return call.refuse_early(&parts, labels::unknown(&down.proxy), reason, ""),
        };
        // The decision and its inputs are gone before the request is sent: its task is the smaller for it.
        let decision = {
            let view = RequestView {
                method: &parts.method,
                path_and_query: path_and_query(&parts),
                authority: authority(&parts),
                scheme: down.gateway.as_ref().map_or("http", |entrance| entrance.scheme),
                headers: &parts.headers,
                source: down.ends.source,
                local: down.ends.destination,
            };
            decide(down, &parts, &view, asks).await
        };
        let mut plan = match call.unless_answered(&parts, decision) {
            Ok(plan) => plan,
            Err(response) => return *response,
        };
        let mut effect = plan.effect.take();
        let upgrade = incoming.take_upgrade().filter(|_| asks != Asks::Nothing);
        let response = call.send(&mut parts, incoming, upgrade, &plan, effect.as_deref_mut(), active).await;
        edited(effect, response)
    }
}

/// Answers a request of the application whose head cannot be read.
pub fn refuse(down: &Arc<Downstream>, unread: &Unread) -> Response<ResponseBody> {
    let proxy = &down.proxy;
    let pair = proxy.metrics.pair(labels::unknown(proxy));
    let exchange = Exchange::unread(proxy, &unread.line, down.ends.source, pair);
    exchange.reply(&Reason::from(&unread.error), "", &HeaderMap::new(), false)
}

/// The response with the edits of the route's filters, which apply to local replies too.
fn edited(effect: Option<Box<Effect>>, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    if let Some(effect) = effect {
        effect.edit_response(response.headers_mut());
    }
    response
}

/// One request on its way through the phases.
pub(super) struct Call<'a> {
    pub(super) down: &'a Arc<Downstream>,
    pub(super) start: Instant,
}

/// The inputs of the last phases.
struct Sending<'a> {
    call: &'a Call<'a>,
    plan: &'a Plan,
    original: &'a Original,
    prepared: &'a Prepared,
    /// The whole response must have come by then.
    deadline: Option<tokio::time::Instant>,
}

impl Call<'_> {
    /// The plan of a request that is sent, or the response of one that is not.
    fn unless_answered(&self, parts: &Parts, decision: Decision) -> Result<Plan, Box<Response<ResponseBody>>> {
        let proxy = &self.down.proxy;
        Err(Box::new(match decision {
            Decision::Send(plan) => return Ok(plan),
            Decision::Answer(service, route, response, effect) => {
                edited(effect, self.answer(parts, &service, &route, *response))
            }
            Decision::Secure(mut response) => {
                let mut exchange = self.exchange(parts, proxy.metrics.pair(labels::unknown(proxy)));
                exchange.code = response.status().as_u16();
                address_response(&mut response, exchange.version, false);
                exchange.end_with(*response)
            }
            Decision::Refuse(service, reason, policy) => {
                let pair = match service {
                    Some(view) => labels::service(proxy, &view),
                    None => labels::unknown(proxy),
                };
                self.refuse_early(parts, pair, reason, &policy)
            }
        }))
    }

    /// Refuses a request before it has a cluster.
    fn refuse_early(&self, parts: &Parts, pair: Pair, reason: Reason, policy: &str) -> Response<ResponseBody> {
        let pair = self.down.proxy.metrics.pair(pair);
        self.exchange(parts, pair).reply(&reason, policy, &parts.headers, false)
    }

    fn exchange(&self, parts: &Parts, pair: Arc<Pair>) -> Box<Exchange> {
        Exchange::new(&self.down.proxy, parts, self.down.ends.source, self.start, pair)
    }

    /// Phases 3 to 5.
    async fn send(
        &self,
        parts: &mut Parts,
        incoming: Incoming,
        upgrade: Option<Upgrade>,
        plan: &Plan,
        effect: Option<&mut Effect>,
        active: Active,
    ) -> Response<ResponseBody> {
        let cluster = &plan.cluster;
        let config = &cluster.config;
        let mut exchange = self.exchange(parts, labels::to_cluster(&self.down.proxy, cluster, None));
        exchange.cluster = Some(config.name.clone());
        exchange.route = plan.route_name().cloned();
        if let Some(delay) = effect.as_ref().and_then(|effect| effect.delay) {
            exchange.flags.insert(ResponseFlag::DelayInjected);
            // Rare, and the others need not have room for it.
            Box::pin(tokio::time::sleep(delay)).await;
        }
        let permit = match admission(plan, effect) {
            Ok(permit) => permit,
            Err((reason, policy)) => return exchange.reply(&reason, policy, &parts.headers, false),
        };
        let grpc = exchange.grpc;
        let forward = plan.forward();
        let none = RetryPolicy::none();
        let (routes_retry, routes_timeout) = forward.map_or((&none, None), |(f, _)| (&f.retry, f.timeout));
        let overrides = request_overrides(&mut parts.headers, routes_retry, routes_timeout, grpc);
        // An endpoint that the application chose itself is not exchanged for another one.
        let retry = overrides.retry.as_ref().filter(|_| forward.is_some()).unwrap_or(routes_retry);
        let timeout = overrides.timeout.unwrap_or(routes_timeout);

        let original = Original::of(parts);
        let prepared = original.prepare(parts, self, plan, upgrade.is_some(), grpc);
        let outgoing = Outgoing::new(incoming, parts, &mut exchange);
        if !plan.mirrors.is_empty() && upgrade.is_none() && original.method != Method::CONNECT {
            let (down, version, host) = (self.down, exchange.version, &prepared.authority);
            Mirrored { down, parts, version, outgoing: &outgoing, host, timeout }.send(&plan.mirrors, grpc);
        }
        let retry_selection = forward.map_or_else(RetrySelection::default, |(f, _)| f.retry_selection);
        let mut attempts = Attempts::new(self.down, plan, &outgoing, retry, prepared.multiplex, grpc, retry_selection);
        let (result, deadline) = {
            let running = pin!(attempts.run(parts));
            match timeout {
                None => (running.await, None),
                Some(after) => within(after, outgoing.body.as_ref(), running).await,
            }
        };
        attempts.report(&mut exchange);
        let sending = Sending { call: self, plan, original: &original, prepared: &prepared, deadline };
        match result {
            Ok(sent) => {
                let resources = Resources {
                    request: outgoing.state(),
                    permit: Some(permit),
                    active: Some(active),
                    ..Resources::default()
                };
                sending.respond(exchange, sent, resources, upgrade)
            }
            Err(failure) => sending.fail(exchange, failure, &attempts),
        }
    }

    /// The response of a route that forwards nothing.
    fn answer(
        &self,
        parts: &Parts,
        service: &ServiceView,
        route: &Route,
        mut response: Response<ResponseBody>,
    ) -> Response<ResponseBody> {
        let proxy = &self.down.proxy;
        let mut exchange = self.exchange(parts, proxy.metrics.pair(labels::service(proxy, service)));
        exchange.code = response.status().as_u16();
        exchange.route = Some(route.name.clone());
        let context = Context {
            proxy: proxy_context(),
            ends: &self.down.ends,
            tls: self.down.gateway.as_ref().and_then(|entrance| entrance.tls.as_ref()),
            version: exchange.version,
            start: &self.start,
            method: parts.method.as_str(),
            authority: authority(parts),
            path_and_query: path_and_query(parts),
            cluster: "",
            route: &route.name,
        };
        let answer = ResponseContext {
            status: response.status(),
            details: ResponseContext::DIRECT,
            flags: exchange.flags,
            upstream: None,
            attempts: 0,
        };
        address_response(&mut response, exchange.version, false);
        route.headers.response.apply_to_response(response.headers_mut(), &parts.headers, &context, &answer);
        exchange.end_with(response)
    }
}

/// Phase 3.
///
/// # Errors
/// The reason of the refusal, and the policy whose rule it is.
fn admission<'a>(plan: &'a Plan, effect: Option<&mut Effect>) -> Result<Permit, (Reason, &'a str)> {
    if let Some(End::Refuse(reason)) = effect.and_then(|effect| effect.end.take()) {
        return Err((reason, plan.route_policy()));
    }
    let config = &plan.cluster.config;
    if config.undefined {
        let status = plan.forward().map_or(StatusCode::SERVICE_UNAVAILABLE, |(forward, _)| forward.undefined_status);
        return Err((Reason::ClusterUndefined(status), &config.policy));
    }
    let permit = plan.cluster.shared.limits.requests.try_acquire(config.pool.max_requests);
    permit.map_err(|overflow| (Reason::Overflow(overflow), &*config.policy))
}

impl Sending<'_> {
    /// Phase 5.
    fn respond(
        &self,
        mut exchange: Box<Exchange>,
        sent: Sent,
        resources: Resources,
        upgrade: Option<Upgrade>,
    ) -> Response<ResponseBody> {
        exchange.flags.extend(sent.flags);
        let resources = Resources {
            lease: Some(sent.lease),
            worker: self.call.down.worker,
            in_flight: Some(sent.in_flight),
            ..resources
        };
        let (method, deadline) = (&self.original.method, self.deadline);
        let returning = Returning { resources, upgrade, method, close: false, deadline };
        exchange.respond(sent.response, returning, |exchange, status, headers| self.edit(exchange, status, headers))
    }

    /// Applies the route's changes to the headers of a response.
    fn edit(&self, exchange: &Exchange, status: StatusCode, headers: &mut HeaderMap) {
        let operations = self.plan.header_operations();
        if !operations.is_empty() {
            let context = self.original.context(self.call, self.plan, Some(self.prepared));
            let answer = ResponseContext {
                status,
                details: ResponseContext::UPSTREAM,
                flags: exchange.flags,
                upstream: exchange.upstream.as_deref(),
                attempts: exchange.attempts,
            };
            let none = HeaderMap::new();
            let request_headers = self.prepared.headers.as_ref().unwrap_or(&none);
            for ops in operations {
                ops.response.apply_to_response(headers, request_headers, &context, &answer);
            }
        }
        if let Some(cookie) = &self.plan.hash.set_cookie {
            headers.append(SET_COOKIE, cookie.clone());
        }
    }

    /// The request has no response of an endpoint.
    fn fail(&self, mut exchange: Box<Exchange>, failure: Failure, attempts: &Attempts<'_>) -> Response<ResponseBody> {
        let cluster = &self.plan.cluster;
        let late = matches!(failure.reason, Reason::Timeout { .. });
        if late && let Some(endpoint) = &attempts.last {
            cluster.record(endpoint, &Outcome::Timeout);
        }
        let by_route = late || matches!(failure.reason, Reason::PerTryTimeout { .. });
        let policy = if by_route { self.plan.route_policy() } else { &cluster.config.policy };
        exchange.flags.extend(failure.flags);
        exchange.reply(&failure.reason, policy, &HeaderMap::new(), false)
    }
}

/// Runs the attempts within a time that begins, as in Envoy, when the request has been received. With a response comes the
/// end of that time, where it has begun: until then the whole response must have come.
async fn within(
    after: Duration,
    body: Option<&Arc<Replay>>,
    attempts: impl Future<Output = Result<Sent, Failure>>,
) -> (Result<Sent, Failure>, Option<tokio::time::Instant>) {
    let mut end = None;
    let late = async {
        if let Some(body) = body {
            body.state.done().await;
        }
        let at = tokio::time::Instant::now() + after;
        end = Some(at);
        tokio::time::sleep_until(at).await;
    };
    let result = tokio::select! {
        biased;
        result = attempts => result,
        () = late => Err(Reason::Timeout { after }.into()),
    };
    (result, end)
}
