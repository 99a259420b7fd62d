//! Consul's API and Eureka's for requests that sidecars forward. The stream's certificate identifies the caller; the
//! token of the program can only reduce its rights. The responses are those of [`crate::api::consul`] and
//! [`crate::api::eureka`].

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use tonic::{Request, Response, Status};
use weft_core::identity::SpiffeId;
use weft_proto::v1::catalog_server::Catalog;
use weft_proto::v1::{Answer, Question};
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use crate::api::access;
use crate::api::consul::{self, Consul};
use crate::api::eureka::Eureka;
use crate::identity::bounds::Pace;
use crate::identity::caller::{Caller, Rights};
use crate::identity::peer::Peer;
use crate::identity::token::Tokens;

/// The catalog service.
pub struct CatalogService {
    /// Serves Consul's API.
    pub consul: Arc<Consul>,
    /// Serves Eureka's API.
    pub eureka: Arc<Eureka>,
    /// Verifies the tokens of programs.
    pub tokens: Arc<Tokens>,
    /// Rate of the requests of each identity.
    pub pace: Arc<Pace>,
}

impl CatalogService {
    /// Answers a request that a sidecar of this identity forwards.
    async fn answer(&self, peer: &Peer, id: &SpiffeId, passed: http::Request<Bytes>) -> Reply {
        let (head, body) = passed.into_parts();
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let eureka = weft_registry_api::eureka::route::is_eureka_path(head.uri.path());
        let refusal = |error| {
            let get = head.method == Method::GET;
            if eureka { weft_registry_api::eureka::error_reply(&error) } else { reply::error(&error, get, &query) }
        };
        let public = consul::route::is_public(&head.method, head.uri.path());
        let rights = match access::claims(&self.tokens, &head) {
            // Whatever the token is.
            _ if public => Rights::Read,
            Ok(Some(claims)) if claims.namespace != id.namespace() => {
                let text = format!(
                    "Permission denied: this token is of the namespace {:?}, the sidecar of {:?}",
                    claims.namespace,
                    id.namespace()
                );
                return refusal(ApiError::new(StatusCode::FORBIDDEN, text));
            }
            Ok(Some(claims)) => Rights::Token(claims),
            Ok(None) => Rights::All,
            Err(error) => return refusal(error),
        };
        let (namespace, identity) = (id.namespace().to_owned(), id.to_string());
        let caller = Caller { namespace, identity, address: peer.remote, rights };
        let passed = http::Request::from_parts(head, body);
        if eureka { self.eureka.answer(&caller, passed) } else { consul::answer(&self.consul, &caller, passed).await }
    }
}

#[tonic::async_trait]
impl Catalog for CatalogService {
    async fn ask(&self, request: Request<Question>) -> Result<Response<Answer>, Status> {
        let peer = Peer::of(&request)?;
        let id = peer.certified()?.id.clone();
        self.pace.keep(&id.to_string().into()).await;
        let passed = request_of(request.into_inner())?;
        Ok(Response::new(answer_of(self.answer(&peer, &id, passed).await)))
    }
}

/// A question as the original request.
///
/// # Errors
/// If it is not a valid request.
pub(crate) fn request_of(question: Question) -> Result<http::Request<Bytes>, Status> {
    let mut passed =
        http::Request::builder().method(question.method.as_str()).uri(format!("{}?{}", question.path, question.query));
    for (name, value) in &question.headers {
        passed = passed.header(name, value);
    }
    passed.body(question.body).map_err(|e| Status::invalid_argument(format!("no request: {e}")))
}

