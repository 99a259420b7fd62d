//! The command line of a sidecar.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use weft_agent::entry;
use weft_listen::clients;

use crate::host::redirect::rules::Own;
use crate::proxy::application::{Application, Metrics, Probes};
use crate::tls::introduction::Introduction;

/// How a sidecar runs.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Control plane, host:port; several are tried in turn.
    #[arg(long = "control-plane", env = "WEFT_CONTROL_PLANE", value_delimiter = ',', required = true)]
    pub control_planes: Vec<String>,
    #[command(flatten)]
    pub join: JoinOptions,
    /// Folder for the certificate and the last state (0600), so that a restart needs no control plane.
    #[arg(long, env = "WEFT_DATA_DIR", default_value = "/var/lib/weft-sidecar")]
    pub data_dir: PathBuf,
    /// Service that this pod is registered as.
    #[arg(long)]
    pub service: Option<String>,
    /// Port that the service listens on.
    #[arg(long, requires = "service")]
    pub port: Option<u16>,
    /// Protocol of the service: http, http2, grpc, tcp, tls; recognised from the first bytes if it is not given.
    #[arg(long, requires = "service")]
    pub protocol: Option<String>,
    /// Path of the service's health check: 2xx is healthy. Without it the service is assumed healthy.
    #[arg(long, requires = "port")]
    pub health_path: Option<String>,
    /// Seconds between requests to the health path.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub health_interval: u64,
    /// WorkloadGroup of this pod's namespace to join: the pod is a workload entry with the group's labels and ports, and the
    /// sidecar makes the group's probe.
    #[arg(long, value_name = "NAME")]
    pub workload_group: Option<String>,
    /// Address of Consul's HTTP API for this pod, or "off"; loopback only.
    #[arg(long, default_value = "127.0.0.1:8500", value_parser = loopback)]
    pub agent_api: Listen,
    /// Address of Eureka's API for this pod, /eureka, and of all that --agent-api serves, which has it too; or "off"; loopback
    /// only.
    #[arg(long, default_value = "127.0.0.1:8761", value_parser = loopback)]
    pub eureka_api: Listen,
    /// Further host name by which programs of this pod reach --agent-api, --eureka-api and the other endpoints on 127.0.0.1,
    /// besides addresses, localhost and the pod's own name; repeatable. Other names are refused: a web page can rebind its name.
    #[arg(long, value_name = "NAME")]
    pub api_host: Vec<String>,
    /// Requests in progress to the agent's API from one address, blocking queries and others each; further ones get 429 (Consul's
    /// http_max_conns_per_client).
    #[arg(long, default_value_t = clients::PER_CLIENT, value_parser = clients::limit)]
    pub http_max_conns_per_client: usize,
    /// Address of Consul's DNS for this pod, with the real addresses of instances (127.0.0.1's port is served on [::1] too), or
    /// "off"; loopback only.
    #[arg(long, default_value = "127.0.0.1:8600", value_parser = loopback)]
    pub consul_dns: Listen,
    /// Let health checks run programs (Args): anyone allowed to register can run arbitrary commands as the proxy's user then.
    #[arg(long)]
    pub enable_script_checks: bool,
    /// Give programs of this pod certificates of its identity, each with a key of its own (agent/connect/ca/leaf): any process that
    /// can read one has the pod's identity until the certificate expires, on any machine.
    #[arg(long)]
    pub connect_leaf: bool,
    /// Label of this pod, key=value; repeatable.
    #[arg(long = "label", value_parser = key_value)]
    pub labels: Vec<(String, String)>,
    /// Name of the workload [default: the service, else the workload group, else the host name].
    #[arg(long)]
    pub workload: Option<String>,
    /// region/zone/subzone.
    #[arg(long, default_value = "")]
    pub locality: String,
    /// Worker threads [default: the number of processors, at most two].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Listener of redirected outbound connections.
    #[arg(long, default_value_t = 15001)]
    pub outbound_port: u16,
    /// Listener of redirected inbound connections.
    #[arg(long, default_value_t = 15006)]
    pub inbound_port: u16,
    /// Listener of redirected DNS queries (127.0.0.1's port is served on [::1] too), or off.
    #[arg(long, default_value = "127.0.0.1:15053")]
    pub dns_listen: Listen,
    /// Also listen as an HTTP proxy here, for applications without redirection (http_proxy=...).
    #[arg(long)]
    pub http_proxy: Option<SocketAddr>,
    /// Readiness endpoint.
    #[arg(long, default_value = "0.0.0.0:15021")]
    pub ready_listen: SocketAddr,
    /// Metrics endpoint.
    #[arg(long, default_value = "0.0.0.0:15020")]
    pub metrics_listen: SocketAddr,
    /// Admin endpoint; loopback only.
    #[arg(long, default_value = "127.0.0.1:15000")]
    pub admin_listen: SocketAddr,
    #[command(flatten)]
    pub application: ApplicationOptions,
    /// Access log, JSON lines: a file, or - for standard output.
    #[arg(long)]
    pub access_log: Option<String>,
    /// Protocol that requests may switch to by `Upgrade`, or `connect`: CONNECT makes a tunnel to a service then. Routes and retries
    /// do not apply inside. Repeatable; both sidecars of a call must allow it.
    #[arg(long = "upgrade-type", value_name = "TOKEN", env = "WEFT_UPGRADE_TYPES", value_delimiter = ',', default_value = "websocket", value_parser = upgrade_type)]
    pub upgrade_types: Vec<String>,
    /// Whether unknown destinations pass through or are refused.
    #[arg(long, value_enum, default_value_t = OutboundPolicy::AllowAny)]
    pub outbound_traffic: OutboundPolicy,
    /// Name to resolve at the start; repeatable.
    #[arg(long = "preload")]
    pub preload: Vec<String>,
    /// On SIGTERM: seconds to wait until clients' sidecars have acknowledged that this instance is gone.
    #[arg(long, default_value_t = 5)]
    pub drain_acks: u64,
    /// On SIGTERM: minimum seconds in which outbound connections, DNS and inbound connections go on as before, so that an application
    /// that is stopped at the same time finishes its work. Then the sidecar stays until the application has closed its
    /// connections. [default: the mesh's terminationDrainDuration, else 5; `exec` ends after its command instead]
    #[arg(long, value_name = "SECONDS")]
    pub drain_min: Option<u64>,
    /// On SIGTERM: maximum seconds to wait for requests in progress and for the application's connections.
    #[arg(long, default_value_t = 30)]
    pub drain_limit: u64,
    /// After a reload (SIGHUP): maximum seconds in which the previous process finishes its connections. A byte stream, a WebSocket or
    /// a gRPC stream may last hours.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    pub parent_shutdown_time: u64,
    /// Seconds after which a connection for requests ends whose peer acknowledges nothing (TCP_USER_TIMEOUT), so that requests are
    /// retried elsewhere; 0: the kernel's time, some 15 minutes. A peer that reads nothing for so long counts too.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub tcp_user_timeout: u64,
    /// Folder of certificates that DestinationRules name by `credentialName`: <name>/ca.crt, ca.crl, tls.crt and tls.key.
    #[arg(long, default_value = "/etc/weft/credentials")]
    pub credentials: PathBuf,
    /// This is a gateway, and its own certificates are in that folder too.
    #[arg(skip)]
    pub gateway: bool,
    /// The sidecar is outside its pod's network ([`crate::net::pod`]).
    #[arg(skip)]
    pub outside: bool,
}

