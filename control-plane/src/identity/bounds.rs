//! Bounds of requests: bytes of each field that a peer controls, and the budget of an identity. One certificate is
//! enough to connect to the control plane, so no identity may exhaust its memory. `docs/security.md` has the table.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_proto::v1;
use weft_registry_api::eureka::MAX_DOCUMENT;

use crate::identity::rates::Rates;

/// Bytes of a name: of a node, a workload, a locality, a version, a service id.
pub const NAME: usize = 253;
/// Bytes of a name that a sidecar subscribes to: a host with its port, or a listener of a gateway.
pub const ASKED: usize = 512;
/// Bytes of a resource's version: 16 hex digits, and some space for those of other programs.
pub const VERSION: usize = 64;
/// Labels of a sidecar, and their bytes together.
pub const LABELS: (usize, usize) = (128, 8 << 10);
/// Bytes of a tag, or of a key or a value of metadata.
pub const FIELD: usize = 4096;
/// Tags, metadata and tagged addresses of one instance.
pub const FIELDS: usize = 256;
/// Bytes of one instance, without its checks and the document of Eureka's API.
pub const INSTANCE: usize = 64 << 10;
/// Checks of one instance, or of a node; bytes of one with its output.
pub const CHECKS: (usize, usize) = (64, 8 << 10);
/// Instances of one sidecar.
pub const INSTANCES: usize = 1000;
/// Bytes of a certificate signing request.
pub const SIGNING_REQUEST: usize = 16 << 10;
/// Names that one sidecar subscribes to, of each type.
pub const NAMES: usize = 20_000;
/// Discovery streams of one identity.
pub const STREAMS: usize = 20_000;
/// Bytes of all names that one identity subscribes to, on all of its streams.
pub const ASKED_BY_IDENTITY: usize = 64 << 20;
/// Nodes of one identity.
pub const NODES: usize = 20_000;
/// Requests of one identity, on all of its streams of one protocol: a burst, and then one each interval. Further
/// requests are read later, which delays their sender without a refusal.
pub const REQUESTS: (u32, Duration) = (200_000, Duration::from_micros(50));
/// Bytes of all nodes, instances and checks that one identity has registered, as stored.
pub const REGISTERED: usize = 32 << 20;
/// Bytes of a session's name, and of the id of a check that it depends on; number of such checks.
pub const SESSION: (usize, usize) = (512, 64);
/// Bytes of a prepared query with its metadata.
pub const QUERY: usize = 16 << 10;
/// Bytes of a config entry.
pub const CONFIG_ENTRY: usize = 128 << 10;

/// The budget of what one identity writes through Consul's API, of one kind.
#[derive(Debug)]
pub struct Budget {
    /// The kind.
    pub name: &'static str,
    /// Number of them.
    pub count: usize,
    /// Their bytes together, with their keys.
    pub bytes: usize,
    /// The way to have less of them.
    pub remedy: &'static str,
}

/// Key-value pairs of one identity.
pub const PAIRS: Budget = Budget {
    name: "key-value pairs",
    count: 50_000,
    bytes: 64 << 20,
    remedy: "delete keys (DELETE /v1/kv/KEY?recurse), or let another identity write some of them",
};
/// Sessions of one identity.
pub const SESSIONS: Budget = Budget {
    name: "sessions",
    count: 5000,
    bytes: 4 << 20,
    remedy: "destroy sessions that are not in use, and give new ones a TTL",
};
/// Prepared queries of one identity.
pub const QUERIES: Budget =
    Budget { name: "prepared queries", count: 1000, bytes: 4 << 20, remedy: "delete some, or use a template" };
/// Config entries of one identity.
pub const CONFIG_ENTRIES: Budget =
    Budget { name: "config entries", count: 1000, bytes: 16 << 20, remedy: "delete some, or apply policies instead" };

impl Budget {
    /// Whether an identity that has written `held` may write `more`. A write that adds nothing always may.
    ///
    /// # Errors
    /// If it may not; the error names the usage, the budget and the remedy.
    pub fn admit(&self, identity: &str, held: Account, more: Account) -> Result<(), Exceeded> {
        let is_over = |held: usize, more: usize, most: usize| more > 0 && held + more > most;
        if !is_over(held.count, more.count, self.count) && !is_over(held.bytes, more.bytes, self.bytes) {
            return Ok(());
        }
        let Budget { name, count, bytes, remedy } = self;
        Err(Exceeded(format!(
            "{identity} has written {} {name} of {} bytes, and {} more of {} bytes are too many: at most {count} of \
             {bytes} bytes together are allowed; {remedy}",
            held.count, held.bytes, more.count, more.bytes
        )))
    }
}

