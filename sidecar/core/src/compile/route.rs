//! Compiles routes: matches, destinations, header operations, redirects.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderName, HeaderValue, StatusCode};
use weft_proto::v1;

use crate::balance::RetrySelection;
use crate::filter::Filter;
use crate::filter::cors::Cors;
use crate::filter::fault::{Fault, Share};
use crate::headers::{HeaderChange, HeaderOps, Side, Template};
use crate::policy::Cluster;
use crate::re2;
use crate::reply::Abort;
use crate::retry::{DEFAULT_BACKOFF, RetryOn, RetryPolicy};
use crate::route::matcher::Matcher;
use crate::route::{
    Action, Destination, DirectResponse, Forward, Mirror, Redirect, RedirectPath, RedirectPort, RegexRewrite, Rewrite,
    Route, RouteTable,
};

use super::matching::{matcher, string_match};
use super::{At, Result, cluster_index, error, header_name, millis, millis_or, port_number, unknown_number};

const MAX_DIRECT_BODY: usize = 1 << 20;

/// The routes of a port; without any, one route that forwards everything to the port's `cluster`.
pub(super) fn table(port: &v1::Port, cluster: usize, clusters: &[Arc<Cluster>]) -> Result<RouteTable> {
    if port.routes.is_empty() {
        let route = default_route(port.retry.as_ref(), cluster, clusters).at("retry")?;
        return Ok(RouteTable::new(vec![route]));
    }
    let mut routes = Vec::new();
    for (i, message) in port.routes.iter().enumerate() {
        route(message, clusters, &mut routes).at(format_args!("routes[{i}]"))?;
    }
    Ok(RouteTable::new(routes))
}

fn default_route(retry: Option<&v1::RetryPolicy>, cluster: usize, clusters: &[Arc<Cluster>]) -> Result<Arc<Route>> {
    let hash = clusters[cluster].load_balancer.hash_policies().to_vec();
    let forward = Forward {
        destinations: vec![Destination {
            cluster,
            weight: 1,
            headers: Vec::new(),
            authority: None,
            sends_original_host: false,
        }],
        total_weight: 1,
        timeout: None,
        rewrite: None,
        retry: retry_policy(retry)?,
        retry_selection: retry_selection(retry, hash.is_empty()),
        mirrors: Vec::new(),
        hash,
        undefined_status: StatusCode::SERVICE_UNAVAILABLE,
    };
    Ok(Arc::new(Route {
        name: "default".into(),
        matcher: Matcher::default(),
        action: Arc::new(Action::Forward(forward)),
        headers: HeaderOps::default(),
        filters: Arc::default(),
    }))
}

/// Endpoint selection of retries. `free`: a retry may go to any endpoint instead of the one of the request's hash.
fn retry_selection(retry: Option<&v1::RetryPolicy>, free: bool) -> RetrySelection {
    RetrySelection {
        other_endpoints: free && !retry.is_some_and(|retry| retry.previous_hosts),
        other_levels: retry.is_some_and(|retry| retry.other_localities),
    }
}

/// Adds one entry per match.
fn route(message: &v1::HttpRoute, clusters: &[Arc<Cluster>], routes: &mut Vec<Arc<Route>>) -> Result<()> {
    let (ops, authority) = header_operations(message.headers.as_ref()).at("headers")?;
    let (action, headers) = match &message.action {
        Some(v1::http_route::Action::Forward(message)) => {
            let forward = forward(message, clusters, &ops, authority).at("forward")?;
            (Action::Forward(forward), HeaderOps::default())
        }
        Some(v1::http_route::Action::Redirect(message)) => (Action::Redirect(redirect(message).at("redirect")?), ops),
        Some(v1::http_route::Action::DirectResponse(message)) => {
            (Action::DirectResponse(direct_response(message).at("direct_response")?), ops)
        }
        None => return error("action", "one of forward, redirect and direct_response must be given"),
    };
    let filters = filters(message)?;
    let (name, action): (Arc<str>, _) = (message.name.as_str().into(), Arc::new(action));
    let mut add = |matcher| {
        let (name, action, headers, filters) = (name.clone(), action.clone(), headers.clone(), filters.clone());
        routes.push(Arc::new(Route { name, matcher, action, headers, filters }));
    };
    if message.matches.is_empty() {
        add(Matcher::default());
    }
    for (i, item) in message.matches.iter().enumerate() {
        add(matcher(item).at(format_args!("matches[{i}]"))?);
    }
    Ok(())
}

