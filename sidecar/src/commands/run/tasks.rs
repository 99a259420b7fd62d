//! Tasks that run as long as the sidecar.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_agent::Agent;
use weft_core::backoff::Backoff;
use weft_proto::v1::{Check, Hello};

use super::config::Config;
use super::{Application, assembly};
use crate::control::connection::Control;
use crate::control::directory::Writer;
use crate::control::discovery::{self, Introduction};
use crate::control::group;
use crate::control::registration::{Registrations, Session};
use crate::host::hot_restart;
use crate::host::redirect::guard;
use crate::net::sockets;
use crate::proxy::Proxy;
use crate::telemetry::metrics::Metrics;

/// The sidecar's first message on its registration stream.
pub(super) fn hello(config: &Config, node: String) -> Hello {
    Hello {
        workload: assembly::workload(config, &node),
        node,
        addresses: Vec::new(),
        version: env!("CARGO_PKG_VERSION").into(),
        labels: config.labels.iter().cloned().collect(),
        locality: config.locality.clone(),
    }
}

/// Restores the registrations of before a restart, where the application may run already.
pub(super) fn restore(
    config: &Config,
    application: Application,
    agent: &Arc<Agent>,
    registrations: &Arc<Registrations>,
    proxy: &Proxy,
    restored: watch::Sender<bool>,
) -> impl Future<Output = ()> + Send + use<> {
    let (local, own_id) = (agent.local.clone(), config.own_service_id());
    // A member that was here before must not be missed for a moment; a new one joins when it is ready.
    let group = config.workload_group.clone().filter(|_| *proxy.directory.ready().borrow());
    let (scripts, members, directory) = (config.enable_script_checks, registrations.clone(), proxy.directory.clone());
    async move {
        if application == Application::MayRun {
            local.restore(own_id.as_deref()).await;
            if let Some(group) = group {
                group::join(&group, scripts, &members, &directory).await;
            }
        }
        restored.send_replace(true);
    }
}

/// The streams to the control plane.
pub(super) struct Streams {
    pub(super) control: Arc<Control>,
    pub(super) writer: Writer,
    pub(super) session: Session,
    pub(super) duties: CancellationToken,
    pub(super) discovery: CancellationToken,
}

impl Streams {
    /// Joins, then runs the streams and renews the certificate, for ever. `restore` comes before the registration stream.
    pub(super) async fn run(self, hello: Hello, metrics: Arc<Metrics>, restore: impl Future<Output = ()>) {
        let Streams { control, writer, session, duties, discovery } = self;
        let reconnect = watch::Sender::new(0u64);
        let streams = reconnect.subscribe();
        let introduction = Introduction { node: hello.node.clone(), labels: hello.labels.clone() };
        let succeeds = hot_restart::has_predecessor();
        let mut restore = Some(restore);
        if !succeeds && let Some(restore) = restore.take() {
            restore.await;
        }
        join(&control).await;
        let stream = discovery::run(control.clone(), writer, introduction, metrics, streams.clone());
        tokio::spawn(discovery.run_until_cancelled_owned(stream));
        if let Some(restore) = restore {
            // Of a pair each would evict the other, and the file is the predecessor's until then.
            sockets::our_turn().await;
            restore.await;
        }
        tokio::spawn(duties.clone().run_until_cancelled_owned(session.run(control.clone(), hello, streams)));
        let reconnect = Arc::new(reconnect);
        let home = reconnect.clone();
        let home = control.clone().keep_home(move || home.send_modify(|n| *n += 1));
        tokio::spawn(duties.clone().run_until_cancelled_owned(home));
        let renewed = control.keep_renewed(|| reconnect.send_modify(|n| *n += 1));
        duties.run_until_cancelled(renewed).await;
        // The discovery stream goes on for a while, and would take the drop of `reconnect` for the end.
        std::future::pending::<()>().await;
    }
}

/// Joins the mesh, trying until it succeeds.
async fn join(control: &Control) {
    let mut backoff = Backoff::default();
    while control.identity.valid().is_err() {
        match control.join().await {
            Ok(()) => return,
            Err(e) => {
                tracing::error!("cannot join the mesh: {e:#}");
                tokio::time::sleep(backoff.pause(rand::random())).await;
            }
        }
    }
}

/// Guards the redirection, for ever. While its rules are lost the pod is unhealthy: mutual TLS would arrive at the
/// application.
pub(super) async fn guard_redirection(proxy: Arc<Proxy>, registrations: Arc<Registrations>, agent: Arc<Agent>) {
    // Before, redirected traffic would go nowhere. Never closed: the directory lives as long as the proxy.
    let _ = proxy.directory.ready().wait_for(|ready| *ready).await;
    let instances = registrations.clone();
    let own = move || {
        let ports = instances.instances().into_iter().map(|instance| instance.port);
        guard::own_services(agent.address().parse().ok(), ports)
    };
    let (redirection, metrics) = (proxy.redirection.clone(), proxy.metrics.clone());
    let changed = move |problem: Option<String>| -> BoxFuture<'static, ()> {
        let check = Check {
            check_id: "_redirection".into(),
            name: "Traffic of this pod is captured".into(),
            status: "critical".into(),
            output: problem.clone().unwrap_or_default(),
            ..Default::default()
        };
        let registrations = registrations.clone();
        Box::pin(async move { registrations.check(check, problem.is_none()).await })
    };
    let surroundings = guard::Surroundings { redirection, metrics, own: Box::new(own), changed: Box::new(changed) };
    guard::keep(surroundings).await;
}

/// Applies trust bundle updates from the inbound policy, for ever.
pub(super) async fn follow_trust(proxy: Arc<Proxy>) {
    let mut policy = proxy.directory.inbound();
    loop {
        let inbound = policy.borrow_and_update().clone();
        if let Some(inbound) = inbound
            && let Err(e) = proxy.identity.set_trust_bundles(&inbound.trust)
        {
            tracing::error!("keeping the previous trust bundles: {e:#}");
        }
        if policy.changed().await.is_err() {
            return;
        }
    }
}

/// Looks at ejected endpoints and closes idle connections, for ever.
pub(super) async fn housekeeping(proxy: Arc<Proxy>) {
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked: HashMap<Arc<str>, Instant> = HashMap::new();
    let mut swept = Instant::now();
    loop {
        tick.tick().await;
        let now = Instant::now();
        let snapshot = proxy.directory.snapshot();
        for cluster in snapshot.clusters() {
            cluster.warm();
            let Some(interval) = cluster.outlier_interval() else { continue };
            let last = looked.entry(cluster.config.name.clone()).or_insert(now);
            if now.duration_since(*last) >= interval {
                *last = now;
                cluster.tick(now);
            }
        }
        if swept.elapsed() >= Duration::from_secs(1) {
            swept = now;
            looked.retain(|_, last| last.elapsed() < Duration::from_secs(3600));
            for cluster in snapshot.clusters().cloned().chain(proxy.ports.clusters()) {
                cluster.shared.pool.sweep(cluster.config.pool.http_idle_timeout);
            }
        }
    }
}
