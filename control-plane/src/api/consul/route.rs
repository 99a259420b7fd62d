//! The endpoint of a request, or the reason why there is none. Names may contain slashes, literal or escaped.

use http::{Method, StatusCode};
use weft_registry_api::error::ApiError;
use weft_registry_api::query::unescape;

/// The endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `health/service/:service`
    HealthService(String),
    /// `health/connect/:service`
    HealthConnect(String),
    /// `health/checks/:service`
    HealthChecks(String),
    /// `health/node/:node`
    HealthNode(String),
    /// `health/state/:state`
    HealthState(String),
    /// `catalog/services`
    CatalogServices,
    /// `catalog/service/:service`
    CatalogService(String),
    /// `catalog/connect/:service`
    CatalogConnect(String),
    /// `catalog/nodes`
    CatalogNodes,
    /// `catalog/node/:node`
    CatalogNode(String),
    /// `catalog/node-services/:node`
    CatalogNodeServices(String),
    /// `catalog/datacenters`
    CatalogDatacenters,
    /// `coordinate/datacenters`
    CoordinateDatacenters,
    /// `coordinate/nodes`
    CoordinateNodes,
    /// `coordinate/node/:node`
    CoordinateNode(String),
    /// `agent/connect/authorize`
    Authorize,
    /// `txn`
    Transaction,
    /// `connect/intentions`: always empty.
    Intentions,
    /// `connect/intentions/match`
    IntentionsMatch,
    /// `connect/intentions/check`
    IntentionsCheck,
    /// `connect/intentions/exact`
    IntentionExact,
    /// `config`, for writes
    Config,
    /// `config/:kind`
    ConfigEntries(String),
    /// `config/:kind/:name`
    ConfigEntry(String, String),
    /// `catalog/register`
    CatalogRegister,
    /// `catalog/deregister`
    CatalogDeregister,
    /// `status/leader`
    StatusLeader,
    /// `status/peers`
    StatusPeers,
    /// `query`: the prepared queries; POST creates one.
    Queries,
    /// `query/:id`
    Query(String),
    /// `query/:id/execute`, the id or a name
    QueryExecute(String),
    /// `query/:id/explain`, the id or a name
    QueryExplain(String),
    /// `event/fire/:name`
    EventFire(String),
    /// `event/list`
    EventList,
    /// `connect/ca/roots`, and the same of an agent
    ConnectRoots,
    /// `kv/:key`, which may be empty
    Pair(String),
    /// `session/create`
    SessionCreate,
    /// `session/destroy/:id`
    SessionDestroy(String),
    /// `session/renew/:id`
    SessionRenew(String),
    /// `session/info/:id`
    SessionInfo(String),
    /// `session/node/:node`
    SessionNode(String),
    /// `session/list`
    SessionList,
}

impl Endpoint {
    /// The allowed methods, with commas.
    fn methods(&self) -> &'static str {
        match self {
            Endpoint::Pair(_) => "GET,PUT,DELETE",
            Endpoint::CatalogRegister | Endpoint::CatalogDeregister => "PUT",
            Endpoint::Authorize => "POST",
            Endpoint::Queries => "GET,POST",
            Endpoint::Query(_) => "GET,PUT,DELETE",
            Endpoint::EventFire(_) => "PUT",
            Endpoint::Transaction | Endpoint::Config => "PUT",
            Endpoint::ConfigEntry(..) => "GET,DELETE",
            Endpoint::SessionCreate | Endpoint::SessionDestroy(_) | Endpoint::SessionRenew(_) => "PUT",
            _ => "GET",
        }
    }
}

/// The reason why a request has no endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteError {
    /// The endpoint has other methods: these, with commas.
    Method(&'static str),
    /// There is none, or a part of the path is missing.
    NoEndpoint(ApiError),
}

/// The path before a name, the missing part for an empty name, and the endpoint with that name.
type NameRoute = (&'static str, &'static str, fn(String) -> Endpoint);

const BY_NAME: [NameRoute; 15] = [
    ("health/service", "service name", Endpoint::HealthService),
    ("health/connect", "service name", Endpoint::HealthConnect),
    ("health/checks", "service name", Endpoint::HealthChecks),
    ("health/node", "node name", Endpoint::HealthNode),
    ("health/state", "check state", Endpoint::HealthState),
    ("catalog/service", "service name", Endpoint::CatalogService),
    ("catalog/connect", "service name", Endpoint::CatalogConnect),
    ("catalog/node", "node name", Endpoint::CatalogNode),
    ("catalog/node-services", "node name", Endpoint::CatalogNodeServices),
    ("event/fire", "event name", Endpoint::EventFire),
    ("coordinate/node", "node name", Endpoint::CoordinateNode),
    ("session/destroy", "session", Endpoint::SessionDestroy),
    ("session/renew", "session", Endpoint::SessionRenew),
    ("session/info", "session", Endpoint::SessionInfo),
    ("session/node", "node name", Endpoint::SessionNode),
];

