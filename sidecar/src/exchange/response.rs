//! The response of an exchange: the endpoint's, or a local reply.

use http::{HeaderMap, Method, Response, StatusCode};
use weft_core::reply::Reason;

use super::{Exchange, Resources};
use crate::http::body::{ResponseBody, ResponseObserver};
use crate::http::incoming::{Incoming, Upgrade};
use crate::http::{address_response, local_reply};

/// The inputs of a response from an endpoint on its way to the downstream.
pub struct Returning<'a> {
    /// Resources that the request holds until the response has ended.
    pub resources: Resources,
    /// The downstream's side of an upgrade, where the request asks for one.
    pub upgrade: Option<Upgrade>,
    /// The request's method.
    pub method: &'a Method,
    /// Whether the downstream is to close its connection after the response.
    pub close: bool,
    /// When the whole response must have come.
    pub deadline: Option<tokio::time::Instant>,
}

impl Exchange {
    /// Passes an endpoint's response on. `edit` changes its headers, after those that concern one hop are removed; the response
    /// of an upgrade is not edited.
    pub fn respond(
        mut self: Box<Self>,
        mut response: Response<Incoming>,
        returning: Returning<'_>,
        edit: impl FnOnce(&Exchange, StatusCode, &mut HeaderMap),
    ) -> Response<ResponseBody> {
        let Returning { resources, upgrade, method, close, deadline } = returning;
        self.set_response(&response, &response.body().origin);
        self.resources = resources;
        let status = response.status();
        let switching = status == StatusCode::SWITCHING_PROTOCOLS
            || (upgrade.is_some() && *method == Method::CONNECT && status.is_success());
        let endpoint = if switching { response.body_mut().take_upgrade() } else { None };
        address_response(&mut response, self.version, close);
        if let (Some(downstream), Some(endpoint)) = (upgrade, endpoint) {
            tokio::spawn(self.tunnel(downstream, endpoint));
            return response.map(|incoming| ResponseBody::upstream(incoming, None, None));
        }
        edit(&self, status, response.headers_mut());
        if *method == Method::HEAD {
            // A response to HEAD has no body whatever its headers say.
            self.complete();
            return response.map(|incoming| ResponseBody::upstream(incoming, None, None));
        }
        response.map(|incoming| ResponseBody::upstream(incoming, Some(self), deadline))
    }

    /// A local reply with its reason. `request`: the headers of the request, where its head was not prepared for an endpoint
    /// yet. `close`: it is the last response on its connection.
    pub fn reply(
        mut self: Box<Self>,
        reason: &Reason,
        policy: &str,
        request: &HeaderMap,
        close: bool,
    ) -> Response<ResponseBody> {
        let (reply, mut response) = local_reply(reason, policy, self.grpc);
        self.set_local_reply(reply, &response, request);
        address_response(&mut response, self.version, close);
        self.end_with(response)
    }

    /// A response that the proxy makes itself.
    pub fn end_with(self: Box<Self>, response: Response<ResponseBody>) -> Response<ResponseBody> {
        response.map(|body| body.with_observer(self))
    }
}
