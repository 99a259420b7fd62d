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

use crate::answer::{self, Answered};
use crate::query::Query;
use crate::refused::Refused;

/// Where nobody signs a query waits for this long at least, unless it is told not to: else it would be asked without end.
const RETRY: Duration = Duration::from_secs(10);

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
    /// It is made anew at half life, as the sidecar's own.
    fn renew_at(&self) -> SystemTime {
        self.not_before + self.not_after.duration_since(self.not_before).unwrap_or_default() / 2
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
    held: Mutex<Option<Held>>,
}

#[derive(Clone)]
struct Held {
    leaf: Arc<Leaf>,
    index: u64,
}

impl Leaves {
    /// None yet; the first is made when it is asked for.
    pub fn new(signer: Arc<dyn Signer>) -> Leaves {
        Leaves { signer, held: Mutex::new(None) }
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
                services.join(", ")
            );
            return Err(Refused::new(StatusCode::FORBIDDEN, text));
        }
        let mut held = self.current(SystemTime::now()).await?;
        if let Some((index, wait)) = query.block().map_err(Refused::bad)?
            && index == held.index
        {
            let due = held.leaf.renew_at().duration_since(SystemTime::now()).unwrap_or(RETRY);
            tokio::time::sleep(wait.min(due)).await;
            held = self.current(SystemTime::now()).await?;
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

    async fn current(&self, now: SystemTime) -> Result<Held, Refused> {
        // Whoever comes meanwhile waits for the same one.
        let mut slot = self.held.lock().await;
        if let Some(held) = slot.as_ref().filter(|held| now < held.leaf.renew_at()) {
            return Ok(held.clone());
        }
        match self.signer.sign().await {
            Ok(leaf) => {
                let seconds = leaf.not_before.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                // It grows over restarts too.
                let index = slot.as_ref().map_or(seconds, |held| seconds.max(held.index + 1));
                let held = Held { leaf: Arc::new(leaf), index };
                *slot = Some(held.clone());
                Ok(held)
            }
            Err(e) => {
                let good = slot.as_ref().filter(|held| now < held.leaf.not_after).cloned();
                tracing::warn!("no new certificate for the program: {e:#}");
                good.ok_or_else(|| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, format!("no certificate: {e:#}")))
            }
        }
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
        let leaves = leaves(2, Duration::from_secs(29));
        let first = ask(&leaves, "order", "").await.unwrap();
        let index = first["ModifyIndex"].as_u64().unwrap();
        // The clock of certificates is the wall's, which does not move here: it waits as long as it is told.
        let begun = tokio::time::Instant::now();
        let same = ask(&leaves, "order", &format!("index={index}&wait=100ms")).await.unwrap();
        assert_eq!((&same, begun.elapsed().as_millis()), (&first, 100));
        let other = ask(&leaves, "order", &format!("index={}&wait=1m", index - 1)).await.unwrap();
        assert_eq!((&other, begun.elapsed().as_millis()), (&first, 100), "an older index is answered at once");
    }

    #[tokio::test]
    async fn what_is_good_is_given_until_it_is_over() {
        // Half of its life is over, and the next one is like it.
        let half = leaves(2, Duration::from_secs(40));
        let (one, two) = (ask(&half, "order", "").await.unwrap(), ask(&half, "order", "").await.unwrap());
        assert!(two["ModifyIndex"].as_u64() > one["ModifyIndex"].as_u64(), "{one} {two}");
        assert_eq!(ask(&half, "order", "").await.unwrap(), two, "nobody signs any more, but it is good");
        let over = leaves(1, Duration::from_secs(61));
        ask(&over, "order", "").await.unwrap();
        let refused = ask(&over, "order", "").await.unwrap_err();
        assert!(refused.status == 500 && refused.text.contains("nobody signs"), "{}", refused.text);
    }
}
