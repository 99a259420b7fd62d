//! HTTPRoute: routes of the requests to Services and to the listeners of Gateways.

pub(super) mod filters;
pub(crate) mod matching;

use weft_proto::v1;

use self::filters::Filters;
use self::matching::RankedMatch;
use super::{BackendRef, GROUP, PARENT, ParentRef, duration, hostnames, parents};
use crate::decode::fields::{Fields, Shape, explicit, not_yet, object, read};
use crate::kinds::{Content, Descriptor, Manifest, Object};
use crate::yaml::Place;

pub(in crate::kinds) static DESCRIPTOR: Descriptor = Descriptor {
    group: GROUP,
    versions: &["v1", "v1beta1", "v1alpha2"],
    plural: "httproutes",
    short_names: &[],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::HTTPRoute(Box::new(decode(manifest))),
};

/// The `spec` of an HTTPRoute or a GRPCRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    /// Services, and Gateways.
    pub parents: Vec<ParentRef>,
    /// At Gateways; empty: those of the listener.
    pub hostnames: Vec<String>,
    /// The rules.
    pub rules: Vec<HttpRule>,
}

impl HttpRoute {
    /// Backends of requests and mirrors, with the place of each in `spec`.
    pub(crate) fn backends(&self) -> impl Iterator<Item = (String, &BackendRef)> {
        self.rules.iter().enumerate().flat_map(|(n, rule)| {
            let own = rule.backends.iter().enumerate();
            let own = own.map(move |(at, backend)| (format!("rules[{n}].backendRefs[{at}]"), backend));
            own.chain(rule.mirrors.iter().map(move |mirror| (format!("rules[{n}].filters"), &mirror.backend)))
        })
    }
}

/// One entry of `rules`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpRule {
    /// For logs; empty: none.
    pub name: String,
    /// At least one.
    pub matches: Vec<RankedMatch>,
    /// Header operations of the rule.
    pub headers: Option<v1::HeaderOperations>,
    /// Filter `RequestRedirect`: nothing is forwarded.
    pub redirect: Option<v1::Redirect>,
    /// Filter `URLRewrite`.
    pub rewrite: Option<v1::Rewrite>,
    /// Filter `CORS`.
    pub cors: Option<v1::Cors>,
    /// Filters `RequestMirror`.
    pub mirrors: Vec<BackendMirror>,
    /// Milliseconds; 0: none.
    pub timeout_ms: u64,
    /// Of each attempt, milliseconds; 0: none.
    pub per_try_timeout_ms: u64,
    /// `retry`; absent: the mesh's default.
    pub retry: Option<v1::RetryPolicy>,
    /// Requests are answered 500 if it is empty, unless there is a redirect.
    pub backends: Vec<BackendRef>,
    /// Its place in the file.
    pub place: Place,
}

/// A backend of mirrored requests.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendMirror {
    /// Its weight is ignored.
    pub backend: BackendRef,
    /// Of the requests, 0 to 100.
    pub percent: f64,
}

/// Fields of an entry of `backendRefs`.
pub(super) const BACKEND: Shape = &[
    explicit("group"),
    read("kind"),
    read("namespace"),
    read("name"),
    read("port"),
    explicit("weight"),
    object("filters", filters::OF_BACKEND),
];

/// Fields of `spec`.
const SHAPE: Shape = &[
    object("parentRefs", PARENT),
    read("hostnames"),
    not_yet("useDefaultGateways"),
    object(
        "rules",
        &[
            read("name"),
            object("matches", matching::HTTP),
            object("filters", filters::HTTP),
            object("backendRefs", BACKEND),
            object("timeouts", &[read("request"), read("backendRequest")]),
            object("retry", &[read("codes"), explicit("attempts"), read("backoff")]),
            not_yet("sessionPersistence"),
        ],
    ),
];

impl Content for Box<HttpRoute> {
    fn hosts(&self) -> &[String] {
        &self.hostnames
    }
}

