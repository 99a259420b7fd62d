//! Identities that were refused a certificate.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;
use weft_proto::v1::RefusedIdentity;

/// Bound on the stored refusals.
const MAX_REFUSALS: usize = 1000;

/// Identities whose certificate requests are refused, until one succeeds: shown by `weftctl status`.
#[derive(Debug, Default)]
pub struct Refusals {
    held: Mutex<BTreeMap<String, Refusal>>,
    /// Number of refusals since the start.
    pub count: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Refusal {
    since: Instant,
    times: u64,
    address: Option<IpAddr>,
    reason: String,
}

impl Refusals {
    /// Records the refusal of an authenticated identity.
    pub fn add(&self, identity: &str, address: Option<IpAddr>, reason: String) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut all = self.lock();
        if !all.contains_key(identity) && all.len() >= MAX_REFUSALS {
            return;
        }
        let new = || Refusal { since: Instant::now(), times: 0, address: None, reason: String::new() };
        let held = all.entry(identity.to_owned()).or_insert_with(new);
        held.times += 1;
        held.reason = reason;
        held.address = address.or(held.address);
    }

    /// Removes an identity that got a certificate.
    pub(super) fn remove(&self, identity: &str) {
        self.lock().remove(identity);
    }

    /// All of them.
    pub fn status(&self, now: Instant) -> Vec<RefusedIdentity> {
        let all = self.lock();
        let one = |(identity, refusal): (&String, &Refusal)| RefusedIdentity {
            identity: identity.clone(),
            address: refusal.address.map(|address| address.to_string()).unwrap_or_default(),
            since_s: now.saturating_duration_since(refusal.since).as_secs(),
            times: refusal.times,
            reason: refusal.reason.clone(),
        };
        all.iter().map(one).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Refusal>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
