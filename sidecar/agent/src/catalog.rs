//! `catalog/register` and `catalog/deregister` for the agent's own node.
//!
//! In Consul they write to the catalog without the agent, which reverts unknown entries at its next anti-entropy run.
//! Here the agent applies them: writes for its own node are registered with it, and existing entries are left
//! unchanged.

use std::time::Duration;

use http::{Method, request};
use serde_json::json;
use weft_proto::v1::Instance;
use weft_registry_api::decode::Fields;
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use crate::Agent;
use crate::checks::state::{MAX_OUTPUT, Status, Thresholds};
use crate::checks::target::Own;
use crate::checks::{Definition, Kind};
use crate::definitions;

/// The check that Consul's servers maintain for each node.
const SERF: &str = "serfHealth";
/// Interval of a written check, which is never probed: it keeps its status until the next write.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Whether a request writes to the catalog.
pub fn is_write(head: &request::Parts) -> bool {
    head.method == Method::PUT && matches!(head.uri.path(), "/v1/catalog/register" | "/v1/catalog/deregister")
}

/// A write for a node.
#[derive(Debug)]
pub enum Write {
    /// `catalog/register`: an instance and checks; without either there is no change.
    Register {
        /// The instance, without its checks.
        service: Option<Box<Instance>>,
        /// Checks with their status and output.
        checks: Vec<Check>,
    },
    /// `catalog/deregister` of a service, by its id.
    Service(String),
    /// `catalog/deregister` of a check.
    Check(String),
}

/// A written check.
#[derive(Debug)]
pub struct Check {
    /// The definition to register.
    pub definition: Definition,
    /// Its output.
    pub output: String,
}

/// Parses a write for the agent's own node `node`; `None`: it is for another node or data center.
///
/// # Errors
/// If the write is invalid, in Consul's words if there are any.
pub fn parse(path: &str, body: &[u8], node: &str, datacenter: &str, own: Own) -> Result<Option<Write>, ApiError> {
    // A body that is not an object is rejected by the control plane, which handles all other writes.
    let Ok(mut fields) = Fields::of_body("the registration", body) else { return Ok(None) };
    let mut text = |key: &str| fields.text(key).unwrap_or_default();
    let (of, dc) = (text("node"), text("datacenter"));
    if !of.eq_ignore_ascii_case(node) || !(dc.is_empty() || dc == datacenter) {
        return Ok(None);
    }
    let write = if path.ends_with("/deregister") { removal(&mut fields, node) } else { entry(&mut fields, own) };
    write.map(Some).map_err(ApiError::bad_request)
}

fn removal(fields: &mut Fields, node: &str) -> Result<Write, String> {
    let (service, check) = (fields.text("serviceid")?, fields.text("checkid")?);
    match (service.as_str(), check.as_str()) {
        ("", "") => Err(format!("the node {node} is alive: it leaves the catalog when its sidecar stops")),
        ("", _) => Ok(Write::Check(check)),
        (_, _) => Ok(Write::Service(service)),
    }
}

fn entry(fields: &mut Fields, own: Own) -> Result<Write, String> {
    definitions::own_address(&fields.text("address")?, own).map_err(|e| e.replace("service address", "address"))?;
    if fields.means("nodemeta") {
        return Err("NodeMeta: the metadata of this node are the labels of its sidecar (--label)".into());
    }
    // Consul's tools write back the fields that they have read.
    for field in ["id", "taggedaddresses", "skipnodeupdate", "locality"] {
        fields.means(field);
    }
    let service =
        fields.object("service", "Service")?.map(|mut given| service(&mut given, own).map(Box::new)).transpose()?;
    let mut given: Vec<Fields> = fields.object("check", "Check")?.into_iter().collect();
    given.extend(fields.objects("checks", "Checks")?);
    let checks = given.into_iter().map(|mut given| check(&mut given)).collect::<Result<Vec<_>, _>>()?;
    Ok(Write::Register { service, checks: checks.into_iter().filter(|c| c.definition.id != SERF).collect() })
}

fn service(fields: &mut Fields, own: Own) -> Result<Instance, String> {
    let name = fields.text("service")?;
    if name.trim().is_empty() {
        return Err("Must provide service name (Service.Service)".into());
    }
    definitions::instance(fields, name, own)
}

fn check(fields: &mut Fields) -> Result<Check, String> {
    let (mut id, mut name) = (fields.text("checkid")?, fields.text("name")?);
    if id.is_empty() {
        id.clone_from(&name);
    }
    if id.is_empty() {
        return Err("Must provide a check's CheckID or Name".into());
    }
    if name.is_empty() {
        name.clone_from(&id);
    }
    let status = fields.text("status")?;
    let initial = match status.as_str() {
        "" => Status::Critical,
        word => Status::parse(word).ok_or("Status for checks must 'passing', 'warning', 'critical'")?,
    };
    let definition = Definition {
        id,
        name,
        notes: fields.text("notes")?,
        service_id: fields.text("serviceid")?,
        kind: Kind::Ttl(FOREVER),
        interval: Duration::ZERO,
        timeout: Duration::ZERO,
        initial,
        thresholds: Thresholds::default(),
        max_output: MAX_OUTPUT,
        deregister_after: None,
    };
    Ok(Check { definition, output: fields.text("output")? })
}

/// Applies a write.
///
/// # Errors
/// The registry's reason for refusing it.
pub async fn apply(agent: &Agent, change: Write, query: &Query) -> Result<Reply, ApiError> {
    let local = &agent.local;
    match change {
        Write::Register { service, checks } => {
            if let Some(service) = service {
                local.register(*service, Vec::new(), false).await?;
            }
            for Check { definition, output } in checks {
                put_check(agent, definition, output).await?;
            }
        }
        // Deregistering a missing entry is not an error.
        Write::Service(id) if local.service(&id).is_err() => {}
        Write::Service(id) => local.deregister(&id).await?,
        Write::Check(id) if kind_of(agent, &id).is_none() => {}
        Write::Check(id) => local.deregister_check(&id).await?,
    }
    Ok(reply::json(&json!(true), query))
}

/// A probed check keeps its probe's result, as Consul's agent would restore it; other checks take the written status.
async fn put_check(agent: &Agent, definition: Definition, output: String) -> Result<(), ApiError> {
    let (id, status) = (definition.id.clone(), definition.initial);
    match kind_of(agent, &id).as_deref() {
        Some("ttl") => {}
        Some(_) => return Ok(()),
        None => agent.local.register_check(definition).await?,
    }
    agent.local.report_ttl(&id, status, output).await
}

fn kind_of(agent: &Agent, check_id: &str) -> Option<String> {
    agent.local.checks().into_iter().find(|check| check.check_id == check_id).map(|check| check.r#type)
}
