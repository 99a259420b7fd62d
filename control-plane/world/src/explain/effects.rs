//! Settings of a route besides its destinations.

use weft_core::filter::cors::Cors;
use weft_core::filter::fault::Fault;
use weft_core::filter::{self, End, Filter};
use weft_core::headers::{HeaderOps, Template};
use weft_core::reply::{Abort, is_grpc};
use weft_core::request::RequestView;
use weft_core::retry::{RetryPolicy, request_overrides};
use weft_core::route::{Destination, DirectResponse, Forward, Mirror, Route};

use super::dispatch::Candidate;
use super::refused;
use super::report::{Setting, Verdict};
use super::settings::text;

/// Bound on the shown part of a body, in bytes.
const MOST_SHOWN: usize = 200;

/// The effect of the route's filters that every such request sees: a fault with a smaller share than all requests is
/// not drawn.
pub(super) fn of_filters(route: &Route, view: &RequestView<'_>, notes: &mut Vec<String>) -> Option<Verdict> {
    const LAST_OF_ALL: u64 = 999_999;
    let effect = filter::apply(&route.filters, view, || LAST_OF_ALL)?;
    if let Some(grant) = &effect.grant {
        let origin = grant.origin().to_str().unwrap_or("its origin");
        notes.push(format!("corsPolicy: pages of {origin} may read the response"));
    }
    match effect.end? {
        End::Respond(headers) => {
            if headers.is_empty() {
                notes.push("corsPolicy: the origin is not allowed; the response has no CORS headers".to_owned());
            }
            Some(Verdict::Answered { status: 200, by: "corsPolicy".to_owned() })
        }
        End::Refuse(reason) => Some(refused(&reason, &route.name)),
    }
}

pub(super) fn direct_response(direct: &DirectResponse) -> Setting {
    let shown = String::from_utf8_lossy(&direct.body[..direct.body.len().min(MOST_SHOWN)]).into_owned();
    let more = if direct.body.len() > MOST_SHOWN { "..." } else { "" };
    Setting::new("directResponse", format!("{} {shown:?}{more}", direct.status.as_u16()))
}

/// The effects on a forwarded request.
pub(super) fn of_forward(
    route: &Route,
    forward: &Forward,
    candidate: &Candidate<'_>,
    view: &RequestView<'_>,
) -> Vec<Setting> {
    let mut headers = view.headers.clone();
    let overrides = request_overrides(&mut headers, &forward.retry, forward.timeout, is_grpc(view.headers));
    let own = |is: bool| if is { " (requested by its headers)" } else { "" };
    let timeout = overrides.timeout.unwrap_or(forward.timeout);
    let timeout = timeout.map(|timeout| Setting::new("timeout", text(timeout) + own(overrides.timeout.is_some())));
    let retry = overrides.retry.as_ref().unwrap_or(&forward.retry);
    let retries = Setting::new("retries", retries(retry) + own(overrides.retry.is_some()));
    let path = route.rewritten_path(forward, view).map(|path| Setting::new("rewrite.uri", path));
    let authorities = forward.destinations.iter().filter_map(|destination| destination.authority.as_ref());
    let authority = authorities.map(|authority| Setting::new("rewrite.authority", authority)).next();
    let filters = route.filters.iter().flat_map(of_filter);
    let mirrors = forward.mirrors.iter().map(|mirror| mirror_of(mirror, candidate));
    let own = timeout.into_iter().chain([retries]).chain(path).chain(authority).chain(mirrors);
    own.chain(changes(&level(forward))).chain(filters).collect()
}

/// The settings of a filter.
fn of_filter(filter: &Filter) -> Vec<Setting> {
    match filter {
        Filter::Cors(policy) => cors(policy),
        Filter::Fault(faults) => fault(faults),
    }
}

/// Header changes that all destinations have in common: the last level is the route's.
fn level(forward: &Forward) -> HeaderOps {
    match &forward.destinations[..] {
        [only] => only.headers.first().cloned().unwrap_or_default(),
        several => {
            let last = several.first().and_then(|one| one.headers.last()).cloned().unwrap_or_default();
            let common = several.iter().all(|one| one.headers.last() == Some(&last));
            if common { last } else { HeaderOps::default() }
        }
    }
}

/// Header changes of one of several destinations.
pub(super) fn of_destination(forward: &Forward, destination: &Destination) -> Vec<Setting> {
    if forward.destinations.len() == 1 {
        return Vec::new();
    }
    let common = level(forward);
    destination.headers.iter().filter(|ops| **ops != common).flat_map(changes).collect()
}

/// Changes to headers, as policies name them.
fn changes(ops: &HeaderOps) -> Vec<Setting> {
    let mut all = Vec::new();
    for (side, change) in [("request", &ops.request), ("response", &ops.response)] {
        all.extend(change.remove.iter().map(|name| Setting::new(&format!("headers.{side}.remove"), name)));
        for (how, values) in [("set", &change.set), ("add", &change.add)] {
            let one = |(name, value): &(http::HeaderName, Template)| {
                Setting::new(&format!("headers.{side}.{how}"), format!("{name}: {value}"))
            };
            all.extend(values.iter().map(one));
        }
    }
    all
}

/// The access that browsers have from other origins.
fn cors(cors: &Cors) -> Vec<Setting> {
    let origins: Vec<String> = cors.origins.iter().map(ToString::to_string).collect();
    let mut all = vec![Setting::new("corsPolicy.allowOrigins", origins.join(" or "))];
    for (field, value) in [
        ("allowMethods", &cors.methods),
        ("allowHeaders", &cors.headers),
        ("exposeHeaders", &cors.exposed),
        ("maxAge", &cors.max_age),
    ] {
        let value = value.as_ref().and_then(|value| value.to_str().ok());
        all.extend(value.map(|value| Setting::new(&format!("corsPolicy.{field}"), value)));
    }
    if cors.credentials {
        all.push(Setting::new("corsPolicy.allowCredentials", true));
    }
    all
}

fn retries(retry: &RetryPolicy) -> String {
    if retry.attempts == 0 {
        return "none".to_owned();
    }
    let per_try = retry.per_try_timeout.map(|timeout| format!(", {} each", text(timeout))).unwrap_or_default();
    format!("{} on {}{per_try}", retry.attempts, retry.retry_on)
}

fn fault(fault: &Fault) -> Vec<Setting> {
    let delay = fault
        .delay
        .map(|(share, delay)| Setting::new("fault.delay", format!("{} for {} %", text(delay), share.as_percent())));
    let abort = fault.abort.map(|(share, abort)| {
        let status = match abort {
            Abort::Http(status) => status.as_u16().to_string(),
            Abort::Grpc(code) => format!("gRPC status {code}"),
        };
        Setting::new("fault.abort", format!("{status} for {} %", share.as_percent()))
    });
    delay.into_iter().chain(abort).collect()
}

fn mirror_of(mirror: &Mirror, candidate: &Candidate<'_>) -> Setting {
    let cluster = candidate.service.cluster(mirror.cluster);
    let subset = if cluster.subset.is_empty() { String::new() } else { format!(" subset {}", cluster.subset) };
    let undefined = if cluster.undefined { ", which is undefined" } else { "" };
    Setting::new("mirror", format!("{} % to {}{subset}{undefined}", mirror.share.as_percent(), cluster.host))
}