/// The filters of a route, in the order of Istio's filter chain.
fn filters(message: &v1::HttpRoute) -> Result<Arc<[Filter]>> {
    let cors = message.cors.as_ref().map(cors).transpose().at("cors")?;
    let fault = match &message.action {
        Some(v1::http_route::Action::Forward(forward)) => forward.fault.as_ref(),
        _ => None,
    };
    let fault = fault.map(fault_injection).transpose().at("fault").at("forward")?;
    let cors = cors.map(|cors| Filter::Cors(Arc::new(cors)));
    Ok(cors.into_iter().chain(fault.map(Filter::Fault)).collect())
}

pub(super) fn forward(
    message: &v1::Forward,
    clusters: &[Arc<Cluster>],
    route_ops: &HeaderOps,
    route_authority: Option<Authority>,
) -> Result<Forward> {
    let rewrite = message.rewrite.as_ref();
    let rewrite_authority = match rewrite.and_then(|rewrite| rewrite.authority.as_deref()) {
        Some(text) => Some(parse_authority(text).at("rewrite.authority")?),
        None => None,
    };
    let single = message.destinations.len() == 1;
    let mut destinations = Vec::with_capacity(message.destinations.len());
    let mut hash = Vec::new();
    for (i, item) in message.destinations.iter().enumerate() {
        let at = format_args!("destinations[{i}]").to_string();
        let cluster = cluster_index(item.cluster, clusters).at("cluster").at(&at)?;
        let (ops, authority) = header_operations(item.headers.as_ref()).at("headers").at(&at)?;
        // The operations of a single destination are merged into the route's, so that its `set` is applied last; with
        // several destinations they are a level of their own that is applied first, so that the route's `set` comes
        // last.
        let mut headers = if single { vec![route_ops.merged(&ops)] } else { vec![ops, route_ops.clone()] };
        headers.retain(|ops| *ops != HeaderOps::default());
        let of_route = rewrite_authority.clone().or_else(|| route_authority.clone());
        let sends_original_host = of_route.is_some() || single && authority.is_some();
        let authority = of_route.or(authority);
        destinations.push(Destination { cluster, weight: item.weight, headers, authority, sends_original_host });
        // A destination of weight 0 only makes the other one "one of several".
        if single || item.weight > 0 {
            hash.extend_from_slice(clusters[cluster].load_balancer.hash_policies());
        }
    }
    // A single destination gets all requests whatever its weight.
    let total_weight = match single {
        true => 1,
        false => destinations.iter().map(|destination| u64::from(destination.weight)).sum(),
    };
    if destinations.is_empty() {
        return error("destinations", "is empty");
    }
    if total_weight == 0 {
        return error("destinations", "total destination weight = 0");
    }
    let timeout = millis(message.timeout_ms);
    let mut retry = retry_policy(message.retry.as_ref()).at("retry")?;
    // A per-try timeout of at least the route's timeout never expires first.
    retry.per_try_timeout = retry.per_try_timeout.filter(|per_try| timeout.is_none_or(|timeout| *per_try < timeout));
    let rewrite = rewrite.map(path_rewrite).transpose().at("rewrite")?.flatten();
    // With a single hashed destination, a request belongs to one endpoint.
    let retry_selection = retry_selection(message.retry.as_ref(), !single || hash.is_empty());
    let mirrors = mirrors(message, clusters)?;
    let undefined_status = match message.cluster_not_found_response_code {
        0 => StatusCode::SERVICE_UNAVAILABLE,
        code => status(code).at("cluster_not_found_response_code")?,
    };
    Ok(Forward {
        destinations,
        total_weight,
        timeout,
        rewrite,
        retry,
        retry_selection,
        mirrors,
        hash,
        undefined_status,
    })
}

fn mirrors(message: &v1::Forward, clusters: &[Arc<Cluster>]) -> Result<Vec<Mirror>> {
    let mut mirrors = Vec::with_capacity(message.mirrors.len());
    for (i, item) in message.mirrors.iter().enumerate() {
        let at = format_args!("mirrors[{i}]").to_string();
        let cluster = cluster_index(item.cluster, clusters).at("cluster").at(&at)?;
        mirrors.push(Mirror { cluster, share: share(item.percent, "percent").at(&at)? });
    }
    Ok(mirrors)
}

