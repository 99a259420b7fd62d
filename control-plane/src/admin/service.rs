//! The administrator's API, for `weftctl`: on a Unix socket that only its owner can open.
//!
//! Objects applied here live in the store. An object of the policy folder can be changed in its file only, so that a
//! folder under version control stays authoritative.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use futures::stream;
use tokio::net::UnixListener;
use tonic::{Request, Response, Status, Streaming};
use weft_core::hex;
use weft_core::identity::SpiffeId;
use weft_identity::token::JoinClaims;
use weft_proto::v1;
use weft_proto::v1::admin_server::Admin;

use super::objects;
use crate::clock::unix_now;
use crate::discovery::Discovery;
use crate::federation::Federation;
use crate::identity::ca::Ca;
use crate::identity::grants::{Grants, MAX_SERVICES};
use crate::identity::refusals::Refusals;
use crate::identity::token::{ApiClaims, Tokens};
use crate::state::Mesh;
use crate::store;
use crate::store::snapshot;
use crate::telemetry;
use weft_files::snapshot::{MAX_FILE, PIECE};
use weft_world::explain;

/// Longest life of a join token, and its default.
const MAX_TOKEN_TTL_S: u64 = 30 * 24 * 3600;
const DEFAULT_TOKEN_TTL_S: u64 = 3600;
/// Services, patterns and prefixes in one API token, and the bytes of each: it is sent with every request.
const MAX_RIGHTS: usize = 32;
const MAX_RIGHT: usize = 253;

/// The administrator's service.
pub struct AdminService {
    /// The administered mesh.
    pub mesh: Arc<Mesh>,
    /// The state of sidecars.
    pub discovery: Arc<Discovery>,
    /// Its fingerprint is part of tokens.
    pub ca: Arc<Ca>,
    /// Creates tokens.
    pub tokens: Arc<Tokens>,
    /// The other data centres.
    pub federation: Arc<Federation>,
    /// Saved and restored by snapshots.
    pub store: store::Shared,
    /// Sidecars whose certificate requests are refused.
    pub refusals: Arc<Refusals>,
    /// Services that tokens grant.
    pub grants: Arc<Grants>,
}

/// Listens on `path`, mode 0600. A socket left by an earlier run is replaced; one that answers belongs to another
/// process.
///
/// # Errors
/// If the socket is in use or its folder cannot be written.
pub async fn listen(path: &Path) -> Result<UnixListener> {
    let context = || format!("cannot listen on {}", path.display());
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        anyhow::bail!("{} is in use: is another control plane running on this data folder?", path.display());
    }
    let _ = std::fs::remove_file(path);
    // Created under a private name first, so that it is never accessible before its mode is set.
    let private = path.with_extension("new");
    let _ = std::fs::remove_file(&private);
    let listener = UnixListener::bind(&private).with_context(context)?;
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600)).with_context(context)?;
    std::fs::rename(&private, path).with_context(context)?;
    Ok(listener)
}

