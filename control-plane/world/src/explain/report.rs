//! The parts of an explanation: `weftctl route --output json` prints them as they are here, [`super::text`] in words.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The way of a request, or of a connection, with the reasons.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// The request as the sidecar sees it.
    pub request: Request,
    /// Its sender.
    pub caller: Caller,
    /// The host that its name stands for.
    pub host: Host,
    /// Port of the host; absent: the host is unknown, or has no such port.
    pub port: Option<Port>,
    /// The VirtualService of the host; absent: it has none, and requests use the port's own endpoints.
    pub routes: Option<Routes>,
    /// The route's settings besides its destinations.
    pub effects: Vec<Setting>,
    /// Its destinations, by share.
    pub destinations: Vec<Destination>,
    /// Further remarks.
    pub notes: Vec<String>,
    /// The outcome.
    pub verdict: Verdict,
}

/// The request, or with a server name the connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// Empty for a connection that is not inspected.
    pub method: String,
    /// With the path in its normal form.
    pub url: String,
    /// As the client writes it.
    pub authority: String,
    /// The port that is dialed.
    pub port: u16,
    /// Of the client's own TLS.
    pub server_name: Option<String>,
}

/// The sender of the request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Caller {
    /// Empty: any.
    pub workload: String,
    /// Of the caller.
    pub namespace: String,
    /// Of its workload.
    pub labels: BTreeMap<String, String>,
    /// `region/zone/subzone`; empty: unknown.
    pub locality: String,
    /// `<namespace>/<name>` of the Gateway through which it arrives; empty: none.
    pub gateway: String,
}

/// The host of the request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// The name, or the address with its port, that decided.
    pub query: String,
    /// Canonical name; empty: no such host in the mesh.
    pub name: String,
    /// The reason for this host, or for none.
    pub because: String,
    /// The documents that define it, and the number of registered instances.
    pub sources: Vec<String>,
}

/// A port of the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Port {
    /// 0: the host declares none, and accepts any.
    pub number: u16,
    /// As declared.
    pub name: String,
    /// Its protocol.
    pub protocol: String,
}

/// The decision of a VirtualService.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Routes {
    /// `VirtualService/<namespace>/<name>`
    pub policy: String,
    /// Whether some of the routes are those of other VirtualServices, to which it delegates.
    pub delegates: bool,
    /// The matching route; absent: none.
    pub taken: Option<TakenRoute>,
    /// The routes before it, or all of them if none matches.
    pub passed_over: Vec<SkippedRoute>,
}

/// The route of the request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TakenRoute {
    /// `http[1]`
    pub route: String,
    /// Empty: it has no name.
    pub name: String,
    /// Place of the fulfilled match; absent: the route has no matches.
    pub matched: Option<usize>,
}

/// A route that does not match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SkippedRoute {
    /// `http[0]`
    pub route: String,
    /// Empty: it has no name.
    pub name: String,
    /// For each of its matches, the first condition that does not hold.
    pub because: Vec<String>,
}

/// A field of a policy and its value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Setting {
    /// Its name in policies.
    pub field: String,
    /// Its value for people.
    pub value: String,
}

/// One of the destinations that share the requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Destination {
    /// Share of the requests.
    pub percent: f64,
    /// Canonical name.
    pub host: String,
    /// 0: any.
    pub port: u16,
    /// Empty: all of the host.
    pub subset: String,
    /// The labels that select the endpoints of the subset.
    pub labels: BTreeMap<String, String>,
    /// `DestinationRule/<namespace>/<name>` that decided the following settings; empty: the defaults.
    pub policy: String,
    /// The load balancing policy.
    pub balancer: String,
    /// The locality setting; empty: all localities are equal.
    pub locality: String,
    /// Limits and timeouts that are not the defaults.
    pub limits: Vec<Setting>,
    /// Empty: outlier detection is off.
    pub outlier_detection: Vec<Setting>,
    /// TLS towards the endpoints.
    pub tls: String,
    /// Header changes of this one of several destinations.
    pub effects: Vec<Setting>,
    /// The priority levels with available endpoints, the nearest first, with their percentages.
    pub levels: Vec<Level>,
    /// All endpoints of the destination, including the unhealthy ones.
    pub endpoints: Vec<Endpoint>,
    /// The share for another data centre; absent: none.
    pub elsewhere: Option<Elsewhere>,
    /// The hash key of the request and the endpoint that it selects; absent: requests are not hashed.
    pub hash: Option<Hash>,
    /// The outcome of a request for this destination.
    pub verdict: Verdict,
}

/// Endpoints of equal priority.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Level {
    /// 0 is nearest.
    pub number: usize,
    /// Share of the requests.
    pub percent: u64,
}

/// The share for another data centre.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Elsewhere {
    /// Share of the requests.
    pub percent: u32,
    /// Its name.
    pub datacenter: String,
    /// Its gateways.
    pub gateways: Vec<String>,
    /// The reason.
    pub because: String,
}

/// One endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// The address that is dialed.
    pub address: String,
    /// Its weight among the endpoints of its level.
    pub weight: u32,
    /// `healthy`, `unhealthy`, `draining` or `unknown`.
    pub health: String,
    /// Whether the caller's sidecar has ejected it.
    pub ejected: bool,
    /// `region/zone/subzone`
    pub locality: String,
    /// Its priority level; absent: it is not picked.
    pub level: Option<usize>,
    /// As registered.
    pub labels: BTreeMap<String, String>,
    /// SPIFFE ID of the sidecar that owns the address; empty: none.
    pub identity: String,
    /// The protocol and security of connections to it.
    pub transport: String,
    /// The mTLS mode of its sidecar: `STRICT`, `PERMISSIVE` or `DISABLE`, and the PeerAuthentication that sets it;
    /// empty: it has no sidecar.
    pub accepts: String,
    /// Name of the workload.
    pub workload: String,
    /// Data centre whose gateway it is; empty: it is an endpoint of this data centre.
    pub datacenter: String,
    /// Whether it is such a gateway, and receives requests.
    pub fails_over: bool,
}

/// Consistent hashing of this request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hash {
    /// `header user-id`
    pub by: String,
    /// The selected endpoint; absent: it cannot be determined.
    pub endpoint: Option<String>,
    /// The reason why it cannot be determined.
    pub because: String,
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Verdict {
    /// An endpoint receives it.
    Served,
    /// No error is known, but the registrations are not known here.
    Unregistered,
    /// The route responds to it, as configured.
    Answered {
        /// Status of the response.
        status: u16,
        /// `redirect`, `directResponse` or `corsPolicy`.
        by: String,
    },
    /// The host is unknown in the mesh.
    Unknown {
        /// Whether it is passed through to its original destination; absent: it depends on the options of the caller's
        /// proxy.
        passes: Option<bool>,
    },
    /// The sidecar refuses it with a response of its own, or closes the connection.
    Refused {
        /// Status of the response; 0: there is none.
        status: u16,
        /// Envoy's response flag.
        flag: String,
        /// The value of `x-weft-reason`.
        reason: String,
    },
}

impl Default for Verdict {
    fn default() -> Verdict {
        Verdict::Unknown { passes: None }
    }
}

impl Verdict {
    /// Whether the request succeeds: an endpoint receives it, or the response is the configured one.
    pub fn is_good(&self) -> bool {
        matches!(self, Verdict::Served | Verdict::Unregistered | Verdict::Answered { .. })
    }
}

impl Setting {
    pub(super) fn new(field: &str, value: impl ToString) -> Setting {
        Setting { field: field.to_owned(), value: value.to_string() }
    }
}
