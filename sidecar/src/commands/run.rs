//! Puts the sidecar together, and takes it apart without failing a request.
//!
//! Workers are threads, each with a runtime of its own, that serve traffic. Everything else (the control plane's
//! streams, pages, timers) has the main thread's runtime, so that it never delays a request.

mod config;
pub mod listen;
mod ports;
mod reload;
mod stop;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_agent::checks::target;
use weft_agent::connect::Leaves;
use weft_agent::datacenter::Datacenter;
use weft_agent::listen::Bounds;
use weft_agent::local::Local;
use weft_agent::page::Names;
use weft_agent::quiet::Quiet;
use weft_agent::{Agent, definitions, entry};
use weft_core::locality::Place;
use weft_core::names::normalise;
use weft_proto::v1::{Check, Hello};

use crate::commands::run::ports::{Accepting, claim_ports, listeners, start_workers};
use crate::control::agent::{Asked, Delivery, Session};
use crate::control::connection::{Backoff, Control};
use crate::control::directory;
use crate::control::discovery::{self, Introduction};
use crate::control::group;
use crate::control::registration;
use crate::control::registration::Registrations;
use crate::dns::consul::Consul;
use crate::dns::{self, Dns, Serves};
use crate::gateway;
use crate::host;
use crate::host::hot_restart;
use crate::host::pod_ports::{PodPorts, Serve};
use crate::host::redirect;
use crate::host::redirect::guard::{self, Redirection};
use crate::inbound;
use crate::net::connect;
use crate::net::sockets;
use crate::proxy::admin::{self, Pages};
use crate::proxy::{Leaving, Proxy, Settings};
use crate::resolve::forward::Forwarder;
use crate::resolve::resolv;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::{Metrics, Workload};
use crate::tls::identity::{Identity, TokenClaims};
use crate::upstream::resolution::Resolution;

pub use config::{Config, GatewayConfig, Listen, OutboundPolicy};
pub use ports::other;
pub use reload::Request;

/// A sidecar that is running.
pub struct Sidecar {
    /// The proxy.
    pub proxy: Arc<Proxy>,
    /// What is registered from this pod.
    pub registrations: Arc<Registrations>,
    /// Its services and checks, and Consul's API.
    pub agent: Arc<Agent>,
    config: Config,
    accepting: watch::Sender<Accepting>,
    /// Of the ports in this network namespace.
    claims: Mutex<Vec<OwnedFd>>,
    /// Ports of a gateway.
    ports: Option<watch::Receiver<Arc<gateway::Ports>>>,
    /// Ends what one process alone may do in the name of this pod: the registry session, and renewals of the certificate.
    duties: CancellationToken,
    /// Ends the discovery stream.
    discovery: CancellationToken,
    /// What was registered before a restart is registered again.
    restored: watch::Sender<bool>,
}

/// Whether the application runs while the sidecar starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Application {
    /// It may: what was registered before a restart is registered again before anything else is said upstream, so that
    /// nobody misses it for a moment.
    MayRun,
    /// It will be started: [`Sidecar::restore`] is called when it serves.
    Follows,
}

