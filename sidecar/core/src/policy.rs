//! Compiled configuration: what [`crate::compile`] makes of the wire messages, with every default applied, every index
//! and name checked, so that nothing on a request's way has to ask "is it set?" or can fail.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use weft_proto::v1;

use crate::gateway::Server;
use crate::hash::HashPolicy;
use crate::locality::Locality;
use crate::names;
use crate::proxy_protocol;
use crate::route::{ConnectionRoutes, RouteTable};
use crate::tunnel::Tunnel;

/// One host of the mesh: all that a call to it needs but the addresses.
#[derive(Debug, Clone)]
pub struct Service {
    /// Canonical name, `order-service.default.svc.cluster.local` or a ServiceEntry's host. Lower case.
    pub host: Arc<str>,
    /// The service's namespace.
    pub namespace: Arc<str>,
    /// Virtual IPs.
    pub addresses: Vec<IpAddr>,
    /// Authorities that mean this service to this client: lower case, without port and trailing dot.
    pub names: Vec<Arc<str>>,
    /// Ascending by number.
    pub ports: Vec<Port>,
    /// What routes and ports refer to by index.
    pub clusters: Vec<Arc<Cluster>>,
    /// Outside the mesh.
    pub external: bool,
    /// Other data centres may call it.
    pub exported: bool,
    /// The host outside the mesh that it stands for: its address is that one's, and nothing else is known of it.
    pub external_name: Option<Arc<str>>,
}

impl Service {
    /// The port with this number, else the logical port (number 0) that stands for any.
    pub fn port(&self, number: u16) -> Option<&Port> {
        let exact = self.ports.iter().find(|port| port.number == number);
        exact.or_else(|| self.ports.iter().find(|port| port.number == 0))
    }

    /// The cluster of all endpoints of the service itself, if it is headless: of any of its ports, as all have them.
    pub fn headless(&self) -> Option<usize> {
        self.clusters
            .iter()
            .position(|cluster| cluster.headless && cluster.subset.is_empty() && cluster.host == self.host)
    }

    /// A cluster by the index that ports and routes hold.
    ///
    /// # Panics
    /// Never for an index of this very service: they are checked when it is compiled.
    pub fn cluster(&self, index: usize) -> &Arc<Cluster> {
        &self.clusters[index]
    }
}

/// A port of a service.
#[derive(Debug, Clone)]
pub struct Port {
    /// 0: any.
    pub number: u16,
    /// As declared; may be empty.
    pub name: Arc<str>,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// Index of the cluster that serves this port where no route says otherwise (and for TCP).
    pub cluster: usize,
    /// Never empty: a port without routes has one default route to `cluster`, with Istio's default retries.
    pub routes: RouteTable,
    /// Of connections that are not looked into.
    pub connection_routes: ConnectionRoutes,
}

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// To be sniffed.
    Unknown,
    /// HTTP/1.x or HTTP/2, told apart by the preface.
    Http,
    /// HTTP/2 only.
    Http2,
    /// gRPC: HTTP/2.
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// The application's own TLS: passed through.
    Tls,
}

/// One set of endpoints with the policy for calls to it: its own limits, balancer and ejections.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// `outbound|<port>|<subset>|<host>`: what its counters are kept under.
    pub name: Arc<str>,
    /// Name of its `Endpoints` resource.
    pub host: Arc<str>,
    /// The service's port; 0: any.
    pub port: u16,
    /// Empty: the whole service.
    pub subset: Arc<str>,
    /// An endpoint belongs when it has all of these.
    pub labels: BTreeMap<String, String>,
    /// Which port of an endpoint is dialed.
    pub target_port: TargetPort,
    /// What its endpoints speak.
    pub protocol: Protocol,
    /// How an endpoint is picked.
    pub load_balancer: LoadBalancer,
    /// Which localities are called.
    pub locality: Locality,
    /// New endpoints get less at first; with [`LoadBalancer::LeastRequest`] and [`LoadBalancer::RoundRobin`].
    pub warmup: Option<Warmup>,
    /// Limits and timeouts.
    pub pool: ConnectionPool,
    /// `None`: off.
    pub outlier: Option<OutlierDetection>,
    /// Transport security towards the endpoints.
    pub tls: Tls,
    /// Connections begin with a header that tells whose they are: each serves one request, or one client's bytes.
    pub proxy_protocol: Option<proxy_protocol::Version>,
    /// Its endpoints are proxies, and connections that are not HTTP go on through them.
    pub tunnel: Option<Tunnel>,
    /// `DestinationRule/<namespace>/<name>` that decided; empty: defaults.
    pub policy: Arc<str>,
    /// A route names it but nothing defines it: 503 NC.
    pub undefined: bool,
    /// Dial the caller's original destination instead of a balanced endpoint.
    pub original_destination: bool,
    /// Dial the host that a request names itself, see [`Cluster::named`].
    pub dynamic_dns: bool,
    /// Of a headless service: the endpoint that the caller chose is called, see [`crate::target::chosen`].
    pub headless: bool,
}

