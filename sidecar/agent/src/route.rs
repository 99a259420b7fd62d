//! Which endpoint a request means, and its query: ids may hold slashes, written or escaped, and many of Consul's flags
//! are true by being there.

use std::time::Duration;

use http::Method;

use super::decode::{go_bool, go_duration};

/// What is asked for.
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
    /// `agent/check/pass|warn|fail/:id`: the status' word and the id.
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
    /// `health/service/:name`
    HealthService(String),
    /// `health/checks/:name`
    HealthChecks(String),
    /// `catalog/services`
    CatalogServices,
    /// `catalog/service/:name`
    CatalogService(String),
    /// `catalog/nodes`
    CatalogNodes,
    /// `catalog/datacenters`
    CatalogDatacenters,
    /// `status/leader`
    StatusLeader,
    /// `status/peers`
    StatusPeers,
}

/// Why a request reaches no endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missed {
    /// No such endpoint of Consul's API here.
    Unsupported,
    /// The endpoint takes another method, this one.
    Method(&'static str),
}

/// What an id follows, the method, and the endpoint with that id.
type Prefix = (&'static str, &'static str, fn(String) -> Endpoint);

/// The endpoint of `method` and `path`.
///
/// # Errors
/// When there is none.
pub fn route(method: &Method, path: &str) -> Result<Endpoint, Missed> {
    use Endpoint::{
        AgentChecks, AgentHealthOfId, AgentHealthOfName, AgentMembers, AgentSelf, AgentService, AgentServices,
        CatalogDatacenters, CatalogNodes, CatalogService, CatalogServices, DeregisterCheck, DeregisterService,
        HealthChecks, HealthService, Maintenance, RegisterCheck, RegisterService, ReportCheck, StatusLeader,
        StatusPeers, UpdateCheck,
    };
    let path = path.strip_prefix("/v1/").ok_or(Missed::Unsupported)?;
    // Longer prefixes first: what follows one is an id, whatever is in it.
    let prefixes: [Prefix; 13] = [
        ("agent/service/deregister/", "PUT", DeregisterService),
        ("agent/service/maintenance/", "PUT", Maintenance),
        ("agent/check/deregister/", "PUT", DeregisterCheck),
        ("agent/check/pass/", "PUT", |id| ReportCheck("passing", id)),
        ("agent/check/warn/", "PUT", |id| ReportCheck("warning", id)),
        ("agent/check/fail/", "PUT", |id| ReportCheck("critical", id)),
        ("agent/check/update/", "PUT", UpdateCheck),
        ("agent/health/service/id/", "GET", AgentHealthOfId),
        ("agent/health/service/name/", "GET", AgentHealthOfName),
        ("health/service/", "GET", HealthService),
        ("health/checks/", "GET", HealthChecks),
        ("catalog/service/", "GET", CatalogService),
        ("agent/service/", "GET", AgentService),
    ];
    let (allowed, endpoint) = match path {
        "agent/service/register" => ("PUT", RegisterService),
        "agent/check/register" => ("PUT", RegisterCheck),
        "agent/maintenance" => ("PUT", Maintenance(String::new())),
        "agent/services" => ("GET", AgentServices),
        "agent/checks" => ("GET", AgentChecks),
        "agent/self" => ("GET", AgentSelf),
        "agent/members" => ("GET", AgentMembers),
        "catalog/services" => ("GET", CatalogServices),
        "catalog/nodes" => ("GET", CatalogNodes),
        "catalog/datacenters" => ("GET", CatalogDatacenters),
        "status/leader" => ("GET", StatusLeader),
        "status/peers" => ("GET", StatusPeers),
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

/// The query of a request.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

/// Consul's default wait, and its longest.
const DEFAULT_WAIT: Duration = Duration::from_secs(300);
const MAX_WAIT: Duration = Duration::from_secs(600);

impl Query {
    /// Reads `text`, what follows the question mark.
    pub fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(key, value)| (unescape(key, true), unescape(value, true)))
                .collect(),
        )
    }

    /// The value of `key`; `None`: not there.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.values(key).next()
    }

    /// All values of `key`.
    pub fn values<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let key = key.to_owned();
        self.0.iter().filter(move |(k, _)| *k == key).map(|(_, v)| v.as_str())
    }

    /// Whether `key` is there, whatever its value: in Consul `?stale=false` is true.
    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// `passing`, which has a value, unlike other flags.
    ///
    /// # Errors
    /// When the value is none.
    pub fn passing(&self) -> Result<bool, String> {
        match self.value("passing") {
            None => Ok(false),
            Some("") => Ok(true),
            Some(text) => go_bool(text).ok_or_else(|| "Invalid value for ?passing".into()),
        }
    }

    /// The index to wait past, and how long; `None`: answer at once.
    ///
    /// # Errors
    /// Consul's words, for a 400.
    pub fn block(&self) -> Result<Option<(u64, Duration)>, String> {
        let wait = match self.value("wait") {
            None | Some("") => DEFAULT_WAIT,
            Some(text) => go_duration(text).ok_or("Invalid wait time")?,
        };
        let index = match self.value("index") {
            None | Some("") => 0,
            Some(text) => text.parse().map_err(|_| "Invalid index")?,
        };
        let wait = if wait.is_zero() { DEFAULT_WAIT } else { wait.min(MAX_WAIT) };
        Ok((index > 0).then_some((index, wait)))
    }
}

