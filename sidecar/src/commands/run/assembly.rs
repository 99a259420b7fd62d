//! The parts of a sidecar, each made from the configuration and the parts before it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::watch;
use weft_agent::Agent;
use weft_agent::connect::Leaves;
use weft_agent::datacenter::Datacenter;
use weft_agent::local::Local;
use weft_core::locality::Location;
use weft_core::names::normalise;
use weft_listen::address;
use weft_listen::idle::IdleLimit;
use weft_listen::page::Names;
use weft_listen::server::Bounds;

use super::config::{Config, Listen, OutboundPolicy};
use super::ports::Accepting;
use crate::control::agent::{ControlPlaneCatalog, Delivery, Session};
use crate::control::connection::Control;
use crate::control::directory::{self, Directory, Writer};
use crate::control::registration::Registrations;
use crate::dns::consul::Consul;
use crate::dns::{self, Dns, Serves};
use crate::host::pod_ports::{PodPorts, Serve};
use crate::host::redirect::{self, guard::Redirection};
use crate::net::{connect, sockets};
use crate::proxy::admin::{self, Pages};
use crate::proxy::{Leaving, Proxy, Settings};
use crate::resolve::forward::Forwarder;
use crate::resolve::resolv;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::labels::Workload;
use crate::telemetry::metrics::Metrics;
use crate::tls::identity::Identity;
use crate::tls::introduction::Introduction;
use crate::upstream::resolution::Resolution;
use crate::{gateway, host, inbound};

/// A TEST-NET address (RFC 5737), used to find the source address of packets to other machines.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// The connection to the control plane, with the identity that it authenticates by.
pub(super) fn control(config: &Config, node: &str) -> Arc<Control> {
    let introduction = config.join.introduction();
    let claimed = introduction.as_ref().and_then(Introduction::claimed);
    let identity = Arc::new(Identity::open(Some(&config.data_dir), &config.credentials, claimed.as_ref()));
    Arc::new(Control::new(config.control_planes.clone(), node, introduction, identity))
}

/// The directory, filled from the last snapshot on disk.
pub(super) fn directory(config: &Config, identity: &Identity) -> (Arc<Directory>, Writer) {
    let location =
        Location { locality: config.locality.as_str().into(), labels: config.labels.iter().cloned().collect() };
    let snapshot = config.data_dir.join("snapshot.bin");
    if identity.replaces_another {
        // Another identity sees other services and is sent other policies. Mostly there is no file.
        let _ = std::fs::remove_file(&snapshot);
    }
    let (directory, mut writer) = directory::new(location, Some(snapshot), &config.preload);
    writer.resolve_with(Resolution::start());
    (directory, writer)
}

/// The workload of a node, for metrics and for the control plane.
pub(super) fn workload(config: &Config, node: &str) -> String {
    let workload = config.workload.as_ref().or(config.service.as_ref()).or(config.workload_group.as_ref());
    workload.map_or(node, String::as_str).to_owned()
}

/// The state that all connections share.
pub(super) fn proxy(
    config: &Config,
    node: &str,
    directory: Arc<Directory>,
    identity: Arc<Identity>,
) -> Result<Arc<Proxy>> {
    let workload = workload(config, node);
    let label = |name: &str, or: &str| {
        let found = config.labels.iter().rev().find(|(label, _)| label == name);
        Arc::from(found.map_or(or, |(_, value)| value.as_str()))
    };
    let own = Workload {
        name: workload.as_str().into(),
        app: label("app", &workload),
        version: label("version", "latest"),
        ..Workload::unknown()
    };
    let log = config.access_log.as_deref().map(AccessLog::open).transpose().context("cannot open the access log")?;
    let guarded = !config.gateway && !config.outside;
    let redirection = Arc::new(Redirection::new(guarded.then(|| config.data_dir.join(redirect::RECORD))));
    Ok(Arc::new(Proxy {
        directory,
        identity,
        metrics: Arc::new(Metrics::default()),
        log: log.map(Arc::new),
        inbound: Arc::default(),
        outbound: Arc::default(),
        idle: Arc::new(IdleLimit::of_traffic()),
        ports: Default::default(),
        redirection,
        settings: Settings {
            names: Names::new(host::hostname(), &config.api_host),
            allow_any: config.outbound_traffic == OutboundPolicy::AllowAny,
            workload: own,
            application: (&config.application).into(),
            upgrades: config.upgrade_types.clone(),
        },
        draining: watch::Sender::new(false),
        connections: Arc::default(),
        callers: Arc::default(),
        leaving: Leaving::default(),
    }))
}

