//! `weft-control-plane`: see `weft_control_plane::server`.

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use tracing_appender::non_blocking::NonBlockingBuilder;
use weft_agent::clients;
use weft_control_plane::api::dns::{self, listen::Listen};
use weft_control_plane::api::listener;
use weft_control_plane::federation::{self, peering::PeerAddress};
use weft_control_plane::server::{self, Config};
use weft_control_plane::sources::folder::DEFAULT_GRACE_S;
use weft_control_plane::store::etcd::Access;
use weft_control_plane::store::snapshot::automatic;
use weft_proto::v1::PeerGateway;
use weft_world::DEFAULT_DATACENTER;

/// Lines of the log that wait for being written; more are dropped.
const LOG_LINES: usize = 4096;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The control plane of a Weft mesh: registry, policies, certificate authority and discovery.
#[derive(Parser)]
#[command(version = option_env!("WEFT_VERSION").unwrap_or(env!("CARGO_PKG_VERSION")))]
struct Args {
    /// Folder of the store (created when missing, readable by its owner alone).
    #[arg(long, default_value = "/var/lib/weft")]
    data_dir: PathBuf,
    /// Store that several control planes share, etcd://host:port[,host:port...][/prefix]; without it state is kept in the
    /// data folder.
    #[arg(long, env = "WEFT_STORE")]
    store: Option<String>,
    /// PEM file of the CA of etcd's certificates; with it etcd is spoken to by TLS.
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
    /// Seconds for which the documents of a policy file that was emptied or removed are kept, in case its text returns; longer
    /// while another document needs them.
    #[arg(long, default_value_t = DEFAULT_GRACE_S, value_parser = clap::value_parser!(u64).range(0..=86400))]
    policy_grace: u64,
    /// Address that sidecars connect to (TLS).
    #[arg(long, default_value = "0.0.0.0:15012")]
    listen: SocketAddr,
    /// Trust domain of a new mesh.
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    /// Longest life of a sidecar's certificate, seconds.
    #[arg(long, default_value_t = 24 * 3600, value_parser = clap::value_parser!(u64).range(10..=30 * 24 * 3600))]
    certificate_ttl: u64,
    /// For so long after its end a sidecar's certificate can be renewed by its own key, seconds: how long a control plane may be
    /// away without new join tokens; 0: not at all.
    #[arg(long, default_value_t = 7 * 24 * 3600, value_parser = clap::value_parser!(u64).range(0..=365 * 24 * 3600))]
    renewal_grace: u64,
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

/// Automatic snapshots of the store.
#[derive(clap::Args)]
struct Snapshots {
    /// Seconds between two snapshots, made in the data folder's `snapshots` when something has changed; 0: none are made.
    /// Without it 3600, and 0 with --store: etcd has backups of its own.
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=30 * 24 * 3600))]
    snapshot_interval: Option<u64>,
    /// Snapshots that are kept; the oldest goes.
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
    /// Another data centre, the address of its control plane's --federation-listen, and its root certificate (root.pem of
    /// its data folder); repeatable, the preferred one first. Both sides must name each other. What is exported there
    /// (ServiceExport) stands in for what fails here.
    #[arg(long = "peer", value_name = "NAME=HOST:PORT,ROOT.pem")]
    peers: Vec<PeerAddress>,
    /// Where control planes of other data centres connect (mutual TLS by the exchanged roots); used with --peer only.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:15022")]
    federation_listen: SocketAddr,
    /// Address by which sidecars of other data centres reach our east-west gateways; repeatable. Without it: that of every
    /// connected gateway which a Gateway with AUTO_PASSTHROUGH picks.
    #[arg(long = "east-west-gateway", value_name = "HOST:PORT", value_parser = gateway)]
    east_west_gateways: Vec<PeerGateway>,
    /// Seconds for which a service must have been better here before its requests return from another data centre.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=86400))]
    failback: u64,
    /// Seconds for which the last word of a data centre that is silent is kept.
    #[arg(long, default_value_t = 24 * 3600, value_parser = clap::value_parser!(u64).range(1..=30 * 86400))]
    peer_ttl: u64,
}

fn gateway(text: &str) -> Result<PeerGateway, String> {
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let (host, port) = parts.ok_or("it should be HOST:PORT")?;
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
    /// Where Consul's HTTP API and Eureka's are served to programs without a sidecar, or "off"; repeatable;
    /// 127.0.0.1:8501, unless it is taken, where it is not given. On loopback it is plain HTTP, and who has no token reads
    /// the namespace "default". Anywhere else it is HTTPS, by a certificate of the mesh's root (root.pem in the data
    /// folder), and nobody is answered without a token (weftctl token create --api).
    #[arg(long, value_name = "ADDR:PORT")]
    http_listen: Vec<Listen>,
    /// Further name or address in that certificate, or by which a listener on loopback may be asked; repeatable. It has the listener's address, 127.0.0.1, localhost and
    /// this host's name; a listener at 0.0.0.0 has to be given the address that clients use.
    #[arg(long = "http-name", value_name = "NAME")]
    http_names: Vec<String>,
    /// Requests of one address that may be under way there at once, blocking queries and others each; more are answered with 429.
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
    /// Where Consul's DNS names are served, UDP and TCP, or "off"; repeatable; 127.0.0.1:8600, unless it is taken, where
    /// it is not given. DNS proves nobody: whoever reaches the address reads the names of the namespace "default". On a
    /// machine with several addresses name each: by 0.0.0.0 an answer may leave from another than was asked.
    #[arg(long, value_name = "ADDR:PORT")]
    dns_listen: Vec<Listen>,
    /// Name server for names outside of consul, tried in the order given; repeatable. Without any they are refused.
    #[arg(long = "dns-recursor", value_name = "ADDR[:PORT]", value_parser = recursor)]
    dns_recursors: Vec<SocketAddr>,
    /// Seconds for which an address may be kept; 0 is Consul's.
    #[arg(long, default_value_t = dns::Settings::default().service_ttl, value_parser = clap::value_parser!(u32).range(0..=86400))]
    dns_service_ttl: u32,
    /// Seconds for which it may be remembered that there is no such name.
    #[arg(long, default_value_t = dns::Settings::default().negative_ttl, value_parser = clap::value_parser!(u32).range(0..=86400))]
    dns_negative_ttl: u32,
    /// Leave out instances whose checks warn, too.
    #[arg(long)]
    dns_only_passing: bool,
    /// Most answers over UDP to a client without EDNS (Consul's udp_answer_limit is 3); 0: as many as fit.
    #[arg(long, default_value_t = 0)]
    dns_udp_answer_limit: usize,
}

/// An address, port 53 where none is given.
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
    // On a thread of its own, which drops what it cannot write in time: a slow disk or a pipe that nobody reads must hold
    // up no sidecar. The guard writes what is left at the end.
    // Its queue is memory from the start, 40 bytes a line: the default would be 5 MB.
    let queue = NonBlockingBuilder::default().buffered_lines_limit(LOG_LINES);
    let (log, _guard) = queue.finish(std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
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
        policy_grace: Duration::from_secs(args.policy_grace),
        listen: args.listen,
        trust_domain: args.trust_domain,
        certificate_ttl: Duration::from_secs(args.certificate_ttl),
        renewal_grace: Duration::from_secs(args.renewal_grace),
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

/// Each sidecar holds a descriptor or two: what the administrator allows is taken.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("the limit of open files stays as it is: {e}");
    }
}
