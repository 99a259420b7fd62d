//! `agent/connect/ca/leaf/:service`: a certificate, and a key made for it, for a program that speaks mutual TLS itself.
//!
//! The identity is the mesh's, that of the pod; what Consul's clients expect in its place (`.../dc/<datacenter>/svc/<service>`)
//! would be a second one. The sidecar's own key is never given away.

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

use crate::answer::{self, Answered};
use crate::grant;
use crate::query::Query;
use crate::refused::Refused;

/// While no certificate can be had a query waits for this long at least, unless it is told not to: else it would come without end.
const RETRY: Duration = Duration::from_secs(10);
/// Between tries to have one signed, however many programs ask.
const MIN_RETRY: Duration = Duration::from_secs(1);

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Hex bytes with colons between.
    pub serial: String,
    /// The certificate, and what stands between it and the root.
    pub certificate_pem: String,
    /// PKCS #8.
    pub private_key_pem: String,
    /// SPIFFE ID.
    pub uri: String,
    /// Validity.
    pub not_before: SystemTime,
    /// Its end.
    pub not_after: SystemTime,
}

impl Leaf {
    fn life(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }
}

/// Who makes them.
pub trait Signer: Send + Sync {
    /// Makes a key, and has a certificate for it signed.
    fn sign(&self) -> BoxFuture<'_, anyhow::Result<Leaf>>;
    /// Services that the pod may be.
    fn services(&self) -> Vec<String>;
}

/// The leaf of this pod. One key serves all of its services: they have one identity.
pub struct Leaves {
    signer: Arc<dyn Signer>,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    held: Option<Held>,
    /// When no certificate could be had last, and why.
    failed: Option<(Instant, String)>,
}

#[derive(Clone)]
struct Held {
    leaf: Arc<Leaf>,
    index: u64,
    /// At half life, as the sidecar's own.
    renewal: Renewal,
}

impl Leaves {
    /// None yet; the first is made when it is asked for.
    pub fn new(signer: Arc<dyn Signer>) -> Leaves {
        Leaves { signer, slot: Mutex::default() }
    }

    /// The certificate that is current; a blocking query waits for the next.
    ///
    /// # Errors
    /// When the pod is not that service, or nobody signs and the last one has expired.
    pub async fn answer(&self, service: &str, query: &Query) -> Result<Answered, Refused> {
        let services = self.signer.services();
        if !services.iter().any(|own| own == service) {
            let text = format!(
                "Permission denied: this pod is not the service {service:?}, but may be: {}",
                grant::shown(&services)
            );
            return Err(Refused::new(StatusCode::FORBIDDEN, text));
        }
        let mut held = self.current().await?;
        if let Some((index, wait)) = query.block().map_err(Refused::bad)?
            && index == held.index
        {
            let due = match held.due_in() {
                Duration::ZERO => RETRY,
                due => due,
            };
            tokio::time::sleep(wait.min(due)).await;
            held = self.current().await?;
        }
        let leaf = &held.leaf;
        let body = json!({
            "SerialNumber": leaf.serial,
            "CertPEM": leaf.certificate_pem,
            "PrivateKeyPEM": leaf.private_key_pem,
            "Service": service,
            "ServiceURI": leaf.uri,
            "ValidAfter": rfc3339(leaf.not_before),
            "ValidBefore": rfc3339(leaf.not_after),
            "CreateIndex": held.index,
            "ModifyIndex": held.index,
        });
        Ok(answer::indexed(&body, held.index, query))
    }

    async fn current(&self) -> Result<Held, Refused> {
        // Whoever comes meanwhile waits for the same one.
        let mut slot = self.slot.lock().await;
        if let Some(held) = slot.held.as_ref().filter(|held| !held.due_in().is_zero()) {
            return Ok(held.clone());
        }
        let recent = slot.failed.as_ref().filter(|(at, _)| at.elapsed() < MIN_RETRY).map(|(_, why)| why.clone());
        let why = match recent {
            Some(why) => why,
            None => match self.signer.sign().await {
                Ok(leaf) => return Ok(slot.take_up(leaf)),
                Err(e) => {
                    tracing::warn!("no new certificate for the program: {e:#}");
                    let why = format!("no certificate: {e:#}");
                    slot.failed = Some((Instant::now(), why.clone()));
                    why
                }
            },
        };
        let good = slot.held.as_ref().filter(|held| SystemTime::now() < held.leaf.not_after).cloned();
        good.ok_or_else(|| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, why))
    }
}

impl Slot {
    fn take_up(&mut self, leaf: Leaf) -> Held {
        let seconds = leaf.not_before.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        // It grows over restarts too.
        let index = self.held.as_ref().map_or(seconds, |held| seconds.max(held.index + 1));
        let renewal = Renewal::after_receipt(Instant::now().into_std(), SystemTime::now(), leaf.life());
        let held = Held { leaf: Arc::new(leaf), index, renewal };
        (self.held, self.failed) = (Some(held.clone()), None);
        held
    }
}

