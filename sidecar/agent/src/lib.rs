//! Consul's HTTP API as a local agent serves it: to the program in a pod the sidecar is its agent.
//!
//! A crate of its own, because the control plane reads and answers in the same words and forms. What an agent needs of the
//! place that it runs in are three traits: [`upstream::Upstream`] takes what is registered to the mesh,
//! [`catalog::Source`] answers for the rest of the mesh, and [`checks::Sockets`] opens the connections of health checks.
//!
//! [`route`] finds the endpoint, [`definitions`] and [`decode`] read what clients send, [`local`] keeps what is registered
//! here, over restarts by way of [`saved`], and [`catalog`] asks for the rest; [`read`] and [`shapes`] answer. Served by
//! hyper directly: clients send bodies without or with a wrong content type, which extractors refuse.

pub mod catalog;
pub mod checks;
pub mod decode;
pub mod definitions;
pub mod entry;
pub mod files;
pub mod filter;
pub mod local;
pub mod read;
pub mod refused;
pub mod route;
pub mod saved;
pub mod shapes;
#[cfg(test)]
mod tests;
pub mod upstream;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::checks::state::Status;
use crate::checks::target;
use catalog::Catalog;
use local::Local;
use refused::Refused;
use route::{Endpoint, Missed, Query};

/// Largest body of a request.
const MAX_BODY: usize = 512 << 10;
/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 1024;
/// Longest silence of a connection that is kept.
const IDLE: Duration = Duration::from_secs(900);

/// An answer.
pub type Answered = Response<Full<Bytes>>;

/// The agent of this pod.
pub struct Agent {
    /// What is registered here.
    pub local: Arc<Local>,
    /// What is registered elsewhere.
    pub catalog: Catalog,
    /// This node's name.
    pub node: String,
    /// Where the control plane is: tells which of our addresses is the pod's.
    pub towards: SocketAddr,
}

impl Agent {
    /// The pod's address as others see it.
    pub fn address(&self) -> String {
        target::source_towards(self.towards).map_or_else(String::new, |ip| ip.to_string())
    }

