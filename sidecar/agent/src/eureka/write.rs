//! Registrations, leases, statuses and metadata, as changes of the agent's services and checks.
//!
//! The rules are those of Netflix's `ApplicationResource`, `InstanceResource` and `AbstractInstanceRegistry`.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use weft_core::clock::unix_ms;
use weft_proto::v1;
use weft_registry_api::error::ApiError;
use weft_registry_api::eureka::instance::{Instance, Status};
use weft_registry_api::eureka::route::Write;
use weft_registry_api::eureka::{MAX_DOCUMENT, lease_id, service_id};
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use super::unknown;
use crate::Agent;
use crate::checks::state::{self, MAX_OUTPUT, Thresholds};
use crate::checks::target::Own;
use crate::checks::{Definition, Kind};

/// Minimum time between the end of a lease and the removal of its instance, as in Consul.
const MIN_DEREGISTER: Duration = Duration::from_secs(60);
const OUT_OF_SERVICE: &str = "OUT_OF_SERVICE by Eureka's API";

/// Serialises changes, each of which starts by reading the current state.
#[derive(Debug, Default)]
pub struct ChangeLock(tokio::sync::Mutex<()>);

/// Applies a change, one at a time.
pub(super) async fn write(agent: &Agent, write: Write, query: &Query, body: &[u8]) -> Result<Reply, ApiError> {
    let _turn = agent.eureka.0.lock().await;
    match write {
        Write::Register(app) => {
            register(agent, &app, body).await?;
            // One client treats any other status as a failure.
            let mut answer = reply::done();
            *answer.status_mut() = StatusCode::NO_CONTENT;
            return Ok(answer);
        }
        Write::Renew(app, id) => renew(agent, &app, &id, query).await?,
        Write::Cancel(app, id) => {
            let (service, _) = find(agent, &app, &id)?;
            agent.local.deregister(&service.service_id).await?;
        }
        Write::Override(app, id) => {
            let value = query.value("value").unwrap_or_default();
            let status = Status::parse(value).map_err(|e| ApiError::bad_request(format!("value: {e}")))?;
            set_override(agent, &app, &id, status, query).await?;
        }
        Write::EndOverride(app, id) => end_override(agent, &app, &id, query).await?,
        Write::Metadata(app, id) => {
            let (mut service, document) = find(agent, &app, &id)?;
            service.meta.extend(query.pairs().map(|(key, value)| (key.to_owned(), value.to_owned())));
            let document = document.map(|document| Instance { last_updated: now(), ..document });
            put(agent, service, document).await?;
        }
    }
    Ok(reply::done())
}

async fn register(agent: &Agent, app: &str, body: &[u8]) -> Result<(), ApiError> {
    let mut given = Instance::of_body(body).map_err(ApiError::bad_request)?;
    given.check(app).map_err(ApiError::bad_request)?;
    // An instance registered by an earlier version has another service id, and keeps it.
    let (service_id, earlier) = match find(agent, app, given.id()) {
        Ok((service, Some(earlier))) => (service.service_id, Some(earlier)),
        _ => (service_id(&given.app, given.id()), None),
    };
    let now = now();
    given.lease.registered = earlier.as_ref().map_or(now, |earlier| earlier.lease.registered);
    given.lease.renewed = now;
    given.last_updated = now;
    if given.last_dirty == 0 {
        given.last_dirty = now;
    }
    let taken_out = given.overridden == Status::OutOfService;
    // A status override survives a registration.
    let overridden = earlier.as_ref().map_or(Status::Unknown, |earlier| earlier.overridden);
    if overridden != Status::Unknown || taken_out {
        given.overridden = overridden;
    }
    if given.effective() == Status::Up && given.lease.up == 0 {
        given.lease.up = earlier.map(|earlier| earlier.lease.up).filter(|up| *up != 0).unwrap_or(now);
    }
    let service = v1::Instance {
        service_id: service_id.clone(),
        service: given.app.to_lowercase(),
        address: address(&given.ip_addr, agent.local.own()).map_err(ApiError::bad_request)?,
        port: u32::from(given.used_port()),
        meta: std::mem::take(&mut given.metadata).into_iter().collect(),
        ..Default::default()
    };
    put(agent, service, Some(given)).await?;
    if taken_out {
        agent.local.maintenance(&service_id, Some(OUT_OF_SERVICE)).await?;
    }
    Ok(())
}

/// A heartbeat. If the instance is unknown, or changed by the client since, the response makes the client register
/// again.
async fn renew(agent: &Agent, app: &str, id: &str, query: &Query) -> Result<(), ApiError> {
    let (service, document) = find(agent, app, id)?;
    let document = document.ok_or_else(|| unknown(app, id))?;
    if dirty(query)?.is_some_and(|theirs| theirs > document.last_dirty) {
        let text = format!("{id:?} of {app:?} has changed since it was registered; register it again");
        return Err(ApiError::new(StatusCode::NOT_FOUND, text));
    }
    lease(agent, &service.service_id, &document).await
}

