//! One request to the application.

use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use weft_core::endpoint::Endpoint;
use weft_core::http1::Limits;
use weft_core::inbound::{Inbound, MtlsMode};
use weft_core::outcome::Outcome;
use weft_core::protocol::{self, delivery_is_http2};
use weft_core::reply::Reason;
use weft_core::retry::is_repeatable;

use super::Caller;
use crate::exchange::attempt::{AttemptFailure, Outgoing};
use crate::exchange::{Exchange, Resources, Returning};
use crate::http::body::ResponseBody;
use crate::http::http1::Unread;
use crate::http::incoming::{Incoming, Upgrade};
use crate::http::{
    Asks, Form, HTTP1_CLIENT, UNDELIVERED, address_request, admit, authority, ensure_request_id, remove_hop_headers,
};
use crate::net::connect::MARK_DELIVERY;
use crate::proxy::activity::Active;
use crate::upstream::cluster::ClusterView;
use crate::upstream::dial::Dialer;
use crate::upstream::pool::Lease;

/// The client's certificate chain of identities, as Envoy forwards it.
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Serves one request from outside.
pub(super) async fn serve(caller: &Arc<Caller>, request: Request<Incoming>) -> Response<ResponseBody> {
    let start = Instant::now();
    let active = caller.proxy.inbound.begin();
    let (mut parts, mut incoming) = request.into_parts();
    ensure_request_id(&mut parts.headers);
    let asks = caller.admit(&mut parts, &incoming);
    let exchange = caller.exchange(&parts, start);
    let upgrade = match asks {
        Ok(asks) => incoming.take_upgrade().filter(|_| asks != Asks::Nothing),
        Err(reason) => return caller.refuse(exchange, &reason, "", &parts.headers),
    };
    // The policy of now, not of the connection's beginning: a kept connection may outlive many policies.
    let inbound = caller.proxy.directory.snapshot().inbound.clone();
    // A connection that came while plaintext was allowed does not outlive that.
    if caller.id.is_none() && caller.is_strict(inbound.as_deref()) {
        caller.proxy.metrics.plaintext_refused.inc();
        return caller.refuse_plaintext(exchange, inbound.as_deref(), &parts.headers);
    }
    caller.deliver(exchange, parts, incoming, upgrade, inbound.as_deref(), active).await
}

/// A request on its way to the application.
struct Delivery<'a> {
    caller: &'a Caller,
    cluster: &'a Arc<ClusterView>,
    endpoint: &'a Arc<Endpoint>,
    multiplex: bool,
}

impl Delivery<'_> {
    /// Sends the request. A kept connection that ended costs no request that may be repeated: it may have ended before the
    /// application read the request.
    async fn send(
        &self,
        head: &Parts,
        outgoing: &Outgoing,
        attempts: &mut u32,
    ) -> Result<(Response<Incoming>, Lease), AttemptFailure> {
        let caller = self.caller;
        let repeatable = is_repeatable(&head.method, outgoing.body.is_some());
        let dialer = self.cluster.dialer(self.endpoint, &caller.proxy.identity, MARK_DELIVERY);
        let dialer = Dialer { multiplex: self.multiplex, ..dialer };
        loop {
            *attempts += 1;
            let failed = match outgoing.attempt(head, self.cluster, &dialer, caller.worker).await {
                Ok(sent) => return Ok(sent),
                Err(failed) => failed,
            };
            let ended = matches!(failed.outcome, Outcome::Reset { .. } | Outcome::RemoteReset);
            if !(failed.reused && repeatable && ended) {
                return Err(failed);
            }
        }
    }
}

impl Caller {
    /// Normalises the head.
    ///
    /// # Errors
    /// The reason of a refusal.
    fn admit(&self, parts: &mut Parts, incoming: &Incoming) -> Result<Asks, Reason> {
        let settings = &self.proxy.settings;
        match admit(parts, self.limits(), incoming.may_upgrade(), &settings.upgrades)? {
            Asks::Connect if !settings.allows_connect() => Err(Reason::ConnectRefused),
            asks => Ok(asks),
        }
    }

    pub(super) fn is_strict(&self, inbound: Option<&Inbound>) -> bool {
        inbound.is_some_and(|inbound| inbound.mode_for(self.to.port()) == MtlsMode::Strict)
    }

