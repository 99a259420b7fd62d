//! What our application calls: the phases of a request, in order.
//!
//! 1. Which service: by authority, then by the address that was dialed; else it is foreign and passes through.
//! 2. Which route of it, and so which cluster; redirects and direct answers end here.
//! 3. Admission by the cluster's limits.
//! 4. Attempts: pick an endpoint, get a connection, send, classify what came of it; again while the policy says so.
//! 5. The response goes back; its body holds the connection and the permits until it has ended.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use http::header::SET_COOKIE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rand::Rng;
use smallvec::SmallVec;
use weft_core::endpoint::{Endpoint, InFlight, find};
use weft_core::hash::{HashOutcome, request_hash};
use weft_core::headers::{Context, HeaderOps};
use weft_core::limits::Overflow;
use weft_core::names;
use weft_core::outcome::Outcome;
use weft_core::policy::{H2Upgrade, Protocol};
use weft_core::reply::{Reason, is_grpc};
use weft_core::request::RequestView;
use weft_core::retry::RetryPolicy;
use weft_core::route::{Action, Forward, Route};

use crate::body::{Replay, RequestBody, ResponseBody};
use crate::call::{Ending, LogFields, Record};
use crate::cluster::ClusterView;
use crate::connect::MARK_UPSTREAM;
use crate::directory::{Lookup, ServiceView};
use crate::http::{
    ATTEMPT_COUNT, FORWARDED_PROTO, REQUEST_ID, address_request, address_response, authority, ensure_request_id,
    local_reply, path_and_query, remove_hop_headers, wants_upgrade,
};
use crate::metrics::{Pair, Workload};
use crate::pool::{CheckoutError, Lease};
use crate::proxy::{Proxy, foreign_endpoint};
use crate::stream::{Moved, relay};
use crate::upstream::{DialError, Dialer};

/// A connection of our application.
pub struct Downstream {
    /// The proxy.
    pub proxy: Arc<Proxy>,
    /// The worker that serves it.
    pub worker: u16,
    /// The application's side.
    pub peer: SocketAddr,
    /// Where it was dialed to; our own listener when it was not redirected.
    pub local: SocketAddr,
    /// Where it was dialed to, when it was redirected.
    pub original: Option<SocketAddr>,
    /// The endpoint and cluster for what is foreign, made when first needed: its connections end with this one.
    pub foreign: OnceLock<(Arc<Endpoint>, Arc<ClusterView>)>,
}

impl Drop for Downstream {
    fn drop(&mut self) {
        if let Some((endpoint, cluster)) = self.foreign.get() {
            cluster.shared.pool.forget(endpoint.state.id());
        }
    }
}

/// Where a request goes.
enum Target {
    /// To a service, by its routes.
    Service(Arc<ServiceView>, u16),
    /// To this endpoint of a service, by the application's own choice.
    Pinned(Arc<ClusterView>, Arc<Endpoint>),
    /// To where it was dialed.
    Foreign(SocketAddr),
    /// Nowhere.
    None(Reason),
}

/// The plan for a request that is to be sent.
struct Plan {
    cluster: Arc<ClusterView>,
    /// Where there is no choice.
    fixed: Option<Arc<Endpoint>>,
    hash: HashOutcome,
    /// With it: the forward's retries, timeout, header changes.
    route: Option<(Arc<Route>, usize)>,
    rewritten: Option<String>,
}

/// Serves one request of our application.
pub async fn request(down: &Arc<Downstream>, mut request: Request<Incoming>) -> Response<ResponseBody> {
    let start = Instant::now();
    let upgrade = request.extensions().get::<OnUpgrade>().is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut parts, incoming) = request.into_parts();
    let upgrade = upgrade.filter(|_| wants_upgrade(&parts));
    let mut call = Call { down, start, version: parts.version, record: None };
    ensure_request_id(&mut parts.headers);

    let target = target(down, &parts).await;
    let plan = match call.plan(&parts, target) {
        Ok(plan) => plan,
        Err(response) => return response,
    };
    call.send(parts, incoming, upgrade, plan).await
}

