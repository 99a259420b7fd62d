//! What our application calls: the phases of a request, in order.
//!
//! 1. Which service: by authority, then by the address that was dialed; else it is foreign and passes through (`plan`).
//! 2. Which route of it, and so which cluster; redirects and direct answers end here (`plan`).
//! 3. Admission by the cluster's limits.
//! 4. Attempts: pick an endpoint, get a connection, send, classify what came of it; again while the policy says so
//!    (`attempts`).
//! 5. The response goes back; its body holds the connection and the permits until it has ended.

mod attempts;
mod foreign;
mod mirror;
mod plan;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_TYPE, HOST, SET_COOKIE};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use weft_core::balance::Again;
use weft_core::flag::ResponseFlag;
use weft_core::gateway::Server;
use weft_core::headers::{Answer, Context, Tls};
use weft_core::http1::{self, Limits, path_and_query};
use weft_core::limits::Permit;
use weft_core::outcome::Outcome;
use weft_core::policy::Protocol;
use weft_core::proxy_protocol::Ends;
use weft_core::reply::Reason;
use weft_core::request::RequestView;
use weft_core::retry::{RetryPolicy, asked};
use weft_core::route::Route;

use crate::body::{Replay, ResponseBody};
use crate::call::{Active, Ending, Record};
use crate::directory::ServiceView;
use crate::http::{
    Asks, FORWARDED_PROTO, Form, HTTP1_CLIENT, address_request, address_response, admit, authority, ensure_request_id,
    head_bytes, local_reply, remove_hop_headers,
};
use crate::http1::Unread;
use crate::incoming::{Incoming, Upgrade};
use crate::labels;
use crate::metrics::Pair;
use crate::proxy::{Proxy, surroundings};
use attempts::{Attempts, Failure, Sent};
pub(crate) use attempts::{broken_rule, classify, classify_body};
pub use foreign::Foreign;
use mirror::Original;
pub use plan::may_pass;
use plan::{Decision, Grant, Plan, decide, speaks_http2};

/// Of a route whose rewrite makes no path.
const NO_REWRITTEN_PATH: &str = "what the route makes of the path is no path, or is too long";
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");

/// A connection of our application.
pub struct Downstream {
    /// The proxy.
    pub proxy: Arc<Proxy>,
    /// The worker that serves it.
    pub worker: u16,
    /// The application's side, and where it was dialed to: our own listener when it was not redirected.
    pub ends: Ends,
    /// Where it was dialed to, when it was redirected.
    pub original: Option<SocketAddr>,
    /// The gateway's servers of the port that a caller from outside came in by.
    pub gateway: Option<Arc<Entrance>>,
    /// What is dialed where it was dialed to.
    pub foreign: Foreign,
}

/// What is behind one port of a gateway, for one connection.
pub struct Entrance {
    /// Its servers; with TLS the one that the caller named.
    pub servers: Vec<Arc<Server>>,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The TLS that has ended here.
    pub tls: Option<Tls>,
}

/// Serves one request of our application.
// Inlined, so that the task's state is made where it stays: it is large, and would be copied there otherwise.
#[inline(always)]
pub fn request(
    down: &Arc<Downstream>,
    request: Request<Incoming>,
) -> impl Future<Output = Response<ResponseBody>> + Send + '_ {
    let start = Instant::now();
    // A drain waits for an answer that has not begun, too.
    let active = down.proxy.outbound.begin();
    // Taken apart before the task begins, which would have room for it twice otherwise.
    let (mut parts, mut incoming) = request.into_parts();
    async move {
        ensure_request_id(&mut parts.headers);
        let call = Call { down, start, version: parts.version };
        let asks = match admit(&mut parts, Limits::OUTSIDE, incoming.may_upgrade(), &down.proxy.settings.upgrades) {
            Ok(asks) => asks,
            Err(reason) => return call.refuse_for(&parts, labels::unknown(&down.proxy), reason),
        };
        // What is decided and what it is decided by is gone before the request is sent: its task is the smaller for it.
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
        let grant = plan.grant.take();
        let upgrade = incoming.take_upgrade().filter(|_| asks != Asks::Nothing);
        let response = call.send(&mut parts, incoming, upgrade, &plan, active).await;
        granted(grant, response)
    }
}

/// Answers a request of our application whose head cannot be read.
pub fn refuse(down: &Arc<Downstream>, unread: &Unread) -> Response<ResponseBody> {
    let proxy = &down.proxy;
    let pair = proxy.metrics.pair(labels::unknown(proxy));
    let record = Record::unread(proxy, &unread.line, down.ends.source, pair);
    let call = Call { down, start: record.start, version: Version::HTTP_11 };
    call.refuse(record, &HeaderMap::new(), &Reason::from(&unread.error).into(), "")
}

