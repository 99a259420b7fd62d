//! Consul's API and Eureka's as sidecars pass them on: who asks is said by the certificate of the stream, the rest is
//! [`crate::consul`] and [`crate::eureka`].

use tonic::{Request, Response, Status};
use weft_proto::v1::catalog_server::Catalog;
use weft_proto::v1::{Answer, Question};

use crate::consul::{self, Caller, Consul};
use crate::eureka::Eureka;
use crate::peer::Peer;

/// The catalog service.
pub struct CatalogService {
    /// Answers.
    pub consul: Consul,
    /// Answers what is of Eureka's API.
    pub eureka: Eureka,
}

#[tonic::async_trait]
impl Catalog for CatalogService {
    async fn ask(&self, request: Request<Question>) -> Result<Response<Answer>, Status> {
        let peer = Peer::of(&request)?;
        let id = peer.certified()?.id.clone();
        let caller = Caller { namespace: id.namespace().to_owned(), identity: id.to_string(), address: peer.remote };
        let question = request.into_inner();
        let mut passed = http::Request::builder()
            .method(question.method.as_str())
            .uri(format!("{}?{}", question.path, question.query));
        for (name, value) in &question.headers {
            passed = passed.header(name, value);
        }
        let passed = passed.body(question.body).map_err(|e| Status::invalid_argument(format!("no request: {e}")))?;
        let answered = if weft_agent::eureka::route::is_ours(passed.uri().path()) {
            self.eureka.answer(&caller, passed)
        } else {
            consul::answer(&self.consul, &caller, passed).await
        };
        let (head, body) = answered.into_parts();
        // Ours are all text.
        let headers =
            head.headers.iter().filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
        Ok(Response::new(Answer { status: head.status.as_u16().into(), headers: headers.collect(), body }))
    }
}
