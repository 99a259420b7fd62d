//! `weft-control-plane`: see `weft_control_plane::server`.

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{CommandFactory, Parser};
use tracing_appender::non_blocking::NonBlockingBuilder;
use weft_control_plane::api::dns::{self, listen::Listen};
use weft_control_plane::api::listener;
use weft_control_plane::federation::{self, peering::PeerAddress};
use weft_control_plane::server::{self, Cluster, Config};
use weft_control_plane::sources::folder::DEFAULT_GRACE_S;
use weft_control_plane::store::etcd::Access;
use weft_control_plane::store::snapshot::automatic;
use weft_control_plane::webhook;
use weft_listen::clients;
use weft_proto::v1::PeerGateway;
use weft_world::DEFAULT_DATACENTER;

/// Bound on the log lines that wait to be written; further ones are dropped.
const LOG_LINES: usize = 4096;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The control plane of a Weft mesh: registry, policies, certificate authority and discovery.
#[derive(Parser)]
#[command(version = option_env!("WEFT_VERSION").unwrap_or(env!("CARGO_PKG_VERSION")))]
struct Args {
    /// Write the man page into this folder and exit, for deploy/build.sh.
    #[arg(long, value_name = "FOLDER", hide = true, exclusive = true)]
    man: Option<PathBuf>,
    /// Folder of the store, created if missing; only its owner reads the store and its snapshots.
    #[arg(long, default_value = "/var/lib/weft")]
    data_dir: PathBuf,
    /// Store that several control planes share, etcd://host:port[,host:port...][/prefix]; default: the state is in the
    /// data folder.
    #[arg(long, env = "WEFT_STORE")]
    store: Option<String>,
    /// PEM file of the CA of etcd's certificates; enables TLS to etcd.
    #[arg(long, requires = "store")]
    etcd_ca: Option<PathBuf>,
    /// PEM file of this control plane's certificate for etcd.
    #[arg(long, requires = "etcd_ca", requires = "etcd_key")]
    etcd_cert: Option<PathBuf>,
    /// PEM file of its key.
    #[arg(long, requires = "etcd_cert")]
    etcd_key: Option<PathBuf>,
    /// File with etcd's user and password, user:password.
    #[arg(long, requires = "store")]
    etcd_user_file: Option<PathBuf>,
    #[command(flatten)]
    snapshots: Snapshots,
    /// Folder of policy files (Istio's YAML), watched.
    #[arg(long)]
    policies: Option<PathBuf>,
    /// Seconds for which the documents of an emptied or removed policy file are kept, in case its text returns; longer
    /// if another document needs them.
    #[arg(long, default_value_t = DEFAULT_GRACE_S, value_parser = clap::value_parser!(u64).range(0..=86400))]
    policy_grace: u64,
    /// Follow the Kubernetes cluster that this process runs in, or the one of --kubeconfig: its Services are services of
    /// the mesh, and its objects of Istio's kinds are policies.
    #[arg(long)]
    kubernetes: bool,
    /// Kubeconfig file of the cluster.
    #[arg(long, requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,
    /// Accept the token of a pod from any address: for networks that translate addresses between pods and this process.
    #[arg(long, requires = "kubernetes")]
    no_pod_address_check: bool,
    /// Secret, in this process's own namespace, that keeps the certificate authority and the key of tokens instead of the store:
    /// it is made at the first start, and shared by all control planes of the cluster.
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    ca_secret: Option<String>,
    #[command(flatten)]
    webhooks: Webhooks,
    /// Address that sidecars connect to (TLS).
    #[arg(long, default_value = "0.0.0.0:15012")]
    listen: SocketAddr,
    /// Trust domain of a new mesh.
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    /// Longest life of a sidecar's certificate, seconds.
    #[arg(long, default_value_t = 24 * 3600, value_parser = clap::value_parser!(u64).range(10..=30 * 24 * 3600))]
    certificate_ttl: u64,
    /// Seconds after the expiry of a sidecar's certificate during which it can be renewed with its own key: how long a
    /// control plane may be down without new join tokens; 0: never.
    #[arg(long, default_value_t = 7 * 24 * 3600, value_parser = clap::value_parser!(u64).range(0..=365 * 24 * 3600))]
    renewal_grace: u64,
    /// Discovery streams of sidecars, one each, above which sidecars are sent to the other control planes of their list;
    /// 0: none are. A sidecar that all others have refused is served.
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_streams: usize,
    /// Seconds without a sign of life after which a sidecar's instances are removed.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    lease: u64,
    #[command(flatten)]
    dns: Dns,
    #[command(flatten)]
    http: Http,
    #[command(flatten)]
    datacenters: Datacenters,
}