    /// Serves for ever.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let agent = self.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let agent = agent.clone();
                    async move { Ok::<_, Infallible>(agent.handle(request).await) }
                });
                let serving = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(IDLE)
                    .serve_connection(TokioIo::new(stream), service);
                // A client that breaks off is its own affair.
                let _ = serving.await;
                drop(permit);
            });
        }
    }

    /// Answers one request.
    pub async fn handle<B>(&self, request: Request<B>) -> Answered
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let path = head.uri.path();
        let endpoint = match route::route(&head.method, path) {
            Ok(endpoint) => endpoint,
            Err(Missed::Method(allowed)) => return wrong_method(&head.method, allowed),
            Err(Missed::Unsupported) if path.starts_with("/v1/") => {
                let text = format!("{path} of Consul's API is not supported by this agent");
                return plain(&Refused::new(StatusCode::NOT_IMPLEMENTED, text));
            }
            Err(Missed::Unsupported) => return plain(&Refused::new(StatusCode::NOT_FOUND, "no such page")),
        };
        // Refusals of reads carry an index too: clients read it before they look at the status.
        let read = head.method == Method::GET;
        let answer = match collect(body).await {
            Ok(body) => self.answer(endpoint, &query, &body).await,
            Err(refused) => Err(refused),
        };
        answer.unwrap_or_else(|refused| {
            let mut answer = plain(&refused);
            if read {
                read::index_headers(&mut answer, 1, &query);
            }
            answer
        })
    }

    async fn answer(&self, endpoint: Endpoint, query: &Query, body: &[u8]) -> Result<Answered, Refused> {
        let done = || Response::new(Full::default());
        match endpoint {
            Endpoint::RegisterService => {
                let (service, checks) = definitions::service(body).map_err(Refused::bad)?;
                self.local.register(service, checks, query.has("replace-existing-checks")).await?;
            }
            Endpoint::DeregisterService(id) => self.local.deregister(&id).await?,
            Endpoint::Maintenance(id) => {
                let enable = query.value("enable").filter(|text| !text.is_empty());
                let enable = enable.ok_or_else(|| Refused::bad("Missing value for enable"))?;
                let enable = decode::go_bool(enable)
                    .ok_or_else(|| Refused::bad(format!("Invalid value for enable: {enable:?}")))?;
                let reason = query.value("reason").unwrap_or_default();
                self.local.maintenance(&id, enable.then_some(reason)).await?;
            }
            Endpoint::RegisterCheck => {
                let check = definitions::check(body).map_err(Refused::bad)?;
                self.local.register_check(check).await?;
            }
            Endpoint::DeregisterCheck(id) => self.local.deregister_check(&id).await?,
            Endpoint::ReportCheck(word, id) => {
                let note = query.value("note").unwrap_or_default().to_owned();
                let status = Status::parse(word).unwrap_or(Status::Critical);
                self.local.report_ttl(&id, status, note).await?;
            }
            Endpoint::UpdateCheck(id) => {
                let mut fields = decode::Fields::of_body("the update", body).map_err(Refused::bad)?;
                let word = fields.text("status").map_err(Refused::bad)?;
                let output = fields.text("output").map_err(Refused::bad)?;
                fields.finish();
                let status =
                    Status::parse(&word).ok_or_else(|| Refused::bad(format!("Invalid check status: '{word}'")))?;
                self.local.report_ttl(&id, status, output).await?;
            }
            Endpoint::AgentServices => return read::agent_services(self, query),
            Endpoint::AgentService(id) => return read::agent_service(self, &id, query).await,
            Endpoint::AgentHealthOfId(id) => return read::agent_health_of_id(self, &id, query),
            Endpoint::AgentHealthOfName(name) => return read::agent_health_of_name(self, &name, query),
            Endpoint::AgentChecks => return read::agent_checks(self, query),
            Endpoint::AgentSelf => {
                return Ok(read::json_answer(&shapes::agent_self(&self.node, &self.address()), query));
            }
            Endpoint::AgentMembers => {
                return Ok(read::json_answer(&json!([shapes::member(&self.node, &self.address())]), query));
            }
            Endpoint::HealthService(name) => return read::health_service(self, &name, query).await,
            Endpoint::HealthChecks(name) => return read::health_checks(self, &name, query).await,
            Endpoint::CatalogServices => return read::catalog_services(self, query).await,
            Endpoint::CatalogService(name) => return read::catalog_service(self, &name, query).await,
            Endpoint::CatalogNodes => return read::catalog_nodes(self, query).await,
            Endpoint::CatalogDatacenters => return Ok(read::json_answer(&json!([shapes::DATACENTER]), query)),
            Endpoint::StatusLeader => return Ok(read::json_answer(&json!(self.catalog.leader()), query)),
            Endpoint::StatusPeers => return Ok(read::json_answer(&json!([self.catalog.leader()]), query)),
        }
        Ok(done())
    }
}

async fn collect<B>(body: B) -> Result<Bytes, Refused>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => {
            let text = format!("Request body too large, max size: {MAX_BODY} bytes");
            Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Err(e) => Err(Refused::bad(format!("the request's body broke off: {e}"))),
    }
}

fn wrong_method(method: &Method, allowed: &'static str) -> Answered {
    let allow = if allowed == "GET" { "OPTIONS,GET" } else { "OPTIONS,PUT" };
    let mut answer = if method == Method::OPTIONS {
        Response::new(Full::default())
    } else {
        plain(&Refused::new(StatusCode::METHOD_NOT_ALLOWED, format!("method {method} not allowed")))
    };
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    answer
}

fn plain(refused: &Refused) -> Answered {
    let mut answer = Response::new(Full::new(Bytes::from(refused.text.clone())));
    *answer.status_mut() = refused.status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}