/// Reads `spec`.
fn decode(manifest: &Manifest<'_>) -> HttpRoute {
    let (spec, namespace) = (&manifest.spec, manifest.namespace.as_str());
    let mut rules: Vec<HttpRule> = spec.objects("rules").iter().map(|fields| rule(fields, namespace)).collect();
    if !spec.has("rules") && !spec.misspelled("rules") {
        // The API's default: all requests, without a backend.
        rules.push(HttpRule { matches: vec![matching::any()], place: spec.place, ..HttpRule::default() });
    }
    HttpRoute { parents: parents(spec, namespace), hostnames: hostnames(spec), rules }
}

fn rule(fields: &Fields<'_>, namespace: &str) -> HttpRule {
    let mut matches: Vec<RankedMatch> = fields.objects("matches").iter().map(matching::http).collect();
    if matches.is_empty() {
        matches.push(matching::any());
    }
    let found = filters::decode(fields, namespace);
    let by_prefix = matches.iter().all(|one| !one.http.path_separated_prefix.is_empty());
    if found.replaces_prefix() && !by_prefix {
        fields.error("filters", "`replacePrefixMatch` needs matches of type PathPrefix alone");
    }
    let backends = backends(fields, namespace);
    if found.redirect.is_some() && !backends.is_empty() {
        fields.error("backendRefs", "`backendRefs` has no effect beside a filter of type RequestRedirect: remove one");
    }
    let (timeout_ms, per_try_timeout_ms) = timeouts(fields);
    let retry = fields.object("retry").map(|retry| retry_policy(&retry));
    with_filters(
        found,
        HttpRule {
            name: fields.string("name").unwrap_or_default(),
            matches,
            timeout_ms,
            per_try_timeout_ms,
            retry,
            backends,
            place: fields.place,
            ..HttpRule::default()
        },
    )
}

/// `rule` with its filters.
pub(super) fn with_filters(found: Filters, rule: HttpRule) -> HttpRule {
    let Filters { headers, redirect, rewrite, cors, mirrors } = found;
    HttpRule { headers, redirect, rewrite, cors, mirrors, ..rule }
}

/// Reads `backendRefs`.
pub(super) fn backends(fields: &Fields<'_>, namespace: &str) -> Vec<BackendRef> {
    let one = |fields: &Fields<'_>| {
        let weight = fields.number("weight", 0..=1_000_000).unwrap_or(1);
        // Backends of connections have no filters.
        let headers = if fields.knows("filters") { filters::of_backend(fields) } else { None };
        let weight = u32::try_from(weight).unwrap_or(1);
        BackendRef { weight, headers, ..super::backend(fields, namespace) }
    };
    fields.objects("backendRefs").iter().map(one).collect()
}

/// `timeouts`: of the request, and of each attempt.
fn timeouts(fields: &Fields<'_>) -> (u64, u64) {
    let Some(timeouts) = fields.object("timeouts") else { return (0, 0) };
    let request = duration(&timeouts, "request").unwrap_or_default();
    let attempt = duration(&timeouts, "backendRequest").unwrap_or_default();
    if request > 0 && attempt > request {
        timeouts.error("backendRequest", "`backendRequest` cannot be longer than `request`");
    }
    (request, attempt)
}

/// Connection errors are always retried.
fn retry_policy(fields: &Fields<'_>) -> v1::RetryPolicy {
    let codes = fields.numbers("codes", 400..=599).into_iter().map(|code| code.to_string());
    let retry_on = ["connect-failure", "refused-stream", "reset"].map(str::to_owned).into_iter().chain(codes).collect();
    let attempts = fields.number("attempts", 0..=i64::from(i32::MAX)).and_then(|n| u32::try_from(n).ok());
    v1::RetryPolicy {
        attempts: attempts.unwrap_or(2),
        backoff_ms: duration(fields, "backoff").unwrap_or_default(),
        retry_on,
        ..v1::RetryPolicy::default()
    }
}