/// The admission webhooks of a Kubernetes cluster.
#[derive(clap::Args)]
struct Webhooks {
    /// Listener of the admission webhooks, which the cluster's API server calls (TLS), or "off"; with --kubernetes only.
    /// Default: 0.0.0.0:15017, unless it is in use.
    #[arg(long, value_name = "ADDR:PORT", requires = "kubernetes")]
    webhook_listen: Option<Listen>,
    /// Name or address in the certificate of that listener; repeatable. Default: the control plane's Service,
    /// weft-control-plane.NAMESPACE.svc, with the namespace of --injection-config.
    #[arg(long = "webhook-name", value_name = "NAME", requires = "kubernetes")]
    webhook_names: Vec<String>,
    /// File with the configuration of injection, YAML; read at the start.
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    injection_config: Option<PathBuf>,
}

impl Webhooks {
    fn settings(self) -> Result<webhook::Settings> {
        let injection = match &self.injection_config {
            None => weft_injection::Config::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                weft_injection::Config::parse(&text).map_err(|error| anyhow!("{}: {error}", path.display()))?
            }
        };
        let listen = self.webhook_listen.unwrap_or(Listen::Usual);
        Ok(webhook::Settings { listen, names: self.webhook_names, injection })
    }
}

/// Automatic snapshots of the store.
#[derive(clap::Args)]
struct Snapshots {
    /// Seconds between two snapshots, written to the data folder's `snapshots` if something has changed; 0: none.
    /// Default: 3600, and 0 with --store, because etcd has backups of its own.
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=30 * 24 * 3600))]
    snapshot_interval: Option<u64>,
    /// Number of snapshots that are kept; older ones are deleted.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=1000))]
    snapshot_keep: u64,
}

impl Snapshots {
    fn settings(&self, shared_store: bool) -> automatic::Settings {
        let interval = self.snapshot_interval.unwrap_or(if shared_store { 0 } else { 3600 });
        let keep = usize::try_from(self.snapshot_keep).unwrap_or(usize::MAX);
        automatic::Settings { interval: Duration::from_secs(interval), keep }
    }
}

/// Other data centres: each has control planes, a store and a trust domain of its own.
#[derive(clap::Args)]
struct Datacenters {
    /// Name of this data centre, as in Consul.
    #[arg(long, default_value = DEFAULT_DATACENTER)]
    datacenter: String,
    /// Another data centre, the address of its control plane's --federation-listen, and its root certificate (root.pem
    /// of its data folder); repeatable, the preferred one first. Both sides must name each other. Services that it
    /// exports (ServiceExport) replace failed local ones.
    #[arg(long = "peer", value_name = "NAME=HOST:PORT,ROOT.pem")]
    peers: Vec<PeerAddress>,
    /// Listener for control planes of other data centres (mutual TLS with the exchanged roots); used with --peer only.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:15022")]
    federation_listen: SocketAddr,
    /// Address through which sidecars of other data centres reach local east-west gateways; repeatable. Default: that
    /// of every connected gateway that a Gateway with AUTO_PASSTHROUGH selects.
    #[arg(long = "east-west-gateway", value_name = "HOST:PORT", value_parser = gateway)]
    east_west_gateways: Vec<PeerGateway>,
    /// Seconds for which a service must have been available here before its requests return from another data centre.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=86400))]
    failback: u64,
    /// Seconds for which the last summary of a disconnected data centre is kept.
    #[arg(long, default_value_t = 24 * 3600, value_parser = clap::value_parser!(u64).range(1..=30 * 86400))]
    peer_ttl: u64,
}

fn gateway(text: &str) -> Result<PeerGateway, String> {
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let (host, port) = parts.ok_or("must be HOST:PORT")?;
    let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or("the port is a number from 1 to 65535")?;
    Ok(PeerGateway { address: host.trim_matches(['[', ']']).to_owned(), port: port.into() })
}

impl Datacenters {
    fn settings(self) -> federation::Settings {
        federation::Settings {
            datacenter: self.datacenter,
            peers: self.peers,
            listen: self.federation_listen,
            gateways: self.east_west_gateways,
            failback: Duration::from_secs(self.failback),
            keep: Duration::from_secs(self.peer_ttl),
        }
    }
}

/// Consul's HTTP API, and Eureka's, for programs without a sidecar.
#[derive(clap::Args)]
struct Http {
    /// Listener of Consul's HTTP API and Eureka's for programs without a sidecar, or "off"; repeatable; default:
    /// 127.0.0.1:8501, unless it is in use. On loopback it is plain HTTP, and a program without a token reads the
    /// namespace "default". At other addresses it is HTTPS, with a certificate of the mesh's root (root.pem in the data
    /// folder), and every request needs a token (weftctl token create --api).
    #[arg(long, value_name = "ADDR:PORT")]
    http_listen: Vec<Listen>,
    /// Further name or address in that certificate, or further host name of a listener on loopback; repeatable. The
    /// certificate has the listener's address, 127.0.0.1, localhost and this host's name; a listener at 0.0.0.0 needs
    /// the address that clients use.
    #[arg(long = "http-name", value_name = "NAME")]
    http_names: Vec<String>,
    /// Concurrent requests of one address, blocking queries and others counted separately; further ones are answered
    /// 429.
    #[arg(long, default_value_t = clients::PER_CLIENT, value_parser = clients::limit)]
    http_max_conns_per_client: usize,
    /// Programs without a sidecar may register there, with a token that names their service. They have no identity: the
    /// mesh speaks plaintext to them.
    #[arg(long)]
    allow_external: bool,
}

