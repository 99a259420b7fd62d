//! Health checks of the applications in this pod, run from within it.
//!
//! [`state`] evaluates results, [`probe`] obtains them, [`target`] restricts the destinations. The agent stores the
//! checks and starts [`run`] for each; this module is independent of the mesh.

mod dial;
mod http;
mod http2;
pub mod probe;
pub mod state;
pub mod target;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ::http::{HeaderName, HeaderValue, Method, Uri};
use bytes::Bytes;
use futures::future::BoxFuture;
use rand::RngExt;
use tokio::net::TcpStream;
use tokio::sync::watch;

use state::{Status, Thresholds};
use target::Own;

/// Minimum and maximum pause between looks at an expired check.
const LAPSED_POLL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// A registered check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Unique in this pod.
    pub id: String,
    /// Display name.
    pub name: String,
    /// Notes for operators.
    pub notes: String,
    /// The service that it belongs to; empty: the node.
    pub service_id: String,
    /// Probe to run.
    pub kind: Kind,
    /// Pause between probes; zero without probes.
    pub interval: Duration,
    /// Time limit of one probe.
    pub timeout: Duration,
    /// Status before the first result.
    pub initial: Status,
    /// Consecutive results needed for a change.
    pub thresholds: Thresholds,
    /// Maximum length of the stored output in bytes.
    pub max_output: usize,
    /// Time in critical state after which the service is deregistered.
    pub deregister_after: Option<Duration>,
}

/// Kind of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An HTTP request.
    Http(Http),
    /// A TCP connection.
    Tcp(Place),
    /// A datagram, which may be rejected (ICMP).
    Udp(Place),
    /// gRPC's health protocol, for this service; empty: for the whole server.
    Grpc(Place, String),
    /// An HTTP/2 PING.
    Http2Ping(Place),
    /// A program with its arguments: exit code 0 passes, 1 warns, another is critical.
    Script(Vec<String>),
    /// No probe: the worst of the checks of this service.
    Alias(String),
    /// No probe: the application reports at least this often.
    Ttl(Duration),
    /// No probe: an operator has taken the service out of use.
    Maintenance,
}

impl Kind {
    /// Consul's name of the kind.
    pub fn as_str(&self) -> &'static str {
        match self {
            Kind::Http(_) => "http",
            Kind::Tcp(_) => "tcp",
            Kind::Udp(_) => "udp",
            Kind::Grpc(..) => "grpc",
            Kind::Http2Ping(_) => "h2ping",
            Kind::Script(_) => "script",
            Kind::Alias(_) => "alias",
            Kind::Ttl(_) => "ttl",
            Kind::Maintenance => "maintenance",
        }
    }
}

/// The request of an HTTP check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Absolute URL within this pod.
    pub url: Uri,
    /// Usually GET.
    pub method: Method,
    /// Added to the default headers, or replacing them.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Usually empty.
    pub body: Bytes,
    /// Whether a redirect is the final response.
    pub disable_redirects: bool,
    /// TLS settings for https.
    pub tls: Tls,
}

/// A port of this pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Host name or address.
    pub host: String,
    /// Port number.
    pub port: u16,
    /// `None`: plaintext.
    pub tls: Option<Tls>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Verification of the server's certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Expected server name; empty: the host.
    pub server_name: String,
    /// Accept any certificate.
    pub skip_verify: bool,
}

/// Opens connections for probes. The redirection must not capture them, which each environment arranges differently.
pub trait Sockets: Send + Sync + 'static {
    /// Opens a connection to an address of this pod, within `timeout`.
    fn connect(&self, to: SocketAddr, timeout: Duration) -> BoxFuture<'_, io::Result<TcpStream>>;

    /// Destinations that probes may have.
    fn own(&self) -> Own {
        Own::Pod
    }

    /// The reason why checks may not run programs; `None`: they may.
    fn no_scripts(&self) -> Option<&'static str> {
        Some("script checks are not supported here")
    }

    /// Runs a program.
    fn script<'a>(&'a self, _args: &'a [String], _timeout: Duration) -> BoxFuture<'a, io::Result<ScriptResult>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }
}

/// A finished program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptResult {
    /// `None`: it was killed by a signal.
    pub code: Option<i32>,
    /// The beginning of its output.
    pub output: String,
}

/// Receiver of results.
pub trait Sink: Send + Sync + 'static {
    /// Records a probe's result.
    fn probed(&self, check_id: &str, status: Status, output: String);
    /// Marks the check critical if no report arrived in time, and returns the time of the next look; `None`: a report
    /// arrived.
    fn expire(&self, check_id: &str) -> Option<tokio::time::Instant>;
    /// The worst status among the other checks of a service, with its output.
    fn worst(&self, service_id: &str, except: &str) -> (Status, String);
    /// A version counter that changes with the input of [`Sink::worst`].
    fn changed(&self) -> watch::Receiver<u64>;
}

/// Runs a check until it is aborted.
pub async fn run(definition: &Definition, sockets: &dyn Sockets, sink: &impl Sink) {
    match &definition.kind {
        Kind::Maintenance => {}
        Kind::Ttl(ttl) => loop {
            match sink.expire(&definition.id) {
                Some(due) => tokio::time::sleep_until(due).await,
                // Expired: a report that arrives now cannot expire sooner than this.
                None => tokio::time::sleep((*ttl / 2).clamp(LAPSED_POLL.0, LAPSED_POLL.1)).await,
            }
        },
        Kind::Alias(service_id) => {
            let mut changed = sink.changed();
            let mut last_result = None;
            loop {
                changed.mark_unchanged();
                let now = sink.worst(service_id, &definition.id);
                // The result itself changes the version.
                if last_result.as_ref() != Some(&now) {
                    last_result = Some(now.clone());
                    sink.probed(&definition.id, now.0, now.1);
                }
                if changed.changed().await.is_err() {
                    return;
                }
            }
        }
        Kind::Http(_) | Kind::Tcp(_) | Kind::Udp(_) | Kind::Grpc(..) | Kind::Http2Ping(_) | Kind::Script(_) => {
            // Staggers checks that were registered at the same time.
            let stagger = definition.interval.mul_f64(rand::rng().random_range(0.0..1.0));
            tokio::time::sleep(stagger).await;
            loop {
                let (status, output) = probe::probe(sockets, &definition.kind, definition.timeout).await;
                sink.probed(&definition.id, status, output);
                tokio::time::sleep(definition.interval).await;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Sockets in an environment without redirection.
    pub(crate) struct Plain;

    impl Sockets for Plain {
        fn connect(&self, to: SocketAddr, timeout: Duration) -> BoxFuture<'_, io::Result<TcpStream>> {
            Box::pin(async move {
                let late = || io::Error::from(io::ErrorKind::TimedOut);
                tokio::time::timeout(timeout, TcpStream::connect(to)).await.map_err(|_| late())?
            })
        }
    }
}
