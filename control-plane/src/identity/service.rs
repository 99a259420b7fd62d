//! Certificate signing: a join token, a pod's token or a certificate in, a fresh certificate of the same entitlement out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::RngExt;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use weft_core::clock::unix_ms;
use weft_core::identity::{IdentityError, SpiffeId};
use weft_identity::token::JoinClaims;
use weft_kubernetes::accounts::{Account, Accounts, Refusal};
use weft_proto::v1::identity_server::Identity;
use weft_proto::v1::{SignRequest, SignResponse};

use crate::clock::unix_now;
use crate::identity::bounds::SIGNING_REQUEST;
use crate::identity::ca::Ca;
use crate::identity::grants::{Grants, Unknown};
use crate::identity::peer::Peer;
use crate::identity::rates::Rates;
use crate::identity::refusals::Refusals;
use crate::identity::token::Tokens;

/// Certificates that one identity at one address gets at once, and the interval of further ones: a machine whose pods
/// start together needs several, and a faulty one does not keep this process busy.
pub const BURST: u32 = 60;
/// See [`BURST`].
pub const INTERVAL: Duration = Duration::from_secs(2);

/// The signing service.
pub struct IdentityService {
    /// Signs.
    pub ca: Arc<Ca>,
    /// Verifies join tokens.
    pub tokens: Arc<Tokens>,
    /// Reviews the tokens of service accounts, if a Kubernetes cluster is followed.
    pub accounts: Option<Accounts>,
    /// Longest life of a certificate; reduced by up to a tenth at random, so that a mesh that started at once does not
    /// renew at once.
    pub lifetime: Duration,
    /// Rate of requests of an identity at an address.
    pub rates: Rates<(String, IpAddr)>,
    /// Services that tokens and certificates grant.
    pub grants: Arc<Grants>,
    /// Refused identities.
    pub refusals: Arc<Refusals>,
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let peer = Peer::of(&request)?;
        let bytes = request.get_ref().csr_der.len();
        if bytes > SIGNING_REQUEST {
            let text = format!("the signing request has {bytes} bytes, at most {SIGNING_REQUEST} are allowed");
            return Err(Status::invalid_argument(text));
        }
        let (id, names) = self.entitled(&request, &peer).await?;
        let name = id.to_string();
        if let Err(wait) = self.rates.take((name.clone(), peer.remote), Instant::now()) {
            let reason = format!(
                "{name} at {} requests certificates too often ({BURST} at once, then one every {} s): the next in {:.1} s",
                peer.remote,
                INTERVAL.as_secs(),
                wait.as_secs_f64()
            );
            self.refusals.add(&name, Some(peer.remote), reason.clone());
            tracing::warn!("refused: {reason}");
            return Err(Status::resource_exhausted(reason));
        }
        let services = self.grants.services(&names).await.map_err(|e| {
            let reason = format!("the services of {name} are not known: {e}");
            tracing::warn!("refused: {reason}");
            self.refusals.add(&name, Some(peer.remote), reason.clone());
            match e {
                Unknown::Store(_) => Status::unavailable(reason),
                Unknown::Absent(_) | Unknown::Damaged(..) => Status::failed_precondition(reason),
            }
        })?;
        let lifetime = self.lifetime.mul_f64(rand::rng().random_range(0.9..=1.0));
        let signed = self
            .ca
            .sign_request(&request.get_ref().csr_der, &name, &names, SystemTime::now(), lifetime)
            .map_err(|e| Status::invalid_argument(format!("{e:#}")))?;
        self.refusals.remove(&name);
        tracing::info!(%id, peer = %peer.remote, "signed a certificate");
        Ok(Response::new(SignResponse {
            chain_der: signed.chain.iter().map(|c| c.to_vec()).collect(),
            roots_der: vec![self.ca.root().to_vec()],
            spiffe_id: name,
            services,
            now_ms: unix_ms(SystemTime::now()),
        }))
    }
}

impl IdentityService {
    /// The identity and services of a request's credentials, the latter in the form of the credentials.
    async fn entitled(&self, request: &Request<SignRequest>, peer: &Peer) -> Result<(SpiffeId, Vec<String>), Status> {
        let Some(token) = bearer(request)? else {
            let certified = peer.renewable()?;
            return Ok((certified.id.clone(), certified.services.clone()));
        };
        let Account { namespace, name, services } = match Accounts::is_token(token) {
            true => self.reviewed(token, peer.remote).await?,
            false => self.verified(token, peer.remote)?,
        };
        let id = self.id(&namespace, &name);
        let id = id.map_err(|e| Status::invalid_argument(format!("the token's identity is not valid: {e}")))?;
        // Sidecars believe its holder whatever it sends.
        if SpiffeId::control_plane(self.ca.trust_domain()).is_ok_and(|own| own == id) {
            let reason = format!("{id} is the identity of control planes: use another service account");
            tracing::warn!(peer = %peer.remote, "join refused: {reason}");
            return Err(Status::permission_denied(reason));
        }
        Ok((id, services))
    }

    fn id(&self, namespace: &str, account: &str) -> Result<SpiffeId, IdentityError> {
        SpiffeId::new(self.ca.trust_domain(), namespace, account)
    }

