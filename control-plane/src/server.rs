//! Assembles the control plane: store, CA, registry, policies, discovery, and the listeners for sidecars, the
//! administrator and DNS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use weft_kubernetes::accounts::Accounts;
use weft_kubernetes::secret::Secrets;
use weft_kubernetes::{bundle, watch};
use weft_proto::envoy::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use weft_proto::v1::admin_server::AdminServer;
use weft_proto::v1::catalog_server::CatalogServer;
use weft_proto::v1::dns_server::DnsServer;
use weft_proto::v1::identity_server::IdentityServer;
use weft_proto::v1::registry_server::RegistryServer;

use crate::admin::service::{self as admin, AdminService};
use crate::api::catalog::CatalogService;
use crate::api::consul::Consul;
use crate::api::consul::connect::Roots;
use crate::api::dns::listen::Listen;
use crate::api::dns::service::DnsService;
use crate::api::dns::{self, Dns};
use crate::api::eureka::Eureka;
use crate::api::listener::{self, HttpApi};
use crate::discovery::{Discovery, DiscoveryService};
use crate::federation::{self, Federation};
use crate::identity::bounds::Pace;
use crate::identity::ca::{Ca, CaRecord};
use crate::identity::grants::Grants;
use crate::identity::peer;
use crate::identity::rates::Rates;
use crate::identity::refusals::Refusals;
use crate::identity::service::{self as signing, IdentityService};
use crate::identity::token::Tokens;
use crate::kubernetes;
use crate::registry::external::Externals;
use crate::registry::sidecar::RegistryService;
use crate::sockets;
use crate::sources::folder::PolicyFolder;
use crate::state::{BesideFolder, Mesh};
use crate::store::embedded::Embedded;
use crate::store::etcd::{Access, Etcd};
use crate::store::snapshot::automatic;
use crate::store::{self, Condition, Op, Table};
use crate::telemetry::Telemetry;
use crate::webhook;

/// The configuration of a control plane.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of the store and the administrator's socket.
    pub data_dir: PathBuf,
    /// `etcd://...` of the store that several control planes share; `None`: the embedded one.
    pub store: Option<String>,
    /// The connection to etcd.
    pub etcd: Access,
    /// Automatic snapshots of the store.
    pub snapshots: automatic::Settings,
    /// Folder of policy files, watched.
    pub policies: Option<PathBuf>,
    /// How long the documents of an emptied or removed policy file are kept.
    pub policy_grace: Duration,
    /// The Kubernetes cluster that is followed.
    pub kubernetes: Option<Cluster>,
    /// The admission webhooks of that cluster.
    pub webhook: webhook::Settings,
    /// The listener for sidecars.
    pub listen: SocketAddr,
    /// Trust domain of a mesh that is created now; an existing one keeps its own.
    pub trust_domain: String,
    /// Longest life of a sidecar's certificate.
    pub certificate_ttl: Duration,
    /// Time after its expiry during which a certificate can be renewed with its own key.
    pub renewal_grace: Duration,
    /// Discovery streams above which sidecars are sent to other control planes of their list; 0: none are.
    pub max_streams: usize,
    /// Time without a sign of life after which a sidecar's instances are removed.
    pub lease: Duration,
    /// Listeners of Consul's DNS names.
    pub dns_listen: Vec<Listen>,
    /// Options of DNS answers.
    pub dns: dns::Settings,
    /// Listeners of Consul's API and Eureka's for programs without a sidecar.
    pub http: listener::Settings,
    /// Whether such programs may register, with a token.
    pub allow_external: bool,
    /// The other data centres.
    pub federation: federation::Settings,
}

/// A Kubernetes cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// `None`: the cluster around this process.
    pub kubeconfig: Option<PathBuf>,
    /// Whether the token of a pod is accepted from the pod's addresses alone.
    pub check_addresses: bool,
    /// Name of the Secret, in the control plane's own namespace, that keeps its secrets.
    pub secret: Option<String>,
}

