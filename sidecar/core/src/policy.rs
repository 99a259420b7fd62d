//! Compiled configuration: the result of [`crate::compile`] on wire messages, with every default applied and every
//! index and name checked, so that the request path handles neither absent values nor errors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::hash::HashPolicy;
use crate::locality::Locality;
use crate::names;
use crate::proxy_protocol;
use crate::tunnel::Tunnel;

/// Protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// To be detected from the first bytes.
    Unknown,
    /// HTTP/1.x or HTTP/2, distinguished by the preface.
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

/// One set of endpoints with the policy for calls to it: it has limits, a balancer and ejections of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// `outbound|<port>|<subset>|<host>`: key of its counters.
    pub name: Arc<str>,
    /// Name of its `Endpoints` resource.
    pub host: Arc<str>,
    /// The service's port; 0: any.
    pub port: u16,
    /// Empty: the whole service.
    pub subset: Arc<str>,
    /// Labels that its endpoints must have.
    pub labels: BTreeMap<String, String>,
    /// Destination port at an endpoint.
    pub target_port: TargetPort,
    /// Protocol of its endpoints.
    pub protocol: Protocol,
    /// Load balancing algorithm.
    pub load_balancer: LoadBalancer,
    /// Locality load balancing.
    pub locality: Locality,
    /// Slow start of new endpoints; with [`LoadBalancer::LeastRequest`] and [`LoadBalancer::RoundRobin`].
    pub warmup: Option<Warmup>,
    /// Limits and timeouts.
    pub pool: ConnectionPool,
    /// `None`: off.
    pub outlier: Option<OutlierDetection>,
    /// Transport security towards the endpoints.
    pub tls: Tls,
    /// Version of the PROXY header at the start of a connection. Each connection then serves one request, or one
    /// client's bytes.
    pub proxy_protocol: Option<proxy_protocol::Version>,
    /// Its endpoints are HTTP proxies through which connections that are not HTTP are tunnelled.
    pub tunnel: Option<Tunnel>,
    /// `DestinationRule/<namespace>/<name>` that applies; empty: defaults.
    pub policy: Arc<str>,
    /// A route refers to it but nothing defines it: 503 NC.
    pub undefined: bool,
    /// Dial the caller's original destination instead of a balanced endpoint.
    pub original_destination: bool,
    /// Dial the host named by the request, see [`Cluster::dynamic_host`].
    pub dynamic_dns: bool,
    /// Headless service: calls go to the endpoint that the caller chose, see [`crate::target::headless_endpoint`].
    pub headless: bool,
}

impl Cluster {
    /// A cluster for undeclared destinations: connections go to their original destination.
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

    /// Whether it has registered endpoints.
    pub fn has_endpoints(&self) -> bool {
        !(self.undefined || self.original_destination || self.dynamic_dns)
    }

    /// The host for `authority` (an authority or server name) in a cluster with `dynamic_dns`; `None`: the cluster's
    /// wildcard does not cover it, or it cannot be a host name.
    pub fn dynamic_host<'a>(&self, authority: &'a str) -> Option<Cow<'a, str>> {
        let host = names::normalise(authority);
        let is_host_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let is_host = host.len() <= 253 && !host.starts_with('.') && host.bytes().all(is_host_byte);
        (self.dynamic_dns && is_host && names::covers(&self.host, &host)).then_some(host)
    }
}

/// Destination port at an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// The registered port.
    Registered,
    /// A fixed port.
    Number(u16),
    /// The endpoint's port of this name, otherwise `otherwise`; an endpoint with neither is not part of the cluster.
    Named { name: Arc<str>, otherwise: Option<u16> },
}

/// Load balancing algorithm.
#[derive(Debug, Clone, PartialEq)]
pub enum LoadBalancer {
    /// The less busy of two random endpoints (the default).
    LeastRequest,
    /// Round robin.
    RoundRobin,
    /// Uniformly, by weight.
    Random,
    /// The caller's original destination; requires the cluster's `original_destination`.
    Passthrough,
    /// Consistent hashing on a ring of at least `minimum_size` entries (1..=8388608).
    RingHash { policy: HashPolicy, minimum_size: u64 },
    /// Consistent hashing by a Maglev table of `table_size` entries (a prime below 5000011).
    Maglev { policy: HashPolicy, table_size: u64 },
}