/// An exceeded bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Exceeded(pub String);

impl From<Exceeded> for String {
    fn from(exceeded: Exceeded) -> String {
        exceeded.0
    }
}

/// Whether a text is short enough.
///
/// # Errors
/// If it is not; the error names the field, its length and the bound.
pub fn text(field: &str, text: &str, most: usize) -> Result<(), Exceeded> {
    if text.len() <= most {
        return Ok(());
    }
    Err(Exceeded(format!("the field {field} has {} bytes, at most {most} are allowed", text.len())))
}

fn pairs<'a>(
    what: &str,
    all: impl Iterator<Item = (&'a String, &'a String)>,
    (most, most_bytes): (usize, usize),
) -> Result<(), Exceeded> {
    let (count, bytes) = all.fold((0, 0), |(count, bytes), (key, value)| (count + 1, bytes + key.len() + value.len()));
    if count <= most && bytes <= most_bytes {
        return Ok(());
    }
    Err(Exceeded(format!("{count} {what} of {bytes} bytes together, at most {most} of {most_bytes} bytes are allowed")))
}

/// Whether the labels of a sidecar are few and short enough.
///
/// # Errors
/// If they are not; the error names the bound.
pub fn labels<'a>(all: impl Iterator<Item = (&'a String, &'a String)>) -> Result<(), Exceeded> {
    pairs("labels", all, LABELS)
}

/// Whether the metadata of a node of the catalog is short enough.
///
/// # Errors
/// If it is not; the error names the bound.
pub fn node_meta<'a>(all: impl Iterator<Item = (&'a String, &'a String)>) -> Result<(), Exceeded> {
    pairs("pairs of metadata", all, (FIELDS, INSTANCE))
}

/// Whether the fields of a sidecar's hello are short enough.
///
/// # Errors
/// If one is not; the error names the field.
pub fn hello(hello: &v1::Hello) -> Result<(), Exceeded> {
    text("workload", &hello.workload, NAME)?;
    text("locality", &hello.locality, NAME)?;
    text("version", &hello.version, NAME)?;
    labels(hello.labels.iter())
}

/// Whether a check is short enough.
///
/// # Errors
/// If it is not; the error names the bound.
pub fn check(check: &v1::Check) -> Result<(), Exceeded> {
    use prost::Message;
    let bytes = check.encoded_len();
    if bytes <= CHECKS.1 {
        return Ok(());
    }
    Err(Exceeded(format!(
        "the check {:.64} has {bytes} bytes with its output, at most {} are allowed",
        check.check_id, CHECKS.1
    )))
}

/// Whether the number of checks is within the bound.
///
/// # Errors
/// If it is not; the error names the bound.
pub fn check_count(count: usize) -> Result<(), Exceeded> {
    if count <= CHECKS.0 { Ok(()) } else { Err(Exceeded(format!("{count} checks, at most {} are allowed", CHECKS.0))) }
}

/// Whether name and checks of a session are short enough.
///
/// # Errors
/// If they are not; the error names the field.
pub fn session(session: &v1::StoredSession) -> Result<(), Exceeded> {
    let (bytes, checks) = SESSION;
    text("Name", &session.name, bytes)?;
    if session.checks.len() > checks {
        let count = session.checks.len();
        return Err(Exceeded(format!("the session depends on {count} checks, at most {checks} are allowed")));
    }
    session.checks.iter().try_for_each(|id| text("Checks", id, bytes))
}

/// Whether an instance has a size that the registry accepts.
///
/// # Errors
/// If it has not; the error names the field and the bound.
pub fn instance(instance: &v1::Instance) -> Result<(), Exceeded> {
    let fields = instance.tags.iter().chain(instance.meta.keys()).chain(instance.meta.values());
    let shown = instance.tagged_addresses.iter().flat_map(|(name, tagged)| [name, &tagged.address]);
    let count = instance.tags.len() + instance.meta.len() + instance.tagged_addresses.len();
    let (mut longest, mut bytes) = (0, 0);
    for field in fields.chain(shown) {
        (longest, bytes) = (longest.max(field.len()), bytes + field.len());
    }
    if longest > FIELD || count > FIELDS || bytes > INSTANCE {
        let most = format!("at most {FIELDS} of {FIELD} bytes each and {INSTANCE} together are allowed");
        return Err(Exceeded(format!(
            "tags, metadata and tagged addresses are too large: {count} of {bytes} bytes, {most}"
        )));
    }
    if instance.eureka.len() > MAX_DOCUMENT {
        return Err(Exceeded(format!("the document of Eureka's API is too large (at most {MAX_DOCUMENT} bytes)")));
    }
    check_count(instance.checks.len())?;
    instance.checks.iter().try_for_each(check)
}