/// Resolves `%2F` and the like; what is no escape stays. With `plus`, a plus is a space.
fn unescape(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let byte = hex.and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match byte {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if plus && bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_may_hold_slashes() {
        let put = |path: &str| route(&Method::PUT, path);
        let get = |path: &str| route(&Method::GET, path);
        assert_eq!(put("/v1/agent/service/register"), Ok(Endpoint::RegisterService));
        assert_eq!(put("/v1/agent/service/deregister/a%2Fb"), Ok(Endpoint::DeregisterService("a/b".into())));
        assert_eq!(put("/v1/agent/service/deregister/a/b"), Ok(Endpoint::DeregisterService("a/b".into())));
        assert_eq!(put("/v1/agent/check/pass/service:a+1"), Ok(Endpoint::ReportCheck("passing", "service:a+1".into())));
        assert_eq!(get("/v1/agent/service/web%zz"), Ok(Endpoint::AgentService("web%zz".into())));
        assert_eq!(get("/v1/health/service/order"), Ok(Endpoint::HealthService("order".into())));
        assert_eq!(get("/v1/agent/check/pass/x"), Err(Missed::Method("PUT")));
        assert_eq!(put("/v1/health/service/order"), Err(Missed::Method("GET")));
        for unsupported in ["/v1/kv/a", "/v1/agent/service/", "/v1/", "/", "/ui/", "/v1/health/service/"] {
            assert_eq!(get(unsupported), Err(Missed::Unsupported), "{unsupported}");
        }
    }

    #[test]
    fn flags_are_true_by_being_there() {
        let query = Query::parse("stale=false&tag=a&tag=b%20c&passing&note=all+well");
        assert!(query.has("stale") && !query.has("cached"));
        assert_eq!(query.values("tag").collect::<Vec<_>>(), ["a", "b c"]);
        assert_eq!(query.value("note"), Some("all well"));
        assert_eq!(query.passing(), Ok(true));
        for (text, passing) in [("", false), ("passing=True", true), ("passing=0", false)] {
            assert_eq!(Query::parse(text).passing(), Ok(passing), "{text}");
        }
        assert_eq!(Query::parse("passing=maybe").passing(), Err("Invalid value for ?passing".into()));
    }

    #[test]
    fn waits_are_bounded() {
        let seconds = |s| Duration::from_secs(s);
        for (text, block) in [
            ("", Ok(None)),
            ("index=0&wait=1s", Ok(None)),
            ("index=7", Ok(Some((7, seconds(300))))),
            ("index=7&wait=30s", Ok(Some((7, seconds(30))))),
            ("index=7&wait=20m", Ok(Some((7, seconds(600))))),
            ("index=7&wait=soon", Err("Invalid wait time".to_owned())),
            ("index=-1", Err("Invalid index".to_owned())),
        ] {
            assert_eq!(Query::parse(text).block(), block, "{text}");
        }
    }
}