impl Cluster {
    /// One that no service declares: connections go where they were addressed to.
    pub fn original_destination(name: &str, host: &str, pool: ConnectionPool) -> Cluster {
        Cluster {
            name: name.into(),
            host: host.into(),
            port: 0,
            subset: "".into(),
            labels: BTreeMap::new(),
            target_port: TargetPort::Registered,
            protocol: Protocol::Unknown,
            load_balancer: LoadBalancer::Passthrough,
            locality: Locality::Any,
            warmup: None,
            pool,
            outlier: None,
            tls: Tls::Disable,
            proxy_protocol: None,
            tunnel: None,
            policy: "".into(),
            undefined: false,
            original_destination: true,
            dynamic_dns: false,
            headless: false,
        }
    }

    /// Whether it has endpoints that the registry knows.
    pub fn has_endpoints(&self) -> bool {
        !(self.undefined || self.original_destination || self.dynamic_dns)
    }

    /// The host that `asked`, an authority or server name, means of a cluster with `dynamic_dns`; `None`: its wildcard does
    /// not cover that, or it is none that has an address.
    pub fn named<'a>(&self, asked: &'a str) -> Option<Cow<'a, str>> {
        let host = names::normalise(asked);
        let is_host_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let is_host = host.len() <= 253 && !host.starts_with('.') && host.bytes().all(is_host_byte);
        (self.dynamic_dns && is_host && names::covers(&self.host, &host)).then_some(host)
    }
}

/// Which port of an endpoint is dialed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// The one that the endpoint registered.
    Registered,
    /// This one.
    Number(u16),
    /// The endpoint's port of this name, else `otherwise`; an endpoint with neither does not belong to the cluster.
    Named { name: Arc<str>, otherwise: Option<u16> },
}

/// How an endpoint is picked.
#[derive(Debug, Clone, PartialEq)]
pub enum LoadBalancer {
    /// The less busy of two (the default).
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// Uniformly, by weight.
    Random,
    /// The caller's original destination; the cluster's `original_destination` is then set.
    Passthrough,
    /// Consistent hashing on a ring of at least `minimum_size` entries (1..=8388608).
    RingHash { policy: HashPolicy, minimum_size: u64 },
    /// Consistent hashing by a Maglev table of `table_size` entries (a prime below 5000011).
    Maglev { policy: HashPolicy, table_size: u64 },
}

/// How a new endpoint comes to its full share.
#[derive(Debug, Clone, PartialEq)]
pub struct Warmup {
    /// How long it takes; never 0.
    pub duration: Duration,
    /// What it gets at least, of its share: 0 to 100.
    pub minimum_percent: f64,
    /// 1: linearly; above: faster at first. At least 1.
    pub aggression: f64,
}

impl LoadBalancer {
    /// The hash inputs of this cluster alone: none or one.
    pub fn hash_policies(&self) -> &[HashPolicy] {
        match self {
            LoadBalancer::RingHash { policy, .. } | LoadBalancer::Maglev { policy, .. } => std::slice::from_ref(policy),
            _ => &[],
        }
    }
}

/// Limits and timeouts of a cluster. A limit that is unset is `u32::MAX`.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectionPool {
    /// Connections to all of the cluster's endpoints together, over all workers.
    pub max_connections: u32,
    /// For TCP connect and TLS handshake together.
    pub connect_timeout: Duration,
    /// Requests that may wait for a connection (HTTP/1 and 2 alike).
    pub max_pending_requests: u32,
    /// Requests in flight (HTTP/1 and 2 alike): `http2MaxRequests`.
    pub max_requests: u32,
    /// Requests after which a connection is closed; 1: no keep-alive.
    pub max_requests_per_connection: u32,
    /// Retries in flight.
    pub max_retries: u32,
    /// Decides instead of `max_retries`.
    pub retry_budget: Option<RetryBudget>,
    /// An HTTP connection without requests is closed after this.
    pub http_idle_timeout: Duration,
    /// A TCP flow without bytes is closed after this; `None`: never.
    pub tcp_idle_timeout: Option<Duration>,
    /// A connection is drained after this; `None`: never.
    pub max_connection_duration: Option<Duration>,
    /// `None`: the operating system's default (off).
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Streams of one HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// Whether HTTP/1.1 goes as HTTP/2 between sidecars.
    pub h2_upgrade: H2Upgrade,
    /// Use the protocol that the client used.
    pub use_client_protocol: bool,
    /// `None`: HTTP/2 connections are not asked whether they live.
    pub http2_keepalive: Option<Http2Keepalive>,
}

