//! The parts of an explanation: `weftctl route --output json` prints them as they stand here, [`super::text`] in words.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Why a request, or a connection, goes where it goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// The request as the sidecar sees it.
    pub request: Request,
    /// Who sends it.
    pub caller: Caller,
    /// What its name means.
    pub host: Host,
    /// Port of the host; absent: the host is not known, or has no such port.
    pub port: Option<Port>,
    /// The VirtualService of the host; absent: it has none, and requests go to the port's own endpoints.
    pub routes: Option<Routes>,
    /// What the route says of the request besides where it goes.
    pub effects: Vec<Setting>,
    /// Where it goes, by share.
    pub destinations: Vec<Destination>,
    /// What else should be known.
    pub notes: Vec<String>,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// The request, or with a server name the connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// Empty for a connection that is not looked into.
    pub method: String,
    /// With the path in its normal form.
    pub url: String,
    /// As the client writes it.
    pub authority: String,
    /// That is dialed.
    pub port: u16,
    /// Of the connection's own TLS.
    pub server_name: Option<String>,
}

/// Whose request it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Caller {
    /// Empty: nobody in particular.
    pub workload: String,
    /// Of the caller.
    pub namespace: String,
    /// Of its workload.
    pub labels: BTreeMap<String, String>,
    /// `region/zone/subzone`; empty: it is not known.
    pub locality: String,
    /// `<namespace>/<name>` of the Gateway by which it comes; empty: by no gateway.
    pub gateway: String,
}

/// The host that is meant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// The name, or the address with its port, that decided.
    #[serde(rename = "asked")]
    pub query: String,
    /// Canonical name; empty: the mesh knows no such host.
    pub name: String,
    /// Why it is this one, or none.
    pub because: String,
    /// What makes it a host: documents, and how many instances are registered.
    pub sources: Vec<String>,
}

/// A port of the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Port {
    /// 0: the host declares none, and takes any.
    pub number: u16,
    /// As declared.
    pub name: String,
    /// What is spoken there.
    pub protocol: String,
}

/// Which of a VirtualService's routes it takes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Routes {
    /// `VirtualService/<namespace>/<name>`
    pub policy: String,
    /// Some of the routes are those of other VirtualServices, to which it delegates.
    pub delegates: bool,
    /// Absent: none of them.
    pub taken: Option<TakenRoute>,
    /// Those before it, or all of them where none is taken.
    pub passed_over: Vec<SkippedRoute>,
}

/// The route that is taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TakenRoute {
    /// `http[1]`
    pub route: String,
    /// Empty: it has none.
    pub name: String,
    /// Place of the match that held; absent: it has no matches.
    pub matched: Option<usize>,
}

/// A route that is not taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SkippedRoute {
    /// `http[0]`
    pub route: String,
    /// Empty: it has none.
    pub name: String,
    /// Of each of its matches the first condition that does not hold.
    pub because: Vec<String>,
}

/// A field of a policy and its value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Setting {
    /// As policies name it.
    pub field: String,
    /// As people read it.
    pub value: String,
}

/// One of those that the requests are divided between.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Destination {
    /// Of the requests.
    pub percent: f64,
    /// Canonical name.
    pub host: String,
    /// 0: any.
    pub port: u16,
    /// Empty: all of the host.
    pub subset: String,
    /// That endpoints of the subset have.
    pub labels: BTreeMap<String, String>,
    /// `DestinationRule/<namespace>/<name>` that decided what follows; empty: the defaults.
    pub policy: String,
    /// How an endpoint is picked.
    pub balancer: String,
    /// Which localities are called; empty: all alike.
    pub locality: String,
    /// Limits and timeouts that are not the defaults.
    pub limits: Vec<Setting>,
    /// Of outlier detection; empty: it is off.
    pub outlier_detection: Vec<Setting>,
    /// TLS towards the endpoints.
    pub tls: String,
    /// Header changes that this one of several destinations has of its own.
    pub effects: Vec<Setting>,
    /// Of levels of priority with anybody to pick, the nearest first, the percent of the requests that go there.
    pub levels: Vec<Level>,
    /// All of the destination, the unhealthy too.
    pub endpoints: Vec<Endpoint>,
    /// What goes to another data centre; absent: nothing does.
    pub elsewhere: Option<Elsewhere>,
    /// What the request is hashed by, and what that means for it; absent: it is not.
    pub hash: Option<Hash>,
    /// What becomes of a request that comes here.
    pub verdict: Verdict,
}

/// Endpoints that are equally far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Level {
    /// 0 is nearest.
    pub number: usize,
    /// Of the requests.
    pub percent: u64,
}

/// What goes to another data centre.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Elsewhere {
    /// Of the requests.
    pub percent: u32,
    /// Where they go.
    pub datacenter: String,
    /// By which gateways.
    pub gateways: Vec<String>,
    /// Why.
    pub because: String,
}

/// One endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// What is dialed.
    pub address: String,
    /// Share among its like.
    pub weight: u32,
    /// `healthy`, `unhealthy`, `draining` or `unknown`.
    pub health: String,
    /// The caller's sidecar has ejected it.
    pub ejected: bool,
    /// `region/zone/subzone`
    pub locality: String,
    /// Of priority; absent: it is not picked.
    pub level: Option<usize>,
    /// As registered.
    pub labels: BTreeMap<String, String>,
    /// Of the sidecar that owns the address; empty: none does.
    pub identity: String,
    /// What is spoken to it.
    pub transport: String,
    /// What its sidecar accepts: `STRICT`, `PERMISSIVE` or `DISABLE`, and the PeerAuthentication that says so; empty: it has no
    /// sidecar.
    pub accepts: String,
    /// Name of the workload.
    pub workload: String,
    /// Data centre whose gateway it is; empty: it is an endpoint of this one.
    pub datacenter: String,
    /// It is such a gateway, and requests go there.
    pub fails_over: bool,
}

/// Consistent hashing of this request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hash {
    /// `header user-id`
    pub by: String,
    /// The endpoint that the request gets; absent: that cannot be told.
    pub endpoint: Option<String>,
    /// Why it cannot.
    pub because: String,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Verdict {
    /// An endpoint gets it.
    Served,
    /// Nothing is known against it, but who is registered is not known here.
    Unregistered,
    /// The route answers it, as it is meant to.
    Answered {
        /// Of the answer.
        status: u16,
        /// `redirect`, `directResponse` or `corsPolicy`.
        by: String,
    },
    /// The mesh does not know the host.
    Unknown {
        /// Whether it is dialed as it is addressed; absent: as the caller's proxy was started.
        passes: Option<bool>,
    },
    /// The sidecar answers it by itself, or closes the connection.
    Refused {
        /// Of the answer; 0: there is none.
        status: u16,
        /// Envoy's response flag.
        flag: String,
        /// As in `x-weft-reason`.
        reason: String,
    },
}

impl Default for Verdict {
    fn default() -> Verdict {
        Verdict::Unknown { passes: None }
    }
}

impl Verdict {
    /// Nothing is wrong: an endpoint gets it, or the answer is the one that was meant.
    pub fn is_good(&self) -> bool {
        matches!(self, Verdict::Served | Verdict::Unregistered | Verdict::Answered { .. })
    }
}

impl Setting {
    pub(super) fn new(field: &str, value: impl ToString) -> Setting {
        Setting { field: field.to_owned(), value: value.to_string() }
    }
}
