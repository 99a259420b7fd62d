//! Routing of requests to the agent's own endpoints: ids may contain slashes, plain or escaped. All other requests are
//! forwarded.

use http::Method;
use weft_registry_api::query::unescape;

/// An endpoint with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `agent/service/register`
    RegisterService,
    /// `agent/service/deregister/:id`
    DeregisterService(String),
    /// `agent/service/maintenance/:id`; `agent/maintenance` with an empty id: of all services here.
    Maintenance(String),
    /// `agent/check/register`
    RegisterCheck,
    /// `agent/check/deregister/:id`
    DeregisterCheck(String),
    /// `agent/check/pass|warn|fail/:id`: the word of the status and the id.
    ReportCheck(&'static str, String),
    /// `agent/check/update/:id`
    UpdateCheck(String),
    /// `agent/services`
    AgentServices,
    /// `agent/service/:id`
    AgentService(String),
    /// `agent/health/service/id/:id`
    AgentHealthOfId(String),
    /// `agent/health/service/name/:name`
    AgentHealthOfName(String),
    /// `agent/checks`
    AgentChecks,
    /// `agent/self`
    AgentSelf,
    /// `agent/members`
    AgentMembers,
    /// `agent/version`
    AgentVersion,
    /// `agent/host`
    AgentHost,
    /// `agent/metrics`
    AgentMetrics,
    /// `agent/reload`
    AgentReload,
    /// `agent/connect/ca/leaf/:service`
    ConnectLeaf(String),
}

/// Reason why a request has no endpoint here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missed {
    /// It belongs to another part of Consul's API.
    Elsewhere,
    /// The agent does not support this endpoint.
    Unsupported,
    /// It does not belong to Consul's API.
    NoPage,
    /// The endpoint requires another method: this one.
    Method(&'static str),
}

const LEAF: &str = "agent/connect/ca/leaf/";

/// Path before an id, method, and constructor of the endpoint.
type Prefix = (&'static str, &'static str, fn(String) -> Endpoint);

/// The endpoint of `method` and `path`.
///
/// # Errors
/// If there is none.
pub fn route(method: &Method, path: &str) -> Result<Endpoint, Missed> {
    use Endpoint::{
        AgentChecks, AgentHealthOfId, AgentHealthOfName, AgentHost, AgentMembers, AgentMetrics, AgentReload, AgentSelf,
        AgentService, AgentServices, AgentVersion, ConnectLeaf, DeregisterCheck, DeregisterService, Maintenance,
        RegisterCheck, RegisterService, ReportCheck, UpdateCheck,
    };
    let path = path.strip_prefix("/v1/").ok_or(Missed::NoPage)?;
    let of_agent = path == "agent" || path.starts_with("agent/");
    // The mesh's certificates are the control plane's, except the pod's own.
    if !of_agent || (path.starts_with("agent/connect/") && !path.starts_with(LEAF)) {
        return Err(Missed::Elsewhere);
    }
    // Longer prefixes first: the text after a prefix is an id, whatever it contains.
    let prefixes: [Prefix; 11] = [
        ("agent/service/deregister/", "PUT", DeregisterService),
        ("agent/service/maintenance/", "PUT", Maintenance),
        ("agent/check/deregister/", "PUT", DeregisterCheck),
        ("agent/check/pass/", "PUT", |id| ReportCheck("passing", id)),
        ("agent/check/warn/", "PUT", |id| ReportCheck("warning", id)),
        ("agent/check/fail/", "PUT", |id| ReportCheck("critical", id)),
        ("agent/check/update/", "PUT", UpdateCheck),
        ("agent/health/service/id/", "GET", AgentHealthOfId),
        ("agent/health/service/name/", "GET", AgentHealthOfName),
        ("agent/service/", "GET", AgentService),
        (LEAF, "GET", ConnectLeaf),
    ];
    let (allowed, endpoint) = match path {
        "agent/service/register" => ("PUT", RegisterService),
        "agent/check/register" => ("PUT", RegisterCheck),
        "agent/maintenance" => ("PUT", Maintenance(String::new())),
        "agent/services" => ("GET", AgentServices),
        "agent/checks" => ("GET", AgentChecks),
        "agent/self" => ("GET", AgentSelf),
        "agent/members" => ("GET", AgentMembers),
        "agent/version" => ("GET", AgentVersion),
        "agent/host" => ("GET", AgentHost),
        "agent/metrics" => ("GET", AgentMetrics),
        "agent/reload" => ("PUT", AgentReload),
        _ => {
            let found = prefixes.iter().find_map(|(prefix, method, make)| {
                let id = path.strip_prefix(prefix).filter(|id| !id.is_empty())?;
                Some((*method, make(unescape(id, false))))
            });
            found.ok_or(Missed::Unsupported)?
        }
    };
    if method.as_str() == allowed { Ok(endpoint) } else { Err(Missed::Method(allowed)) }
}