/// Phase 1.
async fn target(down: &Downstream, parts: &Parts) -> Target {
    let directory = &down.proxy.directory;
    let (_, named_port) = names::split_port(authority(parts));
    let host = names::normalise(authority(parts));
    let port = down.original.map(|o| o.port()).or(named_port).unwrap_or(80);
    // An address as authority names no service; the address that was dialed says more.
    if !host.is_empty()
        && host.parse::<std::net::IpAddr>().is_err()
        && let Lookup::Service(view) = directory.lookup(&host).await
        && (view.service.port(port).is_some() || down.original.is_none())
    {
        return Target::Service(view, port);
    }
    let Some(original) = down.original.or_else(|| authority(parts).parse().ok()) else {
        return Target::None(Reason::UnknownHost);
    };
    dialed(down, original).await
}

/// What the address means that was dialed.
async fn dialed(down: &Downstream, original: SocketAddr) -> Target {
    if let Lookup::Service(view) = down.proxy.directory.lookup(&original.to_string()).await {
        if view.service.addresses.contains(&original.ip()) {
            return Target::Service(view, original.port());
        }
        // An endpoint's own address: the application balances by itself, and its choice stands.
        let pinned = view.clusters.iter().filter(|c| c.config.subset.is_empty()).find_map(|c| {
            let endpoint = find(&c.endpoints, original)?;
            Some((c.clone(), endpoint.clone()))
        });
        if let Some((cluster, endpoint)) = pinned {
            return Target::Pinned(cluster, endpoint);
        }
    }
    if may_pass(&down.proxy, original) { Target::Foreign(original) } else { Target::None(Reason::UnknownHost) }
}

/// Whether a destination that the mesh does not know is dialed as addressed. A virtual IP is nobody's real address.
pub fn may_pass(proxy: &Proxy, original: SocketAddr) -> bool {
    let is_virtual = matches!(original.ip(), std::net::IpAddr::V4(ip) if ip.octets()[..2] == [240, 240]);
    proxy.settings.allow_any && !is_virtual
}

/// One request on its way through the phases.
struct Call<'a> {
    down: &'a Arc<Downstream>,
    start: Instant,
    version: Version,
    record: Option<Record>,
}