/// Consul's DNS names.
#[derive(clap::Args)]
struct Dns {
    /// Listener of Consul's DNS names, UDP and TCP, or "off"; repeatable; default: 127.0.0.1:8600, unless it is in use.
    /// DNS authenticates no client: every client of the address reads the names of the namespace "default". On a
    /// machine with several addresses name each: at 0.0.0.0 an answer may come from another address than the query's.
    #[arg(long, value_name = "ADDR:PORT")]
    dns_listen: Vec<Listen>,
    /// Name server for names outside consul, tried in the given order; repeatable. Without any they are refused.
    #[arg(long = "dns-recursor", value_name = "ADDR[:PORT]", value_parser = recursor)]
    dns_recursors: Vec<SocketAddr>,
    /// Time to live of answers, seconds; Consul's default is 0.
    #[arg(long, default_value_t = dns::Settings::default().service_ttl, value_parser = clap::value_parser!(u32).range(0..=86400))]
    dns_service_ttl: u32,
    /// Time to live of negative answers, seconds.
    #[arg(long, default_value_t = dns::Settings::default().negative_ttl, value_parser = clap::value_parser!(u32).range(0..=86400))]
    dns_negative_ttl: u32,
    /// Leave out instances in warning, too.
    #[arg(long)]
    dns_only_passing: bool,
    /// Maximum number of answers over UDP to a client without EDNS (Consul's udp_answer_limit is 3); 0: as many as fit.
    #[arg(long, default_value_t = 0)]
    dns_udp_answer_limit: usize,
}

/// An address, with port 53 by default.
fn recursor(text: &str) -> Result<SocketAddr, String> {
    let bare = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53));
    text.parse().ok().or_else(bare).ok_or_else(|| "neither an IP address nor one with a port".into())
}

impl Dns {
    fn settings(&self) -> dns::Settings {
        dns::Settings {
            service_ttl: self.dns_service_ttl,
            negative_ttl: self.dns_negative_ttl,
            only_passing: self.dns_only_passing,
            udp_answer_limit: self.dns_udp_answer_limit,
            recursors: self.dns_recursors.clone(),
            ..dns::Settings::default()
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(folder) = args.man {
        return clap_mangen::generate_to(Args::command(), &folder)
            .with_context(|| format!("cannot write the man page into {}", folder.display()));
    }
    // On a thread of its own, which drops lines that it cannot write in time: a slow disk or an unread pipe must not
    // delay any sidecar. The guard writes the remaining lines at the end. Its queue is allocated at the start, 40 bytes
    // for each line: the default would be 5 MB.
    let queue = NonBlockingBuilder::default().buffered_lines_limit(LOG_LINES);
    let (log, _guard) = queue.finish(std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,kube_client=off")),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(log)
        .init();
    raise_descriptor_limit();
    let user = match &args.etcd_user_file {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let (user, password) =
                text.trim_end().split_once(':').with_context(|| format!("{} is not user:password", path.display()))?;
            Some((user.to_owned(), password.to_owned()))
        }
        None => None,
    };
    let config = Config {
        snapshots: args.snapshots.settings(args.store.is_some()),
        store: args.store,
        etcd: Access { ca: args.etcd_ca, certificate: args.etcd_cert.zip(args.etcd_key), user },
        data_dir: args.data_dir,
        policies: args.policies,
        kubernetes: args.kubernetes.then_some(Cluster {
            kubeconfig: args.kubeconfig,
            check_addresses: !args.no_pod_address_check,
            secret: args.ca_secret,
        }),
        webhook: args.webhooks.settings()?,
        policy_grace: Duration::from_secs(args.policy_grace),
        listen: args.listen,
        trust_domain: args.trust_domain,
        certificate_ttl: Duration::from_secs(args.certificate_ttl),
        renewal_grace: Duration::from_secs(args.renewal_grace),
        max_streams: args.max_streams,
        lease: Duration::from_secs(args.lease),
        dns_listen: if args.dns.dns_listen.is_empty() { vec![Listen::Usual] } else { args.dns.dns_listen.clone() },
        dns: args.dns.settings(),
        http: listener::Settings {
            listen: if args.http.http_listen.is_empty() { vec![Listen::Usual] } else { args.http.http_listen },
            names: args.http.http_names,
            per_client: args.http.http_max_conns_per_client,
        },
        allow_external: args.http.allow_external,
        federation: args.datacenters.settings(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(server::run(config, stop_signal()))
}

async fn stop_signal() {
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    let Ok(mut terminate) = terminate else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Each sidecar needs a descriptor or two: the limit is raised as far as the administrator allows.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("the limit of open files stays as it is: {e}");
    }
}
