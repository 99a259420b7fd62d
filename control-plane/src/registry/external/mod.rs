//! Programs without a sidecar that register at the control plane, which acts as the Consul agent on their host.
//!
//! A request from an address belongs to the node of that address, in the namespace of its token: two hosts whose
//! services have one id are separate, and a program cannot register another host's address. An agent runs here for each
//! such node; its checks go to that address only, whatever a request names. The instances have no identity: the mesh
//! speaks plaintext to them.
//!
//! [`direct`] writes registrations to the state, `lapses` detects that many programs are silent at once, which points
//! to the control plane. Definitions survive a restart, in a file for each node.

mod catalog;
mod direct;
mod lapses;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode, request};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use weft_agent::checks::Sockets;
use weft_agent::checks::target::Own;
use weft_agent::datacenter::Datacenter;
use weft_agent::entry::Task;
use weft_agent::forward::{Forwarder, Source};
use weft_agent::local::Local;
use weft_agent::route::{self, Endpoint, Missed};
use weft_agent::{Agent, definitions};
use weft_listen::server::Answers;
use weft_proto::v1::{Answer, Question};
use weft_registry_api::error::ApiError;
use weft_registry_api::eureka::instance::Instance as Document;
use weft_registry_api::eureka::route::Write;
use weft_registry_api::eureka::service_id;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};
use weft_registry_api::shapes;

use crate::discovery::Discovery;
use crate::identity::caller::Caller;
use crate::state::Mesh;
use direct::Direct;
use lapses::Lapses;

/// Bound on the hosts that programs register from.
const MAX_NODES: usize = 1000;
/// Nodes that are handled concurrently.
const AT_ONCE: usize = 32;
const NO_CHECKS: &str = "a host without a sidecar has no checks and no maintenance of its own, because programs with several tokens \
                         may be on it: name a service (ServiceID)";

/// All agents of external programs.
pub struct Externals {
    mesh: Arc<Mesh>,
    discovery: Arc<Discovery>,
    /// Folder of the files; `None`: registrations are refused.
    dir: Option<PathBuf>,
    nodes: Mutex<HashMap<String, Arc<Node>>>,
    lapses: Arc<Lapses>,
}

struct Node {
    address: IpAddr,
    agent: Agent,
    direct: Arc<Direct>,
    file: PathBuf,
    tasks: Mutex<Vec<Task>>,
}

/// Connections to one address, whatever the check names.
struct Outward(IpAddr);

impl Sockets for Outward {
    fn connect(&self, to: SocketAddr, timeout: Duration) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(async move {
            if to.ip() != self.0 {
                let text = format!("{to} is not an address of {}", self.own());
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
            }
            let late = || io::Error::from(io::ErrorKind::TimedOut);
            tokio::time::timeout(timeout, TcpStream::connect(to)).await.map_err(|_| late())?
        })
    }

    fn own(&self) -> Own {
        Own::At(self.0)
    }
}

/// An upstream without answers: other requests are answered before the agent.
struct NoUpstream;

impl Source for NoUpstream {
    fn ask(&self, _: Question) -> BoxFuture<'_, Result<Answer, tonic::Status>> {
        Box::pin(std::future::ready(Err(tonic::Status::unimplemented(
            "an external program's agent forwards no requests",
        ))))
    }
}

/// The node of an address in a namespace.
fn node_name(address: IpAddr, namespace: &str) -> String {
    let address = address.to_canonical().to_string().replace(['.', ':'], "-");
    if namespace == "default" { format!("ext-{address}") } else { format!("ext-{address}.{namespace}") }
}

/// Whether a node's name is one of those for programs here.
pub fn is_node(name: &str) -> bool {
    of_node_name(name).is_some()
}

/// The address and namespace of a node.
fn of_node_name(name: &str) -> Option<(IpAddr, &str)> {
    let name = name.strip_prefix("ext-")?;
    let (address, namespace) = name.split_once('.').unwrap_or((name, "default"));
    let v4 = address.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::from);
    let address = v4.or_else(|| address.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::from))?;
    Some((address, namespace))
}

