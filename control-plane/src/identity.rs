//! Certificate signing: a join token or a certificate in, a fresh certificate of the same entitlement out.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::RngExt;
use tonic::{Request, Response, Status};
use weft_core::identity::SpiffeId;
use weft_proto::v1::identity_server::Identity;
use weft_proto::v1::{SignRequest, SignResponse};

use crate::ca::Ca;
use crate::peer::Peer;
use crate::token::Tokens;

/// The signing service.
pub struct IdentityService {
    /// Signs.
    pub ca: Arc<Ca>,
    /// Checks tokens.
    pub tokens: Arc<Tokens>,
    /// Longest life of a certificate; up to a tenth less, so that a mesh started at once does not renew at once.
    pub lifetime: Duration,
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let peer = Peer::of(&request)?;
        let (id, services) = match bearer(&request)? {
            Some(token) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                let claims = self.tokens.verify(token, now).map_err(|e| {
                    tracing::warn!(peer = %peer.remote, "join refused: {e}");
                    Status::unauthenticated(e.to_string())
                })?;
                let id = SpiffeId::new(self.ca.trust_domain(), &claims.namespace, &claims.service_account)
                    .map_err(|e| Status::invalid_argument(format!("the token's identity is not valid: {e}")))?;
                (id, claims.services)
            }
            None => {
                let certified = peer.certified()?;
                (certified.id.clone(), certified.services.clone())
            }
        };
        let lifetime = self.lifetime.mul_f64(rand::rng().random_range(0.9..=1.0));
        let signed = self
            .ca
            .sign_request(&request.get_ref().csr_der, &id.to_string(), &services, SystemTime::now(), lifetime)
            .map_err(|e| Status::invalid_argument(format!("{e:#}")))?;
        tracing::info!(%id, peer = %peer.remote, "signed a certificate");
        Ok(Response::new(SignResponse {
            chain_der: signed.chain.iter().map(|c| c.to_vec()).collect(),
            roots_der: vec![self.ca.root().to_vec()],
            spiffe_id: id.to_string(),
            services,
        }))
    }
}

fn bearer<T>(request: &Request<T>) -> Result<Option<&str>, Status> {
    let Some(value) = request.metadata().get("authorization") else { return Ok(None) };
    let value = value.to_str().map_err(|_| Status::unauthenticated("the authorization header is not text"))?;
    let token = value.strip_prefix("Bearer ");
    token.map(Some).ok_or_else(|| Status::unauthenticated("the authorization must be `Bearer <join token>`"))
}