/// How a gateway runs.
#[derive(Debug, Clone, clap::Args)]
pub struct GatewayConfig {
    /// Control plane, host:port; several are tried in turn.
    #[arg(long = "control-plane", env = "WEFT_CONTROL_PLANE", value_delimiter = ',', required = true)]
    control_planes: Vec<String>,
    #[command(flatten)]
    join: JoinOptions,
    /// Folder for the certificate and the last state (0600).
    #[arg(long, env = "WEFT_DATA_DIR", default_value = "/var/lib/weft-gateway")]
    data_dir: PathBuf,
    /// Folder of certificates that Gateways and DestinationRules name by `credentialName`: <name>/tls.crt, tls.key, ca.crt
    /// and, for DestinationRules, ca.crl.
    #[arg(long, default_value = "/etc/weft/credentials")]
    credentials: PathBuf,
    /// Label by which Gateways select this one, key=value; repeatable [default: istio=ingressgateway].
    #[arg(long = "label", value_parser = key_value)]
    labels: Vec<(String, String)>,
    /// Name of the workload.
    #[arg(long, default_value = "gateway")]
    workload: String,
    /// region/zone/subzone.
    #[arg(long, default_value = "")]
    locality: String,
    /// Worker threads [default: the number of processors, at most two].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Readiness endpoint.
    #[arg(long, default_value = "0.0.0.0:15021")]
    ready_listen: SocketAddr,
    /// Metrics endpoint.
    #[arg(long, default_value = "0.0.0.0:15020")]
    metrics_listen: SocketAddr,
    /// Admin endpoint; loopback only.
    #[arg(long, default_value = "127.0.0.1:15000")]
    admin_listen: SocketAddr,
    /// Access log, JSON lines: a file, or - for standard output.
    #[arg(long)]
    access_log: Option<String>,
    /// Protocol that requests may switch to by `Upgrade`, or `connect`: CONNECT makes a tunnel to a service then. Routes and retries
    /// do not apply inside. Repeatable; both sidecars of a call must allow it.
    #[arg(long = "upgrade-type", value_name = "TOKEN", env = "WEFT_UPGRADE_TYPES", value_delimiter = ',', default_value = "websocket", value_parser = upgrade_type)]
    upgrade_types: Vec<String>,
    /// On SIGTERM: maximum seconds to wait for requests in progress.
    #[arg(long, default_value_t = 30)]
    drain_limit: u64,
    /// After a reload (SIGHUP): maximum seconds in which the previous process finishes its connections.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    parent_shutdown_time: u64,
    /// Seconds after which a connection for requests ends whose peer acknowledges nothing (TCP_USER_TIMEOUT); 0: the kernel's time,
    /// some 15 minutes.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    tcp_user_timeout: u64,
}