/// A response for the wire.
pub(crate) fn answer_of(reply: Reply) -> Answer {
    let (head, body) = reply.into_parts();
    // These headers are all text.
    let headers =
        head.headers.iter().filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
    Answer { status: head.status.as_u16().into(), headers: headers.collect(), body }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use weft_proto::v1::dns_server::Dns as _;
    use weft_proto::v1::{self, DnsMessage};

    use super::*;
    use crate::api::dns::service::DnsService;
    use crate::api::dns::{self, Dns};
    use crate::clock::unix_now;
    use crate::identity::token::ApiClaims;
    use crate::state::{Mesh, Node};
    use crate::store::embedded::Embedded;

    const ID: &str = "spiffe://cluster.local/ns/default/sa/web";

    /// A mesh with the services order and payment.
    async fn service(dir: &std::path::Path) -> CatalogService {
        let store = Arc::new(Embedded::open(dir).unwrap());
        let mesh = Mesh::open(store, "cluster.local", Duration::from_secs(15)).await.unwrap();
        let node = Node::new("default", ID, [10, 0, 0, 1].into());
        let session = mesh.begin_session("n1", node).await.unwrap();
        for service in ["order", "payment"] {
            let (service_id, service) = (service.to_owned(), service.to_owned());
            let instance = v1::Instance { service_id, service, port: 80, ..Default::default() };
            mesh.register("n1", session, instance).await.unwrap();
        }
        let (ca, _) = crate::identity::ca::Ca::create("cluster.local", std::time::SystemTime::now()).unwrap();
        let roots = crate::api::consul::connect::Roots::of(&ca);
        CatalogService {
            consul: Arc::new(Consul {
                mesh: mesh.clone(),
                address: ([10, 0, 0, 9], 15012).into(),
                roots,
                federation: crate::api::remote::Alone::shared(),
                allow_external: false,
            }),
            eureka: Arc::new(Eureka::new(mesh)),
            tokens: Arc::new(Tokens::new(&[7; 32])),
            pace: Arc::default(),
        }
    }

    #[tokio::test]
    async fn requests_of_one_identity_have_a_rate() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = service(dir.path()).await;
        let mesh = catalog.consul.mesh.clone();
        let dns = Dns::new(mesh, dns::Settings::default(), crate::api::remote::Alone::shared());
        let dns = DnsService { dns, pace: catalog.pace.clone() };
        fn of<T>(id: &str, message: T) -> Request<T> {
            let (id, services) = (id.parse().unwrap(), Vec::new());
            let not_after = std::time::SystemTime::now() + Duration::from_secs(60);
            let certified = Some(Arc::new(crate::identity::peer::PeerCertificate { id, services, not_after }));
            let mut request = Request::new(message);
            request.extensions_mut().insert(Peer { remote: [10, 0, 0, 1].into(), certified });
            request
        }
        let leader = || Question { method: "GET".into(), path: "/v1/status/leader".into(), ..Question::default() };
        assert!(catalog.ask(of(ID, leader())).now_or_never().is_some());
        tokio::time::pause();
        while catalog.pace.keep(&ID.into()).now_or_never().is_some() {}
        assert!(catalog.ask(of(ID, leader())).now_or_never().is_none());
        assert!(dns.query(of(ID, DnsMessage::default())).now_or_never().is_none());
        let other = "spiffe://cluster.local/ns/default/sa/other";
        assert!(catalog.ask(of(other, leader())).now_or_never().is_some());
        assert!(dns.query(of(other, DnsMessage::default())).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_token_only_reduces_rights() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(dir.path()).await;
        let id: SpiffeId = ID.parse().unwrap();
        let token = |namespace: &str| {
            service.tokens.create_api(&ApiClaims {
                trust_domain: "cluster.local".into(),
                namespace: namespace.into(),
                services: Vec::new(),
                read: vec!["pay*".into()],
                keys: vec!["conf/".into()],
                expires: unix_now() + 60,
            })
        };
        let (own, others) = (token("default"), token("shop"));
        let peer = Peer { remote: [10, 0, 0, 1].into(), certified: None };
        let both = r#"{"order":[],"payment":[]}"#;
        for (token, method, path, status, words) in [
            ("", "GET", "/v1/catalog/services", 200, both),
            ("", "PUT", "/v1/kv/a", 200, "true"),
            (&*own, "GET", "/v1/catalog/services", 200, r#"{"payment":[]}"#),
            (&own, "PUT", "/v1/kv/a", 403, "Permission denied"),
            (&own, "PUT", "/v1/kv/conf/a", 200, "true"),
            (&others, "GET", "/v1/catalog/services", 403, "of the namespace \"shop\", the sidecar of \"default\""),
            ("of-another-time", "GET", "/v1/catalog/services", 403, "ACL not found"),
            ("of-another-time", "GET", "/eureka/apps", 403, "ACL not found"),
            ("of-another-time", "GET", "/v1/status/leader", 200, "10.0.0.9:15012"),
        ] {
            let passed = http::Request::builder().method(method).uri(path).header("x-consul-token", token);
            let reply = service.answer(&peer, &id, passed.body(Bytes::new()).unwrap()).await;
            let (got, text) = (reply.status(), String::from_utf8_lossy(reply.body()).into_owned());
            assert!(got == status && text.contains(words), "{method} {path} {token:.20}: {got} {text}");
        }
    }
}
