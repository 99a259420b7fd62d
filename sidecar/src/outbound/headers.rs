//! The head of a request as the endpoint is to see it.

use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use weft_core::headers::Context;
use weft_core::http1::{self, path_and_query};
use weft_core::protocol::{self, is_http2_only, upstream_is_http2};

use super::plan::Plan;
use super::request::Call;
use crate::http::{FORWARDED_PROTO, Form, HTTP1_CLIENT, address_request, authority, remove_hop_headers};
use crate::proxy::proxy_context;

const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");

/// The request line and version as the downstream sent them.
pub(super) struct Original {
    pub(super) method: Method,
    pub(super) authority: String,
    path: String,
    version: Version,
}

/// The results of preparing a head, for header operations and attempts.
pub(super) struct Prepared {
    /// Whether HTTP/2 is spoken to the endpoint.
    pub(super) multiplex: bool,
    /// The authority that the endpoint sees.
    pub(super) authority: String,
    /// The path that the endpoint sees, where the route rewrites it.
    path: Option<String>,
    /// The request's headers, where response headers are made of them.
    pub(super) headers: Option<HeaderMap>,
}

impl Original {
    pub(super) fn of(parts: &Parts) -> Original {
        Original {
            method: parts.method.clone(),
            authority: authority(parts).to_owned(),
            path: path_and_query(parts).to_owned(),
            version: parts.version,
        }
    }

    /// The context of header operations: of the request before it is prepared, and of the response after.
    pub(super) fn context<'a>(
        &'a self,
        call: &'a Call<'_>,
        plan: &'a Plan,
        prepared: Option<&'a Prepared>,
    ) -> Context<'a> {
        Context {
            proxy: proxy_context(),
            ends: &call.down.ends,
            tls: call.down.gateway.as_ref().and_then(|entrance| entrance.tls.as_ref()),
            version: self.version,
            start: &call.start,
            method: self.method.as_str(),
            authority: prepared.map_or(&self.authority, |prepared| &prepared.authority),
            path_and_query: prepared.and_then(|prepared| prepared.path.as_deref()).unwrap_or(&self.path),
            cluster: &plan.cluster.config.name,
            route: plan.route_name().map_or("", |name| &**name),
        }
    }

    /// Gives the head the form that the endpoint is to see.
    pub(super) fn prepare(
        &self,
        parts: &mut Parts,
        call: &Call<'_>,
        plan: &Plan,
        upgrade: bool,
        grpc: bool,
    ) -> Prepared {
        let config = &plan.cluster.config;
        let request = protocol::Request { method: &self.method, version: self.version, grpc };
        let multiplex = !upgrade && upstream_is_http2(config, request, call.down.gateway.is_some());
        self.edit(parts, plan, upgrade, &self.context(call, plan, None));
        // Response headers are made of the request's as they were sent, as in Envoy.
        let reads_request = plan.header_operations().iter().any(|ops| ops.response.reads_request_headers());
        let headers = reads_request.then(|| parts.headers.clone());
        let path = plan.rewritten.is_some().then(|| path_and_query(parts).to_owned());
        if multiplex && self.version != Version::HTTP_2 && !is_http2_only(config.protocol) {
            parts.headers.insert(HTTP1_CLIENT, HeaderValue::from_static("1"));
        }
        let rewritten = plan.forward().and_then(|(_, destination)| destination.authority.as_ref());
        let authority = self.upstream_authority(parts, rewritten);
        let form = match multiplex {
            true => Form::Http2,
            false if plan.keeps_form => Form::AsItCame,
            false => Form::Origin,
        };
        address_request(parts, &authority, form);
        Prepared { multiplex, authority, path, headers }
    }

    /// Removes hop-by-hop headers and applies the route's changes.
    fn edit(&self, parts: &mut Parts, plan: &Plan, upgrade: bool, context: &Context<'_>) {
        remove_hop_headers(&mut parts.headers, upgrade);
        parts.headers.remove(HTTP1_CLIENT);
        if !parts.headers.contains_key(FORWARDED_PROTO) {
            parts.headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
        }
        for ops in plan.header_operations() {
            ops.request.apply_to_request(&mut parts.headers, context);
        }
        // The original values are kept for the application, as Envoy does.
        let mut keep = |name: HeaderName, text: &str| {
            if !parts.headers.contains_key(&name)
                && let Ok(text) = HeaderValue::from_str(text)
            {
                parts.headers.insert(name, text);
            }
        };
        if plan.rewritten.is_some() {
            keep(ORIGINAL_PATH, &self.path);
        }
        if plan.forward().is_some_and(|(_, destination)| destination.sends_original_host) {
            keep(ORIGINAL_HOST, &self.authority);
        }
        if let Some(target) = &plan.rewritten {
            http1::Target::clone(target).replace(parts);
        }
    }

    /// The authority that the endpoint sees: the route's, else one that a header operation set, else the downstream's.
    fn upstream_authority(&self, parts: &Parts, rewritten: Option<&Authority>) -> String {
        match (rewritten, parts.headers.get(HOST)) {
            (Some(authority), _) => authority.as_str().to_owned(),
            (None, Some(host)) => host.to_str().unwrap_or(&self.authority).to_owned(),
            (None, None) => self.authority.clone(),
        }
    }
}