impl From<GatewayConfig> for Config {
    fn from(given: GatewayConfig) -> Config {
        let default = || vec![("istio".to_owned(), "ingressgateway".to_owned())];
        Config {
            control_planes: given.control_planes,
            join: given.join,
            data_dir: given.data_dir,
            service: None,
            port: None,
            protocol: None,
            health_path: None,
            health_interval: 5,
            workload_group: None,
            agent_api: Listen(None),
            api_host: Vec::new(),
            http_max_conns_per_client: clients::PER_CLIENT,
            enable_script_checks: false,
            connect_leaf: false,
            eureka_api: Listen(None),
            labels: if given.labels.is_empty() { default() } else { given.labels },
            workload: Some(given.workload),
            locality: given.locality,
            workers: given.workers,
            outbound_port: 15001,
            inbound_port: 15006,
            dns_listen: Listen(None),
            consul_dns: Listen(None),
            http_proxy: None,
            ready_listen: given.ready_listen,
            metrics_listen: given.metrics_listen,
            admin_listen: given.admin_listen,
            application: ApplicationOptions::default(),
            access_log: given.access_log,
            upgrade_types: given.upgrade_types,
            outbound_traffic: OutboundPolicy::RegistryOnly,
            preload: Vec::new(),
            drain_acks: 0,
            drain_min: None,
            drain_limit: given.drain_limit,
            parent_shutdown_time: given.parent_shutdown_time,
            tcp_user_timeout: given.tcp_user_timeout,
            credentials: given.credentials,
            gateway: true,
            outside: false,
        }
    }
}