impl Externals {
    /// Restores the registrations in `dir`; without a folder registrations are refused.
    ///
    /// # Errors
    /// If the folder cannot be created or read.
    pub async fn open(mesh: Arc<Mesh>, discovery: Arc<Discovery>, dir: Option<PathBuf>) -> Result<Arc<Externals>> {
        let externals = Externals { mesh, discovery, dir, nodes: Mutex::default(), lapses: Arc::default() };
        if let Some(dir) = &externals.dir {
            let context = || format!("cannot use the folder {}", dir.display());
            std::fs::create_dir_all(dir).with_context(context)?;
            for entry in std::fs::read_dir(dir).with_context(context)? {
                let path = entry.with_context(context)?.path();
                let is_json = path.extension().is_some_and(|extension| extension == "json");
                let name = path.file_stem().and_then(|name| name.to_str()).filter(|_| is_json);
                let Some((address, namespace)) = name.and_then(of_node_name) else { continue };
                match externals.node(address, namespace) {
                    Ok(node) => {
                        node.direct.restoring.store(true, Ordering::Relaxed);
                        node.agent.local.restore(None).await;
                        node.direct.restored().await;
                    }
                    Err(error) => tracing::warn!("{} is left out: {}", path.display(), error.text),
                }
            }
        }
        Ok(Arc::new(externals))
    }

