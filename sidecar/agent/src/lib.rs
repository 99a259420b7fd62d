//! Consul's HTTP API as a local agent serves it, and Eureka's: the sidecar is the agent of the program in its pod.
//!
//! A crate of its own, because the control plane runs agents too, for programs without a sidecar. Three traits connect an
//! agent to its environment: [`upstream::Upstream`] registers services in the mesh, [`forward::Source`] answers for the rest of
//! the mesh, and [`checks::Sockets`] opens the connections of health checks.
//!
//! [`weft_listen::server`] serves, [`route`] finds the endpoint, [`definitions`] decodes registrations, [`local`] holds those
//! of this pod, across restarts by [`persistence`], and [`forward`] forwards everything else, except writes for the agent's own
//! node ([`catalog`]). [`read`] and [`telemetry`] build responses; [`eureka`] changes registrations by Eureka's API. The forms
//! of both APIs are in [`weft_registry_api`].

pub mod catalog;
pub mod checks;
pub mod connect;
pub mod datacenter;
pub mod definitions;
pub mod entry;
pub mod eureka;
pub mod files;
pub mod forward;
pub mod local;
pub mod persistence;
pub mod read;
pub mod route;
pub mod telemetry;
#[cfg(test)]
mod tests;
pub mod trust;
pub mod upstream;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode, request};
use serde_json::json;
use weft_listen::address::source_towards;
use weft_listen::server::Answers;
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::Reply;
use weft_registry_api::{decode, reply, shapes};

use checks::state::Status;
use checks::target::Own;
use connect::Leaves;
use datacenter::Datacenter;
use forward::Forwarder;
use local::Local;
use route::{Endpoint, Missed};

/// The agent of this pod.
pub struct Agent {
    /// Registrations of this pod.
    pub local: Arc<Local>,
    /// Answers for the rest of the mesh.
    pub mesh: Forwarder,
    /// This node's name.
    pub node: String,
    /// Its data centre.
    pub datacenter: Datacenter,
    /// Certificates for local programs; `None`: they get none.
    pub leaves: Option<Leaves>,
    /// Serialises changes by Eureka's API.
    pub eureka: eureka::ChangeLock,
    /// Metrics of the surrounding process; `None`: there are none.
    pub metrics: Option<telemetry::Exposition>,
    /// Address of the control plane: selects the pod's address among several.
    pub towards: SocketAddr,
    /// The pod's configured address, if any.
    pub address: Option<IpAddr>,
    /// Accepted host names of the API.
    pub names: weft_listen::page::Names,
}

impl Answers for Agent {
    fn turned_away(&self, head: &request::Parts) -> Option<Reply> {
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let error = self.names.refuses(&head.method, &head.uri, &head.headers, "--api-host")?;
        Some(reply::error(&error, head.method == Method::GET, &query))
    }

    async fn ending(&self) {
        self.local.handed_over().await;
    }

    async fn answer(&self, _: SocketAddr, request: Request<Bytes>) -> Reply {
        let (head, body) = request.into_parts();
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let path = head.uri.path();
        if weft_registry_api::eureka::route::is_eureka_path(path) {
            return eureka::answer(self, &head, &query, body).await;
        }
        let reply = match route::route(&head.method, path) {
            Ok(endpoint) => self.serve_own(endpoint, &query, &body).await,
            Err(Missed::Elsewhere) => self.forward_or_write(&head, &query, body).await,
            Err(Missed::Method(allowed)) => return reply::wrong_method(&head.method, allowed),
            Err(Missed::Unsupported) => {
                let instead = route::replacement(path).map(|instead| format!(": {instead}")).unwrap_or_default();
                let text = format!("{path} of Consul's API is not supported by this agent{instead}");
                Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, text))
            }
            Err(Missed::NoPage) => Err(ApiError::new(StatusCode::NOT_FOUND, "no such page")),
        };
        reply.unwrap_or_else(|error| reply::error(&error, head.method == Method::GET, &query))
    }
}

impl Agent {
    /// The pod's address as seen by others.
    pub fn address(&self) -> String {
        match self.local.own() {
            Own::At(ip) => ip.to_string(),
            Own::Pod => {
                let address = self.address.or_else(|| source_towards(self.towards));
                address.map_or_else(String::new, |ip| ip.to_string())
            }
        }
    }