/// Tells browsers that the origin may read the answer, whoever made it.
fn granted(grant: Option<Box<Grant>>, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    if let Some(grant) = grant {
        grant.cors.actual(grant.origin, response.headers_mut());
    }
    response
}

/// One request on its way through the phases.
struct Call<'a> {
    down: &'a Arc<Downstream>,
    start: Instant,
    version: Version,
}

/// What a request takes along to its response.
struct Kept<'a> {
    plan: &'a Plan,
    context: Context<'a>,
    /// Where response headers are made of them.
    request_headers: Option<HeaderMap>,
    upgrade: Option<Upgrade>,
    body: Option<Arc<Replay>>,
    permit: Permit,
    active: Active,
    /// The response's body too must have ended by then.
    deadline: Option<tokio::time::Instant>,
}

impl Call<'_> {
    /// What is to be sent, or the answer of a request that is not.
    fn unless_answered(&self, parts: &Parts, decision: Decision) -> Result<Plan, Box<Response<ResponseBody>>> {
        let proxy = &self.down.proxy;
        Err(Box::new(match decision {
            Decision::Send(plan) => return Ok(plan),
            Decision::Answer(service, route, response, grant) => {
                granted(grant, self.answer(parts, &service, &route, *response))
            }
            Decision::Secure(mut response) => {
                let mut record = self.record(parts, proxy.metrics.pair(labels::unknown(proxy)));
                record.code = response.status().as_u16();
                address_response(&mut response, self.version, false);
                ended(record, *response)
            }
            Decision::Refuse(service, reason) => {
                let pair = match service {
                    Some(view) => labels::service(proxy, &view),
                    None => labels::unknown(proxy),
                };
                self.refuse_for(parts, pair, reason)
            }
        }))
    }

    /// Refuses a request before it has a cluster.
    fn refuse_for(&self, parts: &Parts, pair: Pair, reason: Reason) -> Response<ResponseBody> {
        let pair = self.down.proxy.metrics.pair(pair);
        self.refuse(self.record(parts, pair), &parts.headers, &reason.into(), "")
    }

    /// Phases 3 to 5.
    async fn send(
        &self,
        parts: &mut Parts,
        mut incoming: Incoming,
        upgrade: Option<Upgrade>,
        plan: &Plan,
        active: Active,
    ) -> Response<ResponseBody> {
        let proxy = &self.down.proxy;
        let cluster = &plan.cluster;
        let config = &cluster.config;
        let mut record = self.record(parts, cluster.pair(proxy, None));
        record.cluster = Some(config.name.clone());
        record.route = plan.route_name().cloned();
        if config.undefined {
            return self.refuse(record, &parts.headers, &Reason::ClusterUndefined.into(), &config.policy);
        }
        if let Some(fault) = plan.forward().and_then(|(forward, _)| forward.fault.as_ref()) {
            let (first, second) = (rand::random(), rand::random());
            if let Some(delay) = fault.delay(first) {
                record.flags.insert(ResponseFlag::DelayInjected);
                // Rare, and the others need not have room for it.
                Box::pin(tokio::time::sleep(delay)).await;
            }
            if let Some(abort) = fault.abort(second) {
                return self.refuse(record, &parts.headers, &Reason::Fault(abort).into(), plan.route_policy());
            }
        }
        let permit = match cluster.shared.limits.requests.try_acquire(config.pool.max_requests) {
            Ok(permit) => permit,
            Err(overflow) => {
                return self.refuse(record, &parts.headers, &Reason::Overflow(overflow).into(), &config.policy);
            }
        };
        let grpc = record.grpc;
        let forward = plan.forward();
        let none = RetryPolicy::none();
        let (routes_retry, routes_timeout) = forward.map_or((&none, None), |(f, _)| (&f.retry, f.timeout));
        let asked = asked(&mut parts.headers, routes_retry, routes_timeout, grpc);
        // An endpoint that the application chose itself is not exchanged for another one.
        let retry = asked.retry.as_ref().filter(|_| forward.is_some()).unwrap_or(routes_retry);
        let timeout = asked.timeout.unwrap_or(routes_timeout);

        let client_host = authority(parts).to_owned();
        let (method, path) = (parts.method.clone(), path_and_query(parts).to_owned());
        let route = plan.route_name().map_or("", |name| &**name);
        let context = Context {
            surroundings: surroundings(),
            ends: &self.down.ends,
            tls: self.down.gateway.as_ref().and_then(|entrance| entrance.tls.as_ref()),
            version: self.version,
            start: &self.start,
            method: method.as_str(),
            authority: &client_host,
            path_and_query: &path,
            cluster: &config.name,
            route,
        };
        let upgrades = upgrade.is_some() || parts.method == Method::CONNECT;
        let multiplex =
            upgrade.is_none() && speaks_http2(cluster, self.version, parts, grpc, self.down.gateway.is_some());
        prepare(parts, plan, upgrade.is_some(), &context);
        // What the response's formatters tell of the request is what was made of it, as in Envoy.
        let reads_request = plan.header_operations().iter().any(|ops| ops.response.reads_request_headers());
        let request_headers = reads_request.then(|| parts.headers.clone());
        let rewritten = plan.rewritten.is_some().then(|| path_and_query(parts).to_owned());
        if multiplex && self.version != Version::HTTP_2 && !speaks_only_http2(config.protocol) {
            parts.headers.insert(HTTP1_CLIENT, HeaderValue::from_static("1"));
        }
        let host = upstream_host(parts, forward.and_then(|(_, d)| d.authority.as_ref()), &client_host);
        let context = Context { authority: &host, path_and_query: rewritten.as_deref().unwrap_or(&path), ..context };
        let form = match multiplex {
            true => Form::Http2,
            false if plan.keeps_form => Form::AsItCame,
            false => Form::Origin,
        };
        address_request(parts, &host, form);

        let interim = incoming.take_interim();
        let origin = std::mem::take(&mut incoming.origin);
        record.heads.0 = head_bytes(&origin, &parts.headers);
        let body = if incoming.is_end_stream() { None } else { Some(Replay::new(incoming)) };
        if !plan.mirrors.is_empty() && !upgrades {
            let (down, version, body) = (self.down, self.version, body.as_ref());
            Original { down, parts, version, origin: &origin, body, host: &host, timeout }.copies(&plan.mirrors, grpc);
        }
        let mut attempts = Attempts {
            down: self.down,
            plan,
            origin: &origin,
            body: body.as_ref(),
            interim: interim.as_deref(),
            retry,
            multiplex,
            grpc,
            again: forward.map_or_else(Again::default, |(f, _)| f.again),
            made: 0,
            last: None,
        };
        let (result, deadline) = {
            let running = pin!(attempts.run(parts));
            match timeout {
                None => (running.await, None),
                Some(after) => within(after, body.as_ref(), running).await,
            }
        };
        record.attempts = attempts.made;
        if let Some(endpoint) = &attempts.last {
            record.upstream = Some(endpoint.key.clone());
            record.pair = cluster.pair(proxy, Some(endpoint));
        }
        match result {
            Ok(sent) => {
                let kept = Kept { plan, context, request_headers, upgrade, body, permit, active, deadline };
                self.respond(record, sent, kept)
            }
            Err(failure) => {
                let late = matches!(failure.reason, Reason::Timeout { .. });
                if late && let Some(endpoint) = &attempts.last {
                    cluster.record(endpoint, &Outcome::Timeout);
                }
                let by_route = late || matches!(failure.reason, Reason::PerTryTimeout { .. });
                let policy = if by_route { plan.route_policy() } else { &config.policy };
                let headers = if grpc { grpc_headers() } else { HeaderMap::new() };
                self.refuse(record, &headers, &failure, policy)
            }
        }
    }

    /// Phase 5.
    fn respond(&self, mut record: Box<Record>, sent: Sent, kept: Kept<'_>) -> Response<ResponseBody> {
        let Sent { mut response, lease, in_flight, flags } = sent;
        record.answered(&response, &response.body().origin);
        record.flags.extend(flags);
        let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS
            || (kept.upgrade.is_some() && kept.context.method == "CONNECT" && response.status().is_success());
        let operations = kept.plan.header_operations();
        // Most requests have none.
        let upstream = if operations.is_empty() { None } else { record.upstream.clone() };
        let answer = Answer {
            status: response.status(),
            details: Answer::UPSTREAM,
            flags: record.flags,
            upstream: upstream.as_deref(),
            attempts: record.attempts,
        };
        let mut ending = Ending {
            lease: Some(lease),
            worker: self.down.worker,
            request: kept.body.map(|b| b.state.clone()),
            in_flight: Some(in_flight),
            permit: Some(kept.permit),
            active: Some(kept.active),
            record: Some(record),
        };
        if switching && let Some(client) = kept.upgrade {
            let server = response.body_mut().take_upgrade();
            let mut response = response.map(|incoming| ResponseBody::upstream(incoming, Ending::none(), None));
            address_response(&mut response, self.version, false);
            if let Some(server) = server {
                tokio::spawn(ending.tunnel(client, server));
            }
            return response;
        }
        address_response(&mut response, self.version, false);
        let none = HeaderMap::new();
        for ops in operations {
            let request_headers = kept.request_headers.as_ref().unwrap_or(&none);
            ops.response.apply_to_response(response.headers_mut(), request_headers, &kept.context, &answer);
        }
        if let Some(cookie) = &kept.plan.hash.set_cookie {
            response.headers_mut().append(SET_COOKIE, cookie.clone());
        }
        let (parts, incoming) = response.into_parts();
        if kept.context.method == "HEAD" {
            // A HEAD response has no body whatever its headers say.
            ending.complete();
            return Response::from_parts(parts, ResponseBody::upstream(incoming, Ending::none(), None));
        }
        Response::from_parts(parts, ResponseBody::upstream(incoming, ending, kept.deadline))
    }

    fn record(&self, parts: &Parts, pair: Arc<Pair>) -> Box<Record> {
        Record::new(&self.down.proxy, parts, self.down.ends.source, self.start, pair)
    }

    /// An answer of our own, that says why.
    fn refuse(
        &self,
        mut record: Box<Record>,
        request: &HeaderMap,
        failure: &Failure,
        policy: &str,
    ) -> Response<ResponseBody> {
        let (reply, mut response) = local_reply(&failure.reason, policy, request);
        record.flags.extend(failure.flags);
        record.refused(reply, &response, request);
        address_response(&mut response, self.version, false);
        ended(record, response)
    }

    /// The answer of a route that sends nothing.
    fn answer(
        &self,
        parts: &Parts,
        service: &ServiceView,
        route: &Route,
        mut response: Response<ResponseBody>,
    ) -> Response<ResponseBody> {
        let proxy = &self.down.proxy;
        let mut record = self.record(parts, proxy.metrics.pair(labels::service(proxy, service)));
        record.code = response.status().as_u16();
        record.route = Some(route.name.clone());
        let context = Context {
            surroundings: surroundings(),
            ends: &self.down.ends,
            tls: self.down.gateway.as_ref().and_then(|entrance| entrance.tls.as_ref()),
            version: self.version,
            start: &self.start,
            method: parts.method.as_str(),
            authority: authority(parts),
            path_and_query: path_and_query(parts),
            cluster: "",
            route: &route.name,
        };
        let answer = Answer {
            status: response.status(),
            details: Answer::DIRECT,
            flags: record.flags,
            upstream: None,
            attempts: 0,
        };
        address_response(&mut response, self.version, false);
        route.headers.response.apply_to_response(response.headers_mut(), &parts.headers, &context, &answer);
        ended(record, response)
    }
}