    /// For the life of the process: keeps the leases of all nodes, and removes nodes that have no registrations or
    /// whose address has a sidecar now.
    pub async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.mesh.lease / 3).await;
            self.keep_once().await;
        }
    }

    async fn keep_once(&self) {
        let nodes: Vec<(String, Arc<Node>)> =
            self.lock().iter().map(|(name, node)| (name.clone(), node.clone())).collect();
        let keeping = futures::stream::iter(nodes).map(|(name, node)| async move {
            let certified = self.mesh.read_nodes(|nodes| {
                nodes.at(node.address).any(|(_, other)| !other.identity.is_empty() && other.alive.is_some())
            });
            if certified {
                tracing::warn!(node = name, "its address has a sidecar now: removing the registrations without one");
                self.drop_node(&name, &node).await;
            } else if !node.direct.keep().await {
                drop(node);
                self.drop_idle(&name).await;
            }
        });
        keeping.buffer_unordered(AT_ONCE).collect::<()>().await;
    }

    async fn drop_node(&self, name: &str, node: &Node) {
        self.lock().remove(name);
        node.tasks.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // After this, requests in progress register nothing and do not write the file any more.
        node.agent.local.close().await;
        node.direct.leave().await;
        if let Err(e) = std::fs::remove_file(&node.file)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {e}", node.file.display());
        }
    }

    /// Removes a node without registrations, unless a request uses it.
    async fn drop_idle(&self, name: &str) {
        let node = {
            let mut nodes = self.lock();
            let idle = |node: &Arc<Node>| Arc::strong_count(node) == 1 && node.agent.local.services().is_empty();
            if nodes.get(name).is_some_and(idle) { nodes.remove(name) } else { None }
        };
        if let Some(node) = node {
            self.drop_node(name, &node).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node of an address, created if missing.
    fn node(&self, address: IpAddr, namespace: &str) -> Result<Arc<Node>, ApiError> {
        let Some(dir) = &self.dir else {
            let text = "Permission denied: this control plane accepts no registrations (--allow-external); register with \
                        the sidecar beside the service";
            return Err(ApiError::new(StatusCode::FORBIDDEN, text));
        };
        let name = node_name(address, namespace);
        let mut nodes = self.lock();
        if let Some(node) = nodes.get(&name) {
            return Ok(node.clone());
        }
        if nodes.len() >= MAX_NODES {
            let text = format!("programs of {MAX_NODES} hosts are registered without a sidecar already");
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, text));
        }
        let direct =
            Direct::new(self.mesh.clone(), self.discovery.clone(), &name, namespace, address, self.lapses.clone());
        let direct = Arc::new(direct);
        let file = dir.join(format!("{name}.json"));
        let local = Local::new(direct.clone(), Arc::new(Outward(address)), Some(file.clone()));
        self.lapses.watch(&local);
        let tasks = [
            Task(tokio::spawn(local.clone().report()).abort_handle()),
            Task(tokio::spawn(local.clone().keep_saved()).abort_handle()),
        ];
        let agent = Agent {
            datacenter: Datacenter::new(&self.mesh.read(|world| world.datacenter().to_owned())),
            local,
            mesh: Forwarder::new(NoUpstream),
            node: name.clone(),
            leaves: None,
            metrics: None,
            eureka: Default::default(),
            towards: (address, 9).into(),
            address: None,
            names: Default::default(),
        };
        let node = Arc::new(Node { address, agent, direct, file, tasks: Mutex::new(tasks.into()) });
        nodes.insert(name, node.clone());
        Ok(node)
    }

    /// Answers the API of agents.
    pub async fn answer(&self, caller: &Caller, head: &request::Parts, body: Bytes) -> Reply {
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let reply = match route::route(&head.method, head.uri.path()) {
            Ok(endpoint) if head.method == Method::GET => self.read(caller, &endpoint, head, &query).await,
            Ok(endpoint) => self.write(caller, &endpoint, head, body).await,
            Err(Missed::Method(allowed)) => return reply::wrong_method(&head.method, allowed),
            Err(Missed::Elsewhere | Missed::Unsupported | Missed::NoPage) => {
                let text = format!("{} of Consul's API is not supported by this mesh", head.uri.path());
                Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, text))
            }
        };
        reply.unwrap_or_else(|error| reply::error(&error, head.method == Method::GET, &query))
    }

    /// Handles a write of Eureka's API.
    pub async fn eureka(&self, caller: &Caller, write: &Write, head: &request::Parts, body: Bytes) -> Reply {
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let node = self.eureka_node(caller, write, &body);
        match node {
            Ok(node) => weft_agent::eureka::answer(&node.agent, head, &query, body).await,
            Err(error) => weft_registry_api::eureka::error_reply(&error),
        }
    }

    /// The node of a write, if the caller may make it.
    fn eureka_node(&self, caller: &Caller, write: &Write, body: &[u8]) -> Result<Arc<Node>, ApiError> {
        reachable(caller)?;
        let (app, id) = match write {
            // The document must be of this application; its service id may be in use by another.
            Write::Register(app) => {
                caller.register(&app.to_lowercase())?;
                let given = Document::of_body(body).map_err(ApiError::bad_request)?;
                let node = self.node(caller.address, &caller.namespace)?;
                if let Ok(held) = node.agent.local.service(&service_id(app, given.id())) {
                    caller.register(&held.service)?;
                }
                return Ok(node);
            }
            Write::Renew(app, id)
            | Write::Cancel(app, id)
            | Write::Override(app, id)
            | Write::EndOverride(app, id)
            | Write::Metadata(app, id) => (app, id),
        };
        caller.register(&app.to_lowercase())?;
        let node = self.lock().get(&node_name(caller.address, &caller.namespace)).cloned();
        // Eureka's clients register after this response.
        let unknown =
            || ApiError::new(StatusCode::NOT_FOUND, format!("no instance {id:?} of {app:?} is registered here"));
        node.ok_or_else(unknown)
    }

    async fn read(
        &self,
        caller: &Caller,
        endpoint: &Endpoint,
        head: &request::Parts,
        query: &Query,
    ) -> Result<Reply, ApiError> {
        let name = node_name(caller.address, &caller.namespace);
        let address = caller.address.to_string();
        let datacenter = self.mesh.read(|world| world.datacenter().to_owned());
        let node = self.lock().get(&name).cloned();
        let shown = |service: &str| {
            if caller.rights.read(service) { Ok(()) } else { Err(caller.denied("service:read", service)) }
        };
        match endpoint {
            Endpoint::AgentSelf => return Ok(reply::json(&shapes::agent_self(&name, &address, &datacenter), query)),
            Endpoint::AgentMembers => {
                return Ok(reply::json(&json!([shapes::member(&name, &address, &datacenter)]), query));
            }
            Endpoint::AgentHost | Endpoint::AgentMetrics => {
                let text = format!("{} needs a sidecar, and this program has none", head.uri.path());
                return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, text));
            }
            Endpoint::AgentVersion => return Ok(reply::json(&shapes::version(), query)),
            Endpoint::AgentService(id) | Endpoint::AgentHealthOfId(id) => {
                let node = node.as_ref().ok_or_else(|| ApiError::unknown_service(id))?;
                shown(&node.agent.local.service(id)?.service)?;
            }
            Endpoint::AgentHealthOfName(service) => shown(service)?,
            _ => {}
        }
        let Some(node) = node else {
            return match endpoint {
                Endpoint::AgentHealthOfName(service) => {
                    Err(ApiError::new(StatusCode::NOT_FOUND, format!("no service {service:?} is registered here")))
                }
                _ => Ok(reply::json(&json!({}), query)),
            };
        };
        let reply = node.agent.answer((caller.address, 0).into(), of(head, Bytes::new())).await;
        if !matches!(endpoint, Endpoint::AgentServices | Endpoint::AgentChecks) || !caller.is_narrowed() {
            return Ok(reply);
        }
        let Ok(Value::Object(mut items)) = serde_json::from_slice(reply.body()) else { return Ok(reply) };
        let service = |item: &Value| item["Service"].as_str().or(item["ServiceName"].as_str()).map(str::to_owned);
        items.retain(|_, item| service(item).is_some_and(|service| caller.rights.read(&service)));
        Ok(reply::json(&Value::Object(items), query))
    }

    async fn write(
        &self,
        caller: &Caller,
        endpoint: &Endpoint,
        head: &request::Parts,
        body: Bytes,
    ) -> Result<Reply, ApiError> {
        reachable(caller)?;
        let own = Own::At(caller.address);
        // The written service, checked before anything is created for it.
        let (new, written) = match endpoint {
            Endpoint::RegisterService => {
                let (service, _) = definitions::service(&body, own).map_err(ApiError::bad_request)?;
                caller.register(&service.service)?;
                (true, Target::Service(service.service_id))
            }
            Endpoint::DeregisterService(id) => (false, Target::Service(id.clone())),
            Endpoint::Maintenance(id) => (false, Target::Service(id.clone())),
            Endpoint::RegisterCheck => {
                let check = definitions::check(&body, own).map_err(ApiError::bad_request)?;
                (false, Target::CheckOf { id: check.id, service_id: check.service_id })
            }
            Endpoint::DeregisterCheck(id) | Endpoint::ReportCheck(_, id) | Endpoint::UpdateCheck(id) => {
                (false, Target::Check(id.clone()))
            }
            // Its definitions exist here only.
            Endpoint::AgentReload => return Ok(reply::done()),
            _ => return Err(ApiError::bad_request("not a write endpoint")),
        };
        // Without --allow-external this returns the error.
        let node = self.node(caller.address, &caller.namespace)?;
        let local = &node.agent.local;
        let of_check = |id: &str| local.checks().into_iter().find(|check| check.check_id == id).map(|c| c.service_id);
        let mut services = Vec::new();
        match &written {
            Target::Service(id) | Target::CheckOf { service_id: id, .. } if id.is_empty() => {
                return Err(ApiError::bad_request(NO_CHECKS));
            }
            Target::Service(id) if new => services.extend(local.service(id).ok()),
            Target::Service(id) => services.push(local.service(id)?),
            Target::CheckOf { id, service_id } => {
                services.push(local.service(service_id)?);
                services.extend(of_check(id).and_then(|held| local.service(&held).ok()));
            }
            Target::Check(id) => {
                let service = of_check(id).ok_or_else(|| ApiError::unknown_check(id))?;
                services.push(local.service(&service)?);
            }
        }
        for service in services {
            caller.register(&service.service)?;
        }
        Ok(node.agent.answer((caller.address, 0).into(), of(head, body)).await)
    }
}

/// # Errors
/// If other hosts could not reach the registered services at the caller's address.
fn reachable(caller: &Caller) -> Result<(), ApiError> {
    if !caller.address.is_loopback() {
        return Ok(());
    }
    let text = "this request comes from loopback, where the mesh cannot reach the service: register through an address of \
                --http-listen that others reach";
    Err(ApiError::bad_request(text))
}

/// The object that a request writes.
enum Target {
    /// A service, by its id.
    Service(String),
    /// A check, by its id.
    Check(String),
    /// A check that becomes one of a service.
    CheckOf { id: String, service_id: String },
}

fn of(head: &request::Parts, body: Bytes) -> Request<Bytes> {
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    request
}
