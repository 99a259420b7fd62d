//! Health checks of what runs in this pod, made from within it.
//!
//! [`state`] decides what results mean, [`probe`] gets them, [`target`] says where a check may go. The agent keeps the
//! checks and starts [`run`] for each; here nothing knows of the mesh.

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

/// Shortest and longest pause between looks at a lapsed check.
const LAPSED_POLL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// A check as it was registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Unique in this pod.
    pub id: String,
    /// For people.
    pub name: String,
    /// For people.
    pub notes: String,
    /// The service that it is of; empty: the node's.
    pub service_id: String,
    /// What is done.
    pub kind: Kind,
    /// Between probes; zero where nothing is probed.
    pub interval: Duration,
    /// Of one probe.
    pub timeout: Duration,
    /// Status before the first result.
    pub initial: Status,
    /// Results in a row that count.
    pub thresholds: Thresholds,
    /// Output that is kept, bytes.
    pub max_output: usize,
    /// The service is deregistered after so long a critical time.
    pub deregister_after: Option<Duration>,
}

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A request.
    Http(Http),
    /// A connection.
    Tcp(Place),
    /// A datagram, which is refused or not.
    Udp(Place),
    /// gRPC's health protocol, asked of this service; empty: of the whole server.
    Grpc(Place, String),
    /// A PING frame of HTTP/2.
    Http2Ping(Place),
    /// A program with its arguments: exit code 0 passes, 1 warns, another is critical.
    Script(Vec<String>),
    /// Nothing: as the worst of the checks of this service.
    Alias(String),
    /// Nothing: the application reports at least this often.
    Ttl(Duration),
    /// Nothing: somebody has taken the service out of use.
    Maintenance,
}

impl Kind {
    /// Consul's word for it.
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
    /// Absolute, of this pod.
    pub url: Uri,
    /// Mostly GET.
    pub method: Method,
    /// Added, or instead of ours.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Mostly empty.
    pub body: Bytes,
    /// A redirect is the answer.
    pub disable_redirects: bool,
    /// For https.
    pub tls: Tls,
}

/// A port of this pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where to.
    pub host: String,
    /// Where to.
    pub port: u16,
    /// `None`: plaintext.
    pub tls: Option<Tls>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// How a server proves itself to a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The name that its certificate is to have; empty: the host's.
    pub server_name: String,
    /// Any certificate will do.
    pub skip_verify: bool,
}

/// Who opens the connections of probes: nothing may redirect them, and how that is said differs from place to place.
pub trait Sockets: Send + Sync + 'static {
    /// Opens a connection to an address of this pod, within `timeout`.
    fn connect(&self, to: SocketAddr, timeout: Duration) -> BoxFuture<'_, io::Result<TcpStream>>;

    /// Where probes may go.
    fn own(&self) -> Own {
        Own::Pod
    }

    /// Why checks may not run programs here; `None`: they may.
    fn no_scripts(&self) -> Option<&'static str> {
        Some("script checks are not made here")
    }

    /// Runs a program.
    fn script<'a>(&'a self, _args: &'a [String], _timeout: Duration) -> BoxFuture<'a, io::Result<Ran>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }
}

/// A program that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// `None`: by a signal.
    pub code: Option<i32>,
    /// What it said, its beginning.
    pub output: String,
}

/// Who takes the results.
pub trait Sink: Send + Sync + 'static {
    /// A probe has ended.
    fn probed(&self, check_id: &str, status: Status, output: String);
    /// Makes it critical if no report came in time, and says when to look again; `None`: when there was a report.
    fn expire(&self, check_id: &str) -> Option<tokio::time::Instant>;
    /// The worst of the checks of a service but this one, and what it says.
    fn worst(&self, service_id: &str, except: &str) -> (Status, String);
    /// Counts what may change that.
    fn changed(&self) -> watch::Receiver<u64>;
}

/// Runs a check for ever; to be aborted.
pub async fn run(definition: &Definition, sockets: &dyn Sockets, sink: &impl Sink) {
    match &definition.kind {
        Kind::Maintenance => {}
        Kind::Ttl(ttl) => loop {
            match sink.expire(&definition.id) {
                Some(due) => tokio::time::sleep_until(due).await,
                // Lapsed: a report that comes now cannot lapse sooner than this.
                None => tokio::time::sleep((*ttl / 2).clamp(LAPSED_POLL.0, LAPSED_POLL.1)).await,
            }
        },
        Kind::Alias(service_id) => {
            let mut changed = sink.changed();
            let mut said = None;
            loop {
                changed.mark_unchanged();
                let now = sink.worst(service_id, &definition.id);
                // What we say is a change too.
                if said.as_ref() != Some(&now) {
                    said = Some(now.clone());
                    sink.probed(&definition.id, now.0, now.1);
                }
                if changed.changed().await.is_err() {
                    return;
                }
            }
        }
        Kind::Http(_) | Kind::Tcp(_) | Kind::Udp(_) | Kind::Grpc(..) | Kind::Http2Ping(_) | Kind::Script(_) => {
            // A thousand checks that came at once do not all go at once.
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

    /// Where nothing redirects.
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
