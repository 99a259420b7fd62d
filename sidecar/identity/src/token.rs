//! Join tokens, with which a sidecar gets its first certificate: `weft1.<claims>.<signature>`.
//!
//! The claims are base64url JSON. The holder reads them too, because they have the fingerprint of the expected root: so the
//! first contact is authenticated in both directions. The signature is for the control plane alone, which creates and
//! verifies it.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use weft_core::{hex, identity};

/// Prefix of a join token.
pub const JOIN: &str = "weft1.";

/// The claims of a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinClaims {
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// Namespace of the workload.
    pub namespace: String,
    /// Service account of the workload.
    pub service_account: String,
    /// Services that it may register, or the name of a grant ([`crate::grant`]).
    pub services: Vec<String>,
    /// End, seconds since 1970.
    pub expires: u64,
    /// Hex SHA-256 of the root certificate.
    pub root: String,
}

impl JoinClaims {
    /// Reads the claims of a token without its signature, as its holder does.
    ///
    /// # Errors
    /// If it is not a token.
    pub fn read(token: &str) -> Result<JoinClaims> {
        let claims = token.trim().strip_prefix(JOIN).and_then(|t| t.split_once('.')).map(|(claims, _)| claims);
        let claims = claims.context("not a join token (its form is weft1.….…)")?;
        decode(claims).context("the join token is damaged")
    }

    /// The identity of the holder's certificate, not checked.
    pub fn uri(&self) -> String {
        identity::uri(&self.trust_domain, &self.namespace, &self.service_account)
    }

    /// SHA-256 of the mesh's root certificate.
    ///
    /// # Errors
    /// If the claim is damaged.
    pub fn fingerprint(&self) -> Result<[u8; 32]> {
        let bytes = hex::decode(&self.root).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.context("the join token's root fingerprint is damaged")
    }
}

/// Claims as they are in a token.
pub fn encode(claims: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(claims).unwrap_or_default())
}

/// The claims of a token.
///
/// # Errors
/// If they are damaged.
pub fn decode<T: DeserializeOwned>(claims: &str) -> Result<T> {
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_reads_the_claims_without_the_signature() {
        let claims = JoinClaims {
            trust_domain: "cluster.local".into(),
            namespace: "default".into(),
            service_account: "order".into(),
            services: vec!["order".into()],
            expires: 7,
            root: "ab".repeat(32),
        };
        let token = format!("{JOIN}{}.signature\n", encode(&claims));
        assert_eq!(JoinClaims::read(&token).unwrap(), claims);
        assert_eq!(claims.uri(), "spiffe://cluster.local/ns/default/sa/order");
        assert_eq!(claims.fingerprint().unwrap(), [0xab; 32]);
        for root in ["", "ab", &"zz".repeat(32), &"ab".repeat(33)] {
            assert!(JoinClaims { root: root.to_owned(), ..claims.clone() }.fingerprint().is_err(), "{root}");
        }
        for (token, reason) in [
            ("weft1.abc", "not a join token"),
            ("weftapi1.abc.def", "not a join token"),
            ("weft1.!.def", "damaged"),
            ("weft1.abcd.def", "damaged"),
        ] {
            let error = JoinClaims::read(token).unwrap_err().to_string();
            assert!(error.contains(reason), "{token}: {error}");
        }
    }
}
