//! The admission webhooks of Kubernetes: sidecars for pods, and checks of policies before they are stored.
//!
//! The API server calls `/inject` and `/validate` over TLS, with a certificate that the mesh's CA signs. Answers come from
//! memory. Selectors of the webhook's configuration have decided which pods arrive here, by the labels of their
//! namespaces, which a review does not contain; the labels of the pod itself are read again.

mod inject;
mod review;
mod validate;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, StatusCode, request};
use weft_injection::Config;
use weft_listen::server::{self, Answers, Bounds};
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use crate::api::dns::listen::Listen;
use crate::api::listener::server_config;
use crate::identity::ca::Ca;
use crate::sockets;
use crate::state::Mesh;
use crate::telemetry::Admissions;

/// Istio's port.
const USUAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 15017);
/// Largest review: the API server's own limit of a request, with the old version of an object beside the new one.
const MAX_REVIEW: usize = 3 << 20;
/// Concurrent reviews of one API server.
const PER_CLIENT: usize = 200;

/// Settings of the webhooks.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The listener.
    pub listen: Listen,
    /// Names and addresses in its certificate; none: that of the control plane's Service.
    pub names: Vec<String>,
    /// The sidecars of pods.
    pub injection: Config,
}

/// The listener.
struct Webhooks {
    mesh: Arc<Mesh>,
    injection: Config,
    counts: Arc<Admissions>,
}

/// Serves in the background; returns whether it does.
///
/// # Errors
/// If the address is unavailable, unless it is the usual one, or a name is invalid in a certificate.
pub fn serve(mesh: Arc<Mesh>, settings: Settings, ca: &Arc<Ca>, counts: Arc<Admissions>) -> Result<bool> {
    let address = match settings.listen {
        Listen::Off => return Ok(false),
        Listen::Usual => USUAL,
        Listen::At(address) => address,
    };
    let listener = match sockets::listen(address) {
        Err(e) if settings.listen == Listen::Usual => {
            tracing::warn!(
                "no admission webhooks: cannot listen on {address}: {e} (--webhook-listen takes another address, or off)"
            );
            return Ok(false);
        }
        bound => bound.with_context(|| format!("cannot listen on {address} (--webhook-listen)"))?,
    };
    let names = match settings.names.is_empty() {
        true => vec![format!("weft-control-plane.{}.svc", settings.injection.namespace)],
        false => settings.names,
    };
    tracing::info!(names = names.join(", "), "serving admission webhooks at https://{address}");
    let tls = server_config(ca.clone(), names, "--webhook-name")?;
    let webhooks = Arc::new(Webhooks { mesh, injection: settings.injection, counts });
    tokio::spawn(server::serve_tls(webhooks, listener, tls, Bounds::new(PER_CLIENT)));
    Ok(true)
}

/// The webhook of a path.
fn is_webhook(path: &str) -> bool {
    matches!(path, "/inject" | "/validate")
}

impl Answers for Webhooks {
    fn max_body(&self) -> usize {
        MAX_REVIEW
    }

    fn turned_away(&self, head: &request::Parts) -> Option<Reply> {
        if !is_webhook(head.uri.path()) {
            let error = ApiError::new(StatusCode::NOT_FOUND, "the webhooks are /inject and /validate");
            return Some(reply::error(&error, false, &Query::default()));
        }
        (head.method != Method::POST).then(|| reply::wrong_method(&head.method, "POST"))
    }

    async fn answer(&self, _: SocketAddr, request: Request<Bytes>) -> Reply {
        let judge = |given: &review::Request<'_>| match request.uri().path() {
            "/inject" => inject::judge(&self.injection, &self.counts, given),
            _ => validate::judge(&self.mesh, &self.counts, given),
        };
        match review::answer(request.body(), judge) {
            Ok(answer) => reply::json(&answer, &Query::default()),
            Err(error) => reply::error(&ApiError::bad_request(error), false, &Query::default()),
        }
    }
}