impl Call<'_> {
    /// Phase 2. `Err`: the answer is ready.
    #[expect(clippy::result_large_err, reason = "both are as large: a plan or an answer")]
    fn plan(&mut self, parts: &Parts, target: Target) -> Result<Plan, Response<ResponseBody>> {
        let view = RequestView {
            method: &parts.method,
            path_and_query: path_and_query(&parts.uri),
            authority: authority(parts),
            headers: &parts.headers,
            source: self.down.peer,
            local: self.down.local,
        };
        match target {
            Target::None(reason) => Err(self.refuse(parts, None, &reason, "")),
            Target::Foreign(to) => {
                // Addressed as an HTTP proxy, each request may go elsewhere: no connection is kept for the next one.
                if self.down.original.is_none() {
                    return Ok(Plan::fixed(Arc::new(ClusterView::passthrough(1)), foreign_endpoint(to)));
                }
                let make = || (foreign_endpoint(to), Arc::new(ClusterView::passthrough(u32::MAX)));
                let (endpoint, cluster) = self.down.foreign.get_or_init(make);
                Ok(Plan::fixed(cluster.clone(), endpoint.clone()))
            }
            Target::Pinned(cluster, endpoint) => Ok(Plan::fixed(cluster, endpoint)),
            Target::Service(service, port) => {
                let Some(port) = service.service.port(port) else {
                    return Err(self.refuse(parts, Some(&service), &Reason::NoRoute, ""));
                };
                let Some(route) = port.routes.find(&view) else {
                    return Err(self.refuse(parts, Some(&service), &Reason::NoRoute, ""));
                };
                match &*route.action {
                    Action::Forward(forward) => {
                        let at = position(forward, rand::rng().next_u64());
                        let cluster = service.clusters[forward.destinations[at].cluster].clone();
                        let hash = request_hash(&forward.hash, &view);
                        let rewritten = route.rewritten_path(forward, &view);
                        let fixed = cluster.config.original_destination.then_some(self.down.original).flatten();
                        let fixed = fixed.map(|to| {
                            let foreign = || (foreign_endpoint(to), cluster.clone());
                            self.down.foreign.get_or_init(foreign).0.clone()
                        });
                        Ok(Plan { cluster, fixed, hash, route: Some((route.clone(), at)), rewritten })
                    }
                    Action::Redirect(redirect) => {
                        let port = self.down.original.map_or(80, |o| o.port());
                        let mut response = Response::new(ResponseBody::empty());
                        *response.status_mut() = redirect.status;
                        if let Ok(location) = HeaderValue::from_str(&redirect.location(&view, "http", port)) {
                            response.headers_mut().insert(http::header::LOCATION, location);
                        }
                        Err(self.answer(parts, &service, route, &view, response))
                    }
                    Action::DirectResponse(direct) => {
                        let mut response = Response::new(ResponseBody::full(direct.body.clone()));
                        *response.status_mut() = direct.status;
                        if !direct.body.is_empty() {
                            let text = HeaderValue::from_static("text/plain");
                            response.headers_mut().insert(http::header::CONTENT_TYPE, text);
                        }
                        Err(self.answer(parts, &service, route, &view, response))
                    }
                }
            }
        }
    }

    /// Phases 3 to 5.
    async fn send(
        &mut self,
        mut parts: Parts,
        incoming: Incoming,
        upgrade: Option<OnUpgrade>,
        plan: Plan,
    ) -> Response<ResponseBody> {
        let cluster = plan.cluster.clone();
        let config = &cluster.config;
        if config.undefined {
            return self.refuse_in(&parts, &cluster, &Reason::ClusterUndefined);
        }
        let permit = match cluster.shared.limits.requests.try_acquire(config.pool.max_requests) {
            Ok(permit) => permit,
            Err(overflow) => return self.refuse_in(&parts, &cluster, &Reason::Overflow(overflow)),
        };
        let grpc = is_grpc(&parts.headers);
        let client_host = authority(&parts).to_owned();
        let forward = plan.route.as_ref().and_then(|(route, at)| match &*route.action {
            Action::Forward(forward) => Some((forward, &forward.destinations[*at])),
            _ => None,
        });
        // Response headers may be made of request headers.
        let keep = |ops: &HeaderOps| ops.response.reads_request_headers();
        let kept = forward.filter(|(_, d)| d.headers.iter().any(keep)).map(|_| parts.headers.clone());
        let (method, path) = (parts.method.clone(), path_and_query(&parts.uri).to_owned());
        let context = Context {
            source: self.down.peer,
            version: self.version,
            method: method.as_str(),
            authority: &client_host,
            path_and_query: &path,
        };
        self.begin(&parts, &cluster, grpc);
        prepare(&mut parts, &plan, forward.map(|(_, d)| &d.headers[..]), upgrade.is_some(), &context);
        let host = upstream_host(&mut parts, forward.and_then(|(_, d)| d.authority.as_ref()), &client_host);

        let default_retry;
        let retry = match (forward, plan.fixed.is_some()) {
            (Some((forward, _)), _) => &forward.retry,
            _ => {
                default_retry = RetryPolicy::none();
                &default_retry
            }
        };
        let body = if incoming.is_end_stream() { None } else { Some(Replay::new(incoming)) };
        let timeout = forward.and_then(|(f, _)| f.timeout);
        let deadline = async {
            let Some(timeout) = timeout else { return std::future::pending().await };
            // As in Envoy, the time begins when the request has been received.
            if let Some(body) = &body {
                body.state.done().await;
            }
            tokio::time::sleep(timeout).await;
        };
        let multiplex = upgrade.is_none() && speaks_http2(&cluster, self.version, &parts);
        let avoids_tried = forward.is_none_or(|(f, _)| f.avoids_tried());
        let mut attempts = Attempts {
            down: self.down,
            cluster: &cluster,
            plan: &plan,
            host: &host,
            body: body.as_ref(),
            retry,
            multiplex,
            grpc,
            avoids_tried,
            made: 0,
            last_endpoint: None,
        };
        let result = tokio::select! {
            biased;
            result = attempts.run(parts) => result,
            () = deadline => Err(Failure { reason: Reason::Timeout }),
        };
        let (made, last) = (attempts.made, attempts.last_endpoint.take());
        if let Some(record) = &mut self.record {
            record.attempts = made;
            record.upstream = last.as_ref().map(|e| e.key.clone());
            if let Some(endpoint) = &last {
                record.pair = self.down.proxy.metrics.pair(pair(&self.down.proxy, &cluster, Some(endpoint)));
            }
        }
        let sent = match result {
            Ok(sent) => sent,
            Err(failure) => {
                if failure.reason == Reason::Timeout
                    && let Some(endpoint) = &last
                {
                    cluster.record(endpoint, &Outcome::Timeout);
                }
                let headers = if grpc { grpc_headers() } else { HeaderMap::new() };
                return self.fail(&headers, &cluster, &failure);
            }
        };
        self.respond(sent, forward.map(|(_, d)| &d.headers[..]), kept, &context, upgrade, body, permit, plan.hash)
    }

    /// Phase 5.
    #[expect(clippy::too_many_arguments, reason = "everything that outlives the request, handed over once")]
    fn respond(
        &mut self,
        sent: Sent,
        ops: Option<&[HeaderOps]>,
        request_headers: Option<HeaderMap>,
        context: &Context<'_>,
        upgrade: Option<OnUpgrade>,
        body: Option<Arc<Replay>>,
        permit: weft_core::limits::Permit,
        hash: HashOutcome,
    ) -> Response<ResponseBody> {
        let Sent { mut response, lease, in_flight } = sent;
        let mut record = self.record.take();
        if let Some(record) = &mut record {
            record.code = response.status().as_u16();
            record.grpc_status = response.headers().get("grpc-status").and_then(|s| s.to_str().ok()?.parse().ok());
        }
        let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS
            || (upgrade.is_some() && context.method == "CONNECT" && response.status().is_success());
        let mut ending = Ending {
            lease: Some(lease),
            worker: self.down.worker,
            request: body.map(|b| b.state.clone()),
            in_flight: Some(in_flight),
            permit: Some(permit),
            active: Some(self.down.proxy.outbound.begin()),
            record,
        };
        if switching && let Some(client) = upgrade {
            let server = hyper::upgrade::on(&mut response);
            tokio::spawn(tunnel(client, server, ending));
            let (parts, _) = response.into_parts();
            let mut response = Response::from_parts(parts, ResponseBody::empty());
            address_response(&mut response, self.version, false);
            return response;
        }
        address_response(&mut response, self.version, false);
        let none = HeaderMap::new();
        for ops in ops.unwrap_or_default() {
            ops.response.apply_to_response(response.headers_mut(), request_headers.as_ref().unwrap_or(&none), context);
        }
        if let Some(cookie) = hash.set_cookie {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        let (parts, incoming) = response.into_parts();
        if context.method == "HEAD" {
            // A HEAD response has no body whatever its headers say.
            ending.complete();
            return Response::from_parts(parts, ResponseBody::upstream(incoming, Ending::none()));
        }
        Response::from_parts(parts, ResponseBody::upstream(incoming, ending))
    }

    fn begin(&mut self, parts: &Parts, cluster: &Arc<ClusterView>, grpc: bool) {
        let proxy = &self.down.proxy;
        let pair = proxy.metrics.pair(pair(proxy, cluster, None));
        self.record = Some(self.new_record(parts, pair, grpc));
        if let Some(record) = &mut self.record {
            record.cluster = Some(cluster.config.name.clone());
        }
    }

    fn new_record(&self, parts: &Parts, pair: Arc<Pair>, grpc: bool) -> Record {
        let proxy = &self.down.proxy;
        let log = proxy.log.as_ref().map(|log| {
            let text = |v: Option<&HeaderValue>| v.and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
            let fields = LogFields {
                method: parts.method.to_string(),
                path: path_and_query(&parts.uri).to_owned(),
                authority: authority(parts).to_owned(),
                version: format!("{:?}", self.version),
                source: self.down.peer,
                request_id: text(parts.headers.get(REQUEST_ID)),
            };
            (log.clone(), fields)
        });
        Record {
            start: self.start,
            pair,
            metrics: proxy.metrics.clone(),
            log,
            grpc,
            code: 0,
            flag: None,
            reason: None,
            grpc_status: None,
            upstream: None,
            cluster: None,
            route: None,
            attempts: 0,
            sent: 0,
        }
    }

    /// A local answer before any cluster was chosen.
    fn refuse(
        &mut self,
        parts: &Parts,
        service: Option<&ServiceView>,
        reason: &Reason,
        policy: &str,
    ) -> Response<ResponseBody> {
        let proxy = &self.down.proxy;
        let pair = match service {
            Some(view) => proxy.metrics.pair(service_pair(proxy, view)),
            None => proxy.metrics.pair(unknown_pair(proxy)),
        };
        self.record = Some(self.new_record(parts, pair, is_grpc(&parts.headers)));
        self.finish_local(&parts.headers, reason, policy)
    }

    /// A local answer of a cluster's policy.
    fn refuse_in(&mut self, parts: &Parts, cluster: &Arc<ClusterView>, reason: &Reason) -> Response<ResponseBody> {
        self.begin(parts, cluster, is_grpc(&parts.headers));
        self.finish_local(&parts.headers, reason, &cluster.config.policy)
    }

    /// The answer when all attempts have failed.
    fn fail(&mut self, request: &HeaderMap, cluster: &ClusterView, failure: &Failure) -> Response<ResponseBody> {
        self.finish_local(request, &failure.reason, &cluster.config.policy)
    }

    fn finish_local(&mut self, request: &HeaderMap, reason: &Reason, policy: &str) -> Response<ResponseBody> {
        let (reply, mut response) = local_reply(reason, policy, request);
        if let Some(record) = &mut self.record {
            record.code = response.status().as_u16();
            record.flag = Some(reply.flag);
            record.reason = Some(reply.reason);
            record.grpc_status = record.grpc.then(|| weft_core::outcome::http_to_grpc(reply.status));
        }
        address_response(&mut response, self.version, false);
        self.ended(response)
    }

    /// The answer of a route that sends nothing.
    fn answer(
        &mut self,
        parts: &Parts,
        service: &ServiceView,
        route: &Route,
        view: &RequestView<'_>,
        mut response: Response<ResponseBody>,
    ) -> Response<ResponseBody> {
        let proxy = &self.down.proxy;
        let mut record = self.new_record(parts, proxy.metrics.pair(service_pair(proxy, service)), false);
        record.code = response.status().as_u16();
        record.route = Some(route.name.clone());
        self.record = Some(record);
        let context = Context {
            source: self.down.peer,
            version: self.version,
            method: view.method.as_str(),
            authority: view.authority,
            path_and_query: view.path_and_query,
        };
        address_response(&mut response, self.version, false);
        route.headers.response.apply_to_response(response.headers_mut(), &parts.headers, &context);
        self.ended(response)
    }

    fn ended(&mut self, response: Response<ResponseBody>) -> Response<ResponseBody> {
        let mut ending = Ending::none();
        ending.record = self.record.take();
        response.map(|body| body.with_ending(ending))
    }
}