    /// Endpoints of the catalog instead of the agent, except writes for its own node.
    async fn forward_or_write(&self, head: &request::Parts, query: &Query, body: Bytes) -> Result<Reply, ApiError> {
        if catalog::is_write(head) {
            let (own, datacenter) = (self.local.own(), self.datacenter.name());
            if let Some(write) = catalog::parse(head.uri.path(), &body, &self.node, &datacenter, own)? {
                return catalog::apply(self, write, query).await;
            }
        }
        self.mesh.pass(head, query, body).await
    }

    async fn serve_own(&self, endpoint: Endpoint, query: &Query, body: &[u8]) -> Result<Reply, ApiError> {
        match endpoint {
            Endpoint::RegisterService => {
                let (service, checks) = definitions::service(body, self.local.own()).map_err(ApiError::bad_request)?;
                self.local.register(service, checks, query.has("replace-existing-checks")).await?;
            }
            Endpoint::DeregisterService(id) => self.local.deregister(&id).await?,
            Endpoint::Maintenance(id) => {
                let enable = query.value("enable").filter(|text| !text.is_empty());
                let enable = enable.ok_or_else(|| ApiError::bad_request("Missing value for enable"))?;
                let enable = decode::go_bool(enable)
                    .ok_or_else(|| ApiError::bad_request(format!("Invalid value for enable: {enable:?}")))?;
                let reason = query.value("reason").unwrap_or_default();
                self.local.maintenance(&id, enable.then_some(reason)).await?;
            }
            Endpoint::RegisterCheck => {
                let check = definitions::check(body, self.local.own()).map_err(ApiError::bad_request)?;
                self.local.register_check(check).await?;
            }
            Endpoint::DeregisterCheck(id) => self.local.deregister_check(&id).await?,
            Endpoint::ReportCheck(word, id) => {
                let note = query.value("note").unwrap_or_default().to_owned();
                let status = Status::parse(word).unwrap_or(Status::Critical);
                self.local.report_ttl(&id, status, note).await?;
            }
            Endpoint::UpdateCheck(id) => {
                let mut fields = decode::Fields::of_body("the update", body).map_err(ApiError::bad_request)?;
                let word = fields.text("status").map_err(ApiError::bad_request)?;
                let output = fields.text("output").map_err(ApiError::bad_request)?;
                fields.finish();
                let status = Status::parse(&word)
                    .ok_or_else(|| ApiError::bad_request(format!("Invalid check status: '{word}'")))?;
                self.local.report_ttl(&id, status, output).await?;
            }
            Endpoint::AgentServices => return read::agent_services(self, query),
            Endpoint::AgentService(id) => return read::agent_service(self, &id, query).await,
            Endpoint::AgentHealthOfId(id) => return read::agent_health_of_id(self, &id, query),
            Endpoint::AgentHealthOfName(name) => return read::agent_health_of_name(self, &name, query),
            Endpoint::AgentChecks => return read::agent_checks(self, query),
            Endpoint::AgentSelf => {
                return Ok(reply::json(
                    &shapes::agent_self(&self.node, &self.address(), &self.datacenter.name()),
                    query,
                ));
            }
            Endpoint::AgentMembers => {
                return Ok(reply::json(
                    &json!([shapes::member(&self.node, &self.address(), &self.datacenter.name())]),
                    query,
                ));
            }
            Endpoint::ConnectLeaf(service) => {
                let text = "Permission denied: certificates for programs are disabled (weft-sidecar run --connect-leaf); the \
                            sidecar provides mutual TLS for the calls of its program";
                let leaves = self.leaves.as_ref().ok_or_else(|| ApiError::new(StatusCode::FORBIDDEN, text))?;
                return leaves.answer(&service, query).await;
            }
            Endpoint::AgentVersion => return Ok(reply::json(&shapes::version(), query)),
            Endpoint::AgentHost => return Ok(reply::json(&telemetry::host(), query)),
            Endpoint::AgentMetrics => {
                let text = "agent/metrics: not available for a program without a sidecar";
                let metrics = self.metrics.as_ref().ok_or_else(|| ApiError::new(StatusCode::NOT_IMPLEMENTED, text))?;
                return telemetry::metrics(metrics, query);
            }
            // Files are reloaded when they change, and all other settings are on the command line.
            Endpoint::AgentReload => {}
        }
        Ok(reply::done())
    }
}