/// Starts everything and returns at once; [`Sidecar::ready`] waits, [`Sidecar::register`] lets others know.
///
/// # Errors
/// When a listener or the data folder is not to be had.
pub fn start(config: Config, application: Application) -> Result<Sidecar> {
    raise_descriptor_limit();
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot make the data folder {}", config.data_dir.display()))?;
    let claims = if config.gateway || config.outside { Vec::new() } else { claim_ports(&config)? };
    let (least, most) = (config.drain_min.unwrap_or_default(), config.drain_limit);
    anyhow::ensure!(least <= most, "--drain-min {least} must not be larger than --drain-limit, which is {most}");
    anyhow::ensure!(config.admin_listen.ip().is_loopback(), "--admin-listen must be on loopback");
    connect::set_user_timeout(Duration::from_secs(config.tcp_user_timeout));
    // Outside the pod's network no redirection tells sockets by their marks.
    if !connect::probe_marks() && !config.outside {
        tracing::warn!(
            "sockets cannot be marked (CAP_NET_ADMIN): traffic may be redirected to this proxy only if it runs as a user of \
             its own (redirect install --proxy-uid)"
        );
    }
    let node = node_name(&config.data_dir)?;
    let token = TokenClaims::of_file(config.token_file.as_deref());
    let identity = Arc::new(Identity::open(Some(&config.data_dir), &config.credentials, token.as_ref()));
    let control =
        Arc::new(Control::new(config.control_planes.clone(), &node, config.token_file.clone(), identity.clone()));
    let place = Place { locality: config.locality.as_str().into(), labels: config.labels.iter().cloned().collect() };
    let snapshot = config.data_dir.join("snapshot.bin");
    if identity.replaces_another {
        // Another identity sees other services, and is sent other policies. Mostly there is one.
        let _ = std::fs::remove_file(&snapshot);
    }
    let (directory, mut writer) = directory::new(place, Some(snapshot), &config.preload);
    writer.resolve_with(Resolution::start());
    let metrics = Arc::new(Metrics::default());
    let named = config.workload.as_ref().or(config.service.as_ref()).or(config.workload_group.as_ref());
    let workload = named.unwrap_or(&node).clone();
    let labels: HashMap<String, String> = config.labels.iter().cloned().collect();
    let label = |name: &str, or: &str| Arc::from(labels.get(name).map_or(or, String::as_str));
    let own = Workload {
        name: workload.as_str().into(),
        app: label("app", &workload),
        version: label("version", "latest"),
        ..Workload::unknown()
    };
    let log = config.access_log.as_deref().map(AccessLog::open).transpose().context("cannot open the access log")?;
    let guarded = !config.gateway && !config.outside;
    let redirection = Arc::new(Redirection::new(guarded.then(|| config.data_dir.join(redirect::RECORD))));
    let proxy = Arc::new(Proxy {
        directory,
        identity,
        metrics: metrics.clone(),
        log: log.map(Arc::new),
        inbound: Arc::default(),
        outbound: Arc::default(),
        quiet: Arc::new(Quiet::of_traffic()),
        ports: Default::default(),
        redirection,
        settings: Settings {
            names: Names::new(host::hostname(), &config.api_host),
            allow_any: config.outbound_traffic == OutboundPolicy::AllowAny,
            workload: own,
            probes: config.app_probes.clone(),
            upgrades: config.upgrade_types.clone(),
        },
        draining: watch::Sender::new(false),
        connections: Arc::default(),
        callers: Arc::default(),
        leaving: Leaving::default(),
    });

    let listeners = if config.gateway { Vec::new() } else { listeners(&config)? };
    for (address, pages) in [
        (config.ready_listen, Pages::Ready),
        (config.metrics_listen, Pages::Metrics),
        (config.admin_listen, Pages::Admin),
    ] {
        let listener = tokio::net::TcpListener::from_std(sockets::tcp(address)?)?;
        tokio::spawn(sockets::in_turn(admin::serve(proxy.clone(), listener, pages)));
    }
    // The control plane's name has to be found before it can be asked about names.
    let hosts = config.control_planes.iter();
    let hosts = hosts.filter_map(|address| Some(normalise(address.rsplit_once(':')?.0).into_owned()));
    let (hosts, consul) = (hosts.collect::<Vec<_>>(), Consul::new(control.clone()));
    let datacenter = Datacenter::default();
    let dns = |serves| {
        let forwarder = Forwarder::new(resolv::RESOLV_CONF);
        Dns::new(serves, proxy.directory.clone(), consul.clone(), forwarder, hosts.clone(), datacenter.clone())
    };
    if let Listen(Some(address)) = config.dns_listen {
        dns::listen(dns(Serves::Captured), address)?;
    }
    if let Listen(Some(address)) = config.consul_dns
        && let Err(e) = dns::listen(dns(Serves::ConsulClients), address)
    {
        // A Consul agent, most likely: programs may go on asking it.
        tracing::warn!("no DNS for programs of Consul's: {e:#} (--consul-dns takes another address, or off)");
    }
    let accepting = watch::Sender::new(Accepting::All);
    let ports = config.gateway.then(|| {
        let ports = watch::Sender::new(Arc::default());
        let receiver = ports.subscribe();
        let mut phase = accepting.subscribe();
        let end = async move {
            // Never closed: whoever says it has the sender.
            let _ = phase.wait_for(|phase| *phase == Accepting::Nothing).await;
        };
        tokio::spawn(gateway::keep(proxy.clone(), config.credentials.clone(), ports, end));
        receiver
    });
    start_workers(&proxy, &config, listeners, &accepting, ports.as_ref())?;

    let (registrations, session) = registration::new(proxy.directory.clone(), datacenter.clone());
    let towards: SocketAddr = control.address().parse().unwrap_or(ELSEWHERE);
    let address = connect::source().or_else(|| target::source_towards(towards).filter(|_| config.outside));
    let served = proxy.clone();
    let serve: Serve = Arc::new(move |stream, peer, at| {
        tokio::spawn(inbound::connection(served.clone(), stream, peer, at, 0));
    });
    let pod_ports = address.filter(|_| config.outside).map(|address| PodPorts::new(address, serve));
    let upstream = Session { registrations: registrations.clone(), identity: control.identity.clone(), pod_ports };
    let agent = Arc::new(Agent {
        local: Local::new(
            Arc::new(upstream),
            Arc::new(Delivery { scripts: config.enable_script_checks }),
            Some(config.data_dir.join("agent.json")),
        ),
        mesh: weft_agent::forward::Forwarder::new(Asked(control.clone())),
        node: node.clone(),
        metrics: Some({
            let metrics = metrics.clone();
            Arc::new(move || metrics.render())
        }),
        leaves: config.connect_leaf.then(|| Leaves::new(control.clone())),
        datacenter: datacenter.clone(),
        eureka: Default::default(),
        towards,
        address,
        names: Names::new(host::hostname(), &config.api_host),
    });
    tokio::spawn(agent.local.clone().report());
    tokio::spawn(agent.local.clone().keep_saved());
    let per_client = config.http_max_conns_per_client;
    let restored = watch::Sender::new(!hot_restart::has_predecessor());
    serve_agent_api(&agent, config.agent_api, "--agent-api", per_client, restored.subscribe())?;
    serve_agent_api(&agent, config.eureka_api, "--eureka-api", per_client, restored.subscribe())?;
    if !config.gateway {
        // Its ports are opened when the policy names them.
        sockets::warn_of_unused();
    }
    let reconnect = watch::Sender::new(0u64);
    let introduction = Introduction { node: node.clone(), labels: labels.clone() };
    let hello = Hello {
        node,
        addresses: Vec::new(),
        workload,
        version: env!("CARGO_PKG_VERSION").into(),
        labels,
        locality: config.locality.clone(),
    };
    let streams = reconnect.subscribe();
    let (local, own_id) = (agent.local.clone(), config.own_service_id());
    // One that was here before is not to be missed for a moment; another joins when it is ready.
    let group = config.workload_group.clone().filter(|_| *proxy.directory.ready().borrow());
    let (scripts, members, directory) = (config.enable_script_checks, registrations.clone(), proxy.directory.clone());
    let (duties, discovery) = (CancellationToken::new(), CancellationToken::new());
    let (own_duties, own_discovery, is_restored) = (duties.clone(), discovery.clone(), restored.clone());
    let restore = async move {
        if application == Application::MayRun {
            local.restore(own_id.as_deref()).await;
            if let Some(group) = group {
                group::join(&group, scripts, &members, &directory).await;
            }
        }
        is_restored.send_replace(true);
    };
    tokio::spawn(async move {
        let succeeds = hot_restart::has_predecessor();
        let mut restore = Some(restore);
        if !succeeds && let Some(restore) = restore.take() {
            restore.await;
        }
        join(&control).await;
        let stream = discovery::run(control.clone(), writer, introduction, metrics, streams.clone());
        tokio::spawn(own_discovery.run_until_cancelled_owned(stream));
        if let Some(restore) = restore {
            // One of a pair would evict the other, and the file is the predecessor's until then.
            sockets::our_turn().await;
            restore.await;
        }
        tokio::spawn(own_duties.clone().run_until_cancelled_owned(session.run(control.clone(), hello, streams)));
        let reconnect = Arc::new(reconnect);
        let home = reconnect.clone();
        let home = control.clone().keep_home(move || home.send_modify(|n| *n += 1));
        tokio::spawn(own_duties.clone().run_until_cancelled_owned(home));
        let renewed = control.keep_renewed(|| reconnect.send_modify(|n| *n += 1));
        own_duties.run_until_cancelled(renewed).await;
        // The discovery stream goes on for a while, and would take the loss of this for the end.
        std::future::pending::<()>().await;
    });
    tokio::spawn(believe(proxy.clone()));
    tokio::spawn(housekeeping(proxy.clone()));
    tokio::spawn(sockets::in_turn(guard_redirection(proxy.clone(), registrations.clone(), agent.clone())));
    Ok(Sidecar {
        proxy,
        registrations,
        agent,
        config,
        accepting,
        claims: Mutex::new(claims),
        ports,
        duties,
        discovery,
        restored,
    })
}

