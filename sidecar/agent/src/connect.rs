//! `agent/connect/ca/leaf/:service`: a certificate with a new key, for a program that uses mutual TLS itself.
//!
//! The identity is the pod's identity in the mesh; a second one in the form that Consul's clients expect
//! (`.../dc/<datacenter>/svc/<service>`) is not issued. The sidecar's own key is never handed out.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use http::StatusCode;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;
use tokio::time::Instant;
use weft_core::renewal::Renewal;
use weft_identity::grant;
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

/// Minimum wait of a query while no certificate is available, unless it sets a shorter one: otherwise clients would
/// retry in a tight loop.
const RETRY: Duration = Duration::from_secs(10);
/// Minimum time between signing attempts, for any number of programs.
const MIN_RETRY: Duration = Duration::from_secs(1);

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Serial number as hexadecimal bytes, separated by colons.
    pub serial: String,
    /// The certificate and its intermediate certificates.
    pub certificate_pem: String,
    /// The key as PKCS #8.
    pub private_key_pem: String,
    /// SPIFFE ID.
    pub uri: String,
    /// Start of the validity.
    pub not_before: SystemTime,
    /// End of the validity.
    pub not_after: SystemTime,
}

impl Leaf {
    fn life(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }
}

/// Issues certificates.
pub trait Signer: Send + Sync {
    /// Creates a key and obtains a certificate for it.
    fn sign(&self) -> BoxFuture<'_, anyhow::Result<Leaf>>;
    /// Services that the pod may register.
    fn services(&self) -> Vec<String>;
}

/// The leaf certificate of this pod. One key serves all of its services, which share one identity.
pub struct Leaves {
    signer: Arc<dyn Signer>,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    current: Option<CurrentLeaf>,
    /// Time and cause of the last failure.
    failed: Option<(Instant, String)>,
}

#[derive(Clone)]
struct CurrentLeaf {
    leaf: Arc<Leaf>,
    index: u64,
    /// Renewal at half of the lifetime, like the sidecar's own certificate.
    renewal: Renewal,
}

impl Leaves {
    /// Starts without a certificate; the first request creates it.
    pub fn new(signer: Arc<dyn Signer>) -> Leaves {
        Leaves { signer, slot: Mutex::default() }
    }

    /// The current certificate; a blocking query waits for the next one.
    ///
    /// # Errors
    /// If the pod may not be that service, or no signer is available and the last certificate has expired.
    pub async fn answer(&self, service: &str, query: &Query) -> Result<Reply, ApiError> {
        let services = self.signer.services();
        if !services.iter().any(|own| own == service) {
            let text = format!(
                "Permission denied: this pod is not the service {service:?}, but may be: {}",
                grant::shown(&services)
            );
            return Err(ApiError::new(StatusCode::FORBIDDEN, text));
        }
        let mut current = self.current_leaf().await?;
        if let Some((index, wait)) = query.block().map_err(ApiError::bad_request)?
            && index == current.index
        {
            let due = match current.due_in() {
                Duration::ZERO => RETRY,
                due => due,
            };
            tokio::time::sleep(wait.min(due)).await;
            current = self.current_leaf().await?;
        }
        let leaf = &current.leaf;
        let body = json!({
            "SerialNumber": leaf.serial,
            "CertPEM": leaf.certificate_pem,
            "PrivateKeyPEM": leaf.private_key_pem,
            "Service": service,
            "ServiceURI": leaf.uri,
            "ValidAfter": rfc3339(leaf.not_before),
            "ValidBefore": rfc3339(leaf.not_after),
            "CreateIndex": current.index,
            "ModifyIndex": current.index,
        });
        Ok(reply::indexed(&body, current.index, query))
    }

    async fn current_leaf(&self) -> Result<CurrentLeaf, ApiError> {
        // Concurrent requests wait for the same certificate.
        let mut slot = self.slot.lock().await;
        if let Some(current) = slot.current.as_ref().filter(|current| !current.due_in().is_zero()) {
            return Ok(current.clone());
        }
        let recent = slot.failed.as_ref().filter(|(at, _)| at.elapsed() < MIN_RETRY).map(|(_, why)| why.clone());
        let why = match recent {
            Some(why) => why,
            None => match self.signer.sign().await {
                Ok(leaf) => return Ok(slot.store(leaf)),
                Err(e) => {
                    tracing::warn!("no new certificate for the program: {e:#}");
                    let why = format!("no certificate: {e:#}");
                    slot.failed = Some((Instant::now(), why.clone()));
                    why
                }
            },
        };
        let good = slot.current.as_ref().filter(|current| SystemTime::now() < current.leaf.not_after).cloned();
        good.ok_or_else(|| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, why))
    }
}

impl Slot {
    fn store(&mut self, leaf: Leaf) -> CurrentLeaf {
        let seconds = leaf.not_before.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        // Seconds since 1970, so that the index grows across restarts too.
        let index = self.current.as_ref().map_or(seconds, |current| seconds.max(current.index + 1));
        let renewal = Renewal::after_receipt(Instant::now().into_std(), SystemTime::now(), leaf.life());
        let current = CurrentLeaf { leaf: Arc::new(leaf), index, renewal };
        (self.current, self.failed) = (Some(current.clone()), None);
        current
    }
}

impl CurrentLeaf {
    fn due_in(&self) -> Duration {
        self.renewal.due_in(Instant::now().into_std(), SystemTime::now())
    }
}