/// How an HTTP/2 connection is asked whether it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// Between two PINGs.
    pub interval: Duration,
    /// Without an answer within this the connection is given up.
    pub timeout: Duration,
}

impl ConnectionPool {
    /// How many retries may be in flight with so many requests: in flight or, with an interval, begun within it.
    pub fn retries(&self, requests: u32) -> u32 {
        self.retry_budget.map_or(self.max_retries, |budget| budget.allows(requests))
    }
}

/// How many retries may be in flight, by how many requests are or were begun of late.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Of the requests: 0 to 100.
    pub percent: f64,
    /// So many at least.
    pub minimum: u32,
    /// Requests, retries too, that were begun within this; `None`: those in flight.
    pub interval: Option<Duration>,
}

impl RetryBudget {
    fn allows(self, requests: u32) -> u32 {
        // Rounded down, as Envoy does (`source/common/upstream/upstream_impl.h`).
        ((f64::from(requests) * self.percent / 100.0) as u32).max(self.minimum)
    }
}

impl Default for ConnectionPool {
    /// Istio's defaults: nothing is limited.
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(3600);
        ConnectionPool {
            max_connections: u32::MAX,
            connect_timeout: Duration::from_secs(10),
            max_pending_requests: u32::MAX,
            max_requests: u32::MAX,
            max_requests_per_connection: u32::MAX,
            max_retries: u32::MAX,
            retry_budget: None,
            http_idle_timeout: HOUR,
            tcp_idle_timeout: Some(HOUR),
            max_connection_duration: None,
            tcp_keepalive: None,
            max_concurrent_streams: u32::MAX,
            h2_upgrade: H2Upgrade::Default,
            use_client_protocol: false,
            http2_keepalive: None,
        }
    }
}

/// TCP keep-alive; `None` fields: the operating system's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Unanswered probes before the connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

/// Whether HTTP/1.1 is carried as HTTP/2 between sidecars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum H2Upgrade {
    /// The mesh's default: not.
    Default,
    /// Never.
    DoNotUpgrade,
    /// Always.
    Upgrade,
}

/// When an endpoint is ejected from balancing, and for how long. Envoy's semantics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// 5xx answers in a row; `None`: off.
    pub consecutive_5xx: Option<u32>,
    /// 502, 503 or 504 in a row; `None`: off.
    pub consecutive_gateway_errors: Option<u32>,
    /// How often ejected endpoints are looked at; never 0.
    pub interval: Duration,
    /// Multiplied by the number of ejections in a row; never 0.
    pub base_ejection_time: Duration,
    /// 1..=100, of all endpoints of the cluster.
    pub max_ejection_percent: u32,
    /// 0..=100: below this share of healthy endpoints all are used (panic); 0: never.
    pub min_health_percent: u32,
    /// Failures to connect are counted apart from answers.
    pub split_external_local_origin_errors: bool,
    /// Only when split; `None`: off.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Which answers are errors; empty: 5xx.
    pub error_codes: Vec<StatusCode>,
}

impl OutlierDetection {
    /// For gateways of other data centres, whatever a policy says of the endpoints here: one that cannot be reached is
    /// left out for a while from the first time on, or a share of all requests would try it again.
    pub fn of_gateways() -> OutlierDetection {
        OutlierDetection {
            consecutive_5xx: None,
            consecutive_gateway_errors: None,
            interval: Duration::from_secs(1),
            base_ejection_time: Duration::from_secs(5),
            max_ejection_percent: 100,
            min_health_percent: 0,
            split_external_local_origin_errors: true,
            consecutive_local_origin_failures: Some(1),
            error_codes: Vec::new(),
        }
    }
}

/// Transport security towards a cluster's endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// mTLS to endpoints with an identity, plaintext to others.
    Auto,
    /// Never.
    Disable,
    /// Always; an endpoint without an identity is refused.
    IstioMutual,
    /// TLS that is not the mesh's.
    Originate(Arc<Origination>),
}

impl Tls {
    /// The mesh's own is spoken to whoever has an identity.
    pub fn is_of_mesh(&self) -> bool {
        matches!(self, Tls::Auto | Tls::IstioMutual)
    }
}

/// TLS to a service outside the mesh. Files are PEM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origination {
    /// The name that is asked for.
    pub server_name: Arc<str>,
    /// One of these has to be in the server's certificate; none: the server name.
    pub subject_alt_names: Vec<String>,
    /// File of the CAs; `None`: what the system trusts.
    pub ca: Option<Arc<str>>,
    /// Files of our certificate and its key.
    pub client: Option<(Arc<str>, Arc<str>)>,
    /// File of what was revoked.
    pub crl: Option<Arc<str>>,
    /// Instead of these files.
    pub credential: Option<Credential>,
    /// Any certificate will do.
    pub skip_verify: bool,
}