impl AdminService {
    /// The reason why the store accepts no writes, in words; empty: it accepts them.
    pub(super) fn store_problem(&self) -> String {
        if let Some(problem) = self.store.health().problem() {
            return telemetry::describe(&problem);
        }
        let cut_off = *self.mesh.cut_off().borrow();
        cut_off
            .map_or_else(String::new, |since| format!("the store has not answered for {} s", since.elapsed().as_secs()))
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyReply>, Status> {
        objects::apply(&self.mesh, request.into_inner()).await.map(Response::new)
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetReply>, Status> {
        Ok(Response::new(objects::get(&self.mesh, &request.into_inner())))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteReply>, Status> {
        objects::delete(&self.mesh, request.into_inner()).await.map(Response::new)
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        Ok(Response::new(self.status_of(&request.into_inner())))
    }

    type SaveSnapshotStream = stream::Iter<std::vec::IntoIter<Result<v1::SnapshotPiece, Status>>>;

    async fn save_snapshot(
        &self,
        _: Request<v1::SaveSnapshotRequest>,
    ) -> Result<Response<Self::SaveSnapshotStream>, Status> {
        let file = snapshot::save(&self.store).await.map_err(|e| Status::unavailable(e.to_string()))?;
        let piece = |bytes: &[u8]| Ok(v1::SnapshotPiece { bytes: bytes.to_vec() });
        Ok(Response::new(stream::iter(file.chunks(PIECE).map(piece).collect::<Vec<_>>())))
    }

    async fn restore_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPiece>>,
    ) -> Result<Response<v1::RestoreSnapshotReply>, Status> {
        let (mut pieces, mut file) = (request.into_inner(), Vec::new());
        while let Some(piece) = pieces.message().await? {
            if file.len() + piece.bytes.len() > MAX_FILE {
                let text = format!("a snapshot of more than {} MiB", MAX_FILE >> 20);
                return Err(Status::invalid_argument(text));
            }
            file.extend(piece.bytes);
        }
        let records = snapshot::decode(&file).map_err(Status::invalid_argument)?;
        let restored = snapshot::restore(&self.store, records).await;
        let restored = restored.map_err(|e| Status::unavailable(format!("not restored, to be repeated: {e}")))?;
        tracing::warn!(records = restored.records, "a snapshot was restored");
        let records = u64::try_from(restored.records).unwrap_or(u64::MAX);
        Ok(Response::new(v1::RestoreSnapshotReply { records, restart: restored.secrets }))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainReply>, Status> {
        let request = request.into_inner();
        let from = if request.from.is_empty() { None } else { Some(explain::Name::parse(&request.from)) };
        let from = from.transpose().map_err(Status::invalid_argument)?;
        let gateway = explain::Client::gateway(&request.gateway).map_err(Status::invalid_argument)?;
        let method = if request.method.is_empty() { "GET" } else { &request.method };
        let headers: Vec<(String, String)> =
            request.headers.into_iter().map(|header| (header.name, header.value)).collect();
        let query = explain::Query::new(&request.url, method, &headers, request.server_name.as_deref());
        let query = query.map_err(Status::invalid_argument)?;
        let client = match (&from, gateway) {
            (Some(_), Some(_)) => return Err(Status::invalid_argument("--from and --gateway exclude each other")),
            (_, Some((namespace, name))) => explain::Client::at_gateway(&namespace, &name),
            (Some(name), None) => self.mesh.client(name).map_err(Status::not_found)?,
            (None, None) => explain::Client::of("default"),
        };
        let node = client.node.clone();
        let facts = self.mesh.read(|world| explain::Facts::gather(world, &client, &query, true));
        // A large ring takes long to compute, and must not delay other tasks.
        let explained = tokio::task::spawn_blocking(move || facts.explain(&client, &query, Instant::now())).await;
        let explained = explained.map_err(|e| Status::internal(e.to_string()))?;
        let mut explained = explained.map_err(|e| Status::internal(format!("sidecars would refuse it: {e}")))?;
        if !node.is_empty()
            && let Some(reason) = self.discovery.refused(&node, &explained.host.name)
        {
            let text = format!("the caller's sidecar has refused this, and goes on with what it had: {reason}");
            explained.notes.push(text);
        }
        let explanation = serde_json::to_string(&explained).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(v1::ExplainReply { explanation }))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenReply>, Status> {
        let request = request.into_inner();
        let namespace = if request.namespace.is_empty() { "default".to_owned() } else { request.namespace };
        let ttl = if request.ttl_s == 0 { DEFAULT_TOKEN_TTL_S } else { request.ttl_s };
        if ttl > MAX_TOKEN_TTL_S {
            return Err(Status::invalid_argument(format!("a token is valid for at most {MAX_TOKEN_TTL_S} seconds")));
        }
        // An API token needs no account, but a namespace in which an account would be valid.
        let account = if request.api.is_some() { "api" } else { request.service_account.as_str() };
        SpiffeId::new(self.ca.trust_domain(), &namespace, account)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let has_services = !request.services.is_empty() || request.api.is_some();
        let services = if has_services { request.services } else { vec![request.service_account.clone()] };
        services.iter().try_for_each(|service| may_be_named(service)).map_err(Status::invalid_argument)?;
        let expires = unix_now() + ttl;
        let trust_domain = self.ca.trust_domain().to_owned();
        if let Some(v1::ApiRights { read, keys }) = request.api {
            if !request.service_account.is_empty() {
                return Err(Status::invalid_argument(
                    "an API token has no service account, because it is not an identity",
                ));
            }
            let texts = services.iter().chain(&read).chain(&keys);
            if texts.clone().count() > MAX_RIGHTS || texts.into_iter().any(|text| text.len() > MAX_RIGHT) {
                let text =
                    format!("an API token names at most {MAX_RIGHTS} services and prefixes of {MAX_RIGHT} bytes");
                return Err(Status::invalid_argument(text));
            }
            if read.iter().any(String::is_empty) {
                return Err(Status::invalid_argument(
                    "a pattern of services to read is empty; * stands for all of them",
                ));
            }
            let token = self.tokens.create_api(&ApiClaims { trust_domain, namespace, services, read, keys, expires });
            return Ok(Response::new(v1::CreateTokenReply { token, expires_unix: expires }));
        }
        if services.len() > MAX_SERVICES {
            let text = format!("a token grants at most {MAX_SERVICES} services, got {}", services.len());
            return Err(Status::invalid_argument(text));
        }
        let services = self.grants.references(services).await.map_err(|e| Status::unavailable(e.to_string()))?;
        let root = hex::encode(&self.ca.fingerprint());
        let claims =
            JoinClaims { trust_domain, namespace, service_account: request.service_account, services, expires, root };
        let token = self.tokens.create(&claims);
        Ok(Response::new(v1::CreateTokenReply { token, expires_unix: expires }))
    }
}

/// Whether a token may name this service.
///
/// # Errors
/// If it may not; the error gives the reason.
fn may_be_named(service: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !service.is_empty() && service.len() <= 63 && service.bytes().all(plain) {
        return Ok(());
    }
    let why = if service.contains('.') {
        let (first, rest) = service.rsplit_once('.').unwrap_or_default();
        format!(
            ": with a dot it would have the name of another host ({service:?} is the service {first:?} of the namespace \
             {rest:?}, or a host outside of the mesh), and Consul's DNS reads {first:?} as a tag; register it as {:?}",
            service.replace('.', "-")
        )
    } else {
        String::new()
    };
    Err(format!("{service:?} is not a service name (1 to 63 letters, digits, - and _){why}"))
}

#[cfg(test)]
mod tests {
    use super::may_be_named;

    #[test]
    fn names_that_no_token_grants_are_refused_with_the_reason() {
        for fine in ["order", "order-service", "Order_2"] {
            assert_eq!(may_be_named(fine), Ok(()), "{fine}");
        }
        let dotted = may_be_named("com.acme.orders").unwrap_err();
        for words in
            ["the service \"com.acme\" of the namespace \"orders\"", "tag", "register it as \"com-acme-orders\""]
        {
            assert!(dotted.contains(words), "{dotted}");
        }
        for bad in ["", "a b", "a/b", "ä", &"a".repeat(64)] {
            let error = may_be_named(bad).unwrap_err();
            assert!(error.ends_with("(1 to 63 letters, digits, - and _)"), "{error}");
        }
    }
}
