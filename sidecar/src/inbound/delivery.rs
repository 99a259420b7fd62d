//! Phase 4 for a request: to the application, at the address that was dialed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use weft_core::endpoint::Endpoint;
use weft_core::http1::Limits;
use weft_core::outcome::Outcome;
use weft_core::policy::{Inbound, MtlsMode, Protocol};
use weft_core::reply::Reason;
use weft_core::retry::is_repeatable;

use super::Caller;
use crate::body::{Replay, RequestBody, ResponseBody};
use crate::call::{Ending, Record};
use crate::cluster::ClusterView;
use crate::connect::MARK_DELIVERY;
use crate::http::{
    Asks, Form, HTTP1_CLIENT, UNDELIVERED, address_request, address_response, admit, authority, ensure_request_id,
    head_bytes, local_reply, remove_hop_headers,
};
use crate::http1::Unread;
use crate::incoming::{Incoming, Interim};
use crate::outbound::{broken_rule, classify};
use crate::pool::{CheckoutError, Lease};
use crate::upstream::Dialer;

/// Who calls, by its certificate.
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Serves one request from outside.
pub(super) async fn request(caller: &Arc<Caller>, request: Request<Incoming>) -> Response<ResponseBody> {
    let start = Instant::now();
    let active = caller.proxy.inbound.begin();
    let (mut parts, mut incoming) = request.into_parts();
    let client_version = parts.version;
    ensure_request_id(&mut parts.headers);
    let settings = &caller.proxy.settings;
    let asks = admit(&mut parts, caller.limits(), incoming.may_upgrade(), &settings.upgrades);
    let mut record = caller.record(&parts, start);
    let asks = match asks {
        Ok(Asks::Connect) if !settings.allows_connect() => Err(Reason::ConnectRefused),
        asks => asks,
    };
    let upgrade = match asks {
        Ok(asks) => incoming.take_upgrade().filter(|_| asks != Asks::Nothing),
        Err(reason) => return caller.refuse(record, &reason, "", &parts.headers, false),
    };
    // As the policy is now, not as it was when the connection came: a kept connection may outlive many policies.
    let inbound = caller.proxy.directory.snapshot().inbound.clone();
    // A connection that came while plaintext was allowed does not outlive that.
    let strict = inbound.as_ref().is_some_and(|i| i.mode_for(caller.to.port()) == MtlsMode::Strict);
    if strict && caller.id.is_none() {
        caller.proxy.metrics.plaintext_refused.inc();
        let policy = inbound.as_ref().map(|i| i.policy.to_string()).unwrap_or_default();
        return caller.refuse(record, &Reason::PlaintextRefused, &policy, &parts.headers, true);
    }
    let (cluster, endpoint) = caller.proxy.ports.delivery(caller.to, inbound.as_deref());
    record.cluster = Some(cluster.config.name.clone());
    record.upstream = Some(endpoint.key.clone());
    let policy = &cluster.config.policy;
    let permit = match cluster.shared.limits.requests.try_acquire(cluster.config.pool.max_requests) {
        Ok(permit) => permit,
        Err(overflow) => return caller.refuse(record, &Reason::Overflow(overflow), policy, &parts.headers, false),
    };

    let multiplex = upgrade.is_none() && takes_http2(&parts, inbound.as_deref(), caller.to.port(), record.grpc);
    remove_hop_headers(&mut parts.headers, upgrade.is_some());
    parts.headers.remove(HTTP1_CLIENT);
    caller.name_in(&mut parts.headers);
    let host = authority(&parts).to_owned();
    let (is_head, is_connect) = (parts.method == Method::HEAD, parts.method == Method::CONNECT);
    address_request(&mut parts, &host, if multiplex { Form::Http2 } else { Form::AsItCame });
    let interim = incoming.take_interim();
    let origin = std::mem::take(&mut incoming.origin);
    record.heads.0 = head_bytes(&origin, &parts.headers);
    let body = if incoming.is_end_stream() { None } else { Some(Replay::new(incoming)) };
    let in_flight = endpoint.state.enter();

    let way = Way { cluster: &cluster, endpoint: &endpoint, multiplex };
    let call =
        Delivery { caller, way, head: &parts, origin: &origin, body: body.as_ref(), interim: interim.as_deref() };
    let sent = call.send(&mut record.attempts).await;
    let (mut response, lease) = match sent {
        Ok(sent) => sent,
        Err(Failed { reason, delivered }) => {
            let hint = grpc_hint(record.grpc);
            let mut response = caller.refuse(record, &reason, policy, &hint, false);
            // The caller's sidecar may try elsewhere then, whatever the request was.
            if !delivered && caller.id.is_some() {
                response.headers_mut().insert(UNDELIVERED, HeaderValue::from_static("1"));
            }
            return response;
        }
    };
    response.headers_mut().remove(UNDELIVERED);
    record.answered(&response, &response.body().origin);
    let mut ending = Ending {
        lease: Some(lease),
        worker: caller.worker,
        request: body.map(|b| b.state.clone()),
        in_flight: Some(in_flight),
        permit: Some(permit),
        active: Some(active),
        record: Some(record),
    };
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS
        || (upgrade.is_some() && is_connect && response.status().is_success());
    let server = if switching { response.body_mut().take_upgrade() } else { None };
    address_response(&mut response, client_version, caller.proxy.is_draining());
    let (parts, incoming) = response.into_parts();
    if let (Some(client), Some(server)) = (upgrade, server) {
        tokio::spawn(ending.tunnel(client, server));
        return Response::from_parts(parts, ResponseBody::upstream(incoming, Ending::none(), None));
    }
    if is_head {
        ending.complete();
        return Response::from_parts(parts, ResponseBody::upstream(incoming, Ending::none(), None));
    }
    Response::from_parts(parts, ResponseBody::upstream(incoming, ending, None))
}

