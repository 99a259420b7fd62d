//! Puts the sidecar together, and takes it apart without failing a request.
//!
//! Workers are threads, each with a runtime of its own, that serve traffic. Everything else (the control plane's
//! streams, pages, timers) has the main thread's runtime, so that it never delays a request.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;
use weft_core::names::normalise;
use weft_proto::v1::Hello;

use crate::admin::{self, Pages};
use crate::ads::{self, Introduction};
use crate::agent::catalog::Catalog;
use crate::agent::local::Local;
use crate::agent::{Agent, definitions, entry};
use crate::call::AccessLog;
use crate::claim;
use crate::control::{Backoff, Control};
use crate::dns::forward::Forwarder;
use crate::dns::{self, Dns};
use crate::identity::Identity;
use crate::listen::{self, Role};
use crate::metrics::{Metrics, Workload};
use crate::proxy::{Proxy, Settings};
use crate::redirect::rules::Own;
use crate::session::Registrations;
use crate::{connect, directory, resolv, session};

/// How a sidecar runs.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Control plane, host:port; several are tried in turn.
    #[arg(long = "control-plane", env = "WEFT_CONTROL_PLANE", value_delimiter = ',', required = true)]
    pub control_planes: Vec<String>,
    /// File with a join token (`weftctl token create`); read again at each use.
    #[arg(long, env = "WEFT_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Folder that certificate and last state are kept in (0600), so that a restart needs no control plane.
    #[arg(long, env = "WEFT_DATA_DIR", default_value = "/var/lib/weft-sidecar")]
    pub data_dir: PathBuf,
    /// Service to register this pod as.
    #[arg(long)]
    pub service: Option<String>,
    /// Port that the service listens on.
    #[arg(long, requires = "service")]
    pub port: Option<u16>,
    /// What the service speaks: http, http2, grpc, tcp, tls; found out from the first bytes where it is not given.
    #[arg(long, requires = "service")]
    pub protocol: Option<String>,
    /// Path that tells the service's health: 2xx is healthy. Without it the service is taken for healthy.
    #[arg(long, requires = "port")]
    pub health_path: Option<String>,
    /// Seconds between looks at the health path.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub health_interval: u64,
    /// Where Consul's HTTP API is served to this pod, or "off"; loopback only.
    #[arg(long, default_value = "127.0.0.1:8500", value_parser = agent_api)]
    pub agent_api: Listen,
    /// Label of this pod, key=value; repeatable.
    #[arg(long = "label", value_parser = key_value)]
    pub labels: Vec<(String, String)>,
    /// Name of the workload; the service, else the host, where it is not given.
    #[arg(long)]
    pub workload: Option<String>,
    /// region/zone/subzone.
    #[arg(long, default_value = "")]
    pub locality: String,
    /// Worker threads; as many as there are processors, two at most, where it is not given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Where redirected outbound connections arrive.
    #[arg(long, default_value_t = 15001)]
    pub outbound_port: u16,
    /// Where redirected inbound connections arrive.
    #[arg(long, default_value_t = 15006)]
    pub inbound_port: u16,
    /// Where redirected DNS arrives (127.0.0.1's port is served on [::1] too), or off.
    #[arg(long, default_value = "127.0.0.1:15053")]
    pub dns_listen: Listen,
    /// Also listen as an HTTP proxy here, for applications without redirection (http_proxy=...).
    #[arg(long)]
    pub http_proxy: Option<SocketAddr>,
    /// Readiness page.
    #[arg(long, default_value = "0.0.0.0:15021")]
    pub ready_listen: SocketAddr,
    /// Metrics page.
    #[arg(long, default_value = "0.0.0.0:15020")]
    pub metrics_listen: SocketAddr,
    /// Page with a look inside; loopback only.
    #[arg(long, default_value = "127.0.0.1:15000")]
    pub admin_listen: SocketAddr,
    /// Probe of the application that others may ask for at the metrics page, PORT/PATH: it is then at
    /// /app-health/PORT/PATH, STRICT or not; repeatable.
    #[arg(long = "app-probe", value_name = "PORT/PATH")]
    pub app_probes: Vec<String>,
    /// Access log, JSON lines: a file, or - for standard output.
    #[arg(long)]
    pub access_log: Option<String>,
    /// What happens to unknown destinations.
    #[arg(long, value_enum, default_value_t = OutboundPolicy::AllowAny)]
    pub outbound_traffic: OutboundPolicy,
    /// Names to know before the application asks; repeatable.
    #[arg(long = "preload")]
    pub preload: Vec<String>,
    /// On SIGTERM: seconds to wait until callers have acknowledged that this instance is gone.
    #[arg(long, default_value_t = 5)]
    pub drain_acks: u64,
    /// On SIGTERM: seconds to wait for requests in progress, at most.
    #[arg(long, default_value_t = 30)]
    pub drain_limit: u64,
}