/// Parts of Consul's API that the mesh does not have, by the beginning of the path, with the alternative.
const REFUSED: [(&str, &str); 9] = [
    ("acl", "the join token of a sidecar has its rights (weftctl token create)"),
    ("operator", "there are no servers to operate; weftctl status shows the mesh"),
    ("snapshot", "back up with weftctl snapshot save"),
    ("peering", "clusters are not peered"),
    ("peerings", "clusters are not peered"),
    (
        "connect/intentions",
        "Action: the mesh has no authorization policies yet, so that nothing is denied; callers are authenticated by \
         mutual TLS (PeerAuthentication STRICT)",
    ),
    ("connect/ca/leaf", "the sidecar beside a program issues its certificate (weft-sidecar run --connect-leaf)"),
    ("connect", "connect supports only ca/roots, ca/leaf, authorize and reads of intentions"),
    ("coordinate", "coordinates are fixed, and near sorts by the locality of sidecars (--locality)"),
];

/// The endpoint of `method` and `path`.
///
/// # Errors
/// If there is none.
pub fn route(method: &Method, path: &str) -> Result<Endpoint, RouteError> {
    let no_page = || RouteError::NoEndpoint(ApiError::new(StatusCode::NOT_FOUND, "no such page"));
    let short = path.strip_prefix("/v1/").ok_or_else(no_page)?;
    let endpoint = match short {
        "catalog/services" => Endpoint::CatalogServices,
        "catalog/nodes" => Endpoint::CatalogNodes,
        "catalog/datacenters" => Endpoint::CatalogDatacenters,
        "catalog/register" => Endpoint::CatalogRegister,
        "catalog/deregister" => Endpoint::CatalogDeregister,
        "status/leader" => Endpoint::StatusLeader,
        "status/peers" => Endpoint::StatusPeers,
        "query" => Endpoint::Queries,
        _ if short.starts_with("query/") => prepared(&short[6..]),
        "event/list" => Endpoint::EventList,
        "connect/ca/roots" | "agent/connect/ca/roots" => Endpoint::ConnectRoots,
        "coordinate/datacenters" => Endpoint::CoordinateDatacenters,
        "coordinate/nodes" => Endpoint::CoordinateNodes,
        "agent/connect/authorize" => Endpoint::Authorize,
        "txn" => Endpoint::Transaction,
        // Endpoints that would deny a request are refused below, with the alternative.
        "connect/intentions" if method == Method::GET => Endpoint::Intentions,
        "connect/intentions/match" => Endpoint::IntentionsMatch,
        "connect/intentions/check" => Endpoint::IntentionsCheck,
        "connect/intentions/exact" if method == Method::GET => Endpoint::IntentionExact,
        "config" => Endpoint::Config,
        _ if short.starts_with("config/") => config(&short[7..])?,
        "session/create" => Endpoint::SessionCreate,
        "session/list" => Endpoint::SessionList,
        "kv" => Endpoint::Pair(String::new()),
        _ if short.starts_with("kv/") => Endpoint::Pair(unescape(&short[3..], false)),
        _ => by_name(short).unwrap_or_else(|| Err(RouteError::NoEndpoint(unsupported(path, short))))?,
    };
    let methods = endpoint.methods();
    if methods.split(',').any(|allowed| method.as_str() == allowed) {
        Ok(endpoint)
    } else {
        Err(RouteError::Method(methods))
    }
}

/// Whether this may be read without a token: the leader and the data centres, for which Consul requires none either.
pub fn is_public(method: &Method, path: &str) -> bool {
    let endpoint = route(method, path);
    matches!(endpoint, Ok(Endpoint::StatusLeader | Endpoint::StatusPeers | Endpoint::CatalogDatacenters))
}

/// `:id`, `:id/execute` or `:id/explain`.
fn prepared(rest: &str) -> Endpoint {
    let of = |id: &str| unescape(id, false);
    if let Some(id) = rest.strip_suffix("/execute") {
        return Endpoint::QueryExecute(of(id));
    }
    match rest.strip_suffix("/explain") {
        Some(id) => Endpoint::QueryExplain(of(id)),
        None => Endpoint::Query(of(rest)),
    }
}

/// `:kind` or `:kind/:name`.
fn config(rest: &str) -> Result<Endpoint, RouteError> {
    let (kind, name) = rest.split_once('/').unwrap_or((rest, ""));
    let (kind, name) = (unescape(kind, false), unescape(name, false));
    if !CONFIG_KINDS.contains(&kind.as_str()) {
        return Err(RouteError::NoEndpoint(ApiError::bad_request(format!("invalid config entry kind: {kind}"))));
    }
    Ok(if name.is_empty() { Endpoint::ConfigEntries(kind) } else { Endpoint::ConfigEntry(kind, name) })
}