impl Sidecar {
    /// Waits until traffic is served.
    pub async fn ready(&self) {
        // Never closed: the directory lives as long as the proxy.
        let _ = self.proxy.directory.ready().wait_for(|ready| *ready).await;
        self.proxy.redirection.looked(FIRST_LOOK).await;
        tracing::info!("ready");
    }

    /// Registers again what was registered before a restart, where [`start`] was told that the application follows.
    pub async fn restore(&self) {
        self.agent.local.restore(self.config.own_service_id().as_deref()).await;
    }

    /// Registers the service of the command line, where there is one, and joins by its workload group. It is announced once
    /// there is a control plane.
    pub async fn register(&self) {
        if let Some(group) = &self.config.workload_group {
            let scripts = self.config.enable_script_checks;
            group::join(group, scripts, &self.registrations, &self.proxy.directory).await;
        }
        let (Some(name), Some(port)) = (&self.config.service, self.config.port) else { return };
        self.registrations.wait_connected(Duration::from_secs(5)).await;
        match self.register_command_line(name, port).await {
            Ok(()) => tracing::info!(service = name, port, "registered"),
            Err(e) => tracing::error!(service = name, "registration refused: {e}"),
        }
    }

    async fn register_command_line(&self, name: &str, port: u16) -> Result<(), String> {
        let service = entry::command_line_service(name, port, self.config.protocol.as_deref());
        let interval = Duration::from_secs(self.config.health_interval);
        let id = &service.service_id;
        let check = self.config.health_path.as_ref();
        let check = check.map(|path| definitions::health_path(id, name, port, path, interval)).transpose()?;
        self.agent.local.register_command_line(service, check).await.map_err(|refused| refused.text)
    }
}

