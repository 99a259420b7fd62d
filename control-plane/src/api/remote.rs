//! Reads of other data centres for the APIs. [`crate::federation`] implements them.

use std::sync::Arc;

use tonic::async_trait;
use weft_proto::v1::{Answer, PeerDns, PeerQuestion};
use weft_world::DEFAULT_DATACENTER;

/// The reason why another data centre gives no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// No data centre of this name is a peer.
    #[error("no peer has this name")]
    Unknown,
    /// It is unreachable, with the reason.
    #[error("no path to the data centre: {0}")]
    NoPath(String),
    /// Too many concurrent questions.
    #[error("too many concurrent questions to the data centre")]
    Busy,
}

/// This data centre among the others.
#[async_trait]
pub trait RemoteReads: Send + Sync {
    /// Name of this data centre.
    fn datacenter(&self) -> &str;

    /// All data centres, this one first.
    fn datacenters(&self) -> Vec<&str>;

    /// Asks another data centre for an answer of Consul's API.
    ///
    /// # Errors
    /// If there is none.
    async fn ask(&self, datacenter: &str, question: PeerQuestion) -> Result<Answer, NoAnswer>;

    /// Asks another data centre a question of DNS; returns the answer's packet.
    ///
    /// # Errors
    /// If there is none.
    async fn resolve(&self, datacenter: &str, question: PeerDns) -> Result<Vec<u8>, NoAnswer>;
}

/// A data centre without peers.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl Alone {
    /// A shared instance for the APIs.
    pub fn shared() -> Arc<dyn RemoteReads> {
        Arc::new(Alone)
    }
}

#[async_trait]
impl RemoteReads for Alone {
    fn datacenter(&self) -> &str {
        DEFAULT_DATACENTER
    }

    fn datacenters(&self) -> Vec<&str> {
        vec![DEFAULT_DATACENTER]
    }

    async fn ask(&self, _: &str, _: PeerQuestion) -> Result<Answer, NoAnswer> {
        Err(NoAnswer::Unknown)
    }

    async fn resolve(&self, _: &str, _: PeerDns) -> Result<Vec<u8>, NoAnswer> {
        Err(NoAnswer::Unknown)
    }
}
