//! The state that all connections of a sidecar share.

pub mod activity;
pub mod admin;
pub mod application;
pub mod labels;
pub mod ports;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use http::{HeaderValue, Response, StatusCode, header};
use weft_core::headers::ProxyContext;
use weft_listen::idle::IdleLimit;

use crate::control::directory::Directory;
use crate::host;
use crate::host::redirect::guard::Redirection;
use crate::proxy::activity::Activity;
use crate::proxy::application::Application;
use crate::proxy::ports::Ports;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::labels::Workload;
use crate::telemetry::metrics::Metrics;
use crate::tls::identity::Identity;

/// Settings of the operator.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Unknown destinations pass through (Istio's `ALLOW_ANY`); else they are refused (`REGISTRY_ONLY`).
    pub allow_any: bool,
    /// The workload, for metrics.
    pub workload: Workload,
    /// Requests to the application for clients outside the mesh.
    pub application: Application,
    /// Protocols that requests may switch to (`Upgrade`), in lower case; `connect` stands for CONNECT.
    pub upgrades: Vec<String>,
    /// Host names of the endpoints on loopback.
    pub names: weft_listen::page::Names,
}

impl Settings {
    /// Whether CONNECT makes a tunnel to a service of the mesh.
    pub fn allows_connect(&self) -> bool {
        self.upgrades.iter().any(|upgrade| upgrade == "connect")
    }
}

/// Whether the application's own connections are to end: a flag that each response looks at, and an event for connections that
/// wait for it.
#[derive(Debug, Default)]
pub struct Leaving {
    begun: AtomicBool,
    event: tokio::sync::watch::Sender<()>,
}

impl Leaving {
    /// Closes the application's connections with their next response from now on.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        self.event.send_replace(());
    }

    /// Whether that has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Waits until it is.
    pub async fn wait(&self) {
        // Never closed: this has the sender.
        let _ = self.event.subscribe().wait_for(|()| self.has_begun()).await;
    }
}

/// The running proxy.
pub struct Proxy {
    /// The sidecar's knowledge of the mesh.
    pub directory: Arc<Directory>,
    /// The workload's identity.
    pub identity: Arc<Identity>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Access log, when one is kept.
    pub log: Option<Arc<AccessLog>>,
    /// Requests and connections that came in.
    pub inbound: Arc<Activity>,
    /// Requests and connections of the application.
    pub outbound: Arc<Activity>,
    /// Ports of the application.
    pub ports: Ports,
    /// Connections from outside that are silent so far: their number is bounded, so that sockets are left for others.
    pub idle: Arc<IdleLimit>,
    /// The state of the redirection of the pod's traffic.
    pub redirection: Arc<Redirection>,
    /// Choices.
    pub settings: Settings,
    /// True once a drain has begun: responses close their connections.
    pub draining: tokio::sync::watch::Sender<bool>,
    /// Connections of the application that are open, idle ones too.
    pub connections: Arc<Activity>,
    /// Connections of others to the application that are open, idle ones too.
    pub callers: Arc<Activity>,
    /// Set once the application's own calls end too: its connections close with their next response.
    pub leaving: Leaving,
}

impl Proxy {
    /// Whether unknown destinations pass through: by the mesh's policy, else by the command line.
    pub fn passes_unknown(&self) -> bool {
        let inbound = &self.directory.snapshot().inbound;
        inbound.as_ref().and_then(|inbound| inbound.allow_any).unwrap_or(self.settings.allow_any)
    }

    /// Whether responses ask the client to close its connection.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Closes the application's connection with this response, once a drain has come so far.
    pub fn set_connection_close<B>(&self, response: &mut Response<B>) {
        if self.leaving.has_begun() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }

    /// Waits until a drain begins.
    pub async fn drained(&self) {
        // Never closed: the proxy holds the sender.
        let _ = self.draining.subscribe().wait_for(|draining| *draining).await;
    }

    /// The workload's side of a pair of workloads.
    pub fn own(&self) -> Workload {
        let mut own = self.settings.workload.clone();
        if let Some(current) = self.identity.current() {
            own.principal = current.id.as_str().into();
            own.namespace = current.id.namespace().into();
        }
        own
    }
}

/// The proxy's part of the context of header formatters.
pub fn proxy_context() -> &'static ProxyContext {
    static CONTEXT: LazyLock<ProxyContext> = LazyLock::new(|| ProxyContext {
        hostname: host::hostname().to_owned(),
        time: |at| SystemTime::now() - at.elapsed(),
        random: rand::random,
        environment: |name| std::env::var(name).ok(),
    });
    &CONTEXT
}
