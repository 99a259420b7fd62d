//! Answers to reads of the catalog and of health.

pub(in crate::api::consul) mod coordinates;
pub(in crate::api::consul) mod near;
pub(in crate::api::consul) mod select;
pub(in crate::api::consul) mod shapes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};
use weft_registry_api::error::ApiError;
use weft_registry_api::filter::Filter;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply, filtered};

use super::block::block;
use super::route::Endpoint;
use super::sessions::SessionFilter;
use super::{Caller, Consul, authorize, config, events, pairs, queries, sessions};
use crate::state::Topic;
use select::{Row, rows};
use weft_policy::fqdn;
use weft_world::{Instance, World};

/// Answers an endpoint.
pub(super) async fn read(
    consul: &Consul,
    caller: &Caller,
    endpoint: Endpoint,
    query: &Query,
) -> Result<Reply, ApiError> {
    let reader = Reader { consul, caller, query };
    let (body, index) = match endpoint {
        Endpoint::HealthService(service) => reader.health_service(&service, Wanting::All).await?,
        Endpoint::HealthConnect(service) => reader.health_service(&service, Wanting::Mtls).await?,
        Endpoint::HealthChecks(service) => reader.health_checks(&service).await?,
        Endpoint::HealthNode(node) => reader.health_node(&node).await?,
        Endpoint::HealthState(state) => reader.health_state(&state).await?,
        Endpoint::CatalogService(service) => reader.catalog_service(&service, Wanting::All).await?,
        Endpoint::CatalogConnect(service) => reader.catalog_service(&service, Wanting::Mtls).await?,
        Endpoint::CatalogServices => reader.catalog_services().await?,
        Endpoint::CatalogNodes => reader.catalog_nodes().await?,
        Endpoint::CatalogNode(node) => reader.catalog_node(&node).await?,
        Endpoint::CatalogNodeServices(node) => reader.catalog_node_services(&node).await?,
        Endpoint::CoordinateNodes => reader.coordinate_nodes().await?,
        Endpoint::CoordinateNode(node) => reader.coordinate_node(&node).await?,
        Endpoint::CoordinateDatacenters => {
            return Ok(reply::json(&coordinates::datacenters(consul.federation.datacenters()), query));
        }
        Endpoint::Intentions => return Ok(reply::indexed(&json!([]), 1, query)),
        Endpoint::IntentionsMatch => return authorize::matching(query),
        Endpoint::IntentionsCheck => return authorize::check(query),
        Endpoint::IntentionExact => return Err(ApiError::new(StatusCode::NOT_FOUND, "Intention not found")),
        Endpoint::ConfigEntries(kind) => return config::read(consul, caller, &kind, None, query).await,
        Endpoint::ConfigEntry(kind, name) => return config::read(consul, caller, &kind, Some(&name), query).await,
        Endpoint::CatalogDatacenters => return Ok(reply::json(&json!(consul.federation.datacenters()), query)),
        Endpoint::StatusLeader => return Ok(reply::json(&json!(leader(consul, caller)), query)),
        Endpoint::StatusPeers => return Ok(reply::json(&json!([leader(consul, caller)]), query)),
        Endpoint::Queries => return queries::list(consul, caller, query).await,
        Endpoint::Query(id) => return queries::read(consul, caller, &id, query).await,
        Endpoint::QueryExecute(id) => return queries::execute(consul, caller, &id, query).await,
        Endpoint::QueryExplain(id) => return queries::explain(consul, caller, &id, query),
        Endpoint::EventList => return events::list(consul, caller, query).await,
        Endpoint::ConnectRoots => return consul.roots.answer(query).await,
        Endpoint::Pair(key) => return pairs::read(consul, caller, &key, query).await,
        Endpoint::SessionInfo(id) => return sessions::read(consul, caller, SessionFilter::Id(&id), query).await,
        Endpoint::SessionNode(node) => return sessions::read(consul, caller, SessionFilter::Node(&node), query).await,
        Endpoint::SessionList => return sessions::read(consul, caller, SessionFilter::All, query).await,
        // Writes; see `route`.
        Endpoint::SessionCreate
        | Endpoint::SessionDestroy(_)
        | Endpoint::SessionRenew(_)
        | Endpoint::CatalogRegister
        | Endpoint::Authorize
        | Endpoint::Transaction
        | Endpoint::EventFire(_)
        | Endpoint::Config
        | Endpoint::CatalogDeregister => {
            return Err(ApiError::bad_request("not a read endpoint"));
        }
    };
    Ok(reply::indexed(&body, index, query))
}