/// The rate of requests of identities, see [`REQUESTS`].
pub struct Pace(Rates<Arc<str>>);

impl Default for Pace {
    fn default() -> Pace {
        Pace(Rates::new(REQUESTS.0, REQUESTS.1))
    }
}

impl Pace {
    /// Waits until a request of an identity may be read.
    pub async fn keep(&self, identity: &Arc<str>) {
        while let Err(wait) = self.0.take(identity.clone(), Instant::now()) {
            tokio::time::sleep(wait).await;
        }
    }
}

/// The usage of identities, in bytes and in number.
#[derive(Debug, Default)]
pub struct Accounts(HashMap<String, Account>);

/// The usage of one identity.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Number of things.
    pub count: usize,
    /// Their bytes together.
    pub bytes: usize,
}

impl Accounts {
    /// The usage of an identity.
    pub fn of(&self, identity: &str) -> Account {
        self.0.get(identity).copied().unwrap_or_default()
    }

    /// Increases the usage.
    pub fn add(&mut self, identity: &str, count: usize, bytes: usize) {
        if let Some(account) = self.0.get_mut(identity) {
            *account = Account { count: account.count + count, bytes: account.bytes + bytes };
        } else {
            self.0.insert(identity.to_owned(), Account { count, bytes });
        }
    }

    /// Decreases the usage.
    pub fn subtract(&mut self, identity: &str, count: usize, bytes: usize) {
        let Some(account) = self.0.get_mut(identity) else { return };
        *account = Account { count: account.count.saturating_sub(count), bytes: account.bytes.saturating_sub(bytes) };
        if *account == Account::default() {
            self.0.remove(identity);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oversized_fields_are_refused_by_name() {
        let long = |bytes| "x".repeat(bytes);
        let fine = v1::Hello { workload: long(NAME), locality: long(NAME), ..Default::default() };
        assert_eq!(hello(&fine), Ok(()));
        let refused = hello(&v1::Hello { workload: long(NAME + 1), ..Default::default() }).unwrap_err();
        assert_eq!(refused.0, "the field workload has 254 bytes, at most 253 are allowed");
        let many = (0..129).map(|n| (format!("l{n}"), String::new())).collect();
        assert!(hello(&v1::Hello { labels: many, ..Default::default() }).unwrap_err().0.starts_with("129 labels"));
        let large = [("label".to_owned(), long(LABELS.1))].into();
        assert!(hello(&v1::Hello { labels: large, ..Default::default() }).is_err());

        let with_meta = |count: usize, bytes| {
            let meta = (0..count).map(|n| (format!("{n}"), long(bytes))).collect();
            v1::Instance { meta, ..Default::default() }
        };
        assert_eq!(instance(&with_meta(15, FIELD)), Ok(()));
        for (count, bytes) in [(1, FIELD + 1), (FIELDS + 1, 1), (17, FIELD)] {
            assert!(instance(&with_meta(count, bytes)).unwrap_err().0.contains("too large"), "{count} of {bytes}");
        }
        let output = v1::Check { output: long(CHECKS.1), ..Default::default() };
        assert!(instance(&v1::Instance { checks: vec![output], ..Default::default() }).is_err());
        let checks = vec![v1::Check::default(); CHECKS.0 + 1];
        assert_eq!(
            instance(&v1::Instance { checks, ..Default::default() }),
            Err(Exceeded("65 checks, at most 64 are allowed".into()))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_rate_limited_per_identity() {
        let (pace, start) = (Pace::default(), Instant::now());
        let (one, other): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        for _ in 0..REQUESTS.0 {
            pace.keep(&one).await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..10_000 {
            pace.keep(&one).await;
        }
        let held_up = start.elapsed();
        assert!(held_up >= Duration::from_millis(400), "{held_up:?}");
        pace.keep(&other).await;
        assert_eq!(start.elapsed(), held_up);
    }

    #[test]
    fn empty_accounts_are_removed() {
        let mut accounts = Accounts::default();
        accounts.add("a", 1, 10);
        accounts.add("a", 1, 5);
        assert_eq!(accounts.of("a"), Account { count: 2, bytes: 15 });
        accounts.subtract("a", 2, 15);
        accounts.subtract("b", 1, 1);
        assert!(accounts.0.is_empty());
    }
}