fn path_rewrite(message: &v1::Rewrite) -> Result<Option<Rewrite>> {
    if let Some(path) = &message.full_path {
        if message.uri.is_some() || message.uri_regex.is_some() {
            return error("full_path", "cannot be given together with uri or uri_regex");
        }
        if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) {
            return error("full_path", "must begin with '/' and may have visible ASCII only");
        }
        return Ok(Some(Rewrite::Full(path.clone())));
    }
    Ok(match (&message.uri, &message.uri_regex) {
        (Some(_), Some(_)) => return error("uri_regex", "cannot be given together with uri"),
        (Some(uri), None) if !uri.bytes().all(|b| b.is_ascii_graphic()) => {
            return error("uri", "may have visible ASCII only");
        }
        (Some(uri), None) => Some(Rewrite::Matched(uri.clone())),
        (None, Some(rewrite)) => {
            let regex = re2::searched(&rewrite.pattern).at("uri_regex.pattern")?;
            let rewrite = RegexRewrite::new(regex, &rewrite.substitution).at("uri_regex.substitution")?;
            Some(Rewrite::Regex(rewrite))
        }
        (None, None) => None,
    })
}

fn share(percent: f64, field: &'static str) -> Result<Share> {
    match (0.0..=100.0).contains(&percent) {
        true => Ok(Share::percent(percent)),
        false => error(field, format!("{percent} is not 0 to 100")),
    }
}

fn fault_injection(message: &v1::Fault) -> Result<Fault> {
    use v1::fault::Abort as Wire;
    let abort = match &message.abort {
        None => None,
        Some(Wire::HttpStatus(status)) => {
            let status = u16::try_from(*status).ok().and_then(|status| StatusCode::from_u16(status).ok());
            let Some(status) = status else { return error("http_status", "is no status") };
            Some(Abort::Http(status))
        }
        Some(Wire::GrpcStatus(status @ 0..=16)) => Some(Abort::Grpc(*status)),
        Some(Wire::GrpcStatus(status)) => return error("grpc_status", format!("{status} is no status of gRPC")),
    };
    let delay = (message.delay_ms != 0).then(|| Duration::from_millis(message.delay_ms));
    let (delay_share, abort_share) =
        (share(message.delay_percent, "delay_percent")?, share(message.abort_percent, "abort_percent")?);
    Ok(Fault { delay: delay.map(|delay| (delay_share, delay)), abort: abort.map(|abort| (abort_share, abort)) })
}

fn cors(message: &v1::Cors) -> Result<Cors> {
    let mut origins = Vec::with_capacity(message.allow_origins.len());
    for (i, origin) in message.allow_origins.iter().enumerate() {
        origins.push(string_match(Some(origin)).at(format_args!("allow_origins[{i}]"))?);
    }
    let value = |text: &str, field: &'static str| match HeaderValue::from_str(text) {
        Ok(value) => Ok((!text.is_empty()).then_some(value)),
        Err(_) => error(field, format!("{text:?} is no value of a header")),
    };
    Ok(Cors {
        origins,
        methods: value(&message.allow_methods.join(","), "allow_methods")?,
        headers: value(&message.allow_headers.join(","), "allow_headers")?,
        exposed: value(&message.expose_headers.join(","), "expose_headers")?,
        max_age: message.max_age_s.map(HeaderValue::from),
        credentials: message.allow_credentials,
        answers_unmatched_preflights: message.ignore_unmatched_preflights,
        reflects_wildcards: message.reflect_wildcards && message.allow_credentials,
    })
}

fn retry_policy(message: Option<&v1::RetryPolicy>) -> Result<RetryPolicy> {
    let Some(message) = message else { return Ok(RetryPolicy::default()) };
    if message.attempts == 0 {
        return Ok(RetryPolicy::none());
    }
    let retry_on = match message.retry_on.iter().all(|name| name.is_empty()) {
        true => RetryPolicy::default().retry_on,
        false => RetryOn::parse(message.retry_on.iter().map(String::as_str)).at("retry_on")?,
    };
    Ok(RetryPolicy {
        attempts: message.attempts,
        per_try_timeout: millis(message.per_try_timeout_ms),
        retry_on,
        backoff: if message.backoff_ms == 0 { DEFAULT_BACKOFF } else { millis_or(message.backoff_ms, 1) },
    })
}

