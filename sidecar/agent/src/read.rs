//! Responses to reads of this agent.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use weft_proto::v1::Instance;
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply, by, filtered};

use super::{Agent, shapes};

/// `agent/services`
pub fn agent_services(agent: &Agent, query: &Query) -> Result<Reply, ApiError> {
    let (services, datacenter) = (agent.local.services(), agent.datacenter.name());
    let items = filtered(services.iter().map(|service| shapes::agent_service(service, &datacenter)), query)?;
    Ok(reply::json(&by(items, "ID"), query))
}

/// `agent/service/:id`, which blocks on a hash instead of an index.
pub async fn agent_service(agent: &Agent, id: &str, query: &Query) -> Result<Reply, ApiError> {
    let known = query.value("hash").filter(|hash| !hash.is_empty());
    let wait = Query::parse(&format!("index=1&wait={}", query.value("wait").unwrap_or_default()));
    let wait = wait.block().map_err(ApiError::bad_request)?.map_or(Duration::ZERO, |(_, wait)| wait);
    let end = tokio::time::Instant::now() + wait;
    let mut changed = agent.local.changed();
    loop {
        let item = shapes::agent_service(&agent.local.service(id)?, &agent.datacenter.name());
        let hash = shapes::short_hash(item.to_string().as_bytes());
        let waited = known != Some(hash.as_str())
            || !tokio::time::timeout_at(end, changed.changed()).await.is_ok_and(|open| open.is_ok());
        if waited {
            let mut item = item;
            if let Some(map) = item.as_object_mut() {
                map.insert("ContentHash".into(), json!(hash));
            }
            let mut answer = reply::json(&item, query);
            reply::set(&mut answer, "x-consul-contenthash", &hash);
            return Ok(answer);
        }
    }
}

/// `agent/checks`
pub fn agent_checks(agent: &Agent, query: &Query) -> Result<Reply, ApiError> {
    let services = agent.local.services();
    let items = agent.local.checks().into_iter().map(|check| {
        let of = services.iter().find(|s| s.service_id == check.service_id);
        let (name, tags) = of.map_or(("", &[][..]), |s| (&s.service, &s.tags));
        shapes::check(&agent.node, &check, name, tags, (0, 0))
    });
    Ok(reply::json(&by(filtered(items, query)?, "CheckID"), query))
}

/// `agent/health/service/id/:id`: the status code reflects the service's health, for clients that ignore the body.
pub fn agent_health_of_id(agent: &Agent, id: &str, query: &Query) -> Result<Reply, ApiError> {
    let service = agent.local.service(id)?;
    let (status, item) = agent_health(agent, &service);
    Ok(health_answer(status, &item, query))
}

/// `agent/health/service/name/:name`: all services with this name, and the worst health among them.
pub fn agent_health_of_name(agent: &Agent, name: &str, query: &Query) -> Result<Reply, ApiError> {
    let of_name = agent.local.services().into_iter().filter(|s| s.service == name);
    let (statuses, items): (Vec<_>, Vec<_>) = of_name.map(|service| agent_health(agent, &service)).unzip();
    let worst = HEALTH.into_iter().rfind(|status| statuses.contains(status));
    let worst =
        worst.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, format!("no service {name:?} is registered here")))?;
    Ok(health_answer(worst, &Value::Array(items), query))
}

/// Best first.
const HEALTH: [&str; 4] = ["passing", "warning", "critical", "maintenance"];

fn agent_health(agent: &Agent, instance: &Instance) -> (&'static str, Value) {
    let checks = agent.local.checks().into_iter();
    let checks: Vec<_> = checks.filter(|c| c.service_id == instance.service_id || c.service_id.is_empty()).collect();
    let worst = checks.iter().filter_map(|check| {
        let status = if check.r#type == "maintenance" { "maintenance" } else { check.status.as_str() };
        HEALTH.iter().position(|known| *known == status)
    });
    let status = HEALTH[worst.max().unwrap_or(0)];
    let checks = checks.iter().map(|check| {
        let own = !check.service_id.is_empty();
        let (name, tags) = if own { (instance.service.as_str(), &instance.tags[..]) } else { ("", &[][..]) };
        shapes::check(&agent.node, check, name, tags, (0, 0))
    });
    let checks: Vec<Value> = checks.collect();
    (
        status,
        json!({ "AggregatedStatus": status, "Service": shapes::agent_service(instance, &agent.datacenter.name()), "Checks": checks }),
    )
}

fn health_answer(status: &str, items: &Value, query: &Query) -> Reply {
    let mut answer = match query.value("format") {
        Some("text") => reply::text(status.to_owned()),
        _ => reply::json(items, query),
    };
    *answer.status_mut() = match status {
        "passing" => StatusCode::OK,
        "warning" => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    answer
}
