//! Join tokens: what a sidecar that has no certificate yet shows to get one.
//!
//! A token is `weft1.<claims>.<signature>`: claims are base64url JSON that the holder reads too (it finds there the
//! fingerprint of the root to expect, so that the first contact is authenticated both ways), the signature is
//! HMAC-SHA-256 by a key that only the control plane has. Nothing is stored per token.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// What a token entitles to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// Namespace of the workload.
    pub namespace: String,
    /// Service account of the workload.
    pub service_account: String,
    /// Services that it may register.
    pub services: Vec<String>,
    /// End, seconds since 1970.
    pub expires: u64,
    /// Hex SHA-256 of the root certificate.
    pub root: String,
}

/// Why a token is refused. The text is meant for the one who presented it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not of the form, or damaged in copying.
    #[error("this is not a join token (it should look like weft1.….…); make one with `weftctl token create`")]
    Malformed,
    /// Another control plane's, or forged.
    #[error("the join token was not made by this control plane; make one here with `weftctl token create`")]
    Signature,
    /// Too old.
    #[error("the join token expired {0} seconds ago; make a new one with `weftctl token create`")]
    Expired(u64),
}

/// Makes and checks tokens.
pub struct Tokens {
    key: hmac::Key,
}

impl Tokens {
    /// `secret`: 32 random bytes kept in the store.
    pub fn new(secret: &[u8]) -> Tokens {
        Tokens { key: hmac::Key::new(hmac::HMAC_SHA256, secret) }
    }

    /// The token for `claims`.
    pub fn create(&self, claims: &Claims) -> String {
        let json = serde_json::to_vec(claims).unwrap_or_default();
        let body = format!("weft1.{}", URL_SAFE_NO_PAD.encode(json));
        let signature = hmac::sign(&self.key, body.as_bytes());
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// The claims of `token`, when it is ours and not expired at `now` (seconds since 1970).
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn verify(&self, token: &str, now: u64) -> Result<Claims, TokenError> {
        let token = token.trim();
        let (body, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let claims = body.strip_prefix("weft1.").ok_or(TokenError::Malformed)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Malformed)?;
        hmac::verify(&self.key, body.as_bytes(), &signature).map_err(|_| TokenError::Signature)?;
        let json = URL_SAFE_NO_PAD.decode(claims).map_err(|_| TokenError::Malformed)?;
        let claims: Claims = serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)?;
        if claims.expires <= now {
            return Err(TokenError::Expired(now - claims.expires));
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unaltered_token_of_ours_before_its_end_is_accepted() {
        let claims = Claims {
            trust_domain: "cluster.local".into(),
            namespace: "default".into(),
            service_account: "order-service".into(),
            services: vec!["order-service".into()],
            expires: 1000,
            root: "ab".into(),
        };
        let ours = Tokens::new(&[1; 32]);
        let token = ours.create(&claims);
        assert_eq!(ours.verify(&format!("{token}\n"), 999), Ok(claims));
        assert_eq!(ours.verify(&token, 1010), Err(TokenError::Expired(10)));
        assert_eq!(Tokens::new(&[2; 32]).verify(&token, 0), Err(TokenError::Signature));
        let mut forged = token.clone().into_bytes();
        forged[10] ^= 1;
        assert_eq!(ours.verify(&String::from_utf8(forged).unwrap(), 0), Err(TokenError::Signature));
        for garbage in ["", ".", "weft1", "weft1.a", "eyJ.a.b"] {
            assert!(ours.verify(garbage, 0).is_err(), "{garbage}");
        }
    }
}