fn ended(record: Box<Record>, response: Response<ResponseBody>) -> Response<ResponseBody> {
    let mut ending = Ending::none();
    ending.record = Some(record);
    response.map(|body| body.with_ending(ending))
}

/// Runs the attempts within a time that begins, as in Envoy, when the request has been received. With an answer comes the
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

fn speaks_only_http2(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Http2 | Protocol::Grpc)
}

/// The request's headers as the upstream is to see them.
fn prepare(parts: &mut Parts, plan: &Plan, upgrade: bool, context: &Context<'_>) {
    remove_hop_headers(&mut parts.headers, upgrade);
    parts.headers.remove(HTTP1_CLIENT);
    if !parts.headers.contains_key(FORWARDED_PROTO) {
        parts.headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    for ops in plan.header_operations() {
        ops.request.apply_to_request(&mut parts.headers, context);
    }
    // What the client wrote is kept for the application, as Envoy does.
    let mut keep = |name: HeaderName, text: &str| {
        if !parts.headers.contains_key(&name)
            && let Ok(text) = HeaderValue::from_str(text)
        {
            parts.headers.insert(name, text);
        }
    };
    if plan.rewritten.is_some() {
        keep(ORIGINAL_PATH, context.path_and_query);
    }
    if plan.forward().is_some_and(|(_, destination)| destination.tells_original_host) {
        keep(ORIGINAL_HOST, context.authority);
    }
    if let Some(target) = &plan.rewritten {
        http1::Target::clone(target).replace(parts);
    }
}

/// The authority that the upstream is to see: the route's, else one that a header operation set, else the client's.
fn upstream_host(parts: &Parts, rewritten: Option<&Authority>, client: &str) -> String {
    match (rewritten, parts.headers.get(HOST)) {
        (Some(authority), _) => authority.as_str().to_owned(),
        (None, Some(host)) => host.to_str().unwrap_or(client).to_owned(),
        (None, None) => client.to_owned(),
    }
}

fn grpc_headers() -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))])
}