async fn set_override(agent: &Agent, app: &str, id: &str, status: Status, query: &Query) -> Result<(), ApiError> {
    let (service, document) = find(agent, app, id)?;
    if status == Status::OutOfService {
        return agent.local.maintenance(&service.service_id, Some(OUT_OF_SERVICE)).await;
    }
    let Some(document) = document else {
        if status == Status::Up {
            return agent.local.maintenance(&service.service_id, None).await;
        }
        let text = format!(
            "{id:?} was not registered by Eureka's API: it can be UP or OUT_OF_SERVICE, its checks decide the others"
        );
        return Err(ApiError::bad_request(text));
    };
    let last_dirty = dirty(query)?.unwrap_or_default().max(document.last_dirty);
    let service_id = service.service_id.clone();
    put(agent, service, Some(Instance { overridden: status, last_dirty, last_updated: now(), ..document })).await?;
    agent.local.maintenance(&service_id, None).await
}

async fn end_override(agent: &Agent, app: &str, id: &str, query: &Query) -> Result<(), ApiError> {
    let (service, document) = find(agent, app, id)?;
    let service_id = service.service_id.clone();
    if let Some(mut document) = document {
        if let Some(value) = query.value("value").filter(|value| !value.is_empty()) {
            document.status = Status::parse(value).map_err(|e| ApiError::bad_request(format!("value: {e}")))?;
        }
        document.overridden = Status::Unknown;
        document.last_dirty = dirty(query)?.unwrap_or_default().max(document.last_dirty);
        document.last_updated = now();
        put(agent, service, Some(document)).await?;
    }
    agent.local.maintenance(&service_id, None).await
}

/// The service with that application and id, and its document if it was registered by this API.
fn find(agent: &Agent, app: &str, id: &str) -> Result<(v1::Instance, Option<Instance>), ApiError> {
    let of_app = agent.local.services().into_iter().filter(|service| service.service.eq_ignore_ascii_case(app));
    let documents = of_app.map(|service| {
        let document = serde_json::from_str(&service.eureka).ok().and_then(|map| Instance::of(&map).ok());
        (service, document)
    });
    let (own, others): (Vec<_>, Vec<_>) = documents.partition(|(_, document)| document.is_some());
    let own = own.into_iter().find(|(_, document)| document.as_ref().is_some_and(|document| document.id() == id));
    let registration = own.or_else(|| others.into_iter().find(|(service, _)| service.service_id == id));
    registration.ok_or_else(|| unknown(app, id))
}

/// Registers a service and, with a document, its lease, which starts again.
async fn put(agent: &Agent, mut service: v1::Instance, document: Option<Instance>) -> Result<(), ApiError> {
    let Some(document) = document else { return agent.local.register(service, Vec::new(), false).await };
    service.eureka = serde_json::Value::Object(document.json()).to_string();
    if service.eureka.len() > MAX_DOCUMENT {
        return Err(ApiError::bad_request(format!(
            "the instance is too large: at most {MAX_DOCUMENT} bytes without its metadata"
        )));
    }
    let check = lease_check(&service, &document);
    let service_id = service.service_id.clone();
    agent.local.register(service, vec![check], false).await?;
    lease(agent, &service_id, &document).await
}

/// Renews the lease and sets its status.
async fn lease(agent: &Agent, service_id: &str, document: &Instance) -> Result<(), ApiError> {
    let status = document.effective();
    agent.local.renew(&lease_id(service_id), health(status), status.as_str()).await
}

fn health(status: Status) -> state::Status {
    if status == Status::Up { state::Status::Passing } else { state::Status::Critical }
}

fn lease_check(service: &v1::Instance, document: &Instance) -> Definition {
    let duration = Duration::from_secs(document.lease.duration_s.into());
    Definition {
        id: lease_id(&service.service_id),
        name: format!("Eureka lease of '{}'", service.service),
        notes: String::new(),
        service_id: service.service_id.clone(),
        kind: Kind::Ttl(duration),
        interval: Duration::ZERO,
        timeout: Duration::ZERO,
        initial: health(document.effective()),
        thresholds: Thresholds::default(),
        max_output: MAX_OUTPUT,
        // Critical from the end of the lease; the instance is removed three durations after the last heartbeat.
        deregister_after: Some((2 * duration).max(MIN_DEREGISTER)),
    }
}

/// The address to register for `given`; empty: the agent's own. A program may know only its host name, or its loopback
/// address.
fn address(given: &str, own: Own) -> Result<String, String> {
    match given.trim().parse::<IpAddr>() {
        Ok(ip) if ip.is_loopback() => Ok(String::new()),
        Ok(ip) if !own.has(ip) => Err(format!(
            "Invalid ip address: {ip} is not an address of {own}; each instance must register from its own host"
        )),
        Ok(ip) => Ok(ip.to_string()),
        Err(_) => Ok(String::new()),
    }
}

/// Time of the client's last change, from the query.
fn dirty(query: &Query) -> Result<Option<u64>, ApiError> {
    let given = query.value("lastDirtyTimestamp").filter(|text| !text.is_empty() && *text != "null");
    let number = |text: &str| {
        text.parse().map_err(|_| ApiError::bad_request(format!("lastDirtyTimestamp: {text:?} is not a number")))
    };
    given.map(number).transpose()
}

/// Milliseconds since 1970.
fn now() -> u64 {
    unix_ms(SystemTime::now())
}