impl Plan {
    fn fixed(cluster: Arc<ClusterView>, endpoint: Arc<Endpoint>) -> Plan {
        Plan { cluster, fixed: Some(endpoint), hash: HashOutcome::default(), route: None, rewritten: None }
    }
}

/// The requests to endpoints that one request of the application becomes.
struct Attempts<'a> {
    down: &'a Arc<Downstream>,
    cluster: &'a Arc<ClusterView>,
    plan: &'a Plan,
    host: &'a str,
    body: Option<&'a Arc<Replay>>,
    retry: &'a RetryPolicy,
    multiplex: bool,
    grpc: bool,
    avoids_tried: bool,
    made: u32,
    last_endpoint: Option<Arc<Endpoint>>,
}

struct Sent {
    response: Response<Incoming>,
    lease: Lease,
    in_flight: InFlight,
}

struct Failure {
    reason: Reason,
}

/// One attempt's failure.
struct Attempt {
    outcome: Outcome,
    detail: String,
    overflow: Option<Overflow>,
    without_identity: bool,
}

impl From<Outcome> for Attempt {
    fn from(outcome: Outcome) -> Attempt {
        Attempt { outcome, detail: String::new(), overflow: None, without_identity: false }
    }
}

impl Attempts<'_> {
    /// Phase 4.
    async fn run(&mut self, parts: Parts) -> Result<Sent, Failure> {
        let mut tried: SmallVec<[Arc<Endpoint>; 4]> = SmallVec::new();
        let mut random = || rand::rng().next_u64();
        let keeps = self.retry.attempts > 0 && self.retry.retry_on.keeps_request(self.multiplex, self.grpc);
        let mut parts = Some(parts);
        // Held from a retry's beginning to its end, as maxRetries counts them.
        let mut retry_permit = None;
        loop {
            let Some(mut sending) = (if keeps { parts.clone() } else { parts.take() }) else {
                return Err(Failure { reason: Reason::UpstreamClosed });
            };
            let endpoint = match &self.plan.fixed {
                Some(endpoint) => Some(endpoint.clone()),
                None => {
                    let balancer = self.cluster.balancer();
                    let hash = self.plan.hash.hash;
                    if self.avoids_tried && !tried.is_empty() {
                        balancer.pick_avoiding(hash, &mut random, &tried).cloned()
                    } else {
                        balancer.pick(hash, &mut random, 0).cloned()
                    }
                }
            };
            let Some(endpoint) = endpoint else {
                return Err(Failure { reason: Reason::NoHealthyUpstream });
            };
            self.made += 1;
            self.last_endpoint = Some(endpoint.clone());
            sending.headers.insert(ATTEMPT_COUNT, HeaderValue::from(self.made));
            let trying = self.attempt(&endpoint, sending);
            let result = match self.retry.per_try_timeout {
                None => trying.await,
                Some(limit) => match tokio::time::timeout(limit, trying).await {
                    Ok(result) => result,
                    Err(_) => Err((Attempt::from(Outcome::PerTryTimeout { request_started: true }), None)),
                },
            };
            let attempt = self.made - 1;
            let (failed, sent, unsent) = match result {
                Ok(sent) => {
                    let outcome = Outcome::response(sent.response.status(), sent.response.headers());
                    self.cluster.record(&endpoint, &outcome);
                    let again = keeps && self.retry.should_retry(&outcome, attempt) && self.may_resend();
                    if !again {
                        return Ok(sent);
                    }
                    (Attempt::from(outcome), Some(sent), None)
                }
                Err((failed, unsent)) => {
                    self.cluster.record(&endpoint, &failed.outcome);
                    (failed, None, unsent)
                }
            };
            if parts.is_none() {
                parts = unsent;
            }
            let wanted = self.retry.should_retry(&failed.outcome, attempt);
            let again = wanted && parts.is_some() && self.may_resend();
            if again {
                drop(retry_permit.take());
                let retries = &self.cluster.shared.limits.retries;
                retry_permit = retries.try_acquire(self.cluster.config.pool.max_retries).ok();
            }
            if !again || retry_permit.is_none() {
                // An answer that could not be retried is still an answer.
                if let Some(sent) = sent {
                    return Ok(sent);
                }
                return Err(Failure { reason: self.reason(failed) });
            }
            drop(sent);
            tokio::time::sleep(self.retry.backoff(attempt, &mut random)).await;
            tried.push(endpoint);
        }
    }

    /// Whether the body can be sent from its beginning.
    fn may_resend(&self) -> bool {
        self.body.is_none_or(|body| body.is_whole())
    }

    fn reason(&self, failed: Attempt) -> Reason {
        if failed.without_identity {
            return Reason::PeerWithoutIdentity;
        }
        Reason::of(&failed.outcome, failed.overflow, &failed.detail).unwrap_or(Reason::UpstreamClosed)
    }

    /// One attempt. An error comes with the request where it was not sent.
    async fn attempt(&self, endpoint: &Arc<Endpoint>, mut parts: Parts) -> Result<Sent, (Attempt, Option<Parts>)> {
        let in_flight = endpoint.state.enter();
        let config = &self.cluster.config;
        let identity = &self.down.proxy.identity;
        address_request(&mut parts, self.host, self.multiplex);
        let mut parts = Some(parts);
        // A connection that the peer closed while it was idle costs nobody a request: another one is taken.
        loop {
            let multiplex = self.multiplex;
            let dialer = Dialer { cluster: config, endpoint, identity, multiplex, mark: MARK_UPSTREAM };
            let checkout = self.cluster.shared.pool.checkout(self.down.worker, dialer).await;
            let mut lease = match checkout {
                Ok(lease) => lease,
                Err(CheckoutError::Overflow(overflow)) => {
                    let failed = Attempt { overflow: Some(overflow), ..Attempt::from(Outcome::Overflow) };
                    return Err((failed, parts));
                }
                Err(CheckoutError::Dial(DialError { outcome, detail, without_identity })) => {
                    return Err((Attempt { outcome, detail, overflow: None, without_identity }, parts));
                }
            };
            let body = match self.body {
                None => RequestBody::Empty,
                Some(body) => match body.attempt() {
                    Some(body) => body,
                    None => return Err((Attempt::from(Outcome::Reset { request_started: true }), None)),
                },
            };
            let Some(head) = parts.take() else {
                return Err((Attempt::from(Outcome::Reset { request_started: true }), None));
            };
            match lease.send(Request::from_parts(head, body)).await {
                Ok(response) => return Ok(Sent { response, lease, in_flight }),
                Err(mut failed) => {
                    let reused = lease.reused;
                    if let Some(unsent) = failed.take_message() {
                        let (head, body) = unsent.into_parts();
                        drop(body);
                        parts = Some(head);
                        if reused && self.may_resend() {
                            continue;
                        }
                    }
                    let error = failed.error();
                    let outcome = classify(error, parts.is_none());
                    let failed = Attempt { detail: error.to_string(), ..Attempt::from(outcome) };
                    return Err((failed, parts));
                }
            }
        }
    }
}

