//! Answers to reads: of the mesh by way of the catalog, and of this agent.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use weft_proto::v1::CatalogInstance;

use super::catalog::{Found, Question};
use super::definitions::Service;
use super::filter::Filter;
use super::refused::Refused;
use super::route::Query;
use super::{Agent, Answered, shapes};

/// `health/service/:name`
pub async fn health_service(agent: &Agent, name: &str, query: &Query) -> Result<Answered, Refused> {
    let passing = query.passing().map_err(Refused::bad)?;
    let found = instances(agent, name, query).await?;
    let serves = |i: &&CatalogInstance| !passing || shapes::all_checks(i).all(|c| c.status == "passing");
    let items = filtered(selected(&found, query).filter(serves).map(shapes::health_item), query)?;
    Ok(indexed(&Value::Array(items), &found, query))
}

/// `health/checks/:name`
pub async fn health_checks(agent: &Agent, name: &str, query: &Query) -> Result<Answered, Refused> {
    let found = instances(agent, name, query).await?;
    let items = filtered(selected(&found, query).flat_map(shapes::service_checks), query)?;
    Ok(indexed(&Value::Array(items), &found, query))
}

/// `catalog/service/:name`
pub async fn catalog_service(agent: &Agent, name: &str, query: &Query) -> Result<Answered, Refused> {
    let found = instances(agent, name, query).await?;
    let items = filtered(selected(&found, query).map(shapes::catalog_item), query)?;
    Ok(indexed(&Value::Array(items), &found, query))
}

/// `catalog/services`
pub async fn catalog_services(agent: &Agent, query: &Query) -> Result<Answered, Refused> {
    if query.value("filter").is_some_and(|text| !text.is_empty()) {
        return Err(Refused::bad("the query parameter \"filter\" is not supported for catalog/services"));
    }
    let found = services(agent, query).await?;
    let none = query.has("node-meta");
    let items = found.answer.services.iter().filter(|_| !none).map(|s| (s.name.clone(), json!(s.tags)));
    Ok(indexed(&Value::Object(items.collect()), &found, query))
}

/// `catalog/nodes`: the nodes of all services, and this one.
pub async fn catalog_nodes(agent: &Agent, query: &Query) -> Result<Answered, Refused> {
    let found = services(agent, query).await?;
    let mut nodes = BTreeMap::from([(agent.node.clone(), agent.address())]);
    for service in &found.answer.services {
        let instances = agent.catalog.ask(Question::Instances(service.name.clone()), None).await?;
        let of = instances.answer.instances.iter().map(|i| (i.node.clone(), i.node_address.clone()));
        nodes.extend(of);
    }
    let none = query.has("node-meta");
    let items = nodes.iter().filter(|_| !none).map(|(name, address)| shapes::node(name, address));
    Ok(indexed(&Value::Array(filtered(items, query)?), &found, query))
}

/// `agent/services`
pub fn agent_services(agent: &Agent, query: &Query) -> Result<Answered, Refused> {
    let services = agent.local.services();
    let items = filtered(services.iter().map(shapes::agent_service), query)?;
    Ok(json_answer(&by(items, "ID"), query))
}

/// `agent/service/:id`, which blocks on a hash instead of an index.
pub async fn agent_service(agent: &Agent, id: &str, query: &Query) -> Result<Answered, Refused> {
    let known = query.value("hash").filter(|hash| !hash.is_empty());
    let wait = Query::parse(&format!("index=1&wait={}", query.value("wait").unwrap_or_default()));
    let wait = wait.block().map_err(Refused::bad)?.map_or(Duration::ZERO, |(_, wait)| wait);
    let end = tokio::time::Instant::now() + wait;
    let mut changed = agent.local.changed();
    loop {
        let item = shapes::agent_service(&agent.local.service(id)?);
        let hash = shapes::short_hash(item.to_string().as_bytes());
        let waited = known != Some(hash.as_str())
            || !tokio::time::timeout_at(end, changed.changed()).await.is_ok_and(|open| open.is_ok());
        if waited {
            let mut item = item;
            if let Some(map) = item.as_object_mut() {
                map.insert("ContentHash".into(), json!(hash));
            }
            let mut answer = json_answer(&item, query);
            set(&mut answer, "x-consul-contenthash", &hash);
            return Ok(answer);
        }
    }
}

/// `agent/checks`
pub fn agent_checks(agent: &Agent, query: &Query) -> Result<Answered, Refused> {
    let services = agent.local.services();
    let items = agent.local.checks().into_iter().map(|check| {
        let of = services.iter().find(|s| s.instance.service_id == check.service_id);
        let (name, tags) = of.map_or(("", &[][..]), |s| (&s.instance.service, &s.instance.tags));
        shapes::check(&agent.node, &check, name, tags, (0, 0))
    });
    Ok(json_answer(&by(filtered(items, query)?, "CheckID"), query))
}

/// `agent/health/service/id/:id`: the status says how the service fares, for those who read no body.
pub fn agent_health_of_id(agent: &Agent, id: &str, query: &Query) -> Result<Answered, Refused> {
    let service = agent.local.service(id)?;
    let (status, item) = agent_health(agent, &service);
    Ok(health_answer(status, &item, query))
}

