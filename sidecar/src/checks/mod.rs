//! Health checks of what runs in this pod, made from within it.
//!
//! [`state`] decides what results mean, [`probe`] gets them, [`target`] says where a check may go. The agent keeps the
//! checks and starts [`run`] for each; here nothing knows of the mesh.

pub mod probe;
pub mod state;
pub mod target;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Uri};
use rand::RngExt;

use state::{Status, Thresholds};

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
    /// The service is deregistered after so long a critical time.
    pub deregister_after: Option<Duration>,
}

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A request.
    Http(Http),
    /// A connection.
    Tcp {
        /// Where to.
        host: String,
        /// Where to.
        port: u16,
    },
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
            Kind::Tcp { .. } => "tcp",
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
}

/// Who takes the results.
pub trait Sink: Send + Sync + 'static {
    /// A probe has ended.
    fn probed(&self, check_id: &str, status: Status, output: String);
    /// Makes it critical if no report came in time, and says when to look again; `None`: when there was a report.
    fn expire(&self, check_id: &str) -> Option<tokio::time::Instant>;
}

/// Runs a check for ever; to be aborted.
pub async fn run(definition: &Definition, sink: &impl Sink) {
    match &definition.kind {
        Kind::Maintenance => {}
        Kind::Ttl(ttl) => loop {
            match sink.expire(&definition.id) {
                Some(due) => tokio::time::sleep_until(due).await,
                // Lapsed: a report that comes now cannot lapse sooner than this.
                None => tokio::time::sleep((*ttl / 2).clamp(LAPSED_POLL.0, LAPSED_POLL.1)).await,
            }
        },
        Kind::Http(_) | Kind::Tcp { .. } => {
            // A thousand checks that came at once do not all go at once.
            let stagger = definition.interval.mul_f64(rand::rng().random_range(0.0..1.0));
            tokio::time::sleep(stagger).await;
            loop {
                let (status, output) = probe::probe(&definition.kind, definition.timeout).await;
                sink.probed(&definition.id, status, output);
                tokio::time::sleep(definition.interval).await;
            }
        }
    }
}