/// Whether the application is spoken to in HTTP/2: where its port is declared so, and where nothing is known of the port
/// and the client spoke it itself. gRPC cannot do without.
fn takes_http2(parts: &Parts, inbound: Option<&Inbound>, port: u16, grpc: bool) -> bool {
    if parts.version != Version::HTTP_2 || parts.method == Method::CONNECT {
        return false;
    }
    match inbound.map(|inbound| inbound.protocol(port)) {
        Some(Protocol::Http2 | Protocol::Grpc) => true,
        Some(Protocol::Http) => grpc,
        _ => grpc || !parts.headers.contains_key(HTTP1_CLIENT),
    }
}

/// Why there is no answer of the application, and whether it may have seen the request.
struct Failed {
    reason: Reason,
    delivered: bool,
}

/// Where to, and how.
#[derive(Clone, Copy)]
struct Way<'a> {
    cluster: &'a Arc<ClusterView>,
    endpoint: &'a Arc<Endpoint>,
    multiplex: bool,
}

/// A request on its way to the application.
struct Delivery<'a> {
    caller: &'a Caller,
    way: Way<'a>,
    head: &'a Parts,
    /// The head that the request came with.
    origin: &'a Bytes,
    body: Option<&'a Arc<Replay>>,
    /// Where interim responses go.
    interim: Option<&'a dyn Interim>,
}