fn rfc3339(at: SystemTime) -> String {
    // Formatting cannot fail: every year in a certificate fits this form.
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use serde_json::Value;

    use super::*;

    /// Signs certificates of one minute, up to a number of times.
    struct Authority {
        left: AtomicU64,
        begin: SystemTime,
    }

    impl Signer for Authority {
        fn sign(&self) -> BoxFuture<'_, anyhow::Result<Leaf>> {
            Box::pin(async {
                let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
                let left = left.map_err(|_| anyhow::anyhow!("no signer available"))?;
                Ok(Leaf {
                    serial: left.to_string(),
                    certificate_pem: "certificate".into(),
                    private_key_pem: "key".into(),
                    uri: "spiffe://cluster.local/ns/default/sa/order".into(),
                    not_before: self.begin,
                    not_after: self.begin + Duration::from_secs(60),
                })
            })
        }

        fn services(&self) -> Vec<String> {
            vec!["order".into(), "cart".into()]
        }
    }

    fn leaves(times: u64, age: Duration) -> Leaves {
        let begin = SystemTime::now() - age;
        Leaves::new(Arc::new(Authority { left: AtomicU64::new(times), begin }))
    }

    async fn ask(leaves: &Leaves, service: &str, query: &str) -> Result<Value, ApiError> {
        let reply = leaves.answer(service, &Query::parse(query)).await?;
        Ok(serde_json::from_slice(reply.body()).unwrap())
    }

    #[tokio::test]
    async fn all_services_of_the_pod_share_one_leaf() {
        let leaves = leaves(2, Duration::ZERO);
        let order = ask(&leaves, "order", "").await.unwrap();
        assert_eq!((&order["Service"], &order["PrivateKeyPEM"]), (&"order".into(), &"key".into()));
        assert_eq!(order["ServiceURI"], "spiffe://cluster.local/ns/default/sa/order");
        assert!(order["ValidBefore"].as_str().unwrap().ends_with('Z'), "{order}");
        let cart = ask(&leaves, "cart", "").await.unwrap();
        assert_eq!((&cart["Service"], &cart["SerialNumber"]), (&"cart".into(), &order["SerialNumber"]));
        let error = ask(&leaves, "pay", "").await.unwrap_err();
        assert!(error.status == 403 && error.text.contains("may be: order, cart"), "{}", error.text);
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocking_query_waits_for_the_next_certificate() {
        let leaves = leaves(2, Duration::ZERO);
        let first = ask(&leaves, "order", "").await.unwrap();
        let index = first["ModifyIndex"].as_u64().unwrap();
        let start = Instant::now();
        let same = ask(&leaves, "order", &format!("index={index}&wait=100ms")).await.unwrap();
        assert_eq!((&same, start.elapsed().as_millis()), (&first, 100));
        let other = ask(&leaves, "order", &format!("index={}&wait=1m", index - 1)).await.unwrap();
        assert_eq!((&other, start.elapsed().as_millis()), (&first, 100), "an older index is answered at once");
        let next = ask(&leaves, "order", &format!("index={index}&wait=1m")).await.unwrap();
        let waited = start.elapsed().as_millis();
        assert!(next["ModifyIndex"].as_u64() > Some(index) && (29_900..=30_100).contains(&waited), "{next} {waited}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_valid_certificate_is_returned_until_it_expires() {
        let half = leaves(2, Duration::ZERO);
        let one = ask(&half, "order", "").await.unwrap();
        tokio::time::advance(Duration::from_secs(31)).await;
        let two = ask(&half, "order", "").await.unwrap();
        assert!(two["ModifyIndex"].as_u64() > one["ModifyIndex"].as_u64(), "{one} {two}");
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(ask(&half, "order", "").await.unwrap(), two, "signing fails, but the certificate is still valid");
        let over = leaves(1, Duration::from_secs(61));
        ask(&over, "order", "").await.unwrap();
        tokio::time::advance(Duration::from_secs(31)).await;
        let error = ask(&over, "order", "").await.unwrap_err();
        assert!(error.status == 500 && error.text.contains("no signer available"), "{}", error.text);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_ahead_causes_no_additional_signatures() {
        let ahead = leaves(10, Duration::from_secs(13 * 3600));
        let one = ask(&ahead, "order", "").await.unwrap();
        for _ in 0..20 {
            assert_eq!(ask(&ahead, "order", "").await.unwrap(), one);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failed_signatures_are_retried_after_a_pause() {
        struct Refusing(AtomicU64);
        impl Signer for Refusing {
            fn sign(&self) -> BoxFuture<'_, anyhow::Result<Leaf>> {
                self.0.fetch_add(1, Ordering::Relaxed);
                Box::pin(async { Err(anyhow::anyhow!("too often")) })
            }

            fn services(&self) -> Vec<String> {
                vec!["order".into()]
            }
        }
        let signer = Arc::new(Refusing(AtomicU64::new(0)));
        let leaves = Leaves::new(signer.clone());
        for _ in 0..20 {
            let error = ask(&leaves, "order", "").await.unwrap_err();
            assert!(error.text.contains("too often"), "{}", error.text);
        }
        assert_eq!(signer.0.load(Ordering::Relaxed), 1);
        tokio::time::advance(MIN_RETRY).await;
        ask(&leaves, "order", "").await.unwrap_err();
        assert_eq!(signer.0.load(Ordering::Relaxed), 2);
    }
}