/// Slow start of a new endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Warmup {
    /// Duration of the slow start; never 0.
    pub duration: Duration,
    /// Initial percentage of its share: 0 to 100.
    pub minimum_percent: f64,
    /// 1: linear; above: faster at first. At least 1.
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
    /// Replaces `max_retries`.
    pub retry_budget: Option<RetryBudget>,
    /// Idle time after which an HTTP connection without requests is closed.
    pub http_idle_timeout: Duration,
    /// Idle time after which a TCP flow is closed; `None`: never.
    pub tcp_idle_timeout: Option<Duration>,
    /// Age at which a connection is drained; `None`: never.
    pub max_connection_duration: Option<Duration>,
    /// `None`: the operating system's default (off).
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Streams of one HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// Whether HTTP/1.1 is carried as HTTP/2 between sidecars.
    pub h2_upgrade: H2Upgrade,
    /// Use the protocol that the client used.
    pub use_client_protocol: bool,
    /// `None`: no PINGs are sent on HTTP/2 connections.
    pub http2_keepalive: Option<Http2Keepalive>,
}

/// Liveness check of an HTTP/2 connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// Between two PINGs.
    pub interval: Duration,
    /// Time without an answer after which the connection is closed.
    pub timeout: Duration,
}

impl ConnectionPool {
    /// Maximum retries in flight for this number of requests: those in flight or, with an interval, those started
    /// within it.
    pub fn retries(&self, requests: u32) -> u32 {
        self.retry_budget.map_or(self.max_retries, |budget| budget.allows(requests))
    }
}

/// Maximum retries in flight as a share of the requests that are in flight or were started recently.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Percent of the requests: 0 to 100.
    pub percent: f64,
    /// Lower bound of the maximum.
    pub minimum: u32,
    /// Window of the counted requests, including retries; `None`: those in flight.
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
    /// The mesh's default: no upgrade.
    Default,
    /// Never.
    DoNotUpgrade,
    /// Always.
    Upgrade,
}

/// Criteria and duration of ejections from balancing. Envoy's semantics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// 5xx responses in a row; `None`: off.
    pub consecutive_5xx: Option<u32>,
    /// 502, 503 or 504 responses in a row; `None`: off.
    pub consecutive_gateway_errors: Option<u32>,
    /// Interval between checks for expired ejections; never 0.
    pub interval: Duration,
    /// Multiplied by the number of ejections in a row; never 0.
    pub base_ejection_time: Duration,
    /// 1..=100, of all endpoints of the cluster.
    pub max_ejection_percent: u32,
    /// 0..=100: below this share of healthy endpoints all are used (panic mode); 0: never.
    pub min_health_percent: u32,
    /// Failures to connect are counted separately from responses.
    pub split_external_local_origin_errors: bool,
    /// Only when split; `None`: off.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Responses that are errors; empty: 5xx.
    pub error_codes: Vec<StatusCode>,
}

impl OutlierDetection {
    /// The policy for gateways of other data centres, regardless of the policy for local endpoints: the first
    /// connection failure ejects a gateway, or a share of all requests would keep trying it.
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
    /// TLS with other certificates than the mesh's.
    Originate(Arc<Origination>),
}

impl Tls {
    /// Whether the mesh's mutual TLS is used for endpoints with an identity.
    pub fn is_of_mesh(&self) -> bool {
        matches!(self, Tls::Auto | Tls::IstioMutual)
    }
}

/// TLS to a service outside the mesh. Files are PEM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origination {
    /// Server name of the ClientHello.
    pub server_name: Arc<str>,
    /// One of these must be in the server's certificate; empty: the server name.
    pub subject_alt_names: Vec<String>,
    /// File of the CAs; `None`: the system's trust store.
    pub ca: Option<Arc<str>>,
    /// Files of the client certificate and its key.
    pub client: Option<(Arc<str>, Arc<str>)>,
    /// File of the certificate revocation list.
    pub crl: Option<Arc<str>>,
    /// Replaces these files.
    pub credential: Option<Credential>,
    /// Accept any certificate.
    pub skip_verify: bool,
}

/// A folder of the proxy's `--credentials`, with the file names of Kubernetes' TLS secrets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// The folder's name.
    pub name: Arc<str>,
    /// Present its certificate to the server.
    pub shown: bool,
}