/// `agent/health/service/name/:name`: of all of that name here, and the worst of them.
pub fn agent_health_of_name(agent: &Agent, name: &str, query: &Query) -> Result<Answered, Refused> {
    let of_name = agent.local.services().into_iter().filter(|s| s.instance.service == name);
    let (statuses, items): (Vec<_>, Vec<_>) = of_name.map(|service| agent_health(agent, &service)).unzip();
    let worst = HEALTH.into_iter().rfind(|status| statuses.contains(status));
    let worst = worst.ok_or_else(|| Refused::new(StatusCode::NOT_FOUND, format!("no service {name:?} is here")))?;
    Ok(health_answer(worst, &Value::Array(items), query))
}

/// Best first.
const HEALTH: [&str; 4] = ["passing", "warning", "critical", "maintenance"];

fn agent_health(agent: &Agent, service: &Service) -> (&'static str, Value) {
    let instance = &service.instance;
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
    (status, json!({ "AggregatedStatus": status, "Service": shapes::agent_service(service), "Checks": checks }))
}

fn health_answer(status: &str, items: &Value, query: &Query) -> Answered {
    let mut answer = match query.value("format") {
        Some("text") => {
            let mut answer: Answered = Response::new(status.to_owned().into());
            answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            answer
        }
        _ => json_answer(items, query),
    };
    *answer.status_mut() = match status {
        "passing" => StatusCode::OK,
        "warning" => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    answer
}

async fn instances(agent: &Agent, name: &str, query: &Query) -> Result<Found, Refused> {
    in_scope(query)?;
    let block = query.block().map_err(Refused::bad)?;
    agent.catalog.ask(Question::Instances(name.to_owned()), block).await
}

async fn services(agent: &Agent, query: &Query) -> Result<Found, Refused> {
    in_scope(query)?;
    let block = query.block().map_err(Refused::bad)?;
    agent.catalog.ask(Question::Services, block).await
}

/// What would change the answer and is not supported is refused: an answer that ignored it would be wrong.
fn in_scope(query: &Query) -> Result<(), Refused> {
    if let Some(dc) = query.value("dc").filter(|dc| !dc.is_empty() && *dc != shapes::DATACENTER) {
        tracing::debug!(dc, "a query for another datacenter");
        return Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "No path to datacenter"));
    }
    for key in ["peer", "sg"] {
        if query.value(key).is_some_and(|value| !value.is_empty()) {
            return Err(Refused::bad(format!("the query parameter {key:?} is not supported yet")));
        }
    }
    for key in ["ns", "partition"] {
        if query.value(key).is_some_and(|value| !value.is_empty() && value != "default") {
            let text = format!("Invalid query parameter: {key:?} - the token decides the namespace that is read");
            return Err(Refused::bad(text));
        }
    }
    Ok(())
}

/// The items that the query's `filter` wants.
fn filtered(items: impl Iterator<Item = Value>, query: &Query) -> Result<Vec<Value>, Refused> {
    let Some(text) = query.value("filter").filter(|text| !text.is_empty()) else { return Ok(items.collect()) };
    let filter = Filter::parse(text).map_err(Refused::bad)?;
    let wanted = items.filter_map(|item| match filter.wants(&item) {
        Ok(wanted) => wanted.then_some(Ok(item)),
        Err(problem) => Some(Err(Refused::bad(problem))),
    });
    wanted.collect()
}

/// Items as an object, each under its own `key`.
fn by(items: Vec<Value>, key: &str) -> Value {
    Value::Object(items.into_iter().map(|item| (item[key].as_str().unwrap_or_default().to_owned(), item)).collect())
}

/// Instances that have every tag asked for.
fn selected<'a>(found: &'a Found, query: &'a Query) -> impl Iterator<Item = &'a CatalogInstance> {
    // No node has metadata.
    let none = query.has("node-meta");
    found.answer.instances.iter().filter(move |found| {
        let tags = found.instance.as_ref().map_or(&[][..], |i| &i.tags);
        !none && query.values("tag").all(|wanted| tags.iter().any(|tag| tag.eq_ignore_ascii_case(wanted)))
    })
}

/// An answer with the headers of Consul's indexed reads.
fn indexed(body: &Value, found: &Found, query: &Query) -> Answered {
    let mut answer = json_answer(body, query);
    index_headers(&mut answer, found.answer.index, query);
    if let Some(age) = found.age {
        set(&mut answer, "x-cache", "HIT");
        set(&mut answer, "age", &age.as_secs().to_string());
    }
    answer
}

/// Adds them; they are due on refusals too, where a client takes their absence for a broken server.
pub fn index_headers(answer: &mut Answered, index: u64, query: &Query) {
    let consistency = match (query.has("stale"), query.has("consistent")) {
        (true, _) => "stale",
        (_, true) => "consistent",
        _ => "leader",
    };
    set(answer, "x-consul-index", &index.max(1).to_string());
    set(answer, "x-consul-knownleader", "true");
    set(answer, "x-consul-lastcontact", "0");
    set(answer, "x-consul-effective-consistency", consistency);
}

/// An answer of JSON.
pub fn json_answer(body: &Value, query: &Query) -> Answered {
    let text = if query.has("pretty") { format!("{body:#}\n") } else { body.to_string() };
    let mut answer = Response::new(text.into());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn set(answer: &mut Answered, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(HeaderName::from_static(name), value);
    }
}