/// What a failed exchange means.
fn classify(error: &hyper::Error, request_started: bool) -> Outcome {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(h2) = inner.downcast_ref::<h2::Error>() {
            let refused = h2.reason() == Some(h2::Reason::REFUSED_STREAM);
            return if refused { Outcome::RefusedStream } else { Outcome::Reset { request_started } };
        }
        source = inner.source();
    }
    if error.is_parse() { Outcome::ProtocolError } else { Outcome::Reset { request_started } }
}

/// Whether HTTP/2 is spoken to the endpoint: as the application does, or as the port or the policy says.
fn speaks_http2(cluster: &ClusterView, client: Version, parts: &Parts) -> bool {
    if parts.method == Method::CONNECT {
        return false;
    }
    let config = &cluster.config;
    client == Version::HTTP_2
        || matches!(config.protocol, Protocol::Http2 | Protocol::Grpc)
        || (config.pool.h2_upgrade == H2Upgrade::Upgrade && !config.pool.use_client_protocol)
}

fn position(forward: &Forward, random: u64) -> usize {
    let chosen = forward.choose(random);
    forward.destinations.iter().position(|d| std::ptr::eq(d, chosen)).unwrap_or(0)
}

/// The request's headers as the upstream is to see them.
fn prepare(parts: &mut Parts, plan: &Plan, ops: Option<&[HeaderOps]>, upgrade: bool, context: &Context<'_>) {
    remove_hop_headers(&mut parts.headers, upgrade);
    if !parts.headers.contains_key(FORWARDED_PROTO) {
        parts.headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    for ops in ops.unwrap_or_default() {
        ops.request.apply_to_request(&mut parts.headers, context);
    }
    if let Some(path) = &plan.rewritten
        && let Ok(path) = path.parse()
    {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.path_and_query = Some(path);
        parts.uri = http::Uri::from_parts(uri).unwrap_or_default();
    }
}

/// The authority that the upstream is to see: the route's, else one that a header operation set, else the client's.
fn upstream_host(parts: &mut Parts, rewritten: Option<&http::uri::Authority>, client: &str) -> String {
    match (rewritten, parts.headers.get(http::header::HOST)) {
        (Some(authority), _) => authority.as_str().to_owned(),
        (None, Some(host)) => host.to_str().unwrap_or(client).to_owned(),
        (None, None) => client.to_owned(),
    }
}

/// Relays bytes after an upgrade, holding what the request held.
async fn tunnel(client: OnUpgrade, server: OnUpgrade, mut ending: Ending) {
    let (Ok(client), Ok(server)) = (client.await, server.await) else { return };
    let moved = Moved::default();
    relay(TokioIo::new(client), TokioIo::new(server), &moved, None, None).await;
    ending.sent(usize::try_from(moved.received.into_inner()).unwrap_or(usize::MAX));
    // The connection is used up.
    ending.lease = None;
    ending.complete();
}

fn grpc_headers() -> HeaderMap {
    HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"))])
}

/// Labels for a call to an endpoint of a cluster.
pub fn pair(proxy: &Proxy, cluster: &ClusterView, endpoint: Option<&Arc<Endpoint>>) -> Pair {
    let config = &cluster.config;
    let destination = match endpoint {
        Some(endpoint) if !endpoint.config.workload.is_empty() => {
            let label = |name: &str| endpoint.config.labels.get(name).map(|v| Arc::from(v.as_str()));
            let principal = endpoint.config.identity.as_ref().map(|id| Arc::from(id.as_str()));
            let name = endpoint.config.workload.clone();
            Workload {
                app: label("app").unwrap_or_else(|| name.clone()),
                version: label("version").unwrap_or_else(|| "latest".into()),
                namespace: endpoint.config.namespace.clone(),
                principal: principal.unwrap_or_else(|| "unknown".into()),
                name,
            }
        }
        _ => Workload::unknown(),
    };
    let (name, namespace) = names::parse_fqdn(&config.host).unwrap_or((&config.host, "unknown"));
    Pair {
        reporter: "source",
        source: proxy.own(),
        mtls: endpoint.is_some_and(|e| e.config.identity.is_some()),
        destination,
        service: config.host.clone(),
        service_name: name.into(),
        service_namespace: namespace.into(),
    }
}

fn service_pair(proxy: &Proxy, view: &ServiceView) -> Pair {
    let host = &view.service.host;
    let name = names::parse_fqdn(host).map_or(&**host, |(name, _)| name);
    Pair {
        service: host.clone(),
        service_name: name.into(),
        service_namespace: view.service.namespace.clone(),
        ..unknown_pair(proxy)
    }
}

fn unknown_pair(proxy: &Proxy) -> Pair {
    let unknown: Arc<str> = "unknown".into();
    Pair {
        reporter: "source",
        source: proxy.own(),
        destination: Workload::unknown(),
        service: unknown.clone(),
        service_name: unknown.clone(),
        service_namespace: unknown,
        mtls: false,
    }
}