/// What happens to destinations that the mesh does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OutboundPolicy {
    /// They pass through.
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// An address to listen on, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        if text == "off" {
            return Ok(Listen(None));
        }
        text.parse().map(|address| Listen(Some(address))).map_err(|_| "neither an address and port nor off".into())
    }
}

fn agent_api(text: &str) -> Result<Listen, String> {
    let listen: Listen = text.parse()?;
    // Whoever reaches it registers as this pod.
    if listen.0.is_none_or(|a| a.ip().is_loopback()) { Ok(listen) } else { Err("only loopback is allowed".into()) }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Config {
    /// The id of the service of the command line, where there is one.
    fn own_service_id(&self) -> Option<String> {
        Some(entry::command_line_id(self.service.as_ref()?, self.port?))
    }

    /// The ports that the redirection has to know.
    pub fn own_ports(&self) -> Own {
        Own {
            outbound: self.outbound_port,
            inbound: self.inbound_port,
            dns: self.dns_listen.0.map_or(15053, |address| address.port()),
            pages: [self.ready_listen, self.metrics_listen, self.admin_listen].map(|address| address.port()).into(),
        }
    }
}

/// A sidecar that is running.
pub struct Sidecar {
    /// The proxy.
    pub proxy: Arc<Proxy>,
    /// What is registered from this pod.
    pub registrations: Arc<Registrations>,
    /// Its services and checks, and Consul's API.
    pub agent: Arc<Agent>,
    config: Config,
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
    claim_ports(&config)?;
    anyhow::ensure!(config.admin_listen.ip().is_loopback(), "--admin-listen must be on loopback");
    if !connect::probe_marks() {
        tracing::warn!("sockets cannot be marked (CAP_NET_ADMIN): traffic must not be redirected to this proxy");
    }
    let node = node_name(&config.data_dir)?;
    let identity = Arc::new(Identity::open(Some(&config.data_dir)));
    let control = Arc::new(Control::new(config.control_planes.clone(), config.token_file.clone(), identity.clone()));
    let (directory, writer) = directory::new(Some(config.data_dir.join("snapshot.bin")), &config.preload);
    let metrics = Arc::new(Metrics::default());
    let workload = config.workload.clone().or_else(|| config.service.clone()).unwrap_or_else(|| node.clone());
    let labels: HashMap<String, String> = config.labels.iter().cloned().collect();
    let label = |name: &str, or: &str| Arc::from(labels.get(name).map_or(or, String::as_str));
    let own = Workload {
        name: workload.as_str().into(),
        app: label("app", &workload),
        version: label("version", "latest"),
        ..Workload::unknown()
    };
    let log = config.access_log.as_deref().map(AccessLog::open).transpose().context("cannot open the access log")?;
    let proxy = Arc::new(Proxy {
        directory,
        identity,
        metrics: metrics.clone(),
        log: log.map(Arc::new),
        inbound: Arc::default(),
        outbound: Arc::default(),
        ports: Default::default(),
        settings: Settings {
            allow_any: config.outbound_traffic == OutboundPolicy::AllowAny,
            workload: own,
            probes: config.app_probes.clone(),
        },
        draining: watch::Sender::new(false),
    });

    let mut listeners = vec![(bind_any(config.inbound_port)?, Role::Inbound)];
    for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        match bind(SocketAddr::new(loopback, config.outbound_port)) {
            Ok(listener) => listeners.push((listener, Role::Outbound)),
            // A host without IPv6 has nothing to redirect there.
            Err(e) if loopback.is_ipv6() => tracing::debug!("no outbound listener on ::1: {e:#}"),
            Err(e) => return Err(e),
        }
    }
    if let Some(address) = config.http_proxy {
        listeners.push((bind(address)?, Role::HttpProxy));
    }
    for (address, pages) in [
        (config.ready_listen, Pages::Ready),
        (config.metrics_listen, Pages::Metrics),
        (config.admin_listen, Pages::Admin),
    ] {
        let listener = tokio::net::TcpListener::from_std(bind(address)?)?;
        tokio::spawn(admin::serve(proxy.clone(), listener, pages));
    }
    if let Listen(Some(address)) = config.dns_listen {
        // The control plane's name has to be found before it can be asked about names.
        let hosts = config
            .control_planes
            .iter()
            .filter_map(|address| Some(normalise(address.rsplit_once(':')?.0).into_owned()));
        let dns = Dns::new(proxy.directory.clone(), Forwarder::new(resolv::RESOLV_CONF), hosts.collect());
        dns::listen(dns, address)?;
    }
    start_workers(&proxy, &config, listeners)?;

    let (registrations, session) = session::new();
    let agent = Arc::new(Agent {
        local: Local::new(registrations.clone(), control.identity.clone(), Some(config.data_dir.join("agent.json"))),
        catalog: Catalog::new(control.clone()),
        node: node.clone(),
        towards: control.address().parse().unwrap_or(ELSEWHERE),
    });
    tokio::spawn(agent.local.clone().report());
    tokio::spawn(agent.local.clone().keep_saved());
    serve_agent_api(&agent, config.agent_api)?;
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
    tokio::spawn(async move {
        if application == Application::MayRun {
            local.restore(own_id.as_deref()).await;
        }
        join(&control).await;
        tokio::spawn(ads::run(control.clone(), writer, introduction, metrics, streams.clone()));
        tokio::spawn(session.run(control.clone(), hello, streams));
        control.keep_renewed(move || reconnect.send_modify(|n| *n += 1)).await;
    });
    tokio::spawn(housekeeping(proxy.clone()));
    Ok(Sidecar { proxy, registrations, agent, config })
}