/// Name of the administrator's socket in the data folder.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// Runs until `stop` resolves.
///
/// # Errors
/// If the store, a listener or the policy folder is unavailable.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> Result<()> {
    let store: store::Shared = match &config.store {
        Some(url) => Arc::new(Etcd::connect(url, &config.etcd).await?),
        None => Arc::new(Embedded::open(&config.data_dir)?),
    };
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot make the data folder {}", config.data_dir.display()))?;
    let cluster = match &config.kubernetes {
        Some(cluster) => Some((cluster, watch::client(cluster.kubeconfig.as_deref()).await?)),
        None => None,
    };
    let secret = cluster
        .as_ref()
        .and_then(|(cluster, client)| cluster.secret.as_ref().map(|name| Secrets::new(client.clone(), name)));
    let ca = Arc::new(open_ca(&store, secret.as_ref(), &config.trust_domain).await?);
    listener::write_root(&ca, &config.data_dir)?;
    let tokens = Arc::new(Tokens::new(&token_secret(&store, secret.as_ref()).await?));
    let mut telemetry = Telemetry { store: store.health(), ..Telemetry::default() };
    if !config.snapshots.interval.is_zero() {
        let (dir, counts) = (config.data_dir.clone(), telemetry.snapshots.clone());
        tokio::spawn(automatic::keep(store.clone(), dir, config.snapshots, counts));
    }
    let mesh = Mesh::open(store.clone(), ca.trust_domain(), config.lease).await?;
    telemetry.out_of_bounds = mesh.out_of_bounds.clone();
    let federation = Federation::start(&config.federation, &mesh, &ca).await?;
    let discovery = Discovery::new(mesh.clone(), config.max_streams);

    let sidecars = sockets::listen(config.listen);
    let sidecars = sidecars.with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = sidecars.local_addr()?;
    let socket = config.data_dir.join(ADMIN_SOCKET);
    let admin_listener = admin::listen(&socket).await?;
    if let Some(dir) = &config.policies {
        let beside = BesideFolder(Arc::downgrade(&mesh));
        let folder = PolicyFolder::new(dir, ca.trust_domain(), config.policy_grace, beside);
        let mut folder = folder.start().with_context(|| format!("cannot read the policy folder {}", dir.display()))?;
        mesh.set_folder(folder.borrow_and_update().clone());
        let mesh = mesh.clone();
        tokio::spawn(async move {
            // Ends with the folder's thread, that is with the process.
            while folder.changed().await.is_ok() {
                let state = folder.borrow_and_update().clone();
                mesh.set_folder(state);
            }
        });
    }
    let accounts = match cluster {
        Some((cluster, client)) => {
            kubernetes::follow(mesh.clone(), client.clone(), &ca).await?;
            if webhook::serve(mesh.clone(), config.webhook, &ca, telemetry.admissions.clone())? {
                tokio::spawn(bundle::keep(client.clone(), ca.root_pem()));
            }
            Some(Accounts::new(client, cluster.check_addresses))
        }
        None => None,
    };
    tokio::spawn(mesh.clone().reap());
    let address_of_dns = config.dns_listen.iter().find_map(|place| place.reachable());
    let datacenter = config.federation.datacenter.clone();
    let settings = dns::Settings { address: address_of_dns, datacenter, ..config.dns };
    let exported = Dns::exported(mesh.clone(), settings.clone());
    let dns = Dns::new(mesh.clone(), settings, federation.clone());
    dns::listen::serve(&dns, &config.dns_listen).await?;

    let (refusals, grants) = (Arc::new(Refusals::default()), Arc::new(Grants::new(store.clone())));
    telemetry.certificates_refused = refusals.count.clone();
    let admin = AdminService {
        mesh: mesh.clone(),
        discovery: discovery.clone(),
        ca: ca.clone(),
        tokens: tokens.clone(),
        federation: federation.clone(),
        store,
        refusals: refusals.clone(),
        grants: grants.clone(),
    };
    let admin_server = Server::builder()
        .add_service(AdminServer::new(admin).max_decoding_message_size(32 << 20))
        .serve_with_incoming(UnixListenerStream::new(admin_listener));
    let consul = Arc::new(Consul {
        mesh: mesh.clone(),
        address,
        roots: Roots::of(&ca),
        federation: federation.clone(),
        allow_external: config.allow_external,
    });
    federation.serve(&config.federation, &ca, consul.clone(), exported).await?;
    let eureka = Arc::new(Eureka::new(mesh.clone()));
    let folder = config.allow_external.then(|| config.data_dir.join("external"));
    let externals = Externals::open(mesh.clone(), discovery.clone(), folder).await?;
    tokio::spawn(externals.clone().keep());
    let api = HttpApi { externals, consul: consul.clone(), eureka: eureka.clone(), tokens: tokens.clone(), telemetry };
    listener::serve(api, &config.http, &ca).await?;
    let queries = Arc::<Pace>::default();
    let catalog = CatalogService { eureka, consul, tokens: tokens.clone(), pace: queries.clone() };
    let identity = IdentityService {
        ca: ca.clone(),
        tokens,
        accounts,
        lifetime: config.certificate_ttl,
        rates: Rates::new(signing::BURST, signing::INTERVAL),
        refusals: refusals.clone(),
        grants: grants.clone(),
    };
    let incoming = peer::accept(&ca, sidecars, config.renewal_grace, refusals)?;
    let server = Server::builder()
        // A broken connection to a sidecar is detected in seconds; its lease runs from then.
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .add_service(AggregatedDiscoveryServiceServer::new(DiscoveryService(discovery.clone())))
        .add_service(RegistryServer::new(RegistryService { mesh, discovery, grants, pace: Arc::default() }))
        .add_service(CatalogServer::new(catalog))
        .add_service(DnsServer::new(DnsService { dns, pace: queries }))
        .add_service(IdentityServer::new(identity))
        .serve_with_incoming(ReceiverStream::new(incoming));
    tracing::info!(%address, trust_domain = ca.trust_domain(), socket = %socket.display(), "control plane is ready");
    tokio::select! {
        result = server => result.context("the sidecars' listener failed"),
        result = admin_server => result.context("the administrator's socket failed"),
        () = stop => Ok(()),
    }
}