/// Kinds of Consul's config entries.
const CONFIG_KINDS: [&str; 13] = [
    "service-defaults",
    "proxy-defaults",
    "service-router",
    "service-splitter",
    "service-resolver",
    "service-intentions",
    "ingress-gateway",
    "terminating-gateway",
    "mesh",
    "exported-services",
    "api-gateway",
    "http-route",
    "tcp-route",
];

fn by_name(short: &str) -> Option<Result<Endpoint, RouteError>> {
    BY_NAME.iter().find_map(|(prefix, what, endpoint)| {
        let rest = short.strip_prefix(prefix)?;
        let name = if rest.is_empty() { "" } else { rest.strip_prefix('/')? };
        let missing = || RouteError::NoEndpoint(ApiError::bad_request(format!("Missing {what}")));
        Some(if name.is_empty() { Err(missing()) } else { Ok(endpoint(unescape(name, false))) })
    })
}

fn unsupported(path: &str, short: &str) -> ApiError {
    // The same of an agent.
    let short = short.strip_prefix("agent/").unwrap_or(short);
    let below = |prefix: &str| short.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let instead = REFUSED.iter().find(|(prefix, _)| below(prefix)).map(|(_, instead)| format!(": {instead}"));
    let text = format!("{path} of Consul's API is not supported by this mesh{}", instead.unwrap_or_default());
    ApiError::new(StatusCode::NOT_IMPLEMENTED, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_slashes_and_must_be_there() {
        let get = |path: &str| route(&Method::GET, path);
        assert_eq!(get("/v1/health/service/a%2Fb/c"), Ok(Endpoint::HealthService("a/b/c".into())));
        assert_eq!(get("/v1/catalog/service/order"), Ok(Endpoint::CatalogService("order".into())));
        assert_eq!(get("/v1/health/connect/a"), Ok(Endpoint::HealthConnect("a".into())));
        assert_eq!(get("/v1/catalog/services"), Ok(Endpoint::CatalogServices));
        assert_eq!(get("/v1/query"), Ok(Endpoint::Queries));
        assert_eq!(get("/v1/query/a%2Fb/execute"), Ok(Endpoint::QueryExecute("a/b".into())));
        assert_eq!(get("/v1/query/a"), Ok(Endpoint::Query("a".into())));
        assert_eq!(get("/v1/event/fire/x"), Err(RouteError::Method("PUT")));
        assert_eq!(get("/v1/kv/a%2Fb/c"), Ok(Endpoint::Pair("a/b/c".into())));
        assert_eq!((get("/v1/kv/"), get("/v1/kv")), (Ok(Endpoint::Pair("".into())), Ok(Endpoint::Pair("".into()))));
        assert_eq!(route(&Method::POST, "/v1/kv/a"), Err(RouteError::Method("GET,PUT,DELETE")));
        assert_eq!(get("/v1/session/renew/a"), Err(RouteError::Method("PUT")));
        for (path, text) in [
            ("/v1/health/service/", "Missing service name"),
            ("/v1/health/state", "Missing check state"),
            ("/v1/catalog/node/", "Missing node name"),
        ] {
            assert_eq!(get(path), Err(RouteError::NoEndpoint(ApiError::bad_request(text))), "{path}");
        }
        assert_eq!(route(&Method::PUT, "/v1/health/service/a"), Err(RouteError::Method("GET")));
    }

    #[test]
    fn unsupported_endpoints_are_refused_with_an_alternative() {
        for (method, path, status, words) in [
            (
                Method::GET,
                "/v1/acl/tokens",
                501,
                "/v1/acl/tokens of Consul's API is not supported by this mesh: the join",
            ),
            (Method::GET, "/v1/snapshot", 501, "back up"),
            (Method::PUT, "/v1/connect/intentions/exact", 501, "no authorization policies yet"),
            (Method::POST, "/v1/connect/intentions", 501, "no authorization policies yet"),
            (Method::GET, "/v1/connect/ca/configuration", 501, "only ca/roots"),
            (Method::GET, "/v1/config/service-raptor", 400, "invalid config entry kind"),
            (Method::PUT, "/v1/coordinate/update", 501, "coordinates are fixed"),
            (Method::GET, "/v1/agent/connect/ca/leaf/order", 501, "--connect-leaf"),
            (Method::GET, "/v1/healthy", 501, "not supported"),
            (Method::GET, "/v1/health/servicex/a", 501, "not supported"),
            (Method::GET, "/v2/", 404, "no such page"),
        ] {
            let Err(RouteError::NoEndpoint(error)) = route(&method, path) else { panic!("{path}") };
            assert_eq!(error.status.as_u16(), status, "{path}");
            assert!(error.text.contains(words), "{}", error.text);
        }
    }
}