impl Sidecar {
    /// Waits until traffic is served.
    pub async fn ready(&self) {
        // Never closed: the directory lives as long as the proxy.
        let _ = self.proxy.directory.ready().wait_for(|ready| *ready).await;
        tracing::info!("ready");
    }

    /// Registers again what was registered before a restart, where [`start`] was told that the application follows.
    pub async fn restore(&self) {
        self.agent.local.restore(self.config.own_service_id().as_deref()).await;
    }

    /// Registers the service of the command line, where there is one. It is announced once there is a control plane.
    pub async fn register(&self) {
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
        let id = &service.instance.service_id;
        let check = self.config.health_path.as_ref();
        let check = check.map(|path| definitions::health_path(id, name, port, path, interval)).transpose()?;
        self.agent.local.register_command_line(service, check).await.map_err(|refused| refused.text)
    }

    /// Takes this pod out of the mesh and waits until nobody calls it any more, within the configured limits.
    pub async fn drain(&self) {
        let limit = Instant::now() + Duration::from_secs(self.config.drain_limit);
        self.proxy.draining.send_replace(true);
        self.agent.local.close().await;
        let wait = Duration::from_secs(self.config.drain_acks.min(self.config.drain_limit));
        let (acknowledged, subscribers) = self.registrations.deregister_all(wait).await;
        tracing::info!(acknowledged, subscribers, "deregistered");
        // One who had picked us before it learned that may still be on its way.
        let quiet = Duration::from_millis(250);
        let mut quiet_since = Instant::now();
        while Instant::now() < limit {
            if self.proxy.inbound.count() > 0 {
                quiet_since = Instant::now();
            } else if quiet_since.elapsed() >= quiet {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        match self.proxy.inbound.count() {
            0 => tracing::info!("drained"),
            left => tracing::warn!(left, "the drain limit is over, requests are cut off"),
        }
    }

    /// Waits until our application's own calls have ended, `limit` at most.
    pub async fn finish_outbound(&self, limit: Duration) {
        let end = Instant::now() + limit;
        while self.proxy.outbound.count() > 0 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The sidecar that has claimed these ports in this network namespace; it says which service it is of.
pub fn other(config: &Config) -> Option<claim::Holder> {
    claim::holder(&port_claim(config.inbound_port)).or_else(|| claim::holder(&port_claim(config.outbound_port)))
}

fn port_claim(port: u16) -> String {
    format!("weft-sidecar/{port}")
}

/// Claims the ports that traffic is redirected to, or says who has them: "address in use" would not say what to do.
fn claim_ports(config: &Config) -> Result<()> {
    for port in [config.outbound_port, config.inbound_port] {
        let Some(claimed) = claim::claim(&port_claim(port))? else {
            let (who, of) = other(config).map_or_else(Default::default, |other| {
                let of = if other.word.is_empty() { String::new() } else { format!(" of {}", other.word) };
                (format!(" ({other})"), of)
            });
            anyhow::bail!(
                "another weft-sidecar{of}{who} serves port {port} in this network namespace, and one namespace has one: \
                 its traffic can only be sent to one proxy. Run the second service in a namespace of its own: \
                 weft-sidecar exec --netns [options] -- your-server"
            );
        };
        claimed.keep(config.service.clone().unwrap_or_default())?;
    }
    Ok(())
}

/// An address that is nobody's, to find out from which of ours the world is reached.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

fn serve_agent_api(agent: &Arc<Agent>, at: Listen) -> Result<()> {
    let Some(address) = at.0 else { return Ok(()) };
    match bind(address) {
        Ok(listener) => {
            tokio::spawn(agent.clone().serve(tokio::net::TcpListener::from_std(listener)?));
        }
        // A Consul agent, most likely: the application may go on using it.
        Err(e) => tracing::warn!("no agent API: {e:#} (--agent-api takes another address, or off)"),
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

fn start_workers(proxy: &Arc<Proxy>, config: &Config, listeners: Vec<(std::net::TcpListener, Role)>) -> Result<()> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = config.workers.unwrap_or_else(|| u16::try_from(processors.min(2)).unwrap_or(1));
    for worker in 0..workers {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut accepting = Vec::new();
        for (listener, role) in &listeners {
            accepting.push((listener.try_clone()?, *role));
        }
        let proxy = proxy.clone();
        std::thread::Builder::new().name(format!("worker-{worker}")).spawn(move || {
            runtime.block_on(async move {
                for (listener, role) in accepting {
                    match tokio::net::TcpListener::from_std(listener) {
                        Ok(listener) => drop(tokio::spawn(listen::accept(proxy.clone(), listener, role, worker))),
                        Err(e) => tracing::error!("worker {worker} cannot listen: {e}"),
                    }
                }
                std::future::pending::<()>().await;
            });
        })?;
    }
    Ok(())
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
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(format!("{host}-{id}"))
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

/// Listens on all addresses, IPv6 too where there is any.
fn bind_any(port: u16) -> Result<std::net::TcpListener> {
    bind(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port))
        .or_else(|_| bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)))
}

/// Listens on one address.
pub(crate) fn bind(address: SocketAddr) -> Result<std::net::TcpListener> {
    let context = || format!("cannot listen on {address}");
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).with_context(context)?;
    socket.set_reuse_address(true).with_context(context)?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false).with_context(context)?;
    }
    socket.bind(&address.into()).with_context(context)?;
    socket.listen(4096).with_context(context)?;
    socket.set_nonblocking(true).with_context(context)?;
    Ok(socket.into())
}