fn redirect(message: &v1::Redirect) -> Result<Redirect> {
    let status = match message.code {
        0 => StatusCode::MOVED_PERMANENTLY,
        301 | 302 | 303 | 307 | 308 => status(message.code).at("code")?,
        other => return error("code", format!("{other} is not 301, 302, 303, 307 or 308")),
    };
    let port = match (message.port, v1::DerivePort::try_from(message.derive_port)) {
        (Some(number), Ok(v1::DerivePort::Unset)) => RedirectPort::Number(port_number(number).at("port")?),
        (None, Ok(v1::DerivePort::FromRequestPort)) => RedirectPort::FromRequest,
        (None, Ok(_)) => RedirectPort::Keep,
        (Some(_), Ok(_)) => return error("derive_port", "cannot be given together with port"),
        (_, Err(_)) => return error("derive_port", unknown_number(message.derive_port)),
    };
    if message.scheme.as_deref().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        return error("scheme", "must be http or https");
    }
    if let Some(text) = &message.authority {
        parse_authority(text).at("authority")?;
    }
    for (field, path) in [("uri", &message.uri), ("prefix_rewrite", &message.prefix_rewrite)] {
        if path.as_ref().is_some_and(|path| !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic())) {
            return error(field, "must begin with '/' and may have visible ASCII only");
        }
    }
    let path = match (&message.uri, &message.prefix_rewrite) {
        (Some(_), Some(_)) => return error("prefix_rewrite", "cannot be given together with uri"),
        (Some(uri), None) => RedirectPath::Uri(uri.clone()),
        (None, Some(prefix)) => RedirectPath::Matched(prefix.clone()),
        (None, None) => RedirectPath::Keep,
    };
    Ok(Redirect { path, authority: message.authority.clone(), scheme: message.scheme.clone(), port, status })
}

fn direct_response(message: &v1::DirectResponse) -> Result<DirectResponse> {
    if message.body.len() > MAX_DIRECT_BODY {
        return error("body", format!("has {} bytes, at most {MAX_DIRECT_BODY} are allowed", message.body.len()));
    }
    if !(200..=599).contains(&message.status) {
        return error("status", format!("{} is not a status from 200 to 599", message.status));
    }
    Ok(DirectResponse { status: status(message.status).at("status")?, body: Bytes::from(message.body.clone()) })
}

/// The operations, and the authority if one of them sets it.
fn header_operations(message: Option<&v1::HeaderOperations>) -> Result<(HeaderOps, Option<Authority>)> {
    let Some(message) = message else { return Ok((HeaderOps::default(), None)) };
    let mut authority = None;
    let request = header_change(message.request.as_ref(), Some(&mut authority)).at("request")?;
    let response = header_change(message.response.as_ref(), None).at("response")?;
    Ok((HeaderOps { request, response }, authority))
}

/// `authority`: receives the new authority of a request; `None` for responses, which have none.
fn header_change(
    message: Option<&v1::HeaderChange>,
    mut authority: Option<&mut Option<Authority>>,
) -> Result<HeaderChange> {
    let side = if authority.is_some() { Side::Request } else { Side::Response };
    let Some(message) = message else { return Ok(HeaderChange::default()) };
    let mut list = |field: &str, values: &[v1::HeaderValue]| -> Result<Vec<(HeaderName, Template)>> {
        let mut compiled = Vec::with_capacity(values.len());
        for (i, item) in values.iter().enumerate() {
            let at = format_args!("{field}[{i}]").to_string();
            if let (true, Some(authority)) = (is_authority(&item.name), authority.as_deref_mut()) {
                if authority.is_some() {
                    return error(&at, "the authority is set twice");
                }
                *authority = Some(parse_authority(&item.value).at("value").at(&at)?);
                continue;
            }
            let name = header_name(&item.name).at("name").at(&at)?;
            compiled.push((name, Template::parse(&item.value, side).at("value").at(&at)?));
        }
        Ok(compiled)
    };
    let (set, add) = (list("set", &message.set)?, list("add", &message.add)?);
    let mut remove = Vec::with_capacity(message.remove.len());
    for (i, name) in message.remove.iter().enumerate() {
        let at = format_args!("remove[{i}]").to_string();
        if is_authority(name) {
            return error(at, "the authority cannot be removed");
        }
        remove.push(header_name(name).at(at)?);
    }
    Ok(HeaderChange { remove, set, add })
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

fn parse_authority(text: &str) -> std::result::Result<Authority, String> {
    match text.parse::<Authority>() {
        Ok(authority) if !text.contains('@') => Ok(authority),
        _ => Err(format!("{text:?} is not an authority (host, maybe with port)")),
    }
}

fn status(code: u32) -> std::result::Result<StatusCode, String> {
    let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    status.ok_or_else(|| format!("{code} is not an HTTP status"))
}