/// Longest wait for the first look at the redirection before readiness is announced.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// An address that is nobody's, to find out from which of ours the world is reached.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

fn serve_agent_api(
    agent: &Arc<Agent>,
    at: Listen,
    option: &str,
    per_client: usize,
    mut restored: watch::Receiver<bool>,
) -> Result<()> {
    let Some(address) = at.0 else { return Ok(()) };
    match sockets::tcp(address) {
        Ok(listener) => {
            let (agent, listener) = (agent.clone(), tokio::net::TcpListener::from_std(listener)?);
            tokio::spawn(async move {
                // Never closed while the sidecar runs.
                let _ = restored.wait_for(|restored| *restored).await;
                weft_agent::listen::serve(agent, listener, Bounds::new(per_client)).await;
            });
        }
        // A Consul agent or a Eureka server, most likely: the application may go on using it.
        Err(e) => tracing::warn!("no agent API: {e:#} ({option} takes another address, or off)"),
    }
    Ok(())
}

async fn join(control: &Control) {
    let mut backoff = Backoff::default();
    while control.identity.valid().is_err() {
        match control.join().await {
            Ok(()) => return,
            Err(e) => {
                tracing::error!("cannot join the mesh: {e:#}");
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

/// Looks after the redirection, for ever. While it is lost no caller is sent to this pod: mutual TLS would arrive at the
/// application.
async fn guard_redirection(proxy: Arc<Proxy>, registrations: Arc<Registrations>, agent: Arc<Agent>) {
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

/// Believes whom the inbound policy names, for ever.
async fn believe(proxy: Arc<Proxy>) {
    let mut policy = proxy.directory.inbound();
    loop {
        let inbound = policy.borrow_and_update().clone();
        if let Some(inbound) = inbound
            && let Err(e) = proxy.identity.believe(&inbound.trust)
        {
            tracing::error!("other trust domains are believed as before: {e:#}");
        }
        if policy.changed().await.is_err() {
            return;
        }
    }
}

/// Looks at ejected endpoints and closes idle connections, for ever.
async fn housekeeping(proxy: Arc<Proxy>) {
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

/// `<hostname>-<8 hex>`: stable over restarts, unique among pods with one host name.
fn node_name(data_dir: &Path) -> Result<String> {
    let file = data_dir.join("instance-id");
    let id = match std::fs::read_to_string(&file) {
        Ok(id) if id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()) => id,
        _ => {
            let id = format!("{:08x}", rand::random::<u32>());
            crate::files::write_private(&file, id.as_bytes())?;
            id
        }
    };
    Ok(format!("{}-{id}", host::hostname()))
}

/// Every connection is a descriptor, and often two: what the administrator allows is taken.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("the limit of open files stays as it is: {e}");
    }
}