/// Requests to the application for clients outside the mesh.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ApplicationOptions {
    /// Probe of the application that is served at the metrics endpoint, PORT/PATH: its path there is /app-health/PORT/PATH, under
    /// STRICT too; repeatable.
    #[arg(long = "app-probe", value_name = "PORT/PATH")]
    app_probes: Vec<String>,
    /// Kubernetes' probes and lifecycle hooks that are served at the metrics endpoint: a JSON object of their pages and probes, as
    /// the injection into pods writes it.
    #[arg(long, value_name = "JSON", env = "WEFT_APP_PROBES", value_parser = Probes::parse)]
    pod_probes: Option<Probes>,
    /// The application's metrics, {"port":PORT,"path":"PATH"}: /stats/prometheus of the metrics endpoint has them too.
    #[arg(long, value_name = "JSON", env = "WEFT_APP_METRICS", value_parser = Metrics::parse)]
    app_metrics: Option<Metrics>,
    /// The pod's address, to which these probes and requests go [default: 127.0.0.1].
    #[arg(long, env = "INSTANCE_IP")]
    pod_ip: Option<IpAddr>,
}

impl From<&ApplicationOptions> for Application {
    fn from(given: &ApplicationOptions) -> Application {
        Application {
            declared: given.app_probes.clone(),
            probes: given.pod_probes.clone().unwrap_or_default(),
            metrics: given.app_metrics.clone(),
            address: given.pod_ip,
        }
    }
}

/// The means and the name to join with.
#[derive(Debug, Clone, clap::Args)]
pub struct JoinOptions {
    /// File with a join token (`weftctl token create`); read again at each use. At the start it is compared with the saved
    /// certificate: if it names another identity, other services or another mesh, the program joins anew.
    #[arg(long, env = "WEFT_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// File with a token of the pod's service account for the audience weft-ca, instead of a join token; read again at each use.
    #[arg(
        long,
        value_name = "FILE",
        env = "WEFT_SERVICE_ACCOUNT_TOKEN",
        requires = "root_certificate",
        conflicts_with = "token_file"
    )]
    service_account_token: Option<PathBuf>,
    /// PEM file with the mesh's root certificates, for --service-account-token.
    #[arg(long, value_name = "FILE", env = "WEFT_ROOT_CERTIFICATE", requires = "service_account_token")]
    root_certificate: Option<PathBuf>,
    /// Name of this node in the mesh, in Kubernetes POD.NAMESPACE [default: the host name and a number that the data folder keeps].
    #[arg(long, value_name = "NAME", env = "WEFT_NODE_NAME")]
    pub(super) node_name: Option<String>,
}

impl JoinOptions {
    /// The files that the program joins with.
    pub(super) fn introduction(&self) -> Option<Introduction> {
        match (&self.service_account_token, &self.root_certificate) {
            (Some(token), Some(roots)) => {
                Some(Introduction::ServiceAccount { token: token.clone(), roots: roots.clone() })
            }
            _ => self.token_file.clone().map(Introduction::JoinToken),
        }
    }
}

/// The handling of unknown destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OutboundPolicy {
    /// Unknown destinations pass through.
    AllowAny,
    /// Unknown destinations are refused.
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

fn loopback(text: &str) -> Result<Listen, String> {
    let listen: Listen = text.parse()?;
    // Any client of it registers, or reads, as this pod.
    if listen.0.is_none_or(|a| a.ip().is_loopback()) { Ok(listen) } else { Err("only loopback is allowed".into()) }
}

/// A protocol's name (RFC 9110, 7.8), in lower case: names are compared without it.
fn upgrade_type(text: &str) -> Result<String, String> {
    if text.eq_ignore_ascii_case("h2c") {
        return Err("h2c is never tunnelled: HTTP/2 inside the tunnel would pass every route".into());
    }
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&byte);
    match !text.is_empty() && text.bytes().all(token) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("must be the name of a protocol, such as websocket, or connect".into()),
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Config {
    /// The id of the service of the command line, where there is one.
    pub(super) fn own_service_id(&self) -> Option<String> {
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