impl Delivery<'_> {
    /// Sends it. A kept connection that died costs no request that may be repeated: it may have ended before the application
    /// read the request.
    async fn send(&self, attempts: &mut u32) -> Result<(Response<Incoming>, Lease), Failed> {
        let identity = &self.caller.proxy.identity;
        let Way { cluster, endpoint, multiplex } = self.way;
        let repeatable = is_repeatable(&self.head.method, self.body.is_some());
        loop {
            let (config, mark) = (&cluster.config, MARK_DELIVERY);
            let generation = cluster.generation;
            let dialer =
                Dialer { cluster: config, endpoint, identity, ends: None, multiplex, mark, patience: None, generation };
            let mut lease = cluster.shared.pool.checkout(self.caller.worker, &dialer).await.map_err(|e| {
                let reason = match e {
                    CheckoutError::Overflow(overflow) => Reason::Overflow(overflow),
                    CheckoutError::Dial(e) => {
                        Reason::of(&e.outcome, None, Duration::ZERO, &e.detail).unwrap_or(Reason::UpstreamClosed)
                    }
                };
                Failed { reason, delivered: false }
            })?;
            let sending = match self.body {
                None => Some(RequestBody::Empty),
                Some(body) => body.attempt(),
            };
            let Some(sending) = sending else {
                return Err(Failed { reason: Reason::UpstreamClosed, delivered: true });
            };
            *attempts += 1;
            match lease.send(self.head, self.origin, sending, self.interim).await {
                Ok(response) => return Ok((response, lease)),
                Err(error) => {
                    let outcome = classify(&error);
                    let unseen = error.unsent && self.body.is_none_or(|b| b.is_whole());
                    let died = matches!(outcome, Outcome::Reset { .. } | Outcome::RemoteReset);
                    if lease.reused && (unseen || (repeatable && died)) {
                        continue;
                    }
                    let reason = broken_rule(&error)
                        .map(|detail| Reason::BadRequest { detail })
                        .or_else(|| Reason::of(&outcome, None, Duration::ZERO, &error.to_string()))
                        .unwrap_or(Reason::UpstreamClosed);
                    return Err(Failed { reason, delivered: !error.unsent });
                }
            }
        }
    }
}

/// Enough of a request's headers to answer it in its own protocol.
fn grpc_hint(grpc: bool) -> HeaderMap {
    grpc.then_some((CONTENT_TYPE, HeaderValue::from_static("application/grpc"))).into_iter().collect()
}

impl Caller {
    /// Says who calls, in the header that Istio uses. What a caller without a certificate says of itself is removed.
    fn name_in(&self, headers: &mut HeaderMap) {
        let Some(id) = &self.id else {
            headers.remove(CLIENT_CERT);
            return;
        };
        let own = self.proxy.identity.current();
        let by = own.as_ref().map_or("", |o| o.id.as_str());
        let mut text =
            headers.get(CLIENT_CERT).and_then(|h| h.to_str().ok()).map(|h| format!("{h},")).unwrap_or_default();
        text.push_str(&format!("By={by};Hash={};Subject=\"\";URI={id}", self.certificate));
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(CLIENT_CERT, value);
        }
    }

    /// How large the head of a request may be: another sidecar has added to what its application sent.
    pub(super) fn limits(&self) -> Limits {
        if self.id.is_some() { Limits::MESH } else { Limits::OUTSIDE }
    }

    /// Answers a request whose head cannot be read.
    pub(super) fn refuse_unread(&self, unread: &Unread) -> Response<ResponseBody> {
        let record = Record::unread(&self.proxy, &unread.line, self.peer, self.pair.clone());
        self.refuse(record, &Reason::from(&unread.error), "", &HeaderMap::new(), true)
    }

    /// The record of a request that came by this connection.
    pub(super) fn record(&self, parts: &Parts, start: Instant) -> Box<Record> {
        Record::new(&self.proxy, parts, self.peer, start, self.pair.clone())
    }

    /// An answer of our own, that says why. `close`: it is the last one on its connection.
    pub(super) fn refuse(
        &self,
        mut record: Box<Record>,
        reason: &Reason,
        policy: &str,
        request: &HeaderMap,
        close: bool,
    ) -> Response<ResponseBody> {
        let (reply, mut response) = local_reply(reason, policy, request);
        record.refused(reply, &response, request);
        address_response(&mut response, Version::HTTP_11, close || self.proxy.is_draining());
        let mut ending = Ending::none();
        ending.record = Some(record);
        response.map(|body| body.with_ending(ending))
    }
}
