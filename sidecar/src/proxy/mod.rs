//! What all of a sidecar's connections share.

pub mod activity;
pub mod admin;
pub mod labels;
pub mod ports;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use http::{HeaderValue, Response, StatusCode, header};
use weft_agent::quiet::Quiet;
use weft_core::headers::ProxyContext;

use crate::control::directory::Directory;
use crate::host;
use crate::host::redirect::guard::Redirection;
use crate::proxy::activity::Activity;
use crate::proxy::ports::Ports;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::{Metrics, Workload};
use crate::tls::identity::Identity;

/// Choices of the one who runs the sidecar.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Unknown destinations pass through (Istio's `ALLOW_ANY`); else they are refused (`REGISTRY_ONLY`).
    pub allow_any: bool,
    /// Our workload, for metrics.
    pub workload: Workload,
    /// Probes of the application that may be asked through us, `<port>/<path>`.
    pub probes: Vec<String>,
    /// Protocols that requests may switch to (`Upgrade`), in lower case; `connect` stands for CONNECT.
    pub upgrades: Vec<String>,
    /// Names by which the pages on loopback may be asked.
    pub names: weft_agent::page::Names,
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
    /// Has the application told to connect anew from now on.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        self.event.send_replace(());
    }

    /// Whether it is told so.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Waits until it is.
    pub async fn begun(&self) {
        // Never closed: this has the sender.
        let _ = self.event.subscribe().wait_for(|()| self.has_begun()).await;
    }
}

/// The running proxy.
pub struct Proxy {
    /// What is known of the mesh.
    pub directory: Arc<Directory>,
    /// Who we are.
    pub identity: Arc<Identity>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Access log, when one is kept.
    pub log: Option<Arc<AccessLog>>,
    /// Requests and connections that came in.
    pub inbound: Arc<Activity>,
    /// Requests and connections of our application.
    pub outbound: Arc<Activity>,
    /// Ports of our application.
    pub ports: Ports,
    /// Connections from outside that have said nothing yet: so many of them leave sockets for others.
    pub quiet: Arc<Quiet>,
    /// What brings the pod's traffic here.
    pub redirection: Arc<Redirection>,
    /// Choices.
    pub settings: Settings,
    /// True once a drain has begun: requests are answered, and told to go elsewhere next.
    pub draining: tokio::sync::watch::Sender<bool>,
    /// Connections of the application that are open, idle ones too.
    pub connections: Arc<Activity>,
    /// Connections of others to the application that are open, idle ones too.
    pub callers: Arc<Activity>,
    /// True once our application's own calls end too: it is told to connect anew for the next one.
    pub leaving: Leaving,
}

impl Proxy {
    /// Whether unknown destinations pass through: as our policy says, else as we were started.
    pub fn passes_unknown(&self) -> bool {
        let inbound = &self.directory.snapshot().inbound;
        inbound.as_ref().and_then(|inbound| inbound.allow_any).unwrap_or(self.settings.allow_any)
    }

    /// Whether responses ask the client to close its connection.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Tells our application to connect anew, when it is time.
    pub fn bid_farewell<B>(&self, response: &mut Response<B>) {
        if self.leaving.has_begun() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }

    /// Waits until a drain begins.
    pub async fn drained(&self) {
        // Never closed: we hold the sender.
        let _ = self.draining.subscribe().wait_for(|draining| *draining).await;
    }

    /// Our side of a pair of workloads.
    pub fn own(&self) -> Workload {
        let mut own = self.settings.workload.clone();
        if let Some(current) = self.identity.current() {
            own.principal = current.id.as_str().into();
            own.namespace = current.id.namespace().into();
        }
        own
    }
}

/// What header values tell of this proxy.
pub fn surroundings() -> &'static ProxyContext {
    static SURROUNDINGS: LazyLock<ProxyContext> = LazyLock::new(|| ProxyContext {
        hostname: host::hostname().to_owned(),
        time: |at| SystemTime::now() - at.elapsed(),
        random: rand::random,
        environment: |name| std::env::var(name).ok(),
    });
    &SURROUNDINGS
}
