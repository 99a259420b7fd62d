//! Puts the sidecar together, and takes it apart without failing a request.
//!
//! Workers are threads, each with a runtime of its own, that serve traffic. Everything else (the control plane's
//! streams, pages, timers) has the main thread's runtime, so that it never delays a request.

mod assembly;
mod config;
pub mod listen;
mod ports;
mod reload;
mod stop;
mod tasks;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_agent::datacenter::Datacenter;
use weft_agent::{Agent, definitions, entry};

use crate::control::registration::Registrations;
use crate::control::{group, registration};
use crate::gateway;
use crate::host::{self, hot_restart};
use crate::net::{connect, sockets};
use crate::proxy::Proxy;
use ports::{Accepting, claim_ports, listeners, start_workers};

pub use config::{Config, GatewayConfig, Listen, OutboundPolicy};
pub use ports::other;
pub use reload::Request;

/// A sidecar that is running.
pub struct Sidecar {
    /// The proxy.
    pub proxy: Arc<Proxy>,
    /// The pod's registrations.
    pub registrations: Arc<Registrations>,
    /// Its services and checks, and Consul's API.
    pub agent: Arc<Agent>,
    config: Config,
    accepting: watch::Sender<Accepting>,
    /// Of the ports in this network namespace.
    claims: Mutex<Vec<OwnedFd>>,
    /// Ports of a gateway.
    ports: Option<watch::Receiver<Arc<gateway::Ports>>>,
    /// Ends the duties of one process alone: the registration stream, and renewals of the certificate.
    duties: CancellationToken,
    /// Ends the discovery stream.
    discovery: CancellationToken,
    /// Registrations of before a restart are restored.
    restored: watch::Sender<bool>,
}

/// Whether the application runs while the sidecar starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Application {
    /// It may: registrations of before a restart are restored before anything else is sent upstream, so that no client misses them
    /// for a moment.
    MayRun,
    /// It will be started: [`Sidecar::restore`] is called when it serves.
    Follows,
}

/// Starts everything and returns at once; [`Sidecar::ready`] waits, [`Sidecar::register`] lets others know.
///
/// # Errors
/// If a listener or the data folder is unavailable.
pub fn start(config: Config, application: Application) -> Result<Sidecar> {
    let claims = prepare(&config)?;
    let node = config.join.node_name.clone().map_or_else(|| node_name(&config.data_dir), Ok)?;
    let control = assembly::control(&config, &node);
    let (directory, writer) = assembly::directory(&config, &control.identity);
    let proxy = assembly::proxy(&config, &node, directory, control.identity.clone())?;
    let listeners = if config.gateway { Vec::new() } else { listeners(&config)? };
    assembly::serve_pages(&config, &proxy)?;
    let datacenter = Datacenter::default();
    assembly::serve_dns(&config, &proxy, &control, &datacenter)?;
    let accepting = watch::Sender::new(Accepting::All);
    let ports = config.gateway.then(|| assembly::gateway_ports(&config, &proxy, &accepting));
    start_workers(&proxy, &config, listeners, &accepting, ports.as_ref())?;

    let (registrations, session) = registration::new(proxy.directory.clone(), datacenter.clone());
    let agent = assembly::agent(&config, &node, &proxy, &control, &registrations, datacenter);
    let restored = watch::Sender::new(!hot_restart::has_predecessor());
    assembly::serve_agent(&config, &agent, &restored)?;
    if !config.gateway {
        // Its ports are opened when the policy names them.
        sockets::warn_of_unused();
    }
    let (duties, discovery) = (CancellationToken::new(), CancellationToken::new());
    let restore = tasks::restore(&config, application, &agent, &registrations, &proxy, restored.clone());
    let streams = tasks::Streams { control, writer, session, duties: duties.clone(), discovery: discovery.clone() };
    tokio::spawn(streams.run(tasks::hello(&config, node), proxy.metrics.clone(), restore));
    tokio::spawn(tasks::follow_trust(proxy.clone()));
    tokio::spawn(tasks::housekeeping(proxy.clone()));
    tokio::spawn(sockets::in_turn(tasks::guard_redirection(proxy.clone(), registrations.clone(), agent.clone())));
    let claims = Mutex::new(claims);
    Ok(Sidecar { proxy, registrations, agent, config, accepting, claims, ports, duties, discovery, restored })
}

/// Checks the options against each other and the machine, and claims the ports of this network namespace.
fn prepare(config: &Config) -> Result<Vec<OwnedFd>> {
    raise_descriptor_limit();
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot make the data folder {}", config.data_dir.display()))?;
    let claims = if config.gateway || config.outside { Vec::new() } else { claim_ports(config)? };
    let (least, most) = (config.drain_min.unwrap_or_default(), config.drain_limit);
    anyhow::ensure!(least <= most, "--drain-min {least} must not be larger than --drain-limit, which is {most}");
    anyhow::ensure!(config.admin_listen.ip().is_loopback(), "--admin-listen must be on loopback");
    connect::set_user_timeout(Duration::from_secs(config.tcp_user_timeout));
    // Outside the pod's network the redirection does not need marks.
    if !connect::probe_marks() && !config.outside {
        tracing::warn!(
            "sockets cannot be marked (CAP_NET_ADMIN): traffic may be redirected to this proxy only if it runs as a user of \
             its own (redirect install --proxy-uid)"
        );
    }
    Ok(claims)
}

impl Sidecar {
    /// Waits until traffic is served.
    pub async fn ready(&self) {
        // Never closed: the directory lives as long as the proxy.
        let _ = self.proxy.directory.ready().wait_for(|ready| *ready).await;
        self.proxy.redirection.looked(FIRST_LOOK).await;
        tracing::info!("ready");
    }

    /// Restores the registrations of before a restart, where [`start`] was called with [`Application::Follows`].
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
/// `<hostname>-<8 hex>`: stable over restarts, unique among pods with one host name.
fn node_name(data_dir: &Path) -> Result<String> {
    let file = data_dir.join("instance-id");
    let id = match std::fs::read_to_string(&file) {
        Ok(id) if id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()) => id,
        _ => {
            let id = format!("{:08x}", rand::random::<u32>());
            weft_agent::files::write_private(&file, id.as_bytes())?;
            id
        }
    };
    Ok(format!("{}-{id}", host::hostname()))
}

/// Raises the limit of descriptors to the administrator's: every connection needs one, and often two.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("the limit of open files stays as it is: {e}");
    }
}
