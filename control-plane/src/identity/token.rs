//! Join tokens, with which a sidecar gets its first certificate, and API tokens, with which a program uses Consul's
//! API.
//!
//! Both are signed: HMAC-SHA-256 by a key that only the control plane has, over prefix and claims. The form is
//! [`weft_identity::token`]'s; an API token begins with `weftapi1.` instead, so that neither can be used as the other. Nothing
//! is stored per token except the services of one that grants many ([`crate::identity::grants`]).

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use weft_identity::token::{self, JOIN, JoinClaims};

/// The claims of an API token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiClaims {
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// Namespace that is read and written.
    pub namespace: String,
    /// Services that its holder may register and read.
    pub services: Vec<String>,
    /// Patterns, with `*`, of further services that it may read; none: all that the namespace sees.
    pub read: Vec<String>,
    /// Prefixes of the keys that it may read and write; none: no keys, and no sessions.
    pub keys: Vec<String>,
    /// End, seconds since 1970.
    pub expires: u64,
}

/// Prefix of an API token.
pub(crate) const API: &str = "weftapi1.";

/// The reason why a token is refused. The text is meant for its holder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token, or damaged in copying.
    #[error("this is not a join token (its form is weft1.….…); create one with `weftctl token create`")]
    Malformed,
    /// Another control plane's, or forged.
    #[error("the join token was not created by this control plane; create one here with `weftctl token create`")]
    Signature,
    /// Expired.
    #[error("the join token expired {0} seconds ago; create a new one with `weftctl token create`")]
    Expired(u64),
}

/// Creates and verifies tokens.
pub struct Tokens {
    key: hmac::Key,
}

impl Tokens {
    /// `secret`: 32 random bytes from the store.
    pub fn new(secret: &[u8]) -> Tokens {
        Tokens { key: hmac::Key::new(hmac::HMAC_SHA256, secret) }
    }

    /// The join token for `claims`.
    pub fn create(&self, claims: &JoinClaims) -> String {
        self.sign(JOIN, claims)
    }

    /// The API token for `claims`.
    pub fn create_api(&self, claims: &ApiClaims) -> String {
        self.sign(API, claims)
    }

    fn sign(&self, prefix: &str, claims: &impl Serialize) -> String {
        let body = format!("{prefix}{}", token::encode(claims));
        let signature = hmac::sign(&self.key, body.as_bytes());
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// The claims of a join token of this control plane that has not expired at `now` (seconds since 1970).
    ///
    /// # Errors
    /// If the token is invalid; the error gives the reason.
    pub fn verify(&self, token: &str, now: u64) -> Result<JoinClaims, TokenError> {
        let claims: JoinClaims = self.claims(JOIN, token)?;
        if claims.expires <= now {
            return Err(TokenError::Expired(now - claims.expires));
        }
        Ok(claims)
    }

    /// The claims of a join token of this control plane, even if it has expired: for messages, not for authentication.
    pub fn unverified(&self, token: &str) -> Option<JoinClaims> {
        self.claims(JOIN, token).ok()
    }

    /// The claims of an API token of this control plane that has not expired at `now` (seconds since 1970).
    ///
    /// # Errors
    /// If the token is invalid; the reason is for the log, because Consul's clients only learn that there is no such
    /// token.
    pub fn verify_api(&self, token: &str, now: u64) -> Result<ApiClaims, TokenError> {
        let claims: ApiClaims = self.claims(API, token)?;
        if claims.expires <= now {
            return Err(TokenError::Expired(now - claims.expires));
        }
        Ok(claims)
    }

    fn claims<T: DeserializeOwned>(&self, prefix: &str, token: &str) -> Result<T, TokenError> {
        let token = token.trim();
        let (body, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let claims = body.strip_prefix(prefix).ok_or(TokenError::Malformed)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Malformed)?;
        hmac::verify(&self.key, body.as_bytes(), &signature).map_err(|_| TokenError::Signature)?;
        token::decode(claims).map_err(|_| TokenError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forged_foreign_and_expired_tokens_are_refused() {
        let claims = JoinClaims {
            trust_domain: "cluster.local".into(),
            namespace: "default".into(),
            service_account: "order-service".into(),
            services: vec!["order-service".into()],
            expires: 1000,
            root: "ab".into(),
        };
        let tokens = Tokens::new(&[1; 32]);
        let token = tokens.create(&claims);
        assert_eq!(tokens.verify(&format!("{token}\n"), 999), Ok(claims));
        assert_eq!(tokens.verify(&token, 1010), Err(TokenError::Expired(10)));
        assert_eq!(Tokens::new(&[2; 32]).verify(&token, 0), Err(TokenError::Signature));
        let mut forged = token.clone().into_bytes();
        forged[10] ^= 1;
        assert_eq!(tokens.verify(&String::from_utf8(forged).unwrap(), 0), Err(TokenError::Signature));
        for garbage in ["", ".", "weft1", "weft1.a", "eyJ.a.b"] {
            assert!(tokens.verify(garbage, 0).is_err(), "{garbage}");
        }
    }

    #[test]
    fn join_and_api_tokens_are_not_interchangeable() {
        let tokens = Tokens::new(&[1; 32]);
        let join = JoinClaims {
            trust_domain: "cluster.local".into(),
            namespace: "default".into(),
            service_account: "order".into(),
            services: Vec::new(),
            expires: 1000,
            root: String::new(),
        };
        let api = ApiClaims {
            trust_domain: "cluster.local".into(),
            namespace: "shop".into(),
            services: vec!["order".into()],
            read: vec!["pay*".into()],
            keys: Vec::new(),
            expires: 1000,
        };
        let (join, token) = (tokens.create(&join), tokens.create_api(&api));
        assert_eq!(tokens.verify_api(&token, 999), Ok(api));
        assert_eq!(tokens.verify_api(&token, 1000), Err(TokenError::Expired(0)));
        assert_eq!(tokens.verify(&token, 0), Err(TokenError::Malformed));
        assert_eq!(tokens.verify_api(&join, 0), Err(TokenError::Malformed));
        // The kind is signed, too.
        let renamed = [(token.replace(API, JOIN), false), (join.replace(JOIN, API), true)];
        for (forged, as_api) in renamed {
            let error = if as_api { tokens.verify_api(&forged, 0).err() } else { tokens.verify(&forged, 0).err() };
            assert_eq!(error, Some(TokenError::Signature), "{forged}");
        }
        assert_eq!(Tokens::new(&[2; 32]).verify_api(&token, 0), Err(TokenError::Signature));
    }
}
