//! Services that a token grants: a token and a certificate contain a few names themselves, and the name of a grant in
//! the store for many ([`weft_identity::grant`]), so that both stay small.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use prost::Message;
use weft_identity::grant;
use weft_proto::v1::StoredGrant;

use crate::store::{Error, Op, Shared, Table};

/// Services that one token grants at the most.
pub const MAX_SERVICES: usize = 10_000;

/// The reason why a grant's services are unavailable.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// The store has no such record.
    #[error(
        "the store has no grant {0}, which the token or the certificate names; create a new token with `weftctl token create`"
    )]
    Absent(String),
    /// The record is damaged.
    #[error("the store's record grants/{0} cannot be read: {1}; create a new token with `weftctl token create`")]
    Damaged(String, prost::DecodeError),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Lower-case names of services.
pub type Names = Arc<HashSet<String>>;

/// The grants of the store.
pub struct Grants {
    store: Shared,
    /// Lists in use, by the grant's name.
    used: Mutex<HashMap<String, Weak<HashSet<String>>>>,
}

impl Grants {
    /// The grants of `store`.
    pub fn new(store: Shared) -> Grants {
        Grants { store, used: Mutex::default() }
    }

    /// The services of a new token, in the form for the token and the certificates made with it.
    ///
    /// # Errors
    /// If the store refuses the list.
    pub async fn references(&self, services: Vec<String>) -> Result<Vec<String>, Error> {
        if services.len() <= grant::INLINE {
            return Ok(services);
        }
        let name = grant::name(&services);
        let value = StoredGrant { services }.encode_to_vec();
        self.store.txn(Vec::new(), vec![Op::put(Table::Grants, name.clone(), value)]).await?;
        Ok(vec![name])
    }

    /// The services that a token or a certificate names, in their original case.
    ///
    /// # Errors
    /// If a grant is unavailable.
    pub async fn services(&self, references: &[String]) -> Result<Vec<String>, Unknown> {
        let mut all = Vec::with_capacity(references.len());
        for name in references {
            if !grant::is_name(name) {
                all.push(name.clone());
                continue;
            }
            let record = self.store.get(Table::Grants, name).await?.ok_or_else(|| Unknown::Absent(name.clone()))?;
            let stored = StoredGrant::decode(record.value.as_slice()).map_err(|e| Unknown::Damaged(name.clone(), e))?;
            all.extend(stored.services);
        }
        Ok(all)
    }

    /// The same in lower case, shared by all holders of the grant.
    ///
    /// # Errors
    /// If a grant is unavailable.
    pub async fn names(&self, references: &[String]) -> Result<Names, Unknown> {
        let lower = |services: Vec<String>| services.into_iter().map(|service| service.to_ascii_lowercase()).collect();
        let [name] = references else { return Ok(Arc::new(lower(self.services(references).await?))) };
        let used = |name: &str| self.used.lock().unwrap_or_else(PoisonError::into_inner).get(name)?.upgrade();
        if let Some(names) = used(name) {
            return Ok(names);
        }
        let names: Names = Arc::new(lower(self.services(references).await?));
        let mut all = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, names| names.strong_count() > 0);
        all.insert(name.clone(), Arc::downgrade(&names));
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Embedded;

    #[tokio::test]
    async fn many_services_are_granted_by_reference_and_few_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let grants = Grants::new(Arc::new(Embedded::open(folder.path()).unwrap()));
        let few = vec!["Order".to_owned()];
        assert_eq!(grants.references(few.clone()).await.unwrap(), few);
        let many: Vec<String> = (0..3_000).map(|n| format!("service-{n}")).collect();
        let name = grants.references(many.clone()).await.unwrap();
        assert_eq!(name.len(), 1);
        assert_eq!(grants.services(&name).await.unwrap(), many);
        let (one, other) = (grants.names(&name).await.unwrap(), grants.names(&name).await.unwrap());
        assert!(one.contains("service-2999") && Arc::ptr_eq(&one, &other));
        assert!(grants.names(&few).await.unwrap().contains("order"));
        drop((one, other));
        let absent = vec![grant::name(&few)];
        let text = grants.names(&absent).await.unwrap_err().to_string();
        assert!(text.contains(&absent[0]) && text.contains("weftctl token create"), "{text}");
    }
}