    /// Delivers an admitted request within the limits of its port.
    async fn deliver(
        &self,
        mut exchange: Box<Exchange>,
        mut parts: Parts,
        incoming: Incoming,
        upgrade: Option<Upgrade>,
        inbound: Option<&Inbound>,
        active: Active,
    ) -> Response<ResponseBody> {
        let (cluster, endpoint) = self.proxy.ports.delivery(self.to, inbound);
        exchange.cluster = Some(cluster.config.name.clone());
        exchange.upstream = Some(endpoint.key.clone());
        let policy = &cluster.config.policy;
        let permit = match cluster.shared.limits.requests.try_acquire(cluster.config.pool.max_requests) {
            Ok(permit) => permit,
            Err(overflow) => return self.refuse(exchange, &Reason::Overflow(overflow), policy, &parts.headers),
        };
        let multiplex = self.prepare(&mut parts, upgrade.is_some(), exchange.grpc, inbound);
        let outgoing = Outgoing::new(incoming, &parts, &mut exchange);
        let in_flight = endpoint.state.enter();
        let delivery = Delivery { caller: self, cluster: &cluster, endpoint: &endpoint, multiplex };
        let (mut response, lease) = match delivery.send(&parts, &outgoing, &mut exchange.attempts).await {
            Ok(sent) => sent,
            Err(failed) => return self.fail(exchange, failed, policy),
        };
        response.headers_mut().remove(UNDELIVERED);
        let resources = Resources {
            lease: Some(lease),
            worker: self.worker,
            request: outgoing.state(),
            in_flight: Some(in_flight),
            permit: Some(permit),
            active: Some(active),
        };
        let close = self.proxy.is_draining();
        let returning = Returning { resources, upgrade, method: &parts.method, close, deadline: None };
        exchange.respond(response, returning, |_, _, _| {})
    }

    /// Gives the head the form that the application is to see. `true`: it is sent by HTTP/2.
    fn prepare(&self, parts: &mut Parts, upgrade: bool, grpc: bool, inbound: Option<&Inbound>) -> bool {
        let request = protocol::Request { method: &parts.method, version: parts.version, grpc };
        let declared = inbound.map(|inbound| inbound.protocol(self.to.port()));
        let from_http1 = parts.headers.contains_key(HTTP1_CLIENT);
        let multiplex = !upgrade && delivery_is_http2(declared, request, from_http1);
        remove_hop_headers(&mut parts.headers, upgrade);
        parts.headers.remove(HTTP1_CLIENT);
        self.forward_identity(&mut parts.headers);
        let host = authority(parts).to_owned();
        address_request(parts, &host, if multiplex { Form::Http2 } else { Form::AsItCame });
        multiplex
    }

    /// The application has not responded.
    fn fail(&self, exchange: Box<Exchange>, failed: AttemptFailure, policy: &str) -> Response<ResponseBody> {
        let unsent = failed.unsent;
        let mut response = self.refuse(exchange, &failed.reason(None), policy, &HeaderMap::new());
        // The client's sidecar may retry on another endpoint then, whichever request it is.
        if unsent && self.id.is_some() {
            response.headers_mut().insert(UNDELIVERED, HeaderValue::from_static("1"));
        }
        response
    }

    /// Sets the client's identity in the header that Istio uses. A header that came without a client certificate is removed.
    fn forward_identity(&self, headers: &mut HeaderMap) {
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

    /// How large the head of a request may be: the client's sidecar has added to what its application sent.
    pub(super) fn limits(&self) -> Limits {
        if self.id.is_some() { Limits::MESH } else { Limits::OUTSIDE }
    }

    /// Answers a request whose head cannot be read.
    pub(super) fn refuse_unread(&self, unread: &Unread) -> Response<ResponseBody> {
        let exchange = Exchange::unread(&self.proxy, &unread.line, self.peer, self.pair.clone());
        exchange.reply(&Reason::from(&unread.error), "", &HeaderMap::new(), true)
    }

    /// Refuses a plaintext request under STRICT, and closes its connection.
    pub(super) fn refuse_plaintext(
        &self,
        exchange: Box<Exchange>,
        inbound: Option<&Inbound>,
        headers: &HeaderMap,
    ) -> Response<ResponseBody> {
        let policy = inbound.map(|inbound| inbound.policy.to_string()).unwrap_or_default();
        exchange.reply(&Reason::PlaintextRefused, &policy, headers, true)
    }

    /// The record of a request that came by this connection.
    pub(super) fn exchange(&self, parts: &Parts, start: Instant) -> Box<Exchange> {
        Exchange::new(&self.proxy, parts, self.peer, start, self.pair.clone())
    }

    /// A local reply.
    fn refuse(
        &self,
        exchange: Box<Exchange>,
        reason: &Reason,
        policy: &str,
        request: &HeaderMap,
    ) -> Response<ResponseBody> {
        exchange.reply(reason, policy, request, self.proxy.is_draining())
    }
}