impl Held {
    fn due_in(&self) -> Duration {
        self.renewal.due_in(Instant::now().into_std(), SystemTime::now())
    }
}

fn rfc3339(at: SystemTime) -> String {
    // Every year that a certificate can name has this form.
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use serde_json::Value;

    use super::*;

    /// Signs for a minute, as often as it may.
    struct Authority {
        left: AtomicU64,
        begin: SystemTime,
    }

    impl Signer for Authority {
        fn sign(&self) -> BoxFuture<'_, anyhow::Result<Leaf>> {
            Box::pin(async {
                let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
                let left = left.map_err(|_| anyhow::anyhow!("nobody signs"))?;
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

    fn leaves(times: u64, begun: Duration) -> Leaves {
        let begin = SystemTime::now() - begun;
        Leaves::new(Arc::new(Authority { left: AtomicU64::new(times), begin }))
    }

    async fn ask(leaves: &Leaves, service: &str, query: &str) -> Result<Value, Refused> {
        let answered = leaves.answer(service, &Query::parse(query)).await?;
        Ok(serde_json::from_slice(answered.body()).unwrap())
    }

    #[tokio::test]
    async fn one_leaf_for_all_services_of_the_pod() {
        let leaves = leaves(2, Duration::ZERO);
        let order = ask(&leaves, "order", "").await.unwrap();
        assert_eq!((&order["Service"], &order["PrivateKeyPEM"]), (&"order".into(), &"key".into()));
        assert_eq!(order["ServiceURI"], "spiffe://cluster.local/ns/default/sa/order");
        assert!(order["ValidBefore"].as_str().unwrap().ends_with('Z'), "{order}");
        let cart = ask(&leaves, "cart", "").await.unwrap();
        assert_eq!((&cart["Service"], &cart["SerialNumber"]), (&"cart".into(), &order["SerialNumber"]));
        let refused = ask(&leaves, "pay", "").await.unwrap_err();
        assert!(refused.status == 403 && refused.text.contains("may be: order, cart"), "{}", refused.text);
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocking_query_waits_for_the_next() {
        let leaves = leaves(2, Duration::ZERO);
        let first = ask(&leaves, "order", "").await.unwrap();
        let index = first["ModifyIndex"].as_u64().unwrap();
        let begun = Instant::now();
        let same = ask(&leaves, "order", &format!("index={index}&wait=100ms")).await.unwrap();
        assert_eq!((&same, begun.elapsed().as_millis()), (&first, 100));
        let other = ask(&leaves, "order", &format!("index={}&wait=1m", index - 1)).await.unwrap();
        assert_eq!((&other, begun.elapsed().as_millis()), (&first, 100), "an older index is answered at once");
        let next = ask(&leaves, "order", &format!("index={index}&wait=1m")).await.unwrap();
        let waited = begun.elapsed().as_millis();
        assert!(next["ModifyIndex"].as_u64() > Some(index) && (29_900..=30_100).contains(&waited), "{next} {waited}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_good_is_given_until_it_is_over() {
        let half = leaves(2, Duration::ZERO);
        let one = ask(&half, "order", "").await.unwrap();
        tokio::time::advance(Duration::from_secs(31)).await;
        let two = ask(&half, "order", "").await.unwrap();
        assert!(two["ModifyIndex"].as_u64() > one["ModifyIndex"].as_u64(), "{one} {two}");
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(ask(&half, "order", "").await.unwrap(), two, "nothing is signed any more, but it is good");
        let over = leaves(1, Duration::from_secs(61));
        ask(&over, "order", "").await.unwrap();
        tokio::time::advance(Duration::from_secs(31)).await;
        let refused = ask(&over, "order", "").await.unwrap_err();
        assert!(refused.status == 500 && refused.text.contains("nobody signs"), "{}", refused.text);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_ahead_has_no_more_signed_than_another() {
        let ahead = leaves(10, Duration::from_secs(13 * 3600));
        let one = ask(&ahead, "order", "").await.unwrap();
        for _ in 0..20 {
            assert_eq!(ask(&ahead, "order", "").await.unwrap(), one);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_signature_is_not_asked_for_at_once_again() {
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
            let refused = ask(&leaves, "order", "").await.unwrap_err();
            assert!(refused.text.contains("too often"), "{}", refused.text);
        }
        assert_eq!(signer.0.load(Ordering::Relaxed), 1);
        tokio::time::advance(MIN_RETRY).await;
        ask(&leaves, "order", "").await.unwrap_err();
        assert_eq!(signer.0.load(Ordering::Relaxed), 2);
    }
}