    /// The account of a join token.
    fn verified(&self, token: &str, remote: IpAddr) -> Result<Account, Status> {
        match self.tokens.verify(token, unix_now()) {
            Ok(JoinClaims { namespace, service_account: name, services, .. }) => {
                Ok(Account { namespace, name, services })
            }
            Err(e) => {
                tracing::warn!(peer = %remote, "join refused: {e}");
                let claimed = self.tokens.unverified(token);
                if let Some(id) = claimed.and_then(|of| self.id(&of.namespace, &of.service_account).ok()) {
                    self.refusals.add(&id.to_string(), Some(remote), e.to_string());
                }
                Err(Status::unauthenticated(e.to_string()))
            }
        }
    }

    /// The account of a pod's token.
    async fn reviewed(&self, token: &str, remote: IpAddr) -> Result<Account, Status> {
        let Some(accounts) = &self.accounts else {
            return Err(Status::unauthenticated(
                "this control plane follows no Kubernetes cluster (--kubernetes) and takes join tokens only",
            ));
        };
        // Before anything is known of the peer, so that it cannot make this process ask the API server at will.
        if let Err(wait) = self.rates.take((String::new(), remote), Instant::now()) {
            let text = format!("{remote} shows tokens too often: the next in {:.1} s", wait.as_secs_f64());
            return Err(Status::resource_exhausted(text));
        }
        accounts.review(token, remote).await.map_err(|refusal| {
            tracing::warn!(peer = %remote, "join refused: {refusal}");
            match refusal {
                Refusal::Refused(text) => Status::unauthenticated(text),
                Refusal::Unavailable(text) => Status::unavailable(text),
            }
        })
    }
}

fn bearer<T>(request: &Request<T>) -> Result<Option<&str>, Status> {
    let Some(value) = request.metadata().get("authorization") else { return Ok(None) };
    let value = value.to_str().map_err(|_| Status::unauthenticated("the authorization header is not text"))?;
    let token = value.strip_prefix("Bearer ");
    token.map(Some).ok_or_else(|| Status::unauthenticated("the authorization must be `Bearer <token>`"))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use tonic::Code;

    use super::*;
    use crate::store::embedded::Embedded;

    #[tokio::test(start_paused = true)]
    async fn certificates_are_rate_limited_by_identity_and_address() {
        let ca = Arc::new(Ca::create("cluster.local", SystemTime::now()).unwrap().0);
        let tokens = Arc::new(Tokens::new(&[7; 32]));
        let folder = tempfile::tempdir().unwrap();
        let token = |service_account: &str, expires| {
            tokens.create(&JoinClaims {
                trust_domain: "cluster.local".into(),
                namespace: "default".into(),
                service_account: service_account.into(),
                services: Vec::new(),
                expires,
                root: String::new(),
            })
        };
        let service = IdentityService {
            ca,
            tokens: tokens.clone(),
            accounts: None,
            lifetime: Duration::from_secs(3600),
            rates: Rates::new(BURST, INTERVAL),
            grants: Arc::new(Grants::new(Arc::new(Embedded::open(folder.path()).unwrap()))),
            refusals: Arc::default(),
        };
        let csr = CertificateParams::new(Vec::new()).unwrap().serialize_request(&KeyPair::generate().unwrap()).unwrap();
        let sign = async |address: [u8; 4], token: &str| {
            let mut request = Request::new(SignRequest { csr_der: csr.der().to_vec() });
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
            request.extensions_mut().insert(Peer { remote: address.into(), certified: None });
            service.sign(request).await.map(|signed| signed.into_inner().now_ms)
        };
        let (order, cart) = (token("order", u64::MAX), token("cart", u64::MAX));
        for _ in 0..BURST {
            assert!(sign([10, 0, 0, 1], &order).await.unwrap() > 0, "the reply has the time");
        }
        let refused = sign([10, 0, 0, 1], &order).await.unwrap_err();
        assert!(refused.code() == Code::ResourceExhausted && refused.message().contains("too often"), "{refused}");
        sign([10, 0, 0, 2], &order).await.unwrap();
        sign([10, 0, 0, 1], &cart).await.unwrap();
        tokio::time::advance(INTERVAL).await;
        sign([10, 0, 0, 1], &order).await.unwrap();

        let reserved = tokens.create(&JoinClaims {
            trust_domain: "cluster.local".into(),
            namespace: "weft-system".into(),
            service_account: "weft-control-plane".into(),
            services: Vec::new(),
            expires: u64::MAX,
            root: String::new(),
        });
        assert_eq!(sign([10, 0, 0, 9], &reserved).await.unwrap_err().code(), Code::PermissionDenied);

        // Only an identity with a valid token is listed, until it gets a certificate.
        sign([10, 0, 0, 3], &token("late", 1)).await.unwrap_err();
        sign([10, 0, 0, 3], "weft1.e30.AAAA").await.unwrap_err();
        let status = service.refusals.status(Instant::now());
        let status: Vec<_> =
            status.iter().map(|one| (one.identity.as_str(), one.address.as_str(), one.times)).collect();
        assert_eq!(status, [("spiffe://cluster.local/ns/default/sa/late", "10.0.0.3", 1)]);
        sign([10, 0, 0, 3], &token("late", u64::MAX)).await.unwrap();
        assert!(service.refusals.status(Instant::now()).is_empty());
    }
}