/// Replacement for an endpoint that is not supported; `None`: there is none.
pub fn replacement(path: &str) -> Option<&'static str> {
    let path = path.strip_prefix("/v1/agent/")?;
    let first = path.split('/').next()?;
    Some(match first {
        "leave" => {
            "this agent is the sidecar; stop it (SIGTERM) to leave, or take services out with agent/service/deregister or \
             agent/maintenance"
        }
        "join" => {
            "there is no gossip; a sidecar joins by its token (--token-file) at its control planes (--control-plane)"
        }
        "force-leave" => {
            "a node is removed when its lease expires (--lease of the control plane), a node of the catalog by \
             catalog/deregister"
        }
        "token" => "ACL tokens cannot be set; a program sends its own token, created by `weftctl token create --api`",
        "monitor" => "the sidecar writes its log to standard error",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_endpoints_name_a_replacement() {
        for (path, words) in [
            ("/v1/agent/leave", "SIGTERM"),
            ("/v1/agent/join/10.0.0.1", "--token-file"),
            ("/v1/agent/force-leave/node-1", "catalog/deregister"),
        ] {
            assert_eq!(route(&Method::PUT, path), Err(Missed::Unsupported), "{path}");
            assert!(replacement(path).is_some_and(|instead| instead.contains(words)), "{path}");
        }
        assert_eq!(replacement("/v1/agent/unheard-of"), None);
    }

    #[test]
    fn ids_may_contain_slashes() {
        let put = |path: &str| route(&Method::PUT, path);
        let get = |path: &str| route(&Method::GET, path);
        assert_eq!(put("/v1/agent/service/register"), Ok(Endpoint::RegisterService));
        assert_eq!(put("/v1/agent/service/deregister/a%2Fb"), Ok(Endpoint::DeregisterService("a/b".into())));
        assert_eq!(put("/v1/agent/service/deregister/a/b"), Ok(Endpoint::DeregisterService("a/b".into())));
        assert_eq!(put("/v1/agent/check/pass/service:a+1"), Ok(Endpoint::ReportCheck("passing", "service:a+1".into())));
        assert_eq!(get("/v1/agent/service/web%zz"), Ok(Endpoint::AgentService("web%zz".into())));
        assert_eq!(get("/v1/agent/connect/ca/leaf/order"), Ok(Endpoint::ConnectLeaf("order".into())));
        assert_eq!(get("/v1/agent/check/pass/x"), Err(Missed::Method("PUT")));
        for (path, missed) in [
            ("/v1/agent/service/", Missed::Unsupported),
            ("/v1/agent/reload", Missed::Method("PUT")),
            ("/v1/agent/monitor", Missed::Unsupported),
            ("/v1/health/service/order", Missed::Elsewhere),
            ("/v1/agent/connect/ca/roots", Missed::Elsewhere),
            ("/v1/agent/connect/authorize", Missed::Elsewhere),
            ("/v1/agent/connect/ca/leaf/", Missed::Unsupported),
            ("/v1/agents", Missed::Elsewhere),
            ("/v1/", Missed::Elsewhere),
            ("/ui/", Missed::NoPage),
            ("/", Missed::NoPage),
        ] {
            assert_eq!(get(path), Err(missed), "{path}");
        }
    }
}
