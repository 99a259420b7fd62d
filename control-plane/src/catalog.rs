//! Consul's API and Eureka's as sidecars pass them on: who asks is said by the certificate of the stream, and by the token
//! of the program, which can only take away from that; the rest is [`crate::consul`] and [`crate::eureka`].

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};

use tonic::{Request, Response, Status};
use weft_agent::answer::{self, Answered};
use weft_agent::query::Query;
use weft_agent::refused::Refused;
use weft_core::identity::SpiffeId;
use weft_proto::v1::catalog_server::Catalog;
use weft_proto::v1::{Answer, Question};

use crate::access;
use crate::consul::{self, Caller, Consul, Rights};
use crate::eureka::Eureka;
use crate::peer::Peer;
use crate::token::Tokens;

/// The catalog service.
pub struct CatalogService {
    /// Answers.
    pub consul: Arc<Consul>,
    /// Answers what is of Eureka's API.
    pub eureka: Arc<Eureka>,
    /// Checks those of programs.
    pub tokens: Arc<Tokens>,
}

impl CatalogService {
    /// Answers what a sidecar of this identity passes on.
    async fn answer(&self, peer: &Peer, id: &SpiffeId, passed: http::Request<Bytes>) -> Answered {
        let (head, body) = passed.into_parts();
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let eureka = weft_agent::eureka::route::is_ours(head.uri.path());
        let refusal = |refused| {
            let get = head.method == Method::GET;
            if eureka { weft_agent::eureka::refusal(&refused) } else { answer::refusal(&refused, get, &query) }
        };
        let rights = match access::claims(&self.tokens, &head) {
            Ok(Some(claims)) if claims.namespace != id.namespace() => {
                let text = format!(
                    "Permission denied: this token is of the namespace {:?}, the sidecar of {:?}",
                    claims.namespace,
                    id.namespace()
                );
                return refusal(Refused::new(StatusCode::FORBIDDEN, text));
            }
            Ok(Some(claims)) => Rights::Token(claims),
            Ok(None) => Rights::All,
            Err(refused) => return refusal(refused),
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
        let question = request.into_inner();
        let mut passed = http::Request::builder()
            .method(question.method.as_str())
            .uri(format!("{}?{}", question.path, question.query));
        for (name, value) in &question.headers {
            passed = passed.header(name, value);
        }
        let passed = passed.body(question.body).map_err(|e| Status::invalid_argument(format!("no request: {e}")))?;
        let (head, body) = self.answer(&peer, &id, passed).await.into_parts();
        // Ours are all text.
        let headers =
            head.headers.iter().filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
        Ok(Response::new(Answer { status: head.status.as_u16().into(), headers: headers.collect(), body }))
    }
}