/// The address of this control plane for the caller.
fn leader(consul: &Consul, caller: &Caller) -> String {
    let mut address = consul.address;
    if address.ip().is_unspecified()
        && let Some(ip) = weft_listen::address::source_towards((caller.address, address.port()).into())
    {
        address.set_ip(ip);
    }
    address.to_string()
}

/// An answer's body and its index.
type Indexed = Result<(Value, u64), ApiError>;

/// The selected instances of a service.
#[derive(Clone, Copy)]
enum Wanting {
    All,
    /// Those that accept mutual TLS: the ones with an identity.
    Mtls,
}

impl Wanting {
    fn has(self, row: &Row) -> bool {
        matches!(self, Wanting::All) || !row.instance.identity.is_empty()
    }
}

struct Reader<'a> {
    consul: &'a Consul,
    caller: &'a Caller,
    query: &'a Query,
}

impl Reader<'_> {
    async fn health_service(&self, service: &str, wanting: Wanting) -> Indexed {
        let passing = self.query.passing().map_err(ApiError::bad_request)?;
        let (rows, index) = self.of_service(service).await?;
        let serves = |row: &&Row| !passing || row.checks().all(|check| check.status == "passing");
        let rows = rows.iter().filter(|row| wanting.has(row)).filter(serves);
        let items = filtered(rows.map(shapes::health_item), self.query)?;
        Ok((Value::Array(items), index))
    }

    async fn health_checks(&self, service: &str) -> Indexed {
        let (rows, index) = self.of_service(service).await?;
        let items = filtered(rows.iter().flat_map(shapes::service_checks), self.query)?;
        Ok((Value::Array(items), index))
    }

    /// Checks of a node and of all instances on it.
    async fn health_node(&self, name: &str) -> Indexed {
        let (instances, index) = self.of_node(name).await?;
        let node = select::node(self.consul, self.caller, name);
        let own = node.iter().flat_map(shapes::node_checks);
        let items = filtered(own.chain(instances.iter().flat_map(shapes::service_checks)), self.query)?;
        Ok((Value::Array(items), index))
    }

    /// Checks in one state, of all nodes and services.
    async fn health_state(&self, state: &str) -> Indexed {
        if !["any", "passing", "warning", "critical", "unknown"].contains(&state) {
            let text = format!("Invalid check state: {state:?} is not one of any, passing, warning, critical, unknown");
            return Err(ApiError::bad_request(text));
        }
        let (instances, index) = self.all().await?;
        let rows = rows(self.consul, self.caller, instances, self.query);
        let nodes = select::nodes(self.consul, self.caller, self.query);
        let all = nodes.iter().flat_map(shapes::node_checks).chain(rows.iter().flat_map(shapes::service_checks));
        let items = filtered(all.filter(|check| state == "any" || check["Status"] == state), self.query)?;
        Ok((Value::Array(items), index))
    }

    async fn catalog_service(&self, service: &str, wanting: Wanting) -> Indexed {
        let (rows, index) = self.of_service(service).await?;
        let rows = rows.iter().filter(|row| wanting.has(row));
        let items = filtered(rows.map(shapes::catalog_item), self.query)?;
        Ok((Value::Array(items), index))
    }

    /// Names of services with all tags of their instances; a filter selects instances before their tags are joined.
    async fn catalog_services(&self) -> Indexed {
        let filter = Filter::of(self.query)?;
        let (instances, index) = self.all().await?;
        let mut tags: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let rows = rows(self.consul, self.caller, instances, self.query);
        for row in &rows {
            let wanted = filter.as_ref().map_or(Ok(true), |filter| filter.wants(&shapes::catalog_item(row)));
            if wanted.map_err(ApiError::bad_request)? {
                let of_service = tags.entry(&row.instance.service).or_default();
                of_service.extend(row.instance.tags.iter().map(String::as_str));
            }
        }
        Ok((json!(tags), index))
    }

    async fn catalog_nodes(&self) -> Indexed {
        self.wait(&[Topic::Catalog, Topic::Nodes], World::nodes_index).await?;
        let index = self.consul.mesh.read(World::nodes_index);
        let nodes = select::nodes(self.consul, self.caller, self.query);
        Ok((Value::Array(filtered(nodes.iter().map(shapes::node), self.query)?), index))
    }

    /// A node and its services, or null.
    async fn catalog_node(&self, name: &str) -> Indexed {
        let (rows, index) = self.of_node(name).await?;
        let Some(node) = select::node(self.consul, self.caller, name) else { return Ok((Value::Null, index)) };
        let services = reply::by(filtered(rows.iter().map(shapes::service), self.query)?, "ID");
        Ok((json!({ "Node": shapes::node(&node), "Services": services }), index))
    }

    /// A node and its services as a list.
    async fn catalog_node_services(&self, name: &str) -> Indexed {
        let (rows, index) = self.of_node(name).await?;
        let node = select::node(self.consul, self.caller, name);
        let rows = if node.is_some() { rows } else { Vec::new() };
        let services = filtered(rows.iter().map(shapes::service), self.query)?;
        Ok((json!({ "Node": node.as_ref().map(shapes::node), "Services": services }), index))
    }

    async fn coordinate_nodes(&self) -> Indexed {
        self.wait(&[Topic::Catalog, Topic::Nodes], World::nodes_index).await?;
        let index = self.consul.mesh.read(World::nodes_index);
        let nodes = select::nodes(self.consul, self.caller, self.query);
        let items = filtered(nodes.iter().map(|node| coordinates::of(&node.name)), self.query)?;
        Ok((Value::Array(items), index))
    }

    async fn coordinate_node(&self, name: &str) -> Indexed {
        self.wait(&[Topic::Catalog, Topic::Nodes], World::nodes_index).await?;
        let index = self.consul.mesh.read(World::nodes_index);
        match select::node(self.consul, self.caller, name) {
            Some(node) => Ok((json!([coordinates::of(&node.name)]), index)),
            None => Err(ApiError::new(StatusCode::NOT_FOUND, "")),
        }
    }

    async fn of_service(&self, service: &str) -> Result<(Vec<Row>, u64), ApiError> {
        let index_of = |world: &World| self.caller.service_index(world, service);
        let topics = [self.caller.namespace.as_str(), "default"].map(|ns| Topic::Service(fqdn(service, ns)));
        self.wait(&topics, index_of).await?;
        let read = |world: &World| (self.caller.instances_of(world, service), index_of(world));
        let (instances, index) = self.consul.mesh.read(read);
        Ok((rows(self.consul, self.caller, instances, self.query), index))
    }

    async fn of_node(&self, node: &str) -> Result<(Vec<Row>, u64), ApiError> {
        self.wait(&[Topic::Catalog, Topic::Nodes], World::catalog_index).await?;
        let read = |world: &World| (self.caller.instances_of_node(world, node), world.catalog_index());
        let (instances, index) = self.consul.mesh.read(read);
        Ok((rows(self.consul, self.caller, instances, self.query), index))
    }

    /// Waits if the query is a blocking one; the requested data must be in this data centre.
    async fn wait(&self, topics: &[Topic], index_of: impl Fn(&World) -> u64) -> Result<(), ApiError> {
        select::in_scope(self.consul, self.query)?;
        block(&self.consul.mesh, self.query, topics, index_of).await
    }

    async fn all(&self) -> Result<(Vec<Arc<Instance>>, u64), ApiError> {
        self.wait(&[Topic::Catalog, Topic::Nodes], World::catalog_index).await?;
        Ok(self.consul.mesh.read(|world| (self.caller.instances(world), world.catalog_index())))
    }
}