/// Readiness, metrics and the admin endpoint.
pub(super) fn serve_pages(config: &Config, proxy: &Arc<Proxy>) -> Result<()> {
    for (address, pages) in [
        (config.ready_listen, Pages::Ready),
        (config.metrics_listen, Pages::Metrics),
        (config.admin_listen, Pages::Admin),
    ] {
        let listener = tokio::net::TcpListener::from_std(sockets::tcp(address)?)?;
        tokio::spawn(sockets::in_turn(admin::serve(proxy.clone(), listener, pages)));
    }
    Ok(())
}

/// The name server for captured queries, and the one for Consul's clients.
pub(super) fn serve_dns(
    config: &Config,
    proxy: &Arc<Proxy>,
    control: &Arc<Control>,
    datacenter: &Datacenter,
) -> Result<()> {
    // The control plane's name has to be resolved before the control plane can resolve names.
    let hosts = config.control_planes.iter();
    let hosts = hosts.filter_map(|address| Some(normalise(address.rsplit_once(':')?.0).into_owned()));
    let (hosts, consul) = (hosts.collect::<Vec<_>>(), Consul::new(control.clone()));
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
        // Most likely a Consul agent listens there: programs may go on using it.
        tracing::warn!("no DNS for Consul's clients: {e:#} (--consul-dns takes another address, or off)");
    }
    Ok(())
}

/// The ports of a gateway, opened and closed as its policy demands.
pub(super) fn gateway_ports(
    config: &Config,
    proxy: &Arc<Proxy>,
    accepting: &watch::Sender<Accepting>,
) -> watch::Receiver<Arc<gateway::Ports>> {
    let ports = watch::Sender::new(Arc::default());
    let receiver = ports.subscribe();
    let mut phase = accepting.subscribe();
    let end = async move {
        // Never closed: the sidecar has the sender.
        let _ = phase.wait_for(|phase| *phase == Accepting::Nothing).await;
    };
    tokio::spawn(gateway::keep(proxy.clone(), config.credentials.clone(), ports, end));
    receiver
}

/// The local agent: Consul's and Eureka's APIs.
pub(super) fn agent(
    config: &Config,
    node: &str,
    proxy: &Arc<Proxy>,
    control: &Arc<Control>,
    registrations: &Arc<Registrations>,
    datacenter: Datacenter,
) -> Arc<Agent> {
    let towards: SocketAddr = control.address().parse().unwrap_or(ELSEWHERE);
    let address = connect::source().or_else(|| address::source_towards(towards).filter(|_| config.outside));
    let served = proxy.clone();
    let serve: Serve = Arc::new(move |stream, peer, at| {
        tokio::spawn(inbound::connection(served.clone(), stream, peer, at, 0));
    });
    let pod_ports = address.filter(|_| config.outside).map(|address| PodPorts::new(address, serve));
    let upstream = Session { registrations: registrations.clone(), identity: control.identity.clone(), pod_ports };
    let metrics = proxy.metrics.clone();
    Arc::new(Agent {
        local: Local::new(
            Arc::new(upstream),
            Arc::new(Delivery { scripts: config.enable_script_checks }),
            Some(config.data_dir.join("agent.json")),
        ),
        mesh: weft_agent::forward::Forwarder::new(ControlPlaneCatalog(control.clone())),
        node: node.to_owned(),
        metrics: Some(Arc::new(move || metrics.render())),
        leaves: config.connect_leaf.then(|| Leaves::new(control.clone())),
        datacenter,
        eureka: Default::default(),
        towards,
        address,
        names: Names::new(host::hostname(), &config.api_host),
    })
}

/// Serves the agent's APIs once registrations of before a restart are `restored`.
pub(super) fn serve_agent(config: &Config, agent: &Arc<Agent>, restored: &watch::Sender<bool>) -> Result<()> {
    tokio::spawn(agent.local.clone().report());
    tokio::spawn(agent.local.clone().keep_saved());
    let per_client = config.http_max_conns_per_client;
    serve_agent_api(agent, config.agent_api, "--agent-api", per_client, restored.subscribe())?;
    serve_agent_api(agent, config.eureka_api, "--eureka-api", per_client, restored.subscribe())
}

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
                weft_listen::server::serve(agent, listener, Bounds::new(per_client)).await;
            });
        }
        // A Consul agent or a Eureka server, most likely: the application may go on using it.
        Err(e) => tracing::warn!("no agent API: {e:#} ({option} takes another address, or off)"),
    }
    Ok(())
}