/// A folder of the proxy's `--credentials`, with the files that Kubernetes' secrets of TLS have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// The folder's name.
    pub name: Arc<str>,
    /// Its certificate is shown.
    pub shown: bool,
}

/// How a sidecar treats what comes in.
#[derive(Debug, Clone, PartialEq)]
pub struct Inbound {
    /// Where no port says otherwise.
    pub mtls: MtlsMode,
    /// By port of the workload.
    pub port_mtls: BTreeMap<u16, MtlsMode>,
    /// Services that this workload is an instance of.
    pub services: Vec<InboundService>,
    /// `PeerAuthentication/<namespace>/<name>` that decided; empty: the default.
    pub policy: Arc<str>,
    /// What a gateway listens on.
    pub servers: Vec<Arc<Server>>,
    /// Roots (DER) of other trust domains, by domain: they prove identities of that domain and of no other.
    pub trust: BTreeMap<String, Vec<Vec<u8>>>,
    /// Whether calls to what the mesh does not know pass; `None`: as the proxy was started.
    pub allow_any: Option<bool>,
    /// Ports that are served otherwise than as they are registered.
    pub ingress: BTreeMap<u16, Ingress>,
    /// Of ports without a service.
    pub pool: Option<ConnectionPool>,
    /// What has become of a sidecar that joins by a WorkloadGroup, for whoever makes its probe; no request asks.
    pub group: Option<v1::JoinedGroup>,
    /// How long the proxy goes on after SIGTERM, at least; `None`: its own default.
    pub termination_drain: Option<Duration>,
}

/// How a port is served.
#[derive(Debug, Clone, PartialEq)]
pub struct Ingress {
    /// What is spoken on it.
    pub protocol: Protocol,
    /// Where it is delivered. `None`: as dialed.
    pub to: Option<DeliverTo>,
    /// Instead of that of the port's service.
    pub pool: Option<ConnectionPool>,
}

/// Where an application listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliverTo {
    /// At an address; an unspecified one is that which was dialed.
    Address(SocketAddr),
    /// At a Unix socket: its absolute path, or `@` and a name in the abstract namespace.
    Unix(Arc<str>),
}

impl Inbound {
    /// What a port of the workload accepts.
    pub fn mode_for(&self, port: u16) -> MtlsMode {
        self.port_mtls.get(&port).copied().unwrap_or(self.mtls)
    }

    /// Whether callers of other trust domains are taken at a port: where a service is that is exported, and nowhere else.
    pub fn takes_foreigners(&self, port: u16) -> bool {
        self.services.iter().any(|service| service.port == port && service.exported)
    }

    /// What is spoken on a port.
    pub fn protocol(&self, port: u16) -> Protocol {
        let of_service = || self.service(port).map_or(Protocol::Unknown, |service| service.protocol);
        self.ingress.get(&port).map_or_else(of_service, |ingress| ingress.protocol)
    }

    /// The limits of a port.
    pub fn pool(&self, port: u16) -> ConnectionPool {
        let of_port = self.ingress.get(&port).and_then(|ingress| ingress.pool.as_ref());
        let of_service = || self.service(port).map(|service| &service.pool);
        of_port.or_else(of_service).or(self.pool.as_ref()).cloned().unwrap_or_default()
    }

    /// Where what was sent to `to` is delivered.
    pub fn destination(&self, to: SocketAddr) -> DeliverTo {
        match self.ingress.get(&to.port()).and_then(|ingress| ingress.to.as_ref()) {
            None => DeliverTo::Address(to),
            Some(DeliverTo::Address(other)) if other.ip().is_unspecified() => {
                DeliverTo::Address(SocketAddr::new(to.ip(), other.port()))
            }
            Some(other) => other.clone(),
        }
    }

    /// The service that the workload serves on this port. The first one, where several share it.
    pub fn service(&self, port: u16) -> Option<&InboundService> {
        self.services.iter().find(|service| service.port == port)
    }
}

/// Whether plaintext is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtlsMode {
    /// Both.
    Permissive,
    /// mTLS only.
    Strict,
    /// Plaintext only.
    Disable,
}

/// A service that this workload is an instance of.
#[derive(Debug, Clone, PartialEq)]
pub struct InboundService {
    /// Canonical name.
    pub host: Arc<str>,
    /// The service's namespace.
    pub namespace: Arc<str>,
    /// Port on this workload.
    pub port: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// The server side of the service's DestinationRule.
    pub pool: ConnectionPool,
    /// Callers of other trust domains may call it.
    pub exported: bool,
}