async fn open_ca(store: &store::Shared, shared: Option<&Secrets>, trust_domain: &str) -> Result<Ca> {
    let make = || {
        let (_, record) = Ca::create(trust_domain, SystemTime::now())?;
        tracing::info!(trust_domain, "created a new root certificate");
        Ok(serde_json::to_vec(&record)?)
    };
    let json = secret(store, shared, "ca", make).await?;
    let record: CaRecord = serde_json::from_slice(&json).context("the stored CA cannot be read")?;
    Ca::load(&record)
}

async fn token_secret(store: &store::Shared, shared: Option<&Secrets>) -> Result<Vec<u8>> {
    let make = || {
        let mut secret = vec![0; 32];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| anyhow::anyhow!("the system gives no randomness"))?;
        Ok(secret)
    };
    secret(store, shared, "tokens", make).await
}

/// A secret, created by the first control plane that needs it. That of a cluster's Secret has precedence over the store's: the
/// store of a pod may be empty.
async fn secret(
    store: &store::Shared,
    shared: Option<&Secrets>,
    key: &str,
    make: impl Fn() -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    if let Some(shared) = shared
        && let Some(value) = shared.find(key).await?
    {
        return Ok(value);
    }
    loop {
        if let Some(record) = store.get(Table::Secrets, key).await? {
            return match shared {
                Some(shared) => shared.get_or_set(key, &record.value).await,
                None => Ok(record.value),
            };
        }
        // Another control plane may be faster: then its secret is used by all.
        store.txn(vec![Condition::absent(Table::Secrets, key)], vec![Op::put(Table::Secrets, key, make()?)]).await?;
    }
}
